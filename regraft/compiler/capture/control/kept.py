"""A trace leaves the model's Python objects as they were, and nothing of its own in them.

What the code assigns to attributes and to variables that outlive a call, and what it puts into lists, dicts,
sets and arrays, it does for real while it is traced. ``torch.export`` undoes a part of that: what attributes
of modules were, not what lists hold. How far an iterator is cannot be put back.
"""

# What is walked has any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import copy
import dis
import linecache
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from types import CellType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch._subclasses import FakeTensor

from regraft.compiler.capture.control.convert import original
from regraft.compiler.capture.control.growing import Growing
from regraft.compiler.capture.control.number import Array, Number
from regraft.compiler.capture.control.reach import (
    EMPTY,
    LIMIT,
    Globals,
    attributes_of,
    cells_of,
    content,
    is_buffer,
    is_opaque,
    is_read_only,
    of_iterator,
    parts,
    same,
    slots_of,
    variable_of,
)
from regraft.compiler.capture.control.sequences import Sequence as Unknown
from regraft.compiler.capture.control.sequences import Span
from regraft.compiler.capture.control.swap import nested
from regraft.compiler.capture.control.trace import depends_on_a_call
from regraft.compiler.capture.control.unordered import Unordered
from regraft.compiler.capture.source import is_users, line_of_assignment
from regraft.errors import CaptureError

#: What only a call knows, but for tensors.
_OF_THE_TRACE = (Number, Growing, Unordered, Span, Unknown, Array)
#: Python's containers that can change; a class derived from one may do anything in its own methods.
_CONTAINERS = (list, deque, OrderedDict, dict, set)
#: A function whose results Python keeps.
_CACHED = type(lru_cache(len))
#: What each module has. Parameters, buffers and hooks are in the hands of torch.export and of ours.
_STANDARD = frozenset(vars(nn.Module()))


class KeptAttribute(Exception):
    """A tensor of the call is left in the ``attribute`` of a module, which ``refusal`` says."""

    def __init__(self, attribute: str, refusal: CaptureError) -> None:
        super().__init__(attribute)
        self.attribute, self.refusal = attribute, refusal


@contextmanager
def unchanged(module: nn.Module, apart: Collection[str] = ()) -> Generator[None]:
    """Put back what ``module``, which is traced in the block, does to its objects.

    What the attributes of the paths ``apart`` hold at the end does not matter.

    Raises:
        CaptureError: it ends with something in them that only a call knows, or another tensor in an attribute
            that had one, which a graph does not keep from call to call; or an iterator has been advanced.
        KeptAttribute: it is a tensor in an attribute of a module that the code reads.
    """
    reached = list(_reached(module))
    put_back = [each for _, value in reached for each in _putting_back(value)]
    functions = [value for _, value in reached if isinstance(value, FunctionType)]
    iterators = [(path, each, tuple(of_iterator(each))) for path, each in reached if _is_only_gone_over(each)]
    tensors = list(_tensors(module))
    kept: list[str] = []
    tensors_kept: set[str] = set()

    def look(*_: Any) -> None:
        for path, value in _reached(module):
            if _is_of_the_trace(value) and _attribute(path) not in apart:
                kept.append(path)
                tensors_kept.update([path] if isinstance(value, FakeTensor) else [])
        kept.extend(path for path, held, name, tensor in tensors if held.get(name) is not tensor)

    def check() -> None:
        for path, each, before in iterators:
            now = tuple(of_iterator(each))
            if len(now) != len(before) or not all(map(same, now, before)):
                reason, hint = f"the model advances the iterator '{path}', which outlives a call", _ITERATOR
                raise _refusal(module, functions, path, reason, hint)
        if kept:
            is_attribute = " of " not in kept[0] and hasattr(module, re.findall(r"\w+", kept[0])[0])
            what = f"its attribute '{kept[0]}'" if is_attribute else f"'{kept[0]}', which outlives a call"
            refusal = _refusal(module, functions, kept[0], f"the model writes to {what}", _VALUE)
            attribute = _attribute(kept[0])
            # What no code reads is there for the caller to read.
            is_read = any(_lines(functions, "LOAD_ATTR", attribute.rpartition(".")[2]))
            if kept[0] in tensors_kept and is_read and _is_plain(module, attribute):
                raise KeptAttribute(attribute, refusal)
            raise refusal

    hook = module.register_forward_hook(look)
    try:
        yield
    except CaptureError:
        raise
    except Exception:  # the next trace would find an iterator advanced
        kept.clear()
        check()
        raise
    finally:
        hook.remove()
        for each in put_back:
            each()
    check()


