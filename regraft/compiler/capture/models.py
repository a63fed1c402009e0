"""What may be given as a model: modules, wrapped ones, and whatever else can be called.

``torch.export`` takes modules. A function becomes one whose children are the modules that it reaches
through its closure, its globals, bound arguments and the object it is a method of: their weights are then
parameters, with names and versions, and not literals of the code.
"""

# torch's dynamo and quantization classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch._subclasses import FakeTensor
from torch.nn.parameter import is_lazy
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from regraft.errors import OptionError
from regraft.runtime import CompiledModel, place

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def as_module(model: Any) -> nn.Module:
    """The module to capture in place of ``model``: itself, what it wraps, or one that calls it.

    Raises:
        OptionError: it is no model, or one of a kind that cannot be captured.
    """
    while isinstance(model, (*_PARALLEL, OptimizedModule)):
        model = model._orig_mod if isinstance(model, OptimizedModule) else model.module
    if isinstance(model, nn.Module):
        return model
    if not callable(model) or isinstance(model, type):
        raise OptionError(
            f"model is a {type(model).__name__}; expected an nn.Module, an ExportedProgram or a function"
        )
    if isinstance(model, (torch.jit.ScriptFunction, torch.ScriptMethod)):
        raise OptionError("the model is a TorchScript function; compile the Python function it was made from")
    return FunctionModule(getattr(model, "_torchdynamo_orig_callable", model))


def check_ready(model: nn.Module) -> None:
    """Refuse what would be captured wrongly, or with an error that says nothing.

    Raises:
        OptionError: the model is in training mode, has no values yet, or is of a kind that has its own
            compiled form.
    """
    for path, module in _walk(model, ""):
        where = f"the submodule '{path}'" if path else "the model"
        reason = _not_capturable(module)
        if reason is not None:
            raise OptionError(f"{where} {reason}")
        if module.training and (module is model or _mode_matters(module)):
            raise OptionError(
                f"{where} is in training mode; call model.eval() first: regraft compiles inference"
            )
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            reason = None if tensor is None else _without_values(tensor)
            if reason is not None:
                raise OptionError(f"the weight '{f'{path}.{name}'.lstrip('.')}' {reason}")


def _walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The module and all below it by path, as they are held: ``named_modules`` may be overridden."""
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{path}.{name}".lstrip("."))


def _not_capturable(module: nn.Module) -> str | None:
    if isinstance(module, CompiledModel):
        return "is compiled by regraft already; compile the original"
    if isinstance(module, torch.jit.ScriptModule):
        return "is a TorchScript module; compile the nn.Module it was made from"
    if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
        return (
            f"is a quantized {type(module).__name__}, whose weights are no tensors; compile the float model"
        )
    if any(isinstance(h, (WeightNorm, SpectralNorm)) for h in module._forward_pre_hooks.values()):
        return (
            "has an old-style weight_norm or spectral_norm, which writes its weight at each call; use that "
            "of torch.nn.utils.parametrizations, or torch.nn.utils.remove_weight_norm"
        )
    return None


def _mode_matters(module: nn.Module) -> bool:
    return isinstance(module, (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase))


def _without_values(tensor: Tensor) -> str | None:
    if is_lazy(tensor):
        return "is not initialised yet; run the model once on an example before compiling it"
    if isinstance(tensor, FakeTensor):
        return "is a FakeTensor and has no values; build the model outside of FakeTensorMode"
    if tensor.is_meta:
        return "is on the meta device and has no values; load the weights before compiling the model"
    if tensor.is_quantized:
        return "is a quantized tensor; compile the float model"
    return None


class FunctionModule(nn.Module):
    """A callable as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.training = False  # eval() would reach the user's modules
        self.forward = _named_forward(function)
        for name, value in reachable(function).items():
            setattr(self, name, value)


def _named_forward(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as a function called ``forward``: torch records source lines of no other."""
    if isinstance(function, functools.partial):
        return functools.partial(_named_forward(function.func), *function.args, **function.keywords)
    if isinstance(function, MethodType):
        return function
    if not isinstance(function, FunctionType):
        # torch.export looks at the code of what it traces: an object that can be called has it in its method.
        method = getattr(function, "__call__", None)  # noqa: B004
        return method if isinstance(method, MethodType) else function
    code = function.__code__.replace(co_name="forward")
    copy = FunctionType(code, function.__globals__, "forward", function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(copy, function)


def reachable(function: Callable[..., Any]) -> dict[str, nn.Module | Tensor]:
    """The modules and tensors that a call of ``function`` can get at, by names that tell where from."""
    found: dict[str, nn.Module | Tensor] = {}
    seen: set[int] = set()

    def visit(name: str, value: Any) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, (nn.Module, Tensor)):
            plain = name.replace(".", "_")
            while hasattr(nn.Module, plain) or plain in found:
                plain += "_"
            found[plain] = value
            return
        for part, held in _parts(value):
            visit(f"{name}.{part}".lstrip("."), held)

    visit("", function)
    return found


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds that may hold tensors: only what is named in code or is plain data."""
    if isinstance(value, functools.partial):
        yield "func", value.func
        yield from ((f"arg{i}", held) for i, held in enumerate(value.args))
        yield from value.keywords.items()
    elif isinstance(value, MethodType):
        owner = value.__self__
        yield from [("self", owner)] if isinstance(owner, nn.Module) else _attributes(owner)
        yield "", value.__func__
    elif isinstance(value, FunctionType):
        yield from _names_of(value)
    elif isinstance(value, (list, tuple)):
        yield from ((str(i), held) for i, held in enumerate(value))
    elif isinstance(value, dict):
        yield from ((str(key), held) for key, held in value.items())
    elif callable(value) and not isinstance(value, type):
        yield from _attributes(value)
        yield "", type(value).__call__


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(value, "__dict__", {}).items()


def _names_of(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a variable that is not bound yet
            continue
    for name in function.__code__.co_names:
        held = function.__globals__.get(name)
        # Functions of the same file only: those of a library lead to everything in it.
        is_near = isinstance(held, FunctionType) and held.__globals__ is function.__globals__
        if is_near or isinstance(held, (nn.Module, Tensor)):
            yield name, held
    yield from (function.__kwdefaults__ or {}).items()
    yield from ((f"default{i}", held) for i, held in enumerate(function.__defaults__ or ()))


def owned_tensors(model: nn.Module) -> Mapping[tuple[Any, ...], tuple[str, Tensor]]:
    """The tensors among the attributes of ``model`` and its submodules, by place in memory."""
    found: dict[tuple[Any, ...], tuple[str, Tensor]] = {}
    for path, module in _walk(model, ""):
        for name, value in {**module._parameters, **module._buffers, **vars(module)}.items():
            if isinstance(value, Tensor) and value.numel():
                found.setdefault(place(value), (f"{path}.{name}".lstrip("."), value))
    return found
