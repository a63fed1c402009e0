"""Runs eager programs: a flat list of calls over numbered slots, JSON in an artefact.

An argument is a template: a JSON value stands for itself, a list for a list of templates, and an
object with one key for what JSON lacks: ``{"slot": 3}``, ``{"dim": "2*s0"}``, ``{"dtype": "bf16"}``,
``{"float": "inf"}``, ``{"complex": [0.0, 1.0]}``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.backends.eager.reference import REFERENCE
from regraft.errors import ArtefactError, BackendError
from regraft.runtime import (
    MEMORY_ORDER,
    TORCH_DTYPES,
    ArtefactReader,
    ArtefactWriter,
    compile_dim,
    torch_op,
)

Slots = list[Any]
Sizes = Mapping[str, int]
Getter = Callable[[Slots, Sizes], Any]
Record = Mapping[str, Any]

#: Ops that the interpreter runs itself.
CONTROL = frozenset({"cf.cond", "cf.while", "cf.scan", "rg.alt", "rg.bind_dim"})


class EagerExecutable:
    """A program with its constants."""

    backend = "eager"

    def __init__(
        self,
        program: Record,
        constants: Mapping[str, Tensor],
        functions: Mapping[str, Callable[..., Any]] | None = None,
        *,
        loaded: bool = False,
    ) -> None:
        self._record = program
        self._loaded = loaded
        self._constants = dict(constants)
        self._functions = dict(functions or {})
        self._program = Program(program, self._constants, self._functions)
        self._owned = frozenset(_storage(t) for t in self._constants.values())

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        """The results, each in memory of its own.

        Raises:
            BackendError: an input has no memory.
        """
        try:
            taken = {_storage(t) for t in inputs}
        except NotImplementedError as error:
            raise BackendError(
                f"an argument has no memory to read, as under torch.func transforms: {error}",
                backend=self.backend,
            ) from error
        with torch.no_grad(), _no_autocast():
            return self._separate(self._results(inputs, sizes), taken | self._owned)

    def _results(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        try:
            return self._program.run(inputs, sizes)
        except (AttributeError, LookupError, TypeError) as error:
            if not self._loaded:
                raise
            # A program from a file may say anything: what it asks of Python is its own fault.
            raise BackendError(f"the program is malformed: {error!r}", backend=self.backend) from error

    def _separate(self, results: Sequence[Tensor], taken: set[int]) -> list[Tensor]:
        """``results`` with a copy in place of each that is not alone in its memory, or in ``taken``."""
        fresh: list[Tensor] = []
        for result in results:
            if not isinstance(result, Tensor):  # only where a file says so
                raise BackendError("the program gives what is no tensor", backend=self.backend)
            if _storage(result) in taken or _is_part(result):
                result = result.clone(memory_format=torch.contiguous_format)
            taken.add(_storage(result))
            fresh.append(result)
        return fresh

    def save(self, writer: ArtefactWriter) -> dict[str, Any]:
        """The program; its constants go to ``writer`` under their names.

        Raises:
            BackendError: the program calls a user's Python function.
        """
        if self._functions:
            name = next(iter(self._functions))
            raise BackendError(
                f"'{name}' runs as a Python function (OpDef.eager), which cannot be saved; give the op a "
                "lowering or a decomposition",
                backend=self.backend,
                op=name,
            )
        for name, tensor in self._constants.items():
            writer.add_tensor(name, tensor)
        return {"program": self._record, "constants": list(self._constants)}


def _no_autocast() -> contextlib.AbstractContextManager[Any]:
    """The casts of an autocast are in the graph already."""
    if torch.is_autocast_enabled("cpu"):
        return torch.autocast("cpu", enabled=False)
    return contextlib.nullcontext()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_part(tensor: Tensor) -> bool:
    """Whether the tensor is not a whole, row-major buffer (and may keep a larger one alive)."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return not whole or not tensor.is_contiguous()


def load(record: Record, reader: ArtefactReader) -> EagerExecutable:
    """The executable that ``save`` wrote.

    Raises:
        ArtefactError: the program names an op that this version of torch does not have.
    """
    constants = {name: reader.tensor(name) for name in record["constants"]}
    try:
        return EagerExecutable(record["program"], constants, loaded=True)
    except BackendError as error:
        raise ArtefactError(str(error)) from error


