"""What stands for functions whose arguments may be tensors or numbers that a trace does not know.

Each call of converted code asks here first. Functions of Python's own that would need a value, methods of
tensors that leave torch, and NumPy's functions have forms for such arguments; all others are as they are.
"""

# torch's objects are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, reduce
from types import BuiltinMethodType, MethodType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import (
    free_symbols,
    free_unbacked_symbols,
    statically_known_true,
)
from torch.utils import _pytree as pytree

from regraft.compiler.capture.control import arrays
from regraft.compiler.capture.control.context import Context, refuse
from regraft.compiler.capture.control.exact import check, converted
from regraft.compiler.capture.control.growing import Growing, Ragged
from regraft.compiler.capture.control.lists import append, listed
from regraft.compiler.capture.control.mathematics import form_of
from regraft.compiler.capture.control.number import (
    SYMBOLIC,
    Array,
    Number,
    as_kind,
    as_tensor,
    as_truth,
    is_carried,
    unwrapped,
)
from regraft.compiler.capture.control.searched import count_in, index_in
from regraft.compiler.capture.control.sequences import (
    Sequence,
    Span,
    asked,
    enumerated,
    sequence_of,
    turned,
    zipped,
)
from regraft.compiler.capture.control.unordered import Unordered

_Thunk = Callable[[], Any]


class Decides(Protocol):
    """What decides between values, as ``Calls`` has it."""

    def choose(self, test: Any, then: _Thunk, otherwise: _Thunk) -> Any: ...

    def both(self, value: Any, *others: _Thunk) -> Any: ...

    def either(self, value: Any, *others: _Thunk) -> Any: ...


