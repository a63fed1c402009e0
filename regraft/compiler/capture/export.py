"""Capture through ``torch.export``.

``torch.export`` gives the graph and is the oracle for numerics; ``run_decompositions({})`` makes it
functional while keeping the composites that fusions want. What follows here is about arguments: how
the user calls the model, which sizes may vary, and errors that point at the user's line.
"""

# torch's export and fx classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import functools
import inspect
import linecache
import logging
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from regraft.compiler.capture.importer import import_program
from regraft.errors import CaptureError, OptionError
from regraft.ir import Module, OpTable

_TORCH = str(Path(torch.__file__).parent)
_REGRAFT = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Captured:
    """A captured model.

    Fields:
        module: its graph, as captured.
        args, kwargs: the example arguments as they were traced; empty, with ``traced`` false, when
            an exported program came without its example.
        seconds: time for export, decompositions and import.
    """

    module: Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seconds: dict[str, float]
    traced: bool = True


@dataclass(frozen=True)
class CallForm:
    """How a model's ``forward`` is called: its positional names and its parameters' defaults."""

    positional: tuple[str, ...]
    defaults: Mapping[str, Any]

    @staticmethod
    def of(function: Callable[..., Any], n_args: int) -> CallForm:
        positional: list[str] = []
        defaults: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional += [f"{name}_{i}" for i in range(n_args - len(positional))]
            elif parameter.kind is not parameter.VAR_KEYWORD:
                if parameter.kind is not parameter.KEYWORD_ONLY:
                    positional.append(name)
                if parameter.default is not parameter.empty:
                    defaults[name] = parameter.default
        return CallForm(tuple(positional), defaults)


