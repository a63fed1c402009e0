"""Progress: a bar on a terminal, a line for each finished phase elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from regraft.compiler import Progress

Watch = Callable[["Progress"], None]
"""An observer of a compile; see ``regraft.compile(progress=)``."""


@contextmanager
def watching(console: Console, title: str, *, quiet: bool) -> Iterator[Watch]:
    """An observer that shows on ``console`` how the work called ``title`` goes."""
    if quiet:
        yield _ignore
    elif console.is_terminal and not console.is_dumb_terminal:
        with _bar(console, title) as watch:
            yield watch
    else:
        yield _lines(console, title)


def _ignore(progress: Progress) -> None:
    """Nobody watches."""


def _lines(console: Console, title: str) -> Watch:
    seen: set[str] = set()

    def watch(progress: Progress) -> None:
        # A phase may come in several parts; one that takes no time to speak of is told of once.
        if progress.done and (progress.phase not in seen or progress.seconds >= 0.01):
            seen.add(progress.phase)
            console.print(f"{title}: {progress.phase} {progress.seconds:.2f} s")

    return watch


@contextmanager
def _bar(console: Console, title: str) -> Iterator[Watch]:
    from rich import progress as rich_progress

    bar = rich_progress.Progress(
        rich_progress.SpinnerColumn(),
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
    )
    with bar:
        task = bar.add_task(title, total=None)

        def watch(progress: Progress) -> None:
            from regraft.compiler import PHASES  # whoever calls has loaded it

            part = f"{progress.phase} ({progress.step})" if progress.step else progress.phase
            now = part if progress.share is None else progress.step  # a long step has the bar to itself
            done, total = PHASES.index(progress.phase) + progress.done, len(PHASES)
            bar.update(
                task,
                description=f"{title}: {now}",
                completed=done if progress.share is None else progress.share * total,
                total=total,
                refresh=progress.share is not None,  # the next step may come before the next frame
            )

        yield watch
