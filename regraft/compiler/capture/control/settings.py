"""torch's global state: what functions such as ``torch.set_default_dtype`` and ``torch.manual_seed`` change.

A graph holds none of it. What code does to it while it is traced is put back; an arm must not change it.
"""

# torch's getters and setters are partly untyped, and most have no public names.
# pyright: reportUnknownParameterType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._tensor_str import PRINT_OPTS
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from regraft.compiler.capture.control.context import refuse

#: The seed of torch's generator while the model is traced: whoever seeds it then gives it another one.
SEED = 0x7AC3_5EED_0DDB_A11


@dataclass(frozen=True)
class Setting:
    """A part of torch's global state, and the functions that read it and set it."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], object]

    def value(self) -> Any:
        try:
            return self.get()
        except RuntimeError:  # torch has it in two ways, and they differ
            return None


def _default_device() -> Any:
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


def _flushes_denormals() -> bool:
    """Whether the CPU, in this thread, has no numbers below the smallest normal one."""
    return sys.float_info.min / 2 == 0


def _of_autocast(device: str) -> Iterator[Setting]:
    get, put = partial(torch.is_autocast_enabled, device), partial(torch.set_autocast_enabled, device)
    yield Setting(f"whether autocast is on for '{device}'", get, put)
    get, put = partial(torch.get_autocast_dtype, device), partial(torch.set_autocast_dtype, device)
    yield Setting(f"the dtype of autocast for '{device}'", get, put)


def _of_attention() -> Iterator[Setting]:
    for name in ("flash", "math", "mem_efficient", "cudnn", "overrideable"):
        get = getattr(torch._C, f"_get_{name}_sdp_enabled", None)
        put = getattr(torch._C, f"_set_sdp_use_{name}", None)
        if get is not None and put is not None:
            yield Setting(f"'{name}_sdp_enabled'", get, put)


def _of_switches() -> Iterator[Setting]:
    """What torch sets and gets by functions that differ in this word alone, as switches of its back ends."""
    names = [name.removeprefix("_get_") for name in dir(torch._C) if name.startswith("_get_")]
    for name in names:
        get, put = getattr(torch._C, f"_get_{name}"), getattr(torch._C, f"_set_{name}", None)
        if put is None or name.startswith(("deterministic_algorithms", "thread_name")):
            continue
        try:
            is_plain = isinstance(get(), (bool, int, str))
        except (RuntimeError, TypeError):
            continue
        if is_plain:
            yield Setting(f"'{name}'", get, put)


def _settings() -> Iterator[Setting]:
    yield Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype)
    yield Setting("the default device", _default_device, torch.set_default_device)
    yield Setting("the seed of random numbers", torch.initial_seed, torch.default_generator.manual_seed)
    yield Setting("whether gradients are recorded", torch.is_grad_enabled, torch._C._set_grad_enabled)
    yield Setting("the number of threads", torch.get_num_threads, torch.set_num_threads)
    yield Setting("whether denormal numbers count as 0", _flushes_denormals, torch.set_flush_denormal)
    get, put = torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode
    yield Setting("whether algorithms are deterministic", get, put)
    get, put = torch.is_anomaly_enabled, torch.set_anomaly_enabled
    yield Setting("whether anomalies are looked for", get, put)
    get, put = torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled
    yield Setting("whether autocast keeps what it casts", get, put)
    get = partial(dict, vars(PRINT_OPTS).items())
    yield Setting("how tensors are printed", get, vars(PRINT_OPTS).update)
    for device in ("cpu", "cuda"):
        yield from _of_autocast(device)
    yield from _of_attention()
    yield from _of_switches()


_SETTINGS: Sequence[Setting] = tuple(_settings())


@dataclass(frozen=True)
class Settings:
    """torch's global state at one moment."""

    values: tuple[Any, ...]

    @staticmethod
    def now() -> Settings:
        return Settings(tuple(each.value() for each in _SETTINGS))

    def changed(self) -> str | None:
        """What is another one now, as messages call it; None where all is as it was."""
        now = Settings.now().values
        pairs = zip(_SETTINGS, self.values, now, strict=True)
        return next((each.name for each, before, after in pairs if before != after), None)

    def put_back(self) -> None:
        for each, before in zip(_SETTINGS, self.values, strict=True):
            if each.value() != before:
                each.put(before)


class SettingsWatch(TorchFunctionMode):
    """Looks, where the block calls torch, for changes that no graph holds.

    Fields:
        is_seeded: whether torch's generator had another seed than ``SEED``.

    Raises:
        CaptureError: a tensor has the default dtype, which is another one than before the block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_seeded = False
        self._dtype = torch.get_default_dtype()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_dynamo_compiling():  # a body of torch.cond and its like, which Dynamo traces
            return func(*args, **(kwargs or {}))
        self.is_seeded = self.is_seeded or torch.initial_seed() != SEED
        found = func(*args, **(kwargs or {}))
        dtype = torch.get_default_dtype()
        if dtype != self._dtype and self._is_by_default(dtype, func, (args, kwargs), found):
            refuse(
                f"a tensor is {str(dtype).removeprefix('torch.')} because the model changes torch's default "
                "dtype",
                "write dtype= there, or set the default before the model is called",
            )
        return found

    @staticmethod
    def _is_by_default(dtype: torch.dtype, func: Any, given: Any, found: Any) -> bool:
        """Whether nothing that ``func`` was given says that ``found`` has the type ``dtype``."""
        types = (dtype, dtype.to_complex())
        leaves = pytree.tree_leaves(given)
        said = {leaf.dtype if isinstance(leaf, Tensor) else leaf for leaf in leaves if _may_say(leaf)}
        is_made = any(isinstance(x, Tensor) and x.dtype in types for x in pytree.tree_leaves(found))
        is_cast = func in (Tensor.half, Tensor.float, Tensor.double, Tensor.bfloat16)
        return is_made and not is_cast and said.isdisjoint(types)


def _may_say(leaf: Any) -> bool:
    return isinstance(leaf, (Tensor, torch.dtype))


@contextmanager
def settings_kept() -> Generator[SettingsWatch]:
    """Put back what the block does to torch's global state; torch's generator has the seed ``SEED`` in it."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(SEED)
    before = Settings.now()
    try:
        with SettingsWatch() as watch:
            yield watch
    finally:
        before.put_back()
        torch.default_generator.set_state(state)
