"""Every exception that regraft raises on purpose. This module imports nothing of ours.

Each one is a dataclass: its fields say what happened, `str()` says it to a person. All can be pickled, so
that a test runner or a worker process can hand them on.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(eq=False)
class RegraftError(Exception):
    """The base of them all."""

    message: str

    def __str__(self) -> str:
        return "\n".join([self.message, *self._details()])

    def _details(self) -> list[str]:
        """The lines that follow the message."""
        return []

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own __reduce__ replays only the positional arguments of the constructor.
        arguments = tuple(getattr(self, f.name) for f in fields(self) if f.init)
        return type(self), arguments, self.__dict__


@dataclass(eq=False)
class CaptureError(RegraftError):
    """The model's Python cannot be turned into a graph."""

    location: str | None = None
    """The line of the model's source, as `file:line`."""
    source_line: str | None = None
    """The text of that line."""
    hint: str | None = None
    """What the user can do about it."""

    def _details(self) -> list[str]:
        return [*_located(self.location, self.source_line), *_labelled("hint", self.hint)]


@dataclass(frozen=True)
class UnsupportedOp:
    """One op that no executor takes, with all its uses in the model."""

    name: str
    count: int
    source_lines: tuple[str, ...] = ()
    """Where the model uses it, as `file:line`."""
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])
    """Why each back end refused it, by the back end's name."""


@dataclass(eq=False)
class UnsupportedOpError(RegraftError):
    """No executor takes some of the model's ops. All are listed, so that one run shows the whole work."""

    message: str = field(init=False)
    ops: tuple[UnsupportedOp, ...]

    def __post_init__(self) -> None:
        uses = sum(op.count for op in self.ops)
        self.message = f"no executor for {_plural(len(self.ops), 'op')} ({_plural(uses, 'use')}):"

    def _details(self) -> list[str]:
        lines: list[str] = []
        for op in self.ops:
            lines.append(f"  {op.name} x{op.count}")
            lines += [f"    at {place}" for place in op.source_lines]
            lines += [f"    {backend}: {reason}" for backend, reason in op.reasons.items()]
        return [
            *lines,
            '  hint: compile(..., fallback="eager") runs such ops in torch, and the report counts them; '
            "an ONNX file needs a lowering or a decomposition",
        ]


@dataclass(eq=False)
class VerifyError(RegraftError):
    """A module breaks a rule of the IR: a bug in regraft or in a user's rewrite or pass."""

    after_pass: str | None = None
    """The pass that left the module so."""
    path: str | None = None
    """Where in the module: function, region and op."""
    location: str | None = None
    """The line of the model's source, as `file:line`."""
    excerpt: str | None = None
    """The ops around the place, a caret under the culprit."""

    def _details(self) -> list[str]:
        return [
            *_labelled("after pass", self.after_pass),
            *_labelled("at", self.path),
            *_labelled("from", self.location),
            *([self.excerpt] if self.excerpt else []),
        ]


@dataclass(eq=False)
class RewriteError(RegraftError):
    """A rewrite broke its contract, or rewrites undo one another without end."""

    rewrites: tuple[str, ...] = ()
    """The names of the rewrites at fault."""
    location: str | None = None
    """The line of the model's source, as `file:line`."""
    source: str | None = None
    """The line of the rewrite's own source."""
    in_pass: str | None = None
    """The pass that was running."""
    path: str | None = None
    """Where in the module: function, region and op."""
    excerpt: str | None = None
    """The ops around the place, a caret under the culprit."""

    def _details(self) -> list[str]:
        return [
            *_labelled("rewrites", ", ".join(self.rewrites)),
            *_labelled("source", self.source),
            *_labelled("in pass", self.in_pass),
            *_labelled("at", self.path),
            *_labelled("from", self.location),
            *([self.excerpt] if self.excerpt else []),
        ]


@dataclass(eq=False)
class ParseError(RegraftError):
    """A text is not a module of the IR."""

    line: int
    """Counted from one."""
    column: int
    """Counted from one."""
    source_line: str
    """The text of that line."""

    def _details(self) -> list[str]:
        # Tabs stay, so that the caret stands under its character whatever the tab width.
        before = self.source_line[: self.column - 1]
        indent = "".join("\t" if character == "\t" else " " for character in before)
        return [f"at line {self.line}, column {self.column}:", self.source_line, f"{indent}^"]


@dataclass(eq=False)
class BackendError(RegraftError):
    """A back end failed to build or to run what it had accepted."""

    backend: str | None = None
    op: str | None = None
    """The op at fault, where it is known."""

    def _details(self) -> list[str]:
        return [*_labelled("back end", self.backend), *_labelled("op", self.op)]


