"""From a function to an eager program: slots for values, templates for arguments, drop points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from regraft.backends.eager.reference import REFERENCE
from regraft.backends.eager.run import CONTROL, EagerExecutable
from regraft.backends.protocol import ConstantStore, LowerOptions
from regraft.errors import BackendError
from regraft.ir import (
    Constant,
    DType,
    Expr,
    Function,
    Op,
    Region,
    Symbol,
    TensorType,
    Trait,
    Value,
    dims,
)
from regraft.runtime import torch_op

#: Dialects whose type rules are tested with regraft.
_OWN_DIALECTS = frozenset({"aten", "rg", "cf"})
_STRUCTURAL = CONTROL | {"rg.const", "cf.yield"}


class EagerBackend:
    """Runs each op by itself, as torch would."""

    name = "eager"

    def supports(self, op: Op) -> str | None:
        """Why ``op``, or an op of its regions, cannot run; None when it can."""
        reason = _unsupported(op)
        for region in op.regions:
            for inner in region.walk():
                reason = reason or _unsupported(inner)
        return reason

    def lower(self, function: Function, store: ConstantStore, options: LowerOptions) -> EagerExecutable:
        """The program of ``function``. Thread counts are torch's own and not changed here.

        Raises:
            BackendError: an op has no eager meaning.
        """
        lowering = _Lowering(store)
        # The signature knows what the inputs' sizes are; only regions work out sizes of their own.
        program = lowering.block(function.body, (), function.symbols)
        return EagerExecutable(program, lowering.tensors, lowering.functions)


def _unsupported(op: Op) -> str | None:
    definition = op.definition
    if definition.eager is not None or op.name in REFERENCE or op.name in _STRUCTURAL:
        return None
    if definition.dialect in ("rg", "cf"):
        return f"'{op.name}' has no eager meaning; the op needs OpDef.eager or a decomposition"
    if torch_op(op.name) is None:
        return f"torch has no op '{op.name}', or it changes its arguments"
    return None


class _Lowering:
    """What all blocks of a program share: constants and user functions by name."""

    def __init__(self, store: ConstantStore) -> None:
        self.store = store
        self.tensors: dict[str, Any] = {}
        self.functions: dict[str, Callable[..., Any]] = {}

    def constant(self, constant: Constant) -> str:
        name = self.store.name(constant)
        if name not in self.tensors:
            self.tensors[name] = self.store.tensor(constant)
        return name

    def block(
        self, region: Region, symbols: Sequence[Symbol], given: Sequence[Symbol] = ()
    ) -> dict[str, Any]:
        """The program of ``region``: it binds ``symbols`` from its arguments' shapes and knows ``given``."""
        known = frozenset((*symbols, *given))
        slots: dict[Value, int] = {value: i for i, value in enumerate(region.args)}
        constants: list[list[Any]] = []
        ops: list[Op] = []
        for op in region.ops:
            slots |= {result: len(slots) + i for i, result in enumerate(op.results)}
            if op.name == "rg.const":
                constants.append([slots[op.result], self.constant(op.attr("value"))])
            elif not op.has(Trait.TERMINATOR):
                ops.append(op)
        kept = {slot for slot, _ in constants} | {slots[v] for v in region.results}
        dead = _dead_after(ops, slots, kept)
        return {
            "inputs": len(region.args),
            "slots": len(slots),
            "constants": constants,
            "symbols": _bindings(symbols, region.args, "the region's arguments"),
            "steps": [self._step(op, slots, dead[i], known) for i, op in enumerate(ops)],
            "results": [slots[v] for v in region.results],
        }

    def _step(
        self, op: Op, slots: Mapping[Value, int], dead: list[int], known: frozenset[Symbol]
    ) -> dict[str, Any]:
        reason = _unsupported(op)
        if reason is not None:
            raise BackendError(reason, backend=EagerBackend.name, op=op.name)
        if op.definition.eager is not None:
            self.functions[op.name] = op.definition.eager
        return {
            "op": op.name,
            "args": {name: _template(value, slots) for name, value in _arguments(op).items()},
            "outputs": [slots[r] for r in op.results],
            "dead": dead,
            "symbols": _defined_symbols(op),
            "regions": [self.block(region, region.symbols) for region in op.regions],
        } | _promised(op, known)


def _promised(op: Op, known: frozenset[Symbol]) -> dict[str, Any]:
    """What a user's op says of its results, to be checked at each call: a rule may be wrong.

    A size that depends on other symbols than ``known`` is left open.
    """
    if op.definition.dialect in _OWN_DIALECTS:
        return {}
    return {"types": [_promise(result.tensor, known) for result in op.results]}


def _promise(type: TensorType, known: frozenset[Symbol]) -> list[Any]:
    shape = [str(d) if known.issuperset(dims.symbols_of(d)) else None for d in type.shape]
    return [type.dtype.value, shape]


def _arguments(op: Op) -> dict[str, Any]:
    """The op's arguments in schema order; a tensor made from nothing also says on which device."""
    bound = op.arguments()
    ordered = {param.name: bound[param.name] for param in op.definition.params}
    if op.definition.dialect == "aten" and not op.operands:
        device = op.results[0].tensor.device
        ordered |= {} if device == "cpu" else {"device": device}
    return ordered


def _dead_after(ops: Sequence[Op], slots: Mapping[Value, int], kept: set[int]) -> list[list[int]]:
    """For each op, the slots that nothing reads after it."""
    last: dict[int, int] = {}
    for position, op in enumerate(ops):
        last |= {slots[v]: position for v in (*op.operands, *op.results)}
    dead: list[list[int]] = [[] for _ in ops]
    for slot, position in last.items():
        if slot not in kept:
            dead[position].append(slot)
    return dead


def _defined_symbols(op: Op) -> list[list[Any]]:
    if op.name == "rg.bind_dim":
        return [[symbol.name, 0, None] for symbol in op.symbols]
    return _bindings(op.symbols, op.results, f"the results of {op.name}")


def _bindings(symbols: Sequence[Symbol], values: Sequence[Value], where: str) -> list[list[Any]]:
    """``[name, index of the value, axis]`` for each of ``symbols``."""
    found: dict[Symbol, list[Any]] = {}
    for index, value in enumerate(values):
        shape = value.type.shape if isinstance(value.type, TensorType) else ()
        for axis, dim in enumerate(shape):
            symbol = dims.as_symbol(dim)
            if symbol in symbols and symbol is not None:
                found.setdefault(symbol, [symbol.name, index, axis])
    missing = [s.name for s in symbols if s not in found]
    if missing:
        raise BackendError(f"no axis of {where} is the size {missing[0]}", backend=EagerBackend.name)
    return list(found.values())


def _template(value: Any, slots: Mapping[Value, int]) -> Any:
    """``value`` in the terms of ``run.py``."""
    if isinstance(value, Value):
        return {"slot": slots[value]}
    if isinstance(value, Expr):
        return {"dim": str(value)}
    if isinstance(value, DType):
        return {"dtype": value.value}
    if isinstance(value, tuple):
        return [_template(v, slots) for v in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise BackendError(f"an attribute is a {type(value).__name__}", backend=EagerBackend.name)
