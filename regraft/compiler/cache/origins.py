"""Where code comes from, and how far it is trusted to be what its version says.

Code of the user's may be anything: it is fingerprinted down to what it calls. Code of an installed
library is walked too, since a user may have replaced a function in it, but what cannot be fingerprinted
there is left to the library's version. Torch (outside ``torch.nn``), the standard library, NumPy and
regraft itself are identified by their version alone.
"""

# FunctionType has no types for its globals.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import functools
import sys
from enum import Enum
from types import FunctionType, ModuleType
from typing import Any

from regraft.compiler.owners import Owner, is_torchs, owner_of, package_of_file

#: Installed packages that are identified by their version.
_BY_VERSION = frozenset({"torch", "numpy", "sympy", "mpmath", "scipy", "onnx", "onnx_ir", "onnxruntime"})


class Origin(Enum):
    USER = "user"
    LIBRARY = "library"
    FIXED = "fixed"


@functools.lru_cache(maxsize=4096)
def of_file(file: str) -> Origin:
    """The origin of code in ``file``; a name in angle brackets is a place that only Python knows."""
    owner = owner_of(file)
    if owner is Owner.GENERATED:
        return Origin.FIXED if file.startswith("<frozen") else Origin.USER
    if owner is Owner.TORCH:
        return Origin.LIBRARY if is_torchs(file, "nn") else Origin.FIXED
    if owner is Owner.LIBRARY:
        return Origin.FIXED if package_of_file(file) in _BY_VERSION else Origin.LIBRARY
    return Origin.USER if owner is Owner.USER else Origin.FIXED


def of_module(module: ModuleType | None) -> Origin:
    """The origin of a module; one without a file is built in or the user's own invention."""
    if module is None:
        return Origin.USER
    name = module.__name__
    if name in sys.builtin_module_names:
        return Origin.FIXED
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return of_file(file)
    package = name.partition(".")[0]
    return Origin.FIXED if package in _BY_VERSION or package in sys.stdlib_module_names else Origin.USER


def of_function(function: FunctionType) -> Origin:
    """The origin of the code that ``function`` runs, wherever somebody has put it."""
    file = function.__code__.co_filename
    if file.startswith("<") and not file.startswith("<frozen"):
        # Made by exec, as the methods of dataclasses are: it belongs where its globals do.
        return of_module(sys.modules.get(str(function.__globals__.get("__name__"))))
    return of_file(file)


def of_class(cls: type[Any]) -> Origin:
    return of_module(sys.modules.get(cls.__module__))


def package_of(name: str) -> str:
    return name.partition(".")[0]
