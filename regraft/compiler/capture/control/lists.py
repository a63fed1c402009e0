"""How lists come about of which only a call knows the length: by comprehensions, and by ``extend``."""

# torch's tensors are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from regraft.compiler.capture.control.context import Context, refuse, shown_name
from regraft.compiler.capture.control.growing import Element, Growing
from regraft.compiler.capture.control.loops import Run
from regraft.compiler.capture.control.meeting import meet, run_arm
from regraft.compiler.capture.control.number import Number
from regraft.compiler.capture.control.sequences import Sequence, sequence_of
from regraft.compiler.capture.control.state import KEPT, Saved, Variables
from regraft.compiler.capture.control.watch import holder_of, is_held_elsewhere, own_list

#: For some items: whether each stays, and what makes its value.
Make = Callable[[Iterable[Any]], Iterator[tuple[Any, Callable[[], Any]]]]
_LIST, _GOES_ON = "_rg_list", "_rg_goes_on"
_SAME_TYPES = "keep tensors of one shape, or numbers of one kind"
_OWN_LIST = f"extend a list that the function makes itself, and {_SAME_TYPES}"
#: What messages say of somebody else who holds a list, and the way out.
_Held = tuple[str, str]


def listed(context: Context, make: Make, iterable: Any) -> Any:
    """``[value for ... in iterable if holds]``, in the order that Python has it."""
    sequence = sequence_of(iterable, context)
    if sequence is not None:
        return _of_sequence(context, make, sequence)
    found: Any = []
    for holds, value in make(iterable):
        found = _with(context, found, holds, value)
    return found


def _of_sequence(context: Context, make: Make, sequence: Sequence) -> Any:
    """The list of values from a loop of which only a call knows the trips."""
    are_kept: list[Any] = []

    def first() -> Iterator[Any]:
        item = sequence.at(Number(torch.zeros((), dtype=torch.int64)))
        for holds, value in islice(make([item]), 1):
            are_kept.append(holds)
            yield value()

    found: Any = _started(context, [], first)
    if isinstance(found, list):  # no item makes a value
        return found
    if are_kept[0] is True and not isinstance(sequence.count, Number):
        found = []  # a trip for each item appends as much

    def trip(run: Run, item: Any) -> None:
        nonlocal found
        for holds, value in make([item]):
            found = _with(context, found, holds, value)

    def put(values: Any, _: Any) -> None:
        nonlocal found
        if values is not KEPT:
            found = values

    variables = Variables((_LIST, _GOES_ON), (lambda: found, lambda: True), put)
    appended = (_LIST,)
    Run(context, trip, _nothing, variables, _GOES_ON, (_LIST,), leaves=False, appended=appended).over(
        sequence
    )
    return found


def _with(context: Context, found: Any, holds: Any, value: Callable[[], Any]) -> Any:
    """``found`` with ``value()`` at its end if it ``holds``; another list where a tensor says whether."""
    if not context.tracer.undecided(holds.tensor if isinstance(holds, Number) else holds):
        if holds:
            append(context, found, value())
        return found
    if isinstance(found, list):
        found = _started(context, found, lambda: [value()])
    variables = Variables((_LIST,), (lambda: found,), _put)
    meet(context, holds, lambda: append(context, found, value()), _nothing, variables, variables.names)
    return found


def _started(context: Context, start: list[Any], values: Callable[[], Iterable[Any]]) -> Any:
    """The list of ``start``, to which ``values()`` may be added; ``start`` itself where there are none."""
    types: list[Element | None] = []
    with context.tracer.thrown_away():
        run_arm(context, lambda: types.extend(map(Element.like, values())), _NONE, Saved.of(_NONE))
    if not types:
        return start
    found = Growing.starting(start, types)
    if found is None:
        refuse("a list of which only a call knows the length holds elements of different types", _SAME_TYPES)
    context.holds(found, start)
    return found


def append(context: Context, values: Any, element: Any) -> None:
    """``values.append(element)``; in eager the list holds the element itself."""
    values.append(element)
    if isinstance(values, Growing):
        context.holds(values, [element])


def extended(context: Context, name: str, values: Any, others: Any) -> Any:
    """``values``, of the variable ``name``, after ``values.extend(others)``; another list if it has to be."""

    def held() -> _Held | None:
        holder = holder_of(context, name, values)
        return None if holder is None else (f", and {holder} holds the list too", own_list(name))

    return _extended(context, shown_name(name), values, others, held)


def extended_in(context: Context, holder: Any, values: Any, others: Any) -> Any:
    """What ``holder`` has in the place of the list ``values`` after ``values.extend(others)``."""

    def held() -> _Held | None:
        return ("", _OWN_LIST) if is_held_elsewhere(context, holder, values) else None

    return _extended(context, f"a list in a {type(holder).__name__}", values, others, held)


def _extended(
    context: Context, shown: str, values: Any, others: Any, held: Callable[[], _Held | None]
) -> Any:
    unknown = sequence_of(others, context)
    if isinstance(values, list) and unknown is not None:
        values = _as_growing(context, shown, values, others, held)
    if not isinstance(values, Growing):
        values.extend(others)
        return values
    added = others if isinstance(others, (Tensor, Growing)) else list(others)
    values.extend(added)
    if isinstance(added, Growing):
        context.copied(values.rows, added.rows, is_kept=True)
    else:
        context.holds(values, [added] if isinstance(added, Tensor) else added)
    return values


def _as_growing(
    context: Context, shown: str, values: list[Any], others: Any, held: Callable[[], _Held | None]
) -> Growing:
    """``values`` as a list to which ``others``, of which only a call knows the length, may be added.

    ``held`` says whether somebody else holds it, who would not see that.
    """
    added = Growing(others, None) if isinstance(others, Tensor) else others
    if not isinstance(added, Growing):
        refuse(f"{shown} is extended by what is neither a list nor a tensor", "make a list of it")
    found = Growing.starting(values, [added.element_type])
    others_hold = held()
    if found is None or others_hold is not None:
        who, hint = others_hold or ("", _OWN_LIST)
        refuse(f"{shown} is extended by something of which only a call knows the length{who}", hint)
    context.holds(found, values)
    return found


def _put(*values: Any) -> None:
    """The list stays the object that it is; what it holds is set where paths meet."""


def _nothing() -> None:
    pass


_NONE = Variables((), (), _put)
