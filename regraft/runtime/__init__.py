"""Running compiled models. Nothing here needs the compiler, so an artefact runs without it."""

from __future__ import annotations

from regraft.runtime import choice_view
from regraft.runtime.adapters import ACTIVE as ACTIVE_ADAPTER
from regraft.runtime.adapters import own_state
from regraft.runtime.bundle import Bundle, load
from regraft.runtime.checked import CheckedExecutable
from regraft.runtime.cpu import cpu_features, cpu_model
from regraft.runtime.dims import compile_dim
from regraft.runtime.dtypes import DTYPE_NAMES, TORCH_DTYPES
from regraft.runtime.effects import Effects, overlap
from regraft.runtime.executable import (
    HOST,
    ArtefactReader,
    ArtefactWriter,
    Bindable,
    Bound,
    Executable,
    NativeCode,
)
from regraft.runtime.files import read_file
from regraft.runtime.host import Block, HostExecutable, executables_of
from regraft.runtime.lazy import lazy_names
from regraft.runtime.memory import LARGE, ResultMemory, byte_of, lasting, lasting_flag
from regraft.runtime.model import CompiledModel, refreshed
from regraft.runtime.plan import Bind, Frame, Plan, Step
from regraft.runtime.profile import Profile, StepTime, profile
from regraft.runtime.records import signature_from, signature_record, text
from regraft.runtime.report import ReadableReport, SavedReport
from regraft.runtime.sharing import place
from regraft.runtime.signature import (
    GuardSpec,
    ParamSpec,
    Signature,
    SymbolSpec,
    TensorSpec,
    ValueSpec,
    autocast_dtype,
)
from regraft.runtime.torch_ops import MEMORY_ORDER, is_random, torch_op

__all__ = [
    "ACTIVE_ADAPTER",
    "DTYPE_NAMES",
    "HOST",
    "LARGE",
    "MEMORY_ORDER",
    "TORCH_DTYPES",
    "ArtefactReader",
    "ArtefactWriter",
    "Bind",
    "Bindable",
    "Block",
    "Bound",
    "Bundle",
    "CheckedExecutable",
    "CompiledModel",
    "Effects",
    "Executable",
    "Frame",
    "GuardSpec",
    "HostExecutable",
    "NativeCode",
    "ParamSpec",
    "Plan",
    "Profile",
    "ReadableReport",
    "ResultMemory",
    "SavedReport",
    "Signature",
    "Step",
    "StepTime",
    "SymbolSpec",
    "TensorSpec",
    "ValueSpec",
    "autocast_dtype",
    "byte_of",
    "choice_view",
    "compile_dim",
    "cpu_features",
    "cpu_model",
    "executables_of",
    "is_random",
    "lasting",
    "lasting_flag",
    "lazy_names",
    "load",
    "overlap",
    "own_state",
    "place",
    "profile",
    "read_file",
    "refreshed",
    "signature_from",
    "signature_record",
    "text",
    "torch_op",
]
