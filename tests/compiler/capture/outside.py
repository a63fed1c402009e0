"""A module of variables that the tests of state outside of a model's functions change."""

from __future__ import annotations

COUNT = 0
SEEN: list[int] = []


def count_up() -> None:
    global COUNT  # noqa: PLW0603
    COUNT += 1


def count_by_its_name() -> None:
    """Of few variables: what can be reached from those of a module of tests are all objects of pytest."""
    globals()["COUNT"] += 1
