"""The stages of a compile, from a captured module to a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from torch import Tensor

from regraft.backends import Backend, LowerOptions, backend
from regraft.compiler.cache import CodeCache, cache_path
from regraft.compiler.choose import ChooseForms, Layout, Picks, RooflineModel, load_profile
from regraft.compiler.choosing import Measuring, state_folder
from regraft.compiler.dump import Dumper
from regraft.compiler.host import HostBackend, executor_counts
from regraft.compiler.materialise import Store
from regraft.compiler.memory import bytes_of_constants, peak_intermediates
from regraft.compiler.options import Options
from regraft.compiler.partition import Assignment, assign, claims, cut, make_plan
from regraft.compiler.per_sample import PER_SAMPLE, PerSample
from regraft.compiler.placing import Bench, Budget, comparisons, place
from regraft.compiler.progress import Phases
from regraft.compiler.report import Estimate, Report
from regraft.compiler.verify_each import EachApplication
from regraft.errors import OptionError, no_such
from regraft.ir import (
    OPS,
    STAGES,
    Fuel,
    Function,
    Leaf,
    Module,
    Op,
    Pass,
    PassContext,
    Region,
    RewritePass,
    RewriteStats,
    Symbol,
    Trait,
    Watcher,
    bytes_of,
    chosen_form,
    evaluate,
    flops_of,
    passes_in_order,
    run_pass,
    run_stage,
    verify,
)
from regraft.rewrites import FAMILIES, default_passes
from regraft.runtime import Plan, executables_of


@dataclass(frozen=True)
class Limit:
    """How much of the rewriting is done, for those who look into it.

    Fields:
        passes: so many, in order; None for all.
        fuel: so many applications of rewrites; None for any number.
        watchers: hear of every change.
    """

    passes: int | None = None
    fuel: int | None = None
    watchers: tuple[Watcher, ...] = ()

    @property
    def is_partial(self) -> bool:
        """Whether the graph may not reach the normal form that stages promise."""
        return self.passes is not None or self.fuel is not None


WHOLE = Limit()


@dataclass
class Compilation:
    """One compile on its way: the module, the options and the report that grows with it.

    ``inputs`` are the flat tensors of the example arguments, ``sizes`` the symbols' values for them.
    ``read`` are the leaves whose values a pass has looked at: the module holds for these values only.
    ``picks`` are the back ends of its sections, once they are decided.
    """

    module: Module
    options: Options
    report: Report
    sizes: Mapping[Symbol, int]
    phases: Phases
    inputs: Sequence[Tensor] | None = None
    limit: Limit = WHOLE
    read: list[Leaf] = field(default_factory=list[Leaf])
    picks: Picks | None = None

    def rewrite(self) -> None:
        """Run every stage over the module, which changes in place."""
        computing = (op for op in self.module.main.walk() if _computes(op))
        self.report.captured = dict(Counter(op.name for op in computing))
        self._count("before")
        leaves = [c for c in self.module.constants() if isinstance(c, Leaf)]
        for leaf in leaves:
            leaf.was_read = False
        with self.phases.phase("rewrites"):
            self._run_stages()
        self.read = [leaf for leaf in leaves if leaf.was_read]
        self._count("after")

    def restored(self) -> None:
        """Count what a module holds that was rewritten before."""
        self._count("after")

    def _run_stages(self) -> None:
        dumper = Dumper(self.options.dump)
        dumper.write("captured", self.module)
        each = self._each_application() if self.options.verify == "each" else None
        watchers = (*self.limit.watchers, *([each] if each else []))
        fuel = Fuel(self.limit.fuel)
        context = PassContext(self.options.table, self.options.exactness, fuel, watchers=watchers)
        own = {each.name for each in self.options.passes}

        def observe(name: str, module: Module, seconds: float) -> None:
            self.report.passes.append((name, seconds))
            self.phases.step("rewrites", name, seconds)
            dumper.write(name, module, seconds, context.stats)
            if each is not None:
                verify(module, "captured", after_pass=name)
                if name in own:
                    each.compare_results(name)

        context.observer = observe
        choose, passes = passes_of(self.options, self.report.notes, self._measured, self.phases.measuring)
        if self.limit.is_partial:
            _run_some(self.module, passes, context, self.limit.passes)
        else:
            run_passes(self.module, passes, context)
        self.report.rewrites = dict[str, RewriteStats](context.stats)
        self.report.notes += [each.note] if each else []
        self.report.choices = choose.choices

    def _measured(self, done: int, total: int) -> None:
        if total:
            self.phases.step("rewrites", f"measured {done} of {total}", 0.0, share=done / total)

    def _each_application(self) -> EachApplication:
        inputs = self.example()
        if inputs is None:
            raise OptionError(
                "verify='each' compares on example arguments, and the exported program has none; "
                "export it with its example, or pass the model itself"
            )
        sizes = {symbol.name: value for symbol, value in self.sizes.items()}

        def told(name: str) -> None:
            self.phases.step("rewrites", f"compared {name}", 0.0)

        return EachApplication(self.module.main, inputs, sizes, self.options.table, told)

    def _count(self, when: str) -> None:
        ops = list(_executed(self.module.main.body, self.sizes))
        self.report.flops[when] = sum(flops_of(op, self.sizes) for op in ops)
        self.report.bytes[when] = sum(bytes_of(op, self.sizes) for op in ops)
        self.report.uncounted = dict(Counter(op.name for op in ops if op.definition.opaque))
        self.report.memory["intermediates"] = peak_intermediates(self.module.main.body, self.sizes)
        if when == "after":
            self.report.estimated = self._estimate(ops)
            self.report.memory |= bytes_of_constants(self.module)

    def _estimate(self, ops: Sequence[Op]) -> Estimate:
        profile = load_profile(state_folder(), self.options.threads)
        model = RooflineModel(profile)
        microseconds = sum(model.estimate(op, "cpu", self.sizes).us for op in ops)
        return Estimate(1e-6 * microseconds, "measured" if profile.measured else "default")

    @property
    def spent(self) -> float:
        """Seconds for which forms were measured."""
        return sum(seconds for name, seconds in self.report.passes if name == ChooseForms.name)

    @property
    def budget_left(self) -> float | None:
        """Seconds that are left to measure for, if any; None where nothing is measured."""
        budget = self.options.budget
        return None if budget is None else max(0.0, budget - self.spent)

    def lower(self, store: Store) -> Plan:
        """Partition the module, lower its pieces and join them into a plan."""
        function: Function = self.module.main
        eager = backend("eager")
        tuning = self.options.kernel_tuning(self.spent, self.report.notes, self.phases.measuring)
        folder = cache_path(self.options.cache)
        code = None if folder is None else CodeCache(folder)
        options = LowerOptions(self.options.threads, tuning=tuning, code=code)

        def plan_of(assignment: Assignment) -> Plan:
            # Arguments that are returned as they are come last, and no plan computes them.
            results = function.results[: len(function.results) - len(function.signature.returned)]
            return make_plan(function, cut(function, assignment), eager, store, options, results)

        with self.phases.phase("partition"):
            fallback = eager if self.options.fallback == "eager" else None
            backends, table = self.options.backends, self.options.table
            model = RooflineModel(load_profile(state_folder(), self.options.threads))

            def prefers(taker: Backend, op: Op) -> bool:
                return claims(taker, op) and model.is_worth_a_cut(op, self.sizes)

            def price(op: Op) -> float:
                return model.estimate(op, "cpu", self.sizes).us

            host = HostBackend(backends, eager, table, price, prefers)
            assignment = assign(function, backends, fallback, table, random=eager, host=host, prefers=prefers)
        with self.phases.phase("lower"):
            plan = None
            if len(self.options.backends) > 1:
                bench = self._bench(plan_of, store, options)
                assignment, plan = self._placed(assignment, model, bench)
            plan = plan or plan_of(assignment)
            store.drop_results()
        executables = list(executables_of(plan))
        self.report.kernels = [kernel for each in executables for kernel in getattr(each, "kernels", ())]
        self.report.memory["packed"] = sum(getattr(each, "packed_bytes", 0) for each in executables)
        self.report.executors = executor_counts(assignment, host)
        self.report.fallbacks = dict(assignment.fallbacks)
        return plan

    def _placed(
        self, preferred: Assignment, model: RooflineModel, bench: Bench | None
    ) -> tuple[Assignment, Plan | None]:
        """The assignment by measured cost, which is decided once, and its plan where that was made."""
        layout = Layout.of(self.module.main, preferred, self.options.backends, self.sizes, model)
        if self.picks is not None:
            return layout.assigned(self.picks), None
        notes, budget = self.report.notes, self.options.budget
        left = None if budget is None else Budget.after(self.spent, budget)
        with nullcontext() if left is None else self.phases.measuring():
            placed = place(layout, comparisons(self.options, notes), left, bench, notes)
        self.picks = placed.picks
        self.report.choices += placed.choices
        return layout.assigned(placed.picks), placed.plan

    def _bench(
        self, plan_of: Callable[[Assignment], Plan], store: Store, options: LowerOptions
    ) -> Bench | None:
        inputs = self.example()
        if inputs is None:
            return None

        def told(done: int, total: int) -> None:
            self.phases.step("lower", f"measured {done} of {total}", 0.0, share=done / max(total, 1))

        sizes = {symbol.name: value for symbol, value in self.sizes.items()}
        return Bench(store, options, plan_of, inputs, sizes, told)

    def example(self) -> list[Tensor] | None:
        """The plan's inputs in the example: its tensors and the state."""
        if self.inputs is None:
            return None
        return [*self.inputs, *(leaf.storage for leaf in self.module.main.state)]


