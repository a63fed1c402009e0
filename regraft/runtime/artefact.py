"""Artefacts: a compiled model as a folder.

An artefact holds one function, or several by name: those of a ``Bundle``, whose tensors it has once.
``manifest.json`` names the format, the producer and every other file with its SHA-256; constants are
in ``weights.safetensors``; back ends add files of their own. Nothing is pickled, nothing outside the
folder is read, and the folder appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from regraft.errors import ArtefactError, RegraftError
from regraft.runtime.adapters import ACTIVE
from regraft.runtime.added import Added
from regraft.runtime.checked import CheckedExecutable
from regraft.runtime.cpu import cpu_features
from regraft.runtime.dims import compile_dim
from regraft.runtime.effects import Effects
from regraft.runtime.executable import HOST, Executable
from regraft.runtime.files import read_file
from regraft.runtime.host import load as load_host
from regraft.runtime.plan import Plan, Step
from regraft.runtime.plan_record import binds_from, plan_record
from regraft.runtime.records import ints, signature_from, signature_record
from regraft.runtime.sharing import FunctionReader, FunctionWriter, Shelf
from regraft.runtime.signature import Signature, ValueSpec
from regraft.runtime.weights import read_weights, without_repeats

#: 1.0 had no bundles, 1.1 no adapters, 1.2 no control flow of plans: an artefact without is as it was then.
FORMAT = (1, 3)

#: Back end -> the module whose ``load(record, reader)`` rebuilds its executables.
LOADERS = {
    "ort": "regraft.backends.ort.run",
    "tvm": "regraft.backends.tvm.run",
    "eager": "regraft.backends.eager.run",
    "example": "regraft.backends.example.run",
}
#: Back ends whose files hold machine code. Their executables have an attribute ``portable``, which is None or
#: makes the same without machine code; beside ``load`` their modules may have ``refusal(record)``, the reason
#: where what was saved is not run, else None.
NATIVE: frozenset[str] = frozenset({"tvm"})

_MANIFEST = "manifest.json"
_WEIGHTS = "weights.safetensors"
_GRAPH = "graph.ir"
_PARTIAL = ".partial"
_STALE_SECONDS = 3600.0
_MAX_MANIFEST = 64 << 20
_MAX_FILE = 2 << 30

#: What reading raises where a file has another form than ours; RuntimeError is also nesting too deep.
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, NameError, RuntimeError, RegraftError)


@dataclass(frozen=True)
class Contents:
    """What an artefact holds of a function besides the files of its back ends."""

    signature: Signature
    plan: Plan
    report: Mapping[str, Any]
    ir: str
    effects: Effects | None = None
    adapter_names: tuple[str, ...] = ()


class _FolderWriter:
    """Writes files into a folder that is not in its place yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, Tensor] = {}
        self.hashes: dict[str, str] = {}

    def add_tensor(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor.detach().contiguous()

    def add_new(self, name: str, tensor: Tensor) -> str:
        """Store a tensor under a name that no other has, ``name`` or one like it, and return that."""
        while name in self.tensors:
            name += "'"
        self.add_tensor(name, tensor)
        return name

    def add_state(self, name: str, tensor: Tensor, value: Tensor) -> str:
        """Store the state ``tensor``, whose value is ``value``; the name that it is stored under."""
        return self.add_new(name, value)

    def add_file(self, name: str, content: bytes) -> None:
        _write_file(self.folder / _plain(name), content)
        self.hashes[name] = hashlib.sha256(content).hexdigest()

    def write_weights(self) -> None:
        # safetensors refuses tensors that share storage; a tied weight is one name already.
        separate: dict[str, Tensor] = {}
        written: set[int] = set()
        for name, tensor in self.tensors.items():
            storage = tensor.untyped_storage().data_ptr()
            separate[name] = tensor.clone() if storage in written or _is_part(tensor) else tensor
            written.add(storage)
        save_file(separate, self.folder / _WEIGHTS)
        self.hashes[_WEIGHTS] = _file_hash(self.folder / _WEIGHTS)


def _is_part(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()


class _FolderReader:
    """An artefact's files. Each is read once: what was hashed is what is used."""

    def __init__(self, folder: Path, hashes: Mapping[str, str], added: Added) -> None:
        self.folder = folder
        self.added = added
        self._files: dict[str, bytes] = {}
        self._states: dict[str, Tensor] = {}
        if _WEIGHTS not in hashes:
            raise ArtefactError(f"the artefact lacks '{_WEIGHTS}'", str(folder))
        for name, expected in hashes.items():
            path = folder / _plain(name)
            if not os.path.lexists(path):
                raise ArtefactError(f"the artefact lacks '{name}'", str(folder))
            if name != _WEIGHTS:
                self._files[name] = _checked(path, expected)
        self._weights = read_weights(folder / _WEIGHTS, hashes[_WEIGHTS])

    def tensor(self, name: str) -> Tensor:
        if name not in self._weights:
            raise ArtefactError(f"the artefact lacks the constant '{name}'", str(self.folder))
        return self._weights[name]

    def state(self, name: str) -> Tensor:
        """A tensor to write to, which is no constant; the same each time."""
        if name not in self._states:
            self._states[name] = self.tensor(name).clone()
        return self._states[name]

    def file(self, name: str) -> bytes:
        if name not in self._files:
            raise ArtefactError(f"the artefact does not list '{name}'", str(self.folder))
        return self._files[name]

    def library(self, domain: str) -> str:
        return self.added.library(domain)


_Writer = _FolderWriter | FunctionWriter
_Reader = _FolderReader | FunctionReader


def _checked(path: Path, expected: str) -> bytes:
    content = read_file(path, _MAX_FILE)
    if hashlib.sha256(content).hexdigest() != expected:
        raise ArtefactError(f"'{path.name}' is damaged: its SHA-256 is not the manifest's", str(path))
    return content


def _plain(name: str) -> str:
    """``name`` when it is a file name and nothing more."""
    if not name or name in (".", "..") or any(c in name for c in "/\\\0:"):
        raise ArtefactError(f"'{name}' is not a file name")
    return name


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(contents: Contents | Mapping[str, Contents], path: Path) -> None:
    """Write a function, or several by name, to the new folder ``path``; see ``CompiledModel.save``."""
    if path.exists():
        raise ArtefactError("there is something at this path already", str(path))
    try:
        _remove_partial(path)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_PARTIAL, dir=path.parent))
    except OSError as error:
        raise ArtefactError(f"cannot write here: {error.strerror}", str(path)) from error
    try:
        _write(contents, folder)
        os.chmod(folder, 0o755)
        os.rename(folder, path)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"cannot write the artefact: {error}", str(path)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_partial(path: Path) -> None:
    """Remove what processes that were killed while saving to ``path`` have left, an hour ago or earlier."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{_PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _write(contents: Contents | Mapping[str, Contents], folder: Path) -> None:
    writer = _FolderWriter(folder)
    if isinstance(contents, Contents):
        record = _function_record(contents, writer)
    else:
        shelf = Shelf(writer)
        record = {"functions": {name: _bundled_record(name, each, shelf) for name, each in contents.items()}}
    writer.write_weights()
    producer = f"regraft {_version()}"
    manifest = {"format": list(FORMAT), "producer": producer, "files": writer.hashes, **record}
    _write_file(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())


def _function_record(contents: Contents, writer: _Writer) -> dict[str, Any]:
    effects = None if contents.effects is None else _effects_record(contents.effects, writer)
    writer.add_file(_GRAPH, contents.ir.encode())
    return {
        "signature": signature_record(contents.signature),
        "plan": plan_record(contents.plan, writer),
        "effects": effects,
        "adapters": list(contents.adapter_names),
        "report": dict(contents.report),
    }


def _bundled_record(name: str, contents: Contents, shelf: Shelf) -> dict[str, Any]:
    """The record of one function of several, with the names that its constants and files are stored under."""
    writer = FunctionWriter(name, shelf)
    record = _function_record(contents, writer)
    return {**record, "tensors": writer.tensors, "files": writer.files}


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _version() -> str:
    try:
        return metadata.version("regraft")
    except metadata.PackageNotFoundError:
        return "of an unknown version"


def _effects_record(effects: Effects, writer: _Writer) -> dict[str, Any]:
    values = effects.snapshot()
    state = [
        {"name": name, "tensor": writer.add_state(name, tensor, values[name])}
        for name, tensor in zip(effects.state_names, effects.state, strict=True)
    ]
    return {"writes": [list(pair) for pair in effects.writes.items()], "state": state}


def _effects_from(record: Mapping[str, Any], signature: Signature, reader: _Reader) -> Effects | None:
    state = {str(entry["name"]): reader.state(entry["tensor"]) for entry in record["state"]}
    pairs = [ints(pair) for pair in record["writes"]]
    writes = {pair[0]: pair[1] for pair in pairs}
    return Effects.of(signature, writes, state)


def read(folder: Path, *, allow_native: bool, added: Added | None = None) -> Contents | dict[str, Contents]:
    """The contents of an artefact; by name where it holds a bundle. See ``regraft.load``."""
    manifest = _read_manifest(folder)
    try:
        reader = _FolderReader(folder, dict(manifest["files"]), added or Added())
        if "functions" not in manifest:
            return _function_from(manifest, reader, allow_native)
        return {
            name: _function_from(
                record, FunctionReader(reader, dict(record["tensors"]), dict(record["files"])), allow_native
            )
            for name, record in manifest["functions"].items()
        }
    except ArtefactError:
        raise
    except _MALFORMED as error:
        raise ArtefactError(f"the manifest is malformed: {error!r}", str(folder)) from error


def _function_from(record: Mapping[str, Any], reader: _Reader, allow_native: bool) -> Contents:
    loader = _Loader(reader, allow_native)
    signature = signature_from(record["signature"])
    written = record.get("effects")
    effects = None if written is None else _effects_from(written, signature, reader)
    state = () if effects is None else effects.state
    plan = _plan_from(record["plan"], len(signature.tensors) + len(state), loader)
    adapters = tuple(str(name) for name in record.get("adapters", ()))
    _check_fit(signature, plan, effects)
    _check_adapters(adapters, effects)
    report = loader.told(dict(record["report"]))
    return Contents(signature, plan, report, reader.file(_GRAPH).decode(), effects, adapters)


def _check_adapters(names: tuple[str, ...], effects: Effects | None) -> None:
    """The number of the adapter that applies is there and one of theirs."""
    if not names:
        return
    state = {} if effects is None else dict(zip(effects.state_names, effects.state, strict=True))
    active = state.get(ACTIVE)
    fits = active is not None and active.shape == (1,) and active.dtype == torch.int64
    _require(fits, "nothing says which adapter applies")
    assert active is not None
    _require(0 <= int(active) <= len(names), "no adapter is the one that applies")


def _check_fit(signature: Signature, plan: Plan, effects: Effects | None) -> None:
    """What a call takes for granted: it holds of what we write, but a file may say anything.

    Raises:
        ValueError: a number is out of its range.
        NameError: a size names a symbol that no input defines.
    """
    tensors = signature.tensors
    flat = len(plan.results) if effects is None else _check_effects(effects, len(tensors), plan)
    _require(effects is not None or not signature.returned, "nothing returns the arguments")
    for symbol in signature.symbols:
        _require(0 <= symbol.input < len(tensors), f"{symbol.name} is of no input")
        _require(0 <= symbol.axis < len(tensors[symbol.input].shape), f"{symbol.name} is of no axis")
        _require(symbol.scale != 0 and symbol.divisor > 0, f"{symbol.name} divides by nothing")
    known = {symbol.name: 1 for symbol in signature.symbols}
    for size in (size for tensor in tensors for size in tensor.shape):
        with contextlib.suppress(ZeroDivisionError):  # at other values it may well be a size
            compile_dim(size)(known)
    results = ints(output for output in signature.outputs if not isinstance(output, ValueSpec))
    _require(all(0 <= result < flat for result in results), "an output is of no result")
    _require(len(signature.outputs) == signature.out_structure.num_leaves, "the outputs do not fit")
    for param in signature.params:
        leaves = 1 if param.structure is None else param.structure.num_leaves
        _require(len(param.leaves) == leaves, f"the leaves of '{param.name}' do not fit")


def _check_effects(effects: Effects, arguments: int, plan: Plan) -> int:
    """Every index is in its range; the number of results that a call gives."""
    computed = len(plan.results) - len(effects.writes)
    _require(set(effects.writes) == set(range(computed, len(plan.results))), "a write is of no result")
    _require(set(effects.writes.values()) <= set(range(plan.inputs)), "a write is to no input")
    _require(len(set(effects.writes.values())) == len(effects.writes), "two writes are to one input")
    _require(set(effects.returned) <= set(range(arguments)), "what is returned is no argument")
    return computed + len(effects.returned)


def _check_slots(plan: Plan) -> None:
    """Each slot is filled once, before it is read."""
    made = set(range(plan.inputs))
    filled = set(made)
    for step in plan.steps:
        _require(filled.issuperset(step.inputs), "a step reads what no step has made")
        _require(made.isdisjoint(step.outputs), "two steps fill one slot")
        made.update(step.outputs)
        filled.update(step.outputs)
        outputs = range(len(step.outputs))
        _require(all(number in outputs for _, number, _ in step.binds), "a size is of no result")
        _require(filled.issuperset(step.dead), "a step frees what no step has made")
        filled.difference_update(step.dead)
    _require(filled.issuperset(plan.results), "a result is what no step has made")
    _require(len(made) == plan.slots and made == set(range(len(made))), "the slots are not in use")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not os.path.lexists(path):
        raise ArtefactError(f"not an artefact: there is no '{_MANIFEST}'", str(folder))
    content = read_file(path, _MAX_MANIFEST)
    try:
        manifest = json.loads(content, object_pairs_hook=without_repeats)
        major, minor = manifest["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtefactError(f"the manifest is malformed: {error!r}", str(path)) from error
    if major != FORMAT[0]:
        newer = isinstance(major, int) and major > FORMAT[0]
        raise ArtefactError(
            f"format {major}.{minor} cannot be read; this is format {FORMAT[0]}.x. "
            + ("Update regraft" if newer else "Compile and save the model again")
            + f" (it was written by {str(manifest.get('producer'))[:80]})",
            str(path),
        )
    return manifest


def _plan_from(record: Mapping[str, Any], inputs: int, loader: _Loader) -> Plan:
    """The plan of a record, for a call with ``inputs`` tensors."""
    given, slots = ints((record["inputs"], record["slots"]))
    _require(given == inputs, "a plan and its call differ in the number of inputs")
    steps = tuple(
        Step(
            loader.executable(step),
            ints(step["inputs"]),
            ints(step["outputs"]),
            ints(step["dead"]),
            binds_from(step.get("binds", ())),
        )
        for step in record["steps"]
    )
    plan = Plan(inputs, slots, steps, ints(record["results"]))
    _check_slots(plan)
    return plan


@dataclass
class _Loader:
    """Rebuilds executables.

    Fields:
        notes: where a portable form takes the place of native code, and why.
        native, portable: the back ends of native code that runs, and of what runs in its place, by its own.
    """

    reader: _Reader
    allow_native: bool
    notes: list[str] = field(default_factory=list[str])
    native: set[str] = field(default_factory=set[str])
    portable: dict[str, str] = field(default_factory=dict[str, str])

    def executable(self, step: Mapping[str, Any]) -> Executable:
        """The executable of a record: native code where that is allowed and this CPU has what it needs.

        Raises:
            ArtefactError: it is not, and there is no portable form.
        """
        backend = step["backend"]
        is_native = self._is_native(step)
        reason = self._why_not_native(backend, step) if is_native else None
        if reason is None:
            self.native |= {backend} if is_native else set()
            return self._loaded(backend, step)
        portable = step.get("portable")
        if portable is None:
            raise ArtefactError(f"{reason}. It has no portable form")
        if self._is_native(portable):
            raise ArtefactError("the portable form of native code is native code")
        self.notes.append(f"{reason}; its portable form runs on '{portable['backend']}'")
        self.portable[backend] = portable["backend"]
        return self.executable(portable)

    def told(self, report: dict[str, Any]) -> dict[str, Any]:
        """The ``report`` of the compile, as far as it holds of what was loaded.

        What was measured, and the kernels, are those of native code; its ops are the portable form's.
        """
        if not self.notes:
            return report
        notes, executors = report.get("notes", []), report.get("executors")
        changed: dict[str, Any] = {
            "notes": [*notes, *dict.fromkeys(self.notes)],
            "measured": None,
            "kernels": [],
        }
        if isinstance(executors, dict):
            counts: dict[str, Any] = dict(executors)  # pyright: ignore[reportUnknownArgumentType]
            for backend, other in self.portable.items():
                if backend in counts and backend not in self.native:
                    counts[other] = counts.pop(backend) + counts.get(other, 0)
            changed["executors"] = counts
        return {
            **report,
            **{name: value for name, value in changed.items() if name in report or name == "notes"},
        }

    def _loaded(self, backend: str, step: Mapping[str, Any]) -> Executable:
        if backend == HOST:
            inputs = len(step["inputs"])
            return load_host(step["record"], inputs, self.reader, partial(_plan_from, loader=self))
        if backend not in LOADERS:
            return _loaded_by(self.reader.added.loader(backend), backend, step["record"], self.reader)
        executable = import_module(LOADERS[backend]).load(step["record"], self.reader)
        if backend in NATIVE and "portable" in step:  # so that it can be saved again
            executable.portable = partial(self.executable, step["portable"])
        return executable

    def _is_native(self, step: Mapping[str, Any]) -> bool:
        """Whether the record, or who loads it, says that it is machine code: a file may keep quiet of it."""
        return step["backend"] in NATIVE | self.reader.added.native or "portable" in step

    def _why_not_native(self, backend: str, step: Mapping[str, Any]) -> str | None:
        if not self.allow_native:
            return f"it holds native code ('{backend}'); pass allow_native=True if you trust it"
        missing = sorted(set(step.get("requires", [])) - cpu_features())
        if missing:
            return f"native code ('{backend}') needs {', '.join(missing)}, which this CPU lacks"
        refusal = getattr(import_module(LOADERS[backend]), "refusal", None) if backend in NATIVE else None
        return None if refusal is None else refusal(step["record"])


def _loaded_by(load: Callable[[Any, Any], Any], backend: str, record: Any, reader: _Reader) -> Executable:
    """What a plug-in's loader makes of ``record``, which may be anything."""
    try:
        executable = load(record, reader)
    except ArtefactError:
        raise
    except Exception as error:
        raise ArtefactError(
            f"the loader of the back end '{backend}' failed: {type(error).__name__}: {error}",
            str(reader.folder),
        ) from error
    if not callable(getattr(executable, "run", None)) or getattr(executable, "backend", None) != backend:
        raise ArtefactError(
            f"the loader of the back end '{backend}' gave {executable!r}, which is no executable of it",
            str(reader.folder),
        )
    return CheckedExecutable(executable)
