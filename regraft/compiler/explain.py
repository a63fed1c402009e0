"""Why a rewrite applied or did not: near misses, each with the first thing that is not as it must be.

The pipeline runs as in a compile. When a stage has applied its rewrites as often as they would, each
rewrite of it is tried once more at every op where its pattern may start, and what it says is kept. So the
graph is the one that the rewrite really saw: after the stages before it and beside those of its own.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.compiler.api import leaving_out
from regraft.compiler.arguments import checks_names
from regraft.compiler.capture import capture_model
from regraft.compiler.extensions import refuse
from regraft.compiler.options import Options
from regraft.compiler.pipeline import passes_of
from regraft.compiler.report import lines_in_rich
from regraft.errors import OptionError, no_such
from regraft.ir import (
    UNKNOWN,
    Application,
    Declined,
    Exactness,
    Location,
    Match,
    Module,
    Op,
    OpDef,
    Pass,
    PassContext,
    Pattern,
    Progress,
    Rewrite,
    Trait,
    Value,
    Watcher,
    decide,
    passes_in_order,
    print_op,
    run_pass,
)


@dataclass(frozen=True)
class Attempt:
    """What became of a rewrite at one op.

    Fields:
        progress: how far it came.
        matched: ops of the pattern that were found.
        reason: the first thing that is not as it must be; for an application, what was replaced.
        root: the op where the pattern starts, as text.
        culprit: the name of the op to blame, ``input`` or ``constant``; empty where there is none.
        location: the culprit's line in the model's source; of the op that uses it, for an input.
        change: what to write instead, where that is known.
    """

    progress: Progress
    matched: int
    reason: str
    root: str = ""
    culprit: str = ""
    location: Location = UNKNOWN
    change: str = ""

    @property
    def source(self) -> str:
        """The text of the line of the model's source."""
        return linecache.getline(self.location.file, self.location.line).strip()

    def to_dict(self) -> dict[str, Any]:
        """The attempt as JSON values."""
        return {
            "progress": self.progress.name.lower(),
            "matched": self.matched,
            "reason": self.reason,
            "root": self.root,
            "culprit": self.culprit,
            "file": self.location.file,
            "line": self.location.line,
            "module": self.location.module,
            "source": self.source,
            "change": self.change,
        }

    def lines(self) -> Iterator[str]:
        """The attempt for people."""
        yield f"  {self.progress.name.lower().replace('_', ' ')}: {self.reason}"
        if self.progress is Progress.PARTIAL:
            yield f"    after   {self.matched} matching {'op' if self.matched == 1 else 'ops'}"
        if self.location != UNKNOWN:
            yield f"    at      {self.location}"
        if self.source:
            yield f"            {self.source}"
        if self.culprit and self.progress is not Progress.APPLIED:
            yield f"    culprit {self.culprit}"
        if self.root:
            yield f"    root    {self.root}"
        if self.change:
            yield f"    change  {self.change}"


@dataclass(frozen=True)
class RewriteExplanation:
    """What became of one rewrite: its applications and its nearest misses, the best first."""

    name: str
    stage: str
    hits: int
    attempts: tuple[Attempt, ...]
    canonical: bool = False

    @property
    def progress(self) -> Progress:
        return self.attempts[0].progress if self.attempts else Progress.NO_MATCH

    def to_dict(self) -> dict[str, Any]:
        """The explanation as JSON values."""
        return {
            "name": self.name,
            "stage": self.stage,
            "hits": self.hits,
            "progress": self.progress.name.lower(),
            "attempts": [attempt.to_dict() for attempt in self.attempts],
        }

    @property
    def is_near(self) -> bool:
        """Whether it came further than the op where its pattern starts, and is more than a spelling."""
        found = any(a.progress > Progress.PARTIAL or a.matched > 1 for a in self.attempts)
        return found and not self.canonical

    def lines(self, limit: int | None = None) -> Iterator[str]:
        """The explanation for people, with at most ``limit`` places."""
        times = f"applied {self.hits} {'time' if self.hits == 1 else 'times'}" if self.hits else "not applied"
        yield f"{self.name} ({self.stage}): {times}"
        for attempt in self.attempts[:limit]:
            yield from attempt.lines()


@dataclass(frozen=True)
class Explanation:
    """Why rewrites applied or did not, those that came furthest first.

    ``str()`` shows the nearest place of each and leaves out what was near nothing, and the canonical
    spellings; of a single rewrite that was asked for it shows all.
    """

    rewrites: tuple[RewriteExplanation, ...]

    def __getitem__(self, name: str) -> RewriteExplanation:
        """The rewrite called ``name``.

        Raises:
            OptionError: there is none.
        """
        found = {each.name: each for each in self.rewrites}
        if name not in found:
            raise OptionError(no_such("rewrite", name, found))
        return found[name]

    def to_dict(self) -> dict[str, Any]:
        """The explanation as JSON values."""
        return {"rewrites": [each.to_dict() for each in self.rewrites]}

    def lines(self) -> Iterator[str]:
        """The explanation for people."""
        if len(self.rewrites) == 1:
            yield from self.rewrites[0].lines()
            return
        shown = [each for each in self.rewrites if each.is_near]
        for each in shown:
            yield from each.lines(1)
        hidden = len(self.rewrites) - len(shown)
        if hidden:
            yield f"{hidden} more were not near anything, or only change spellings; name one to see it"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __rich__(self) -> Any:
        return lines_in_rich(self.lines())