def _computes(op: Op) -> bool:
    """Whether ``op`` is one to who reads a report: constants and ends of regions are none."""
    return not op.has(Trait.CONSTANT_LIKE) and not op.has(Trait.TERMINATOR)


def _executed(region: Region, sizes: Mapping[Symbol, int]) -> Iterator[Op]:
    """The ops that compute, of alternatives those that run at ``sizes``."""
    for op in region.ops:
        if op.name == "rg.alt":
            rows = evaluate(op.site.dim_attr("rows"), sizes)
            yield from _executed(op.regions[chosen_form(op, rows)], sizes)
        elif _computes(op):
            yield op
            for inner in op.regions:
                yield from _executed(inner, sizes)


def passes_of(
    options: Options,
    notes: list[str],
    told: Callable[[int, int], None] = lambda done, total: None,
    measuring: Measuring = nullcontext,
) -> tuple[ChooseForms, tuple[Pass, ...]]:
    """The passes of a compile, in no order, and the one among them that chooses forms.

    ``told`` hears how many forms are measured, and of how many; they are measured within ``measuring()``.
    """
    choose = options.choosing(notes, told, measuring)
    many = (PerSample(),) if options.batch == PER_SAMPLE else ()
    return choose, (*default_passes(options.rewrites, options.left_out), *many, choose, *options.passes)