@dataclass(eq=False)
class NumericsMismatch(RegraftError):
    """A compiled or rewritten computation differs from its reference by more than the tolerance."""

    value: str
    """The first value that diverges."""
    error: float
    """The largest difference, relative to the reference's largest magnitude."""
    tolerance: float
    suspect: str | None = None
    """The rewrite that probably caused it."""
    application: int | None = None
    """Which application of the suspect, counted from one."""
    op: str | None = None
    """The op that was replaced."""
    location: str | None = None
    """The line of the model's source, as `file:line`."""
    hint: str | None = None
    """How to find the cause."""

    def _details(self) -> list[str]:
        nth = f", application {self.application}" if self.application else ""
        return [
            f"  {self.value}: error {self.error:.3g}, tolerance {self.tolerance:.3g}",
            *_labelled("suspect", self.suspect and f"{self.suspect}{nth}"),
            *_labelled("op", self.op),
            *_labelled("from", self.location),
            *_labelled("hint", self.hint),
        ]


@dataclass(eq=False)
class ShapeError(RegraftError):
    """An argument of a compiled model has a shape or a type that the model was not compiled for."""

    argument: str | None = None
    expected: str | None = None
    actual: str | None = None

    def _details(self) -> list[str]:
        if self.argument is None:
            return []
        return [f"  {self.argument}: expected {self.expected}, got {self.actual}"]


@dataclass(eq=False)
class GradientError(RegraftError):
    """A compiled model is inference: a call from which torch expects a gradient is refused."""

    @staticmethod
    def of(argument: str) -> "GradientError":
        return GradientError(
            f"argument '{argument}' requires grad, and a compiled model computes no gradients; "
            "call it under torch.no_grad(), pass a detached tensor, or train the original model"
        )


@dataclass(eq=False)
class RecompileError(RegraftError):
    """New weights cannot take the place of those that a model was compiled with: compile it again."""


@dataclass(eq=False)
class NoOriginalError(RegraftError, AttributeError):
    """A compiled model was asked for what only the original has, or was told to become another one."""


@dataclass(eq=False)
class NoFunctionError(RegraftError, AttributeError, KeyError):
    """A bundle was asked for a function that it does not have."""


@dataclass(eq=False)
class ArtefactError(RegraftError):
    """A saved artefact cannot be loaded: damaged, of another format, or not allowed."""

    path: str | None = None
    """The artefact, or the file in it."""

    def _details(self) -> list[str]:
        return _labelled("file", self.path)


@dataclass(eq=False)
class OptionError(RegraftError, ValueError):
    """An argument of the public API has a value that it cannot have."""

    option: str | None = None
    value: str | None = None
    """The value's `repr`, since the value itself may not be picklable."""
    expected: str | None = None
    """What would be accepted."""

    def _details(self) -> list[str]:
        if self.option is None:
            return []
        return [f"  {self.option}: expected {self.expected}, got {self.value}"]


@dataclass(eq=False)
class UnknownArgumentError(RegraftError, TypeError):
    """A function of the public API was called with an argument by a name that it does not have."""


@dataclass(eq=False)
class FactoryError(RegraftError):
    """A user's function that makes a model, or the file around it, cannot be used."""

    trace: str | None = None
    """The end of the traceback, from the user's own code on."""

    def _details(self) -> list[str]:
        return [self.trace] if self.trace else []


@dataclass(eq=False)
class PluginError(RegraftError):
    """A plug-in cannot be used: it is not there, cannot be imported, or holds what a plug-in may not."""

    plugin: str | None = None
    package: str | None = None
    """The installed package that has it, with its version."""
    hint: str | None = None
    """What the user can do about it."""

    def _details(self) -> list[str]:
        return [
            *_labelled("plug-in", self.plugin),
            *_labelled("package", self.package),
            *_labelled("hint", self.hint),
        ]


def no_such(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not one of ``known``: the nearest ones, or all when they are few."""
    names = sorted(known)
    folded = {each.casefold(): each for each in names}
    near = [folded[each] for each in difflib.get_close_matches(name.casefold(), folded, n=3)]
    message, listed = f"there is no {kind} '{name}'", ", ".join(names) or "none"
    if not near:
        return f"{message}; there are: {listed}"
    message += f"; did you mean {' or '.join(repr(each) for each in near)}?"
    return message if len(names) > _FEW else f"{message} There are: {listed}"


def shown(value: object) -> str:
    """``value`` for a message: its ``repr``, or what it is where that would be long, as of a tensor."""
    shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", None)
    if dtype is not None and isinstance(shape, tuple) and shape:
        return f"a {type(value).__name__} of {dtype} {list(shape)}"
    text = repr(value)
    return text if len(text) <= _LONG and "\n" not in text else f"a {type(value).__name__}"


#: So many names may be listed in a message.
_FEW = 12
#: So many characters may tell of a value.
_LONG = 80


def _labelled(label: str, text: str | None) -> list[str]:
    return [f"  {label}: {text}"] if text else []


def _located(location: str | None, source_line: str | None) -> list[str]:
    lines = [f"  at {location}"] if location else []
    return lines + ([f"    {source_line.strip()}"] if source_line else [])


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