class Functions:
    """The functions that stand for others, over the context of one capture."""

    def __init__(self, context: Context, decides: Decides) -> None:
        self.context = context
        self.decides = decides

    def of(self, function: Any) -> Any:
        """``function``, or what stands for it."""
        # While it traces, torch.export has its own in place of these.
        plain = function.keywords.get("real_callable") if isinstance(function, partial) else function
        if plain is _MIN or plain is _MAX:
            return partial(self._picked, function, plain is _MIN)
        name = _FUNCTIONS.get(id(function))
        if name is not None:
            return getattr(self, name)
        if _takes_sizes(function):
            return partial(self._sized, function)
        if isinstance(function, (BuiltinMethodType, MethodType)):
            owner, name = function.__self__, _METHODS.get(function.__name__)
            if name is not None and isinstance(owner, (Tensor, Array)) and self._undecided(owner):
                return partial(getattr(self, name), unwrapped(owner))
            if type(owner) in (list, tuple) and function.__name__ in _SEARCHES:
                return partial(self._searched, function)
            if isinstance(owner, Growing) and function.__name__ == "append":
                return partial(append, self.context, owner)
        form = form_of(function)
        if form is not None:
            return partial(self._math, function, form)
        theirs = arrays.counterpart(function)
        return function if theirs is None else partial(self._numpy, function, theirs)

    # -- truth and numbers -----------------------------------------------------------------------

    def _isinstance(self, value: Any, kinds: Any) -> bool:
        return isinstance(value, kinds) or isinstance(_example(value), kinds)

    def _type(self, *args: Any) -> Any:
        return type(_example(args[0])) if len(args) == 1 else type(*args)

    def _bool(self, *values: Any) -> Any:
        values = tuple(map(asked, values))
        if len(values) != 1 or not self._undecided(values[0]):
            return bool(*values)
        return Number(as_truth(unwrapped(values[0])).clone())

    def _int(self, *args: Any) -> Any:
        return self._number(int, *args)

    def _float(self, *args: Any) -> Any:
        return self._number(float, *args)

    def _number(self, kind: Any, *args: Any) -> Any:
        value = unwrapped(args[0]) if len(args) == 1 else None
        if not isinstance(value, Tensor) or not self._undecided(value):
            return kind(*args)
        return as_kind(Number(one(value)), kind)

    def _item(self, tensor: Tensor) -> Number:
        return Number(one(tensor))

    def _is_nonzero(self, tensor: Any) -> Any:
        """``torch.is_nonzero``, which raises of a tensor that has not one element."""
        tensor = unwrapped(tensor)
        if not self._undecided(tensor) or not statically_known_true(tensor.numel() == 1):
            return torch.is_nonzero(tensor)
        return Number(one(tensor) != 0)

    def _allclose(self, x: Any, other: Any, *args: Any, **kwargs: Any) -> Any:
        """``torch.allclose``"""
        x, other = unwrapped(x), unwrapped(other)
        if not (self._undecided(x) or self._undecided(other)):
            return torch.allclose(x, other, *args, **kwargs)
        return Number(torch.isclose(x, other, *args, **kwargs).all())

    def _equal(self, x: Any, other: Any) -> Any:
        """``torch.equal``: tensors of other sizes are not equal, and of other types torch compares none."""
        x, other = unwrapped(x), unwrapped(other)
        if not (self._undecided(x) or self._undecided(other)):
            return torch.equal(x, other)
        if x.dtype != other.dtype:
            refuse(f"torch.equal of {x.dtype} and {other.dtype}, which raises", "give both one dtype")
        pairs = list(zip(x.shape, other.shape, strict=False))
        if x.dim() != other.dim() or any(statically_known_true(a != b) for a, b in pairs):
            return False
        if not all(statically_known_true(a == b) for a, b in pairs):
            refuse(
                "torch.equal of tensors whose sizes are not known to be the same",
                "compare the sizes first, in another function, or give the arguments fixed sizes",
            )
        return Number((x == other).all())

    def check(self, cond: Any, message: _Thunk | None = None) -> None:
        """``torch._check``"""
        if not self._undecided(cond):
            torch._check(cond, message)
            return
        text = (
            f"RuntimeError: {message()}"
            if message is not None
            else "RuntimeError: a check of the model failed"
        )
        check(as_truth(unwrapped(cond)), text)

    def _len(self, value: Any) -> Any:
        if isinstance(value, Unordered):
            return value.length
        found = sequence_of(value, self.context)
        return len(value) if found is None else found.count

    def _any(self, values: Iterable[Any]) -> Any:
        unknown = self._unknown(values)
        if unknown is not None:
            return Number(unknown.truths.any())
        if isinstance(values, Tensor) and values.dim() == 1:
            return Number((values != 0).any()) if self._undecided(values) else any(values)
        return self._first(self.decides.either, iter(values), last=False)

    def _all(self, values: Iterable[Any]) -> Any:
        unknown = self._unknown(values)
        if unknown is not None:
            return Number(unknown.truths.all())
        if isinstance(values, Tensor) and values.dim() == 1:
            return Number((values != 0).all()) if self._undecided(values) else all(values)
        return self._first(self.decides.both, iter(values), last=True)

    def _first(self, joined: Callable[..., Any], values: Iterator[Any], *, last: bool) -> Any:
        """Truth values joined as far as they have to be looked at."""
        for value in values:
            held = self._bool(value)
            if self._undecided(held):
                return joined(held, lambda: self._first(joined, values, last=last))
            if held is not last:
                return held
        return last

    def _picked(self, function: Any, is_min: Any, *args: Any, **kwargs: Any) -> Any:
        """``min`` or ``max``, as ``function`` is: the first of those than which none is less, or greater."""
        whole = args[0] if len(args) == 1 else args
        unknown = self._unknown(whole)
        if unknown is not None:
            return self._extreme(unknown, is_min, **kwargs)
        if not isinstance(whole, Iterable):
            return function(*args, **kwargs)
        parts, key = list(whole), kwargs.get("key")
        if not parts or (key is None and not any(map(self._undecided, parts))):
            return function(*(args if whole is args else (parts,)), **kwargs)
        keys = parts if key is None else [self.of(key)(part) for part in parts]
        found, best = parts[0], keys[0]
        for other, its in zip(parts[1:], keys[1:], strict=True):
            wins = its < best if is_min else its > best
            best = self._better(wins, its, best)
            found = best if key is None else self._better(wins, other, found)
        return found

    def _extreme(self, values: Growing, is_min: bool, **kwargs: Any) -> Any:
        """``min`` or ``max`` of a list of unknown length."""
        if kwargs.get("key") is not None:
            values.refuse("has its max or min taken by a key", "take that of a list of the keys")
        if "default" not in kwargs:
            return values.extreme(is_min=is_min)
        are_any, default = values.length > 0, kwargs["default"]
        return self.decides.choose(are_any, lambda: values.extreme(is_min=is_min), lambda: default)

    def _better(self, wins: Any, other: Any, found: Any) -> Any:
        if not self._undecided(wins):
            return other if wins else found
        pair = other, found
        if all(is_carried(each) and not isinstance(each, Tensor) for each in pair):
            one, two = (as_tensor(each) for each in pair)
            if one.dtype == two.dtype:
                return Number(torch.where(as_truth(unwrapped(wins)), one, two))
        return self.decides.choose(wins, lambda: other, lambda: found)

    def _range(self, *args: Any) -> Any:
        """``range``; of a bound that only a call knows, a ``Span``."""
        if not any(self._undecided(each) or _is_unknown_size(each) for each in args):
            return range(*args)
        args = tuple(map(self._bound, args))
        start, stop, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
        if self._undecided(step) or step == 0:
            refuse("a range whose step only a call knows", "take a step that is a Python number")
        return Span(start, stop, step)

    def _bound(self, value: Any) -> Any:
        """``value`` as a bound of a range: a tensor is one if it holds one integer."""
        tensor = unwrapped(value)
        if isinstance(value, Number) or not isinstance(tensor, Tensor) or not self._undecided(tensor):
            return value
        if tensor.is_floating_point():
            refuse("a range up to a tensor of floats, which raises", "take int() of it")
        return as_kind(Number(one(tensor)), int)

    def _math(self, function: Any, form: Any, *args: Any) -> Any:
        """One of ``math``'s functions, for which ``form`` stands where a number is not known."""
        return form(*args) if any(map(self._undecided, args)) else function(*args)

    # -- lists -----------------------------------------------------------------------------------

    def _unknown(self, values: Any) -> Growing | None:
        """``values`` as a list, where only a call knows how many there are; None else."""
        if isinstance(values, Span):
            return Growing.held(values.numbers)
        if isinstance(values, Unordered):
            return values.ordered
        if isinstance(values, Sequence):
            return self._list(values)
        if isinstance(values, Tensor) and sequence_of(values, self.context) is not None:
            return Growing(values, None)
        return values if isinstance(values, Growing) else None

    def _sum(self, values: Any, start: Any = 0) -> Any:
        unknown = self._unknown(values)
        return sum(values, start) if unknown is None else unknown.total(start)

    def _enumerate(self, values: Any, start: Any = 0) -> Any:
        found = sequence_of(values, self.context)
        if found is not None:
            return enumerated(found, start)
        if self._undecided(start):
            return ((start + i, each) for i, each in enumerate(values))
        return enumerate(values, start)

    def _reversed(self, values: Any) -> Any:
        found = sequence_of(values, self.context) if isinstance(values, (Span, Growing)) else None
        return reversed(values) if found is None else turned(found)

    def _map(self, function: Any, *values: Any) -> Any:
        function = self.of(function)
        if all(sequence_of(each, self.context) is None for each in values):
            return map(function, *values)
        found = self._zip(*values)
        return Sequence(found.length, lambda number: function(*found.at(number)))

    def _zip(self, *values: Any, strict: bool = False) -> Any:
        if all(sequence_of(each, self.context) is None for each in values):
            return zip(*values, strict=strict)
        found = zipped(list(values), self.context, strict=strict)
        if found is None:
            refuse(
                "zip() takes something of which only a call knows the length beside what is neither a tensor "
                "nor such a list",
                "go over range(len(...)) and index each",
            )
        return found

    def _list(self, *args: Any) -> Any:
        (values,) = args or ((),)
        if isinstance(values, Unordered):
            return values.listed
        if isinstance(values, Span):
            return Growing.held(values.numbers)
        if isinstance(values, Sequence):
            return listed(self.context, _each, values)
        return values.copy() if isinstance(values, Growing) else list(values)

    def _set(self, *args: Any) -> Any:
        (values,) = args or ((),)
        if isinstance(values, Span):
            return Unordered.of(values.numbers)
        if not isinstance(values, Growing):
            return set(values)
        if values.kind is not int or isinstance(values, Ragged):
            values.refuse("of what are no integers is made a set")
        return Unordered.of(values.rows)

    def _sorted(self, values: Any, *, key: Any = None, reverse: Any = False) -> Any:
        if self._undecided(reverse):
            refuse("a list is sorted in an order that only a call knows", "sort it both ways, and choose")
        unknown = self._unknown(values)
        if unknown is not None:
            if key is not None or unknown.kind is None or isinstance(unknown, Ragged):
                unknown.refuse("is sorted by more than its numbers")
            return Growing.held(_in_order(unknown.rows, reverse))
        parts = list(values)
        kinds = {type(_example(part)) for part in parts}
        if key is not None or not any(map(self._undecided, parts)) or kinds not in ({bool}, {int}, {float}):
            return sorted(parts, key=key, reverse=reverse)
        rows = torch.stack([as_tensor(part) for part in parts])
        return [Number(row) for row in _in_order(rows, reverse).unbind(0)]

    def _listed(self, tensor: Tensor) -> Any:
        """``tensor.tolist()``"""
        return self._lists_of(tensor.clone())

    def _lists_of(self, tensor: Tensor) -> Any:
        if not tensor.dim():
            return Number(tensor)
        if tensor.dim() < 3 and free_unbacked_symbols(tensor.shape[0]):
            return Growing.held(tensor) if tensor.dim() == 1 else Ragged.rows_of(tensor)
        return [self._lists_of(part) for part in tensor.unbind(0)]

    # -- tensors ---------------------------------------------------------------------------------

    def _stack(self, tensors: Any, *args: Any, **kwargs: Any) -> Tensor:
        """``torch.stack``; what a loop has collected is stacked already."""
        collected = self._collected(tensors)
        if collected is None or len(args) + len(kwargs) > 1 or not set(kwargs) <= {"dim"}:
            return torch.stack(tensors, *args, **kwargs)
        (dim,) = (*args, *kwargs.values()) or (0,)
        return collected.movedim(0, dim)

    def _cat(self, tensors: Any, *args: Any, **kwargs: Any) -> Tensor:
        """``torch.cat``"""
        collected = self._collected(tensors)
        if collected is None or len(args) + len(kwargs) > 1 or not set(kwargs) <= {"dim"}:
            return torch.cat(tensors, *args, **kwargs)
        (dim,) = (*args, *kwargs.values()) or (0,)
        dim = dim % (collected.dim() - 1)
        return collected.movedim(0, dim).flatten(dim, dim + 1)

    def _collected(self, tensors: Any) -> Tensor | None:
        """All that the list ``tensors`` holds, in a tensor of its own."""
        found = tensors.stacked if isinstance(tensors, Growing) else self.context.collected_in(tensors)
        return None if found is None else found.clone()

    @staticmethod
    def _sized(function: Any, *sizes: Any, **kwargs: Any) -> Any:
        """A function of sizes, one after the other: beside a number torch takes them in a tuple alone."""
        if len(sizes) > 1 and any(isinstance(each, Number) for each in sizes):
            return function(sizes, **kwargs)
        return function(*sizes, **kwargs)

    def _tensor(self, data: Any, *args: Any, **kwargs: Any) -> Tensor:
        """``torch.tensor``"""
        return self._made(torch.tensor, data, *args, **kwargs)

    def _as_tensor(self, data: Any, *args: Any, **kwargs: Any) -> Tensor:
        """``torch.as_tensor``"""
        return self._made(torch.as_tensor, data, *args, **kwargs)

    def _from_numpy(self, array: Any) -> Tensor:
        """``torch.from_numpy``"""
        if isinstance(array, Array):
            return array.tensor
        return self._as_tensor(array) if self._undecided(array) else torch.from_numpy(array)

    def _made(self, function: Any, data: Any, *args: Any, **kwargs: Any) -> Tensor:
        """A tensor made of numbers, some of which only a call knows."""
        leaves = [data] if isinstance(data, Growing) else pytree.tree_leaves(data)
        unknown = any(isinstance(leaf, Growing) or self._undecided(leaf) for leaf in leaves)
        if not unknown or args or not set(kwargs) <= {"dtype", "device"}:
            return function(data, *args, **kwargs)
        made = stacked(data, kwargs.get("dtype"))
        # Numbers have no memory that a tensor could share; a tensor that is the data shares its own.
        shares = function is torch.as_tensor and isinstance(data, (Tensor, Array))
        return made.to(kwargs.get("device") or made.device, copy=not shares)

    # -- NumPy -----------------------------------------------------------------------------------

    def _array(self, tensor: Tensor) -> Array:
        """``tensor.numpy()``"""
        return Array(tensor)

    def _numpy(self, function: Any, theirs: Any, *args: Any, **kwargs: Any) -> Any:
        if any(self._undecided(leaf) for leaf in pytree.tree_leaves((args, kwargs))):
            return arrays.called(theirs, args, kwargs)
        return function(*args, **kwargs)

    def _searched(self, function: Any, *args: Any) -> Any:
        """``function``, the ``index`` or ``count`` of a list or tuple."""
        values = function.__self__
        if not args or not any(self._undecided(each) for each in (args[0], *values)):
            return function(*args)
        return _SEARCHES[function.__name__](tuple(values), *args)

    def _undecided(self, value: Any) -> bool:
        return self.context.tracer.undecided(unwrapped(value))