def _run_some(module: Module, passes: Sequence[Pass], context: PassContext, count: int | None) -> None:
    """The first ``count`` passes. Stages that are cut short need not reach their normal form."""
    verify(module, "captured")
    for each in passes_in_order(passes)[:count]:
        run_pass(each, module, context)
    verify(module, "captured")


def run_passes(
    module: Module,
    passes: Sequence[Pass] | None = None,
    context: PassContext | None = None,
    *,
    last_stage: str = STAGES[-1],
) -> PassContext:
    """Run ``passes`` (the shipped ones by default) over ``module``, verified before and after each stage.

    Raises:
        OptionError: there is no stage ``last_stage``.
        VerifyError: a pass left the module in a state that its stage does not allow.
    """
    if last_stage not in STAGES:
        raise OptionError(no_such("stage", last_stage, ("captured", *STAGES)))
    passes = default_passes() if passes is None else passes
    context = context or PassContext(OPS)
    verify(module, "captured")
    for stage in STAGES[: STAGES.index(last_stage) + 1]:
        run_stage(passes, stage, module, context)
        verify(module, stage, after_pass=stage)
    return context


def run_named_passes(module: Module, names: Sequence[str], context: PassContext | None = None) -> PassContext:
    """Run the shipped passes called ``names`` over ``module`` in the order given, verified after each.

    A pass alone need not reach the form that its stage promises: only what holds of every module is
    verified.

    Raises:
        OptionError: there is no such pass.
        VerifyError: a pass left a module that is not valid.
    """
    known = {each.name: each for each in default_passes()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise OptionError(no_such("pass", unknown[0], known))
    return _run_alone(module, [known[name] for name in names], context)


def run_named_rewrites(
    module: Module, names: Sequence[str], context: PassContext | None = None
) -> PassContext:
    """Run the shipped rewrites called ``names`` over ``module``, together and to a fixpoint.

    Raises:
        OptionError: there is no such rewrite.
        VerifyError: a rewrite left a module that is not valid.
    """
    known = {rewrite.name: rewrite for family in FAMILIES.values() for rewrite in family}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise OptionError(no_such("rewrite", unknown[0], known))
    return _run_alone(module, [RewritePass("rewrites", STAGES[0], [known[n] for n in names])], context)


def _run_alone(module: Module, passes: Sequence[Pass], context: PassContext | None) -> PassContext:
    context = context or PassContext(OPS)
    verify(module, "captured")
    for each in passes:
        run_stage([each], each.stage, module, context)
        verify(module, "captured", after_pass=each.name)
    return context