_VALUE = "return the new value instead of keeping it in the model"
_ITERATOR = "keep a list in its place, and how far it is in a buffer, or pass its values as arguments"


def _attribute(path: str) -> str:
    """The attribute with which ``path`` begins."""
    return path.partition("[")[0]


def _is_plain(module: nn.Module, path: str) -> bool:
    """Whether ``path`` is that of an attribute of a module."""
    return " " not in path and path.rpartition(".")[0] in {name for name, _ in module.named_modules()}


def _is_of_the_trace(value: Any) -> bool:
    """Whether ``value`` is another one in each call; a tensor that constants make is only remembered."""
    if isinstance(value, FakeTensor):
        return depends_on_a_call(value)
    return isinstance(value, _OF_THE_TRACE)


def _is_only_gone_over(value: Any) -> bool:
    """Whether ``value`` is an iterator that has no attributes, which could be put back."""
    return isinstance(value, Iterator) and not hasattr(value, "__dict__") and not slots_of(type(value))


def _putting_back(value: Any) -> Iterator[Callable[[], None]]:
    """What makes ``value`` hold what it does now."""
    base = next((each for each in _CONTAINERS if issubclass(type(value), each)), None)
    if base is not None:
        yield partial(_refill, base, value, _elements(base, value))
    if is_buffer(value):
        if not isinstance(value, memoryview) and not is_read_only(value):
            yield partial(_rewrite, value, copy.copy(value))
    elif isinstance(value, Globals):
        for name, namespace in value.variables():
            yield partial(_set_item, namespace, name, variable_of(namespace, name))
    elif issubclass(type(value), type):
        yield partial(_set_attributes, value, attributes_of(value))
    else:
        attributes = getattr(value, "__dict__", None)
        if type(attributes) is dict:
            yield partial(_refill, dict, attributes, _elements(dict, attributes))
        for name in slots_of(type(value)):
            yield partial(_set_slot, value, name, getattr(value, name, EMPTY))
        if isinstance(value, _CACHED):
            yield partial(_forget, value, value.cache_info())
        if isinstance(value, FunctionType) and is_users(value.__code__.co_filename):
            yield from (partial(_set_cell, cell, content(cell)) for _, cell in cells_of(value))


def _elements(base: Any, container: Any) -> tuple[Any, ...]:
    """What ``container``, a ``base`` or derived, holds; of a dict the keys, and then the values."""
    elements = tuple(base.__iter__(container))
    if not issubclass(base, dict):
        return elements
    if base is dict:
        return (*elements, *dict.values(container))
    # The order is its own, and its values() may ask methods of a derived class.
    return (*elements, *(dict.__getitem__(container, key) for key in elements))


def _refill(base: Any, container: Any, before: tuple[Any, ...]) -> None:
    """Make ``container`` hold ``before``, as ``_elements`` has it, by the methods of ``base``."""
    now = _elements(base, container)
    if len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True)):
        return
    base.clear(container)
    if issubclass(base, dict):
        size = len(before) // 2
        for key, value in zip(before[:size], before[size:], strict=True):
            base.__setitem__(container, key, value)
    elif issubclass(base, set):
        base.update(container, before)
    else:
        base.extend(container, before)


def _forget(function: Any, before: Any) -> None:
    """Empty the cache of ``function`` if it has got results since its ``cache_info`` was ``before``."""
    now = function.cache_info()
    if (now.misses, now.currsize) != (before.misses, before.currsize):
        function.cache_clear()


