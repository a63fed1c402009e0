"""What converted code calls: Python's path for Python's values, regions where a traced tensor decides."""

# torch's objects are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import gc
import operator
from collections import deque
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from regraft.compiler.capture.control.alone import is_alone
from regraft.compiler.capture.control.choices import identical, knowing, negated, settled, truth
from regraft.compiler.capture.control.context import Context, refuse, where
from regraft.compiler.capture.control.exact import check
from regraft.compiler.capture.control.functions import Functions
from regraft.compiler.capture.control.growing import Growing, Ragged
from regraft.compiler.capture.control.indexing import element, is_integer, set_element, update_element
from regraft.compiler.capture.control.lists import Make, extended, extended_in, listed
from regraft.compiler.capture.control.loops import LONG, Run
from regraft.compiler.capture.control.meeting import NOTHING, meet
from regraft.compiler.capture.control.number import (
    SYMBOLIC,
    Array,
    Number,
    as_truth,
    dtype_of,
    kind_of,
    unwrapped,
)
from regraft.compiler.capture.control.optional import Maybe
from regraft.compiler.capture.control.searched import is_equal
from regraft.compiler.capture.control.sequences import Span, asked, sequence_of
from regraft.compiler.capture.control.state import KEPT, UNBOUND, Variables
from regraft.compiler.capture.control.unordered import Unordered, as_set
from regraft.compiler.capture.control.watch import holder_of
from regraft.compiler.capture.control.words import Words, filled

