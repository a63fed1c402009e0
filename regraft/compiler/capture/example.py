"""The example arguments of a capture: by parameter, with the sizes that may vary."""

# torch's dynamic shape specs are untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import Dim
from torch.utils import _pytree as pytree

from regraft.errors import CaptureError, OptionError
from regraft.ir import TensorType, dims
from regraft.runtime import Signature, TensorSpec


@dataclass(frozen=True)
class CallForm:
    """How a model's ``forward`` is called: its positional names and its parameters' defaults."""

    positional: tuple[str, ...]
    defaults: Mapping[str, Any]
    required: tuple[str, ...] = ()

    @staticmethod
    def of(function: Callable[..., Any], n_args: int) -> CallForm:
        positional: list[str] = []
        defaults: dict[str, Any] = {}
        required: list[str] = []
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError) as error:
            name = getattr(function, "__name__", "f")
            raise OptionError(f"{function} has no signature; wrap it: lambda x: {name}(x)") from error
        for name, parameter in parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional += [f"{name}_{i}" for i in range(n_args - len(positional))]
            elif parameter.kind is not parameter.VAR_KEYWORD:
                if parameter.kind is not parameter.KEYWORD_ONLY:
                    positional.append(name)
                if parameter.default is not parameter.empty:
                    defaults[name] = parameter.default
                else:
                    required.append(name)
        return CallForm(tuple(positional), defaults, tuple(required))


