"""The variables that an arm or a trip may change: read, set back, and made one where two paths meet.

A variable's value is a pytree. Tensors in it become results of the condition or values that a loop carries;
Python numbers that differ become ``Number``; all else must be the same on both paths. A variable for which
that does not hold has no value afterwards, which is an error only if it is read.
"""

# torch's pytrees are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regraft.compiler.capture.control.growing import Growing
from regraft.compiler.capture.control.number import (
    SYMBOLIC,
    Array,
    Number,
    as_tensor,
    dtype_of,
    is_carried,
    kind_of,
    type_beside,
)
from regraft.compiler.capture.control.optional import Maybe, Unlike, are_unlike, in_place_of
from regraft.compiler.capture.control.structure import (
    flatten,
    is_atom,
    is_record,
    mapped,
    parted,
    unflatten,
)


class _Mark:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


#: The value of a variable that has none.
UNBOUND = _Mark("UNBOUND")
#: In place of a value: the variable is as it should be.
KEPT = _Mark("KEPT")

CONTAINERS = (list, dict, set, Growing)
#: The containers of which the parts go where the call goes. What becomes of others must not depend on it.
_IN_PARTS = (list, dict, OrderedDict, defaultdict)
_BY_VALUE = (str, bytes, type(None), torch.dtype, torch.device, torch.Size, complex, slice, range)


@dataclass(frozen=True)
class Variables:
    """Variables of a running function.

    Fields:
        names: as the source has them; with dots, an attribute of a variable.
        gets: read one each, and raise ``NameError`` or ``AttributeError`` where it has no value.
        put: sets all of them.
    """

    names: tuple[str, ...]
    gets: tuple[Callable[[], Any], ...]
    put: Callable[..., None]

    def read(self) -> tuple[Any, ...]:
        return tuple(_value(get) for get in self.gets)

    def value(self, name: str) -> Any:
        return _value(self.gets[self.names.index(name)])

    def write(self, values: Sequence[Any]) -> None:
        """Give the variables ``values``; ``UNBOUND`` takes a variable its value."""
        now = self.read()
        self.put(*(KEPT if new is old else new for new, old in zip(values, now, strict=True)))

    def only(self, names: Sequence[str]) -> Variables:
        """The same, of which only ``names`` are looked at."""
        kept = [i for i, name in enumerate(self.names) if name in names]

        def put(*values: Any) -> None:
            row: list[Any] = [KEPT] * len(self.names)
            for i, value in zip(kept, values, strict=True):
                row[i] = value
            self.put(*row)

        return Variables(tuple(self.names[i] for i in kept), tuple(self.gets[i] for i in kept), put)


