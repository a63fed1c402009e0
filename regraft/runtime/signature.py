"""From the user's arguments to flat tensors and sizes, and from flat results to the user's value."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from regraft.errors import ShapeError, shown
from regraft.runtime.dims import compile_dim
from regraft.runtime.dtypes import DTYPE_NAMES, TORCH_DTYPES
from regraft.runtime.results import result_builder

#: The types whose elements are their memory.
_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


@dataclass(frozen=True)
class SymbolSpec:
    """A size that the inputs define: axis ``axis`` of input ``input`` is ``scale * symbol + offset``."""

    name: str
    input: int
    axis: int
    lo: int = 0
    hi: int | None = None
    divisor: int = 1
    scale: int = 1
    offset: int = 0

    def solve(self, extent: int, where: str) -> int:
        """The symbol's value when its axis has ``extent`` elements.

        Raises:
            ShapeError: no allowed value gives that extent.
        """
        value, rest = divmod(extent - self.offset, self.scale)
        if rest:
            raise ShapeError(f"{where} is {extent}; it must be {self.scale}*{self.name} + {self.offset}")
        if value < self.lo or (self.hi is not None and value > self.hi):
            upper = "inf" if self.hi is None else str(self.hi)
            raise ShapeError(
                f"{where} is {extent}; the model was compiled for {self.name} in [{self.lo}, {upper}]"
            )
        if value % self.divisor:
            raise ShapeError(f"{where} is {extent}; {self.name} must be a multiple of {self.divisor}")
        return value


@dataclass(frozen=True)
class GuardSpec:
    """What the captured path assumed about sizes: ``left op right``, both as text over symbols."""

    left: str
    op: str
    right: str

    def __str__(self) -> str:
        return f"{self.left} {self.op} {self.right}"


_COMPARISONS: Mapping[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor argument: its name in messages, dtype name, dims as numbers or text, and device."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    device: str = "cpu"


@dataclass(frozen=True)
class ValueSpec:
    """An argument that is not a tensor: capture fixed its value."""

    name: str
    value: Any


@dataclass(frozen=True)
class ParamSpec:
    """One parameter of the model's ``forward``: its leaves, and its structure unless it is one leaf."""

    name: str
    leaves: tuple[TensorSpec | ValueSpec, ...]
    structure: pytree.TreeSpec | None = None


