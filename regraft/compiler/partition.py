"""Which back end runs what, and the plan that results."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.backends import BUILTIN, Backend, ConstantStore, LowerOptions
from regraft.errors import BackendError, RegraftError, UnsupportedOp, UnsupportedOpError
from regraft.ir import (
    Dim,
    Function,
    Op,
    OpTable,
    Region,
    Symbol,
    Trait,
    Value,
    clone_op,
    decompose,
    dims,
    symbols_in,
)
from regraft.runtime import HOST, Bind, CheckedExecutable, Executable, Plan, Step

#: Ops that belong to every piece and are copied into it.
_COPIED = Trait.CONSTANT_LIKE

#: Whether a back end is asked for an op before those that stand before it in the list.
Prefers = Callable[[Backend, Op], bool]

DRAWS = "it draws from torch's generator: torch runs it, in eager's order"


@dataclass
class Piece:
    """Ops that one back end runs in one call, as a function of their own."""

    backend: Backend
    function: Function
    inputs: tuple[Value, ...]
    results: tuple[Value, ...]
    ops: int
    binds: Mapping[Symbol, tuple[int, int]] = field(default_factory=dict[Symbol, "tuple[int, int]"])
    """The sizes that its values decide: which result has it, and on which axis."""


@dataclass
class Assignment:
    """The back end of each op, and the reasons why preferred ones were passed over."""

    backend: dict[Op, Backend] = field(default_factory=dict[Op, Backend])
    fallbacks: dict[tuple[str, str, str], int] = field(default_factory=dict[tuple[str, str, str], int])


def claims(backend: Backend, op: Op) -> bool:
    """Whether ``backend`` does ``op`` in a way that others have nothing like."""
    claiming: Callable[[Op], bool] | None = getattr(backend, "claims", None)
    return claiming is not None and claiming(op)


def assign(
    function: Function,
    backends: Sequence[Backend],
    fallback: Backend | None,
    table: OpTable,
    random: Backend | None = None,
    host: Backend | None = None,
    prefers: Prefers = claims,
) -> Assignment:
    """Give each op to the first back end that takes it; decompose those that nobody takes.

    Back ends for which ``prefers(backend, op)`` holds come first. Control flow that no back end takes as a
    whole goes to ``host``, if that does, and so does what ``host`` claims.

    An op that draws random numbers goes to ``random``, which must draw them from torch's generator, when no
    back end of the list does; without one it has no executor.

    Raises:
        UnsupportedOpError: ops remain without a back end; all of them, with every reason.
    """
    assignment = Assignment()
    missing: dict[Op, dict[str, str]] = {}
    pending = list(function.body.ops)
    while pending:
        op = pending.pop(0)
        if op.has(Trait.TERMINATOR) or op.has(_COPIED):
            continue
        if host is not None and is_control_flow(op) and claims(host, op):
            assignment.backend[op] = host
            continue
        reasons = _place(op, preferred(backends, op, prefers), assignment)
        if reasons is None:
            continue
        if host is not None and is_control_flow(op):
            reason = host.supports(op)
            if reason is None:
                assignment.backend[op] = host
                continue
            reasons[host.name] = reason
        if _decompose_inside(op, backends, table):
            pending.insert(0, op)
            continue
        parts = decompose(op, table)
        last = random if op.has(Trait.RANDOM) else fallback
        if parts is not None:
            pending = parts + pending
        elif last is not None and last.supports(op) is None:
            assignment.backend[op] = last
            for name, reason in reasons.items():
                key = (op.name, name, DRAWS if op.has(Trait.RANDOM) else reason)
                assignment.fallbacks[key] = assignment.fallbacks.get(key, 0) + 1
        else:
            missing[op] = reasons
    if missing:
        raise UnsupportedOpError(_grouped(missing))
    return assignment


def is_control_flow(op: Op) -> bool:
    """Whether the plan can decide what ``op`` decides."""
    return bool(op.regions) or op.name == "rg.check"


def _place(op: Op, backends: Sequence[Backend], assignment: Assignment) -> dict[str, str] | None:
    """None when a back end took ``op``, else every back end's reason."""
    reasons: dict[str, str] = {}
    for backend in backends:
        reason = refusal(backend, op)
        if reason is None:
            assignment.backend[op] = backend
            return None
        reasons[backend.name] = reason
    return reasons