_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "Eq": operator.eq,
    "NotEq": operator.ne,
    "Lt": operator.lt,
    "LtE": operator.le,
    "Gt": operator.gt,
    "GtE": operator.ge,
}
_IN_PLACE: Mapping[str, Callable[[Any, Any], Any]] = {
    "Add": operator.iadd,
    "Sub": operator.isub,
    "Mult": operator.imul,
    "MatMult": operator.imatmul,
    "Div": operator.itruediv,
    "FloorDiv": operator.ifloordiv,
    "Mod": operator.imod,
    "Pow": operator.ipow,
    "LShift": operator.ilshift,
    "RShift": operator.irshift,
    "BitAnd": operator.iand,
    "BitOr": operator.ior,
    "BitXor": operator.ixor,
}
#: What is indexed by Python's integers.
SEQUENCES = (list, tuple, nn.ModuleList, nn.Sequential, nn.ParameterList)
#: What Python searches from its first element on, and what it searches by the hash of a value.
_SEARCHED = (list, tuple, deque, type({}.values()))
_HASHED = (set, frozenset, dict, KeysView, ItemsView)
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
        self.functions = Functions(context, self)

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
        optional: _Names = (),
        unread: Mapping[str, _Names] = NOTHING,
        loop: Run | None = None,
    ) -> None:
        """``if test``: its arms may change the variables ``names``, of which ``live`` are read later.

        The ``optional`` ones are read by ``held`` and ``is_none`` alone, those of a flag in ``unread`` only
        where the flag is not set.
        Where it ends a trip of ``loop``, an arm may go on with the trips that follow.
        """
        if not self._undecided(test):
            (then if test else otherwise)()
            return
        going_on = loop.read_after if loop is not None and loop.nested else live
        variables = Variables(names, gets, put)
        then, otherwise = knowing(then, test, True, variables), knowing(otherwise, test, False, variables)
        goes_on = loop.goes_on if loop is not None else None
        meet(self.context, test, then, otherwise, variables, going_on, optional, goes_on, unread)

    def held(self, value: Any) -> Any:
        """``value``, a variable's; where a tensor decides whether it is None, what it is in this arm."""
        return value.held if isinstance(value, Maybe) else value

    def is_none(self, value: Any) -> Any:
        """``value is None``"""
        return value.is_none if isinstance(value, Maybe) else value is None

    def each(
        self,
        box: list[Iterable[Any]],
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
        outer: Run | None,
        spend: _Thunk | None,
        spent: _Gets,
    ) -> None:
        """``for`` over what is in ``box``, as ``Run`` has it; ``spend`` empties the variables ``spent``.

        Only it read them. Out of a box, what it goes over is not held by the call itself.
        """
        iterable = box[0]
        variables = Variables(names, gets, put)
        sequence = sequence_of(iterable, self.context)
        if sequence is not None and outer is not None:
            refuse(
                "a `return` from a loop of which only a call knows the trips, in another loop",
                "leave the inner loop with `break`, and return after it",
            )
        run = Run(self.context, trip, done, variables, goes_on, last, leaves, appended, outer)
        if outer is None and isinstance(iterable, range) and len(iterable) > LONG and self.context.traces:
            site = where()
            if site not in self.context.unrolled:
                self.context.folded.append(site)
                run.over(iterable)
                self.context.folded.pop()
                return
        if sequence is not None:
            run.over(sequence)
        else:
            if spend is not None and isinstance(iterable, Iterator):
                here = 2  # `box` and `iterable`
                self.context.objects.forget()  # what is only remembered there is held by nobody

                def is_free() -> bool:
                    return is_alone(box, here, spent, self.context.frames())

                # What an exception has left behind holds an iterator until it is collected.
                if is_free() or (gc.collect() and is_free()):
                    spend()  # How far an iterator is that nobody has is nobody's to see.
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
        """``while test()``, as ``Run`` has it; where it ends at an open size, one trip stands for all."""
        site, folded = where(), self.context.folded
        run = Run(self.context, trip, done, Variables(names, gets, put), goes_on, last, leaves, site=site)
        before = len(folded)
        is_open = self.context.traces and site not in self.context.unrolled

        def note() -> None:
            if len(folded) == before:
                folded.append(site)

        def tested() -> Any:
            assert test is not None, "a loop without a test is not asked"
            with self.context.testing(note if is_open else None):
                return test()

        run.repeat(None if test is None else tested)
        del folded[before:]

    def refuses(self, test: Any, error: _Thunk) -> bool:
        """Whether to raise ``error``, all that an arm does. Where a tensor decides, the call will check."""
        if not self._undecided(test):
            return bool(test)
        check(~as_truth(test), _message(error))
        return False

    def text(self, value: Any, source: str) -> Any:
        """``value`` as a part of a message, which is made before a call knows it."""
        leaves = pytree.tree_leaves(value)
        unknown = any(isinstance(each, (Number, Array, Growing)) or self._undecided(each) for each in leaves)
        return Words(source) if unknown else value

    def filled(self, form: str, values: Any) -> str:
        """``form % values``, in a message."""
        return filled(form, values)

    def check(self, test: Any, message: _Thunk) -> None:
        """``assert test, message()``"""
        if self._undecided(test):
            text = message()
            check(as_truth(test), "AssertionError" if text is None else f"AssertionError: {text}")
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
        arms = knowing(arm(then), test, True, variables), knowing(arm(otherwise), test, False, variables)
        meet(self.context, test, *arms, variables, variables.names)
        if found[0] is UNBOUND:
            lost = self.context.lost[_CHOSEN]
            refuse(f"a value that a tensor chooses {lost.reason}", lost.hint)
        return found[0]

    def both(self, value: Any, *others: _Thunk) -> Any:
        """``value and others[0]() and ...``"""
        if not others:
            return value
        test = _operand(value)
        if self._undecided(test):
            known = settled(value, truth=False)
            return self.choose(test, lambda: self.both(others[0](), *others[1:]), lambda: known)
        return self.both(others[0](), *others[1:]) if test else value

    def either(self, value: Any, *others: _Thunk) -> Any:
        """``value or others[0]() or ...``"""
        if not others:
            return value
        test = _operand(value)
        if not self._undecided(test):
            return value if test else self.either(others[0](), *others[1:])
        known, options = settled(value, truth=True), [value]

        def other() -> Any:
            options[1:] = [self.either(others[0](), *others[1:])]
            return _alike(options[1], known)

        found = self.choose(test, lambda: _alike(known, known), other)
        if isinstance(found, Ragged):
            found.refuse("of lists is chosen by `or`", "decide with `if`, and copy it there with list()")
        if isinstance(found, Growing) and any(self._is_others(each) for each in options):
            self.context.may_be(found, *options)
        return found

    def _is_others(self, chosen: Any) -> bool:
        """Whether something holds ``chosen``, an operand."""
        return holder_of(self.context, _CHOSEN, chosen) is not None

    def asked(self, value: Any) -> Any:
        """``value``, of which only the truth is looked at: a container's is its length."""
        return asked(value)

    def truth(self, value: Any) -> Any:
        """``asked(value)``, a number where only a call knows it."""
        found = self.asked(value)
        return truth(found) if self._undecided(found) else found

    def goes_on(self, value: Any) -> Any:
        """``truth(value)``, of the test of a `while` or a part of it; a number where an open size decides."""
        found, note = self.asked(value), self.context.tests[-1]
        if note is None or not isinstance(found, torch.SymBool):
            return self.truth(found)
        note()
        return Number(as_truth(found))

    def negate(self, value: Any) -> Any:
        """``not value``"""
        return negated(value) if self._undecided(value) else not value

    def chain(self, first: Any, *rest: tuple[str, _Thunk]) -> Any:
        """``first < rest[0] < ...``, each operand evaluated once."""
        (name, thunk), *others = rest
        second = thunk()
        found = self._compared(name, first, second)
        return self.both(found, lambda: self.chain(second, *others)) if others else found

    def _compared(self, name: str, first: Any, second: Any) -> Any:
        if name in _OPERATORS:
            return _OPERATORS[name](first, second)
        if name in ("Is", "IsNot"):
            if first is not second and all(map(self.context.is_given, (first, second))):
                refuse(
                    "a tensor decides whether two lists, dicts or records are one object",
                    "compare the numbers that decide, or what they hold with ==",
                )
            if first is not second and _may_be_one_number(first, second):
                refuse(
                    "`is` of two numbers of which only a call knows one: whether equal numbers are one "
                    "object is Python's affair",
                    "compare them with == or !=",
                )
            found = identical(first, second)
            return found if name == "Is" else self.negate(found)
        found = self._contained(first, second)
        return self.negate(found) if name == "NotIn" else found

    def _contained(self, value: Any, container: Any) -> Any:
        if isinstance(container, range) and self._undecided(value):
            container = Span(container.start, container.stop, container.step)
        if isinstance(container, (Growing, Span, Unordered)):
            return container.has(value)
        if isinstance(container, Tensor):
            equal = container == value
            return Number(equal.any()) if self._undecided(equal) else value in container
        # Where Python hashes, it finds a tensor by its identity.
        kinds = (*_SEARCHED, *_HASHED) if isinstance(value, Number) else _SEARCHED
        parts = list(container) if isinstance(container, kinds) else []
        if not isinstance(container, kinds) or not any(self._undecided(each) for each in (value, *parts)):
            return operator.contains(container, value)
        return self._any([is_equal(each, value) for each in parts])

    def _any(self, truths: list[Any]) -> Any:
        """Whether one of them holds."""
        if all(isinstance(each, (bool, Number)) for each in truths):
            return reduce(operator.or_, truths, False)
        found: Any = False
        for each in reversed(truths):
            found = self.either(each, lambda found=found: found)
        return found

    # -- lists -----------------------------------------------------------------------------------

    def listed(self, make: Make, iterable: Any) -> Any:
        """``[value for ... in iterable if holds]``; ``make`` gives both for some of the items."""
        return listed(self.context, make, iterable)

    def extended(self, name: str, values: Any, others: Any) -> Any:
        """What the variable ``name`` holds after ``values.extend(others)``."""
        return extended(self.context, name, values, others)

    def of(self, function: Any) -> Any:
        """``function``, or what stands for it where an argument may be an unknown number."""
        return self.functions.of(function)

    # -- indices ---------------------------------------------------------------------------------

    slice = slice

    def element(self, value: Any, index: Any) -> Any:
        """``value[index]``"""
        if isinstance(value, Growing):
            if isinstance(index, slice):
                is_turned = (index.start, index.stop, index.step) == (None, None, -1)
                rows = value.rows.flip(0) if is_turned else element(value.rows, index, self.context)
                return value.part(rows)
            return self.context.taken(value, value.element(index))
        if isinstance(value, SEQUENCES) and is_integer(index) and self._undecided(index):
            return self._among(value, unwrapped(index))
        return element(value, index, self.context)

    def _among(self, values: Any, index: Tensor) -> Any:
        """The one of ``values`` at ``index``; of functions and modules, one that calls that one."""
        place, values = self._place(values, index), list(values)
        if not all(callable(each) for each in values):
            return self._at(place, values, lambda each: each)

        def called(*args: Any, **kwargs: Any) -> Any:
            return self._at(place, values, lambda each: each(*args, **kwargs))

        return called

    def _place(self, values: Any, index: Tensor) -> Tensor:
        """``index`` counted from the first of ``values``; a call fails where there is none."""
        count = len(values)
        if not count:
            raise IndexError("list index out of range")
        check((index >= -count) & (index < count), "IndexError: list index out of range")
        return torch.where(index < 0, index + count, index)

    def _at(self, place: Tensor, values: list[Any], function: Callable[[Any], Any], start: int = 0) -> Any:
        """``function`` of the one of ``values`` at ``place``; the first of them has the number ``start``."""
        if len(values) == 1:
            return function(values[0])
        half = len(values) // 2
        return self.choose(
            place < start + half,
            lambda: self._at(place, values[:half], function, start),
            lambda: self._at(place, values[half:], function, start + half),
        )

    def data(self, value: Any) -> Any:
        """``value.data``"""
        return value.detach() if isinstance(value, Tensor) and self.context.traces else value.data

    def set_element(self, written: Any, value: Any, index: Any) -> None:
        """``value[index] = written``, evaluated in that order."""
        if isinstance(value, list) and is_integer(index) and self._undecided(index):
            place = self._place(value, unwrapped(index))
            for i in range(len(value)):
                value[i] = self.choose(place == i, lambda: written, partial(operator.getitem, value, i))
        else:
            set_element(value, index, written, self._undecided)

    def update_element(self, value: Any, index: Any, name: str, operand: _Thunk) -> None:
        """``value[index] op= operand()``"""
        change = partial(self._changed, value, name)
        if isinstance(value, Growing):
            value.refuse("has an element replaced")
        if isinstance(value, list) and is_integer(index) and self._undecided(index):
            self.set_element(change(self.element(value, index), operand()), value, index)
        else:
            update_element(value, index, lambda old: change(old, operand()), self._undecided)

    def in_place(self, variable: str | None, value: Any, name: str, operand: Any, owner: Any = None) -> Any:
        """What ``variable``, None for an attribute of ``owner``, holds after ``value op= operand``."""
        if variable is not None and _extends(value, name, operand):
            return extended(self.context, variable, value, operand)
        return self._changed(owner, name, value, operand)

    def _changed(self, holder: Any, name: str, value: Any, operand: Any) -> Any:
        """What ``holder`` holds in the place of ``value`` after ``value op= operand``."""
        if isinstance(value, set) and isinstance(operand, Unordered):
            operand.refuse_in_place()
        if _extends(value, name, operand):
            return extended_in(self.context, holder, value, operand)
        return _IN_PLACE[name](value, operand)

    def _undecided(self, value: Any) -> bool:
        return self.context.tracer.undecided(unwrapped(value))


