"""Regions for many samples at once, in which each sample takes its own path.

Where a condition or a loop decides for each sample by itself, the samples that go one way are gathered, the
way is run for them alone, and what it gives is put back among the others. So an arm runs for the samples that
take it, a trip for those that are not done, and neither where there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field

from regraft.ir import (
    Builder,
    Dim,
    DType,
    Op,
    Region,
    Symbol,
    TensorType,
    Trait,
    Value,
    clone_op,
    symbol,
    symbols_in,
)
from regraft.rewrites.batching.rules import batched, obstacle

_BRANCHING = ("cf.cond", "cf.while")


def varying_in(region: Region, first: Set[Value]) -> set[Value]:
    """The values of ``region`` that depend on those of ``first``. Of an op with regions all results do."""
    found = set(first)
    for op in region.ops:
        if not found.isdisjoint(op.operands):
            found.update(op.results)
    return found


def obstacles(region: Region, first: Set[Value]) -> Iterator[tuple[Op, str]]:
    """The ops of ``region`` without a form for many samples where the values in ``first`` vary, and why.

    Random draws have none, whatever varies.
    """
    varying = varying_in(region, first)
    for op in region.ops:
        if op.name == "rg.check" or op.has(Trait.TERMINATOR):
            continue
        varies = not varying.isdisjoint(op.operands)
        if op.name not in _BRANCHING:
            # What is drawn once would be the same for all samples, whatever it is drawn from.
            reason = obstacle(op, varying) if varies or op.has(Trait.RANDOM) else None
            if reason is not None:
                yield op, reason
            continue
        names = bool(op.symbols) or any(inner.symbols for inner in op.regions)
        if varies and names:
            yield op, "a size differs from path to path or from trip to trip"
        for inner in op.regions:
            yield from obstacles(inner, _entering(op, inner, varying))


def _entering(op: Op, region: Region, varying: Set[Value]) -> set[Value]:
    """The arguments of ``region``, one of ``op``, that vary."""
    if op.name == "cf.cond":
        pairs = zip(region.args, op.variadic("operands"), strict=True)
        return {argument for argument, operand in pairs if operand in varying}
    return {region.args[i] for i in _carried_varying(op, varying)}


def _carried_varying(loop: Op, varying: Set[Value]) -> set[int]:
    """The carried values that vary, given the operands that do; all that change where the test varies."""
    test, body = loop.regions
    found = {i for i, operand in enumerate(loop.operands) if operand in varying}
    while True:
        inside = varying_in(body, {body.args[i] for i in found})
        more = {i for i, value in enumerate(body.results) if value in inside}
        if test.results[0] in varying_in(test, {test.args[i] for i in found}):
            more |= {i for i, value in enumerate(body.results) if value is not body.args[i]}
        if more <= found:
            return found
        found |= more


@dataclass
class Batch:
    """Builds what stands for the values of a region where ``size`` samples are run at once.

    Fields:
        b: inserts into the region in the making.
        size: how many samples there are.
        fresh: gives a symbol for the number of samples that take a path.
        new: values of the region for one sample -> what stands for them.
        varying: those that vary, and have a leading axis.
    """

    b: Builder
    size: Dim
    fresh: Callable[[], Symbol]
    new: dict[Value, Value] = field(default_factory=dict[Value, Value])
    varying: set[Value] = field(default_factory=set[Value])

    def enter(self, value: Value, stands: Value, *, varies: bool) -> None:
        """``stands`` is ``value`` of the region."""
        self.new[value] = stands
        if varies:
            self.varying.add(value)

    def run(self, region: Region) -> None:
        """The ops of ``region``, but for what it yields."""
        for op in region.ops:
            if not op.has(Trait.TERMINATOR):
                self._op(op)

    def lifted(self, value: Value) -> Value:
        """``value`` with the leading axis."""
        found = self.new[value]
        if value in self.varying:
            return found
        shape = found.tensor.shape
        one = self.b.aten.view(found, (1, *shape))
        return self.b.aten.expand(one, (self.size, *shape))

    # -- ops -----------------------------------------------------------------------------------

    def _op(self, op: Op) -> None:
        self.b.loc = op.loc
        if self.varying.isdisjoint(op.operands):
            self.b.insert(clone_op(op, self.new))
            return
        if op.name == "rg.check":
            holds = self.b.aten.all(self.new[op.operand("pred")])
            self.b.create("rg.check", (holds, op.attr("message")))
            return
        if op.name == "cf.cond":
            each = op.operand("pred") in self.varying
            results = self._choice(op) if each else self._condition(op)
        elif op.name == "cf.while":
            carried = _carried_varying(op, self.varying)
            test = op.regions[0]
            each = test.results[0] in varying_in(test, {test.args[i] for i in carried})
            results = self._trips(op) if each else self._loop(op, carried)
        else:
            results = batched(self.b, op, self.new, self.varying, self.size)
        for old, made in zip(op.results, results, strict=True):
            made.hint = made.hint or old.hint
            self.enter(old, made, varies=not _is_same(op, old, self.varying))

    def _inner(self, region: Region, size: Dim | None = None) -> Batch:
        return Batch(
            Builder(self.b.table, region, loc=self.b.loc), self.size if size is None else size, self.fresh
        )

    def _condition(self, op: Op) -> Sequence[Value]:
        """A condition that is the same for all samples."""
        operands, regions = op.variadic("operands"), list[Region]()
        for source in op.regions:
            region = Region([self.new[value].type for value in operands])
            arm = self._inner(region)
            for argument, inside, operand in zip(source.args, region.args, operands, strict=True):
                arm.enter(argument, inside, varies=operand in self.varying)
            arm.run(source)
            arm.b.create("cf.yield", ([arm.lifted(value) for value in source.results],))
            regions.append(region)
        args = (self.new[op.operand("pred")], tuple(self.new[value] for value in operands))
        return self.b.create("cf.cond", args, regions=regions).results

    def _loop(self, op: Op, carried: Set[int]) -> Sequence[Value]:
        """A loop that ends for all samples at once."""
        starts = [self.lifted(v) if i in carried else self.new[v] for i, v in enumerate(op.operands)]
        regions: list[Region] = []
        for number, source in enumerate(op.regions):
            region = Region([start.type for start in starts])
            inner = self._inner(region)
            for i, (argument, inside) in enumerate(zip(source.args, region.args, strict=True)):
                inner.enter(argument, inside, varies=i in carried)
            inner.run(source)
            yielded = [
                inner.lifted(v) if number and i in carried else inner.new[v]
                for i, v in enumerate(source.results)
            ]
            inner.b.create("cf.yield", (yielded,))
            regions.append(region)
        return self.b.create("cf.while", (tuple(starts),), regions=regions).results

    # -- paths of their own ---------------------------------------------------------------------

    def _choice(self, op: Op) -> Sequence[Value]:
        """A condition of which each sample takes the arm that its own predicate says."""
        pred = self.new[op.operand("pred")]
        given = [_given(region) for region in op.regions]
        results: list[Value] = []
        #: For each result the arms whose samples it holds already.
        held: list[tuple[int, ...]] = []
        for index, result in enumerate(op.results):
            arms = tuple(number for number in (0, 1) if index in given[number])
            values = [self._argument(op, number, index) for number in arms]
            if len(values) == 2:
                values = [self._selected(pred, *values)]
            results.append(values[0] if values else self._zeros(result.tensor))
            held.append(arms)
        for number in (0, 1):
            put = [i for i, arms in enumerate(held) if number not in arms]
            if put or _has_effects(op.regions[number]):
                mask = pred if number == 0 else self.b.aten.bitwise_not(pred)
                made = self._for_some(op, number, mask, put, [results[i] for i in put])
                for i, value in zip(put, made, strict=True):
                    results[i] = value
        return results

    def _selected(self, pred: Value, then: Value, other: Value) -> Value:
        """For each sample its part of ``then`` or ``other``."""
        one = (1,) * (then.tensor.rank - 1)
        mask = self.b.aten.view(pred, (self.size, *one)) if one else pred
        return self.b.aten.where.self(mask, then, other)

    def _argument(self, op: Op, arm: int, index: int) -> Value:
        """What an arm that computes nothing gives as a result, for all samples."""
        value = op.regions[arm].results[index]
        if isinstance(value.owner, Region):
            return self.lifted(op.variadic("operands")[value.index])
        maker = value.op
        assert maker is not None, "a value is an argument or made by an op"
        made = self.b.insert(clone_op(maker, {})).results[value.index]
        one = self.b.aten.view(made, (1, *made.tensor.shape))
        return self.b.aten.expand(one, (self.size, *made.tensor.shape))

    def _zeros(self, type: TensorType) -> Value:
        zero = False if type.dtype == DType.BOOL else 0.0 if type.dtype.is_float else 0
        return self.b.aten.full((self.size, *type.shape), zero, dtype=type.dtype)

    def _for_some(
        self, op: Op, number: int, mask: Value, put: Sequence[int], base: Sequence[Value]
    ) -> Sequence[Value]:
        """``base`` with what an arm gives as the results ``put`` for the samples that ``mask`` marks."""
        source, operands = op.regions[number], op.variadic("operands")
        given = [mask, *(self.new[value] for value in operands), *base]
        regions = Region([value.type for value in given]), Region([value.type for value in given])
        inside, (some, *rest) = self._inner(regions[0]), regions[0].args
        places, count = _places(inside.b, some, self.fresh)
        arm = self._inner(regions[0], count)
        for argument, operand, whole in zip(source.args, operands, rest, strict=False):
            varies = operand in self.varying
            arm.enter(argument, _picked(arm.b, whole, places) if varies else whole, varies=varies)
        arm.run(source)
        values = [arm.lifted(source.results[index]) for index in put]
        whole = rest[len(operands) :]
        arm.b.create("cf.yield", ([_put(arm.b, w, places, v) for w, v in zip(whole, values, strict=True)],))
        other = Builder(self.b.table, regions[1], loc=self.b.loc)
        other.create("cf.yield", (regions[1].args[1 + len(operands) :],))
        args = (self.b.aten.any(mask), tuple(given))
        return self.b.create("cf.cond", args, regions=regions).results

    def _trips(self, op: Op) -> Sequence[Value]:
        """A loop that each sample leaves when its own test says so."""
        test, body = op.regions
        still = [i for i, value in enumerate(body.results) if value is body.args[i]]
        fixed = [i for i in still if op.operands[i] not in self.varying]
        starts = [self.new[v] if i in fixed else self.lifted(v) for i, v in enumerate(op.operands)]
        active = self._tested(test, starts, fixed)
        given = [active, *starts]
        again, trip = (Region([value.type for value in given]) for _ in range(2))
        outer = Builder(self.b.table, again, loc=self.b.loc)
        outer.create("cf.yield", ([outer.aten.any(again.args[0])],))
        inside, (some, *rest) = self._inner(trip), trip.args
        places, count = _places(inside.b, some, self.fresh)
        rows = self._inner(trip, count)
        for i, (argument, whole) in enumerate(zip(body.args, rest, strict=True)):
            rows.enter(
                argument, whole if i in fixed else _picked(rows.b, whole, places), varies=i not in fixed
            )
        rows.run(body)
        after = [rest[i] if i in fixed else rows.lifted(value) for i, value in enumerate(body.results)]
        goes_on = rows._tested(test, after, fixed)
        values = [
            whole if i in still else _put(rows.b, whole, places, value)
            for i, (whole, value) in enumerate(zip(rest, after, strict=True))
        ]
        rows.b.create("cf.yield", ([_put(rows.b, some, places, goes_on), *values],))
        made = self.b.create("cf.while", (tuple(given),), regions=(again, trip))
        return made.results[1:]

    def _tested(self, test: Region, values: Sequence[Value], fixed: Sequence[int]) -> Value:
        """Whether each sample goes on, whose carried values are ``values``."""
        inner = Batch(self.b, self.size, self.fresh)
        for i, (argument, value) in enumerate(zip(test.args, values, strict=True)):
            inner.enter(argument, value, varies=i not in fixed)
        inner.run(test)
        return inner.lifted(test.results[0])


def _is_same(op: Op, result: Value, varying: Set[Value]) -> bool:
    """Whether a result of ``op`` is the same for all samples although operands vary."""
    if op.name != "cf.while":
        return False
    return result.index not in _carried_varying(op, varying)


def _given(region: Region) -> set[int]:
    """The results of an arm that are arguments or numbers, which cost nothing for all samples."""

    def costs_nothing(value: Value) -> bool:
        op = value.op
        return op is None or (not op.operands and op.has(Trait.PURE) and value.tensor.numel == 1)

    return {i for i, value in enumerate(region.results) if costs_nothing(value)}


def _has_effects(region: Region) -> bool:
    return any(op.name == "rg.check" for op in region.walk())


def _places(op: Builder, mask: Value, fresh: Callable[[], Symbol]) -> tuple[Value, Dim]:
    """Where ``mask`` is true, and how often."""
    name = fresh()
    found = op.create("aten.nonzero", (mask,), symbols=(name,)).result
    (count,) = (symbol(s.name, s.lo, s.hi, s.divisor) for s in symbols_in(found.type))
    return op.aten.view(found, (count,)), count


def _picked(op: Builder, whole: Value, places: Value) -> Value:
    return op.aten.index.Tensor(whole, (places,))


def _put(op: Builder, whole: Value, places: Value, values: Value) -> Value:
    return op.aten.index_put(whole, (places,), values, False)