@dataclass(frozen=True)
class Call:
    """A model with its example arguments.

    Fields:
        module: the model, or the module that stands for a function.
        form: how it is called.
        arguments: by parameter, in the order of ``forward``.
        n_args: how many of them, the first ones, are positional.
    """

    module: torch.nn.Module
    form: CallForm
    arguments: Mapping[str, Any]
    n_args: int

    @staticmethod
    def of(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Call:
        """The call of ``module`` with ``args`` and ``kwargs``.

        Raises:
            OptionError: they are no arguments of ``forward``.
        """
        form = CallForm.of(module.forward, len(args))
        return Call(module, form, by_parameter(form, args, named(kwargs)), len(args))


def named(kwargs: Any) -> dict[str, Any]:
    """The example's arguments by name.

    Raises:
        OptionError: they are no dict.
    """
    if kwargs is not None and not isinstance(kwargs, Mapping):
        kind = type(kwargs).__name__
        raise OptionError(f"kwargs is a {kind}; pass a dict of the arguments by name: kwargs={{'x': x}}")
    return dict(kwargs or {})  # pyright: ignore[reportUnknownArgumentType]


def by_parameter(form: CallForm, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by parameter name, in the order of ``forward``."""
    if isinstance(args, torch.Tensor):
        raise OptionError("args is a tensor; pass a tuple of the positional arguments: args=(x,)")
    if len(args) > len(form.positional):
        raise OptionError(
            f"args has {len(args)} values; the model takes {len(form.positional)} positional ones"
        )
    arguments = dict(zip(form.positional, args, strict=False))
    for name in kwargs:
        if name in arguments:
            raise OptionError(f"'{name}' is given in args and in kwargs")
    missing = [n for n in form.required if n not in arguments and n not in kwargs]
    if missing:
        raise OptionError(f"the example lacks the argument '{missing[0]}'; pass it in args or kwargs")
    ordered = [n for n in (*form.positional, *form.defaults) if n in kwargs]
    rest = [n for n in kwargs if n not in ordered]
    return arguments | {name: kwargs[name] for name in (*dict.fromkeys(ordered), *rest)}


def split(arguments: Mapping[str, Any], n_args: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    values = tuple(arguments.values())
    return values[:n_args], dict(list(arguments.items())[n_args:])


def shapes_by_parameter(form: CallForm, arguments: Mapping[str, Any], shapes: Any) -> dict[str, Any]:
    if shapes is None:
        return {}
    if isinstance(shapes, (tuple, list)):
        if len(shapes) > len(form.positional):
            raise OptionError(f"dynamic_shapes has {len(shapes)} entries, more than there are arguments")
        shapes = dict(zip(form.positional, shapes, strict=False))
    if not isinstance(shapes, Mapping):
        raise OptionError(f"dynamic_shapes is a {type(shapes).__name__}; expected a dict by argument name")
    for name in shapes:
        if name not in arguments:
            raise OptionError(
                f"dynamic_shapes names '{name}', which is not among the arguments: {', '.join(arguments)}"
            )
    return {name: spec for name, spec in shapes.items() if spec is not None}


def torch_shapes(shapes: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: shapes.get(name) for name in arguments}


def dynamic_axes(value: Any, spec: Any) -> Iterator[tuple[torch.Tensor, dict[int, Any]]]:
    """Each tensor of ``value`` in pytree order, with the axes that ``spec`` leaves open.

    Raises:
        OptionError: an axis does not exist.
    """
    if isinstance(value, torch.Tensor):
        yield value, _open_axes(value, spec)
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from dynamic_axes(child, spec.get(key) if isinstance(spec, Mapping) else None)
    elif isinstance(value, (list, tuple)):
        specs = spec if isinstance(spec, (list, tuple)) and len(spec) == len(value) else [None] * len(value)
        for child, own in zip(value, specs, strict=True):
            yield from dynamic_axes(child, own)
    else:
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, torch.Tensor):
                yield leaf, {}


def _open_axes(tensor: torch.Tensor, spec: Any) -> dict[int, Any]:
    listed = dict(enumerate(spec)) if isinstance(spec, (list, tuple)) else spec
    if not isinstance(listed, Mapping):
        return {}
    for axis in listed:
        if not isinstance(axis, int) or not 0 <= axis < tensor.dim():
            raise OptionError(
                f"dynamic_shapes names the axis {axis!r} of a tensor of shape {list(tensor.shape)}"
            )
    return {
        a: d for a, d in listed.items() if d is not None and d is not Dim.STATIC and not isinstance(d, int)
    }


def _derived(size: Any, root: dims.Expr) -> dims.Dim:
    """``size``, a ``Dim`` that is derived from another one, where that is ``root``."""
    return size.fn(root)


def size_names(
    inputs: Sequence[TensorType], arguments: Mapping[str, Any], shapes: Mapping[str, Any]
) -> dict[str, str]:
    """Symbol -> the name of the ``Dim`` that the user gave it, where there is one.

    ``inputs`` are the types of the tensors in ``arguments``. A ``Dim`` that is derived from another one, as
    ``2 * batch``, names that one's symbol.
    """
    names: dict[str, str] = {}
    found = (axes for name, value in arguments.items() for _, axes in dynamic_axes(value, shapes.get(name)))
    for type, axes in zip(inputs, found, strict=False):
        for axis, given in axes.items():
            if not isinstance(given, Dim):
                continue
            size, root = type.shape[axis], getattr(given, "root", given)
            for symbol in dims.symbols_of(size):
                derived = dims.as_expr(symbol) if root is given else _derived(given, dims.as_expr(symbol))
                if derived == size:
                    names.setdefault(symbol.name, root.__name__)
    return names


def widened(arguments: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as they are traced: no tensor twice, and at least two elements along each open axis.

    torch.export takes one tensor given twice for one input, and specialises a size of 0 or 1 to that
    number, silently with ``Dim.AUTO``.
    """
    axes = {id(t): a for n, v in arguments.items() for t, a in dynamic_axes(v, shapes.get(n))}
    seen: set[int] = set()

    def widen(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        tensor = leaf.clone() if id(leaf) in seen else leaf
        seen.add(id(leaf))
        for axis in axes.get(id(leaf), {}):
            if tensor.shape[axis] == 1:
                tensor = tensor.repeat_interleave(2, axis)
        return tensor

    return {name: pytree.tree_map(widen, value) for name, value in arguments.items()}


def check_dynamic(signature: Signature, arguments: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    """Refuse a capture that turned a size the user left open into a number."""
    for param in signature.params:
        leaves = [leaf for leaf in param.leaves if isinstance(leaf, TensorSpec)]
        found = dynamic_axes(arguments.get(param.name), shapes.get(param.name))
        for leaf, (_, axes) in zip(leaves, found, strict=False):
            fixed = [axis for axis in axes if isinstance(leaf.shape[axis], int)]
            if fixed:
                raise CaptureError(
                    f"dimension {fixed[0]} of '{leaf.name}' was asked to be dynamic, but the model's code, "
                    f"or another argument that is static, fixes it to {leaf.shape[fixed[0]]}",
                    hint="leave it out of dynamic_shapes, make the other argument dynamic too, or remove "
                    "what depends on the size; a loop over it may stay as `for i in range(x.shape[0])`",
                )
