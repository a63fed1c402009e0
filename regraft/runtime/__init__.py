"""Running compiled models. Nothing here needs the compiler, so an artefact runs without it."""

from __future__ import annotations

from regraft.runtime.dims import compile_dim
from regraft.runtime.dtypes import DTYPE_NAMES, TORCH_DTYPES
from regraft.runtime.executable import ArtefactReader, ArtefactWriter, Executable
from regraft.runtime.lazy import lazy_names
from regraft.runtime.model import CompiledModel, load
from regraft.runtime.plan import Plan, Step
from regraft.runtime.profile import Profile, StepTime, profile
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
    "TORCH_DTYPES",
    "ArtefactReader",
    "ArtefactWriter",
    "CompiledModel",
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
    "lazy_names",
    "load",
    "profile",
]