@checks_names
def explain(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    rewrite: str | Rewrite | type[Rewrite] | None = None,
    rewrites: Sequence[Rewrite | type[Rewrite]] = (),
    passes: Sequence[tuple[str, Pass]] = (),
    ops: Sequence[OpDef] = (),
    exactness: Exactness = Exactness.REASSOCIATES,
    limit: int = 3,
) -> Explanation:
    """Why a rewrite applies to a model or does not: the nearest misses, with source lines.

    Args:
        model, args, kwargs, dynamic_shapes, rewrites, passes, ops, exactness: as for ``compile``.
        rewrite: the one to explain: a name, or a class or instance, which takes part even when it is
            not in ``rewrites``. None explains all of them.
        limit: how many places to give for each rewrite.

    Raises:
        OptionError: there is no such rewrite; the nearest names are given.
        The errors of ``compile`` up to the last rewrite.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        refuse("limit", limit, "a positive int")
    own = list(rewrites)
    if rewrite is not None and not isinstance(rewrite, str):
        own += [] if _name(rewrite) in map(_name, own) else [rewrite]
    options = Options.checked(
        backends=("eager",),
        fallback="error",
        rewrites=own,
        passes=passes,
        ops=ops,
        exactness=exactness,
        verify=False,
        dump=None,
        threads=None,
    )
    every = _in_pipeline(options)
    wanted = None if rewrite is None else _name(rewrite)
    if wanted is not None and wanted not in every:
        raise OptionError(no_such("rewrite", wanted, every))
    chosen = every if wanted is None else {wanted: every[wanted]}
    captured = capture_model(model, args, kwargs, dynamic_shapes, options.table)
    return explain_module(captured.module, leaving_out(captured, options), chosen, limit)


def _name(rewrite: Any) -> str:
    """The name of a rewrite, class or instance; whether it is one is checked with the other options."""
    if isinstance(rewrite, str):
        return rewrite
    return rewrite.__name__ if isinstance(rewrite, type) else str(getattr(rewrite, "name", rewrite))


def _in_pipeline(options: Options) -> dict[str, Rewrite]:
    _, passes = passes_of(options, [])
    return {rewrite.name: rewrite for each in passes_in_order(passes) for rewrite in _held(each)}


def _held(each: Pass) -> list[Rewrite]:
    """The rewrites that a pass applies."""
    return [r for r in getattr(each, "rewrites", ()) if isinstance(r, Rewrite)]


def explain_module(
    module: Module, options: Options, chosen: Mapping[str, Rewrite], limit: int
) -> Explanation:
    """Run the pipeline over ``module``, which changes, and tell what became of the ``chosen`` rewrites.

    Those that the options leave out are tried where they would have been applied.
    """
    journal = _Journal(chosen, options)
    context = PassContext(options.table, options.exactness, watchers=(journal,))
    journal.context = context
    waiting = dict(chosen)
    _, whole = passes_of(replace(options, left_out=frozenset()), [])
    held = {each.name: _held(each) for each in whole}
    _, passes = passes_of(options, [])
    for each in passes_in_order(passes):
        journal.begin(each)
        run_pass(each, module, context)
        for rewrite in held[each.name]:
            if waiting.pop(rewrite.name, None) is not None:
                journal.try_everywhere(rewrite, module)
    ranked = sorted(map(journal.explanation, chosen.values()), key=_rank)
    return Explanation(tuple(_shortened(each, limit) for each in ranked))


def _rank(each: RewriteExplanation) -> tuple[Any, ...]:
    matched = each.attempts[0].matched if each.attempts else 0
    return each.canonical, -each.progress, -matched, each.name


def _shortened(each: RewriteExplanation, limit: int) -> RewriteExplanation:
    return RewriteExplanation(each.name, each.stage, each.hits, each.attempts[:limit], each.canonical)


@dataclass
class _Journal(Watcher):
    """What happens to the chosen rewrites in one run of the pipeline."""

    chosen: Mapping[str, Rewrite]
    options: Options
    attempts: dict[str, list[Attempt]] = field(default_factory=dict[str, "list[Attempt]"])
    context: PassContext | None = None
    patterns: dict[str, list[tuple[Rewrite, Pattern]]] = field(
        default_factory=dict[str, "list[tuple[Rewrite, Pattern]]"]
    )

    def begin(self, each: Pass) -> None:
        """The rewrites of a pass that are to be told of, by the op where their patterns start."""
        self.patterns = {}
        for rewrite in _held(each):
            if rewrite.name in self.chosen and self.options.exactness.allows(rewrite.exactness):
                for pattern in rewrite.patterns(self.options.table):
                    entry = (rewrite, pattern)
                    self.patterns.setdefault(pattern.root.definition.name, []).append(entry)

    def before(self, application: Application) -> None:
        """Note an application, and the other rewrites that would have applied at the same op."""
        name, match = application.rewrite.name, application.match
        if name in self.chosen:
            replaced = ", ".join(op.name for op in match.ops)
            self._note(name, _attempt(Progress.APPLIED, match.root, f"replaced {replaced}", len(match.ops)))
        for rewrite, pattern in self.patterns.get(match.root.name, ()):
            if rewrite.name != name and isinstance(decide(rewrite, pattern, match.root), Match):
                reason = f"'{name}' applied at this op first"
                change = f'before = ("{name}",) in {rewrite.name}, or a pattern over what {name} writes'
                count = len(match.ops)
                attempt = _attempt(Progress.LEFT_OUT, match.root, reason, count, change=change)
                self._note(rewrite.name, attempt)

    def try_everywhere(self, rewrite: Rewrite, module: Module) -> None:
        """What ``rewrite`` says of every op where its pattern may start, in the order of the graph."""
        patterns = rewrite.patterns(self.options.table)
        for function in module.functions.values():
            for op in function.walk():
                outcomes = [decide(rewrite, p, op) for p in patterns if p.root.definition.name == op.name]
                found = [self._told(rewrite, op, outcome) for outcome in outcomes]
                if found:
                    self._note(rewrite.name, max(found, key=lambda a: (a.progress, a.matched)))

    def _told(self, rewrite: Rewrite, root: Op, outcome: Match | Declined) -> Attempt:
        if isinstance(outcome, Declined):
            return _declined(root, outcome)
        if rewrite.name in self.options.left_out:
            reason = "it matches, but constants that it merges overflow or vanish with these weights"
            return _attempt(Progress.LEFT_OUT, root, reason, len(outcome.ops))
        allowed = self.options.exactness
        reason = f"it matches, but is '{rewrite.exactness}' where the compile allows '{allowed}'"
        change = f"compile(..., exactness={_spelled(rewrite.exactness)})"
        return _attempt(Progress.LEFT_OUT, root, reason, len(outcome.ops), change=change)

    def _note(self, name: str, attempt: Attempt) -> None:
        self.attempts.setdefault(name, []).append(attempt)

    def explanation(self, rewrite: Rewrite) -> RewriteExplanation:
        """All attempts of ``rewrite``, those that came furthest first."""
        assert self.context is not None
        found = self.attempts.get(rewrite.name, [])
        if not found:
            roots = dict.fromkeys(p.root.definition.name for p in rewrite.patterns(self.options.table))
            reason = f"the graph has no {' and no '.join(roots)}, where the pattern starts"
            found = [Attempt(Progress.NO_MATCH, 0, reason)]
        ranked = sorted(found, key=lambda a: (-a.progress, -a.matched))
        stats = self.context.stats.get(rewrite.name)
        canonical = rewrite.stage == "canonicalize"
        return RewriteExplanation(
            rewrite.name, rewrite.stage, stats.hits if stats else 0, tuple(ranked), canonical
        )


def _spelled(exactness: Exactness) -> str:
    """``exactness`` as a user writes it."""
    if exactness.rank == Exactness.APPROX(0.0).rank:
        return f"Exactness.APPROX({exactness.tolerance:g})"
    return f"Exactness.{str(exactness).upper()}"


def _attempt(
    progress: Progress, root: Op, reason: str, matched: int, culprit: Op | None = None, change: str = ""
) -> Attempt:
    blamed = culprit or root
    return Attempt(
        progress, matched, reason, print_op(root, locations=False), blamed.name, blamed.loc, change
    )


def _declined(root: Op, declined: Declined) -> Attempt:
    at, culprit = declined.at or root, declined.culprit
    maker = at if culprit is None else culprit.op
    if culprit is not None and (maker is None or culprit.is_const):
        # What a model is given has no line of its own: the line is where it is used.
        name = f"{'constant' if culprit.is_const else 'input'} {culprit.hint}".rstrip()
        location = _user(culprit, declined, at).loc
    else:
        assert maker is not None
        # An op that a model does not write, such as a literal, may have no line either.
        name, location = maker.name, maker.loc if maker.loc.line else at.loc
    change = declined.change or _apart(declined)
    text = print_op(root, locations=False)
    matched = len(declined.ops)
    return Attempt(declined.progress, matched, declined.reason, text, name, location, change)


def _user(value: Value, declined: Declined, at: Op) -> Op:
    """The op of the attempt that uses ``value``."""
    if value in at.operands:
        return at
    return next((op for op in value.users if op in declined.ops), at)


def _apart(declined: Declined) -> str:
    """What to do about a value that is used outside the match."""
    if declined.progress is not Progress.OUTSIDE_USE or declined.culprit is None:
        return ""
    user = next(op for op in declined.culprit.users if op not in declined.ops)
    if user.has(Trait.TERMINATOR):
        return "the model returns this value too: leave it out of the result, or compute it twice"
    return f"{user.name} at {user.loc} uses this value too: compute it apart there"
