"""Random programs of assignments, writes, views, conditions and loops over four matrices."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.compiler import control

NAMES = "abcd"
SHAPE = (3, 4)

Variables = dict[str, Tensor]
Statement = Callable[[Variables], None]


def model_of(seed: int) -> Callable[[Tensor, Tensor], Any]:
    """A function of two matrices that returns all four variables."""
    block = _block(random.Random(seed), 2, 3, 7)

    def model(a: Tensor, b: Tensor) -> Any:
        variables = {"a": a, "b": b, "c": a * 2, "d": b + 1}
        _run(block, variables)
        return tuple(variables[name] * 1 for name in NAMES)

    return model


def _run(block: Sequence[Statement], variables: Variables) -> None:
    for statement in block:
        statement(variables)


def _block(r: random.Random, depth: int, least: int, most: int) -> list[Statement]:
    return [_statement(r, depth) for _ in range(r.randint(least, most))]


def _statement(r: random.Random, depth: int) -> Statement:
    simple = (_assignment, _assignment, _sum_in_place, _write_to_row, _view)
    nested = (_condition, _condition, _loop) if depth else ()
    return r.choice((*simple, *nested))(r, depth)


def _assignment(r: random.Random, depth: int) -> Statement:
    to, one, other = (r.choice(NAMES) for _ in range(3))
    function = r.choice((torch.add, torch.mul, torch.sub))

    def run(v: Variables) -> None:
        v[to] = function(v[one], v[other]).clamp(-5, 5)

    return run


def _sum_in_place(r: random.Random, depth: int) -> Statement:
    to, other = r.choice(NAMES), r.choice(NAMES)

    def run(v: Variables) -> None:
        v[to].add_(v[other]).clamp_(-5, 5)

    return run


def _write_to_row(r: random.Random, depth: int) -> Statement:
    to, row, number = r.choice(NAMES), r.randrange(SHAPE[0]), r.uniform(-1, 1)

    def run(v: Variables) -> None:
        v[to][row].add_(number)

    return run


def _view(r: random.Random, depth: int) -> Statement:
    to, other = r.choice(NAMES), r.choice(NAMES)

    def run(v: Variables) -> None:
        v[to] = v[other].view(SHAPE[::-1]).view(SHAPE)

    return run


def _condition(r: random.Random, depth: int) -> Statement:
    tested, bound = r.choice(NAMES), r.uniform(-2, 2)
    assigned = r.sample(NAMES, r.randint(0, 2))
    arms = [(_block(r, depth - 1, 0, 3), [r.choice(NAMES) for _ in assigned]) for _ in range(2)]

    def run(v: Variables) -> None:
        def arm(block: Sequence[Statement], given: Sequence[str]) -> Callable[[], list[Tensor]]:
            return lambda: _in_copy(block, dict(v), given)

        then, otherwise = (arm(*each) for each in arms)
        v.update(zip(assigned, control.cond(v[tested].sum() > bound, then, otherwise), strict=True))

    return run


def _loop(r: random.Random, depth: int) -> Statement:
    assigned, trips = r.sample(NAMES, r.randint(0, 2)), r.randint(0, 3)
    block = _block(r, depth - 1, 0, 3)
    given = [name if r.random() < 0.6 else r.choice(NAMES) for name in assigned]

    def run(v: Variables) -> None:
        def trip(carried: tuple[Tensor, ...]) -> list[Tensor]:
            inside = v | dict(zip(assigned, carried[1:], strict=True))
            return [carried[0] + 1, *_in_copy(block, inside, given)]

        start = torch.zeros((), dtype=torch.int64)
        _, *found = control.loop(lambda c: c[0] < trips, trip, [start, *(v[name] for name in assigned)])
        v.update(zip(assigned, found, strict=True))

    return run


def _in_copy(block: Sequence[Statement], variables: Variables, given: Sequence[str]) -> list[Tensor]:
    _run(block, variables)
    return [variables[name] for name in given]
