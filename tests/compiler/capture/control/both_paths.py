"""A stand-in for a trace: every tensor is undecided, both arms run, and the values at hand choose then."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from regraft.compiler import control

Values = tuple[Tensor, ...]
#: A loop in an arm that is not taken need not end.
ENDLESS = 200


class Counts:
    """What a trace would record.

    Fields:
        conditions, loops: how many there were, thrown away ones left out.
        deepest: how many conditions were inside one another.
        thrown_away_conditions: how many conditions were in what was thrown away.
    """

    conditions = 0
    loops = 0
    deepest = 0
    thrown_away_conditions = 0
    depth = 0
    silent = 0


class BothPaths:
    """Counts in a class that passes for Python's: its frames count as the model's, whose objects and classes
    an arm must not change.
    """

    def __init__(self) -> None:
        self.counts: type[Counts] = type("Counts", (Counts,), {"__module__": "builtins"})

    def undecided(self, value: object) -> bool:
        return isinstance(value, Tensor)

    def cond(
        self, pred: Any, then: Callable[[], Sequence[Tensor]], otherwise: Callable[[], Sequence[Tensor]]
    ) -> Values:
        if not self.counts.silent:
            self.counts.conditions += 1
            self.counts.depth += 1
            self.counts.deepest = max(self.counts.deepest, self.counts.depth)
        else:
            self.counts.thrown_away_conditions += 1
        first, second = tuple(then()), tuple(otherwise())
        self.counts.depth -= not self.counts.silent
        assert [(t.dtype, t.dim()) for t in first] == [(t.dtype, t.dim()) for t in second]
        return first if bool(pred) else second

    def loop(
        self,
        test: Callable[[Values], Tensor],
        body: Callable[[Values], Sequence[Tensor]],
        carried: Sequence[Tensor],
        limit: int | None = None,
        changing: Sequence[int] | None = None,
    ) -> Values:
        self.counts.loops += not self.counts.silent
        now, types = tuple(carried), [(t.dtype, t.dim()) for t in carried]
        for _ in range(ENDLESS):
            if not test(now):
                break
            now = tuple(body(now))
            assert [(t.dtype, t.dim()) for t in now] == types
        return now

    def stand_ins(self, carried: Sequence[Tensor], changing: Sequence[int]) -> Values:
        return tuple(each.clone() for each in carried)

    @contextmanager
    def thrown_away(self) -> Generator[None]:
        self.counts.silent += 1
        try:
            yield
        finally:
            self.counts.silent -= 1


def converted(function: Any, limit: int | None = None) -> tuple[Any, BothPaths, control.Converted]:
    """``function`` converted, the double that it runs on, and what was converted."""
    tracer = BothPaths()
    context = control.Context(tracer, limit)
    found = control.convert(function.__code__, control.Calls(context))
    defaults, closure = function.__defaults__, function.__closure__
    copy = FunctionType(found.code, function.__globals__, function.__name__, defaults, closure)
    copy.__kwdefaults__ = function.__kwdefaults__

    def run(*args: Any, **kwargs: Any) -> Any:
        while True:
            try:
                with context.tracing(), torch.no_grad():
                    return copy(*args, **kwargs)
            except control.Learnt as learnt:
                context.learn(learnt)

    run.context = context  # pyright: ignore[reportFunctionMemberAccess]
    return run, tracer, found
