"""The key of a compile: everything that the result depends on, but the values of the weights.

The components come in this order, from the general to the particular: versions, the state of the
process, the options, the arguments, the model's tensors and modules, the code they reach.
"""

# torch's settings are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Some of torch's modes and configurations have no public name.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from regraft.compiler.cache import tensors
from regraft.compiler.cache.values import Uncacheable, Walker
from regraft.compiler.capture import as_module, named
from regraft.compiler.choosing import state_folder
from regraft.compiler.options import Options
from regraft.ir import OPS
from regraft.runtime import cpu_features

_SOURCES = Path(__file__).parents[2]
_LOADED = time.time()
_OWN = __name__.partition(".")[0]

#: Fields of the options that do not change what is compiled.
_WITHOUT_EFFECT = frozenset({"cache", "dump", "notes", "progress", "verify"})

#: Torch's own settings that capture reads, as modules.
_CONFIGURATIONS = ("torch._dynamo.config", "torch._functorch.config", "torch.fx.experimental._config")

#: Attributes of modules that hold a setting.
_SETTINGS = (
    ("torch.nn.modules.module", "_global_forward_hooks"),
    ("torch.nn.modules.module", "_global_forward_pre_hooks"),
    ("torch.nn.modules.module", "_global_parameter_registration_hooks"),
    ("torch.nn.modules.module", "_global_buffer_registration_hooks"),
)


@dataclass(frozen=True)
class Key:
    """Components by name, and what they come to.

    Fields:
        model: the name of the model's class or function, under which similar entries are found.
        components: name -> short text, or a hash after ``#``.
    """

    model: str
    components: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Equal exactly for equal components."""
        text = json.dumps([self.model, list(self.components.items())])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def key_of(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    options: Options,
) -> Key:
    """The key of ``compile(model, args, kwargs, ...)``.

    Raises:
        Uncacheable: something that may matter cannot be described.
        OptionError: it is no model.
    """
    if isinstance(model, torch.export.ExportedProgram):
        raise Uncacheable("an ExportedProgram says nothing of the code that it came from")
    source = as_module(model)
    walker = Walker()
    _add_versions(walker)
    _add_state(walker)
    _add_measurements(walker)
    _add_options(walker, options)
    _add_arguments(walker, args, named(kwargs), dynamic_shapes)
    tensors.describe_tree(walker, source, "model", by_value=False)
    components = walker.finish()
    for package in sorted(walker.packages):
        version = getattr(sys.modules.get(package), "__version__", None)
        if isinstance(version, str):
            components.setdefault(package, version)
    return Key(_title(model), components)


def _title(model: Any) -> str:
    named = type(model) if isinstance(model, torch.nn.Module) else model
    name = getattr(named, "__qualname__", type(model).__qualname__)
    return f"{getattr(named, '__module__', '')}.{name}"


def _add_versions(walker: Walker) -> None:
    walker.add("regraft", f"{version_of('regraft')} {sources_hash()}")
    walker.add("python", f"{sys.implementation.name} {platform.python_version()}")
    walker.add("torch", f"{torch.__version__} {torch.version.git_version}"[:80])
    for name in ("onnxruntime", "onnx_ir", "numpy", "sympy"):
        walker.add(name, version_of(name))
    walker.add("machine", f"{platform.system()} {platform.machine()}")
    walker.add("CPU features", " ".join(sorted(cpu_features())))


def version_of(name: str) -> str:
    """The version of an installed package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def sources_hash() -> str:
    """A hash of regraft's own files: whoever works on it changes them without changing the version.

    Raises:
        Uncacheable: one was written after it was imported, so that nobody knows what is running.
    """
    total = hashlib.sha256()
    for path in sorted(_SOURCES.rglob("*.py")):
        if path.stat().st_mtime > _LOADED:
            raise Uncacheable(f"{path} has changed since it was imported")
        total.update(str(path.relative_to(_SOURCES)).encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def _add_state(walker: Walker) -> None:
    """Settings of the process that change what a model computes or how it is traced.

    Raises:
        Uncacheable: a mode is active that sees every call.
    """
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        raise Uncacheable("a torch mode is active, such as a default device, which sees every call")
    walker.add("default dtype", str(torch.get_default_dtype()))
    walker.add("grad mode", f"{torch.is_grad_enabled()} {torch.is_inference_mode_enabled()}")
    for device in ("cpu", "cuda"):
        on, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        walker.add(f"autocast on {device}", f"{on} {dtype}")
    walker.add("deterministic algorithms", str(torch.are_deterministic_algorithms_enabled()))
    walker.add("float32 matmul precision", torch.get_float32_matmul_precision())
    backends = torch.backends
    flags = (
        backends.mha.get_fastpath_enabled(),
        backends.mkldnn.enabled,
        backends.mkldnn.is_available(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.cuda.is_available(),
    )
    walker.add("torch.backends", str(flags))
    for name in _CONFIGURATIONS:
        settings = import_module(name).save_config_portable()
        settings.pop("debug_dir_root", None)  # in the current folder, and written to by debuggers only
        walker.describe(name, settings)
    for module, name in _SETTINGS:
        walker.describe(f"{module}.{name}", getattr(import_module(module), name))


def _add_measurements(walker: Walker) -> None:
    """What was measured on this machine: forms are chosen by it."""
    folder = state_folder()
    files = [folder / "tuning.db", *folder.glob("*.json")] if folder is not None else []
    for path in sorted(files):
        if path.is_file():
            walker.add(f"measurements {path.name}", f"#{hashlib.sha256(path.read_bytes()).hexdigest()[:24]}")


def _add_options(walker: Walker, options: Options) -> None:
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in _WITHOUT_EFFECT:
            continue
        if field.name == "table":
            value = [op for op in value.values() if OPS.get(op.name) is not op]
        for index, each in enumerate(value if isinstance(value, (list, tuple)) else [value]):
            name = f"option {field.name}" if each is value else f"option {field.name}[{index}]"
            if type(each).__module__.partition(".")[0] == _OWN and field.name == "backends":
                walker.add(name, each.name)  # it has no options, and its code is that of regraft
                continue
            walker.describe(name, each, full=True)
            fingerprint = getattr(each, "fingerprint", None)
            if callable(fingerprint):
                walker.add(f"{name} fingerprint", str(fingerprint()))


def _add_arguments(
    walker: Walker, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> None:
    leaves, structure = pytree.tree_flatten((args, kwargs))
    walker.add("structure of the arguments", str(structure))
    first: dict[int, int] = {}
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            if type(leaf) not in tensors.PLAIN:
                raise Uncacheable(f"an argument is a {type(leaf).__name__}, a subclass of Tensor")
            same = first.setdefault(id(leaf), index)
            walker.add(f"argument {index}", f"{tensors.metadata(leaf)} same as {same}")
        else:
            walker.describe(f"argument {index}", leaf)
    walker.describe("dynamic_shapes", dynamic_shapes)
