"""The phases of a compile: how long each takes, and word of it to whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

#: The phases of a compile in order. One that is not needed is left out.
PHASES = ("cache", "export", "decompositions", "import", "rewrites", "partition", "lower", "verify")


MEASURING = "measuring"
"""Under this name the times of a compile have what was spent on timing forms, back ends and kernels."""


@dataclass(frozen=True)
class Progress:
    """What a compile has just begun or finished.

    Fields:
        phase: one of ``PHASES``.
        step: a part of the phase, such as a pass, that is finished; None for the phase itself.
        done: whether the phase is finished, not begun.
        seconds: what the finished step or phase took.
        share: how much of a long step is done, from 0 to 1; None for a step that is heard of at its end.
    """

    phase: str
    step: str | None = None
    done: bool = False
    seconds: float = 0.0
    share: float | None = None


Observer = Callable[[Progress], object]


def unobserved(progress: Progress) -> None:
    """The observer of a compile that nobody watches."""


@dataclass
class Phases:
    """The clock of one compile.

    Fields:
        observer: called as each phase begins and ends, in the compiling thread. An exception that it
            raises ends the compile.
        seconds: time by phase, of those finished so far; of ``measuring``, what was taken off theirs.
    """

    observer: Observer = unobserved
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    _is_measuring: bool = False

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Add the time of the block to the phase ``name``; a block that raises does not finish it."""
        self.observer(Progress(name))
        start, apart = time.perf_counter(), self.seconds.get(MEASURING, 0.0)
        yield
        seconds = time.perf_counter() - start - (self.seconds.get(MEASURING, 0.0) - apart)
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.observer(Progress(name, done=True, seconds=seconds))

    @contextmanager
    def measuring(self) -> Generator[None]:
        """Book the time of the block apart from that of the phase that it is in."""
        if self._is_measuring:
            yield
            return
        self._is_measuring = True
        start = time.perf_counter()
        try:
            yield
        finally:
            self._is_measuring = False
            self.seconds[MEASURING] = self.seconds.get(MEASURING, 0.0) + time.perf_counter() - start

    def step(self, phase: str, name: str, seconds: float, share: float | None = None) -> None:
        """Say that a part of ``phase`` is finished, or how far it is."""
        self.observer(Progress(phase, name, seconds=seconds, share=share))
