"""Drawings of what was tuned: time against tokens."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.errors import OptionError

if TYPE_CHECKING:
    from regraft.compiler import TuneReport, choose

_SUFFIXES = (".png", ".svg", ".pdf")


def must_be_drawable(path: Path) -> None:
    """Say so before the work begins when nothing can be drawn to ``path``.

    Raises:
        OptionError: matplotlib is not installed, or the suffix is of no kind that is drawn.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise OptionError(f"--plot {path}: the file must end in {', '.join(_SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError("--plot needs matplotlib, which is not installed: pip install 'regraft[plot]'")


def draw(report: TuneReport, path: Path) -> None:
    """Draw one diagram for each unlike computation: a line for each form, and the chosen one below them.

    The file appears whole or not at all.

    Raises:
        OptionError: there is nothing to draw, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    unlike = report.unlike()
    if not unlike:
        raise OptionError(f"--plot {path}: nothing to draw, no computation of this model has several forms")
    figure = Figure(figsize=(7, 4 * len(unlike)), layout="constrained")
    for axes, same in zip(figure.subplots(len(unlike), squeeze=False).flat, unlike, strict=True):
        _draw_choice(axes, same[0], report.rows_of(same[0]), len(same))
    _write(figure, path)


def _draw_choice(axes: Any, choice: choose.Choice, rows: Sequence[int], uses: int) -> None:
    chosen = [choice.times[n][choice.form_at(n)] for n in rows]
    axes.plot(rows, chosen, color="black", linewidth=7, alpha=0.2, label="chosen")
    for index, form in enumerate(choice.forms):
        (line,) = axes.plot(rows, [choice.times[n][index] for n in rows], label=form)
        measured = [n for n in rows if n in choice.measured_at]
        at = [choice.times[n][index] for n in measured]
        axes.plot(measured, at, "o", color=line.get_color())
    for cut in (cut for cut in choice.cuts if rows[0] < cut <= rows[-1]):
        axes.axvline(cut, color="grey", linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="tokens (dots: measured)", ylabel="microseconds")
    axes.set_title(f"{Path(choice.where).name}{f', {uses} times' if uses > 1 else ''}", fontsize="medium")
    axes.legend()


def _write(figure: Any, path: Path) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.absolute().parent)
    os.close(handle)
    try:
        figure.savefig(name)
        os.replace(name, path)
    except OSError as error:
        raise OptionError(f"--plot {path}: cannot be written: {error.strerror}") from error
    finally:
        Path(name).unlink(missing_ok=True)