class _FunctionModule(torch.nn.Module):
    """A plain function as a module, which is all that ``torch.export`` takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = _named_forward(function)


def _named_forward(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of ``function`` whose code is called ``forward``: torch records source lines of no other."""
    if not isinstance(function, FunctionType):
        return function
    code = function.__code__.replace(co_name="forward")
    copy = FunctionType(code, function.__globals__, "forward", function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(copy, function)


def capture_model(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    table: OpTable,
) -> Captured:
    """Capture ``model`` called with ``args`` and ``kwargs``.

    ``model`` is an ``nn.Module`` in eval mode, an ``ExportedProgram`` or a function of tensors.
    ``dynamic_shapes`` is as in ``torch.export.export``, or keyed by parameter name.

    Raises:
        OptionError: the model is in training mode, or an argument has no use.
        CaptureError: the model's Python cannot be turned into a graph.
    """
    if isinstance(model, ExportedProgram):
        return _import_exported(model, table)
    module = _as_module(model)
    form = CallForm.of(module.forward, len(args))
    arguments = _by_parameter(form, args, dict(kwargs or {}))
    shapes = _shapes_by_parameter(form, arguments, dynamic_shapes)
    widened = {name: _widen(value, shapes.get(name)) for name, value in arguments.items()}
    traced_args, traced_kwargs = _split(form, widened, len(args))
    start = time.perf_counter()
    with _pointing_at_user_code(), _quiet_export(), torch.no_grad():
        program = torch.export.export(
            module,
            traced_args,
            traced_kwargs,
            dynamic_shapes=_torch_shapes(shapes, widened) if shapes else None,
            strict=False,
        )
    exported = time.perf_counter()
    with _pointing_at_user_code(), _quiet_export():
        program = program.run_decompositions({})
    decomposed = time.perf_counter()
    imported = import_program(program, table, tuple(widened), form.positional, form.defaults)
    _check_dynamic(imported, shapes, widened)
    seconds = {
        "export": exported - start,
        "decompositions": decomposed - exported,
        "import": time.perf_counter() - decomposed,
    }
    return Captured(imported, traced_args, traced_kwargs, seconds)


def _import_exported(program: ExportedProgram, table: OpTable) -> Captured:
    start = time.perf_counter()
    with _quiet_export():
        program = program.run_decompositions({})
    entry = program.module_call_graph[0].signature
    names = tuple(entry.forward_arg_names or ()) if entry is not None else ()
    example = program.example_inputs
    args, kwargs = example or ((), {})
    names = names or tuple([f"arg{i}" for i in range(len(args))] + list(kwargs))
    module = import_program(program, table, names, names[: len(args)], {})
    seconds = {"import": time.perf_counter() - start}
    return Captured(module, tuple(args), dict(kwargs), seconds, traced=example is not None)


def _as_module(model: Any) -> torch.nn.Module:
    if not isinstance(model, torch.nn.Module):
        if not callable(model):
            raise OptionError(
                f"model is a {type(model).__name__}; expected an nn.Module, an ExportedProgram or a function"
            )
        return _FunctionModule(model).eval()
    if model.training:
        raise OptionError(
            "the model is in training mode; call model.eval() first: regraft compiles inference"
        )
    trained = next((name for name, m in model.named_modules() if m.training and _mode_matters(m)), None)
    if trained is not None:
        raise OptionError(f"the submodule '{trained}' is in training mode; call model.eval() first")
    return model


def _mode_matters(module: torch.nn.Module) -> bool:
    dropout = isinstance(module, torch.nn.modules.dropout._DropoutNd)  # pyright: ignore[reportPrivateUsage]
    return dropout or isinstance(module, torch.nn.modules.batchnorm._NormBase)  # pyright: ignore[reportPrivateUsage]


def _by_parameter(form: CallForm, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
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
    ordered = [n for n in (*form.positional, *form.defaults) if n in kwargs]
    rest = [n for n in kwargs if n not in ordered]
    return arguments | {name: kwargs[name] for name in (*dict.fromkeys(ordered), *rest)}


def _split(
    form: CallForm, arguments: Mapping[str, Any], n_args: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    values = tuple(arguments.values())
    return values[:n_args], dict(list(arguments.items())[n_args:])


def _shapes_by_parameter(form: CallForm, arguments: Mapping[str, Any], shapes: Any) -> dict[str, Any]:
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


def _torch_shapes(shapes: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: shapes.get(name) for name in arguments}


def _dynamic_axes(spec: Any) -> dict[int, Any]:
    """Axis -> dimension for the axes that ``spec`` leaves open; nested specs are torch's affair."""
    items = (
        spec.items()
        if isinstance(spec, Mapping)
        else enumerate(spec)
        if isinstance(spec, (tuple, list))
        else ()
    )
    return {a: d for a, d in items if isinstance(a, int) and d is not None and d is not Dim.STATIC}


def _widen(value: Any, spec: Any) -> Any:
    """``value`` with at least two elements along each dynamic axis.

    torch.export specialises a size of 0 or 1 to that number, silently with ``Dim.AUTO``.
    """
    if not isinstance(value, torch.Tensor):
        return value
    for axis in _dynamic_axes(spec):
        if axis < value.dim() and value.shape[axis] == 1:
            value = value.repeat_interleave(2, axis)
    return value


def _check_dynamic(module: Module, shapes: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Refuse a capture that turned a size the user left open into a number."""
    for param in module.main.signature.params:
        if param.structure is not None or not isinstance(arguments.get(param.name), torch.Tensor):
            continue
        (leaf,) = param.leaves
        for axis in _dynamic_axes(shapes.get(param.name)):
            if isinstance(leaf.shape[axis], int):
                raise CaptureError(
                    f"dimension {axis} of '{param.name}' was asked to be dynamic, but the model's code "
                    f"fixes it to {leaf.shape[axis]}",
                    hint="leave it out of dynamic_shapes, or remove what depends on its value",
                )


@contextmanager
def _quiet_export() -> Generator[None]:
    """torch.export logs advice about dims and guards that we give ourselves, as errors.

    It also calls names of its own that it deprecates.
    """
    loggers = [
        logging.getLogger(n)
        for n in ("torch.export", "torch.fx.experimental.symbolic_shapes", "torch._export")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _pointing_at_user_code() -> Generator[None]:
    """Turn what torch.export raises into a ``CaptureError`` at the user's own line."""
    try:
        yield
    except Exception as error:
        frame = _user_frame(error)
        location = f"{frame.filename}:{frame.lineno}" if frame else None
        source = linecache.getline(frame.filename, frame.lineno or 0).strip() if frame else None
        message, hint = _explain(error)
        raise CaptureError(message, location=location, source_line=source, hint=hint) from error


def _user_frame(error: BaseException) -> traceback.FrameSummary | None:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((_TORCH, _REGRAFT, "<"))]
    return own[-1] if own else None


def _explain(error: Exception) -> tuple[str, str | None]:
    name = type(error).__name__
    text = str(error).strip().split("\n")[0]
    if name in ("GuardOnDataDependentSymNode", "UserError") and "data-dependent" in str(error).lower():
        return (
            "the model branches on the value of a tensor, which one graph cannot follow",
            "compute both sides and select with torch.where, or use torch.cond",
        )
    if "Constraints violated" in str(error):
        return (
            f"dynamic_shapes do not fit the model: {_constraint(str(error))}",
            "use Dim.AUTO, or give the Dim a range",
        )
    if "not a known type" in str(error) and "Cache" in str(error):
        return "the model returns a cache object", "pass use_cache=False"
    return f"torch.export cannot capture the model: {name}: {text}", None


def _constraint(text: str) -> str:
    lines = [line.strip(" -") for line in text.splitlines() if line.strip().startswith("-")]
    return "; ".join(lines[:3]) or text.splitlines()[0]
