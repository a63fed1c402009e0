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
from regraft.compiler.capture.control.state import Variables

#: Condition -> the number of the path that it took.
Taken = Mapping[Condition, int]


def note_choices(values: list[Any], paths: list[tuple[Any, ...]]) -> None:
    """Let the numbers among ``values``, which one condition chose, know what they were on its ``paths``."""
    condition = Condition()
    for value, *sides in zip(values, *paths, strict=True):
        if isinstance(value, Number) and all(_is_number(side) for side in sides):
            value.choice = Choice(condition, (sides[0], sides[1]))


def negated(value: Any) -> Number:
    """``not value``"""
    return Number(~as_truth(value), _negated(value) if isinstance(value, Number) else None)


def _negated(number: Number) -> Choice | None:
    """The choice of ``not number``. What only a path knows stays as it is: nobody looks at its truth."""
    choice = number.choice
    if choice is None:
        return None
    first, second = (
        Number(side.tensor, _negated(side)) if isinstance(side, Number) else not side for side in choice.sides
    )
    return Choice(choice.condition, (first, second))


def knowing(arm: Callable[[], None], test: Any, truth: bool, variables: Variables) -> Callable[[], None]:
    """``arm``, which runs where ``test`` has the truth ``truth``, with the numbers that this settles."""
    taken: Taken = _taken(test, truth=truth) if isinstance(test, Number) else {}
    if not taken:
        return arm

    def run() -> None:
        with _known(taken):
            variables.write([_settled(value, taken) for value in variables.read()])
            arm()

    return run


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


def _taken(test: Number, *, truth: bool) -> Taken:
    """The paths that were taken for certain where ``test`` has the truth ``truth``."""
    possible = [taken for taken, leaf in _leaves(test) if isinstance(leaf, Number) or bool(leaf) is truth]
    if not possible:
        return {}
    first, *others = possible
    return {key: path for key, path in first.items() if all(each.get(key) == path for each in others)}


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
