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
import site
import sys
import sysconfig
from enum import Enum
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch

_TORCH = str(Path(torch.__file__).parent)
_REGRAFT = str(Path(__file__).parents[2])
_STANDARD = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_SITE = tuple(
    {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    | ({site.USER_SITE} if site.USER_SITE else set())
)
#: Installed packages that are identified by their version.
_BY_VERSION = frozenset({"torch", "numpy", "sympy", "mpmath", "scipy", "onnx", "onnx_ir", "onnxruntime"})


class Origin(Enum):
    USER = "user"
    LIBRARY = "library"
    FIXED = "fixed"


@functools.lru_cache(maxsize=4096)
def of_file(file: str) -> Origin:
    """The origin of code in ``file``; a name in angle brackets is a place that only Python knows."""
    if file.startswith("<frozen"):
        return Origin.FIXED
    if file.startswith(_REGRAFT + "/"):
        return Origin.FIXED
    if file.startswith(_TORCH + "/"):
        return Origin.LIBRARY if file.startswith(f"{_TORCH}/nn/") else Origin.FIXED
    for folder in _SITE:
        if file.startswith(folder + "/"):
            package = file[len(folder) + 1 :].split("/")[0].partition(".")[0]
            return Origin.FIXED if package in _BY_VERSION else Origin.LIBRARY
    return Origin.FIXED if file.startswith(tuple(f"{folder}/" for folder in _STANDARD)) else Origin.USER


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
