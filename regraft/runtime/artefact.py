"""Artefacts: a compiled model as a folder.

``manifest.json`` names the format, the producer and every other file with its SHA-256; constants are
in ``weights.safetensors``; back ends add files of their own. Nothing is pickled, nothing outside the
folder is read, and the folder appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regraft.errors import ArtefactError, RegraftError
from regraft.runtime.added import Added
from regraft.runtime.dims import compile_dim
from regraft.runtime.effects import Effects
from regraft.runtime.executable import Executable
from regraft.runtime.plan import Plan, Step
from regraft.runtime.signature import GuardSpec, ParamSpec, Signature, SymbolSpec, TensorSpec, ValueSpec
from regraft.runtime.structures import dump_structure, load_structure

FORMAT = (1, 0)

#: Back end -> the module whose ``load(record, reader)`` rebuilds its executables.
LOADERS = {
    "ort": "regraft.backends.ort.run",
    "eager": "regraft.backends.eager.run",
    "example": "regraft.backends.example.run",
}
#: Back ends whose files hold machine code.
NATIVE: frozenset[str] = frozenset()

_MANIFEST = "manifest.json"
_WEIGHTS = "weights.safetensors"
_MAX_MANIFEST = 64 << 20

#: What reading raises where a file has another form than ours; RuntimeError is also nesting too deep.
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, NameError, RuntimeError, RegraftError)


@dataclass(frozen=True)
class Contents:
    """What an artefact holds besides the files of its back ends."""

    signature: Signature
    plan: Plan
    report: Mapping[str, Any]
    ir: str
    effects: Effects | None = None


class _FolderWriter:
    """Writes files into a folder that is not in its place yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, Tensor] = {}
        self.hashes: dict[str, str] = {}

    def add_tensor(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor.detach().contiguous()

    def add_file(self, name: str, content: bytes) -> None:
        (self.folder / _plain(name)).write_bytes(content)
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
    """Reads an artefact's files after checking their hashes."""

    def __init__(self, folder: Path, hashes: Mapping[str, str], added: Added) -> None:
        self.folder = folder
        self.hashes = hashes
        self.added = added
        for name in (_WEIGHTS, *hashes):
            path = folder / _plain(name)
            if name not in hashes or not path.is_file():
                raise ArtefactError(f"the artefact lacks '{name}'", str(folder))
            if path.is_symlink():
                raise ArtefactError(f"'{name}' is a link; an artefact holds its own files", str(path))
            if _file_hash(path) != hashes[name]:
                raise ArtefactError(f"'{name}' is damaged: its SHA-256 is not the manifest's", str(path))
        try:
            self._weights = safe_open(folder / _WEIGHTS, framework="pt")
        except SafetensorError as error:
            raise ArtefactError(f"the weights cannot be read: {error}", str(folder / _WEIGHTS)) from error

    def tensor(self, name: str) -> Tensor:
        try:
            return self._weights.get_tensor(name)
        except SafetensorError as error:
            raise ArtefactError(f"the artefact lacks the constant '{name}'", str(self.folder)) from error

    def file(self, name: str) -> bytes:
        if name not in self.hashes:
            raise ArtefactError(f"the artefact does not list '{name}'", str(self.folder))
        return (self.folder / _plain(name)).read_bytes()

    def library(self, domain: str) -> str:
        return self.added.library(domain)


def _plain(name: str) -> str:
    """``name`` when it is a file name and nothing more."""
    if not name or name in (".", "..") or any(c in name for c in "/\\\0:"):
        raise ArtefactError(f"'{name}' is not a file name")
    return name


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(contents: Contents, path: Path) -> None:
    """Write ``contents`` to the new folder ``path``; see ``CompiledModel.save``."""
    if path.exists():
        raise ArtefactError("there is something at this path already", str(path))
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
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


def _write(contents: Contents, folder: Path) -> None:
    writer = _FolderWriter(folder)
    steps = [_step_record(step, writer) for step in contents.plan.steps]
    effects = None if contents.effects is None else _effects_record(contents.effects, writer)
    writer.add_file("graph.ir", contents.ir.encode())
    writer.write_weights()
    manifest = {
        "format": list(FORMAT),
        "producer": "regraft",
        "files": writer.hashes,
        "signature": _signature_record(contents.signature),
        "plan": {
            "inputs": contents.plan.inputs,
            "slots": contents.plan.slots,
            "results": list(contents.plan.results),
            "steps": steps,
        },
        "effects": effects,
        "report": dict(contents.report),
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _effects_record(effects: Effects, writer: _FolderWriter) -> dict[str, Any]:
    """The effects; the state goes to ``writer`` under names that no constant has."""
    state: list[dict[str, str]] = []
    for name, tensor in effects.snapshot().items():
        stored = name
        while stored in writer.tensors:
            stored += "'"
        writer.add_tensor(stored, tensor)
        state.append({"name": name, "tensor": stored})
    return {"writes": [list(pair) for pair in effects.writes.items()], "state": state}


def _effects_from(record: Mapping[str, Any], signature: Signature, reader: _FolderReader) -> Effects | None:
    # A loaded state is written to: it must not be the file's own memory.
    state = {str(entry["name"]): reader.tensor(entry["tensor"]).clone() for entry in record["state"]}
    pairs = [_ints(pair) for pair in record["writes"]]
    writes = {pair[0]: pair[1] for pair in pairs}
    return Effects.of(signature, writes, state)


def _step_record(step: Step, writer: _FolderWriter) -> dict[str, Any]:
    return {
        "backend": step.executable.backend,
        "record": step.executable.save(writer),
        "inputs": list(step.inputs),
        "outputs": list(step.outputs),
        "dead": list(step.dead),
    }


def read(folder: Path, *, allow_native: bool, added: Added | None = None) -> Contents:
    """The contents of an artefact; see ``regraft.load``."""
    manifest = _read_manifest(folder)
    try:
        reader = _FolderReader(folder, dict(manifest["files"]), added or Added())
        plan = _plan_from(manifest["plan"], reader, allow_native)
        signature = _signature_from(manifest["signature"])
        record = manifest.get("effects")
        effects = None if record is None else _effects_from(record, signature, reader)
        _check_fit(signature, plan, effects)
        ir = reader.file("graph.ir").decode()
        return Contents(signature, plan, dict(manifest["report"]), ir, effects)
    except ArtefactError:
        raise
    except _MALFORMED as error:
        raise ArtefactError(f"the manifest is malformed: {error!r}", str(folder)) from error


def _check_fit(signature: Signature, plan: Plan, effects: Effects | None) -> None:
    """What a call takes for granted: it holds of what we write, but a file may say anything.

    Raises:
        ValueError: a number is out of its range.
        NameError: a size names a symbol that no input defines.
    """
    tensors = signature.tensors
    state = () if effects is None else effects.state
    inputs = len(tensors) + len(state)
    _require(plan.inputs == inputs, "the plan and the signature differ in the number of inputs")
    _check_slots(plan)
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
    results = _ints(output for output in signature.outputs if not isinstance(output, ValueSpec))
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
        _require(filled.issuperset(step.dead), "a step frees what no step has made")
        filled.difference_update(step.dead)
    _require(filled.issuperset(plan.results), "a result is what no step has made")
    _require(len(made) == plan.slots and made == set(range(len(made))), "the slots are not in use")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _ints(values: Iterable[Any]) -> tuple[int, ...]:
    """``values``, which must be whole numbers.

    Raises:
        TypeError: one is not.
    """
    found = tuple(values)
    if any(type(value) is not int for value in found):
        raise TypeError(f"{found} are not whole numbers")
    return found


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ArtefactError("the manifest is too large", str(path))
        manifest = json.loads(path.read_bytes())
        major, minor = manifest["format"]
    except OSError as error:
        raise ArtefactError(f"not an artefact: {error.strerror}", str(path)) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtefactError(f"the manifest is malformed: {error!r}", str(path)) from error
    if major != FORMAT[0]:
        raise ArtefactError(f"format {major}.{minor} cannot be read; this is format {FORMAT[0]}.x", str(path))
    return manifest


def _plan_from(record: Mapping[str, Any], reader: _FolderReader, allow_native: bool) -> Plan:
    steps = tuple(
        Step(
            _executable(step["backend"], step["record"], reader, allow_native),
            _ints(step["inputs"]),
            _ints(step["outputs"]),
            _ints(step["dead"]),
        )
        for step in record["steps"]
    )
    inputs, slots = _ints((record["inputs"], record["slots"]))
    return Plan(inputs, slots, steps, _ints(record["results"]))


def _executable(backend: str, record: Any, reader: _FolderReader, allow_native: bool) -> Executable:
    if backend not in LOADERS:
        return _loaded_by(reader.added.loader(backend), backend, record, reader)
    if backend in NATIVE and not allow_native:
        raise ArtefactError(f"it holds native code ('{backend}'); pass allow_native=True if you trust it")
    return import_module(LOADERS[backend]).load(record, reader)


def _loaded_by(
    load: Callable[[Any, Any], Any], backend: str, record: Any, reader: _FolderReader
) -> Executable:
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
    return executable


def _signature_record(signature: Signature) -> dict[str, Any]:
    return {
        "params": [
            {
                "name": param.name,
                "leaves": [_leaf_record(leaf) for leaf in param.leaves],
                "structure": None if param.structure is None else dump_structure(param.structure),
            }
            for param in signature.params
        ],
        "positional": list(signature.positional),
        "defaults": {name: value for name, value in signature.defaults.items() if _is_json(value)},
        "symbols": [dataclasses.asdict(symbol) for symbol in signature.symbols],
        "outputs": [o if isinstance(o, int) else _leaf_record(o) for o in signature.outputs],
        "out_structure": dump_structure(signature.out_structure),
        "guards": [dataclasses.asdict(guard) for guard in signature.guards],
        "autocast": signature.autocast,
        "returned": list(signature.returned),
    }


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _leaf_record(leaf: TensorSpec | ValueSpec) -> dict[str, Any]:
    if isinstance(leaf, ValueSpec) and not _is_json(leaf.value):
        raise ArtefactError(f"the value of '{leaf.name}', {leaf.value!r}, cannot be saved")
    return dataclasses.asdict(leaf)


def _signature_from(record: Mapping[str, Any]) -> Signature:
    params = tuple(
        ParamSpec(
            param["name"],
            tuple(_leaf_from(leaf) for leaf in param["leaves"]),
            None if param["structure"] is None else load_structure(param["structure"]),
        )
        for param in record["params"]
    )
    outputs = tuple(o if isinstance(o, int) else ValueSpec(o["name"], o["value"]) for o in record["outputs"])
    return Signature(
        params,
        tuple(record["positional"]),
        dict(record["defaults"]),
        tuple(_symbol_from(symbol) for symbol in record["symbols"]),
        outputs,
        load_structure(record["out_structure"]),
        tuple(GuardSpec(**guard) for guard in record["guards"]),
        record.get("autocast"),
        _ints(record.get("returned", ())),
    )


def _symbol_from(record: Mapping[str, Any]) -> SymbolSpec:
    symbol = SymbolSpec(**record)
    _ints((symbol.input, symbol.axis, symbol.lo, symbol.divisor, symbol.scale, symbol.offset))
    _ints(() if symbol.hi is None else (symbol.hi,))
    return symbol


def _leaf_from(record: Mapping[str, Any]) -> TensorSpec | ValueSpec:
    if "dtype" in record:
        return TensorSpec(record["name"], record["dtype"], tuple(record["shape"]), record["device"])
    return ValueSpec(record["name"], record["value"])
