"""Tensors and trees of modules in a fingerprint."""

# Everything here looks at objects of any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from regraft.compiler.cache import origins


class Walker(Protocol):
    """What describes the rest: see ``values.Walker``."""

    walked: set[str]

    def add(self, name: str, text: str) -> None: ...
    def describe(self, name: str, value: Any) -> None: ...
    def name_module(self, module: nn.Module, path: str) -> None: ...
    def refuse(self, reason: str) -> None: ...


#: Tensors whose class adds nothing to what their metadata says.
PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)
ARRAYS = (np.ndarray, np.generic)

_MAX_BYTES = 64 << 20

#: Attributes of every module that never reach its forward.
_NOT_FORWARD = frozenset(
    {
        "_backward_hooks",
        "_backward_pre_hooks",
        "_is_full_backward_hook",
        "_load_state_dict_post_hooks",
        "_load_state_dict_pre_hooks",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_parameters",
        "_buffers",
        "_modules",
    }
)


class TooLarge(Exception):
    """A value has more bytes than are worth hashing."""


def metadata(tensor: torch.Tensor) -> str:
    """What capture knows of a tensor whose values it does not read."""
    if tensor.layout is not torch.strided:
        return f"{tensor.layout} {tuple(tensor.shape)} {tensor.dtype} {tensor.device}"
    return (
        f"{type(tensor).__name__} {tensor.dtype} {tuple(tensor.shape)} {tensor.stride()} {tensor.device} "
        f"grad={tensor.requires_grad} leaf={tensor.is_leaf} inference={tensor.is_inference()} "
        f"conj={tensor.is_conj()} neg={tensor.is_neg()}"
    )


def value_text(tensor: torch.Tensor) -> str:
    """A tensor with its values.

    Raises:
        TooLarge: it has too many.
    """
    return f"tensor {metadata(tensor)} {content_hash(tensor)};"


def content_hash(tensor: torch.Tensor) -> str:
    """A hash of the values of a tensor.

    Raises:
        TooLarge: it has too many.
    """
    if tensor.is_meta or tensor.layout is not torch.strided:
        raise TooLarge(f"a tensor on {tensor.device} of layout {tensor.layout} has no values to hash")
    if tensor.numel() * tensor.element_size() > _MAX_BYTES:
        raise TooLarge(f"a tensor {list(tensor.shape)} is too large to hash")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return hashlib.sha256(plain.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def array_text(array: Any) -> str:
    """A NumPy array or scalar with its values.

    Raises:
        TooLarge: it has too many, or they are objects.
    """
    plain = np.asarray(array)
    if plain.nbytes > _MAX_BYTES or plain.dtype.hasobject:
        raise TooLarge(f"an array {list(plain.shape)} of {plain.dtype} is too large to hash")
    values = hashlib.sha256(plain.tobytes()).hexdigest()
    return f"array {type(array).__name__} {plain.dtype} {plain.shape} {values};"


def describe_tree(walker: Walker, root: nn.Module, title: str, *, by_value: bool) -> None:
    """A component for each module of a tree, and one for its parameters and buffers.

    ``by_value`` hashes these too: for a module that is no part of the model, whose weights become literals.

    Raises:
        Uncacheable: a module holds what cannot be described.
    """
    prefix = "" if title == "model" else f"{title} "
    for path, module in root.named_modules(remove_duplicate=True):
        walker.name_module(module, f"{prefix}{path}")
        walker.walked.update(origins.package_of(c.__module__) for c in type(module).__mro__)
    walker.add(f"{prefix}parameters", "\n".join(_tensor_lines(walker, root, by_value=by_value)))
    for path, module in root.named_modules(remove_duplicate=True):
        _describe_module(walker, module, f"{prefix}{path}")


def _describe_module(walker: Walker, module: nn.Module, path: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        walker.refuse(f"'{path}' is TorchScript, whose code is out of sight")
    own = {k: v for k, v in module.__dict__.items() if k not in _NOT_FORWARD}
    walker.describe(
        f"module '{path}' ({type(module).__qualname__})", (type(module), module.__dict__["_modules"], own)
    )


def _tensor_lines(walker: Walker, root: nn.Module, *, by_value: bool) -> Iterator[str]:
    """Each parameter and buffer with its metadata, and the first that it shares memory with."""
    storages: dict[int, str] = {}
    for kind, tensor_of in (("parameter", root.named_parameters), ("buffer", root.named_buffers)):
        for name, tensor in tensor_of(remove_duplicate=False):
            if type(tensor) not in PLAIN:
                walker.refuse(f"the {kind} '{name}' is a {type(tensor).__name__}")
            line = f"{kind} {name} {metadata(tensor)}"
            if tensor.layout is torch.strided and not tensor.is_meta and tensor.numel():
                first = storages.setdefault(tensor.untyped_storage().data_ptr(), name)
                line += f" at {tensor.storage_offset()} of {first}"
            yield f"{line} {content_hash(tensor)}" if by_value else line
