"""Sums of products with one matrix.

Experts that share a projection (MixLoRA, TUDB-Labs/MixLoRA) multiply by it once, after their weighted sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Exactness,
    Example,
    Match,
    Op,
    PatternBuilder,
    Rewrite,
    Value,
    Var,
)
from regraft.rewrites.support import is_known

_MAX_TERMS = 256


@dataclass(frozen=True)
class _Term:
    """``value`` times ``factors``, each of which is one number a row."""

    value: Value
    factors: tuple[Value, ...] = ()

    @property
    def product(self) -> Op | None:
        """The linear layer without bias that makes the value, if nothing else reads it."""
        op = self.value.op
        if op is None or op.name != "aten.linear" or len(self.value.uses) != 1:
            return None
        weight = op.operand("weight")
        plain = op.optional("bias") is None and weight.tensor.rank == 2 and is_known(weight)
        return op if plain else None

    def scaled(self, op: Builder, value: Value) -> Value:
        for factor in reversed(self.factors):
            value = op.aten.mul.Tensor(value, factor)
        return value


class SharedProduct(Rewrite):
    """linear(x, W) * s + linear(y, W) * t = linear(x * s + y * t, W), s and t being a number for each row.

    Other summands stay beside the product, and a factor of a sum is one of each summand.
    """

    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, a: Var, b: Var) -> Any:
        return op.aten.add.Tensor(a, b)

    def check(self, m: Match) -> Declined | None:
        if _continues(m.root):
            return m.decline("it is a part of a longer sum", m.root.result)
        if _repeated_weight(_terms(m.root)) is None:
            return m.decline("no two summands are products with one constant matrix", m.root.result)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        terms = _terms(m.root)
        weight = _repeated_weight(terms)
        assert weight is not None
        inputs: list[Value] = []
        rest: list[Value] = []
        for term in terms:
            product = term.product
            if product is not None and product.operand("weight") is weight:
                inputs.append(term.scaled(op, product.operand("input")))
            else:
                rest.append(term.scaled(op, term.value))
        return _sum(op, [op.aten.linear(_sum(op, inputs), weight), *rest])


def _sum(op: Builder, values: Sequence[Value]) -> Value:
    total = values[0]
    for value in values[1:]:
        total = op.aten.add.Tensor(total, value)
    return total


def _terms(root: Op) -> list[_Term]:
    return [term for operand in root.operands for term in _split(_Term(operand), root.result)]


def _split(term: _Term, whole: Value, depth: int = 0) -> Iterator[_Term]:
    """The summands of ``term``, as far as they have the type of the ``whole`` and no other reader."""
    op = term.value.op
    if op is None or len(term.value.uses) != 1 or term.value.type != whole.type or depth == _MAX_TERMS:
        yield term
    elif op.name == "aten.add.Tensor" and op.attr("alpha") == 1:
        for operand in op.operands:
            yield from _split(_Term(operand, term.factors), whole, depth + 1)
    else:
        parts = _by_rows(op)
        if parts is None:
            yield term
        else:
            value, factor = parts
            yield from _split(_Term(value, (*term.factors, factor)), whole, depth + 1)


def _by_rows(op: Op) -> tuple[Value, Value] | None:
    """What ``op`` multiplies, and the factor, which is one number for each row."""
    if op.name != "aten.mul.Tensor":
        return None
    for value, factor in (op.operands, op.operands[::-1]):
        if factor.tensor.rank and factor.tensor.shape[-1] == 1 and value.type == op.result.type:
            return value, factor
    return None


def _repeated_weight(terms: Sequence[_Term]) -> Value | None:
    seen: set[Value] = set()
    for term in terms:
        if term.product is None:
            continue
        weight = term.product.operand("weight")
        if weight in seen:
            return weight
        seen.add(weight)
    return None


def _continues(root: Op) -> bool:
    """Whether the one user of ``root`` adds on, perhaps after a factor of rows."""
    if len(root.result.uses) != 1:
        return False
    (user,) = root.result.users
    parts = _by_rows(user)
    if parts is not None and parts[0] is root.result:
        return len(user.result.uses) == 1 and user.result.users[0].name == "aten.add.Tensor"
    return user.name == "aten.add.Tensor" and user.result.type == root.result.type


def _experts(op: Builder, x: Value, y: Value, s: Value, w: Value, v: Value) -> Value:
    """Two experts behind one projection, the first with a change of its own."""
    first = op.aten.add.Tensor(op.aten.linear(x, w), op.aten.linear(x, v))
    return op.aten.add.Tensor(op.aten.mul.Tensor(first, s), op.aten.linear(y, w))


SharedProduct.examples = (
    Example(
        _experts,
        ("f32[N, 8]", "f32[N, 8]", "f32[N, 1]", "f32[5, 8]", "f32[5, 8]"),
        constants=(3, 4),
    ),
    Example(
        lambda op, x, y, z, w: op.aten.add.Tensor(
            op.aten.add.Tensor(op.aten.linear(x, w), z), op.aten.linear(y, w)
        ),
        ("f32[2, 3, 8]", "f32[2, 3, 8]", "f32[2, 3, 5]", "f32[5, 8]"),
        constants=(3,),
    ),
)
SharedProduct.counterexamples = (
    Example(
        lambda op, x, y, v, w: op.aten.add.Tensor(op.aten.linear(x, v), op.aten.linear(y, w)),
        ("f32[N, 8]", "f32[N, 8]", "f32[5, 8]", "f32[5, 8]"),
        constants=(2, 3),
        reason="no two summands",
    ),
    Example(
        lambda op, x, y, s, w: op.aten.add.Tensor(
            op.aten.mul.Tensor(op.aten.linear(x, w), s), op.aten.linear(y, w)
        ),
        ("f32[N, 8]", "f32[N, 8]", "f32[5]", "f32[5, 8]"),
        constants=(3,),
        reason="no two summands",
    ),
)