def _takes_sizes(function: Any) -> bool:
    """Whether ``function``, torch's or a method of a tensor, takes nothing but sizes."""
    if not isinstance(function, BuiltinMethodType):
        return False
    return function in _MAKERS or (isinstance(function.__self__, Tensor) and function.__name__ in _SIZED)


def _is_unknown_size(value: Any) -> bool:
    """Whether ``value`` is a size that only a call knows: values decide it, or an argument has it, open."""
    return isinstance(value, torch.SymInt) and bool(free_symbols(value))


def one(tensor: Tensor) -> Tensor:
    """The only element of a tensor, without dims, in memory of its own: no later write shows in it."""
    return tensor.reshape(()).clone()


def _example(value: Any) -> Any:
    """Something of the type that ``value`` has in eager, where that is one of Python's or NumPy's."""
    if isinstance(value, Array):
        return arrays.example(value)
    if isinstance(value, SYMBOLIC):
        return False if isinstance(value, torch.SymBool) else 0
    ours = (kind for cls, kind in _STANDS_FOR.items() if isinstance(value, cls))
    kind = value.kind if isinstance(value, Number) else next(ours, None)
    return value if kind is None else range(0) if kind is range else kind()


def _in_order(numbers: Tensor, reverse: Any) -> Tensor:
    """``sorted`` of numbers; a call fails with nan among them, whose order depends on how Python compares."""
    count: Any = numbers.shape[0]  # a SymInt where only a call knows it
    if numbers.is_floating_point() and not statically_known_true(count < 2):
        holds = (numbers == numbers).all() | (as_tensor(count) < 2)
        check(holds, "sorted of numbers with nan among them, which have no order: leave them out before")
    return numbers.sort(stable=True, descending=bool(reverse)).values


