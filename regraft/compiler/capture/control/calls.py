"""What converted code calls: Python's path for Python's values, regions where a traced tensor decides."""

# torch's objects are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regraft.compiler.capture.control.context import Context, refuse, where
from regraft.compiler.capture.control.indexing import element, set_element
from regraft.compiler.capture.control.loops import LONG, Run
from regraft.compiler.capture.control.meeting import meet
from regraft.compiler.capture.control.number import Number, as_kind, as_truth, picked, unwrapped
from regraft.compiler.capture.control.state import KEPT, UNBOUND, Variables

_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "Eq": operator.eq,
    "NotEq": operator.ne,
    "Lt": operator.lt,
    "LtE": operator.le,
    "Gt": operator.gt,
    "GtE": operator.ge,
    "Is": operator.is_,
    "IsNot": operator.is_not,
}
_Thunk = Callable[[], Any]
_Names = tuple[str, ...]
_Gets = tuple[_Thunk, ...]
_Put = Callable[..., None]


class Calls:
    """The functions that converted code calls, over the context of one capture."""

    UNBOUND = UNBOUND
    KEPT = KEPT

    def __init__(self, context: Context) -> None:
        self.context = context

    def __repr__(self) -> str:
        return "<calls of converted code>"

    # -- statements ------------------------------------------------------------------------------

    def branch(
        self,
        test: Any,
        then: Callable[[], None],
        otherwise: Callable[[], None],
        names: _Names,
        gets: _Gets,
        put: _Put,
        *,
        live: _Names,
        loop: Run | None = None,
        last: _Names = (),
    ) -> None:
        """``if test``: its arms may change the variables ``names``, of which ``live`` are read later.

        Where it ends a trip of ``loop``, ``last`` are those read after the loop.
        """
        if not self._undecided(test):
            (then if test else otherwise)()
            return
        going_on = last if loop is not None and loop.nested else live
        meet(self.context, unwrapped(test), then, otherwise, Variables(names, gets, put), going_on)

    def each(
        self,
        iterable: Iterable[Any],
        trip: Callable[..., None],
        done: Callable[[], None],
        names: _Names,
        gets: _Gets,
        put: _Put,
        *,
        goes_on: str,
        last: _Names,
        leaves: bool,
        appended: _Names,
    ) -> None:
        """``for`` over ``iterable``, as ``Run`` has it."""
        run = Run(self.context, trip, done, Variables(names, gets, put), goes_on, last, leaves, appended)
        if isinstance(iterable, range) and len(iterable) > LONG and self.context.traces:
            site = where()
            if site not in self.context.unrolled:
                self.context.folded.append(site)
                run.over(iterable)
                self.context.folded.pop()
                return
        run.each(iterable)

    def repeat(
        self,
        test: _Thunk | None,
        trip: Callable[..., None],
        done: Callable[[], None],
        names: _Names,
        gets: _Gets,
        put: _Put,
        *,
        goes_on: str,
        last: _Names,
        leaves: bool,
    ) -> None:
        """``while test()``, as ``Run`` has it."""
        Run(self.context, trip, done, Variables(names, gets, put), goes_on, last, leaves).repeat(test)

    def refuses(self, test: Any, error: _Thunk) -> bool:
        """Whether to raise ``error``, all that an arm does. Where a tensor decides, the call will check."""
        if not self._undecided(test):
            return bool(test)
        _assert_async(~as_truth(test), _message(error))
        return False

    def check(self, test: Any, message: _Thunk) -> None:
        """``assert test, message()``"""
        if self._undecided(test):
            text = message()
            _assert_async(as_truth(test), "AssertionError" if text is None else f"AssertionError: {text}")
        elif not test:
            text = message()
            raise AssertionError(*(() if text is None else (text,)))

    # -- expressions -----------------------------------------------------------------------------

    def choose(self, test: Any, then: _Thunk, otherwise: _Thunk) -> Any:
        """``then() if test else otherwise()``"""
        if not self._undecided(test):
            return then() if test else otherwise()
        found: list[Any] = [UNBOUND]

        def arm(value: _Thunk) -> Callable[[], None]:
            def run() -> None:
                found[0] = value()

            return run

        def put(value: Any) -> None:
            if value is not KEPT:
                found[0] = value

        variables = Variables((_CHOSEN,), (lambda: found[0],), put)
        meet(self.context, unwrapped(test), arm(then), arm(otherwise), variables, variables.names)
        if found[0] is UNBOUND:
            lost = self.context.lost[_CHOSEN]
            refuse(f"a value that a tensor chooses {lost.reason}", lost.hint)
        return found[0]

    def both(self, value: Any, *others: _Thunk) -> Any:
        """``value and others[0]() and ...``"""
        if not others:
            return value
        if self._undecided(value):
            return self.choose(value, lambda: self.both(others[0](), *others[1:]), lambda: value)
        return self.both(others[0](), *others[1:]) if value else value

    def either(self, value: Any, *others: _Thunk) -> Any:
        """``value or others[0]() or ...``"""
        if not others:
            return value
        if self._undecided(value):
            return self.choose(value, lambda: value, lambda: self.either(others[0](), *others[1:]))
        return value if value else self.either(others[0](), *others[1:])

    def negate(self, value: Any) -> Any:
        """``not value``"""
        return Number(~as_truth(value)) if self._undecided(value) else not value

    def chain(self, first: Any, *rest: tuple[str, _Thunk]) -> Any:
        """``first < rest[0] < ...``, each operand evaluated once."""
        (name, thunk), *others = rest
        second = thunk()
        found = self._compared(name, first, second)
        return self.both(found, lambda: self.chain(second, *others)) if others else found

    def _compared(self, name: str, first: Any, second: Any) -> Any:
        if name in _OPERATORS:
            return _OPERATORS[name](first, second)
        found = self._contained(first, second)
        return self.negate(found) if name == "NotIn" else found

    def _contained(self, value: Any, container: Any) -> Any:
        if isinstance(container, Tensor):
            equal = container == value
            return Number(equal.any()) if self._undecided(equal) else value in container
        parts = list(container) if isinstance(container, (list, tuple)) else []
        if not any(self._undecided(each) for each in (value, *parts)):
            return value in container
        found: Any = False
        for each in reversed(parts):
            found = self.either(each is value or each == value, lambda found=found: found)
        return found

    # -- numbers ---------------------------------------------------------------------------------

    def item(self, value: Any) -> Any:
        """``value.item()``"""
        return Number(_one(value)) if isinstance(value, Tensor) and self._undecided(value) else value.item()

    def of(self, function: Any) -> Any:
        """``function``, one of Python's own, for values that may be unknown numbers."""
        return self._replacements()[function] if any(function is each for each in _REPLACED) else function

    def _replacements(self) -> Mapping[Any, Any]:
        return {
            bool: self._bool,
            int: partial(self._number, int),
            float: partial(self._number, float),
            any: self._any,
            all: self._all,
            min: partial(self._pick, min),
            max: partial(self._pick, max),
            torch.stack: self._stack,
            torch.cat: self._cat,
            torch.concat: self._cat,
            torch.concatenate: self._cat,
        }

    def _bool(self, *values: Any) -> Any:
        if len(values) != 1 or not self._undecided(values[0]):
            return bool(*values)
        return Number(as_truth(values[0]))

    def _number(self, kind: Any, *args: Any) -> Any:
        if len(args) != 1 or not self._undecided(args[0]) or not isinstance(args[0], (Tensor, Number)):
            return kind(*args)
        return as_kind(args[0] if isinstance(args[0], Number) else Number(_one(args[0])), kind)

    def _any(self, values: Iterable[Any]) -> Any:
        if isinstance(values, Tensor):
            return Number((values != 0).any()) if self._undecided(values) else any(values)
        return self._first(self.either, iter(values), last=False)

    def _all(self, values: Iterable[Any]) -> Any:
        if isinstance(values, Tensor):
            return Number((values != 0).all()) if self._undecided(values) else all(values)
        return self._first(self.both, iter(values), last=True)

    def _first(self, joined: Callable[..., Any], values: Iterator[Any], *, last: bool) -> Any:
        """Truth values joined as far as they have to be looked at."""
        for value in values:
            held = self._bool(value)
            if self._undecided(held):
                return joined(held, lambda: self._first(joined, values, last=last))
            if held is not last:
                return held
        return last

    def _pick(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            return function(*args, **kwargs)
        values = list(args) if len(args) > 1 else list(*args)
        return picked(function, values) if any(isinstance(v, Number) for v in values) else function(values)

    # -- indices ---------------------------------------------------------------------------------

    slice = slice

    def element(self, value: Any, index: Any) -> Any:
        """``value[index]``"""
        return element(value, index, self.context)

    def data(self, value: Any) -> Any:
        """``value.data``"""
        return value.detach() if isinstance(value, Tensor) and self.context.traces else value.data

    def set_element(self, written: Any, value: Any, index: Any) -> None:
        """``value[index] = written``, evaluated in that order."""
        set_element(value, index, written, self._undecided)

    def _stack(self, tensors: Any, *args: Any, **kwargs: Any) -> Tensor:
        """``torch.stack``; what a loop has collected is stacked already."""
        collected = self.context.collected_in(tensors)
        if collected is None or len(args) + len(kwargs) > 1 or not set(kwargs) <= {"dim"}:
            return torch.stack(tensors, *args, **kwargs)
        (dim,) = (*args, *kwargs.values()) or (0,)
        return collected.movedim(0, dim)

    def _cat(self, tensors: Any, *args: Any, **kwargs: Any) -> Tensor:
        """``torch.cat``"""
        collected = self.context.collected_in(tensors)
        if collected is None or len(args) + len(kwargs) > 1 or not set(kwargs) <= {"dim"}:
            return torch.cat(tensors, *args, **kwargs)
        (dim,) = (*args, *kwargs.values()) or (0,)
        dim = dim % (collected.dim() - 1)
        return collected.movedim(0, dim).flatten(dim, dim + 1)

    def _undecided(self, value: Any) -> bool:
        return self.context.tracer.undecided(unwrapped(value))


#: The name that `choose` gives to its value.
_CHOSEN = "_rg_chosen"
_REPLACED = (bool, int, float, any, all, min, max, torch.stack, torch.cat, torch.concat, torch.concatenate)


def _one(tensor: Tensor) -> Tensor:
    """The only element of a tensor, without dims."""
    return tensor.reshape(()) if tensor.dim() else tensor


def _assert_async(holds: Tensor, message: str) -> None:
    torch.ops.aten._assert_async.msg(holds, message)


def _message(error: _Thunk) -> str:
    """What the exception that ``error`` raises says."""
    try:
        error()
    except Exception as raised:
        text = str(raised)
        return f"{type(raised).__name__}: {text}" if text else type(raised).__name__
    raise AssertionError("an arm that raises does")
