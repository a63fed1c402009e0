"""Reading ``safetensors`` files in one pass.

The file is somebody else's: it is read once, and what is hashed is what becomes tensors, so that it cannot
change in between. Each tensor gets memory of its own, as torch aligns it. The header is believed only as
far as it fits the file: a claim of more bytes than there are allocates nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from regraft.errors import ArtefactError
from regraft.runtime.files import open_plain

_MAX_HEADER = 100_000_000
"""As in the safetensors library."""

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "C128": torch.complex128,
}

_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class _Span:
    """A tensor of the file: where it begins and ends among the data."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_weights(path: Path, expected_hash: str) -> dict[str, Tensor]:
    """The tensors of the file, whose SHA-256 must be ``expected_hash``.

    Raises:
        ArtefactError: it is no plain file, is damaged, or is no ``safetensors`` file.
    """
    with open_plain(path) as (file, size):
        digest = hashlib.sha256()
        try:
            tensors = _read(file, size, digest)
            problem = None
        except (*_MALFORMED, EOFError) as error:
            tensors, problem = {}, error
            while block := file.read(1 << 20):
                digest.update(block)
    if digest.hexdigest() != expected_hash:
        raise ArtefactError(f"'{path.name}' is damaged: its SHA-256 is not the manifest's", str(path))
    if problem is not None:
        raise ArtefactError(f"the weights cannot be read: {problem}", str(path)) from problem
    return tensors


def _read(file: BinaryIO, size: int, digest: Any) -> dict[str, Tensor]:
    def take(count: int) -> bytes:
        content = file.read(count)
        digest.update(content)
        if len(content) != count:
            raise EOFError("the file ends early")
        return content

    length = int.from_bytes(take(8), "little")
    if length > min(_MAX_HEADER, size - 8):
        raise ValueError(f"a header of {length} bytes does not fit")
    header = json.loads(take(length), object_pairs_hook=without_repeats)
    spans = _spans(header, size - 8 - length)
    tensors: dict[str, Tensor] = {}
    for span in spans:
        tensor = torch.empty(span.shape, dtype=span.dtype)
        memory = tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")
        if memory and file.readinto(memory) != span.end - span.begin:  # type: ignore[attr-defined]
            raise EOFError("the file ends early")
        digest.update(memory)
        tensors[span.name] = tensor
    if file.read(1):
        raise ValueError("there are bytes behind the last tensor")
    return tensors


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object as a dict.

    Raises:
        ValueError: a name is there twice.
    """
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name is there twice")
    return dict(pairs)


def _spans(header: Mapping[str, Any], room: int) -> list[_Span]:
    """The tensors in the order of their data, which they fill without gaps.

    Raises:
        ValueError: they do not.
    """
    found = [_span(name, record) for name, record in header.items() if name != "__metadata__"]
    found.sort(key=lambda span: (span.begin, span.end))
    position = 0
    for span in found:
        if span.begin != position:
            raise ValueError(f"the data of '{span.name}' overlaps or leaves a gap")
        position = span.end
    if position != room:
        raise ValueError(f"the tensors have {position} bytes, the file {room}")
    return found


def _span(name: str, record: Mapping[str, Any]) -> _Span:
    begin, end = record["data_offsets"]
    shape = tuple(record["shape"])
    dtype = _DTYPES[record["dtype"]]
    if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
        raise ValueError(f"the sizes of '{name}' are not whole numbers")
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"'{name}' has {end - begin} bytes, which is not its shape's size")
    return _Span(name, dtype, shape, begin, end)
