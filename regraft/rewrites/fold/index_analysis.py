"""What index arithmetic proves: which masks are all true, which are causal, which indices are constant.

Models build masks and positions from ``arange`` and comparisons, so that nearly every mask in a graph
is a statement about its own indices. The analysis walks from a value to its producers and returns an
:class:`Affine` form of an integer tensor, a conjunction of inequalities :class:`Where` of a bool tensor,
or None where it knows nothing. It changes nothing, and holds for every value of the symbols. A fact
about an empty tensor is true of any tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from regraft.ir import Dim, DType, Op, Symbol, Value, dims
from regraft.rewrites.fold.affine import (
    ALWAYS,
    NEVER,
    Affine,
    Fact,
    Magnitude,
    Where,
    at_most_zero,
    mapped,
)

_MAX_DEPTH = 150


class IndexAnalysis:
    """Facts about values, remembered while the graph does not change.

    ``positive`` are symbols to be taken as at least 1. That is sound for a fact about a tensor that is
    empty when one of them is 0; see ``fact_about``.
    """

    def __init__(self, positive: frozenset[Symbol] = frozenset()) -> None:
        self._facts: dict[Value, Fact | None] = {}
        self._depth = 0
        self._positive = {s: dims.as_expr(replace(s, lo=1)) for s in positive}

    def fact(self, value: Value) -> Fact | None:
        """What is known of ``value``; None for nothing."""
        if value not in self._facts:
            self._facts[value] = self._find(value)
        return self._facts[value]

    def affine(self, value: Value) -> Affine | None:
        found = self.fact(value)
        return found if isinstance(found, Affine) else None

    def where(self, value: Value) -> Where | None:
        found = self.fact(value)
        return found if isinstance(found, Where) else None

    def size(self, size: Dim) -> Dim:
        """``size`` under the assumptions."""
        return dims.substitute(size, self._positive) if self._positive else size

    def shape(self, value: Value) -> tuple[Dim, ...]:
        return tuple(self.size(size) for size in value.tensor.shape)

    def number(self, attr: object) -> Dim | None:
        """An attribute as an integer or a size; None when it is neither."""
        return self.size(attr) if isinstance(attr, dims.Expr) else _integer(attr)

    def _find(self, value: Value) -> Fact | None:
        op = value.op
        rule = None if op is None else _RULES.get(op.name)
        if op is None or rule is None or self._depth > _MAX_DEPTH:
            return None
        self._depth += 1
        try:
            found = rule(self, op)
        finally:
            self._depth -= 1
        if isinstance(found, Affine):
            shape = self.shape(value)
            found = found.within(shape)
            return found if found.fits(value.tensor.dtype, shape) else None
        return found


def fact_about(value: Value) -> Fact | None:
    """What is known of ``value`` where it has elements: an empty tensor agrees with any fact."""
    return IndexAnalysis(sizes_of_elements(value)).fact(value)


def sizes_of_elements(value: Value) -> frozenset[Symbol]:
    """The symbols that may be 0, and make ``value`` empty when they are."""
    found = (dims.as_symbol(size) for size in value.tensor.shape)
    return frozenset(s for s in found if s is not None and s.lo < 1 and (s.hi is None or s.hi >= 1))


Rule: TypeAlias = Callable[[IndexAnalysis, Op], "Fact | None"]


def _integer(number: object) -> int | None:
    """``number`` as an int, when it is one."""
    if isinstance(number, float) and math.isfinite(number) and number.is_integer():
        return int(number)
    return number if isinstance(number, int) and not isinstance(number, bool) else None


# -- sources -----------------------------------------------------------------------------------


def _arange(facts: IndexAnalysis, op: Op) -> Fact | None:
    start, step = facts.number(op.attr("start")), _integer(op.attr("step"))
    return None if start is None or step is None else Affine(start, (step,))


def _full(facts: IndexAnalysis, op: Op) -> Fact | None:
    value, rank = op.attr("fill_value"), op.result.tensor.rank
    if op.result.tensor.dtype is DType.BOOL:
        return ALWAYS if value else NEVER
    base = facts.number(value)
    return None if base is None or not op.result.tensor.dtype.is_integer else Affine(base, (0,) * rank)


def _dim_value(facts: IndexAnalysis, op: Op) -> Fact | None:
    return Affine(facts.size(op.attr("value")), ())


# -- arithmetic --------------------------------------------------------------------------------


def _pair(facts: IndexAnalysis, op: Op) -> tuple[Affine, Affine] | None:
    """The two operands as affine forms over the axes of the result."""
    rank = op.result.tensor.rank
    a, b = (facts.affine(value) for value in op.operands[:2])
    return None if a is None or b is None else (a.with_rank(rank), b.with_rank(rank))


def _add(facts: IndexAnalysis, op: Op) -> Fact | None:
    pair, alpha = _pair(facts, op), _integer(op.attr("alpha"))
    return None if pair is None or alpha is None else pair[0] + pair[1].scaled(alpha)


def _subtract(facts: IndexAnalysis, op: Op) -> Fact | None:
    pair, alpha = _pair(facts, op), _integer(op.attr("alpha"))
    return None if pair is None or alpha is None else pair[0] - pair[1].scaled(alpha)


def _multiply(facts: IndexAnalysis, op: Op) -> Fact | None:
    pair = _pair(facts, op)
    for form, factor in () if pair is None else (pair, pair[::-1]):
        if factor.is_uniform and isinstance(factor.base, int):
            return form.scaled(factor.base)
    return None


def _add_scalar(facts: IndexAnalysis, op: Op) -> Fact | None:
    form, number, alpha = facts.affine(op.operand("self")), _integer(op.attr("other")), op.attr("alpha")
    return None if form is None or number is None or alpha != 1 else form.plus(number)


def _multiply_scalar(facts: IndexAnalysis, op: Op) -> Fact | None:
    form, number = facts.affine(op.operand("self")), _integer(op.attr("other"))
    return None if form is None or number is None else form.scaled(number)


def _negate(facts: IndexAnalysis, op: Op) -> Fact | None:
    form = facts.affine(op.operand("self"))
    return None if form is None else form.scaled(-1)


def _absolute(facts: IndexAnalysis, op: Op) -> Fact | None:
    form, shape = facts.affine(op.operand("self")), facts.shape(op.result)
    if form is None or not form.scaled(-1).fits(op.result.tensor.dtype, shape):
        return None
    if form.is_at_least(0, shape):
        return form
    return form.scaled(-1) if form.is_at_most(0, shape) else Magnitude(form)


def _extremum(sign: int) -> Rule:
    """``maximum`` (sign 1) or ``minimum`` (-1) where one operand is always the one."""

    def rule(facts: IndexAnalysis, op: Op) -> Fact | None:
        pair, shape = _pair(facts, op), facts.shape(op.result)
        for a, b in () if pair is None else (pair, pair[::-1]):
            if (a - b).scaled(sign).is_at_least(0, shape):
                return a
        return None

    return rule


# -- comparisons and logic ---------------------------------------------------------------------


def _compare(name: str) -> Rule:
    def rule(facts: IndexAnalysis, op: Op) -> Fact | None:
        shape = facts.shape(op.result)
        if "other" not in op.attrs:
            pair = _pair(facts, op)
            return None if pair is None else _compared(name, pair[0] - pair[1], shape)
        fact, number = facts.fact(op.operand("self")), _integer(op.attr("other"))
        if fact is None and number == 0 and name in ("eq", "ne"):
            where = _Nonzero(facts).where(op.operand("self"))
            return where if where is None or name == "ne" else complement(where, shape)
        # torch compares in the tensor's dtype: as u8, -1 is 255.
        if number is None or not Affine(number, ()).fits(op.operand("self").tensor.dtype, ()):
            return None
        if isinstance(fact, Magnitude):
            return _compared_magnitude(name, fact.of, number, shape)
        return _compared(name, fact.plus(-number), shape) if isinstance(fact, Affine) else None

    return rule


def _compared(name: str, difference: Affine, shape: Sequence[Dim]) -> Where | None:
    """Where the difference of two tensors is ``name`` 0."""
    d = difference.within(shape)
    if name == "le":
        return at_most_zero(d, shape)
    if name == "lt":
        return at_most_zero(d.plus(1), shape)
    if name == "ge":
        return at_most_zero(d.scaled(-1), shape)
    if name == "gt":
        return at_most_zero(d.scaled(-1).plus(1), shape)
    equal = at_most_zero(d, shape).both(at_most_zero(d.scaled(-1), shape))
    return equal if name == "eq" else complement(equal, shape)


def _compared_magnitude(name: str, form: Affine, number: int, shape: Sequence[Dim]) -> Where | None:
    """Where ``|form|`` is below a bound: two inequalities."""
    if name not in ("le", "lt"):
        return None
    bound = number if name == "le" else number - 1
    return at_most_zero(form.plus(-bound), shape).both(at_most_zero(form.scaled(-1).plus(-bound), shape))


def complement(where: Where, shape: Sequence[Dim]) -> Where | None:
    """The complement, where it is a conjunction: of one inequality, or of a constant."""
    if where.never:
        return ALWAYS
    if where.is_always:
        return NEVER
    if len(where.constraints) > 1:
        return None
    (only,) = where.constraints
    return at_most_zero(only.scaled(-1).plus(1), shape)


def _and(facts: IndexAnalysis, op: Op) -> Fact | None:
    a, b = (_broadcast_where(facts, value, op) for value in op.operands)
    if a is not None and b is not None:
        return a.both(b)
    return NEVER if (a and a.never) or (b and b.never) else None


def _or(facts: IndexAnalysis, op: Op) -> Fact | None:
    a, b = (_broadcast_where(facts, value, op) for value in op.operands)
    if (a and a.is_always) or (b and b.is_always):
        return ALWAYS
    if a and a.never:
        return b
    return a if b and b.never else None


def _not(facts: IndexAnalysis, op: Op) -> Fact | None:
    found = facts.where(op.operand("self"))
    return None if found is None else complement(found, facts.shape(op.result))


def _broadcast_where(facts: IndexAnalysis, value: Value, op: Op) -> Where | None:
    found, rank = facts.where(value), op.result.tensor.rank
    if found is None or found.never:
        return found
    return Where(frozenset(c.with_rank(rank) for c in found.constraints))


def _triangle(sign: int) -> Rule:
    """``tril`` (sign 1: column - row <= diagonal) and ``triu`` (-1) of a bool tensor."""

    def rule(facts: IndexAnalysis, op: Op) -> Fact | None:
        found, shape = facts.where(op.operand("self")), facts.shape(op.result)
        if found is None or len(shape) < 2:
            return None
        offset = Affine(-1 * facts.size(op.attr("diagonal")), (0,) * (len(shape) - 2) + (-1, 1))
        return found.both(at_most_zero(offset.scaled(sign).within(shape), shape))

    return rule


def _select(facts: IndexAnalysis, op: Op) -> Fact | None:
    """``where`` with a condition that is always or never true."""
    condition, shape = facts.where(op.operand("condition")), facts.shape(op.result)
    if condition is None or condition.constraints:
        return None
    picked = facts.fact(op.operand("other" if condition.never else "self"))
    return mapped(picked, lambda form: form.with_rank(len(shape)), shape)


def _cast(facts: IndexAnalysis, op: Op) -> Fact | None:
    fact, type = facts.fact(op.operand("self")), op.result.tensor
    if isinstance(fact, Where):
        if type.dtype is DType.BOOL:
            return fact
        uniform = not fact.constraints and type.dtype.is_integer
        return Affine(0 if fact.never else 1, (0,) * type.rank) if uniform else None
    if isinstance(fact, Affine) and type.dtype is DType.BOOL:
        return _compared("ne", fact, facts.shape(op.result))
    return fact if isinstance(fact, Affine) and type.dtype.is_integer else None


# -- rearrangements ----------------------------------------------------------------------------


def _view(facts: IndexAnalysis, op: Op) -> Fact | None:
    fact, source, target = (
        facts.fact(op.operand("self")),
        facts.shape(op.operand("self")),
        facts.shape(op.result),
    )
    if isinstance(fact, Affine) and fact.is_uniform:
        return Affine(fact.base, (0,) * len(target))
    if isinstance(fact, Where) and not fact.constraints:
        return fact
    axes = _same_axes(source, target)
    return None if axes is None else mapped(fact, lambda form: form.on_axes(axes), target)


def _same_axes(source: Sequence[Dim], target: Sequence[Dim]) -> list[int | None] | None:
    """For each axis of ``target`` the axis of ``source`` it is; None unless only axes of size 1 differ."""
    kept = [axis for axis, size in enumerate(source) if size != 1]
    sizes = [size for size in target if size != 1]
    if len(kept) != len(sizes) or any(
        dims.eq(source[a], s) is not True for a, s in zip(kept, sizes, strict=True)
    ):
        return None
    remaining = iter(kept)
    return [None if size == 1 else next(remaining) for size in target]


def _expand(facts: IndexAnalysis, op: Op) -> Fact | None:
    shape = facts.shape(op.result)
    return mapped(facts.fact(op.operand("self")), lambda form: form.with_rank(len(shape)), shape)


def _permute(facts: IndexAnalysis, op: Op) -> Fact | None:
    axes: tuple[int, ...] = op.attr("dims")
    axes = tuple(axis % max(len(axes), 1) for axis in axes)
    return mapped(facts.fact(op.operand("self")), lambda form: form.on_axes(axes), facts.shape(op.result))


def _slice(facts: IndexAnalysis, op: Op) -> Fact | None:
    axis: int = op.attr("dim")
    start, step = facts.number(op.attr("start")), op.attr("step")
    if axis < 0 or start is None or not isinstance(step, int) or dims.le(0, start) is not True:
        return None

    def change(form: Affine) -> Affine:
        scale: int = form.coefficients[axis]
        shifted = form.plus(start * scale)
        return Affine(shifted.base, _replaced(form.coefficients, axis, scale * step))

    return mapped(facts.fact(op.operand("self")), change, facts.shape(op.result))


def _replaced(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _concatenate(facts: IndexAnalysis, op: Op) -> Fact | None:
    """Pieces that continue one another along the axis."""
    axis: int = op.attr("dim")
    # torch skips an empty vector among tensors of any rank.
    pieces = [piece for piece in op.variadic("tensors") if piece.tensor.rank == op.result.tensor.rank]
    forms = [facts.affine(piece) for piece in pieces]
    sizes = [facts.shape(piece)[axis] for piece in pieces]
    longest = next((i for i, size in enumerate(sizes) if size != 1), 0)
    chosen = forms[longest]
    if chosen is None:
        return None
    if all(size == 1 for size in sizes) and len(sizes) > 1 and forms[1] is not None:
        step = forms[1].base - chosen.base
        if not isinstance(step, int):
            return None
        chosen = Affine(chosen.base, _replaced(chosen.coefficients, axis, step))
    scale = chosen.coefficients[axis]
    offset: Dim = 0
    whole = chosen.plus(-1 * scale * sum(sizes[:longest], 0))
    for form, size in zip(forms, sizes, strict=True):
        expected = whole.plus(scale * offset)
        if form is None or not _agree(form, expected, axis if size == 1 else None):
            return None
        offset = offset + size
    return whole


def _agree(a: Affine, b: Affine, ignored: int | None) -> bool:
    """Whether two forms are equal, leaving one axis out of account."""
    pairs = zip(a.coefficients, b.coefficients, strict=True)
    return dims.eq(a.base, b.base) is True and all(x == y or i == ignored for i, (x, y) in enumerate(pairs))


# -- indexing and scans ------------------------------------------------------------------------


def _index(facts: IndexAnalysis, op: Op) -> Fact | None:
    """``x[i, j, ...]`` with an affine index, proved to lie inside, for every axis."""
    shape, source = facts.shape(op.result), facts.shape(op.operand("self"))
    indices = [None if index is None else facts.affine(index) for index in op.optional_list("indices")]
    places = [form for form in indices if form is not None]
    values = [value for value in op.optional_list("indices") if value is not None]
    if len(places) != len(source) or len(indices) != len(source):
        return None
    for form, value, size in zip(places, values, source, strict=True):
        low, high = form.extremes(facts.shape(value))
        if dims.le(0, low) is not True or dims.le(high + 1, size) is not True:
            return None

    def change(form: Affine) -> Affine:
        result = Affine(form.base, (0,) * len(shape))
        for coefficient, place in zip(form.coefficients, places, strict=True):
            result = result + place.with_rank(len(shape)).scaled(coefficient)
        return result

    return mapped(facts.fact(op.operand("self")), change, shape)


def _running_sum(facts: IndexAnalysis, op: Op) -> Fact | None:
    """``cumsum`` of a tensor of one number: its multiples."""
    fact, type, axis = facts.fact(op.operand("self")), op.result.tensor, op.attr("dim")
    if isinstance(fact, Where) and not fact.constraints:
        fact = Affine(0 if fact.never else 1, (0,) * type.rank)
    if (
        not isinstance(fact, Affine)
        or not fact.is_uniform
        or not isinstance(fact.base, int)
        or type.rank == 0
    ):
        return None
    return Affine(fact.base, _replaced(fact.coefficients, axis % type.rank, fact.base))


_COMPARISONS = ("eq", "ne", "le", "lt", "ge", "gt")

_RULES: Mapping[str, Rule] = {
    "aten.arange.start_step": _arange,
    "aten.full": _full,
    "rg.dim_value": _dim_value,
    "aten.add.Tensor": _add,
    "aten.sub.Tensor": _subtract,
    "aten.mul.Tensor": _multiply,
    "aten.add.Scalar": _add_scalar,
    "aten.mul.Scalar": _multiply_scalar,
    "aten.neg": _negate,
    "aten.abs": _absolute,
    "aten.maximum": _extremum(1),
    "aten.minimum": _extremum(-1),
    **{f"aten.{name}.{kind}": _compare(name) for name in _COMPARISONS for kind in ("Tensor", "Scalar")},
    "aten.bitwise_and.Tensor": _and,
    "aten.bitwise_or.Tensor": _or,
    "aten.bitwise_not": _not,
    "aten.where.self": _select,
    "aten.tril": _triangle(1),
    "aten.triu": _triangle(-1),
    "aten._to_copy": _cast,
    "aten.view": _view,
    "aten.expand": _expand,
    "aten.permute": _permute,
    "aten.slice.Tensor": _slice,
    "aten.cat": _concatenate,
    "aten.index.Tensor": _index,
    "aten.cumsum": _running_sum,
}

_SELECTIONS = ("view", "expand", "permute", "slice.Tensor", "tril", "triu")


class _Nonzero(IndexAnalysis):
    """Where a tensor of numbers is not 0: triangles of ones, and what is selected from them."""

    def __init__(self, facts: IndexAnalysis) -> None:
        super().__init__()
        self._bools = facts

    def size(self, size: Dim) -> Dim:
        return self._bools.size(size)

    def fact(self, value: Value) -> Fact | None:
        if value.tensor.dtype is DType.BOOL:
            return self._bools.fact(value)
        op = value.op
        if op is None:
            return None
        if op.name == "aten.full":
            number = _integer(op.attr("fill_value"))
            return None if number not in (0, 1) else (ALWAYS if number else NEVER)
        if op.name == "aten._to_copy":
            return self.fact(op.operand("self")) if op.operand("self").tensor.dtype is DType.BOOL else None
        selects = op.name.removeprefix("aten.") in _SELECTIONS
        return _RULES[op.name](self, op) if selects else None
