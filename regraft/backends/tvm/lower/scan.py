"""Scans as one kernel: what a scan carries falls into strands that know nothing of one another.

Where places of what is carried are apart (``apart.py``), all trips can be run for one of them, a *strand*,
before the next one is begun. Its state stays in registers or on the stack; strands are lanes of vectors, and
work for threads. Along the other, *inner* axes a trip may sum, multiply and move its values as it likes: each
strand has all of these places.

Mamba's ``h[channel, n]`` has a strand for each channel, as a trip sums over ``n`` alone. A recurrent layer,
``tanh(h @ w)``, has none but its batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from regraft.backends.tvm.lower.apart import Apart, Axis, Labels, is_one
from regraft.backends.tvm.lower.elementwise import calls_library
from regraft.backends.tvm.lower.inside import PRODUCT, is_free, refusal
from regraft.backends.tvm.lower.kinds import Swept
from regraft.backends.tvm.lower.trip import Trip
from regraft.ir import Op, Scan, Trait, Value, dims

#: Neighbouring strands that run side by side: as many as the stack has room for.
WIDTHS = (64, 32, 16)
#: Bytes of the stack that these should have, and that they may have at most.
_NEAR, _MOST = 1 << 14, 1 << 16
#: Multiplications of a product in a trip of one strand, where neighbours are fewer than lanes, and else:
#: whoever multiplies whole matrices does better from there on.
_LARGEST_PRODUCTS = 1 << 8, 1 << 12


#: So many places of a value that does not lie along the strands each strand may compute for itself.
_FEW = 16


@dataclass(frozen=True)
class Strands:
    """How a scan is run.

    Fields:
        outer: the axes of strands, but for ``lane``, along which neighbours lie (None: there is one strand).
        labels: which axes of strands the axes of a value are, where strands have memory for it.
        hoisted: values in memory that no trip changes, copied once: lanes would lie far apart.
        width: the most strands side by side.
        elements: how many a trip computes for one strand.
    """

    trip: Trip
    outer: Sequence[Axis]
    lane: Axis | None
    labels: Mapping[Value, Labels]
    hoisted: Sequence[Value]
    width: int
    elements: int

    @staticmethod
    def of(op: Op) -> Strands:
        """The strands of the scan ``op``, which has no ``obstacle``."""
        scan = Scan.of(op)
        apart, trip = Apart.of(scan), Trip.of(scan)
        lane = _lane(apart, trip)
        labels, hoisted = dict(apart.labels), _hoisted(apart, lane)
        room = _MOST // WIDTHS[-1] - _bytes(_kept(trip), labels)
        if _bytes(hoisted, hoisted) > room:
            hoisted = {}
        labels |= hoisted
        size = _bytes([*_kept(trip), *hoisted], labels)
        has_vectors = lane is not None and not any(calls_library(each) for each in trip.ops)
        width = next((width for width in WIDTHS if has_vectors and width * size <= _NEAR), WIDTHS[-1])
        elements = sum(_places(each.result, labels) for each in trip.held)
        outer = tuple(axis for axis in apart.axes if axis is not lane)
        return Strands(trip, outer, lane, labels, tuple(hoisted), width, elements)

    @property
    def scan(self) -> Scan:
        return self.trip.scan

    def labels_of(self, value: Value) -> Labels:
        """The labels of ``value``: none where it is in memory for all strands."""
        return self.labels.get(value, (None,) * value.tensor.rank)

    def inner(self, value: Value) -> list[int]:
        """The axes of ``value`` of which a strand has all places, those of size 1 left out."""
        return _inner(value, self.labels_of(value))


def obstacle(op: Op) -> str | None:
    """Why the scan ``op`` has no kernel; None when it has."""
    scan = Scan.of(op)
    if not scan.carried:
        return "it carries nothing from trip to trip"
    if scan.body.symbols:
        return "its trips have sizes of their own"
    for each in scan.body.ops:
        if not each.has(Trait.CONSTANT_LIKE) and not each.has(Trait.TERMINATOR):
            reason = refusal(each)
            if reason is not None:
                return f"in a trip, {each.name} at {each.loc}: {reason}"
    apart, trip = Apart.of(scan), Trip.of(scan)
    if not apart.axes and any(_inner(value, apart.labels[value]) for value in scan.carried):
        return "each place of what it carries reads others in a trip"
    lane = _lane(apart, trip)
    limit = _LARGEST_PRODUCTS[lane is not None and _is_wide(lane)]
    return _unwritten(scan, apart) or _too_large(apart.labels, trip, limit) or _repeated(scan, apart)


def _unwritten(scan: Scan, apart: Apart) -> str | None:
    """Why nobody might compute a result: it lies along no strand, and there may be none."""
    for value in (*scan.carried, *scan.rows):
        labels = apart.labels.get(value, ())
        if any(axis not in labels and dims.le(1, axis.size) is not True for axis in apart.axes):
            return f"{value.tensor} does not lie along the strands, of which there may be none"
    return None


def _repeated(scan: Scan, apart: Apart) -> str | None:
    """Why strands would compute much again that others compute as well: it lies along none of their axes."""
    full = [value for value in scan.carried if set(apart.axes) <= set(apart.labels[value])]
    most = max((_places(value, apart.labels) for value in full), default=_FEW)
    for value in scan.carried:
        if value not in full and _places(value, apart.labels) > max(most, _FEW):
            return f"{value.tensor} does not lie along the strands: each would compute all of it"
    return None


def _too_large(labels: Mapping[Value, Labels], trip: Trip, most: int) -> str | None:
    """Why one strand is too much for the stack, or for lanes: a product has ``most`` multiplications."""
    for value in _kept(trip):
        if any(not isinstance(value.tensor.shape[axis], int) for axis in _inner(value, labels[value])):
            return f"a strand has all places of {value.tensor}, whose number is open"
    size = _bytes(_kept(trip), labels)
    if size * WIDTHS[-1] > _MOST:
        return f"a strand of it has {size} bytes, more than {_MOST // WIDTHS[-1]}"
    for op in (op for op in trip.held if op.name == PRODUCT):
        work = dims.product((op.operands[0].tensor.shape[-1], _places(op.result, labels)))
        if dims.le(work, most) is not True:
            return f"a product in a trip has {work} multiplications for each strand"
    return None


def _kept(trip: Trip) -> list[Value]:
    """The values that strands have memory for, as often as they have it."""
    held = [op.result for op in trip.held if op not in trip.in_place]
    return [*trip.scan.carried, *held, *trip.turned]


def _inner(value: Value, labels: Labels) -> list[int]:
    return [axis for axis, label in enumerate(labels) if label is None and not is_one(value, axis)]


def _places(value: Value, labels: Mapping[Value, Labels]) -> int:
    """How many places of ``value`` a strand has, whose number is known."""
    found = 1
    for axis in _inner(value, labels[value]):
        size = value.tensor.shape[axis]
        assert isinstance(size, int), "checked by obstacle"
        found *= size
    return found


def _bytes(values: Iterable[Value], labels: Mapping[Value, Labels]) -> int:
    """The memory of ``values`` in a strand."""
    return sum(_places(value, labels) * max(value.tensor.dtype.bits, 32) // 8 for value in values)


def _lane(apart: Apart, trip: Trip) -> Axis | None:
    """The axis that lanes lie along: one of many places, along which most of what is read is in one piece."""

    def last_in(axis: Axis) -> int:
        read = [(value, labels) for value, each in apart.borders.items() for labels in each]
        read += [(op.result, apart.labels[op.result]) for op in trip.held]
        return sum(_last(value, labels) is axis for value, labels in read)

    return max(apart.axes, key=lambda axis: (_is_wide(axis), last_in(axis)), default=None)


def _is_wide(axis: Axis) -> bool:
    """Whether there are as many places as lanes, or may be."""
    return dims.le(WIDTHS[-1], axis.size) is not False


def _last(value: Value, labels: Labels) -> Axis | None:
    """The label of the last axis, those of size 1 left out."""
    found = [label for axis, label in enumerate(labels) if not is_one(value, axis)]
    return found[-1] if found else None


def _hoisted(apart: Apart, lane: Axis | None) -> dict[Value, Labels]:
    """What no trip changes and has lanes apart from each other in memory, with its labels."""
    found: dict[Value, Labels] = {}
    if lane is None:
        return found
    for value, (labels, *others) in apart.borders.items():
        if value not in apart.fixed or any(each != labels for each in others) or lane not in labels:
            continue
        if any(is_free(use.op) for use in value.uses):  # a view reads other places, which are in memory
            continue
        inner = _inner(value, labels)
        is_known = all(isinstance(value.tensor.shape[axis], int) for axis in inner)
        if is_known and any(axis > labels.index(lane) for axis in inner):
            found[value] = labels
    return found


LOWERINGS: dict[str, Swept] = {"cf.scan": Swept(obstacle)}