def _value(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except (NameError, AttributeError):
        return UNBOUND


@dataclass(frozen=True)
class Saved:
    """What variables are before an arm runs, and what the containers among them hold."""

    variables: Variables
    values: tuple[Any, ...]
    contents: tuple[tuple[Any, Any], ...]

    @staticmethod
    def of(variables: Variables, live: Sequence[str] | None = None) -> Saved:
        """What ``variables`` are; of those that are not ``live`` only what is theirs alone, at no depth."""
        values = variables.read()
        contents: dict[int, tuple[Any, Any]] = {}
        for name, value in zip(variables.names, values, strict=True):
            _save(value, contents, is_deep=live is None or name in live)
        return Saved(variables, values, tuple(contents.values()))

    def restore(self) -> None:
        for container, content in self.contents:
            if not _hold_the_same(container, content):
                fill(container, content)
        self.variables.write(self.values)

    def changed(self) -> Any:
        """A container that has changed since and of which no parts are known, as a set; None without one."""
        for container, content in self.contents:
            in_parts = type(container) in _IN_PARTS or isinstance(container, Growing) or is_record(container)
            if not in_parts and not _hold_the_same(container, content):
                return container
        return None


def _save(value: Any, contents: dict[int, tuple[Any, Any]], *, is_deep: bool) -> None:
    """Note what ``value`` holds, and what the containers in it do, at any depth."""
    if id(value) in contents:
        return
    if isinstance(value, (*CONTAINERS, deque)) or is_record(value):
        contents[id(value)] = (value, copy.copy(value))
    elif not isinstance(value, tuple):
        return
    if is_deep and not isinstance(value, (set, Growing, Array)):
        for each in vars(value).values() if is_record(value) else _elements(value):
            _save(each, contents, is_deep=True)


def _elements(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _hold_the_same(container: Any, content: Any) -> bool:
    """Whether two containers of one type hold the very same parts; those of a set have no order."""
    if isinstance(container, set):
        return set(map(id, container)) == set(map(id, content))
    return still_holds(container, holding(content))


def fill(container: Any, content: Any) -> None:
    """Make ``container``, a list, dict, set, deque or record, hold what ``content``, of its type, holds."""
    if container is content:
        return
    if isinstance(container, Growing):
        vars(container).update(vars(content))
    elif is_record(container):
        for part, value in vars(content).items():
            object.__setattr__(container, part, value)
    elif isinstance(container, deque):
        container.clear()
        container.extend(content)
    elif isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


def holding(container: Any) -> tuple[Any, ...]:
    """What ``container`` holds at this moment; the parts of a list of unknown length are its tensors."""
    if isinstance(container, Growing) or is_record(container):
        return tuple(vars(container).values())
    return (*container, *container.values()) if isinstance(container, dict) else tuple(container)


def still_holds(container: Any, parts: tuple[Any, ...]) -> bool:
    """Whether ``container`` holds the very ``parts``, as ``holding`` has them."""
    now = holding(container)
    return len(now) == len(parts) and all(a is b for a, b in zip(now, parts, strict=True))


@dataclass(frozen=True)
class Node:
    """A value, and its parts as they were when it was looked at."""

    value: Any
    parts: tuple[Node, ...]

    @staticmethod
    def of(value: Any) -> Node:
        parts = () if is_atom(value) else tuple(map(Node.of, parted(value)[0]))
        return Node(value, parts)


@dataclass(frozen=True)
class Lost:
    """Why a variable has no value after two paths met; ``is_placed`` where the reason says at which line."""

    reason: str
    hint: str
    is_placed: bool = False


@dataclass
class Outcome:
    """The variables after an arm.

    Fields:
        values: of each variable, as they are.
        leaves, specs: their parts; None for a variable without a value.
        nodes: the containers in them, and what each held.
        lost: why those have no value that paths within the arm have left without one, by name.
    """

    values: tuple[Any, ...]
    leaves: list[list[Any]] = field(default_factory=list[list[Any]])
    specs: list[Any] = field(default_factory=list[Any])
    nodes: list[Node] = field(default_factory=list[Node])
    lost: dict[str, Lost] = field(default_factory=dict[str, Lost])

    @staticmethod
    def of(variables: Variables, lost: Mapping[str, Lost]) -> Outcome:
        found = Outcome(variables.read(), lost=dict(lost))
        for value in found.values:
            found.nodes.append(Node.of(value))
            leaves, spec = ([], None) if value is UNBOUND else flatten(value)
            found.leaves.append(leaves)
            found.specs.append(spec)
        return found

    def lift(self, index: int, other: Any, leaves: bool | None) -> None:
        """Let the variable at ``index``, a tensor or None, be a ``Maybe`` if it is ``other`` elsewhere.

        One without a value becomes something of the type of ``other``.

        ``leaves`` says whether this path leaves a loop, where one of the two does.
        """
        value = self.values[index]
        if other is UNBOUND:
            return
        if value is UNBOUND:  # what is returned, later on, on this path
            found = mapped(_placeholder, other)
        elif leaves is not None and are_unlike(value, other):
            found = Unlike.left(value, other, leaves=leaves)
        else:
            found = Maybe.of(value, other)
        self.leaves[index], self.specs[index] = flatten(found)

    def rebuilt(self) -> list[Any]:
        """The values as they were after the arm, whatever has become of containers since."""
        rows = zip(self.leaves, self.specs, strict=True)
        return [UNBOUND if spec is None else unflatten(leaves, spec) for leaves, spec in rows]

    def tensors(self) -> list[Tensor]:
        return [form for leaves in self.leaves for leaf in leaves for form in forms(leaf)]


def _placeholder(leaf: Any) -> Any:
    """A part of the type of ``leaf`` that nobody looks at."""
    if isinstance(leaf, Tensor):
        return in_place_of(leaf)
    if isinstance(leaf, (Number, *SYMBOLIC)):
        return Number(torch.zeros((), dtype=dtype_of(leaf)))
    return leaf


def forms(leaf: Any) -> list[Tensor]:
    """What the first arm yields for a part of a value. The second arm's may be an integer too, or a float."""
    if isinstance(leaf, Maybe):
        return [leaf.absent, leaf.tensor]
    if not is_carried(leaf):
        return []
    tensor = as_tensor(leaf)
    is_integer = not isinstance(leaf, Tensor) and tensor.dtype == torch.int64
    return [tensor, tensor.to(torch.float64)] if is_integer else [tensor]


@dataclass(frozen=True)
class Part:
    """One part of a variable where two paths meet.

    Fields:
        yielded: what the second arm yields in the place of the first one's ``forms``.
        merge: from the region's results in their place to the part's value.
    """

    yielded: list[Tensor]
    merge: Callable[[list[Tensor]], Any]

    @staticmethod
    def only(first: Any, position: int, tensor: Tensor, merge: Callable[[Tensor], Any]) -> Part:
        """The form at ``position`` counts; it is ``tensor`` on the second path."""
        row = [in_place_of(form) for form in forms(first)]
        row[position] = tensor
        return Part(row, lambda results: merge(results[position]))


def met(first: Any, second: Any) -> Part | Lost:
    """How a part that is ``first`` on one path and ``second`` on the other goes on."""
    lost = Lost(f"is {shown(first)} on one path and {shown(second)} on the other", _hint(first, second))
    if isinstance(first, Maybe) and type(first) is type(second):
        return Part(forms(second), lambda results: first.alike(*results)) if first.fits(second) else lost
    if not is_carried(first) and not is_carried(second):
        return Part([], lambda _: second) if same(first, second) else lost
    if not is_carried(first) or not is_carried(second):
        return lost
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return Part.only(first, 0, second, lambda tensor: tensor) if _fit(first, second) else lost
    if not isinstance(first, Tensor) and not isinstance(second, Tensor):
        return _met_numbers(first, second) or lost
    return _met_mixed(first, second) or lost


def _fit(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.dim() == second.dim()


def _met_numbers(first: Any, second: Any) -> Part | None:
    other = as_tensor(second)
    if not isinstance(first, Number) and not isinstance(second, Number) and same(first, second):
        return Part.only(first, 0, other, lambda _: second)
    return Part.only(first, 0, other, Number) if as_tensor(first).dtype == other.dtype else None


def _met_mixed(first: Any, second: Any) -> Part | None:
    """A number on one path, a tensor on the other: a tensor without dims takes the number in."""
    tensor, number = (first, second) if isinstance(first, Tensor) else (second, first)
    held = as_tensor(number)
    if tensor.dim() or type_beside(tensor, kind_of(held.dtype)) != tensor.dtype:
        return None
    if tensor is first:
        return Part.only(first, 0, held.to(tensor.dtype), lambda found: found)
    for position, form in enumerate(forms(first)):
        if torch.promote_types(form.dtype, tensor.dtype) == form.dtype:
            return Part.only(first, position, tensor.to(form.dtype), lambda found: found.to(tensor.dtype))
    return None


def _hint(first: Any, second: Any) -> str:
    if not is_carried(first) and not is_carried(second):
        return "make it the same on both paths, or a number or a tensor"
    others = [each for each in (first, second) if not is_carried(each) and not isinstance(each, Maybe)]
    if others:
        has_tensor = isinstance(first, Tensor) or isinstance(second, Tensor)
        return f"give it a {'tensor' if has_tensor else 'number, such as -1,'} on both paths"
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return "give both paths a tensor of one dtype and one number of dims"
    return "write numbers of one kind on both paths, such as 0.0 for 0"


def same(first: Any, second: Any) -> bool:
    """Whether a part that is no tensor is the same on both paths."""
    if first is second:
        return True
    if isinstance(first, (torch.SymInt, torch.SymFloat, torch.SymBool)) and type(first) is type(second):
        return str(first) == str(second)
    if type(first) is not type(second) or isinstance(first, Number):
        return False
    if isinstance(first, float):
        return first.hex() == second.hex()
    return isinstance(first, (*_BY_VALUE, bool, int)) and first == second


def shown(value: Any) -> str:
    """``value`` as messages have it."""
    if isinstance(value, Tensor):
        sizes = ", ".join(str(size) for size in value.shape)
        return f"a tensor {str(value.dtype).removeprefix('torch.')}[{sizes}]"
    if isinstance(value, Maybe):
        held = Number(value.tensor) if value.is_number else value.tensor
        return f"{'another tensor' if isinstance(value, Unlike) else 'None'} or {shown(held)}"
    if isinstance(value, Number):
        return f"a{'n' if value.kind is int else ''} {value.kind.__name__}"
    if isinstance(value, Growing):
        return "a list of unknown length"
    if isinstance(value, SYMBOLIC):
        return "a size" if isinstance(value, torch.SymInt) else "a comparison of sizes"
    if isinstance(value, (*_BY_VALUE, bool, int, float)):
        return repr(value)
    return f"a {type(value).__name__}"