def _rewrite(memory: Any, before: Any) -> None:
    if hasattr(memory, "ndim"):
        if memory.flags.writeable:
            memory[...] = before
    else:
        memory[:] = before


def _set_item(namespace: dict[str, Any], name: str, before: Any) -> None:
    now = variable_of(namespace, name)
    if before is EMPTY and now is not EMPTY:
        del namespace[name]
    elif now is not before:
        namespace[name] = before


def _set_attributes(cls: type, before: dict[str, Any]) -> None:
    now = attributes_of(cls)
    for name in now.keys() - before.keys():
        type.__delattr__(cls, name)
    for name, value in before.items():
        if now.get(name, EMPTY) is not value:
            type.__setattr__(cls, name, value)


def _set_slot(value: Any, name: str, before: Any) -> None:
    now = getattr(value, name, EMPTY)
    if before is EMPTY and now is not EMPTY:
        object.__delattr__(value, name)
    elif now is not before:
        object.__setattr__(value, name, before)


def _set_cell(cell: CellType, before: Any) -> None:
    now = content(cell)
    if before is EMPTY and now is not EMPTY:
        del cell.cell_contents
    elif now is not before:
        cell.cell_contents = before


def _reached(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What leads from ``module`` to objects that can change, and what is of the trace, each with its path."""
    pending: deque[tuple[str, Any]] = deque([("", module)])
    seen: dict[int, Any] = {}  # with the objects, or another one may come to have the identity of one
    while pending and len(seen) < LIMIT:
        path, value = pending.popleft()
        is_of_the_trace = _is_of_the_trace(value)
        if id(value) in seen or (is_opaque(value) and not is_of_the_trace):
            continue
        seen[id(value)] = value
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
    if isinstance(module, nn.RNNBase):  # torch.export sees to the lists that it keeps of its weights
        own = [(name, value) for name, value in own if name not in ("_flat_weights", "_flat_weight_refs")]
    for name, value in (*module.named_children(), *own):
        if not isinstance(value, Tensor):  # torch.export sees to those
            yield f"{path}.{name}".removeprefix("."), value
    yield type(module).__qualname__, type(module)


def _refusal(
    module: nn.Module, functions: Sequence[FunctionType], path: str, reason: str, hint: str
) -> CaptureError:
    line = _line(module, functions, path)
    return CaptureError(
        reason,
        location=f"{line[0]}:{line[1]}" if line else None,
        source_line=linecache.getline(*line).strip() if line else None,
        hint=hint,
    )


def _line(module: nn.Module, functions: Sequence[FunctionType], path: str) -> tuple[str, int] | None:
    """File and line where the model's code uses the attribute or variable with which ``path`` begins."""
    names = re.findall(r"\w+", path)
    owners = {name for name, _ in module.named_modules()}
    deepest = max(i for i in range(len(names)) if ".".join(names[:i]) in owners)
    found = line_of_assignment(module, ".".join(names[: deepest + 1])) if " of " not in path else None
    if found is not None:
        return found
    last = re.findall(r"\w+", path.partition(" of ")[0].partition("[")[0])[-1]
    uses = (line for kind in ("STORE_", "LOAD_") for line in _lines(functions, kind, last))
    codes = (f.__code__ for f in functions if is_users(f.__code__.co_filename))
    return next(uses, None) or next(((c.co_filename, c.co_firstlineno) for c in codes), None)


def _lines(functions: Sequence[FunctionType], kind: str, name: str) -> Iterator[tuple[str, int]]:
    """Where the functions of the user's own store ``name``, or load it."""
    for function in functions:
        for code in nested(original(function.__code__)) if is_users(function.__code__.co_filename) else ():
            line = code.co_firstlineno
            for step in dis.get_instructions(code):
                line = (step.positions and step.positions.lineno) or line
                if step.opname.startswith(kind) and step.argval == name:
                    yield code.co_filename, line
