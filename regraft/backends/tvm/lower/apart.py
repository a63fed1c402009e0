"""Which places of what a scan carries are apart: no trip reads one of them to make another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from regraft.backends.tvm.lower.inside import POINTWISE, PRODUCT, is_free
from regraft.backends.tvm.lower.kinds import broadcast, is_elementwise
from regraft.backends.tvm.lower.matmul import factors
from regraft.backends.tvm.lower.reduce import REDUCTIONS, axes_of
from regraft.ir import Dim, Op, Scan, Trait, Value, dims


@dataclass(frozen=True, eq=False)
class Axis:
    """An axis whose places are apart, of however many values."""

    size: Dim


Labels = Sequence[Axis | None]
"""For each axis of a value the one that it is; None where it has size 1, or its places are not apart."""


@dataclass(frozen=True)
class Apart:
    """The axes of a trip's values.

    Fields:
        axes: those whose places are apart, as the carried value has them that has the most. Not those of
            others: there would be a strand for each pair of places of two values.
        labels: for what is carried, and what is made of it.
        borders: slices, what is fixed, and views of them: these are in memory and may be read at any place.
            Those that others read have the labels of the places at which each does.
        fixed: those of them that no trip changes.
    """

    axes: Sequence[Axis]
    labels: Mapping[Value, Labels]
    borders: Mapping[Value, Sequence[Labels]]
    fixed: Set[Value]

    @staticmethod
    def of(scan: Scan) -> Apart:
        return _Reading(scan).found()


def is_one(value: Value, axis: int) -> bool:
    return dims.eq(value.tensor.shape[axis], 1) is True


# -- what an element reads -----------------------------------------------------------------------


class _Node(NamedTuple):
    """An axis of a value."""

    value: Value
    axis: int

    @property
    def size(self) -> Dim:
        return self.value.tensor.shape[self.axis]


@dataclass(frozen=True)
class _Place:
    """A place, as lowerings compute with it: along an axis, or made of places along several."""

    nodes: frozenset[_Node] = frozenset()
    is_plain: bool = False

    @staticmethod
    def along(value: Value) -> list[Any]:
        """A place of ``value``: axes of size 1 have the place 0."""
        nodes = (_Node(value, axis) for axis in range(value.tensor.rank))
        return [0 if is_one(value, n.axis) else _Place(frozenset({n}), is_plain=True) for n in nodes]

    def _with(self, other: Any) -> _Place:
        return _Place(self.nodes | (other.nodes if isinstance(other, _Place) else frozenset()))

    def __add__(self, other: Any) -> _Place:
        return self if isinstance(other, int) and other == 0 else self._with(other)

    def __mul__(self, other: Any) -> _Place:
        return self if isinstance(other, int) and other == 1 else self._with(other)

    def __sub__(self, other: Any) -> _Place:
        return self._with(other)

    __radd__, __rmul__ = __add__, __mul__
    __rsub__ = __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __sub__


class _Recorder:
    """Stands for a kernel where a lowering says at which places it reads."""

    def __init__(self) -> None:
        self.reads: list[tuple[Value, Sequence[Any]]] = []

    def at(self, value: Value, places: Sequence[Any]) -> None:
        self.reads.append((value, places))

    def size(self, dim: Dim) -> Any:
        return dim if isinstance(dim, int) else _Place()


def _reads(op: Op) -> Sequence[tuple[Value, Sequence[Any]]]:
    """What the element of the result of ``op`` at a place of its own reads, and at which places."""
    index = _Place.along(op.result)
    if op.name == PRODUCT:
        return list(zip(op.operands, factors(op, index, _Place()), strict=True))
    if op.name in REDUCTIONS:
        axes = axes_of(op)
        return [(op.operands[0], axes.place(axes.kept_place(index), [_Place()] * len(axes.reduced)))]
    if is_elementwise(op):
        return [(value, broadcast(index, value, len(index))) for value in op.operands]
    recorder = _Recorder()
    if op.operands:
        POINTWISE[op.name].emit(recorder, op, index)
    return recorder.reads


# -- which axes go together ----------------------------------------------------------------------


class _Groups:
    """Axes that go together; in some groups one place reads another."""

    def __init__(self) -> None:
        self._parents: dict[_Node, _Node] = {}
        self._mixed: set[_Node] = set()

    def of(self, node: _Node) -> _Node:
        """The node that stands for the group of ``node``."""
        while node in self._parents:
            node = self._parents[node]
        return node

    def join(self, a: _Node, b: _Node) -> None:
        a, b = self.of(a), self.of(b)
        if a != b:
            self._parents[a] = b

    def mix(self, node: _Node) -> None:
        """Some place along ``node`` reads others."""
        self._mixed.add(node)

    @property
    def mixed(self) -> set[_Node]:
        return {self.of(node) for node in self._mixed}


@dataclass
class _Reading:
    """Goes through a trip.

    Fields:
        loose: what is in memory, and views of it.
    """

    scan: Scan
    groups: _Groups = field(default_factory=_Groups)
    loose: set[Value] = field(default_factory=set[Value])
    fixed: set[Value] = field(default_factory=set[Value])
    borders: dict[Value, list[Sequence[Any]]] = field(default_factory=dict[Value, list[Sequence[Any]]])
    made: list[Value] = field(default_factory=list[Value])

    def found(self) -> Apart:
        scan = self.scan
        self.loose.update(scan.slices, scan.fixed)
        self.fixed.update(scan.fixed)
        self.made.extend(scan.carried)
        for op in scan.body.ops:
            if op.has(Trait.CONSTANT_LIKE):
                self.loose.add(op.result)
                self.fixed.add(op.result)
            elif not op.has(Trait.TERMINATOR):
                self._op(op)
        for argument, after in zip(scan.carried, scan.after, strict=True):
            self._read(after, _Place.along(argument))
        for value in self.made:
            self._part(value)
        return self._labelled()

    def _op(self, op: Op) -> None:
        if is_free(op) and self.loose.issuperset(op.operands):
            self.loose.add(op.result)
            if op.operands and self.fixed.issuperset(op.operands):
                self.fixed.add(op.result)
            return
        self.made.append(op.result)
        for value, places in _reads(op):
            self._read(value, places)

    def _read(self, value: Value, places: Sequence[Any]) -> None:
        """An element of another value reads ``places`` of this one."""
        if value in self.loose:
            self.borders.setdefault(value, []).append(places)
            return
        for axis, place in enumerate(places):
            if is_one(value, axis):
                continue
            own, other = _Node(value, axis), _plain(place)
            if other is not None and dims.eq(own.size, other.size) is True:
                self.groups.join(own, other)
                continue
            for node in (own, *(place.nodes if isinstance(place, _Place) else ())):
                self.groups.mix(node)

    def _part(self, value: Value) -> None:
        """Two axes of one value are not the same axis: its places would be those of a diagonal."""
        nodes = [_Node(value, axis) for axis in range(value.tensor.rank) if not is_one(value, axis)]
        groups = [self.groups.of(node) for node in nodes]
        for node, group in zip(nodes, groups, strict=True):
            if groups.count(group) > 1:
                self.groups.mix(node)

    def _axes(self) -> dict[_Node, Axis]:
        """The groups of axes whose places are apart, of the carried value that has the most of them."""
        mixed = self.groups.mixed
        of_each: list[dict[_Node, Axis]] = []
        for value in self.scan.carried:
            nodes = (_Node(value, axis) for axis in range(value.tensor.rank) if not is_one(value, axis))
            groups = ((self.groups.of(node), Axis(node.size)) for node in nodes)
            of_each.append({group: axis for group, axis in groups if group not in mixed})
        return max(of_each, key=len, default={})

    def _labelled(self) -> Apart:
        axes = self._axes()

        def label(place: Any) -> Axis | None:
            node = _plain(place)
            return None if node is None else axes.get(self.groups.of(node))

        def labels(places: Sequence[Any]) -> Labels:
            return tuple(map(label, places))

        return Apart(
            tuple(axes.values()),
            {value: labels(_Place.along(value)) for value in self.made},
            {value: [labels(places) for places in reads] for value, reads in self.borders.items()},
            self.fixed,
        )


def _plain(place: Any) -> _Node | None:
    """The axis that ``place`` is a place along; None where it is none of one axis alone."""
    return next(iter(place.nodes)) if isinstance(place, _Place) and place.is_plain else None
