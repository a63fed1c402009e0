"""Python objects that an arm must not change: what it does to them would happen on the other path too.

Local variables, and containers that an arm visibly changes, are state and go where the call goes. All else
that can be reached from the variables of running functions is compared before and after.
"""

# What is walked has any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import BuiltinFunctionType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

from regraft.compiler.capture.control.context import Context
from regraft.compiler.capture.control.tree import PREFIX

_OPAQUE = (
    *(str, bytes, int, float, complex, type(None), type),
    *(Tensor, torch.dtype, torch.device, torch.Size, torch.SymInt, torch.SymFloat, torch.SymBool),
)
_CODE = (ModuleType, FunctionType, MethodType, BuiltinFunctionType, enum.Enum, FrameType)
_LIMIT = 200_000


@dataclass(frozen=True)
class Watch:
    """Containers and objects, each with its path and what it holds."""

    held: tuple[tuple[str, Any, tuple[Any, ...]], ...]

    @staticmethod
    def of(context: Context) -> Watch:
        """All that the running functions can reach through their variables."""
        found: list[tuple[str, Any, tuple[Any, ...]]] = []
        seen: set[int] = set()
        pending: deque[tuple[str, Any]] = deque()
        for frame in context.frames():
            pending += [(k, v) for k, v in frame.f_locals.items() if not k.startswith(PREFIX)]
        while pending and len(seen) < _LIMIT:
            path, value = pending.popleft()
            if id(value) in seen or isinstance(value, (*_OPAQUE, *_CODE)):
                continue
            seen.add(id(value))
            parts = list(_parts(value))
            if isinstance(value, (list, dict, set, deque)) or hasattr(value, "__dict__"):
                found.append((path, value, tuple(part for _, part in parts)))
            pending += [(f"{path}{name}", part) for name, part in parts]
        return Watch(tuple(found))

    def changed(self) -> str | None:
        """The path of something that is not as it was."""
        for path, value, before in self.held:
            now = [part for _, part in _parts(value)]
            if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
                names = [name for name, _ in _parts(value)]
                return path + next((n for n, a, b in zip(names, now, before, strict=False) if a is not b), "")
        return None


def is_shared(context: Context, name: str, container: Any) -> bool:
    """Whether more than the variable ``name`` of running functions leads to ``container``."""
    names = ((k, v) for frame in context.frames() for k, v in frame.f_locals.items())
    if any(value is container and key != name and not key.startswith(PREFIX) for key, value in names):
        return True
    return any(part is container for _, _, parts in Watch.of(context).held for part in parts)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield f"[{key!r}]" if isinstance(key, (str, int)) else "[...]", each
    elif isinstance(value, (list, tuple, deque)):
        yield from ((f"[{i}]", each) for i, each in enumerate(value))
    elif isinstance(value, set):
        yield from (("{...}", each) for each in sorted(value, key=id))
    else:
        yield from ((f".{name}", each) for name, each in getattr(value, "__dict__", {}).items())
