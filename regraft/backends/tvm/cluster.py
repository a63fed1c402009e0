"""Which ops make one kernel.

A loop over steps is a kernel by itself, a ``Sweep``; a condition is a ``Branch`` between kernels. Any other
kernel computes one value: that of its *root*. Other ops are *inlined*: their elements are computed where they
are wanted, and never in memory. One of them, the *anchor*, may write loops of its own (a reduction, a
product); what precedes it is computed where it reads, and what follows it, if that is elementwise, where it
has an element. A root may also be a permutation of what follows: elements are stored where it moves them.

Ops are taken in reverse, so that the users of each are placed when its turn comes. Every op joins the kernel
of its users where there is one such kernel and nothing would be computed twice; views, and tensors made from
nothing, join any number of them. What is a result, or read by a product or as an index, is in memory; but a
product reads through what only moves the rows of memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft.backends.tvm.epilogue import can_follow, is_number
from regraft.backends.tvm.lower import LOWERINGS
from regraft.backends.tvm.lower.indexing import needs_division
from regraft.backends.tvm.lower.kinds import Branching, Loops, Pointwise, Swept, Templated, is_elementwise
from regraft.backends.tvm.lower.views import keeps_rows
from regraft.ir import Dim, Op, Region, Symbol, Trait, Type, Value, dims, symbols_in


@dataclass(eq=False)
class Cluster:
    """The ops of one kernel.

    Fields:
        root: the last of them, whose result is stored.
        inlined: all of them.
        anchor: the one that writes the loops; None where each element is computed by itself.
        twin: a second product of what the anchor multiplies: both sums are joined (a gate).
        inputs: what is read from memory, each once.
        is_closed: nothing joins any more but numbers: a template reads its operands from memory, those of its
            epilogue too.
    """

    root: Op
    inlined: dict[Op, None]
    anchor: Op | None = None
    twin: Op | None = None
    inputs: tuple[Value, ...] = ()
    is_closed: bool = False
    memories: Mapping[Value, Value] = field(default_factory=dict[Value, Value], repr=False)

    @property
    def result(self) -> Value:
        return self.root.result

    @property
    def results(self) -> tuple[Value, ...]:
        return (self.result,)

    @property
    def products(self) -> tuple[Op, ...]:
        """The anchor and its twin."""
        return tuple(op for op in (self.anchor, self.twin) if op is not None)

    def memory(self, value: Value) -> Value:
        """The value in whose memory ``value`` lies."""
        return self.memories.get(value, value)


@dataclass(eq=False)
class _Whole:
    """An op with regions that nothing joins.

    Fields:
        root: the op.
        inputs: what is read from memory, each once.
    """

    root: Op
    inputs: tuple[Value, ...] = ()
    memories: Mapping[Value, Value] = field(default_factory=dict[Value, Value], repr=False)

    @property
    def results(self) -> tuple[Value, ...]:
        return self.root.results

    @property
    def inlined(self) -> tuple[Op, ...]:
        return (self.root,)

    def memory(self, value: Value) -> Value:
        """The value in whose memory ``value`` lies."""
        return self.memories.get(value, value)


class Sweep(_Whole):
    """A loop over steps that is a kernel of its own."""


class Branch(_Whole):
    """A condition, whose arms have kernels of their own."""


Step = Cluster | Sweep | Branch


@dataclass(frozen=True)
class Check:
    """Values that must lie from ``least`` up to ``size - 1`` before ``op`` reads with them."""

    value: Value
    least: Dim
    size: Dim
    op: Op


@dataclass(frozen=True)
class Clusters:
    """The steps of a body and the checks before them, in order.

    Fields:
        memories: a view that is no kernel's -> the value in whose memory it lies.
    """

    steps: tuple[Step | Check, ...]
    memories: Mapping[Value, Value]


def form(body: Region, alone: Collection[Op] = ()) -> Clusters:
    """The kernels of ``body``; no op follows the products in ``alone`` in their kernel."""
    return _Forming(body, alone).run()


_WHOLE: Mapping[type, type[Sweep] | type[Branch]] = {Swept: Sweep, Branching: Branch}


class _Forming:
    def __init__(self, body: Region, alone: Collection[Op]) -> None:
        self.alone = alone
        self.ops = [op for op in body.ops if _is_computed(op)]
        self.homes: dict[Op, frozenset[Cluster]] = {}
        """The kernels in which an op is inlined; none for a view that is only another shape of memory."""
        self.moved: set[Op] = set()
        """The inlined ops through which a product reads memory, each element many times."""

    def run(self) -> Clusters:
        roots: list[Step] = []
        for op in reversed(_beside_siblings(self.ops)):
            whole = _WHOLE.get(type(LOWERINGS[op.name]))
            if whole is not None:
                roots.append(whole(op))
                continue
            homes = self._homes(op)
            if homes is None:
                cluster = Cluster(op, {})
                roots.append(cluster)
                homes = frozenset({cluster})
            elif homes and any(self._is_read_often(op, use.op) for use in op.result.uses):
                self.moved.add(op)
            self.homes[op] = homes
            for cluster in homes:
                self._join(op, cluster)
        views = [op for op, homes in self.homes.items() if not homes]
        memories = {op.result: self._source(op.result) for op in views}
        return Clusters(tuple(self._steps(list(reversed(roots)), memories)), memories)

    def _join(self, op: Op, cluster: Cluster) -> None:
        cluster.inlined[op] = None
        lowering = LOWERINGS[op.name]
        if cluster.anchor is not None and isinstance(lowering, Templated):
            cluster.twin = op
        elif not isinstance(lowering, Pointwise):
            cluster.anchor = op
            cluster.is_closed = isinstance(lowering, Templated)

    def _homes(self, op: Op) -> frozenset[Cluster] | None:
        """Where ``op`` is inlined; None when it is a root."""
        wanted = self._wanted(op)
        is_view = op.name == "aten.view"
        if wanted is None or not op.result.uses:
            return frozenset() if is_view else None
        lowering = LOWERINGS[op.name]
        if not isinstance(lowering, Pointwise):
            return wanted if self._can_anchor(op, wanted) else None
        if is_view and (len(wanted) > 1 or _divides(op)):
            return frozenset()
        if lowering.is_free or len(wanted) == 1:
            return wanted
        return None

    def _wanted(self, op: Op) -> frozenset[Cluster] | None:
        """The kernels that compute with ``op`` where they read it; None when one reads it from memory."""
        found: set[Cluster] = set()
        for use in op.result.uses:
            user = use.op
            if user.has(Trait.TERMINATOR):
                return None
            if self._is_read_often(op, user) and not self._is_read_through(op, user):
                return None
            if not self.homes[user]:  # a view of memory
                return None
            is_closed = any(home.is_closed for home in self.homes[user])
            if _repeats(op, user) or (is_closed and not (is_number(op) or _is_product(op))):
                return None
            found |= self.homes[user]
        return frozenset(found)

    def _is_read_often(self, op: Op, user: Op) -> bool:
        return op.result in _read_from_memory(user) or user in self.moved

    def _is_read_through(self, op: Op, user: Op) -> bool:
        """Whether ``user``, which reads ``op`` often, can do so where the operand of ``op`` lies."""
        lowering = LOWERINGS[user.name]
        is_given = isinstance(lowering, Loops) and lowering.through(user, op.result)
        return keeps_rows(op) and (is_given or user in self.moved)

    def _can_anchor(self, op: Op, wanted: frozenset[Cluster]) -> bool:
        """Whether all that follows ``op`` in the one kernel that wants it is elementwise, but for a last
        permutation.
        """
        if len(wanted) != 1 or op in self.alone:
            return False
        (cluster,) = wanted
        if not self._in_step(op.result, cluster):
            return False
        if cluster.anchor is not None:
            return cluster.twin is None and _are_siblings(op, cluster.anchor)
        is_template = isinstance(LOWERINGS[op.name], Templated)
        return not is_template or can_follow(op, tuple(cluster.inlined), cluster.root)

    def _in_step(self, value: Value, cluster: Cluster) -> bool:
        """Whether the kernel reads the element of ``value`` at the place that it computes, and no other."""
        return all(self._keeps_place(value, use.op, cluster) for use in value.uses)

    def _keeps_place(self, value: Value, user: Op, cluster: Cluster) -> bool:
        if user is cluster.root and is_last_move(user):
            return True
        if not is_elementwise(user) or not _same_shape(value, user.result):
            return False
        return user is cluster.root or self._in_step(user.result, cluster)

    def _source(self, value: Value) -> Value:
        """The value in whose memory a view lies."""
        while value.op is not None and value.op in self.homes and not self.homes[value.op]:
            value = value.op.operands[0]
        return value

    def _steps(self, kernels: Sequence[Step], memories: Mapping[Value, Value]) -> Iterator[Step | Check]:
        checked: set[tuple[Value, Dim, Dim]] = set()
        for cluster in sorted(kernels, key=lambda kernel: self.ops.index(kernel.root)):
            cluster.memories = memories
            if isinstance(cluster, Cluster):
                cluster.inlined = dict.fromkeys(op for op in self.ops if op in cluster.inlined)
            read = (v for op in cluster.inlined for v in op.operands if v.op not in cluster.inlined)
            cluster.inputs = tuple(dict.fromkeys(cluster.memory(v) for v in read))
            for op in cluster.inlined:
                for bound in _bounds(op):
                    if bound not in checked:
                        checked.add(bound)
                        yield Check(*bound, op)
            yield cluster


def is_last_move(root: Op) -> bool:
    """Whether a kernel may store, in place of what ``root`` permutes, what it permutes it to."""
    return root.name == "aten.permute" and keeps_rows(root)


def symbols_of(ops: Iterable[Op], values: Iterable[Value] = ()) -> tuple[Symbol, ...]:
    """Every symbol in the types and attributes of ``ops`` and in the types of ``values``, once, in order.

    What is in the regions of ``ops`` counts, the symbols of the regions themselves apart.
    """
    found: dict[Symbol, None] = {}
    for op in ops:
        for each in (*(v.type for v in (*op.operands, *op.results)), *op.attrs.values()):
            found |= dict.fromkeys(symbols_in(each))
        for region in op.regions:
            found |= dict.fromkeys(s for s in symbols_of(region.ops) if s not in region.symbols)
    for value in values:
        found |= dict.fromkeys(symbols_in(value.type))
    return tuple(found)


def _beside_siblings(ops: Sequence[Op]) -> list[Op]:
    """``ops`` with each product right behind its first sibling, if it has one.

    What follows both, which may join one kernel with them, then comes after both.
    """
    groups: dict[Any, list[Op]] = {}
    for op in ops:
        groups.setdefault(_siblings_key(op) or op, []).append(op)
    return [op for group in groups.values() for op in group]


def _are_siblings(op: Op, other: Op) -> bool:
    key = _siblings_key(op)
    return key is not None and key == _siblings_key(other)


def _siblings_key(op: Op) -> tuple[Value, Type] | None:
    """Equal for products of one input by constant matrices of one shape; None for all others."""
    if op.name != "aten.linear" or not _is_product(op):
        return None
    x, *constants = op.operands
    return (x, op.operand("weight").type) if all(value.is_const for value in constants) else None


def _is_product(op: Op) -> bool:
    return isinstance(LOWERINGS[op.name], Templated)


def _is_computed(op: Op) -> bool:
    return not op.has(Trait.TERMINATOR) and not op.has(Trait.CONSTANT_LIKE)


def _bounds(op: Op) -> Sequence[tuple[Value, Dim, Dim]]:
    lowering = LOWERINGS[op.name]
    return lowering.indices(op) if isinstance(lowering, Pointwise) else ()


def _read_from_memory(user: Op) -> Sequence[Value]:
    lowering = LOWERINGS[user.name]
    if isinstance(lowering, Pointwise):
        return [value for value, _, _ in lowering.indices(user)]
    return lowering.in_memory(user)


def _divides(view: Op) -> bool:
    return needs_division(view.result.tensor.shape, view.operands[0].tensor.shape)


def _repeats(op: Op, user: Op) -> bool:
    """Whether ``user`` reads elements of ``op`` several times, so that each would be computed as often."""
    lowering = LOWERINGS[op.name]
    if isinstance(lowering, Pointwise) and lowering.is_free:
        return False
    if user.name == "aten.expand" or is_elementwise(user):
        return not _same_count(op.result, user.result)
    return user.name in ("aten.index.Tensor", "aten.embedding", "aten.gather")


def _same_count(a: Value, b: Value) -> bool:
    return dims.eq(a.tensor.numel, b.tensor.numel) is True


def _same_shape(a: Value, b: Value) -> bool:
    pairs = zip(a.tensor.shape, b.tensor.shape, strict=False)
    return a.tensor.rank == b.tensor.rank and all(dims.eq(x, y) is True for x, y in pairs)