def preferred(backends: Sequence[Backend], op: Op, prefers: Prefers) -> list[Backend]:
    """``backends`` in the order in which they are asked to take ``op``."""
    return sorted(backends, key=lambda backend: not prefers(backend, op))


def refusal(backend: Backend, op: Op) -> str | None:
    """Why ``backend`` does not take ``op``; None when it does.

    Raises:
        BackendError: it raised, or answered neither with a reason nor with None.
    """
    try:
        reason: Any = backend.supports(op)
    except RegraftError:
        raise
    except Exception as error:
        raise BackendError(
            f"supports failed: {type(error).__name__}: {error}", backend.name, op.name
        ) from error
    if reason is None or (isinstance(reason, str) and reason):
        return reason
    raise BackendError(
        f"supports returned {reason!r}; it returns None, or the reason why not", backend.name, op.name
    )


def lower_piece(piece: Piece, store: ConstantStore, options: LowerOptions) -> Executable:
    """The executable of ``piece``.

    Raises:
        BackendError: its back end refuses it, or gives something else than an executable.
    """
    backend = piece.backend
    try:
        executable: Any = backend.lower(piece.function, store, options)
    except RegraftError:
        raise
    except Exception as error:
        raise BackendError(f"lower failed: {type(error).__name__}: {error}", backend.name) from error
    if not callable(getattr(executable, "run", None)) or getattr(executable, "backend", None) != backend.name:
        raise BackendError(
            f"lower returned {executable!r}, which is no executable: it has no run(), or its 'backend' is "
            f"not '{backend.name}'",
            backend.name,
        )
    return executable if backend.name in (*BUILTIN, HOST) else CheckedExecutable(executable, _promises(piece))


def _promises(piece: Piece) -> list[tuple[str, list[int | str | None]]]:
    """The types of a piece's results; a size that its values decide has None."""
    decided = {symbol for op in piece.function.walk() for symbol in op.symbols}

    def size(dim: Dim) -> int | str | None:
        known = decided.isdisjoint(symbols_in(dim))
        return dim if isinstance(dim, int) else str(dim) if known else None

    types = [value.tensor for value in piece.results]
    return [(type.dtype.value, [size(dim) for dim in type.shape]) for type in types]


def _decompose_inside(op: Op, backends: Sequence[Backend], table: OpTable) -> bool:
    """Decompose the ops in the regions of ``op`` that no back end takes; whether there were any."""
    inner = [each for region in op.regions for each in region.walk() if each.definition.decompose]
    refused = [each for each in inner if all(refusal(backend, each) for backend in backends)]
    return sum(decompose(each, table) is not None for each in refused) > 0


def _grouped(missing: dict[Op, dict[str, str]]) -> tuple[UnsupportedOp, ...]:
    by_name: dict[str, list[Op]] = {}
    for op in missing:
        by_name.setdefault(op.name, []).append(op)
    return tuple(
        UnsupportedOp(
            name,
            len(ops),
            tuple(dict.fromkeys(str(op.loc) for op in ops)),
            {backend: reason for op in ops for backend, reason in missing[op].items()},
        )
        for name, ops in sorted(by_name.items())
    )


def cut(function: Function, assignment: Assignment) -> list[Piece]:
    """The function as pieces in execution order, each as large as the order of data allows.

    Raises:
        BackendError: a piece reads a size that values decide in another piece, and no tensor between has it.
    """
    found = groups(function, assignment)
    results = set(function.results)
    pieces = [piece_of(function, backend, ops, results) for backend, ops in found]
    known = set(function.symbols)
    for piece in pieces:
        _refuse_hidden_sizes(piece, known, assignment)
        known.update(piece.binds)
    return pieces


