"""The values of a graph in fp64, on given inputs, while rewrites change the graph around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.graphs import evaluate, op_in_double, region_in_double, type_in_double
from regraft.ir import (
    Constant,
    Function,
    Leaf,
    Op,
    Recipe,
    Region,
    Symbol,
    TensorType,
    Trait,
    Type,
    Value,
    clone_op,
    dims,
    mentioned,
)
from regraft.runtime import TORCH_DTYPES

#: Values are dropped, and computed again when asked for, beyond so many bytes.
BUDGET = 2 << 30


class Reference:
    """The fp64 values of one function on ``inputs``, each computed when first asked for.

    The arguments of a region have the values of its first run. Random ops are drawn once, in the order of
    the questions, and do not touch torch's own generator. An op that torch has no fp64 kernel for runs in
    its own dtype and is listed in ``native``. ``budget`` bounds what is kept between questions.
    """

    def __init__(
        self,
        function: Function,
        inputs: Sequence[Tensor],
        sizes: Mapping[str, int],
        budget: int = BUDGET,
    ) -> None:
        self._known: dict[Value, Tensor] = {
            value: wide(tensor.detach()) for value, tensor in zip(function.args, inputs, strict=True)
        }
        self._kept = set(self._known)
        self._sizes = _Sizes(sizes)
        self._budget = budget
        self.native: dict[str, None] = {}

    def value(self, value: Value) -> Tensor:
        """The value in fp64; integers and bools as they are."""
        pending = [value]
        while pending:
            wanted = pending[-1]
            if wanted in self._known:
                pending.pop()
                continue
            missing = [v for v in self._needs(wanted) if v not in self._known]
            if not missing:
                self._compute(wanted)
            pending += missing
        self._known[value] = self._known.pop(value)  # Now the one used last.
        return self._known[value]

    def in_own_dtype(self, ops: Iterable[Op], result: Value) -> Tensor:
        """``result`` as ``ops``, in order, compute it without widening, from their operands' values."""
        inside = list(ops)
        made = {r for op in inside for r in op.results}
        outer = list(dict.fromkeys(v for op in inside for v in op.operands if v not in made))
        inputs = [narrow(self.value(v), v.type) for v in outer]
        for each in inside:
            for source in self._sizes.sources(each):
                self.value(source)
        (found,) = self._run(inside, outer, inputs, [result], widen=False)
        return wide(found)

    def stands_for(self, new: Value, old: Value) -> None:
        """``new`` has taken the place of ``old``: what the captured graph computed stays the reference."""
        self._known[new] = self.value(old)

    def follow(self, op: Op, number: int) -> None:
        """Let the results of ``op``, a condition or a loop, be what its region ``number`` gives, run once."""
        for result, given in zip(op.results, op.regions[number].results, strict=True):
            self._known[result] = self.value(given)

    def forget(self, op: Op) -> None:
        """``op`` was erased."""
        for result in op.results:
            self._known.pop(result, None)
            self._kept.discard(result)

    def restart(self) -> None:
        """Forget all but the inputs and what random ops drew: the graph has changed unheard."""
        self._known = {value: self._known[value] for value in self._kept}

    def trim(self) -> None:
        """Drop what was not used for longest, down to the budget."""
        total = sum(tensor.nbytes for tensor in self._known.values())
        for value in list(self._known):
            if total <= self._budget:
                return
            if value not in self._kept:
                total -= self._known.pop(value).nbytes

    def runs(self, op: Op) -> bool:
        """Whether ``op`` runs on these inputs: the branches and loop bodies around it are entered."""
        region = op.parent
        if region is None or region.parent is None:
            return True
        outer = region.parent
        if not self.runs(outer):
            return False
        number = outer.regions.index(region)
        if outer.name == "cf.cond":
            return bool(self.value(outer.operand("pred"))) is (number == 0)
        if outer.name == "cf.while" and number == 1:
            return bool(self.value(outer.regions[0].results[0]))
        return True

    def _compute(self, value: Value) -> None:
        op = value.op
        if op is None:
            self._enter(value)
        elif op.name == "rg.const":
            self._known[value] = self._constant(op.attr("value"))
        else:
            outer = list(dict.fromkeys(op.operands))
            inputs = [self._known[v] for v in outer]
            found = self._run([op], outer, inputs, op.results)
            self._known |= {result: wide(t) for result, t in zip(op.results, found, strict=True)}
            if op.has(Trait.RANDOM):
                self._kept.update(op.results)

    def _needs(self, value: Value) -> Sequence[Value]:
        """What ``value`` is computed from."""
        if value.op is not None:
            return [*value.op.operands, *self._sizes.sources(value.op)]
        return (_operand_of(value),) if isinstance(value.owner, Region) and value.owner.parent else ()

    def _enter(self, argument: Value) -> None:
        """A region's argument, from the operands of the op around the region."""
        self._known[argument] = _first_slice(argument, self._known[_operand_of(argument)])

    def _constant(self, constant: Constant) -> Tensor:
        if isinstance(constant, Leaf):
            return wide(constant.storage.detach())
        assert isinstance(constant, Recipe), constant
        body = region_in_double(constant.body)
        (found,) = evaluate(Function("recipe", body), ())
        return wide(found)

    def _run(
        self,
        ops: Sequence[Op],
        outer: Sequence[Value],
        inputs: Sequence[Tensor],
        results: Sequence[Value],
        widen: bool = True,
    ) -> list[Tensor]:
        function = _piece(ops, outer, results, widen)
        sizes = self._sizes.before(ops, self._known)
        with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
            try:
                return evaluate(function, inputs, sizes)
            except (RuntimeError, NotImplementedError):
                # Only a kernel that is missing for fp64 may run in another dtype.
                if not widen or len(ops) != 1 or not _lacks_double(ops[0]):
                    raise
        self.native[ops[0].name] = None
        narrowed = [narrow(t, v.type) for t, v in zip(inputs, outer, strict=True)]
        return self._run(ops, outer, narrowed, results, widen=False)


