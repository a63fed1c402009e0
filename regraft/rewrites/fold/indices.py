"""What the index analysis proves, written into the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Dim,
    DType,
    Example,
    Match,
    Module,
    Op,
    PassContext,
    PatternBuilder,
    Rewrite,
    Rewriter,
    Symbol,
    Trait,
    Value,
    Var,
    dims,
)
from regraft.rewrites.fold.affine import Affine, Fact, Where
from regraft.rewrites.fold.index_analysis import IndexAnalysis, sizes_of_elements
from regraft.rewrites.support import same_dims


@dataclass(frozen=True)
class ConstantIndices:
    """Replaces integer and bool tensors that are proved to hold one value by ``aten.full``.

    Masks of transformers test ``arange(n) >= 0``, and count the breaks in positions that have none.
    """

    name: str = "constant-indices"
    stage: str = "fold"
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def run(self, module: Module, context: PassContext) -> bool:
        rewriter, facts = context.rewriter(self.name), _Analyses()
        ops = (op for function in module.functions.values() for op in function.walk())
        changes = [_fill(op, facts, rewriter) for op in ops]
        return any(changes)


class _Analyses:
    """One analysis for each set of sizes that may be taken as positive."""

    def __init__(self) -> None:
        self._by_sizes: dict[frozenset[Symbol], IndexAnalysis] = {}

    def fact(self, value: Value) -> Fact | None:
        sizes = sizes_of_elements(value)
        return self._by_sizes.setdefault(sizes, IndexAnalysis(sizes)).fact(value)


def _fill(op: Op, facts: _Analyses, rewriter: Rewriter) -> bool:
    if (
        not op.has(Trait.PURE)
        or op.has(Trait.CONSTANT_LIKE)
        or op.name == "aten.full"
        or len(op.results) != 1
        or not op.result.uses
    ):
        return False
    type = op.result.tensor
    # ``full`` makes tensors on the CPU; elsewhere the fact would need a transfer.
    if not (type.dtype.is_integer or type.dtype is DType.BOOL) or type.device != "cpu":
        return False
    value = uniform_value(facts.fact(op.result))
    if value is None:
        return False
    rewriter.replace(op, (rewriter.before(op).aten.full(type.shape, value, dtype=type.dtype),))
    return True


def uniform_value(fact: Fact | None) -> int | bool | None:
    """The number that every element of a tensor is, when ``fact`` says so."""
    if isinstance(fact, Affine):
        return fact.base if fact.is_uniform and isinstance(fact.base, int) else None
    if isinstance(fact, Where):
        return None if fact.constraints else not fact.never
    return None


class IotaIndex(Rewrite):
    """x[i, j, ...] = view(x), where the indices count the dimensions of x from 0 to their ends.

    Source: the key-padding masks of transformers, ``mask[arange(B)[:, None, None, None], arange(S)]``.
    """

    stage = "fold"

    def pattern(self, op: PatternBuilder, x: Var, i: Var, j: Var, k: Var) -> Any:
        return op.one_of(*(op.aten.index.Tensor(x, indices) for indices in ([i], [i, j], [i, j, k])))

    def check(self, m: Match) -> Declined | None:
        facts = IndexAnalysis(sizes_of_elements(m.root.result))
        indices = [value for name in "ijk" if (value := m.optional(name)) is not None]
        if len(indices) != m.x.tensor.rank:
            return m.decline("a dimension has no index", m.x)
        shape = facts.shape(m.root.result)
        axes = [_counted_axis(facts, value, shape) for value in indices]
        if None in axes or sorted(axes, key=str) != axes or len(set(axes)) != len(axes):
            return m.decline("the indices do not count the dimensions in order", m.x)
        if not same_dims([shape[axis] for axis in axes if axis is not None], facts.shape(m.x)):
            return m.decline("the indices do not reach the ends of the dimensions", m.x)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.view(m.x, m.root.result.tensor.shape)

    examples = (
        Example(lambda op, x: _indexed(op, x, (0, 2)), ("bool[B, S]",)),
        Example(lambda op, x: _indexed(op, x, (0, 1)), ("f32[3, 5]",)),
        Example(lambda op, x: _indexed(op, x, (1,)), ("f32[3]",)),
    )
    counterexamples = (
        Example(lambda op, x: _indexed(op, x, (1, 0)), ("f32[3, 5]",), reason="in order"),
        Example(lambda op, x: _indexed(op, x, (0, 1), shift=1), ("f32[3, 5]",), reason="in order"),
        Example(lambda op, x: _indexed(op, x, (0, 1), less=1), ("f32[3, 5]",), reason="the ends"),
        Example(lambda op, x: _indexed(op, x, (0,)), ("f32[3, 5]",), reason="has no index"),
    )


def _counted_axis(facts: IndexAnalysis, index: Value, shape: Sequence[Dim]) -> int | None:
    """The axis of the result along which ``index`` is 0, 1, 2, ...; None when it is anything else."""
    form, rank = facts.affine(index), len(shape)
    if form is None or dims.eq(form.base, 0) is not True:
        return None
    varying = [(axis, c) for axis, c in enumerate(form.with_rank(rank).coefficients) if c]
    return varying[0][0] if len(varying) == 1 and varying[0][1] == 1 else None


def _indexed(op: Builder, x: Value, axes: tuple[int, ...], shift: int = 0, less: int = 0) -> Value:
    """``x`` indexed by ranges; the range of dimension d lies along axis ``axes[d]`` of three."""
    indices: list[Value] = []
    for axis, size in zip(axes, x.tensor.shape, strict=False):
        length = size - less
        counted = op.aten.arange.start_step(-shift, length - shift, 1, dtype=DType.I64)
        indices.append(op.aten.view(counted, tuple(length if a == axis else 1 for a in range(3))))
    return op.aten.index.Tensor(x, indices)