def _refuse_hidden_sizes(piece: Piece, known: Collection[Symbol], assignment: Assignment) -> None:
    hidden = set(piece.function.symbols).difference(known)
    for op, backend in assignment.backend.items():
        names = sorted(symbol.name for symbol in hidden.intersection(op.symbols))
        if names:
            raise BackendError(
                f"{op.name} at {op.loc} runs in {backend.name} and gives a result as long as its values say "
                f"({', '.join(names)}), which ops of {piece.backend.name} would have to know; "
                f'compile the whole model for one back end, as with backends=("{backend.name}",)',
                piece.backend.name,
                op.name,
            )


def groups(function: Function, assignment: Assignment) -> list[tuple[Backend, list[Op]]]:
    """Runs of ops for one back end: take all that is ready for it before turning to the next."""
    waiting: dict[Op, set[Op]] = {}
    last_draw: set[Op] = set()
    sizes = {symbol: op for op in assignment.backend for symbol in op.symbols}
    for op in function.body.ops:
        if op in assignment.backend:
            waiting[op] = _producers(op, assignment, sizes)
            if _draws(op):
                waiting[op] |= last_draw
                last_draw = {op}
    found: list[tuple[Backend, list[Op]]] = []
    done: set[Op] = set()
    while waiting:
        ready = next(op for op, needs in waiting.items() if needs <= done)
        backend = assignment.backend[ready]
        taken: list[Op] = []
        for op, needs in list(waiting.items()):
            if assignment.backend[op] is backend and needs <= done:
                taken.append(op)
                done.add(op)
                del waiting[op]
                if backend.name == HOST:
                    break
        found.append((backend, taken))
    return found


def _producers(op: Op, assignment: Assignment, sizes: Mapping[Symbol, Op]) -> set[Op]:
    """The ops that ``op`` waits for: those of its operands and of ``sizes`` that it reads."""
    values = {v.op for v in op.operands if v.op is not None and v.op in assignment.backend}
    return values | {sizes[s] for s in _sizes_read([op]) if s in sizes and sizes[s] is not op}


def _sizes_read(ops: Iterable[Op]) -> set[Symbol]:
    """The symbols in the types and attributes of ``ops`` and of what is in their regions, but for those that
    are known in these regions alone.
    """
    given = list(ops)
    inner = [each for op in given for region in op.regions for each in region.walk()]
    inside = [*given, *inner]
    parts = (p for op in inside for p in (*(v.type for v in (*op.operands, *op.results)), *op.attrs.values()))
    own = {symbol for op in inside for region in op.regions for symbol in region.symbols}
    own |= {symbol for op in inner for symbol in op.symbols}
    return {symbol for part in parts for symbol in symbols_in(part)} - own


def _draws(op: Op) -> bool:
    """Whether ``op`` or an op of its regions draws random numbers; such ops keep their order."""
    return op.has(Trait.RANDOM) or any(i.has(Trait.RANDOM) for region in op.regions for i in region.walk())