@dataclass(frozen=True)
class Signature:
    """How a compiled function is called.

    Fields:
        params: the captured parameters, in the order of ``forward``.
        positional: names of ``forward``'s positional parameters, captured or not, in order.
        defaults: parameter -> its default, where the captured model computes with that: parameters that
            were not captured, or captured with their default. They may be left out or given as it.
        symbols: the sizes that the inputs define.
        outputs: for each leaf of the result, the index of a flat result or a fixed value.
        out_structure: the result's pytree.
        guards: what must hold between sizes besides the symbols' ranges.
        autocast: the dtype name of the ``torch.autocast`` that the capture ran under, if any.
        returned: flat arguments that are written to and are results themselves; among the flat results they
            come last.
    """

    params: tuple[ParamSpec, ...]
    positional: tuple[str, ...]
    defaults: Mapping[str, Any]
    symbols: tuple[SymbolSpec, ...]
    outputs: tuple[int | ValueSpec, ...]
    out_structure: pytree.TreeSpec
    guards: tuple[GuardSpec, ...] = ()
    autocast: str | None = None
    returned: tuple[int, ...] = ()
    _checks: tuple[_ShapeCheck, ...] = field(init=False, repr=False, compare=False)
    _guards: tuple[Callable[[Mapping[str, int]], bool], ...] = field(init=False, repr=False, compare=False)
    _names: tuple[str, ...] | None = field(init=False, repr=False, compare=False)
    """The parameters when each is one tensor and they are the first positional ones, else None."""
    _result: Callable[[Sequence[Tensor]], Any] = field(init=False, repr=False, compare=False)
    """From the flat results to the user's."""

    def __post_init__(self) -> None:
        solved = {(s.input, s.axis) for s in self.symbols}
        checks = [_ShapeCheck.of(i, spec, solved) for i, spec in enumerate(self.tensors)]
        object.__setattr__(self, "_checks", tuple(checks))
        object.__setattr__(self, "_guards", tuple(_guard(g) for g in self.guards))
        object.__setattr__(self, "_names", _plain_names(self.params, self.positional))
        indices = [o if isinstance(o, int) else None for o in self.outputs]
        values = [None if isinstance(o, int) else o.value for o in self.outputs]
        object.__setattr__(self, "_result", result_builder(indices, values, self.out_structure))

    @functools.cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The flat tensor inputs."""
        leaves = (leaf for param in self.params for leaf in param.leaves)
        return tuple(leaf for leaf in leaves if isinstance(leaf, TensorSpec))

    @property
    def kinds(self) -> set[tuple[torch.dtype, torch.device]]:
        """The floating-point types of the inputs, f32 where there are none, and where they are."""
        found = {(TORCH_DTYPES[t.dtype], torch.device(t.device)) for t in self.tensors}
        floats = {kind for kind in found if kind[0].is_floating_point}
        return floats or {(torch.float32, device) for _, device in found}

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The flat tensors of a call.

        Raises:
            ShapeError: an argument is missing, unexpected, or differs from what was captured in
                structure, type or fixed value.
        """
        return self._plain_call(args, kwargs) or self._any_call(args, kwargs)

    def _plain_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor] | None:
        """The arguments when there is nothing to do but to take them as they come, else None."""
        names = self._names
        if names is None or len(args) + len(kwargs) != len(names):
            return None
        flat = list(args)
        for name in names[len(flat) :]:
            flat.append(kwargs.get(name))
        for value in flat:
            if not isinstance(value, Tensor):
                return None
        return flat

    def _any_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        given = self._by_name(args, kwargs)
        flat: list[Tensor] = []
        for param in self.params:
            if param.name not in given:
                if param.name in self.defaults:
                    continue
                raise ShapeError(f"missing argument '{param.name}'; the model was compiled with it")
            value = given.pop(param.name)
            leaves = [value] if param.structure is None else self._leaves(param, value)
            for leaf, spec in zip(leaves, param.leaves, strict=True):
                if isinstance(spec, TensorSpec):
                    flat.append(_tensor(leaf, spec))
                elif not _same_value(leaf, spec.value):
                    raise ShapeError(
                        f"argument '{spec.name}' is {shown(leaf)}; the model was compiled for "
                        f"{shown(spec.value)}. Compile again for another value"
                    )
        self._refuse_unexpected(given)
        return flat

    def _by_name(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) > len(self.positional):
            raise ShapeError(f"expected at most {len(self.positional)} positional arguments, got {len(args)}")
        given = dict(zip(self.positional, args, strict=False))
        for name, value in kwargs.items():
            if name in given:
                raise ShapeError(f"argument '{name}' is given twice")
            given[name] = value
        return given

    def _refuse_unexpected(self, given: Mapping[str, Any]) -> None:
        for name, value in given.items():
            if name not in self.defaults:
                known = ", ".join(p.name for p in self.params)
                raise ShapeError(f"unexpected argument '{name}'; the model was compiled with: {known}")
            if not _same_value(value, self.defaults[name]):
                raise ShapeError(
                    f"argument '{name}' was not in the example, so the model was compiled for its default, "
                    f"{self.defaults[name]!r}; compile with '{name}' in the example"
                )

    def _leaves(self, param: ParamSpec, value: Any) -> list[Any]:
        if isinstance(value, dict) and param.structure is not None and param.structure.type is dict:
            keys = param.structure.context
            value = {k: value[k] for k in keys} if set(keys) == set(value) else value
        leaves, structure = pytree.tree_flatten(value)
        if structure != param.structure:
            raise ShapeError(
                f"argument '{param.name}' has the structure {structure}; it was captured as {param.structure}"
            )
        return leaves

    def sizes(self, tensors: Sequence[Tensor]) -> dict[str, int]:
        """The value of every symbol in a call; every dtype, device and shape is checked.

        Raises:
            ShapeError: one differs from what the model was compiled for.
        """
        sizes: dict[str, int] = {}
        for check, tensor in zip(self._checks, tensors, strict=True):
            check.kind(tensor)
        for symbol in self.symbols:
            extent = tensors[symbol.input].shape[symbol.axis]
            where = f"dimension {symbol.axis} of '{self._checks[symbol.input].spec.name}'"
            sizes[symbol.name] = symbol.solve(extent, where)
        for check, tensor in zip(self._checks, tensors, strict=True):
            axis = check.wrong_axis(tensor, sizes)
            if axis is not None:
                raise self._wrong_extent(check.spec, axis, tensor, sizes)
        for guard, holds in zip(self.guards, self._guards, strict=True):
            if not holds(sizes):
                values = ", ".join(f"{name} = {value}" for name, value in sizes.items())
                raise ShapeError(
                    f"the model's code takes another path for these sizes ({values}); "
                    f"it was compiled for {guard}. Compile again with an example of such sizes"
                )
        return sizes

    def _wrong_extent(
        self, spec: TensorSpec, axis: int, tensor: Tensor, sizes: Mapping[str, int]
    ) -> ShapeError:
        """The error for an axis that has another size than it must have, and why it must."""
        size = spec.shape[axis]
        found = f"argument '{spec.name}' has shape {list(tensor.shape)}; dimension {axis} must be "
        compiled_for = f"(the model was compiled for {_shape_text(spec)})"
        if isinstance(size, int):
            way_out = "Compile with dynamic_shapes for other sizes"
            if self.symbols:
                way_out = "That size is fixed: dynamic_shapes or batch leaves it out, or the code needs it so"
            return ShapeError(f"{found}{size} {compiled_for}. {way_out}")
        named = [s for s in self.symbols if s.name in re.findall(r"\w+", size)]
        places = {s.name: f"dimension {s.axis} of '{self.tensors[s.input].name}'" for s in named}
        if size in places:
            reason = f"as {places[size]} is"
        else:
            origins = (f"{name} = {sizes[name]} by {where}" for name, where in places.items())
            reason = f"which is {size} with {', '.join(origins)}"
        return ShapeError(f"{found}{compile_dim(size)(sizes)}, {reason} {compiled_for}")

    def unflatten(self, results: Sequence[Tensor]) -> Any:
        """The user's result from the flat results."""
        return self._result(results)


