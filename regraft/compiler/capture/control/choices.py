"""What the truth of one number says about others that the same conditions chose.

Where two paths meet, each variable that holds another of Python's numbers on each becomes a ``Number``,
a flag that says which path it was among them. In an arm that the flag decides, the others are what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from regraft.compiler.capture.control.number import Choice, Condition, Number, as_truth
from regraft.compiler.capture.control.optional import Maybe
from regraft.compiler.capture.control.state import Variables

#: Condition -> the number of the path that it took.
Taken = Mapping[Condition, int]


def note_choices(values: list[Any], paths: list[tuple[Any, ...]], test: Any) -> None:
    """Let the numbers among ``values``, which ``test`` chose, know what they were on its ``paths``."""
    condition = Condition(test=test if isinstance(test, Number) else None)
    for value, *sides in zip(values, *paths, strict=True):
        if isinstance(value, Number) and all(_is_number(side) for side in sides):
            value.choice = Choice(condition, (sides[0], sides[1]))


def negated(value: Any) -> Number:
    """``not value``"""
    return Number(~as_truth(value), _of_sides(value, negates=True))


def truth(value: Any) -> Any:
    """``bool(value)``, of a value that only a call knows."""
    if isinstance(value, Number) and value.kind is bool:
        return value
    return Number(as_truth(value), _of_sides(value, negates=False))


def identical(first: Any, second: Any) -> Any:
    """``first is second``: of two truth values, whether they are equal."""
    known, unknown = (first, second) if type(first) is bool else (second, first)
    if not isinstance(unknown, Number) or unknown.kind is not bool:
        return first is second
    if type(known) is bool:
        return unknown if known else negated(unknown)
    return unknown == known if isinstance(known, Number) and known.kind is bool else False


def settled(value: Any, *, truth: bool) -> Any:
    """``value`` where its truth is ``truth``."""
    return truth if isinstance(value, Number) and value.kind is bool else value


def _of_sides(value: Any, *, negates: bool) -> Choice | None:
    """The choice of the truth of ``value``. What only a path knows stays as it is: nobody looks at it."""
    choice = value.choice if isinstance(value, Number) else None
    if choice is None:
        return None
    first, second = (
        Number(side.tensor, _of_sides(side, negates=negates))
        if isinstance(side, Number)
        else bool(side) is not negates
        for side in choice.sides
    )
    return Choice(choice.condition, (first, second))


def knowing(arm: Callable[[], None], test: Any, truth: bool, variables: Variables) -> Callable[[], None]:
    """``arm``, which runs where ``test`` has the truth ``truth``, with the numbers that this settles.

    A variable of ``variables`` that may be None elsewhere leaves it as what it is there.
    """
    taken: Taken = _taken(test, truth=truth) if isinstance(test, Number) else {}
    if not taken:
        return arm

    def run() -> None:
        with _known(taken):
            variables.write([_settled(value, taken) for value in variables.read()])
            arm()
            variables.write([_held(value) for value in variables.read()])

    return run


def _held(value: Any) -> Any:
    return value.held if type(value) is Maybe and value.is_known else value


@contextmanager
def _known(taken: Taken) -> Generator[None]:
    """In the block the conditions know the paths that they took."""
    before = {condition: condition.path for condition in taken}
    for condition, path in taken.items():
        condition.path = path
    try:
        yield
    finally:
        for condition, path in before.items():
            condition.path = path


def _taken(test: Number, *, truth: bool) -> dict[Condition, int]:
    """The paths that were taken for certain where ``test`` has the truth ``truth``.

    A path that was taken says in turn what the truth of its own test was.
    """
    possible = [taken for taken, leaf in _leaves(test) if isinstance(leaf, Number) or bool(leaf) is truth]
    if not possible:
        return {}
    first, *others = possible
    certain = {key: path for key, path in first.items() if all(each.get(key) == path for each in others)}
    for condition, path in list(certain.items()):
        if condition.test is not None:
            certain |= _taken(condition.test, truth=path == 0)
    return certain


def _leaves(value: Any) -> Iterator[tuple[dict[Condition, int], Any]]:
    """What ``value`` may be, each with the paths that lead there."""
    if not isinstance(value, Number) or value.choice is None:
        yield {}, value
        return
    for path, side in enumerate(value.choice.sides):
        for taken, leaf in _leaves(side):
            yield {**taken, value.choice.condition: path}, leaf


def _settled(value: Any, taken: Taken) -> Any:
    found = value
    while isinstance(found, Number) and found.choice is not None and found.choice.condition in taken:
        found = found.choice.sides[taken[found.choice.condition]]
    return value if isinstance(found, (Number, Tensor)) else found


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) or type(value) in (bool, int, float)
