"""What is made of little for all trips of a scan, made in each trip instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    Region,
    Rewrite,
    Scan,
    Trait,
    Value,
    clone_op,
    dims,
    is_pure,
)
from regraft.rewrites.batching import Call
from regraft.rewrites.sequence.samples import scan
from regraft.rewrites.sequence.scans import is_constant, is_heavy

_MOST_OPS = 64
"""The most ops that make a slice in each trip."""


class SunkSteps(Rewrite):
    """scan(h, exp(a * w)){f(h, e_i)} = scan(h, a){f(h, exp(a_i * w))}, where all of ``e`` outgrow the caches

    Elements that are computed from fewer: then only these are read slice by slice, and what they make stays
    in the cache for the trip that reads it. What has other readers, or is as small, stays before the loop.
    """

    stage = "recover"
    after = ("BatchedSteps",)

    def pattern(self, op: PatternBuilder) -> Any:
        return op.call("cf.scan", (op.any_operands(), op.any_operands(), op.any_operands()), {})

    def check(self, m: Match) -> Declined | None:
        found = Scan.of(m.root)
        if found.length == 1:
            return m.decline("there is one trip alone, which slices nothing", m.root.operands[0])
        if not _sunk(found):
            return m.decline("no slices are made of smaller ones that nobody else reads", m.root.operands[0])
        return None

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        found = Scan.of(m.root)
        return _Trip(op, found, _sunk(found)).scan().results


@dataclass(frozen=True, eq=False)
class Part:
    """What a trip reads of ``value``: its place along ``axis``, without that axis, or all where it is None.

    ``_Parts`` makes them: what is equal is one object.

    Fields:
        varies: whether there is a place for each trip; else there is one for all.
        parts: what it is computed from in the trip, one for each operand; none of what is read.
    """

    value: Value
    axis: int | None
    varies: bool
    parts: tuple[Part, ...] = ()

    def walk(self) -> list[Part]:
        """The part and those it is made of, each once."""
        found: dict[Part, None] = {self: None}
        pending: list[Part] = [self]
        while pending:
            more = [part for part in dict.fromkeys(pending.pop().parts) if part not in found]
            found.update(dict.fromkeys(more))
            pending.extend(more)
        return list(found)

    def leaves(self) -> list[Part]:
        """What is read, each once."""
        return [part for part in self.walk() if not part.parts]


def _sunk(scan: Scan) -> Mapping[Value, Part]:
    """The slices that are better made in the trip -> how."""
    found: dict[Value, Part] = {}
    made: dict[Any, Part] = {}
    for argument in scan.slices:
        whole = scan.operand(argument)
        if not is_heavy(scan, argument.tensor):
            continue
        part = _Parts(whole.tensor.numel, made).of(whole, 0)
        read: Dim = 0
        for leaf in part.leaves():
            read = read + (leaf.value.tensor.numel if leaf.varies else 0)
        if dims.le(2 * read, whole.tensor.numel) is not True:
            continue
        inside = {each.value for each in part.walk() if each.parts}
        if inside and _are_its_own(inside, scan):
            found[argument] = part
    return found


def _are_its_own(values: set[Value], scan: Scan) -> bool:
    """Whether nobody but ``scan`` and what makes one another reads ``values``."""
    made = {value.op for value in values} | {scan.op}
    return all(user in made for value in values for user in value.users)


@dataclass
class _Parts:
    """The parts that a slice is computed from, each found once however many read it.

    Fields:
        size: the elements of the slices for all trips: what has as many is computed, not read.
        made: the parts there are, of other slices too.
        known: those that were asked for.
        ops: how many of them are computed; what would be one too many is read.
    """

    size: Dim
    made: dict[Any, Part]
    known: dict[tuple[Value, int], Part] = field(default_factory=dict[tuple[Value, int], Part])
    ops: int = 0

    def of(self, value: Value, axis: int) -> Part:
        """The place of ``value`` along ``axis``, computed from what has fewer elements."""
        key = value, axis
        if key not in self.known:
            self.known[key] = self._part(value, axis, varies=True, parts=self._sources(value, axis))
        return self.known[key]

    def _part(self, value: Value, axis: int | None, *, varies: bool, parts: tuple[Part, ...] = ()) -> Part:
        return self.made.setdefault((value, axis, varies, parts), Part(value, axis, varies, parts))

    def _sources(self, value: Value, axis: int) -> tuple[Part, ...]:
        op = value.op
        if op is None or dims.le(self.size, value.tensor.numel) is not True or not is_pure(op):
            return ()
        if self.ops == _MOST_OPS:
            return ()
        if op.has(Trait.ELEMENTWISE) and not op.has(Trait.RANDOM):
            self.ops += 1
            return tuple(self._operand(value, axis, each) for each in op.operands)
        source = _moved_from(op, axis)
        if source is None:
            return ()
        self.ops += 1
        return (self.of(op.operands[0], source),)

    def _operand(self, value: Value, axis: int, operand: Value) -> Part:
        """What is read of ``operand``, which is broadcast to ``value``, for the place along ``axis``."""
        own = axis - value.tensor.rank + operand.tensor.rank
        if own < 0:
            return self._part(operand, None, varies=False)
        if operand.tensor.shape[own] == 1:
            return self._part(operand, own, varies=False)
        return self.of(operand, own)


def _moved_from(op: Op, axis: int) -> int | None:
    """The axis that ``op``, a view or a permutation, puts at ``axis``; None where it does not stay whole."""
    if op.name == "aten.permute":
        return int(op.attr("dims")[axis]) % op.result.tensor.rank
    if op.name != "aten.view":
        return None
    before, after = op.operands[0].tensor.shape, op.result.tensor.shape
    outside = dims.product(after[:axis])
    for own, size in enumerate(before):
        if dims.eq(size, after[axis]) is True and dims.eq(dims.product(before[:own]), outside) is True:
            return own
    return None


@dataclass
class _Trip:
    """The scan whose trips make the slices ``sunk``."""

    op: Builder
    found: Scan
    sunk: Mapping[Value, Part]
    body: Region = field(default_factory=Region)
    known: dict[Part, Value] = field(default_factory=dict[Part, Value])
    constants: dict[Value, Value] = field(default_factory=dict[Value, Value])

    def scan(self) -> Op:
        found, new = self.found, dict[Value, Value]()
        leaves = list(dict.fromkeys(leaf for part in self.sunk.values() for leaf in part.leaves()))
        sliced = [leaf for leaf in leaves if leaf.varies]
        whole = dict.fromkeys(
            leaf.value for leaf in leaves if not leaf.varies and not is_constant(leaf.value)
        )
        kept = [argument for argument in found.slices if argument not in self.sunk]
        for argument in (*found.carried, *kept):
            new[argument] = self.body.add_arg(argument.type, argument.hint)
        for leaf in sliced:
            row = leaf.value.tensor.with_shape(_place_shape(leaf))
            self.known[leaf] = self.body.add_arg(row, leaf.value.hint)
        for value in found.fixed:
            new[value] = self.body.add_arg(value.type, value.hint)
        for value in whole:
            new[value] = self.body.add_arg(value.type, value.hint)
        self._fill(new)
        scanned = [*(found.operand(argument) for argument in kept), *map(self._rows, sliced)]
        fixed = (*map(found.operand, found.fixed), *whole)
        operands = (tuple(map(found.operand, found.carried)), tuple(scanned), fixed)
        return self.op.create("cf.scan", operands, regions=(self.body,))

    def _fill(self, new: dict[Value, Value]) -> None:
        inner = Builder(self.op.table, self.body, loc=self.op.loc)
        for argument, part in self.sunk.items():
            new[argument] = self._made(inner, part, new)
        for each in self.found.body.ops:
            if not each.has(Trait.TERMINATOR):
                inner.insert(clone_op(each, new))
        inner.create("cf.yield", ([new[value] for value in self.found.body.results],))

    def _made(self, inner: Builder, part: Part, new: Mapping[Value, Value]) -> Value:
        if part not in self.known:
            self.known[part] = self._make(inner, part, new)
        return self.known[part]

    def _make(self, inner: Builder, part: Part, new: Mapping[Value, Value]) -> Value:
        if not part.parts:
            whole = new[part.value] if part.value in new else self._again(inner, part.value)
            return whole if part.axis is None else inner.aten.view(whole, _place_shape(part))
        op = part.value.op
        assert op is not None, "it has operands"
        made = [self._made(inner, each, new) for each in part.parts]
        if op.name == "aten.permute":
            return inner.aten.permute(made[0], _without(op, part))
        if op.name == "aten.view":
            return inner.aten.view(made[0], _place_shape(part))
        operands = dict(zip(op.operands, made, strict=True))
        return Call(inner, op, 1, operands, set()).again({})[0]

    def _again(self, inner: Builder, value: Value) -> Value:
        """The constant ``value``, made again where ``inner`` inserts."""
        if value not in self.constants:
            op = value.op
            assert op is not None, "a constant is made by an op"
            mapping = {operand: self._again(inner, operand) for operand in dict.fromkeys(op.operands)}
            self.constants[value] = inner.insert(clone_op(op, mapping)).result
        return self.constants[value]

    def _rows(self, leaf: Part) -> Value:
        """What is scanned to give ``leaf`` in each trip."""
        others = (axis for axis in range(leaf.value.tensor.rank) if axis != leaf.axis)
        return self.op.aten.permute(leaf.value, (leaf.axis, *others)) if leaf.axis else leaf.value


def _place_shape(part: Part) -> tuple[Dim, ...]:
    shape, axis = part.value.tensor.shape, part.axis
    assert axis is not None
    return (*shape[:axis], *shape[axis + 1 :])


def _without(op: Op, part: Part) -> tuple[int, ...]:
    """The order of axes of the permutation ``op`` where it has lost the axis of ``part``."""
    rank, gone = op.result.tensor.rank, part.parts[0].axis
    assert gone is not None
    order = [axis % rank for axis in op.attr("dims")]
    return tuple(axis - (axis > gone) for axis in order if axis != gone)


# -- examples ----------------------------------------------------------------------------------


def _add(op: Builder, h: Value, x: Value) -> tuple[Value, Value]:
    after = op.aten.add.Tensor(h, x)
    return after, op.aten.sum.dim_IntList(after, (1,))


def _outer(op: Builder, h: Value, a: Value, w: Value) -> Sequence[Value]:
    """``h = h + exp(a_i * w)`` for each column ``a_i``."""
    return scan(op, (h,), (op.aten.exp(op.aten.mul.Tensor(a, w)),), (), _add)


def _selective(op: Builder, h: Value, delta: Value, w: Value, gate: Value) -> Sequence[Value]:
    """Mamba's decays: steps along the last axis of ``delta``, a row of ``w`` each; gates without it."""
    batch, width, length = delta.tensor.shape
    wide = op.aten.view(delta, (batch, width, length, 1))
    decay = op.aten.exp(op.aten.mul.Tensor(op.aten.mul.Tensor(wide, w), op.aten.view(gate, (1, width, 1, 1))))
    rows = op.aten.view(op.aten.permute(decay, (2, 0, 1, 3)), (length, batch * width, w.tensor.shape[-1]))
    return scan(op, (h,), (rows,), (), _add)


