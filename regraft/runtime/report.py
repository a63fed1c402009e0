"""Reports as people and programs read them, and the report of a model that was loaded."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from regraft.errors import ArtefactError

WIDTH = 100
"""Columns of a report's text."""

_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, OverflowError)


class ReadableReport:
    """The face of a report for people, from its JSON form: the compiler's, and one read back from a file."""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        raise NotImplementedError

    def __rich__(self) -> Any:
        from regraft.runtime.report_view import summary

        return summary(self.to_dict())

    def __str__(self) -> str:
        return _text(self.__rich__())

    def remarks(self) -> list[str]:
        """What the user should know of fallbacks, choices and kernels, and the notes, in lines."""
        from regraft.runtime.report_view import remarks

        return remarks(self.to_dict())

    def full(self) -> str:
        """All there is: every pass, every rewrite with the reasons it declined for, every step."""
        from regraft.runtime.report_view import details

        return _text(details(self.to_dict()))


def _text(renderable: Any) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=WIDTH, markup=False, emoji=False, highlight=False).print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().split("\n"))


class Record(SimpleNamespace):
    """A part of a saved report, its fields as attributes."""

    def __str__(self) -> str:
        text = vars(self).get("text")
        return text if isinstance(text, str) else repr(self)


@dataclass(frozen=True)
class SavedReport(ReadableReport):
    """The report of a model that was loaded: what the compile wrote down.

    It prints as the compiler's did and has its attributes, where the compiler's own classes are records with
    the same fields. What an artefact of an earlier version lacks is an AttributeError; an artefact's report
    that has another form is an ArtefactError, when it is read.
    """

    content: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.content)

    def __rich__(self) -> Any:
        with _reading():
            return super().__rich__()

    def full(self) -> str:
        with _reading():
            return super().full()

    def __getattr__(self, name: str) -> Any:
        content = vars(self).get("content", {})
        if name not in content:
            raise AttributeError(f"a saved report has no '{name}'; it has: {', '.join(content)}")
        with _reading():
            return _PARTS.get(name, _as_it_is)(content[name])


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except _MALFORMED as error:
        raise ArtefactError(f"the artefact's report is malformed: {error!r}") from error


def _as_it_is(part: Any) -> Any:
    return part


def _record(part: Mapping[str, Any] | None) -> Record | None:
    return None if part is None else Record(**part)


def _measured(part: Mapping[str, Any] | None) -> Record | None:
    if part is None:
        return None
    steps = tuple((step["backend"], step["seconds"]) for step in part["steps"])
    return Record(**{**part, "steps": steps})


#: Part of a report -> how it is seen as an attribute; the others are as they were written.
_PARTS: Mapping[str, Callable[[Any], Any]] = {
    "passes": lambda part: [(each["name"], each["seconds"]) for each in part],
    "rewrites": lambda part: {name: Record(**stats) for name, stats in part.items()},
    "fallbacks": lambda part: {(f["op"], f["backend"], f["reason"]): f["uses"] for f in part},
    "choices": lambda part: [Record(**choice) for choice in part],
    "estimated": _record,
    "measured": _measured,
    "cache": lambda part: Record(**part, text=": ".join(filter(None, (part["status"], part["reason"])))),
}
