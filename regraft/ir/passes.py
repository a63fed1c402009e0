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
from typing import ClassVar, NoReturn, Protocol, TypeVar

from regraft.errors import RegraftError, RewriteError
from regraft.ir.core import Op, Value
from regraft.ir.module import Module
from regraft.ir.opdef import OpTable
from regraft.ir.pattern import Declined, Match, Pattern, match_pattern
from regraft.ir.rewrite import Exactness, Rewrite
from regraft.ir.rewriter import Fuel, Rewriter, RewriteStats

#: The stages of a compile that passes may join, in order.
STAGES = ("canonicalize", "fold", "recover", "algebra", "fuse", "legalize")


@dataclass
class PassContext:
    """What passes share in one compile.

    Fields:
        table: the ops that may be built.
        exactness: rewrites above this level are left out.
        fuel: applications still allowed.
        stats: hits, declines and time by rewrite name.
        observer: called after each pass with its name and seconds (verification, dumps, reports).
    """

    table: OpTable
    exactness: Exactness = Exactness.REASSOCIATES
    fuel: Fuel = field(default_factory=Fuel)
    stats: dict[str, RewriteStats] = field(default_factory=dict[str, RewriteStats])
    observer: Callable[[str, Module, float], None] = lambda name, module, seconds: None

    def stats_of(self, name: str) -> RewriteStats:
        return self.stats.setdefault(name, RewriteStats())


class Ordered(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def after(self) -> tuple[str, ...]: ...
    @property
    def before(self) -> tuple[str, ...]: ...


class Pass(Ordered, Protocol):
    """A transformation of a module. It changes the module in place, through a ``Rewriter`` only."""

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


def run_stage(passes: Sequence[Pass], stage: str, module: Module, context: PassContext) -> None:
    """Run the passes of ``stage`` in order, each reported to the context's observer."""
    for each in in_order([p for p in passes if p.stage == stage]):
        start = time.perf_counter()
        try:
            each.run(module, context)
        except RegraftError:
            raise
        except Exception as error:
            raise RewriteError(f"the pass '{each.name}' failed: {error}") from error
        context.observer(each.name, module, time.perf_counter() - start)


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


class _Driver:
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
            outcome = decide(rewrite, pattern, op)
            applied = isinstance(outcome, Match) and self.context.fuel.take()
            if isinstance(outcome, Match) and applied:
                apply(rewrite, outcome, Rewriter(self.context.table, rewrite.name, [self]))
                stats.hits += 1
                self.recent.append(rewrite.name)
            elif isinstance(outcome, Declined):
                stats.declined[outcome.reason] = stats.declined.get(outcome.reason, 0) + 1
            stats.seconds += time.perf_counter() - start
            if applied:
                return True
        return False

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
    """Whether ``rewrite`` applies at ``root``; reads only."""
    match = match_pattern(pattern, root)
    if isinstance(match, Declined):
        return match
    kept = match.outside_use()
    if kept is not None:
        return Declined("an inner value has users outside the match", kept)
    try:
        verdict: object = rewrite.check(match)
    except RegraftError:
        raise
    except Exception as error:
        raise RewriteError(f"'{rewrite.name}'.check failed at {root.loc}: {error}") from error
    if isinstance(verdict, Declined):
        return verdict
    if verdict is None or verdict is True:
        return match
    # ``return False`` reads as a refusal, and must be one.
    return Declined(f"check returned {verdict!r}", match.root.results[0])


def apply(rewrite: Rewrite, match: Match, rewriter: Rewriter) -> None:
    """Build the replacement of ``match`` and erase what it leaves unused.

    Raises:
        RewriteError: the rewrite raised, or built values that do not fit.
    """
    root = match.root
    try:
        built = rewrite.rewrite(rewriter.before(root), match)
    except RegraftError:
        raise
    except Exception as error:
        raise RewriteError(f"'{rewrite.name}'.rewrite failed at {root.loc}: {error}") from error
    values = (built,) if isinstance(built, Value) else tuple(built)
    rewriter.replace(root, values)
    for op in sorted(match.ops, key=lambda op: op is not root):
        if op.parent is not None:
            rewriter.erase_if_unused(op)
