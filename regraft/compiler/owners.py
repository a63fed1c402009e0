"""Whose a file of Python code is."""

from __future__ import annotations

import functools
import os
import site
import sysconfig
from enum import Enum
from pathlib import Path

import torch

from regraft.ir import Location


def _folder(path: str | Path) -> str:
    """With a separator at the end: torchvision's files are not torch's."""
    return f"{path}{os.sep}"


_TORCH = _folder(Path(torch.__file__).parent)
_REGRAFT = _folder(Path(__file__).parents[1])
_STANDARD = tuple({_folder(sysconfig.get_path(each)) for each in ("stdlib", "platstdlib")})
_INSTALLED = tuple(
    {_folder(sysconfig.get_path(each)) for each in ("purelib", "platlib")}
    | {_folder(each) for each in (*site.getsitepackages(), site.USER_SITE) if each}
)


class Owner(Enum):
    """Who wrote a file. GENERATED is none: a name in angle brackets, a place that only Python knows."""

    GENERATED = "generated"
    REGRAFT = "regraft"
    TORCH = "torch"
    LIBRARY = "library"
    STANDARD = "standard"
    USER = "user"


@functools.lru_cache(maxsize=4096)
def owner_of(file: str) -> Owner:
    """The owner of the code in ``file``."""
    if file.startswith("<"):
        return Owner.GENERATED
    if file.startswith(_REGRAFT):
        return Owner.REGRAFT
    if file.startswith(_TORCH):
        return Owner.TORCH
    if file.startswith(_INSTALLED):  # which often lies in a folder of the standard library's
        return Owner.LIBRARY
    return Owner.STANDARD if file.startswith(_STANDARD) else Owner.USER


def is_torchs(file: str, folder: str) -> bool:
    """Whether ``file`` is in that folder of torch's."""
    return file.startswith(f"{_TORCH}{folder}{os.sep}")


def package_of_file(file: str) -> str:
    """The installed package, or the module of one file, that a library's ``file`` belongs to."""
    folder = next(each for each in _INSTALLED if file.startswith(each))
    return file[len(folder) :].split(os.sep)[0].partition(".")[0]


def told(location: Location) -> str:
    """Where ``location`` is, for people: for a line of torch's own, the path of the layer that runs it."""
    if location.module and owner_of(location.file) is Owner.TORCH:
        return f"the layer '{location.module}'"
    return str(location)
