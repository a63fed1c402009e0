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
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from regraft.compiler.capture.control import arrays
from regraft.compiler.capture.control.context import Context, refuse
from regraft.compiler.capture.control.growing import Growing, Ragged
from regraft.compiler.capture.control.lists import append
from regraft.compiler.capture.control.number import (
    Array,
    Number,
    as_kind,
    as_tensor,
    as_truth,
    is_carried,
    unwrapped,
)
from regraft.compiler.capture.control.sequences import (
    Span,
    asked,
    enumerated,
    sequence_of,
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
        if isinstance(function, (BuiltinMethodType, MethodType)):
            owner, name = function.__self__, _METHODS.get(function.__name__)
            if name is not None and isinstance(owner, (Tensor, Array)) and self._undecided(owner):
                return partial(getattr(self, name), unwrapped(owner))
            if isinstance(owner, Growing) and function.__name__ == "append":
                return partial(append, self.context, owner)
        theirs = arrays.counterpart(function)
        return function if theirs is None else partial(self._numpy, function, theirs)

    # -- truth and numbers -----------------------------------------------------------------------

    def _isinstance(self, value: Any, kinds: Any) -> bool:
        return isinstance(_example(value), kinds)

    def _type(self, *args: Any) -> Any:
        return type(_example(args[0])) if len(args) == 1 else type(*args)

    def _bool(self, *values: Any) -> Any:
        values = tuple(map(asked, values))
        if len(values) != 1 or not self._undecided(values[0]):
            return bool(*values)
        return Number(as_truth(unwrapped(values[0])))

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

    def _check(self, cond: Any, message: _Thunk | None = None) -> None:
        """``torch._check``"""
        if not self._undecided(cond):
            torch._check(cond, message)
            return
        text = (
            f"RuntimeError: {message()}"
            if message is not None
            else "RuntimeError: a check of the model failed"
        )
        torch.ops.aten._assert_async.msg(as_truth(unwrapped(cond)), text)

    def _len(self, value: Any) -> Any:
        if isinstance(value, Unordered):
            return value.length
        found = sequence_of(value, self.context)
        return len(value) if found is None else found.count

    def _any(self, values: Iterable[Any]) -> Any:
        if isinstance(values, Tensor) and values.dim() == 1:
            return Number((values != 0).any()) if self._undecided(values) else any(values)
        return self._first(self.decides.either, iter(values), last=False)

    def _all(self, values: Iterable[Any]) -> Any:
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
        if isinstance(whole, Growing) and not kwargs:
            return whole.extreme(is_min=is_min)
        parts = list(whole) if isinstance(whole, (list, tuple)) else []
        if kwargs or not any(self._undecided(part) for part in parts):
            return function(*args, **kwargs)
        found, *others = parts
        for other in others:
            found = self._better(other < found if is_min else other > found, other, found)
        return found

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
        if not any(self._undecided(each) for each in args):
            return range(*args)
        start, stop, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
        if self._undecided(step) or step == 0:
            refuse("a range whose step only a call knows", "take a step that is a Python number")
        return Span(start, stop, step)

    # -- lists -----------------------------------------------------------------------------------

    def _enumerate(self, values: Any, start: Any = 0) -> Any:
        found = sequence_of(values, self.context)
        return enumerate(values, start) if found is None else enumerated(found, start)

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

    def _sorted(self, values: Any, **kwargs: Any) -> Any:
        if not isinstance(values, (Unordered, Growing)):
            return sorted(values, **kwargs)
        found = values.ordered if isinstance(values, Unordered) else values
        if kwargs or found.kind is None or isinstance(found, Ragged):
            found.refuse("is sorted by more than its numbers")
        return Growing.held(found.rows.sort(stable=True).values)

    def _listed(self, tensor: Tensor) -> Any:
        """``tensor.tolist()``"""
        if not tensor.dim():
            return Number(tensor)
        if tensor.dim() < 3 and free_unbacked_symbols(tensor.shape[0]):
            return Growing.held(tensor) if tensor.dim() == 1 else Ragged.rows_of(tensor)
        return [self._listed(part) for part in tensor.unbind(0)]

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
        return tensors.stacked if isinstance(tensors, Growing) else self.context.collected_in(tensors)

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
        return made.to(kwargs.get("device") or made.device, copy=function is torch.tensor)

    # -- NumPy -----------------------------------------------------------------------------------

    def _array(self, tensor: Tensor) -> Array:
        """``tensor.numpy()``"""
        return Array(tensor)

    def _numpy(self, function: Any, theirs: Any, *args: Any, **kwargs: Any) -> Any:
        if any(self._undecided(leaf) for leaf in pytree.tree_leaves((args, kwargs))):
            return arrays.called(theirs, args, kwargs)
        return function(*args, **kwargs)

    def _undecided(self, value: Any) -> bool:
        return self.context.tracer.undecided(unwrapped(value))


def one(tensor: Tensor) -> Tensor:
    """The only element of a tensor, without dims."""
    return tensor.reshape(()) if tensor.dim() else tensor


def _example(value: Any) -> Any:
    """Something of the type that ``value`` has in eager, where that is one of Python's or NumPy's."""
    if isinstance(value, Array):
        return arrays.example(value)
    kind = value.kind if isinstance(value, Number) else _STANDS_FOR.get(type(value))
    return value if kind is None else range(0) if kind is range else kind()


def stacked(data: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers and tensors, in lists of equal lengths, as a tensor of ``dtype``.

    Without one it has the type that ``torch.tensor`` gives: floats of Python's lose digits only there.
    """
    if isinstance(data, (list, tuple)) and data:
        parts = [stacked(each, dtype) for each in data]
        common = dtype or reduce(torch.promote_types, (part.dtype for part in parts))
        return torch.stack([part.to(common) for part in parts])
    if isinstance(data, Growing):
        return data.values if dtype is None else data.exact.to(dtype)
    is_number = type(data) in (bool, int, float) or isinstance(data, Number)
    held = as_tensor(data) if is_number else unwrapped(data)
    if not isinstance(held, Tensor):
        return torch.tensor(held, dtype=dtype)
    if dtype is None and is_number and held.dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    return held if dtype is None else held.to(dtype)


#: What Python has in place of ours.
_STANDS_FOR: Mapping[type[Any], type[Any]] = {Growing: list, Ragged: list, Unordered: set, Span: range}
_MIN, _MAX = min, max
_FUNCTIONS: Mapping[int, str] = {
    **{id(each): f"_{each.__name__}" for each in (bool, int, float, any, all, len, range)},
    **{id(each): f"_{each.__name__}" for each in (isinstance, type)},
    **{id(each): f"_{each.__name__}" for each in (enumerate, zip, list, set, sorted)},
    id(torch.stack): "_stack",
    **{id(each): "_cat" for each in (torch.cat, torch.concat, torch.concatenate)},
    id(torch._check): "_check",
    id(torch.tensor): "_tensor",
    id(torch.as_tensor): "_as_tensor",
    id(torch.from_numpy): "_from_numpy",
}
_METHODS: Mapping[str, str] = {"item": "_item", "tolist": "_listed", "numpy": "_array"}