@dataclass(frozen=True)
class _ShapeCheck:
    """The checks of one tensor argument, with its symbolic dims compiled."""

    spec: TensorSpec
    dtype: torch.dtype
    dims: tuple[tuple[int, Any], ...]

    @staticmethod
    def of(index: int, spec: TensorSpec, solved: set[tuple[int, int]]) -> _ShapeCheck:
        axes = [(a, compile_dim(d)) for a, d in enumerate(spec.shape) if (index, a) not in solved]
        return _ShapeCheck(spec, TORCH_DTYPES[spec.dtype], tuple(axes))

    def kind(self, tensor: Tensor) -> None:
        spec = self.spec
        if type(tensor) not in _PLAIN:
            raise ShapeError(
                f"argument '{spec.name}' is a {type(tensor).__name__}; a compiled model reads memory and "
                "runs no subclass's code, so pass a plain torch.Tensor"
            )
        if tensor.layout is not torch.strided:
            layout = str(tensor.layout).removeprefix("torch.").removeprefix("_")
            raise ShapeError(f"argument '{spec.name}' is {layout}; pass {spec.name}.to_dense()")
        if tensor.dtype != self.dtype:
            got = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
            raise ShapeError(
                f"argument '{spec.name}' has dtype {got}; the model was compiled for {spec.dtype}. Pass "
                f"{spec.name}.to({self.dtype}), or compile with an example of that dtype"
            )
        if tensor.dim() != len(spec.shape):
            raise ShapeError(
                f"argument '{spec.name}' has shape {list(tensor.shape)}; "
                f"the model was compiled for {_shape_text(spec)}"
            )
        if tensor.device.type != spec.device:
            raise ShapeError(f"argument '{spec.name}' is on {tensor.device}; the model runs on {spec.device}")

    def wrong_axis(self, tensor: Tensor, sizes: Mapping[str, int]) -> int | None:
        """The first axis that has not its size."""
        return next((axis for axis, size in self.dims if tensor.shape[axis] != size(sizes)), None)


def autocast_dtype(device: str) -> str | None:
    """The dtype name of the ``torch.autocast`` around the caller, None outside of any."""
    return DTYPE_NAMES[torch.get_autocast_dtype(device)] if torch.is_autocast_enabled(device) else None


def _plain_names(params: Sequence[ParamSpec], positional: Sequence[str]) -> tuple[str, ...] | None:
    names = tuple(p.name for p in params)
    plain = all(p.structure is None and isinstance(p.leaves[0], TensorSpec) for p in params)
    return names if plain and names == tuple(positional[: len(names)]) else None


def _shape_text(spec: TensorSpec) -> str:
    return f"[{', '.join(str(d) for d in spec.shape)}]"


def _tensor(leaf: Any, spec: TensorSpec) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf
    way_out = "pass a torch.Tensor"
    if leaf is None:
        way_out = "compile with None in the example for a model without it"
    elif isinstance(leaf, (bool, int, float, complex, list, tuple)) or hasattr(leaf, "__array__"):
        way_out = f"pass torch.as_tensor({spec.name})"
    found = "None" if leaf is None else f"of type {type(leaf).__name__}"
    raise ShapeError(f"argument '{spec.name}' is {found}; the model was compiled for a tensor: {way_out}")


def _same_value(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b))


def _guard(spec: GuardSpec) -> Callable[[Mapping[str, int]], bool]:
    left, right, compare = (
        compile_dim(_text(spec.left)),
        compile_dim(_text(spec.right)),
        _COMPARISONS[spec.op],
    )
    return lambda sizes: compare(left(sizes), right(sizes))


def _text(side: str) -> int | str:
    return int(side) if side.lstrip("-").isdigit() else side