def _extends(value: Any, name: str, operand: Any) -> bool:
    """Whether ``value op= operand`` extends a list, and one of the two is of unknown length."""
    if name != "Add":
        return False
    if isinstance(value, Growing):
        return isinstance(operand, (list, tuple))
    return isinstance(value, list) and isinstance(operand, Growing)


#: The name that `choose` gives to its value.
_CHOSEN = "_rg_chosen"


def _operand(value: Any) -> Any:
    """What says whether ``value``, an operand of ``and`` or ``or``, counts as true."""
    return asked(value) if isinstance(value, (Growing, Unordered)) else value


def _alike(value: Any, other: Any) -> Any:
    """``value``, a list or a set, as a new one of unknown length where ``other`` is such a one."""
    if isinstance(other, Growing) and isinstance(value, list):
        found = Growing.starting(value, [other.element_type])
        if found is None:
            other.refuse("is chosen, or one that holds another type", "choose between lists of one type")
        return found
    if isinstance(other, Unordered):
        known = as_set(value)
        return value if known is None else known
    return value.copy() if isinstance(value, Growing) else value


def _may_be_one_number(first: Any, second: Any) -> bool:
    """Whether both are integers, or both floats, and only a call knows one of them."""
    kinds = [
        kind_of(dtype_of(each)) if isinstance(each, (Number, *SYMBOLIC)) else type(each)
        for each in (first, second)
    ]
    is_unknown = any(isinstance(each, (Number, *SYMBOLIC)) for each in (first, second))
    return is_unknown and kinds[0] is kinds[1] and kinds[0] in (int, float)


def _message(error: _Thunk) -> str:
    """What the exception that ``error`` raises says."""
    try:
        error()
    except Exception as raised:
        text = str(raised)
        return f"{type(raised).__name__}: {text}" if text else type(raised).__name__
    raise AssertionError("an arm that raises does")