def _twice(op: Builder, h: Value, a: Value, w: Value) -> Sequence[Value]:
    decay = op.aten.exp(op.aten.mul.Tensor(a, w))
    return (*scan(op, (h,), (decay,), (), _add), op.aten.amax(decay, (0, 1, 2)))


def _gated(steps: int) -> Callable[..., Sequence[Value]]:
    """Slices that are made in ``steps`` steps of four ops, each of which reads the one before three times."""

    def build(op: Builder, h: Value, a: Value, w: Value) -> Sequence[Value]:
        e = op.aten.mul.Tensor(a, w)
        for _ in range(steps):
            # A sum, since powers of what is small become subnormal numbers, which CPUs are slow on.
            e = op.aten.mul.Tensor(op.aten.add.Tensor(e, op.aten.sigmoid(e)), op.aten.tanh(e))
        return scan(op, (h,), (e,), (), _add)

    return build


_LARGE = ("f32[128, 64]", "f32[128, 128, 1]", "f32[64]")

SunkSteps.examples = (
    Example(_outer, _LARGE),
    Example(_outer, _LARGE, constants=(2,)),
    Example(_selective, ("f32[128, 64]", "f32[2, 64, 128]", "f32[64, 1, 64]", "f32[64]"), constants=(2,)),
    Example(_gated(15), _LARGE),
)
SunkSteps.counterexamples = (
    Example(_outer, ("f32[128, 64]", "f32[128, 128, 64]", "f32[64]"), reason="smaller ones"),
    Example(_outer, ("f32[8, 64]", "f32[256, 8, 1]", "f32[64]"), reason="smaller ones"),
    Example(_twice, _LARGE, reason="nobody else reads"),
    Example(_gated(16), _LARGE, reason="smaller ones"),
    Example(_outer, ("f32[1024, 1024]", "f32[1, 1024, 1]", "f32[1024]"), reason="one trip alone"),
)
