"""What ops that only move elements do, written down in *atoms*, and the cheapest ops that do it.

An atom is a part of an axis of the source that stays together. A view splits atoms and groups them anew, a
permutation reorders groups, a slice of the outermost atom of an axis is one of the axis. From the atoms the
moves are written again in the shortest way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft.ir import Dim, Op, Value, dims
from regraft.rewrites.support import same_dims

MOVES = ("aten.view", "aten.permute", "aten.slice.Tensor")

Groups = Sequence[Sequence["Atom"]]


@dataclass(eq=False)
class Atom:
    """Part of an axis of the source. ``inner`` elements of that axis lie between neighbours in it."""

    axis: int
    size: Dim
    inner: Dim


@dataclass
class Moved:
    """What a chain has done so far.

    Fields:
        within: for each axis of the source its atoms, the outermost first; none of size 1.
        groups: for each axis of the value its atoms, the outermost first.
        cuts: axis of the source -> the first element and the number of elements that are read of it.
    """

    within: list[list[Atom]]
    groups: list[list[Atom]]
    cuts: dict[int, tuple[Dim, Dim]] = field(default_factory=dict[int, tuple[Dim, Dim]])

    @staticmethod
    def of(shape: Sequence[Dim]) -> Moved:
        atoms = [[Atom(axis, size, 1)] if size != 1 else [] for axis, size in enumerate(shape)]
        return Moved(atoms, [list(each) for each in atoms])

    def apply(self, op: Op) -> bool:
        """Follow ``op``; whether that can be said in atoms."""
        if op.name == "aten.permute":
            order: tuple[int, ...] = op.attr("dims")
            self.groups = [self.groups[axis] for axis in order]
            return True
        if op.name == "aten.view":
            return self._view(op.result.tensor.shape)
        return self._slice(op)

    def _view(self, shape: Sequence[Dim]) -> bool:
        queue = [atom for group in self.groups for atom in group]
        groups: list[list[Atom]] = []
        for size in shape:
            group: list[Atom] = []
            while size != 1:
                if not queue:
                    return False
                atom = queue.pop(0)
                rest = _quotient(size, atom.size)
                if rest is None:
                    inner = _quotient(atom.size, size)
                    if inner is None:
                        return False
                    atom, second = self._split(atom, size, inner)
                    queue.insert(0, second)
                    rest = 1
                group.append(atom)
                size = rest
            groups.append(group)
        self.groups = groups
        return not queue

    def _split(self, atom: Atom, outer: Dim, inner: Dim) -> tuple[Atom, Atom]:
        parts = Atom(atom.axis, outer, atom.inner * inner), Atom(atom.axis, inner, atom.inner)
        place = self.within[atom.axis].index(atom)
        self.within[atom.axis][place : place + 1] = parts
        return parts

    def _slice(self, op: Op) -> bool:
        along: int = op.attr("dim")
        start, end = op.site.dim_attr("start"), op.site.dim_attr("end")
        group, size, length = self.groups[along], _size(op.operand("self"), along), _size(op.result, along)
        known = op.attr("step") == 1 and dims.le(0, start) is True and dims.le(end, size) is True
        if not group or not known or dims.eq(end - start, length) is not True:
            return False
        atom, *others = group
        if others or self.within[atom.axis][0] is not atom:
            return False
        first, _ = self.cuts.get(atom.axis, (0, 0))
        self.cuts[atom.axis] = first + start * atom.inner, length * atom.inner
        atom.size = length
        if length == 1:
            self.within[atom.axis].remove(atom)
            group.remove(atom)
        return True


def _size(value: Value, axis: int) -> Dim:
    return value.tensor.shape[axis]


def _quotient(a: Dim, b: Dim) -> Dim | None:
    """``a / b`` where it is a whole number of 1 or more, as far as is known."""
    if b == 0 or a == 0:
        return None
    found = dims.floordiv(a, b)
    return found if found != 0 and dims.eq(found * b, a) is True else None


@dataclass(frozen=True)
class Step:
    """An op of a chain, on a value of ``shape``."""

    name: str
    attributes: Mapping[str, Any]
    shape: tuple[Dim, ...]

    @property
    def price(self) -> tuple[int, int, int, int]:
        """Scattered permutations, copies, ops, and moved axes of size 1."""
        if self.name != "aten.permute":
            return 0, int(self.name == "aten.slice.Tensor"), 1, 0
        order: tuple[int, ...] = self.attributes["dims"]
        ones = sum(self.shape[source] == 1 and axis != source for axis, source in enumerate(order))
        return int(is_scattered(order, self.shape)), 1, 1, ones


def price_of(steps: Iterable[Step]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*(step.price for step in steps), (0, 0, 0, 0), strict=True)))


def is_scattered(order: Sequence[int], shape: Sequence[Dim]) -> bool:
    """Whether neighbours are torn apart, other than by moving one axis, which libraries do in tiles.

    Ten times as slow on ONNX Runtime as two permutations that are not.
    """
    moving = [axis for axis in order if shape[axis] != 1]
    ranks = {axis: rank for rank, axis in enumerate(sorted(moving))}
    runs = [
        r for i, r in enumerate(map(ranks.__getitem__, moving)) if i == 0 or r != ranks[moving[i - 1]] + 1
    ]
    if not runs or runs[-1] == max(runs):
        return False
    others = ([run for run in runs if run != moved] for moved in runs)
    return not any(rest == sorted(rest) for rest in others)


def steps_of(moved: Moved, shape: Sequence[Dim], out: Sequence[Dim]) -> Iterator[Step]:
    """The ops that do what ``moved`` says, from ``shape`` to ``out``."""
    now = list(shape)
    for axis, (start, length) in sorted(moved.cuts.items()):
        if dims.eq(length, now[axis]) is not True:
            attributes = {"dim": axis, "start": start, "end": start + length, "step": 1}
            yield Step("aten.slice.Tensor", attributes, tuple(now))
            now[axis] = length
    order = [atom for atoms in moved.within for atom in atoms]
    wanted = [atom for group in moved.groups for atom in group]
    if wanted != order:
        yield from min(_permuted(moved, order, wanted, now, out), key=price_of)
    elif not same_dims(now, out):
        yield Step("aten.view", {"size": tuple(out)}, tuple(now))


def _permuted(
    moved: Moved, order: Sequence[Atom], wanted: Sequence[Atom], now: Sequence[Dim], out: Sequence[Dim]
) -> Iterator[list[Step]]:
    """Ways to bring the atoms from ``order`` to ``wanted``: with the axes of the source, those of the result,
    or as few as can be. The first two need one view less; axes of size 1 stay where they are.
    """
    place = {atom: index for index, atom in enumerate(order)}
    few = list(_runs(wanted, place))
    for axes, sizes in ((moved.within, now), (moved.groups, out), (few, [0] * len(few))):
        blocks = [list(block) for block in axes if block]
        if not all(len(list(_runs(block, place))) == 1 for block in blocks):
            continue
        starts = {block[0]: index for index, block in enumerate(blocks)}
        if not _are_made_of(wanted, blocks, starts):
            continue
        places = [axis for axis, size in enumerate(sizes) if size != 1]
        before = sorted(range(len(blocks)), key=lambda index: place[blocks[index][0]])
        after = sorted(range(len(blocks)), key=lambda index: wanted.index(blocks[index][0]))
        viewed: list[Dim] = [1] * len(sizes)
        permutation = list(range(len(sizes)))
        where: dict[int, int] = {}
        for axis, index in zip(places, before, strict=True):
            viewed[axis], where[index] = dims.product(atom.size for atom in blocks[index]), axis
        for axis, index in zip(places, after, strict=True):
            permutation[axis] = where[index]
        yield _with_views(now, viewed, permutation, out)


def _runs(atoms: Sequence[Atom], place: Mapping[Atom, int]) -> Iterator[list[Atom]]:
    """``atoms`` in runs that also stand next to each other by ``place``."""
    run: list[Atom] = []
    for atom in atoms:
        if run and place[atom] != place[run[-1]] + 1:
            yield run
            run = []
        run.append(atom)
    if run:
        yield run


def _are_made_of(atoms: Sequence[Atom], blocks: Sequence[list[Atom]], starts: Mapping[Atom, int]) -> bool:
    """Whether ``atoms`` are ``blocks`` in some order."""
    rest = list(atoms)
    while rest:
        block = blocks[starts[rest[0]]] if rest[0] in starts else []
        if not block or rest[: len(block)] != block:
            return False
        del rest[: len(block)]
    return True


def _with_views(
    now: Sequence[Dim], viewed: Sequence[Dim], permutation: Sequence[int], out: Sequence[Dim]
) -> list[Step]:
    steps: list[Step] = []
    if not same_dims(now, viewed):
        steps.append(Step("aten.view", {"size": tuple(viewed)}, tuple(now)))
    steps.append(Step("aten.permute", {"dims": tuple(permutation)}, tuple(viewed)))
    turned = tuple(viewed[axis] for axis in permutation)
    if not same_dims(turned, out):
        steps.append(Step("aten.view", {"size": tuple(out)}, turned))
    return steps


def moved_together(step: Step) -> Dim:
    """How many neighbouring elements ``step``, a permutation, moves at a time."""
    order: tuple[int, ...] = step.attributes["dims"]
    moving = [axis for axis in order if step.shape[axis] != 1]
    staying: list[Dim] = []
    for axis, here in zip(reversed(moving), sorted(moving, reverse=True), strict=True):
        if axis != here:
            break
        staying.append(step.shape[axis])
    return dims.product(staying)