def _each(items: Iterable[Any]) -> Iterator[tuple[Any, Callable[[], Any]]]:
    """``[item for item in items]``, as ``listed`` has it."""
    return ((True, partial(_same, item)) for item in items)


def _same(item: Any) -> Any:
    return item


def stacked(data: Any, dtype: torch.dtype | None = None, *, is_part: bool = False) -> Tensor:
    """Numbers and tensors, in lists of equal lengths, as a tensor of ``dtype``.

    Without one it has the type that ``torch.tensor`` gives: floats of Python's lose digits only there. A
    tensor that is a part of a list counts as the number that it holds. A call fails in which ``dtype`` has no
    place for a number.
    """
    if isinstance(data, (list, tuple)) and data:
        parts = [stacked(each, dtype, is_part=True) for each in data]
        common = dtype or reduce(torch.promote_types, (part.dtype for part in parts))
        return torch.stack([part.to(common) for part in parts])
    if isinstance(data, Growing):
        return data.values if dtype is None else converted(data.exact, dtype)
    is_number = type(data) in (bool, int, float) or isinstance(data, Number)
    held = as_tensor(data) if is_number else unwrapped(data)
    if not isinstance(held, Tensor):
        return torch.tensor(held, dtype=dtype)
    if dtype is not None:
        return converted(Number(held).tensor, dtype) if is_number or is_part else held.to(dtype)
    return held.to(torch.get_default_dtype()) if is_number and held.dtype.is_floating_point else held