class _Sizes:
    """The sizes that ops mention: ``own`` ones of a function, and those that values have.

    Two regions may each have another size of one name.
    """

    def __init__(self, own: Mapping[str, int]) -> None:
        self._own = dict(own)
        self._definers: dict[tuple[Region, Symbol], Op] = {}

    def sources(self, op: Op) -> list[Value]:
        """The values that say what the sizes are which ``op`` mentions."""
        return [value for value, _ in self._found(op).values()]

    def before(self, ops: Sequence[Op], known: Mapping[Value, Tensor]) -> dict[str, int]:
        """The sizes that ``ops`` mention, of which those from values are in ``known``."""
        sizes = dict(self._own)
        for op in ops:
            for name, (value, axis) in self._found(op).items():
                # What one of ``ops`` defines itself it tells the others when it runs.
                if value in known:
                    sizes[name] = int(known[value]) if axis is None else known[value].shape[axis]
        return sizes

    def _found(self, op: Op) -> dict[str, tuple[Value, int | None]]:
        foreign = dict.fromkeys(s for s in mentioned(op) if s.name not in self._own and s not in op.symbols)
        found = {symbol.name: self._source(symbol, op) for symbol in foreign}
        return {name: source for name, source in found.items() if source is not None}

    def _source(self, symbol: Symbol, op: Op) -> tuple[Value, int | None] | None:
        """The value that is, or that has as an axis, the size ``symbol`` before ``op``.

        None for one that a region of ``op`` defines.
        """
        before: Op | None = op
        while before is not None and (region := before.parent) is not None:
            if symbol in region.symbols:
                return _axis_of(symbol, region.args)
            definer = self._definer(symbol, region, before)
            if definer is not None and definer.name == "rg.bind_dim":
                return definer.operands[0], None
            if definer is not None:
                return _axis_of(symbol, definer.results)
            before = region.parent
        return None

    def _definer(self, symbol: Symbol, region: Region, before: Op) -> Op | None:
        found = self._definers.get((region, symbol))
        if found is None or found.parent is not region:
            found = next((each for each in region.ops if symbol in each.symbols), None)
            if found is None:
                return None
            self._definers[region, symbol] = found
        return found if found.comes_before(before) else None


def _axis_of(symbol: Symbol, values: Sequence[Value]) -> tuple[Value, int] | None:
    for value in values:
        for axis, size in enumerate(value.type.shape if isinstance(value.type, TensorType) else ()):
            if dims.as_symbol(size) == symbol:
                return value, axis
    return None


def _operand_of(argument: Value) -> Value:
    """The operand that a region's argument has the value of on the first run of the region."""
    assert isinstance(argument.owner, Region)
    outer = argument.owner.parent
    assert outer is not None, "a function's argument has its value from the start"
    operands = outer.variadic("operands") if outer.name in ("cf.cond", "cf.while") else outer.operands
    return operands[argument.index]


def _first_slice(argument: Value, operand: Tensor) -> Tensor:
    """What the region's ``argument`` is on its first run: of an operand that is scanned the first slice."""
    assert isinstance(argument.owner, Region)
    outer = argument.owner.parent
    if outer is None or outer.name != "cf.scan":
        return operand
    first = len(outer.variadic("carried"))
    is_slice = first <= argument.index < first + len(outer.variadic("scanned"))
    return operand[0] if is_slice else operand


def _lacks_double(op: Op) -> bool:
    """Whether ``op`` may be without a kernel for fp64: an op that is not in regraft's own table."""
    return op.definition.opaque or op.definition.eager is not None


def wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def narrow(tensor: Tensor, type: Type) -> Tensor:
    """``tensor`` in the dtype that ``type`` gives it in the model."""
    return tensor.to(TORCH_DTYPES[type.dtype.value]) if isinstance(type, TensorType) else tensor


def _piece(ops: Sequence[Op], outer: Sequence[Value], results: Sequence[Value], widen: bool) -> Function:
    """``ops`` as a function of the values ``outer``."""
    region = Region([type_in_double(v.type) if widen else v.type for v in outer])
    mapping: dict[Value, Value] = dict(zip(outer, region.args, strict=True))
    for op in ops:
        region.append(op_in_double(op, mapping) if widen else clone_op(op, mapping))
    yielded = [mapping[v] for v in results]
    region.append(Op.create(_yield(ops[0]), (yielded,)))
    return Function("piece", region)


def _yield(op: Op) -> Any:
    """The definition of the terminator of the region that ``op`` is in."""
    assert op.parent is not None
    return op.parent.terminator.definition
