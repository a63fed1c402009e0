"""Entries of the cache as bytes: the rewritten graph as text, and what is needed to bind it to a model.

::

    regraft-cache 1
    <SHA-256 of all that follows this line, in hex>
    <head: a line of JSON, what an entry says of itself>
    <body: a line of JSON>

There are no weights in it. A constant is known by its name in the model, and only a tensor that capture
lifted out of the code itself is there with its values. Whoever reads an entry must expect anything: the
file may be cut off, of another version, or somebody else's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regraft.compiler.materialise import tensor_of
from regraft.errors import RegraftError
from regraft.ir import STAGES, Function, Leaf, Module, OpTable, parse_module, print_module, verify
from regraft.runtime import DTYPE_NAMES, TORCH_DTYPES, signature_from, signature_record, text

FORMAT = 1
_MAGIC = f"regraft-cache {FORMAT}\n".encode()
_ANY_MAGIC = b"regraft-cache "

#: What reading raises where a text has another form than ours; RecursionError is a RuntimeError.
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, RegraftError)

#: All literals of an entry together may have this many bytes.
MAX_LITERALS = 1 << 20


class DamagedEntry(Exception):
    """A file is no entry that this version reads; the message says why."""


class Unstorable(Exception):
    """A compile has a part that an entry cannot hold; the message says which."""


@dataclass(frozen=True)
class LeafRecord:
    """A leaf of the graph: its names in the model, or its values when it is no tensor of the model's."""

    name: str
    names: tuple[str, ...]
    literal: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Entry:
    """One compile.

    Fields:
        model: the name of the model's class or function.
        components: the key, by component.
        ir: the text of the graph after all passes.
        signatures: function -> its calling convention, as a record.
        leaves: name in the text -> what it stands for.
        read: name in the model -> hash, of constants whose values a pass has read.
        report: what the compile reported of capture and passes.
    """

    model: str
    components: Mapping[str, str]
    ir: str
    signatures: Mapping[str, Any]
    leaves: Mapping[str, LeafRecord]
    read: Mapping[str, str]
    report: Mapping[str, Any]

    def pack(self, head: Mapping[str, Any]) -> bytes:
        """The entry as bytes.

        Raises:
            Unstorable: it holds what JSON has no form for.
        """
        body = {
            "components": list(self.components.items()),
            "ir": self.ir,
            "signatures": self.signatures,
            "leaves": {k: [v.name, list(v.names), v.literal] for k, v in self.leaves.items()},
            "read": self.read,
            "report": self.report,
        }
        try:
            lines = [_line({"model": self.model, **head}), _line(body)]
        except (TypeError, ValueError) as error:
            raise Unstorable(f"a part of the result cannot be written: {error}") from error
        content = b"\n".join(lines)
        return _MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content

    @staticmethod
    def unpack(content: bytes) -> Entry:
        """The entry in ``content``.

        Raises:
            DamagedEntry: it is damaged, or of another format.
        """
        head, body = _lines(content)
        try:
            return Entry(
                str(head["model"]),
                {str(name): str(value) for name, value in body["components"]},
                text(body["ir"]),
                dict(body["signatures"]),
                {name: _leaf(*record) for name, record in body["leaves"].items()},
                {text(name): text(value) for name, value in body["read"].items()},
                dict(body["report"]),
            )
        except _MALFORMED as error:
            raise DamagedEntry(f"it is malformed: {error!r}") from error


def read_head(content: bytes) -> dict[str, Any]:
    """What an entry says of itself.

    Raises:
        DamagedEntry: it is damaged, or of another format.
    """
    return _lines(content)[0]