def piece_of(function: Function, backend: Backend, ops: Sequence[Op], results: Collection[Value]) -> Piece:
    """``ops``, which are in order, as a piece that gives ``results`` and what others read of them."""
    inside = set(ops)
    made = {r for op in ops for r in op.results}
    read = dict.fromkeys(v for op in ops for v in op.operands if v not in made)
    inputs = tuple(v for v in read if not _is_constant(v))
    own = {symbol: r for op in ops for symbol in op.symbols for r in op.results if _has(r, symbol)}
    told = {own[s] for s in _sizes_read(op for op in function.body.ops if op not in inside) if s in own}
    outputs = tuple(
        r
        for op in ops
        for r in op.results
        if r in results or r in told or any(use.op not in inside for use in r.uses)
    )
    foreign = _sizes_read(ops).difference(function.symbols, (s for op in ops for s in op.symbols))
    region = Region([v.type for v in inputs])
    mapping: dict[Value, Value] = {}
    for outer, inner in zip(inputs, region.args, strict=True):
        inner.hint = outer.hint
        mapping[outer] = inner
    for constant in (v.op for v in read if _is_constant(v)):
        assert constant is not None
        region.append(clone_op(constant, mapping))
    for op in ops:
        region.append(clone_op(op, mapping))
    region.append(Op.create(function.body.terminator.definition, ([mapping[v] for v in outputs],)))
    symbols = (*function.symbols, *sorted(foreign, key=lambda symbol: symbol.name))
    piece = Function(f"{function.name}_{backend.name}", region, symbols)
    return Piece(backend, piece, inputs, outputs, len(ops), binds_of(own, outputs))


def binds_of(symbols: Iterable[Symbol], values: Sequence[Value]) -> dict[Symbol, tuple[int, int]]:
    """Where ``values`` have the sizes ``symbols``, as far as they do: the number of a value, and an axis."""
    found: dict[Symbol, tuple[int, int]] = {}
    for symbol in symbols:
        for number, value in enumerate(values):
            if _has(value, symbol):
                found.setdefault(symbol, (number, _axis(value, symbol)))
    return found


def _has(value: Value, symbol: Symbol) -> bool:
    return any(dims.as_symbol(size) == symbol for size in value.tensor.shape)


def _axis(value: Value, symbol: Symbol) -> int:
    return next(axis for axis, size in enumerate(value.tensor.shape) if dims.as_symbol(size) == symbol)


def as_text(binds: Mapping[Symbol, tuple[int, int]]) -> tuple[Bind, ...]:
    """``binds`` for the runtime."""
    return tuple((symbol.name, *place) for symbol, place in binds.items())


def _is_constant(value: Value) -> bool:
    return value.op is not None and value.op.has(_COPIED)


def make_plan(
    function: Function,
    pieces: Sequence[Piece],
    fallback: Backend,
    store: ConstantStore,
    options: LowerOptions,
    results: Sequence[Value],
) -> Plan:
    """Lower every piece and number the values between them; the plan's results are ``results``."""
    pieces = [*pieces, *_constant_results(function, fallback)]

    def portable(piece: Function) -> Executable:
        return fallback.lower(piece, store, LowerOptions())

    options = replace(options, portable=portable)
    slots: dict[Value, int] = {value: i for i, value in enumerate(function.args)}
    for piece in pieces:
        for value in piece.results:
            slots.setdefault(value, len(slots))
    last_read = {v: i for i, piece in enumerate(pieces) for v in piece.inputs}
    kept = {*function.args, *function.results}
    steps = tuple(
        Step(
            lower_piece(piece, store, options),
            tuple(slots[v] for v in piece.inputs),
            tuple(slots[v] for v in piece.results),
            tuple(slots[v] for v, i in last_read.items() if i == index and v not in kept),
            as_text(piece.binds),
        )
        for index, piece in enumerate(pieces)
    )
    return Plan(len(function.args), len(slots), steps, tuple(slots[v] for v in results))


def _constant_results(function: Function, backend: Backend) -> Iterable[Piece]:
    """A piece for results that are constants: no op computes them, yet each call returns them fresh."""
    constants = tuple(dict.fromkeys(v for v in function.results if _is_constant(v)))
    if constants:
        region = Region()
        mapping: dict[Value, Value] = {}
        for value in constants:
            assert value.op is not None
            region.append(clone_op(value.op, mapping))
        definition = function.body.terminator.definition
        region.append(Op.create(definition, ([mapping[v] for v in constants],)))
        yield Piece(backend, Function(f"{function.name}_constants", region), (), constants, 0)
