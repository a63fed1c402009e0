"""Loops that count: how many trips they make, and which integers they see in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce

from regraft.ir import (
    Constant,
    Dim,
    DType,
    Expr,
    Leaf,
    Op,
    Recipe,
    Symbol,
    TensorType,
    Value,
    dims,
    refines,
    symbol,
)

Numbers = Mapping[Value, Dim]
"""Values of one element, integers and bools, that are known where they are asked for: numbers, or sizes."""

#: The number of a trip, from 0 on. No size has such a name.
_TRIP = Symbol("number of the trip")
_I64 = range(-(1 << 63), 1 << 63)
#: Sizes times this, and such multiples of them added up, fit 64 bits.
_MOST = 1 << 15


@dataclass(frozen=True)
class Line:
    """An integer for each trip: ``first``, then ``step`` more from trip to trip."""

    first: Dim
    step: int


@dataclass(frozen=True)
class Trips:
    """What is known of the trips of a loop.

    Fields:
        count: how many there are, which may be 0 in a call.
        ends: the carried values, by position, that are known after the last one.
        known: what the body is given that counts, by the number of the trip.
    """

    count: Dim
    ends: Mapping[int, Dim]
    known: Known

    def line(self, value: Value) -> Line | None:
        """What ``value`` of the body is in each trip; None when that is not known to be a line."""
        found = self.known.of(value)
        return None if found is None else _line(found)

    def holds(self, value: Value) -> bool:
        """Whether the bool ``value`` of the body is proved to hold in every trip."""
        return self.known.of(value) == 1

    def places(self, index: Value, size: Dim) -> Line | None:
        """Where ``index`` of the body points to along an axis of ``size``, counted from its front.

        None where it is no line, or not proved to be on the axis in every trip.
        """
        place, length = self.known.of(index), self.known.size(size)
        if place is None or length is None:
            return None
        if self.known.is_natural(-1 - place) is True:
            place = place + size
        if self.known.is_natural(place) is not True or self.known.is_natural(size - 1 - place) is not True:
            return None
        return _line(place)


def trips_of(loop: Op) -> Trips | None:
    """The trips of a ``cf.while`` that counts by equal steps; None where data decide how many there are."""
    test, body = loop.regions
    starts = {i: number_of(operand, {}) for i, operand in enumerate(loop.operands)}
    now: dict[int, Dim] = {
        i: number
        for i, number in starts.items()
        if number is not None and refines(loop.operands[i].type, loop.results[i].type)
    }
    own = frozenset(s for each in loop.regions for place in (each, *each.walk()) for s in place.symbols)
    steps = _steps(loop, now, own)
    lines = {i: now[i] + step * dims.as_expr(_TRIP) for i, step in steps.items()}
    some = _count(test.results[0], Known({test.args[i]: line for i, line in lines.items()}, own=own))
    if some is None or (count := dims.maximum(0, some)) == 0:
        return None
    ends = {i: now[i] + step * count for i, step in steps.items()}
    if not all(map(_fits, ends.values())):
        return None
    return Trips(count, ends, Known({body.args[i]: line for i, line in lines.items()}, some, own))


def _steps(loop: Op, starts: Mapping[int, Dim], own: frozenset[Symbol]) -> dict[int, int]:
    """By how much the carried values change in each trip, of those that start with a number and count."""
    body = loop.regions[1]
    same = {i for i in starts if body.results[i] is body.args[i]}
    counting = [i for i in starts if i in same or body.args[i].tensor.dtype == DType.I64]
    while True:
        # Whatever they are at the beginning of a trip, it adds as much.
        before = {i: starts[i] if i in same else symbol(f"carried {i}", lo=-(1 << 62)) for i in counting}
        known = Known({body.args[i]: number for i, number in before.items()}, own=own)
        steps: dict[int, int] = {}
        for i in counting:
            after = known.of(body.results[i])
            step = None if after is None else after - before[i]
            if isinstance(step, int) and abs(step) <= _MOST:
                steps[i] = step
        if len(steps) == len(counting):
            return steps
        counting = list(steps)  # the steps of these may have been found by one that does not count


def _count(test: Value, known: Known) -> Dim | None:
    """In how many trips, one after the other, ``test`` holds; None where that is not known, or in all.

    Less than 0 stands for none.
    """
    op = test.op
    while op is not None and op.name in ("aten.view", "aten.expand"):
        op = op.operands[0].op
    if op is None:
        return None
    if op.name == "aten.bitwise_and.Tensor":
        both = [_count(each, known) for each in op.operands if known.of(each) != 1]
        counts = [count for count in both if count is not None]
        return reduce(dims.minimum, counts) if counts and len(counts) == len(both) else None
    name = op.name.rpartition(".")[0]
    pair = known.pair(op) if name in _MARGINS or name == "aten.ne" else None
    if pair is None:
        return None
    if name == "aten.ne":
        return _until(pair[0] - pair[1])
    line = _line(_MARGINS[name](*pair))
    if line is None or line.step >= 0:
        return None
    return dims.ceildiv(line.first, -line.step)


def _until(number: Dim) -> Dim | None:
    """In how many trips ``number`` is not yet 0; None where it may never be."""
    line = _line(number)
    if line is None or line.step == 0:
        return None
    distance, step = (line.first, -line.step) if line.step < 0 else (-line.first, line.step)
    if dims.le(0, distance) is not True or dims.mod(distance, step) != 0:
        return None
    return dims.floordiv(distance, step)


_MARGINS: Mapping[str, Callable[[Dim, Dim], Dim]] = {
    "aten.lt": lambda a, b: b - a,
    "aten.le": lambda a, b: b - a + 1,
    "aten.gt": lambda a, b: a - b,
    "aten.ge": lambda a, b: a - b + 1,
}
"""What is above 0 just where a comparison holds."""


def _line(number: Dim) -> Line | None:
    """``number``, which depends on that of the trip, as a line."""
    first, second = (dims.substitute(number, {_TRIP: trip}) for trip in (0, 1))
    step = second - first
    if not isinstance(step, int) or first + step * dims.as_expr(_TRIP) != number:
        return None
    return Line(first, step)


def number_of(value: Value, known: Numbers) -> Dim | None:
    """The integer that ``value``, of one element, is where ``known`` holds; bools are 0 and 1."""
    return Known(known).of(value)


class Known:
    """What follows from ``numbers`` in a loop whose trips they speak of, if it makes any: ``count`` of them.

    Its ``own`` sizes may be others in each trip: nothing is known of them.
    """

    def __init__(
        self, numbers: Numbers, count: Dim | None = None, own: frozenset[Symbol] = frozenset()
    ) -> None:
        self._numbers = dict[Value, Dim | None](numbers)
        self._count = count
        self._own = own

    def of(self, value: Value) -> Dim | None:
        """The integer that ``value``, of one element, is; None when that is not known."""
        if value not in self._numbers:
            self._numbers[value] = self._found(value)
        return self._numbers[value]

    def _found(self, value: Value) -> Dim | None:
        op = value.op
        if op is None or not isinstance(value.type, TensorType) or value.type.numel != 1:
            return None
        if value.type.dtype not in (DType.I64, DType.BOOL):  # narrower ones wrap around
            return None
        rule = _RULES.get(op.name)
        number = None if rule is None else rule(op, self)
        if number is None:
            return None
        if value.type.dtype == DType.BOOL:
            return self.is_zero(number, negated=True)
        return number if _fits(number) else None  # beyond, torch wraps around

    def size(self, size: Dim) -> Dim | None:
        """``size``, where it is the same in all trips."""
        return size if self._own.isdisjoint(dims.symbols_of(size)) else None

    def pair(self, op: Op) -> tuple[Dim, Dim] | None:
        """The two operands, of which an attribute may be the second."""
        numbers = [self.of(operand) for operand in op.operands]
        if len(numbers) == 1:
            other = op.attr("other")
            numbers.append(other if isinstance(other, int) else None)
        first, second = numbers
        return None if first is None or second is None else (first, second)

    def is_natural(self, number: Dim) -> bool | None:
        """Whether ``number`` is at least 0 in every trip, or in none."""
        if self._is_natural(number):
            return True
        return False if self._is_natural(-1 - number) else None

    def is_zero(self, number: Dim, *, negated: bool = False) -> int | None:
        if number == 0:
            return int(not negated)
        is_other = self._is_natural(number - 1) or self._is_natural(-1 - number)
        return int(negated) if is_other else None

    def _is_natural(self, number: Dim) -> bool:
        line = _line(number)
        if self._count is None or line is None or not line.step:
            return self._is_so(number)
        last = line.first + line.step * (self._count - 1)
        return self._is_so(line.first if line.step > 0 else last)

    def _is_so(self, number: Dim) -> bool:
        """Whether ``number`` is at least 0, if there is a trip."""
        if dims.le(0, number) is True:
            return True
        return self._count is not None and dims.le(self._count - 1, number) is True


def _fits(number: Dim) -> bool:
    if isinstance(number, Expr):
        return all(abs(factor) <= (_MOST if monomial else 1 << 59) for monomial, factor in number.terms)
    return number in _I64


# -- what ops do with integers -----------------------------------------------------------------

_Rule = Callable[[Op, Known], "Dim | None"]


def _constant(op: Op, _: Known) -> Dim | None:
    constant: Constant = op.attr("value")
    if isinstance(constant, Recipe):
        return number_of(constant.body.results[0], {})
    # A literal of the code is no weight: its value cannot change.
    if not isinstance(constant, Leaf) or not constant.is_literal or constant.storage is None:
        return None
    return int(constant.storage)


def _filled(op: Op, known: Known) -> Dim | None:
    value = op.attr("fill_value")
    return known.size(value) if isinstance(value, (int, Expr)) else None


def _size(op: Op, known: Known) -> Dim | None:
    return known.size(op.site.dim_attr("value"))


def _same(op: Op, known: Known) -> Dim | None:
    return known.of(op.operands[0])


def _by(function: Callable[[Known, Dim, Dim], Dim | None]) -> _Rule:
    def rule(op: Op, known: Known) -> Dim | None:
        pair = known.pair(op)
        scale = op.attrs.get("alpha", 1)
        if pair is None or not isinstance(scale, int):
            return None
        return function(known, pair[0], pair[1] * scale)

    return rule


def _product(_: Known, a: Dim, b: Dim) -> Dim | None:
    return a * b if isinstance(a, int) or isinstance(b, int) else None


def _bits(function: Callable[[int, int], int]) -> Callable[[Known, Dim, Dim], Dim | None]:
    return lambda _, a, b: function(a, b) if isinstance(a, int) and isinstance(b, int) else None


def _natural(margin: Callable[[Dim, Dim], Dim]) -> Callable[[Known, Dim, Dim], Dim | None]:
    def compared(known: Known, a: Dim, b: Dim) -> int | None:
        holds = known.is_natural(margin(a, b) - 1)
        return None if holds is None else int(holds)

    return compared


def _extreme(*, is_least: bool) -> Callable[[Known, Dim, Dim], Dim | None]:
    def rule(known: Known, a: Dim, b: Dim) -> Dim | None:
        is_less = known.is_natural(b - a)
        if is_less is None:
            return dims.minimum(a, b) if is_least else dims.maximum(a, b)
        return a if is_less is is_least else b

    return rule


def _not(op: Op, known: Known) -> Dim | None:
    number = known.of(op.operands[0])
    if number is None:
        return None
    return 1 - number if op.result.tensor.dtype == DType.BOOL else -1 - number


def _negated(op: Op, known: Known) -> Dim | None:
    number = known.of(op.operands[0])
    return None if number is None else -number


def _where(op: Op, known: Known) -> Dim | None:
    condition = known.of(op.operand("condition"))
    if condition is None:
        return None
    return known.of(op.operand("self" if condition else "other"))


_BINARY: Mapping[str, Callable[[Known, Dim, Dim], Dim | None]] = {
    "add": lambda _, a, b: a + b,
    "sub": lambda _, a, b: a - b,
    "mul": _product,
    **{name.removeprefix("aten."): _natural(margin) for name, margin in _MARGINS.items()},
    "eq": lambda known, a, b: known.is_zero(a - b),
    "ne": lambda known, a, b: known.is_zero(a - b, negated=True),
    "bitwise_and": _bits(lambda a, b: a & b),
    "bitwise_or": _bits(lambda a, b: a | b),
}

_RULES: Mapping[str, _Rule] = {
    "rg.const": _constant,
    "rg.dim_value": _size,
    "aten.full": _filled,
    "aten.view": _same,
    "aten.expand": _same,
    "aten._to_copy": _same,
    "aten.bitwise_not": _not,
    "aten.neg": _negated,
    "aten.where.self": _where,
    **{
        f"aten.{name}.{kind}": _by(function)
        for name, function in _BINARY.items()
        for kind in ("Tensor", "Scalar")
    },
    "aten.maximum": _by(_extreme(is_least=False)),
    "aten.minimum": _by(_extreme(is_least=True)),
}