#: What Python has in place of ours.
_STANDS_FOR: Mapping[type[Any], type[Any]] = {Growing: list, Unordered: set, Span: range}
_MIN, _MAX = min, max
_FUNCTIONS: Mapping[int, str] = {
    **{id(each): f"_{each.__name__}" for each in (bool, int, float, any, all, len, range)},
    **{id(each): f"_{each.__name__}" for each in (isinstance, type)},
    **{id(each): f"_{each.__name__}" for each in (enumerate, zip, list, set, sorted, sum, reversed, map)},
    id(torch.stack): "_stack",
    **{id(each): "_cat" for each in (torch.cat, torch.concat, torch.concatenate)},
    **{id(each): f"_{each.__name__}" for each in (torch.is_nonzero, torch.allclose, torch.equal)},
    id(torch._check): "check",
    id(torch.tensor): "_tensor",
    id(torch.as_tensor): "_as_tensor",
    id(torch.from_numpy): "_from_numpy",
}
#: Functions that take nothing but sizes, and methods of tensors that do.
_MAKERS = (torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn)
_SIZED = frozenset(["new_zeros", "new_ones", "new_empty", "expand", "view", "reshape", "repeat", "tile"])
_SEARCHES: Mapping[str, Callable[..., Any]] = {"index": index_in, "count": count_in}
_METHODS: Mapping[str, str] = {
    "item": "_item",
    "tolist": "_listed",
    "numpy": "_array",
    **{name: f"_{name}" for name in ("is_nonzero", "allclose", "equal")},
}
