"""A trace leaves the model's Python objects as they were, and nothing of its own in them.

What the code assigns to attributes, and what it puts into lists, dicts and sets, it does for real while it is
traced. ``torch.export`` undoes a part of that: what attributes of modules were, not what lists hold.
"""

# What is walked has any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import linecache
import re
from collections import OrderedDict, defaultdict, deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from regraft.compiler.capture.control.growing import Growing
from regraft.compiler.capture.control.number import Array, Number
from regraft.compiler.capture.control.sequences import Sequence, Span
from regraft.compiler.capture.control.unordered import Unordered
from regraft.compiler.capture.control.watch import LIMIT, OPAQUE, parts
from regraft.compiler.capture.source import line_of_assignment
from regraft.errors import CaptureError

#: What only a call knows, but for tensors, of which torch.export sees to the attributes.
_OF_THE_TRACE = (Number, Growing, Unordered, Span, Sequence, Array)
#: Of these the methods are Python's own.
_CONTAINERS = frozenset([list, deque, dict, OrderedDict, defaultdict, set])
#: What each module has. Parameters, buffers and hooks are in the hands of torch.export and of ours.
_STANDARD = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class _Held:
    """A container, or the attributes of an object, and what it holds before the trace."""

    container: Any
    content: Any

    @staticmethod
    def of(value: Any) -> _Held | None:
        """None where ``value`` is nothing that can be put back."""
        if type(value) not in _CONTAINERS:
            value = getattr(value, "__dict__", None)
            if type(value) is not dict:
                return None
        return _Held(value, value.copy())

    def restore(self) -> None:
        if _same(self.container, self.content):
            return
        self.container.clear()
        if isinstance(self.container, (list, deque)):
            self.container.extend(self.content)
        else:
            self.container.update(self.content)


def _same(one: Any, other: Any) -> bool:
    """Whether two containers hold the same objects."""
    if isinstance(one, dict):
        return _same(list(one), list(other)) and _same(list(one.values()), list(other.values()))
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


@contextmanager
def unchanged(module: nn.Module) -> Generator[None]:
    """Put back what ``module``, which is traced in the block, does to its objects.

    Raises:
        CaptureError: it ends with something in them that only a call knows, or another tensor in an attribute
            that had one, which a graph does not keep from call to call.
    """
    held = [each for _, value in _reached(module) if (each := _Held.of(value)) is not None]
    tensors = list(_tensors(module))
    kept: list[str] = []

    def look(*_: Any) -> None:
        kept.extend(path for path, value in _reached(module) if isinstance(value, _OF_THE_TRACE))
        kept.extend(path for path, held, name, tensor in tensors if held.get(name) is not tensor)

    hook = module.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()
        for each in held:
            each.restore()
    if kept:
        line = _line(module, kept[0])
        raise CaptureError(
            f"the model writes to its attribute '{kept[0]}'",
            location=f"{line[0]}:{line[1]}" if line else None,
            source_line=linecache.getline(*line).strip() if line else None,
            hint="return the new value instead of keeping it in the model",
        )


def _reached(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What leads from ``module`` to objects that can change, and what is of the trace, each with its path."""
    pending: deque[tuple[str, Any]] = deque([("", module)])
    seen: set[int] = set()
    while pending and len(seen) < LIMIT:
        path, value = pending.popleft()
        if id(value) in seen:
            continue
        is_of_the_trace = isinstance(value, _OF_THE_TRACE)
        # What a function closes over is its author's, who may want to see what a trace has put there.
        if isinstance(value, (FunctionType, *OPAQUE)) and not is_of_the_trace:
            continue
        seen.add(id(value))
        yield path, value
        if not is_of_the_trace:
            pending += _of_module(path, value) if isinstance(value, nn.Module) else parts(path, value)


def _tensors(module: nn.Module) -> Iterator[tuple[str, dict[str, Any], str, Tensor]]:
    """Tensors that are plain attributes: path, the attributes that each is one of, its name, and itself."""
    for path, each in module.named_modules():
        attributes = vars(each)
        for name, value in attributes.items():
            if isinstance(value, Tensor):
                yield f"{path}.{name}".removeprefix("."), attributes, name, value


def _of_module(path: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    own = [(name, value) for name, value in vars(module).items() if name not in _STANDARD]
    for name, value in (*module.named_children(), *own):
        yield f"{path}.{name}".removeprefix("."), value


def _line(module: nn.Module, path: str) -> tuple[str, int] | None:
    """File and line where a module's code uses the attribute with which ``path`` begins."""
    names = re.findall(r"\w+", path)
    owners = {name for name, _ in module.named_modules()}
    deepest = max(i for i in range(len(names)) if ".".join(names[:i]) in owners)
    return line_of_assignment(module, ".".join(names[: deepest + 1]))