class Program:
    """A compiled block: its arguments fill the first slots, its constants are there already."""

    def __init__(
        self, record: Record, constants: Mapping[str, Tensor], functions: Mapping[str, Callable[..., Any]]
    ) -> None:
        self._inputs: int = record["inputs"]
        # A file may claim any number of slots: memory is taken for those only that something fills.
        filled = len(record["constants"]) + sum(len(step["outputs"]) for step in record["steps"])
        if not 0 <= record["slots"] - self._inputs <= filled:
            raise BackendError("the program has other slots than it fills", backend="eager")
        self._rest: Slots = [None] * (record["slots"] - self._inputs)
        for slot, name in record["constants"]:
            self._rest[slot - self._inputs] = constants[name]
        self._symbols = [tuple(row) for row in record["symbols"]]
        self._steps = [_step(step, constants, functions) for step in record["steps"]]
        self._results: list[int] = list(record["results"])
        self._binds = bool(self._symbols) or any(step["symbols"] for step in record["steps"])

    def run(self, inputs: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        if len(inputs) != self._inputs:
            raise BackendError(f"the program has {self._inputs} inputs, not {len(inputs)}", backend="eager")
        slots: Slots = [*inputs, *self._rest]
        known = dict(sizes) if self._binds else sizes
        for name, position, axis in self._symbols:
            known[name] = inputs[position].shape[axis]  # type: ignore[index]
        for step in self._steps:
            step(slots, known)
        return [slots[i] for i in self._results]


Step = Callable[[Slots, Any], None]


def _step(
    record: Record, constants: Mapping[str, Tensor], functions: Mapping[str, Callable[..., Any]]
) -> Step:
    """One step as a function that fills its result slots and empties the slots that are done with."""
    outputs, dead = tuple(record["outputs"]), tuple(record["dead"])
    symbols = [tuple(row) for row in record["symbols"]]
    call = _call(record, constants, functions)
    if "types" in record:
        call = _checked(record["op"], call, record["types"])

    def execute(slots: Slots, sizes: MutableMapping[str, int]) -> None:
        found = call(slots, sizes)
        results = found if isinstance(found, (tuple, list)) else (found,)
        for slot, result in zip(outputs, results, strict=False):
            slots[slot] = result
        for name, position, axis in symbols:
            # A result gives the symbol as an extent; without an axis the op's value is the symbol.
            sizes[name] = int(results[position]) if axis is None else results[position].shape[axis]
        for slot in dead:
            slots[slot] = None

    return execute


def _checked(name: str, call: Getter, types: Sequence[Any]) -> Getter:
    """``call``, whose results must be of ``types``: others would be misread by whoever takes them."""
    expected = [(TORCH_DTYPES[dtype], [_size(d) for d in shape]) for dtype, shape in types]

    def checked(slots: Slots, sizes: Sizes) -> Any:
        found = call(slots, sizes)
        results = found if isinstance(found, (tuple, list)) else (found,)
        if len(results) != len(expected):
            raise _lie(name, f"{len(results)} results", f"{len(expected)}")
        for result, (dtype, shape) in zip(results, expected, strict=True):
            sizes_now = [None if size is None else size(sizes) for size in shape]
            if not isinstance(result, Tensor) or result.dtype != dtype or not _fits(result.shape, sizes_now):
                raise _lie(name, _described(result), f"{dtype} {sizes_now}")
        return found

    return checked


def _size(text: str | None) -> Callable[[Sizes], int] | None:
    if text is None:
        return None
    return compile_dim(int(text) if text.isdigit() else text)


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(
        b is None or a == b for a, b in zip(shape, expected, strict=True)
    )


def _described(result: Any) -> str:
    return (
        f"{result.dtype} {list(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
    )


def _lie(name: str, found: str, expected: str) -> BackendError:
    return BackendError(
        f"'{name}' gave {found} where its type rule, or its fake function, promised {expected}; mend that",
        backend="eager",
        op=name,
    )


def _call(
    record: Record, constants: Mapping[str, Tensor], functions: Mapping[str, Callable[..., Any]]
) -> Getter:
    """The value of a step from slots and sizes: a tensor, or a sequence of them."""
    name: str = record["op"]
    arguments = {key: _template(value) for key, value in record["args"].items()}
    regions = [Program(region, constants, functions) for region in record["regions"]]
    if name == "cf.cond":
        return _condition(arguments["pred"], arguments["operands"], regions)
    if name == "cf.while":
        return _loop(arguments["operands"], regions)
    if name == "cf.scan":
        return _scan(arguments, regions[0], len(record["outputs"]))
    if name == "rg.alt":
        return _alternatives(arguments, regions)
    if name == "rg.bind_dim":
        return arguments["x"]
    function = functions.get(name) or REFERENCE.get(name)
    if function is not None:
        return _apply(function, list(arguments.values()), {})
    overload = torch_op(name)
    if overload is None:
        raise BackendError(
            f"torch has no such op here; import the package that registers '{name}' first, or name its "
            "plug-in: load(path, plugins=[...])",
            backend="eager",
            op=name,
        )
    named = {a.name for a in overload._schema.arguments if a.kwarg_only}
    if MEMORY_ORDER in arguments:
        arguments = _laid_out(arguments, record["args"])
    positional = [getter for key, getter in arguments.items() if key not in named]
    return _apply(overload, positional, {key: g for key, g in arguments.items() if key in named})


def _apply(function: Callable[..., Any], positional: list[Getter], keyword: dict[str, Getter]) -> Getter:
    if not keyword:
        return lambda slots, sizes: function(*[get(slots, sizes) for get in positional])
    return lambda slots, sizes: function(
        *[get(slots, sizes) for get in positional],
        **{key: get(slots, sizes) for key, get in keyword.items()},
    )


def _laid_out(arguments: Mapping[str, Getter], templates: Mapping[str, Any]) -> dict[str, Getter]:
    """The arguments of a random op, its operands laid out in memory as they were when it was captured."""
    orders = iter(templates[MEMORY_ORDER] or ())
    return {
        key: _in_order(getter, next(orders, None)) if _is_slot(templates[key]) else getter
        for key, getter in arguments.items()
        if key != MEMORY_ORDER
    }


def _is_slot(template: Any) -> bool:
    return isinstance(template, dict) and "slot" in template


def _in_order(getter: Getter, order: Sequence[int] | None) -> Getter:
    """What ``getter`` gives, with the axes in ``order`` in memory; row-major without one."""
    if order is None:
        return lambda slots, sizes: getter(slots, sizes).contiguous()
    back = sorted(range(len(order)), key=order.__getitem__)
    return lambda slots, sizes: getter(slots, sizes).permute(order).contiguous().permute(back)


def _condition(pred: Getter, operands: Getter, regions: Sequence[Program]) -> Getter:
    then, other = regions

    def call(slots: Slots, sizes: Sizes) -> Any:
        branch = then if bool(pred(slots, sizes)) else other
        return branch.run(operands(slots, sizes), sizes)

    return call


def _scan(arguments: Mapping[str, Getter], body: Program, results: int) -> Getter:
    def call(slots: Slots, sizes: Sizes) -> Any:
        carried, scanned, fixed = (arguments[name](slots, sizes) for name in ("carried", "scanned", "fixed"))
        count = len(carried)
        rows: list[list[Tensor]] = [[] for _ in range(results - count)]
        for slices in zip(*(tensor.unbind(0) for tensor in scanned), strict=True):
            made = body.run([*carried, *slices, *fixed], sizes)
            carried = made[:count]
            for row, each in zip(rows, made[count:], strict=True):
                row.append(each)
        if rows and not len(scanned[0]):  # a trip that is thrown away tells what rows would be
            slices = [tensor.new_zeros(tensor.shape[1:]) for tensor in scanned]
            made = body.run([*carried, *slices, *fixed], sizes)
            return [*carried, *(each.new_empty((0, *each.shape)) for each in made[count:])]
        return [*carried, *map(torch.stack, rows)]

    return call


def _loop(operands: Getter, regions: Sequence[Program]) -> Getter:
    condition, body = regions

    def call(slots: Slots, sizes: Sizes) -> Any:
        carried = operands(slots, sizes)
        while bool(condition.run(carried, sizes)[0]):
            carried = body.run(carried, sizes)
        return carried

    return call


def _alternatives(arguments: Mapping[str, Getter], regions: Sequence[Program]) -> Getter:
    operands, rows, cuts, order = (arguments[name] for name in ("operands", "rows", "cuts", "order"))

    def call(slots: Slots, sizes: Sizes) -> Any:
        count = rows(slots, sizes)
        passed = sum(cut <= count for cut in cuts(slots, sizes))
        return regions[order(slots, sizes)[passed]].run(operands(slots, sizes), sizes)

    return call


def _template(value: Any) -> Getter:
    """A function from slots and sizes to the argument that ``value`` describes."""
    if isinstance(value, list):
        return _list(value)
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind == "slot":
            return lambda slots, sizes: slots[content]
        if kind == "dim":
            size = compile_dim(content)
            return lambda slots, sizes: size(sizes)
        value = _LITERALS[kind](content)
    return lambda slots, sizes: value


def _list(values: list[Any]) -> Getter:
    if not any(isinstance(v, (list, dict)) for v in values):
        return lambda slots, sizes: values
    getters = [_template(v) for v in values]
    return lambda slots, sizes: [get(slots, sizes) for get in getters]


_LITERALS: dict[str, Callable[[Any], Any]] = {
    "dtype": lambda name: TORCH_DTYPES[name],
    "float": float,
    "complex": lambda parts: complex(*parts),
}
