"""The unit of extension: one rewrite is one class with ``pattern``, ``check`` and ``rewrite``."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from regraft.errors import OptionError, RegraftError, RewriteError, shown
from regraft.ir.builder import Builder
from regraft.ir.core import UNKNOWN, Op, Value
from regraft.ir.dims import symbol
from regraft.ir.dtypes import DType
from regraft.ir.opdef import OpTable
from regraft.ir.pattern import Declined, Match, Pattern
from regraft.ir.types import TensorType


@dataclass(frozen=True)
class Exactness:
    """How far a rewrite's result may be from the original.

    ``EXACT`` keeps every bit, ``REASSOCIATES`` changes the order of floating-point operations only,
    and ``APPROX(tolerance)`` may err by ``tolerance`` relative to the largest output; that last kind
    runs only when the user asks for it.

    Raises:
        OptionError: the tolerance is no number from 0 on.
    """

    rank: int
    tolerance: float = 0.0

    EXACT: ClassVar[Exactness]
    REASSOCIATES: ClassVar[Exactness]

    def __post_init__(self) -> None:
        given: Any = self.tolerance
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not given >= 0:
            raise OptionError(
                "the tolerance of an approximation cannot be this",
                option="tolerance",
                value=shown(given),
                expected="a number from 0 on, the error allowed relative to the largest output",
            )

    @staticmethod
    def APPROX(tolerance: float) -> Exactness:
        return Exactness(2, tolerance)

    def allows(self, other: Exactness) -> bool:
        """Whether a compile at this level may apply a rewrite of level ``other``."""
        return (other.rank, other.tolerance) <= (self.rank, self.tolerance)

    def __str__(self) -> str:
        return ("exact", "reassociates", f"approx({self.tolerance:g})")[self.rank]


Exactness.EXACT = Exactness(0)
Exactness.REASSOCIATES = Exactness(1)


#: ``build(op, *inputs)``. Spelled out by number of inputs, so that the parameters of a lambda have types.
Build: TypeAlias = (
    Callable[[Any], Any]
    | Callable[[Any, Any], Any]
    | Callable[[Any, Any, Any], Any]
    | Callable[[Any, Any, Any, Any], Any]
    | Callable[[Any, Any, Any, Any, Any], Any]
    | Callable[[Any, Any, Any, Any, Any, Any], Any]
    | Callable[[Any, Any, Any, Any, Any, Any, Any], Any]
)


@dataclass(frozen=True)
class Example:
    """A small graph to try a rewrite on.

    Fields:
        build: ``build(op, *inputs)`` writes the graph with the op builders and returns its results.
        inputs: types of the inputs, as text (``f32[B, 8]``; a name is a size of any value) or as types;
            those named in ``constants`` (by position) become constants.
        reason: for a counterexample, a part of the reason the rewrite must give for declining.
        count: how often the rewrite fires on it.
    """

    build: Build
    inputs: tuple[TensorType | str, ...]
    constants: tuple[int, ...] = ()
    reason: str = ""
    count: int = 1

    @property
    def types(self) -> tuple[TensorType, ...]:
        return tuple(parse_type(each) if isinstance(each, str) else each for each in self.inputs)


def parse_type(text: str) -> TensorType:
    """A tensor type from ``dtype[size, ...]``, where a size is a number or a symbol's name.

    Raises:
        OptionError: the text is not a type.
    """
    found = _TYPE.fullmatch(text)
    if found is None or found[1] not in (dtype.value for dtype in DType):
        raise OptionError(f"'{text}' is not a type; write one like 'f32[B, 8]'")
    sizes = [part.strip() for part in found[2].split(",") if part.strip()]
    shape = tuple(int(size) if size.isdigit() else symbol(size) for size in sizes)
    return TensorType(DType(found[1]), shape)


_TYPE = re.compile(r"(\w+)\[((?:\w+(?:, *)?)*)\]")


#: A value for each result of the root, None for one that nobody uses; or such values by op, where the ops of
#: a match are replaced together.
Replacement: TypeAlias = Value | Sequence[Value | None] | Mapping[Op, Sequence[Value | None]]


class Rewrite:
    """Base class of rewrites.

    Subclasses write ``pattern(self, op, ...)`` (what to look for), optionally ``check(self, m)``
    (conditions on the match; return ``m.decline(reason, culprit)`` to pass), and
    ``rewrite(self, op, m)`` (the replacement of the root's results, built with the same ``op``
    builders; a mapping from ops to their replacements where several ops are replaced together).
    ``examples`` must fire and ``counterexamples`` must not; tests are derived from both.
    """

    exactness: ClassVar[Exactness] = Exactness.EXACT
    stage: ClassVar[str] = "recover"
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    examples: ClassVar[Sequence[Example]] = ()
    counterexamples: ClassVar[Sequence[Example]] = ()

    @property
    def name(self) -> str:
        return type(self).__name__

    # The arguments of ``pattern`` are the subclass's variables, hence Callable and not a method.
    pattern: Callable[..., Any]

    def check(self, m: Match) -> Declined | None:
        return None

    def rewrite(self, op: Builder, m: Match) -> Replacement:
        raise NotImplementedError(f"{self.name}.rewrite")

    def patterns(self, table: OpTable) -> tuple[Pattern, ...]:
        """The patterns of ``pattern``, over the ops of ``table``, traced once where they cannot change.

        Raises:
            RewriteError: it cannot be traced: it raises, names an op that is not there, or returns none.
        """
        is_kept = _is_fixed(self)
        if is_kept and self in table.traced:
            return table.traced[self]
        try:
            patterns = Pattern.trace(self.pattern, table)
        except Exception as error:
            raise failure_of(self, "pattern", error) from error
        if is_kept:
            table.traced[self] = patterns
        return patterns

    def fingerprint(self) -> str:
        """Identifies the rewrite's behaviour in cache keys: a hash of its source."""
        try:
            source = inspect.getsource(type(self))
        except OSError:  # defined without a file: identity is the best there is
            source = f"{type(self).__qualname__}@{id(type(self))}"
        return hashlib.sha256(source.encode()).hexdigest()[:16]


