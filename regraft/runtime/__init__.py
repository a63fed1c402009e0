"""Running compiled models. Nothing here needs the compiler, so an artefact runs without it."""

from __future__ import annotations

from regraft.runtime.dims import compile_dim
from regraft.runtime.dtypes import DTYPE_NAMES, TORCH_DTYPES
from regraft.runtime.effects import Effects, overlap
from regraft.runtime.executable import ArtefactReader, ArtefactWriter, Executable
from regraft.runtime.lazy import lazy_names
from regraft.runtime.model import CompiledModel, load
from regraft.runtime.plan import Plan, Step
from regraft.runtime.profile import Profile, StepTime, profile
from regraft.runtime.random import MEMORY_ORDER, is_random
from regraft.runtime.signature import (
    GuardSpec,
    ParamSpec,
    Signature,
    SymbolSpec,
    TensorSpec,
    ValueSpec,
    autocast_dtype,
)

__all__ = [
    "DTYPE_NAMES",
    "MEMORY_ORDER",
    "TORCH_DTYPES",
    "ArtefactReader",
    "ArtefactWriter",
    "CompiledModel",
    "Effects",
    "Executable",
    "GuardSpec",
    "ParamSpec",
    "Plan",
    "Profile",
    "Signature",
    "Step",
    "StepTime",
    "SymbolSpec",
    "TensorSpec",
    "ValueSpec",
    "autocast_dtype",
    "compile_dim",
    "is_random",
    "lazy_names",
    "load",
    "overlap",
    "profile",
]
