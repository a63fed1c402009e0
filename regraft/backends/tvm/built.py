"""What a build gives, and what it depends on: in memory, and as bytes for a cache."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regraft.backends.tvm.cpu import Cpu
from regraft.backends.tvm.library import PINS
from regraft.backends.tvm.table import SOURCE
from regraft.runtime import cpu_features, cpu_model

_LENGTH = 8


@dataclass(frozen=True)
class BuiltProgram:
    """A program as ``loaded.py`` takes it, and the shared object with its kernels (None: it has none).

    Fields:
        notes: what the user should know of the build.
    """

    program: Mapping[str, Any]
    library: bytes | None
    notes: Sequence[str] = ()

    def pack(self) -> bytes:
        """The program and its kernels in one piece, which ``unpack`` reads; it has no notes then."""
        head = json.dumps({"program": self.program, "has_library": self.library is not None}).encode()
        return len(head).to_bytes(_LENGTH, "little") + head + (self.library or b"")

    @staticmethod
    def unpack(content: bytes) -> BuiltProgram:
        """What ``pack`` made ``content`` of, which nobody has changed since."""
        end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
        head = json.loads(content[_LENGTH:end])
        return BuiltProgram(head["program"], content[end:] if head["has_library"] else None)


def calls_of(steps: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The calls of kernels among ``steps`` of a program, those in arms too."""
    for step in steps:
        if "kernel" in step:
            yield step
        for arm in step.get("arms", ()):
            yield from calls_of(arm)


def content_key(text: str, cpu: Cpu, configs: Mapping[str, Sequence[str]]) -> str:
    """Equal for builds that give the same: the function's text, the target, the configs, TVM's version, ours.

    The target has LLVM's name of the CPU, which the model tells: it says how code is scheduled.
    """
    chosen = {key: list(listed) for key, listed in configs.items()}
    return json.dumps(
        [text, asdict(cpu), cpu_model(), sorted(cpu_features()), chosen, PINS, SOURCE.read_text()]
    )
