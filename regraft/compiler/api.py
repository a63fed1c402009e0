"""The public calls: compile, capture, export_onnx, export_plan."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.export import ExportedProgram

from regraft.backends import Backend
from regraft.compiler.adapters import insert_adapters
from regraft.compiler.arguments import checks_names
from regraft.compiler.cache import Session
from regraft.compiler.capture import Captured, as_module, call_of, capture_model, holds_at_size_one, split
from regraft.compiler.check import error_against_eager, errors_under_adapters, runner_of
from regraft.compiler.export import ExportReport, write_onnx
from regraft.compiler.extensions import Extensions
from regraft.compiler.materialise import Store, replacements
from regraft.compiler.memory import Resident
from regraft.compiler.options import Fallback, Options, Tune, Verify, check_max_trips
from regraft.compiler.overflow import harmful
from regraft.compiler.per_sample import OneByOne, check_example, check_samples, shared_arguments
from regraft.compiler.pipeline import WHOLE, Compilation, Limit
from regraft.compiler.plan_export import PlanReport, write_plan
from regraft.compiler.progress import Observer, Phases
from regraft.compiler.report import Report
from regraft.compiler.tolerance import Declared
from regraft.errors import NumericsMismatch, OptionError, RecompileError, RegraftError
from regraft.ir import Exactness, Leaf, Module, OpDef, Pass, Rewrite, print_module
from regraft.plugins import Plugin
from regraft.runtime import CompiledModel, Effects, Signature

_DEFAULT_BACKENDS = ("ort",)


@checks_names
def compile(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    backends: Sequence[str | Backend] = _DEFAULT_BACKENDS,
    fallback: Fallback = "error",
    rewrites: Sequence[Rewrite | type[Rewrite]] = (),
    passes: Sequence[tuple[str, Pass]] = (),
    ops: Sequence[OpDef] = (),
    plugins: Sequence[str | Plugin] = (),
    exactness: Exactness = Exactness.REASSOCIATES,
    verify: Verify = False,
    dump: str | Path | None = None,
    threads: int | None = None,
    progress: Observer | None = None,
    tune: Tune = False,
    budget: str | float | None = None,
    memory_limit: int | str | None = None,
    cache: bool | str | Path = True,
    adapters: Mapping[str, Mapping[str, Any]] | None = None,
    max_trips: int | None = None,
    batch: Literal["per_sample"] | None = None,
) -> CompiledModel:
    """Compile a model into one that is called the same way and returns the same values, faster.

    Args:
        model: an ``nn.Module`` in eval mode, an ``ExportedProgram``, or a function of tensors.
        args, kwargs: example arguments. Tensors not made dynamic fix their shape; other values are
            fixed as they are.
        dynamic_shapes: the sizes that may vary, as in ``torch.export.export`` or by argument name:
            ``{"input_ids": {0: Dim.AUTO, 1: Dim.AUTO}}``.
        backends: back ends in order of preference; with ``tune`` measured times decide which of them runs
            what. One whose library is missing is left out, and the report says so.
        fallback: for an op that no back end takes: ``"error"``, or ``"eager"`` to run it in torch.
        rewrites: rewrites of your own, besides regraft's.
        passes: pairs ``(stage, pass)`` of your own.
        ops: definitions of your own ops, such as ``op_from_torch`` makes.
        plugins: installed plug-ins by name, or ``Plugin`` objects: their rewrites, passes and ops are added,
            and ``backends`` may name their back ends.
        exactness: the least exact kind of rewrite that may be applied. With ``APPROX(tolerance)`` the results
            on the example are compared with those of the captured graph, where ``verify`` does not compare.
        verify: ``True`` compares with eager in fp64 on the example arguments, also under each adapter, and
            times some calls for the report; ``"each"`` also compares every application of every rewrite with
            what it replaces, and checks the graph after every pass.
        dump: a folder for the graph's text after each pass and what the pass changed: a new folder, an
            empty one, or that of an earlier dump.
        threads: worker threads of the back ends; None leaves it to each library.
        progress: called with a ``Progress`` as each phase begins and ends.
        tune: measure the forms of computations that have several (low-rank factors, or merged) on this
            machine, and what several back ends take on each of them, and keep the times for later
            compiles. What is known already is not measured, but with ``tune="again"``, whose times take the
            place of the earlier ones. Without it forms are chosen by what was measured before, else by
            estimates, and back ends by what was measured of the same function, else in their order.
        budget: the most time to measure, such as ``"30s"`` (which is the default).
        memory_limit: bytes of constants that chosen forms may need beside those of the model, as a number or
            a text such as ``"512 MiB"``; None allows as much again as the model's own.
        cache: keep the rewritten graph, without weights, in the user's cache folder or in the one given.
            It is taken from there when all that it depends on is as it was; see ``report.cache``.
        adapters: state dicts of LoRA factors (``layer.lora_A.weight``, ``layer.lora_B.weight``, and
            ``"scaling"``) or of deltas of weights, by adapter name. ``set_adapter`` of the result switches
            between them; at first none applies.
        max_trips: the most trips of a loop that a tensor ends. A call in which one takes more raises, and
            names it. None: as many as in eager.
        batch: ``"per_sample"`` compiles a model written for one sample into one for any number of them, each
            of which takes its own path: every argument whose first size is 1 in the example, and every
            result, has the samples in its place.

    Raises:
        OptionError: an argument has a value it cannot have.
        PluginError: a plug-in cannot be found or used.
        CaptureError: the model's Python cannot be turned into a graph.
        UnsupportedOpError: ops that no executor takes, all of them.
        NumericsMismatch: ``verify`` found a result that is off by more than the numerics rule, or an
            approximation is off by more than its tolerance.
    """
    options = Options.checked(
        backends=backends,
        fallback=fallback,
        rewrites=rewrites,
        passes=passes,
        ops=ops,
        plugins=plugins,
        exactness=exactness,
        verify=verify,
        dump=dump,
        threads=threads,
        progress=progress,
        tune=tune,
        budget=budget,
        memory_limit=memory_limit,
        cache=cache,
        adapters=adapters,
        max_trips=max_trips,
        batch=batch,
    )
    return _compiled(model, args, kwargs, dynamic_shapes, options)


def _compiled(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any, options: Options
) -> CompiledModel:
    start = time.perf_counter()
    resident = Resident()
    phases = Phases(options.progress)
    session = Session.begin(model, args, kwargs, dynamic_shapes, options, phases)

    def finish(compiled: CompiledModel, captured: Captured) -> CompiledModel:
        compiled.report.time["total"] = time.perf_counter() - start - phases.seconds.get("verify", 0.0)
        compiled.report.memory |= resident.growth()
        compiled.report.notes += shared_arguments(compiled.signature) if options.batch is not None else []
        if options.verify:
            _verify(model, compiled, captured, options, phases)
        return compiled

    found = _from_cache(session, model, args, kwargs, options, phases)
    if found is not None:
        try:
            compiled = finish(*found)
        except RegraftError as error:  # a hit must end no worse than a miss: whose fault it was will show
            found = session.miss(f"what the entry gives was found to be wrong, {error.message}")
        else:
            compiled.report.cache = session.outcome
            return compiled
    captured, compilation, store = prepared(model, args, kwargs, dynamic_shapes, options, phases)
    entry = None
    if compilation.options.left_out:  # which other weights may not need, and the key knows no weights
        session.not_cached("rewrites were left out for these weights")
    else:
        entry = session.describe(compilation.module, compilation.read, compilation.report)
    compiled = finish(lowered(compilation, store, model), captured)
    session.store(entry)
    compiled.report.cache = session.outcome
    return compiled


def _verify(
    model: Any, compiled: CompiledModel, captured: Captured, options: Options, phases: Phases
) -> None:
    """Compare ``compiled`` with eager, also under each of its adapters, and time it.

    Raises:
        NumericsMismatch: the error is beyond what the numerics rule allows.
    """
    report, reassociates = compiled.report, options.exactness != Exactness.EXACT
    compared = captured
    if options.batch is not None:
        example = (captured.args, captured.kwargs)
        model = OneByOne(runner_of(model), example, compiled.signature.outputs)
        args, kwargs = model.batch(example)
        compared = replace(captured, args=args, kwargs=kwargs)
    with phases.phase("verify"):
        try:
            rule: Any = {"reassociates": reassociates, "tolerance": options.exactness.tolerance}
            report.error = error_against_eager(model, compiled, compared, **rule)
            adapted = errors_under_adapters(model, compiled, compared, options.adapters, **rule)
            if adapted:
                report.error = max(report.error, *adapted.values())
                told = ", ".join(f"{name} {error:.1e}" for name, error in adapted.items())
                report.notes.append(f"verified as it is and under each adapter: {told}")
        except NumericsMismatch as error:
            each = 'compile(..., verify="each") compares every rewrite; ' if options.verify is True else ""
            finds = f"{each}regraft.bisect(...) finds the pass, rewrite or back end that is wrong"
            error.hint = error.hint or finds
            raise
        report.measure(compiled, captured.args, captured.kwargs)


def _from_cache(
    session: Session,
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    options: Options,
    phases: Phases,
) -> tuple[CompiledModel, Captured] | None:
    """The compiled model from the entry that fits; None when there is none, or when it does not hold here."""
    if session.folder is None:
        return None
    call = call_of(model, args, kwargs)
    report = Report(notes=list(options.notes), time=phases.seconds)
    with phases.phase("cache"):
        module = session.find(call.form.defaults, options, report)
    if module is None:
        return None
    captured = Captured(module, *split(call.arguments, call.n_args))
    try:
        compilation = _compilation(captured, options, phases, report)
        compilation.restored()
        store = Store(module)
        if harmful(module, store):
            return session.miss("with these weights, constants that were merged overflow or vanish")
        compiled = lowered(compilation, store, model)
    except RegraftError as error:
        return session.miss(f"the entry cannot be used, {error.message}")
    with phases.phase("cache"):
        if not holds_at_size_one(compiled, call):
            return session.miss("with these weights the graph differs from eager at sizes of 1")
    session.hit()
    return compiled, captured


def _compilation(
    captured: Captured, options: Options, phases: Phases, report: Report, limit: Limit = WHOLE
) -> Compilation:
    function = captured.module.main
    signature: Signature = function.signature
    inputs = signature.flatten(captured.args, captured.kwargs) if captured.traced else None
    values: dict[str, int] = signature.sizes(inputs) if inputs is not None else {}
    sizes = {s: values[s.name] for s in function.symbols if s.name in values}
    return Compilation(captured.module, options, report, sizes, phases, inputs, limit)


def rewritten(captured: Captured, options: Options, phases: Phases, limit: Limit = WHOLE) -> Compilation:
    """Rewrite a captured model, as far as ``limit`` says; its module changes in place."""
    compilation = _begun(captured, options, phases, limit)
    compilation.rewrite()
    return compilation


def leaving_out(captured: Captured, options: Options) -> Options:
    """``options`` without the rewrites that a compile of ``captured`` leaves out for its weights.

    ``captured`` stays as it is.
    """
    while True:
        compilation = rewritten(replace(captured, module=captured.module.clone()), options, Phases())
        found = harmful(compilation.module, Store(compilation.module))
        if found <= options.left_out:
            return options
        options = replace(options, left_out=options.left_out | found)


def prepared(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    options: Options,
    phases: Phases,
    *,
    switched: bool = True,
) -> tuple[Captured, Compilation, Store]:
    """A model captured and rewritten, with the values of its constants.

    Rewrites whose merged constants overflow or vanish are left out. Approximations keep to their tolerance
    on the example, which is measured here where no verification does. ``switched`` is that of
    ``insert_adapters``.

    Raises:
        NumericsMismatch: an approximation is off by more than was allowed.
    """
    if options.batch is not None and not isinstance(model, ExportedProgram):
        check_example(call_of(model, args, kwargs).arguments)
    captured = capture_model(
        model, args, kwargs, dynamic_shapes, options.table, phases, max_trips=options.max_trips
    )
    note = insert_adapters(captured.module, options.adapters, options.table, model, switched=switched)
    compilation = _begun(captured, options, phases)
    compilation.report.notes += [note] if note else []
    declared = None
    if options.approximates and not options.verify:
        with phases.phase("verify"):
            declared = Declared.of(compilation)
    compilation.rewrite()
    store = Store(compilation.module)
    found = harmful(compilation.module, store)
    if found - options.left_out:
        options = replace(options, left_out=options.left_out | found, budget=compilation.budget_left)
        return prepared(model, args, kwargs, dynamic_shapes, options, phases, switched=switched)
    if declared is not None:
        with phases.phase("verify"):
            declared.check(compilation, store)
    return captured, compilation, store


def _begun(captured: Captured, options: Options, phases: Phases, limit: Limit = WHOLE) -> Compilation:
    if options.batch is not None:
        check_samples(captured.module.main)
    report = Report(notes=list(options.notes), time=phases.seconds)
    if options.left_out:
        names = ", ".join(sorted(options.left_out))
        report.notes.append(f"left out, since constants that they merge overflow or vanish here: {names}")
    return _compilation(captured, options, phases, report, limit)


def lowered(compilation: Compilation, store: Store, model: Any = None) -> CompiledModel:
    """Give a rewritten model to its back ends; the result stands in for ``model``, where it is given."""
    plan = compilation.lower(store)
    report = compilation.report
    leaves = [c for c in compilation.module.constants() if isinstance(c, Leaf)]
    module, function = compilation.module, compilation.module.main
    report.memory["state"] = sum(leaf.storage.nbytes for leaf in function.state)
    weights = [store.tensor(leaf) for leaf in leaves]
    state = {leaf.name: store.tensor(leaf) for leaf in function.state}
    effects = Effects.of(function.signature, function.aliases, state, weights)

    def refreshed(model: Any) -> CompiledModel:
        source = model if isinstance(model, ExportedProgram) else as_module(model)
        store = Store(module, replacements(module, source))
        if harmful(module, store):
            raise RecompileError(
                "with the new weights, constants that were merged overflow or vanish. Compile again"
            )
        return lowered(compilation, store, model)

    original = as_module(model) if isinstance(model, torch.nn.Module) else model
    return CompiledModel(
        function.signature,
        plan,
        report,
        print_module(module),
        refreshed,
        weights,
        original,
        effects,
        compilation.options.adapters.names,
    )


@checks_names
def capture(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    ops: Sequence[OpDef] = (),
    plugins: Sequence[str | Plugin] = (),
    max_trips: int | None = None,
) -> Module:
    """The IR of a model as captured, before any rewrite; ``print_module`` gives its text.

    Arguments and errors are those of ``compile``.
    """
    check_max_trips(max_trips)
    table = Extensions.of(plugins, (), (), ops).table
    return capture_model(model, args, kwargs, dynamic_shapes, table, max_trips=max_trips).module


@checks_names
def export_onnx(
    model: Any,
    args: Sequence[Any],
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    contrib: bool = True,
    rewrites: Sequence[Rewrite | type[Rewrite]] = (),
    passes: Sequence[tuple[str, Pass]] = (),
    ops: Sequence[OpDef] = (),
    plugins: Sequence[str | Plugin] = (),
    exactness: Exactness = Exactness.REASSOCIATES,
    batch: Literal["per_sample"] | None = None,
    progress: Observer | None = None,
    adapters: Mapping[str, Mapping[str, Any]] | None = None,
    adapter: str | None = None,
    max_trips: int | None = None,
) -> ExportReport:
    """Write an optimised ONNX file that runs without torch and without regraft.

    Args:
        path: the file to write, with the suffix ``.onnx``; one that is there is replaced, as
            ``torch.onnx.export`` does. Weights of more than 2 GB go to a file beside it with the suffix
            ``.onnx.data``.
        opset: the opset of the default domain; None takes the newest that onnxruntime runs well.
        contrib: allow onnxruntime's own operators (domain ``com.microsoft``), which are faster
            there. ``False`` writes standard ONNX only.
        adapters: as in ``compile``. The file has an input ``active_adapter`` more, an i64 of shape [1]: the
            number of the adapter that applies, in the order of the report's ``adapters`` from 1 on; 0 is
            the model as it is.
        adapter: the one of ``adapters`` that always applies, merged into the weights: no input more.
        The others are those of ``compile``.

    Returns:
        What was written: opset, operators and their counts, file sizes, and the compile's report.

    Raises:
        OptionError: ``path`` has another suffix or cannot be written, or an adapter does not fit;
            nothing is written.
        The errors of ``compile``.
    """
    target = _target("export_onnx", path)
    if target.suffix != ".onnx":
        raise OptionError(f"path must end in .onnx, got '{target.name}'")
    options = _file_options(
        rewrites=rewrites,
        passes=passes,
        ops=ops,
        plugins=plugins,
        exactness=exactness,
        progress=progress,
        adapters=adapters,
        max_trips=max_trips,
        batch=batch,
        switched=adapter is None,
    )
    switched = options.adapters.names if adapter is None else ()
    if adapter is not None:
        options = replace(options, adapters=options.adapters.only(adapter))
    phases = Phases(options.progress)
    captured, compilation, store = prepared(
        model, args, kwargs, dynamic_shapes, options, phases, switched=adapter is None
    )
    with torch.no_grad(), phases.phase("lower"):
        return write_onnx(compilation, store, target, opset, contrib, captured.size_names, switched)


@checks_names
def export_plan(
    model: Any,
    args: Sequence[Any],
    folder: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    contrib: bool = True,
    rewrites: Sequence[Rewrite | type[Rewrite]] = (),
    passes: Sequence[tuple[str, Pass]] = (),
    ops: Sequence[OpDef] = (),
    plugins: Sequence[str | Plugin] = (),
    exactness: Exactness = Exactness.REASSOCIATES,
    batch: Literal["per_sample"] | None = None,
    progress: Observer | None = None,
    max_trips: int | None = None,
) -> PlanReport:
    """Write a folder of ONNX files without branches, a plan that joins them, and a script that runs it.

    The conditions and loops are in ``plan.json``; ``run_plan.py``, which needs onnxruntime and numpy only,
    follows it: ``Plan(folder)(x=array)`` gives the outputs by name. A host in another language can follow
    the plan as well.

    Args:
        folder: the folder to write, which must not be there.
        The others are those of ``export_onnx``.

    Returns:
        What was written: files, names, conditions and loops, and the compile's report.

    Raises:
        OptionError: ``folder`` is there or cannot be written; nothing is written.
        BackendError: a size that values decide would have to pass from one file to another.
        The errors of ``compile``.
    """
    target = _target("export_plan", folder)
    options = _file_options(
        rewrites=rewrites,
        passes=passes,
        ops=ops,
        plugins=plugins,
        exactness=exactness,
        progress=progress,
        max_trips=max_trips,
        batch=batch,
    )
    phases = Phases(options.progress)
    captured, compilation, store = prepared(model, args, kwargs, dynamic_shapes, options, phases)
    with torch.no_grad(), phases.phase("lower"):
        return write_plan(compilation, store, target, opset, contrib, captured.size_names)


def _target(call: str, path: Any) -> Path:
    """Where to write.

    Raises:
        OptionError: ``path`` is none, or its folder is not there.
    """
    if not isinstance(path, (str, Path)):
        shown = "None" if path is None else f"a {type(path).__name__}"
        name = "path" if call == "export_onnx" else "folder"
        raise OptionError(f"{name} is {shown}; the order is {call}(model, args, {name})")
    target = Path(path)
    if not target.parent.is_dir():
        raise OptionError(f"the folder '{target.parent}' does not exist")
    return target


def _file_options(**given: Any) -> Options:
    """The options of a compile whose result is files."""
    options = Options.checked(
        backends=("ort",), fallback="error", verify=False, dump=None, threads=None, **given
    )
    return replace(options, for_file=True)