def _leaf(name: Any, names: Any, literal: Any) -> LeafRecord:
    return LeafRecord(text(name), tuple(text(each) for each in names), literal)


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _lines(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Head and body, after their hash was checked."""
    if not content.startswith(_MAGIC):
        other = content.startswith(_ANY_MAGIC)
        raise DamagedEntry("it is of another format" if other else "it is not an entry")
    expected, _, rest = content[len(_MAGIC) :].partition(b"\n")
    if hashlib.sha256(rest).hexdigest().encode() != expected:
        raise DamagedEntry("its SHA-256 does not fit its content")
    head, _, body = rest.partition(b"\n")
    try:
        found = json.loads(head), json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DamagedEntry(f"it is malformed: {error!r}") from error
    if not all(isinstance(each, dict) for each in found):
        raise DamagedEntry("it is malformed")
    return found


# -- modules -----------------------------------------------------------------------------------


def describe_module(module: Module, model: Any) -> tuple[str, dict[str, Any], dict[str, LeafRecord]]:
    """Text, signatures and leaves of a rewritten module of ``model``.

    Raises:
        Unstorable: a part of it cannot be written down.
    """
    room = MAX_LITERALS
    leaves: dict[str, LeafRecord] = {}
    for constant, name in module.constants().items():
        if not isinstance(constant, Leaf):
            continue
        literal = None
        if not _is_of_model(constant, model):
            room -= constant.storage.nbytes
            if room < 0:
                raise Unstorable(f"its code holds more than {MAX_LITERALS} bytes of tensors")
            literal = _literal(constant.storage)
        leaves[name] = LeafRecord(constant.name, constant.names, literal)
    signatures: dict[str, Any] = {}
    for name, function in module.functions.items():
        if function.aliases or function.state:
            raise Unstorable("it writes to its state or its arguments, which an entry does not hold")
        try:
            signatures[name] = signature_record(function.signature)
        except RegraftError as error:
            raise Unstorable(error.message) from error
        signatures[name]["defaults"] = list(function.signature.defaults)
    return print_module(module), signatures, leaves


def _is_of_model(leaf: Leaf, model: Any) -> bool:
    """Whether the model has this very tensor under each of the leaf's names."""
    try:
        found = [tensor_of(model, name) for name in leaf.names or (leaf.name,)]
    except RegraftError:
        return False
    return all(
        t.data_ptr() == leaf.storage.data_ptr()
        and t.shape == leaf.storage.shape
        and t.stride() == leaf.storage.stride()
        and t.dtype == leaf.storage.dtype
        for t in found
    )


def restore_module(entry: Entry, table: OpTable, tensors: Mapping[str, torch.Tensor]) -> Module:
    """The module of an entry over ``tensors`` (by name in the text); signatures are left to ``signatures``.

    Raises:
        DamagedEntry: the text is no module over these tensors.
    """
    storages = dict(tensors)
    for name, record in entry.leaves.items():
        if record.literal is not None:
            storages[name] = _tensor(record.literal)
    try:
        module = parse_module(entry.ir, table, storages)
        verify(module, STAGES[-1])
    except _MALFORMED as error:
        raise DamagedEntry(f"its graph cannot be read: {error}") from error
    for constant, name in module.constants().items():
        if isinstance(constant, Leaf):
            _check_type(constant, storages[name])
            record = entry.leaves[name]
            constant.name, constant.names = record.name, record.names
    return module


def restore_signature(entry: Entry, function: Function, defaults: Mapping[str, Any]) -> None:
    """Give ``function`` its signature, with the values of ``defaults`` where the entry has their names.

    Raises:
        DamagedEntry: the entry's record does not fit.
    """
    try:
        record = dict(entry.signatures[function.name])
        record["defaults"] = {name: defaults[name] for name in record["defaults"]}
        signature = signature_from(record)
    except _MALFORMED as error:
        raise DamagedEntry(f"its signature cannot be read: {error!r}") from error
    if len(signature.tensors) != len(function.args):
        raise DamagedEntry("its signature does not fit its graph")
    function.signature = signature


def _check_type(leaf: Leaf, tensor: torch.Tensor) -> None:
    same = tuple(tensor.shape) == leaf.type.shape and DTYPE_NAMES.get(tensor.dtype) == leaf.type.dtype.value
    if not same or tensor.device.type != leaf.type.device:
        raise DamagedEntry(f"the constant '{leaf.name}' is {leaf.type}, the model's is {list(tensor.shape)}")


def _literal(tensor: torch.Tensor) -> dict[str, Any]:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return {
        "dtype": DTYPE_NAMES[plain.dtype],
        "shape": list(plain.shape),
        "device": str(tensor.device),
        "data": base64.b64encode(data).decode(),
    }


def _tensor(record: Mapping[str, Any]) -> torch.Tensor:
    """The tensor of a literal.

    Raises:
        DamagedEntry: the record is not that of one.
    """
    try:
        dtype: torch.dtype = TORCH_DTYPES[record["dtype"]]
        shape: Sequence[int] = record["shape"]
        data = base64.b64decode(record["data"], validate=True)
        sound = all(type(n) is int and n >= 0 for n in shape)
        if not sound or math.prod(shape) * dtype.itemsize != len(data):
            raise DamagedEntry("a literal has another size than its data")
        flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return flat.reshape(tuple(shape)).to(str(record["device"]))
    except (*_MALFORMED, binascii.Error) as error:
        raise DamagedEntry(f"a literal is malformed: {error!r}") from error
