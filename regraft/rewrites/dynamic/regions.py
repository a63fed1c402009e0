"""How the rewrites of conditions build one anew: arms over values of the region around them.

Regions are isolated, so an op moves across a region's edge by being built again on the other side. What an
arm reads from around it becomes an operand; what costs nothing to make again is made inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regraft.ir import (
    Builder,
    Declined,
    DType,
    Match,
    Op,
    Region,
    Symbol,
    TensorType,
    Trait,
    Value,
    clone_op,
    is_pure,
    is_speculatable,
    symbols_in,
)

#: No value of an outer region stands for one inside.
_NONE: Mapping[Value, Value] = {}


def is_repeatable(value: Value) -> bool:
    """Whether ``value`` costs nothing to make again: a constant, or one number made from nothing."""
    op = value.op
    if op is None or op.operands or op.regions or op.symbols or not op.has(Trait.PURE):
        return False
    return op.has(Trait.CONSTANT_LIKE) or is_number(value)


def is_number(value: Value) -> bool:
    """Whether ``value`` has one element, whatever the sizes are."""
    return isinstance(value.type, TensorType) and value.type.numel == 1


def live_ops(region: Region, wanted: Sequence[Value], given: Mapping[Value, Value] = _NONE) -> list[Op]:
    """The ops of ``region`` that have effects or that ``wanted`` depend on, values of ``given`` apart."""
    needed, live = set(wanted), list[Op]()
    for op in region.reversed_ops:
        if op.has(Trait.TERMINATOR):
            continue
        used = any(result in needed and result not in given for result in op.results)
        if used or op.symbols or not is_pure(op):
            live.append(op)
            needed.update(op.operands)
    return live[::-1]


def live_args(region: Region, wanted: Sequence[Value]) -> set[int]:
    """The arguments of ``region`` that effects or ``wanted`` depend on."""
    read = {value for op in live_ops(region, wanted) for value in op.operands}
    return {arg.index for arg in region.args if arg in read or arg in wanted}


def computes_nothing(region: Region, wanted: Sequence[Value]) -> bool:
    """Whether ``wanted`` are given to ``region``, or cost nothing to make."""
    return all(len(op.results) == 1 and is_repeatable(op.results[0]) for op in live_ops(region, wanted))


def is_swappable(a: Op, b: Op) -> bool:
    """Whether two ops that do not read one another may change places."""
    return is_speculatable(a) or is_speculatable(b) or (is_pure(a) and is_pure(b))


def needs_torch(op: Op) -> bool:
    """Whether ``op``, or an op of its regions, is one that no back end but eager torch knows.

    What is in one condition with it runs in torch as well.
    """
    return op.definition.opaque or any(inner.definition.opaque for r in op.regions for inner in r.walk())


class NewArms:
    """The arms of a ``cf.cond`` in the making, built before the op that ``op`` inserts at.

    Fields:
        operands: the values around that the arms read, in the order of the arms' arguments.
        regions: the arms.
    """

    def __init__(self, op: Builder) -> None:
        self.operands: list[Value] = []
        self.regions = (Region(), Region())
        self._outer = op
        self._builders = tuple(Builder(op.table, region, loc=op.loc) for region in self.regions)
        self._inside: tuple[dict[Value, Value], dict[Value, Value]] = ({}, {})
        self._assumed: tuple[dict[Value, bool], dict[Value, bool]] = ({}, {})

    def builder(self, arm: int) -> Builder:
        return self._builders[arm]

    def stands_for(self, arm: int, value: Value, inside: Value) -> None:
        """Where ``arm`` reads ``value`` of the region around, it gets ``inside``."""
        self._inside[arm][value] = inside

    def assume(self, arm: int, value: Value, holds: bool) -> None:
        """``arm`` runs only when the bool ``value`` is ``holds``."""
        self._assumed[arm][value] = holds

    def inside(self, arm: int, value: Value) -> Value:
        """What stands in ``arm`` for ``value`` of the region around it."""
        known = self._inside[arm]
        if value not in known and value in self._assumed[arm]:
            known[value] = flag(self._builders[arm], self._assumed[arm][value])
        elif value not in known and is_repeatable(value):
            assert value.op is not None
            self._builders[arm].insert(clone_op(value.op, known))
        elif value not in known:
            self.operands.append(value)
            for number, region in enumerate(self.regions):
                argument = region.add_arg(value.type, value.hint)
                if value not in self._assumed[number]:
                    self._inside[number].setdefault(value, argument)
        return known[value]

    def insert(self, arm: int, op: Op) -> Op:
        """A copy of ``op``, an op of the region around, in ``arm``."""
        mapping = {value: self.inside(arm, value) for value in op.operands}
        copy = self._builders[arm].insert(clone_op(op, mapping))
        self._inside[arm].update(zip(op.results, copy.results, strict=True))
        return copy

    def copy(
        self,
        arm: int,
        source: Region,
        operands: Sequence[Value],
        wanted: Sequence[Value],
        given: Mapping[Value, Value] = _NONE,
    ) -> list[Value]:
        """What is live of ``source`` over ``operands`` of the region around; what ``wanted`` are in ``arm``.

        ``given`` says which values around stand for values of ``source``.
        """
        outer = {**dict(zip(source.args, operands, strict=True)), **given}
        mapping: dict[Value, Value] = {}
        for op in live_ops(source, wanted, given):
            for value in op.operands:
                if value in outer:
                    mapping[value] = self.inside(arm, outer[value])
            self._builders[arm].insert(clone_op(op, mapping))
        return [self.inside(arm, outer[v]) if v in outer else mapping[v] for v in wanted]

    def copy_arm(
        self,
        arm: int,
        cond: Op,
        kept: Sequence[int],
        source: int | None = None,
        given: Mapping[Value, Value] = _NONE,
    ) -> list[Value]:
        """The arm ``source`` of ``cond`` (the same by default): what its results ``kept`` are in ``arm``."""
        region = cond.regions[arm if source is None else source]
        wanted = [region.results[index] for index in kept]
        return self.copy(arm, region, cond.variadic("operands"), wanted, given)

    def finish(self, arm: int, values: Sequence[Value]) -> None:
        self._builders[arm].create("cf.yield", (tuple(values),))

    def cond(self, pred: Value, like: Op, kept: Sequence[int]) -> list[Value | None]:
        """The condition, whose results are those of ``like`` that ``kept`` lists; None for the others.

        Nothing is inserted when the arms yield nothing and have no effect.
        """
        if not kept and all(is_pure(op) for region in self.regions for op in region.ops):
            return [None] * len(like.results)
        made = self.create(pred, [like.results[index] for index in kept], like.symbols)
        by_index = dict(zip(kept, made, strict=True))
        return [by_index.get(index) for index in range(len(like.results))]

    def create(self, pred: Value, like: Sequence[Value], symbols: Sequence[Symbol] = ()) -> tuple[Value, ...]:
        """The results of the condition, which have the types of ``like``."""
        types = [value.type for value in like]
        args = (pred, tuple(self.operands))
        made = self._outer.create("cf.cond", args, result_types=types, regions=self.regions, symbols=symbols)
        for old, new in zip(like, made.results, strict=True):
            new.hint = old.hint
        return made.results


def flag(op: Builder, holds: bool) -> Value:
    """The bool ``holds``."""
    return op.aten.full((), holds, dtype=DType.BOOL)


def kept_results(op: Op) -> list[int]:
    """The results that are used, or that give a symbol of ``op`` its value."""
    return [r.index for r in op.results if r.uses or any(s in op.symbols for s in symbols_in(r.type))]


def names_sizes(m: Match) -> Declined | None:
    """A refusal of conditions and loops whose regions have symbols for the sizes of their arguments."""
    if any(region.symbols for region in m.root.regions):
        return m.decline(f"a region of {m.root.name} has names of its own for sizes", _first(m.root))
    return None


def makes_sizes(m: Match) -> Declined | None:
    """A refusal of those, and of ops that define a symbol, because their results differ in a size."""
    if m.root.symbols:
        return m.decline(f"the results of {m.root.name} differ in a size between paths", _first(m.root))
    return names_sizes(m)


def _first(op: Op) -> Value | None:
    return op.results[0] if op.results else None