def _is_fixed(rewrite: Rewrite) -> bool:
    """Whether all that ``pattern`` can read of ``rewrite`` stays as it is, and is the same in equal ones."""
    if not dataclasses.is_dataclass(rewrite):
        has_slots = any("__slots__" in vars(each) for each in type(rewrite).__mro__[:-1])
        is_itself = type(rewrite).__hash__ is object.__hash__ and type(rewrite).__eq__ is object.__eq__
        return is_itself and not vars(rewrite) and not has_slots
    is_value = all(
        getattr(type(rewrite).__dict__.get("__dataclass_params__"), n, False) for n in ("frozen", "eq")
    )
    if not is_value or not all(field.compare for field in dataclasses.fields(rewrite)):
        return False
    try:
        hash(rewrite)
    except TypeError:  # a field is a list
        return False
    return True


def failure_of(rewrite: Rewrite, method: str, error: Exception, root: Op | None = None) -> RewriteError:
    """The error that says that ``method`` of ``rewrite`` failed at ``root``, and on which line of its own."""
    reason = error.message if isinstance(error, RegraftError) else str(error)
    return RewriteError(
        f"'{rewrite.name}'.{method} failed: {type(error).__name__}: {reason}",
        (rewrite.name,),
        location=None if root is None or root.loc == UNKNOWN else str(root.loc),
        source=line_of(getattr(rewrite, method), error),
    )


def line_of(method: Any, error: Exception) -> str:
    """The last line of the method's own file in the traceback; else its first line."""
    code = inspect.unwrap(method).__code__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == code.co_filename]
    return f"{code.co_filename}:{frames[-1].lineno if frames else code.co_firstlineno}"
