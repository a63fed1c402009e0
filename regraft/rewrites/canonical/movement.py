"""Chains of ops that only move elements: at most one slice an axis, one view, one permutation and one view.

What such a chain does is written down in *atoms*: parts of an axis of the source that stay together. A view
splits atoms and groups them anew, a permutation reorders groups, a slice of the outermost atom of an axis is
one of the axis. From the atoms the chain is written again in the shortest way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Dim,
    Example,
    Match,
    Op,
    PatternBuilder,
    Rewrite,
    Value,
    Var,
    dims,
)
from regraft.rewrites.support import same_dims

MOVES = ("aten.view", "aten.permute", "aten.slice.Tensor")
_COPIES = ("aten.permute", "aten.slice.Tensor")
_LONGEST = 8


class MovementChain(Rewrite):
    """moves(x) = view(permute(view(slice(x)))), for a chain of these that is longer or copies more.

    Slices move to the front, where they read less; permutations become one; those that move nothing but
    axes of size 1 become a view. Source: the heads of ``nn.MultiheadAttention``.
    """

    stage = "canonicalize"

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.one_of(
            op.aten.view(x, op.attr("size")),
            op.aten.permute(x, op.attr("dims")),
            op.aten.slice.Tensor(x, op.attr("dim"), op.attr("start"), op.attr("end"), op.attr("step")),
        )

    def check(self, m: Match) -> Declined | None:
        if is_moved_on(m.root.result):
            return m.decline("it is a part of a longer chain", m.root.result)
        if any(user.name == "aten.expand" for user in m.root.result.users):
            return m.decline("it makes an axis to expand, which stands alone", m.root.result)
        if _shorter(m.root) is None:
            return m.decline("no shorter chain is known", m.root.result)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        found = _shorter(m.root)
        assert found is not None, m.root
        value = found.source
        for step in found.steps:
            value = op.create(step.name, (value,), dict(step.attributes)).result
        return value

    examples = (
        Example(  # a head's part of a packed projection, as nn.MultiheadAttention takes it
            lambda op, x: _packed_head(op, x, (64, 2, 3, 8), (2, 1, 0, 3)),
            ("f32[64, 2, 24]",),
        ),
        Example(lambda op, x: _packed_head(op, x, (5, 1, 3, 8), (2, 1, 0, 3)), ("f32[5, 1, 24]",)),
        Example(
            lambda op, x: _packed_head(op, x, (*x.type.shape[:2], 3, 8), (2, 1, 0, 3)), ("f32[S, B, 24]",)
        ),
        Example(  # there and back
            lambda op, x: op.aten.permute(
                op.aten.view(op.aten.permute(x, (1, 0, 2)), (7, 2, 4, 2)), (1, 0, 3, 2)
            ),
            ("f32[2, 7, 8]",),
        ),
        Example(lambda op, x: op.aten.permute(x, (1, 0, 2)), ("f32[1, 3, 4]",)),
        Example(  # the heads of one sequence side by side again
            lambda op, x: op.aten.view(op.aten.permute(x, (2, 0, 1, 3)), (1, 5, 8)), ("f32[1, 2, 5, 4]",)
        ),
        Example(
            lambda op, x: op.aten.slice.Tensor(op.aten.permute(x, (2, 0, 1)), 0, 1, 2), ("f32[B, 3, 4]",)
        ),
    )
    counterexamples = (
        Example(
            lambda op, x: op.aten.permute(op.aten.view(x, (2, 3, 4)), (1, 0, 2)),
            ("f32[6, 4]",),
            reason="no shorter chain",
        ),
        Example(
            lambda op, x: op.aten.permute(op.aten.slice.Tensor(op.aten.view(x, (4, 3)), 1, 0, 2), (1, 0)),
            ("f32[12]",),
            reason="no shorter chain",
        ),
        Example(  # the shuffle of a block-diagonal product: one permutation would scatter single elements
            lambda op, x: op.aten.permute(op.aten.view(op.aten.permute(x, (1, 0, 2)), (7, 4, 4)), (2, 0, 1)),
            ("f32[2, 7, 8]",),
            reason="no shorter chain",
        ),
        Example(
            lambda op, x: op.aten.expand(
                op.aten.view(op.aten.permute(op.aten.view(x, (5, 2, 4)), (1, 0, 2)), (2, 1, 5, 4)),
                (2, 3, 5, 4),
            ),
            ("f32[5, 8]",),
            reason="makes an axis to expand",
        ),
        Example(  # every other element is no slice of the source's axis
            lambda op, x: op.aten.slice.Tensor(op.aten.permute(x, (1, 0)), 0, 0, 4, 2),
            ("f32[3, 4]",),
            reason="no shorter chain",
        ),
    )


def is_moved_on(value: Value) -> bool:
    """Whether all that read ``value`` move its elements."""
    return bool(value.uses) and all(user.name in MOVES for user in value.users)


@dataclass(eq=False)
class _Atom:
    """Part of an axis of the source. ``inner`` elements of that axis lie between neighbours in it."""

    axis: int
    size: Dim
    inner: Dim


@dataclass
class _Moved:
    """What a chain has done so far.

    Fields:
        within: for each axis of the source its atoms, the outermost first; none of size 1.
        groups: for each axis of the value its atoms, the outermost first.
        cuts: axis of the source -> the first element and the number of elements that are read of it.
    """

    within: list[list[_Atom]]
    groups: list[list[_Atom]]
    cuts: dict[int, tuple[Dim, Dim]] = field(default_factory=dict[int, tuple[Dim, Dim]])

    @staticmethod
    def of(shape: Sequence[Dim]) -> _Moved:
        atoms = [[_Atom(axis, size, 1)] if size != 1 else [] for axis, size in enumerate(shape)]
        return _Moved(atoms, [list(each) for each in atoms])

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
        groups: list[list[_Atom]] = []
        for size in shape:
            group: list[_Atom] = []
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

    def _split(self, atom: _Atom, outer: Dim, inner: Dim) -> tuple[_Atom, _Atom]:
        parts = _Atom(atom.axis, outer, atom.inner * inner), _Atom(atom.axis, inner, atom.inner)
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
class _Step:
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
        return int(_is_scattered(order, self.shape)), 1, 1, ones


@dataclass(frozen=True)
class _Chain:
    source: Value
    steps: tuple[_Step, ...]


def _price(steps: Iterable[_Step]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*(step.price for step in steps), (0, 0, 0, 0), strict=True)))


def _is_scattered(order: Sequence[int], shape: Sequence[Dim]) -> bool:
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


def _shorter(root: Op) -> _Chain | None:
    """The cheapest chain that gives the result of ``root``, if it is cheaper than what there is."""
    ops: list[Op] = [root]
    while len(ops) < _LONGEST and (maker := ops[0].operand("self").op) is not None and maker.name in MOVES:
        ops.insert(0, maker)
    for begin in range(len(ops)):
        moved = _Moved.of(ops[begin].operand("self").tensor.shape)
        if all(moved.apply(op) for op in ops[begin:]):
            source = ops[begin].operand("self")
            chain = _Chain(source, tuple(_steps(moved, source.tensor.shape, root.result.tensor.shape)))
            return chain if _price(chain.steps) < _price(_going(ops[begin:])) else None
    return None


def _going(ops: Sequence[Op]) -> Iterator[_Step]:
    """Those of ``ops`` that would go: what others than moves read as well would stay."""
    for op in ops:
        if op is ops[-1] or is_moved_on(op.result):
            yield _Step(op.name, op.attrs, op.operand("self").tensor.shape)


def _steps(moved: _Moved, shape: Sequence[Dim], out: Sequence[Dim]) -> Iterator[_Step]:
    """The ops that do what ``moved`` says, from ``shape`` to ``out``."""
    now = list(shape)
    for axis, (start, length) in sorted(moved.cuts.items()):
        if dims.eq(length, now[axis]) is not True:
            attributes = {"dim": axis, "start": start, "end": start + length, "step": 1}
            yield _Step("aten.slice.Tensor", attributes, tuple(now))
            now[axis] = length
    order = [atom for atoms in moved.within for atom in atoms]
    wanted = [atom for group in moved.groups for atom in group]
    if wanted != order:
        yield from min(_permuted(moved, order, wanted, now, out), key=_price)
    elif not same_dims(now, out):
        yield _Step("aten.view", {"size": tuple(out)}, tuple(now))


def _permuted(
    moved: _Moved, order: Sequence[_Atom], wanted: Sequence[_Atom], now: Sequence[Dim], out: Sequence[Dim]
) -> Iterator[list[_Step]]:
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


def _runs(atoms: Sequence[_Atom], place: Mapping[_Atom, int]) -> Iterator[list[_Atom]]:
    """``atoms`` in runs that also stand next to each other by ``place``."""
    run: list[_Atom] = []
    for atom in atoms:
        if run and place[atom] != place[run[-1]] + 1:
            yield run
            run = []
        run.append(atom)
    if run:
        yield run


def _are_made_of(atoms: Sequence[_Atom], blocks: Sequence[list[_Atom]], starts: Mapping[_Atom, int]) -> bool:
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
) -> list[_Step]:
    steps: list[_Step] = []
    if not same_dims(now, viewed):
        steps.append(_Step("aten.view", {"size": tuple(viewed)}, tuple(now)))
    steps.append(_Step("aten.permute", {"dims": tuple(permutation)}, tuple(viewed)))
    turned = tuple(viewed[axis] for axis in permutation)
    if not same_dims(turned, out):
        steps.append(_Step("aten.view", {"size": tuple(out)}, turned))
    return steps


def _packed_head(op: Builder, x: Value, parts: Sequence[Dim], order: Sequence[int]) -> Value:
    """The second of three parts of each row as two heads: [batch, heads, rows, width]."""
    rows, batch, _, width = parts
    apart = op.aten.permute(op.aten.view(x, tuple(parts)), tuple(order))
    part = op.aten.view(op.aten.slice.Tensor(apart, 0, 1, 2), (batch, rows, width))
    heads = op.aten.view(op.aten.permute(part, (1, 0, 2)), (rows, 2 * batch, dims.floordiv(width, 2)))
    return op.aten.view(op.aten.permute(heads, (1, 0, 2)), (batch, 2, rows, dims.floordiv(width, 2)))
