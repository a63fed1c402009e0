"""Passes, their order, and the driver that applies rewrites.

A pass belongs to a stage and may ask to come ``after`` or ``before`` others by name. Within a stage
passes are sorted by these wishes, ties by name: the order in which somebody listed them never
matters. A cycle is an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

from regraft.errors import NumericsMismatch, OptionError, RewriteError, UnsupportedOpError, VerifyError
from regraft.ir.core import UNKNOWN, Op, Value
from regraft.ir.module import Module
from regraft.ir.opdef import OpTable
from regraft.ir.pattern import Declined, Match, Pattern, Progress, match_pattern
from regraft.ir.place import excerpt, path_of
from regraft.ir.printer import outermost
from regraft.ir.rewrite import Exactness, Rewrite, failure_of, line_of
from regraft.ir.rewriter import Fuel, Listener, Rewriter, RewriteStats

#: The stages of a compile that passes may join, in order.
STAGES = ("canonicalize", "fold", "recover", "algebra", "choose", "fuse", "legalize")


@dataclass(frozen=True)
class Application:
    """One application of a rewrite.

    Fields:
        number: counted from one, over all rewrites of the compile; what fuel counts.
        nth: counted from one, over this rewrite's own.
    """

    number: int
    nth: int
    rewrite: Rewrite
    match: Match


class Watcher(Listener):
    """A listener to everything that a compile changes, which hears of applications as well."""

    def before(self, application: Application) -> None:
        """The match is about to be replaced."""

    def after(self, application: Application, rewriter: Rewriter) -> None:
        """It was, through ``rewriter``."""


@dataclass
class PassContext(Listener):
    """What passes share in one compile.

    Fields:
        table: the ops that may be built.
        exactness: rewrites above this level are left out.
        fuel: applications still allowed.
        stats: hits, declines and time by rewrite name.
        observer: called after each pass with its name and seconds (verification, dumps, reports).
        watchers: hear of every change that is made through ``rewriter``.
        at: the op that a pass is working on, for errors.
    """

    table: OpTable
    exactness: Exactness = Exactness.REASSOCIATES
    fuel: Fuel = field(default_factory=Fuel)
    stats: dict[str, RewriteStats] = field(default_factory=dict[str, RewriteStats])
    observer: Callable[[str, Module, float], None] = lambda name, module, seconds: None
    watchers: tuple[Watcher, ...] = ()
    at: Op | None = None

    def stats_of(self, name: str) -> RewriteStats:
        return self.stats.setdefault(name, RewriteStats())

    def rewriter(self, made_by: str, *listeners: Listener) -> Rewriter:
        """The way for a pass to change the module: errors name its place, and watchers hear of it."""
        return Rewriter(self.table, made_by, (self, *listeners, *self.watchers))

    def visiting(self, op: Op) -> None:
        self.at = op


class Ordered(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def after(self) -> tuple[str, ...]: ...
    @property
    def before(self) -> tuple[str, ...]: ...


class Pass(Ordered, Protocol):
    """A transformation of a module, in place and through ``context.rewriter(...)`` only."""

    @property
    def stage(self) -> str: ...

    def run(self, module: Module, context: PassContext) -> bool:
        """Whether the module changed."""
        ...


T = TypeVar("T", bound=Ordered)


def in_order(items: Sequence[T]) -> list[T]:
    """``items`` sorted by their ``after`` and ``before`` names, ties by name.

    Raises:
        RewriteError: two items share a name, or the wishes form a cycle.
    """
    by_name: dict[str, T] = {}
    for item in items:
        if item.name in by_name:
            raise RewriteError(f"two passes or rewrites are called '{item.name}'")
        by_name[item.name] = item
    graph: dict[str, set[str]] = {name: set() for name in by_name}
    for item in items:
        graph[item.name].update(name for name in item.after if name in by_name)
        for name in item.before:
            if name in by_name:
                graph[name].add(item.name)
    return [by_name[name] for name in _sorted_names(graph)]


def _sorted_names(graph: Mapping[str, set[str]]) -> list[str]:
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        raise RewriteError(f"passes ask for a cyclic order: {' -> '.join(error.args[1])}") from error
    result: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        result += ready
        sorter.done(*ready)
    return result


def passes_in_order(passes: Sequence[Pass], last_stage: str = STAGES[-1]) -> list[Pass]:
    """The passes of every stage up to ``last_stage``, in the order in which a compile runs them."""
    stages = STAGES[: STAGES.index(last_stage) + 1]
    return [each for stage in stages for each in in_order([p for p in passes if p.stage == stage])]


def run_stage(passes: Sequence[Pass], stage: str, module: Module, context: PassContext) -> None:
    """Run the passes of ``stage`` in order."""
    for each in in_order([p for p in passes if p.stage == stage]):
        run_pass(each, module, context)


def run_pass(each: Pass, module: Module, context: PassContext) -> None:
    """Run one pass and report it to the context's observer.

    Raises:
        RewriteError: the pass failed. The error names the pass, the op it was working on and that
            op's surroundings, once; an exception of another kind is its cause.
        VerifyError, NumericsMismatch: a check of the compile failed.
        UnsupportedOpError: the pass has no form for ops of the model.
        OptionError: an option that the error names does not fit the model: no fault of the pass.
    """
    context.at = None
    start = time.perf_counter()
    try:
        each.run(module, context)
    except NumericsMismatch as error:
        error.suspect = error.suspect or each.name
        raise
    except (VerifyError, UnsupportedOpError):
        raise
    except RewriteError as error:
        _locate(error, each.name, module, context.at)
        raise
    except Exception as error:
        if isinstance(error, OptionError) and error.option is not None:
            raise
        failure = RewriteError(f"the pass '{each.name}' failed: {type(error).__name__}: {error}")
        _locate(failure, each.name, module, context.at)
        raise failure from error
    context.observer(each.name, module, time.perf_counter() - start)


def _locate(error: RewriteError, name: str, module: Module, op: Op | None) -> None:
    """Say in which pass and where ``error`` happened, unless it says so itself."""
    if error.in_pass is not None:
        return
    error.in_pass = name
    if op is None:
        return
    if error.location is None and op.loc != UNKNOWN:
        error.location = str(op.loc)
    if op.parent is not None:
        body = outermost(op)
        names = (name for name, function in module.functions.items() if function.body is body)
        error.path, error.excerpt = path_of(op, next(names, "")), excerpt(op)


class RewritePass:
    """Applies a set of rewrites to a fixpoint, with a worklist.

    Every op is tried once; an op near a change is tried again. ``max_applications`` per op in the
    original graph bounds the run: reaching it means that two rewrites undo each other, and the error
    names the last ones.
    """

    max_applications: ClassVar[int] = 20
    max_sweeps: ClassVar[int] = 100

    def __init__(
        self,
        name: str,
        stage: str,
        rewrites: Sequence[Rewrite],
        after: tuple[str, ...] = (),
        before: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.stage = stage
        self.rewrites = in_order(rewrites)
        self.after = after
        self.before = before

    def run(self, module: Module, context: PassContext) -> bool:
        allowed = [r for r in self.rewrites if context.exactness.allows(r.exactness)]
        index = _by_root(allowed, context.table)
        changed = False
        for function in module.functions.values():
            driver = _Driver(index, context, self.max_applications)
            # The worklist revisits direct users of a change; another sweep finds deeper patterns.
            for _ in range(self.max_sweeps):
                if not driver.run(list(function.walk())):
                    break
                changed = True
            else:
                driver.refuse(f"{self.max_sweeps} sweeps")
        return changed


RootIndex = dict[str, list[tuple[Rewrite, Pattern]]]


def _by_root(rewrites: Sequence[Rewrite], table: OpTable) -> RootIndex:
    index: RootIndex = {}
    for rewrite in rewrites:
        for pattern in rewrite.patterns(table):
            index.setdefault(pattern.root.definition.name, []).append((rewrite, pattern))
    return index


class _Driver(Listener):
    """The worklist of one function; a listener of its own rewriters."""

    def __init__(self, index: RootIndex, context: PassContext, limit: int) -> None:
        self.index = index
        self.context = context
        self.limit = limit
        self.pending: dict[Op, None] = {}
        self.recent: list[str] = []

    def run(self, ops: Sequence[Op]) -> bool:
        self.pending = dict.fromkeys(ops)
        self.recent = []
        budget = self.limit * max(len(ops), 10)
        while self.pending:
            op = next(iter(self.pending))
            del self.pending[op]
            if op.parent is not None and self._try(op) and len(self.recent) > budget:
                self.refuse(f"{budget} applications")
        return bool(self.recent)

    def refuse(self, limit: str) -> NoReturn:
        names = tuple(sorted(set(self.recent[-10:])))
        raise RewriteError(f"rewrites do not terminate after {limit}", names)

    def _try(self, op: Op) -> bool:
        for rewrite, pattern in self.index.get(op.name, ()):
            stats = self.context.stats_of(rewrite.name)
            start = time.perf_counter()
            self.context.at = op
            outcome = decide(rewrite, pattern, op)
            applied = isinstance(outcome, Match) and self.context.fuel.take()
            if isinstance(outcome, Match) and applied:
                stats.hits += 1
                self._apply(Application(self.context.fuel.spent, stats.hits, rewrite, outcome))
                self.recent.append(rewrite.name)
            elif isinstance(outcome, Declined):
                stats.declined[outcome.reason] = stats.declined.get(outcome.reason, 0) + 1
            stats.seconds += time.perf_counter() - start
            if applied:
                return True
        return False

    def _apply(self, application: Application) -> None:
        for watcher in self.context.watchers:
            watcher.before(application)
        rewriter = self.context.rewriter(application.rewrite.name, self)
        apply(application.rewrite, application.match, rewriter)
        for watcher in self.context.watchers:
            watcher.after(application, rewriter)

    def inserted(self, op: Op) -> None:
        self.pending[op] = None

    def replaced(self, op: Op, values: Sequence[Value]) -> None:
        for value in values:
            self.pending.update(dict.fromkeys(value.users))

    def modified(self, op: Op) -> None:
        self.pending[op] = None
        for result in op.results:
            self.pending.update(dict.fromkeys(result.users))

    def erased(self, op: Op) -> None:
        self.pending.pop(op, None)


def decide(rewrite: Rewrite, pattern: Pattern, root: Op) -> Match | Declined:
    """Whether ``rewrite`` applies at ``root``; reads only.

    Raises:
        RewriteError: ``check`` raised.
    """
    match = match_pattern(pattern, root)
    if isinstance(match, Declined):
        return match
    kept = match.outside_use()
    if kept is not None:
        reason = "an inner value has users outside the match"
        return Declined(reason, kept, "", Progress.OUTSIDE_USE, kept.op, match.ops)
    try:
        verdict: Any = rewrite.check(match)
        if verdict is not None and not isinstance(verdict, (Declined, bool)):
            raise TypeError(f"it returned {verdict!r}; return None, or m.decline(reason, culprit)")
    except Exception as error:
        raise failure_of(rewrite, "check", error, root) from error
    if isinstance(verdict, Declined):
        return verdict
    # ``return False`` reads as a refusal, and must be one.
    return match.decline("check returned False", match.root.results[0]) if verdict is False else match


def apply(rewrite: Rewrite, match: Match, rewriter: Rewriter) -> None:
    """Build the replacement of ``match`` and erase what it leaves unused.

    Raises:
        RewriteError: the rewrite raised, or built values that do not fit.
    """
    root = match.root
    try:
        replacements = _replacements(rewrite.rewrite(rewriter.before(root), match), root)
    except Exception as error:
        raise failure_of(rewrite, "rewrite", error, root) from error
    producers = [v.op for op in replacements for v in op.operands if v.op is not None]
    try:
        for op, values in replacements.items():
            rewriter.replace(op, values)
    except RewriteError as error:
        error.rewrites = error.rewrites or (rewrite.name,)
        error.source = line_of(rewrite.rewrite, error)
        raise
    for op in (*match.ops, *producers):
        if op.parent is not None:
            rewriter.erase_if_unused(op)


def _replacements(built: Any, root: Op) -> Mapping[Op, Sequence[Value | None]]:
    """What ``rewrite`` gave, by op; the root is among them."""
    if not isinstance(built, Mapping):
        return {root: _values(built, root)}
    by_op: dict[Any, Any] = {op: _values(values, root) for op, values in built.items()}  # pyright: ignore[reportUnknownVariableType]
    if root not in by_op or not all(isinstance(op, Op) for op in by_op):
        raise TypeError(f"it returned {built!r}; return values for {root.name}, and for other ops by op")
    return by_op


def _values(built: Any, root: Op) -> tuple[Value | None, ...]:
    given: Any = (built,) if isinstance(built, Value) else built
    if not isinstance(given, (tuple, list)) or not all(v is None or isinstance(v, Value) for v in given):  # pyright: ignore[reportUnknownVariableType]
        raise TypeError(f"it returned {built!r}; return a value for each result of {root.name}")
    return tuple(given)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
