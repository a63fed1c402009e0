"""Which pass, rewrite, application or back end makes a compile give wrong results.

The model is captured once; then it is compiled with fewer passes, with less fuel for rewrites, and with
fewer ops on the back ends, by halving each time. Two neighbours remain, of which one is right and the
other wrong: what lies between them is guilty. That holds whenever the same cut fails each time; it is
not needed that every longer one fails as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

from regraft.backends import Backend, ConstantStore, LowerOptions
from regraft.compiler.adapters import insert_adapters
from regraft.compiler.api import leaving_out, lowered, rewritten
from regraft.compiler.arguments import checks_names
from regraft.compiler.capture import Captured, capture_model
from regraft.compiler.check import error_against_eager, errors_under_adapters
from regraft.compiler.dump import unified
from regraft.compiler.extensions import refuse
from regraft.compiler.materialise import Store
from regraft.compiler.options import Options
from regraft.compiler.pipeline import WHOLE, Limit, passes_of
from regraft.compiler.progress import Phases
from regraft.compiler.report import lines_in_rich
from regraft.errors import NumericsMismatch, OptionError, RegraftError
from regraft.ir import (
    UNKNOWN,
    Application,
    Exactness,
    Function,
    Location,
    Module,
    Op,
    OpDef,
    Pass,
    Region,
    Rewrite,
    Rewriter,
    Trait,
    Watcher,
    outermost,
    passes_in_order,
    path_of,
    print_module,
    print_op,
    print_region,
)
from regraft.runtime import CompiledModel, Executable

Check = Callable[[CompiledModel], bool]


@dataclass(frozen=True)
class BisectReport:
    """What is to blame for a wrong result.

    Fields:
        verdict: ``right`` (nothing fails), ``unstable`` (the same compile fails once and then does not),
            ``capture`` (the captured graph is wrong already), ``backend`` (the graph is right and a back
            end computes an op of it wrongly), ``pass`` or ``rewrite``.
        summary: that in a sentence.
        failure: how the whole compile fails.
        pass_name: the guilty pass; for ``backend``, the one after which the back end fails, if any.
        rewrite, application: the rewrite, and which of its own applications, counted from one.
        number: the same application counted over all rewrites: that much fuel fails, one less does not.
        op, path, location: the op that is replaced, or that the back end gets wrong.
        backend: the guilty back end.
        before, after: the graph around the guilty application or pass, as text.
        left_out: rewrites that every compile leaves out, since what they merge overflows or vanishes here.
        trials: how many compiles it took.
    """

    verdict: str
    summary: str
    failure: str = ""
    pass_name: str = ""
    rewrite: str = ""
    application: int | None = None
    number: int | None = None
    op: str = ""
    path: str = ""
    location: Location = UNKNOWN
    backend: str = ""
    before: str = ""
    after: str = ""
    left_out: tuple[str, ...] = ()
    trials: int = 0

    @property
    def diff(self) -> str:
        """What the guilty application or pass changed, as a unified diff."""
        return unified(self.before, self.after, "before", "after")

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "verdict": self.verdict,
            "summary": self.summary,
            "failure": self.failure,
            "pass": self.pass_name,
            "rewrite": self.rewrite,
            "application": self.application,
            "number": self.number,
            "op": self.op,
            "path": self.path,
            "file": self.location.file,
            "line": self.location.line,
            "module": self.location.module,
            "backend": self.backend,
            "before": self.before,
            "after": self.after,
            "left_out": list(self.left_out),
            "trials": self.trials,
        }

    def lines(self) -> Iterator[str]:
        """The report for people."""
        yield self.summary
        if self.op:
            yield f"  op       {self.op}"
        if self.path:
            yield f"  path     {self.path}"
        if self.location != UNKNOWN:
            yield f"  from     {self.location}"
        if self.failure:
            yield "  failure"
            yield from (f"    {line}" for line in self.failure.splitlines())
        if self.before != self.after:
            yield "  change"
            yield from (f"    {line}" for line in self.diff.splitlines())
        if self.left_out:
            yield f"  without  {', '.join(self.left_out)}: constants that they merge overflow or vanish here"
        yield f"  after {self.trials} {'compile' if self.trials == 1 else 'compiles'}"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __rich__(self) -> Any:
        return lines_in_rich(self.lines())


@checks_names
def bisect(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    backends: Sequence[str | Backend] = ("ort",),
    rewrites: Sequence[Rewrite | type[Rewrite]] = (),
    passes: Sequence[tuple[str, Pass]] = (),
    ops: Sequence[OpDef] = (),
    exactness: Exactness = Exactness.REASSOCIATES,
    adapters: Mapping[str, Mapping[str, Any]] | None = None,
    check: Check | None = None,
    progress: Callable[[str], object] = lambda trial: None,
) -> BisectReport:
    """Find what makes a compiled model wrong.

    Args:
        model, args, kwargs, dynamic_shapes, backends, rewrites, passes, ops, exactness, adapters: as for
            ``compile``. An op that no back end takes runs in torch.
        check: gets a compiled model and returns whether it is right. The default compares it with
            eager by the numerics rule on the example arguments, without an adapter and under each. A
            compile that raises is wrong too.
        progress: called with a line of text before each compile.

    Raises:
        OptionError: ``check`` raises or returns something else than a bool, or an adapter does not fit.
        CaptureError: as ``compile``.
    """
    if check is not None and not callable(check):
        refuse("check", check, "a function of a compiled model")
    options = Options.checked(
        backends=backends,
        fallback="eager",
        rewrites=rewrites,
        passes=passes,
        ops=ops,
        exactness=exactness,
        adapters=adapters,
        verify=False,
        dump=None,
        threads=None,
    )
    captured = capture_model(model, args, kwargs, dynamic_shapes, options.table)
    insert_adapters(captured.module, options.adapters, options.table, model)
    reassociates, tolerance = exactness != Exactness.EXACT, exactness.tolerance

    def against_eager(compiled: CompiledModel) -> bool:
        error_against_eager(model, compiled, captured, reassociates=reassociates, tolerance=tolerance)
        errors_under_adapters(
            model, compiled, captured, options.adapters, reassociates=reassociates, tolerance=tolerance
        )
        return True

    return _Bisection(captured, options, check or against_eager, progress).run()


@dataclass(frozen=True)
class _Trial:
    """One compile, cut short: how it failed (no ``kind`` when it did not), and what it left.

    Fields:
        kind, text: the class of the error and its text, or what the user's check said.
        spent: applications of rewrites.
        ir: the graph.
        ops: the ops that back ends run, in order, as text with their paths and locations.
    """

    kind: str
    text: str
    spent: int
    ir: str
    ops: tuple[_Placed, ...]


@dataclass(frozen=True)
class _Placed:
    """An op, told without holding on to the graph; ``backend`` is the one that takes it, if any."""

    text: str
    path: str
    location: Location
    backend: str = ""

    @staticmethod
    def of(op: Op, function: str, backends: Sequence[Backend] = ()) -> _Placed:
        takers = (each.name for each in backends if each.supports(op) is None)
        return _Placed(print_op(op, locations=False), path_of(op, function), op.loc, next(takers, ""))


@dataclass
class _Bisection:
    """The search; ``failure`` is how the whole compile fails, and only that counts as failing."""

    captured: Captured
    options: Options
    check: Check
    progress: Callable[[str], object]
    trials: int = 0
    failure: _Trial = field(default=_Trial("", "", 0, "", ()))

    def run(self) -> BisectReport:
        """Cut by pass, then by fuel, then by executor."""
        with suppress(RegraftError):  # the whole compile will raise it, and is judged for that
            self.options = leaving_out(self.captured, self.options)
        self.failure = self._trial("the whole compile", WHOLE)
        if not self.failure.kind:
            return self._report("right", "the compiled model is right: there is nothing to find")
        if not self._fails("the whole compile, again", WHOLE):
            summary = "the same compile fails once and is right the next time: the failure does not reproduce"
            return self._report("unstable", summary)
        if self._fails("no passes", Limit(passes=0)):
            return self._in_executors(Limit(passes=0), {})
        _, passes = passes_of(self.options, [])
        names = [each.name for each in passes_in_order(passes)]
        guilty = _first_failing(0, len(names), lambda n: self._fails(f"{n} passes", Limit(passes=n)))
        return self._in_pass(guilty, names[guilty - 1])

    def _in_pass(self, count: int, name: str) -> BisectReport:
        """The first ``count`` passes fail, and one less does not: which application in the last one?"""
        before = self._trial(f"up to {name}", Limit(passes=count - 1))
        after = self._trial(f"with {name}", Limit(passes=count))
        found: dict[str, Any] = {"pass_name": name, "before": before.ir, "after": after.ir}
        limit = Limit(passes=count, fuel=before.spent)
        if after.spent == before.spent or self._fails(f"{name} without applications", limit):
            summary = f"the pass '{name}' makes the result wrong, apart from the rewrites it applies"
            return self._or_executors(limit, "pass", summary, found)
        fuel = _first_failing(
            before.spent,
            after.spent,
            lambda n: self._fails(f"{name} with fuel {n}", Limit(passes=count, fuel=n)),
        )
        found |= self._application(count, fuel)
        summary = (
            f"'{found['rewrite']}', application {found['application']}, in the pass '{name}' makes the "
            "result wrong"
        )
        return self._or_executors(Limit(passes=count, fuel=fuel), "rewrite", summary, found)

    def _application(self, count: int, fuel: int) -> dict[str, Any]:
        """What is to be said of the application number ``fuel``."""
        witness = _Witness(fuel)
        self._trial(f"application {fuel}", Limit(passes=count, fuel=fuel, watchers=(witness,)))
        return witness.found

    def _or_executors(self, limit: Limit, verdict: str, summary: str, found: dict[str, Any]) -> BisectReport:
        """The graph is wrong, unless torch computes it rightly: then a back end cannot what it now holds."""
        if any(b.name == "eager" for b in self.options.backends) or self._fails("in torch", limit, _TORCH):
            return self._report(verdict, summary, **found)
        return self._in_executors(limit, found)

    def _in_executors(self, limit: Limit, found: dict[str, Any]) -> BisectReport:
        """The compile fails under ``limit``: with the last of how many ops on the back ends?"""
        if self._fails("in torch", limit, _TORCH):
            summary = "the captured graph is wrong, also when torch runs it: capture is at fault"
            return self._report("capture", summary, **found)
        ops = self._trial("its ops", limit).ops
        guilty = _first_failing(
            0, len(ops), lambda n: self._fails(f"{n} ops on the back ends", limit, _Share(n))
        )
        at = ops[guilty - 1]
        since = f", as the pass '{found['pass_name']}' left it" if found else ""
        summary = f"the back end '{at.backend}' computes an op wrongly that torch computes rightly{since}"
        place = {"op": at.text, "path": at.path, "location": at.location, "backend": at.backend}
        return self._report("backend", summary, **{**found, **place})

    def _report(self, verdict: str, summary: str, **found: Any) -> BisectReport:
        left_out = tuple(sorted(self.options.left_out))
        found |= {"left_out": left_out, "trials": self.trials}
        return BisectReport(verdict, summary, self.failure.text, **found)

    def _fails(self, what: str, limit: Limit, share: _Share | None = None) -> bool:
        """Whether a compile fails as the whole one does; one that fails otherwise tells nothing."""
        return self._trial(what, limit, share).kind == self.failure.kind

    def _trial(self, what: str, limit: Limit, share: _Share | None = None) -> _Trial:
        self.trials += 1
        self.progress(f"compile {self.trials}: {what}")
        module = self.captured.module.clone()
        counter = _Counter()
        limit = replace(limit, watchers=(*limit.watchers, counter))
        ops: tuple[_Placed, ...] = ()
        try:
            captured = replace(self.captured, module=module)
            compilation = rewritten(captured, self.options, Phases(), limit)
            placed = (_Placed.of(op, module.main.name, self.options.backends) for op in _executed(module))
            ops = tuple(placed)
            if share is not None:
                compilation.options = share.applied(self.options, module)
            kind, text = self._judged(lowered(compilation, Store(module)))
        except _CheckError as error:
            raise OptionError(str(error)) from error.__cause__
        except RegraftError as error:
            kind, text = type(error).__name__, str(error)
        return _Trial(kind, text, counter.count, print_module(module), ops)

    def _judged(self, compiled: CompiledModel) -> tuple[str, str]:
        try:
            verdict = cast(object, self.check(compiled))
        except NumericsMismatch:
            raise
        except Exception as error:
            message = f"'check' raised {type(error).__name__}: {error}; it must return True or False"
            raise _CheckError(message) from error
        if not isinstance(verdict, bool):
            raise _CheckError(f"'check' returned {verdict!r}; it must return True or False")
        return ("", "") if verdict else ("check", "'check' returned False")


class _CheckError(Exception):
    """The user's check cannot be used; no trial's failure."""


def _first_failing(right: int, wrong: int, fails: Callable[[int], bool]) -> int:
    """A number that fails while the one before it does not; ``right`` does not fail and ``wrong`` does."""
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if fails(middle):
            wrong = middle
        else:
            right = middle
    return wrong


def _executed(module: Module) -> list[Op]:
    """The ops that back ends are asked to run."""
    return [
        op for op in module.main.body.ops if not op.has(Trait.TERMINATOR) and not op.has(Trait.CONSTANT_LIKE)
    ]


@dataclass(frozen=True)
class _Share:
    """Only the first ``count`` ops go to the back ends, the others to torch."""

    count: int

    def applied(self, options: Options, module: Module) -> Options:
        chosen = frozenset(_executed(module)[: self.count])
        return replace(options, backends=tuple(_Partial(b, chosen) for b in options.backends))


_TORCH = _Share(0)


class _Partial:
    """A back end that is offered some ops only."""

    def __init__(self, inner: Backend, chosen: frozenset[Op]) -> None:
        self.name = inner.name
        self._inner = inner
        self._chosen = chosen

    def supports(self, op: Op) -> str | None:
        return self._inner.supports(op) if op in self._chosen else "it is kept for torch"

    def lower(self, function: Function, store: ConstantStore, options: LowerOptions) -> Executable:
        return self._inner.lower(function, store, options)


class _Counter(Watcher):
    """Counts applications, one that fails among them."""

    count = 0

    def before(self, application: Application) -> None:
        self.count = application.number


class _Witness(Watcher):
    """Writes down the application number ``number``: the graph before and after it, and its place."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._body: Region | None = None
        self.found: dict[str, Any] = {}

    def before(self, application: Application) -> None:
        if application.number != self._number:
            return
        body = outermost(application.match.root)
        assert body is not None, "a match is in a function"
        self._body = body
        place = _Placed.of(application.match.root, "forward")
        self.found = {
            "rewrite": application.rewrite.name,
            "application": application.nth,
            "number": application.number,
            "op": place.text,
            "path": place.path,
            "location": place.location,
            "before": print_region(body, locations=False),
        }
        # An application that raises changes nothing.
        self.found["after"] = self.found["before"]

    def after(self, application: Application, rewriter: Rewriter) -> None:
        if application.number == self._number and self._body is not None:
            self.found["after"] = print_region(self._body, locations=False)
