"""Loops that count: how many trips they make, and which integers they see in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from regraft.ir import Constant, DType, Leaf, Op, Recipe, TensorType, Value, refines

Numbers = Mapping[Value, int]
"""Values of one element, integers and bools, that are known where they are asked for."""

MAX_TRIPS = 1 << 16
"""Loops of more trips are not looked through."""

_I64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True)
class Trips:
    """What is known of the trips of a loop.

    Fields:
        starts: the arguments of the body that constants alone determine, for each trip.
        ends: the carried values, by position, that are known after the last one.
    """

    starts: tuple[Numbers, ...]
    ends: Mapping[int, int]

    def sequence(self, value: Value) -> tuple[int, ...] | None:
        """What ``value`` of the body is in each trip; None when that is not known."""
        found: list[int] = []
        for numbers in self.starts:
            number = number_of(value, numbers)
            if number is None:
                return None
            found.append(number)
        return tuple(found)


def trips_of(loop: Op) -> Trips | None:
    """The trips of a ``cf.while`` that counts; None when data or sizes decide how many there are."""
    test, body = loop.regions
    starts = {i: number_of(operand, {}) for i, operand in enumerate(loop.operands)}
    now = {i: number for i, number in starts.items() if number is not None}
    now = {i: number for i, number in now.items() if refines(loop.operands[i].type, loop.results[i].type)}
    trips: list[Numbers] = []
    while now:
        holds = number_of(test.results[0], {test.args[i]: number for i, number in now.items()})
        if holds is None:
            return None
        if not holds:
            return Trips(tuple(trips), now) if trips else None
        if len(trips) == MAX_TRIPS:
            return None
        trips.append({body.args[i]: number for i, number in now.items()})
        after = {i: number_of(body.results[i], trips[-1]) for i in now}
        known = {i: number for i, number in after.items() if number is not None}
        if len(known) < len(now):
            # What becomes unknown never counted: begin again without it.
            now, trips = {i: number for i, number in starts.items() if number is not None and i in known}, []
        else:
            now = known
    return None


def number_of(value: Value, known: Numbers) -> int | None:
    """The integer that ``value``, of one element, is where ``known`` holds; bools are 0 and 1."""
    if value in known:
        return known[value]
    op = value.op
    if op is None or not isinstance(value.type, TensorType) or value.type.numel != 1:
        return None
    if value.type.dtype not in (DType.I64, DType.BOOL):  # narrower ones wrap around
        return None
    rule = _RULES.get(op.name)
    number = None if rule is None else rule(op, known)
    if number is None:
        return None
    if value.type.dtype == DType.BOOL:
        return int(number != 0)
    return number if number in _I64 else None  # beyond, torch wraps around


def _constant(op: Op, _: Numbers) -> int | None:
    constant: Constant = op.attr("value")
    if isinstance(constant, Recipe):
        return number_of(constant.body.results[0], {})
    # A literal of the code is no weight: its value cannot change.
    if not isinstance(constant, Leaf) or not constant.is_literal or constant.storage is None:
        return None
    return int(constant.storage)


def _filled(op: Op, _: Numbers) -> int | None:
    value = op.attr("fill_value")
    return int(value) if isinstance(value, int) else None


def _same(op: Op, known: Numbers) -> int | None:
    return number_of(op.operands[0], known)


def _pair(op: Op, known: Numbers) -> Sequence[int] | None:
    """The two operands, of which an attribute may be the second."""
    numbers = [number_of(operand, known) for operand in op.operands]
    if len(numbers) == 1:
        other = op.attr("other")
        numbers.append(other if isinstance(other, int) else None)
    found = [number for number in numbers if number is not None]
    return found if len(found) == 2 else None


def _by(function: Callable[[int, int], int]) -> Callable[[Op, Numbers], int | None]:
    def rule(op: Op, known: Numbers) -> int | None:
        pair = _pair(op, known)
        scale = op.attrs.get("alpha", 1)
        if pair is None or not isinstance(scale, int):
            return None
        return int(function(pair[0], pair[1] * scale))

    return rule


def _not(op: Op, known: Numbers) -> int | None:
    number = number_of(op.operands[0], known)
    if number is None:
        return None
    return 1 - number if op.result.tensor.dtype == DType.BOOL else ~number


def _negated(op: Op, known: Numbers) -> int | None:
    number = number_of(op.operands[0], known)
    return None if number is None else -number


def _where(op: Op, known: Numbers) -> int | None:
    condition = number_of(op.operand("condition"), known)
    if condition is None:
        return None
    return number_of(op.operand("self" if condition else "other"), known)


_BINARY: Mapping[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "bitwise_and": lambda a, b: a & b,
    "bitwise_or": lambda a, b: a | b,
}

_RULES: Mapping[str, Callable[[Op, Numbers], int | None]] = {
    "rg.const": _constant,
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
    "aten.maximum": _by(max),
    "aten.minimum": _by(min),
}
