"""A denoiser compiled as some graphs of a step, and which of them each step runs."""

# The names of submodules are partly untyped.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from regraft.compiler.api import compile as compile_model
from regraft.compiler.capture.models import check_ready
from regraft.compiler.partition import DRAWS
from regraft.compiler.steps.caching import Every, Feedback, Probe, StepCache, Steps, Taylor
from regraft.compiler.steps.graphs import Block, Mode, ProbeGraph, StepGraph, observed
from regraft.compiler.trial import apart, copied, same_draws
from regraft.errors import CaptureError, OptionError, ShapeError
from regraft.numerics import relative_error
from regraft.runtime import CompiledModel

_Modes = tuple[Mode, ...]


@dataclass
class _Past:
    """What is known of a block: its differences, when it was computed last, and how often so far."""

    differences: list[Tensor]
    last: int = 0
    computed: int = 0


@dataclass(frozen=True)
class StepErrors:
    """How far a compiled denoiser is from the original over one generation.

    Fields:
        steps: the error of each step on the arguments that the original had in it, relative to the largest
            magnitude of its result.
        result: of the whole generation, in which each step has the arguments that its own results led to.
    """

    steps: tuple[float, ...]
    result: float


@dataclass
class StepReport:
    """What ``compile_steps`` made; ``to_dict()`` is JSON.

    Fields:
        graphs: by what they do with the blocks, the report of the compile of each graph.
        calls: how often each ran since the compile.
        errors: of the last generation that was measured; None before one was.
    """

    graphs: dict[str, Any]
    calls: dict[str, int]
    errors: StepErrors | None = None

    def to_dict(self) -> dict[str, Any]:
        errors = self.errors
        return {
            "graphs": {name: report.to_dict() for name, report in self.graphs.items()},
            "calls": dict(self.calls),
            "errors": None if errors is None else {"steps": list(errors.steps), "result": errors.result},
        }


@dataclass
class CompiledSteps:
    """A denoiser that is called once a step, in order; ``reset`` before each generation.

    Fields:
        step: the number of the next call.
        report: what the compile did, and what it is off by.
    """

    _model: nn.Module
    _blocks: tuple[Block, ...]
    _schedule: Every | Steps | Probe
    _graphs: Mapping[_Modes, CompiledModel]
    _probe: CompiledModel | None
    _example: Mapping[str, list[Tensor]]
    _shapes: Mapping[str, torch.Size]
    _fixed: Mapping[str, int | float]
    report: StepReport
    step: int = 0
    _past: dict[str, _Past] = field(default_factory=dict[str, _Past])

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the steps so far: the next call is the first of a generation."""
        self.step = 0
        self._past = {
            name: _Past([torch.zeros_like(each) for each in example])
            for name, example in self._example.items()
        }

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result at this step, of which some blocks may be forecast.

        Raises:
            ShapeError: a tensor has another size than in the example, or a number of Python's another
                value; what a compiled model raises.
        """
        self._check_shapes(args, kwargs)
        modes, given = self._decided(args, kwargs)
        differences = {name: past.differences for name, past in self._past.items()}
        numbers = {
            block.name: torch.tensor(self._numbers(block, mode), dtype=self._precision(block))
            for block, mode in zip(self._blocks, modes, strict=True)
        }
        result, new = self._graphs[modes](differences, numbers, given, args, kwargs)
        self.report.calls[described(self._blocks, modes)] += 1
        for name, found in new.items():
            past = self._past[name]
            past.differences, past.last, past.computed = found, self.step, past.computed + 1
        self.step += 1
        return result

    def _decided(self, args: Any, kwargs: Any) -> tuple[_Modes, dict[str, Tensor]]:
        """What to do with each block at this step, and the outputs that are known already."""
        if not isinstance(self._schedule, Probe):
            return modes_at(self._schedule, self._blocks, self.step), {}
        if self.step < self._schedule.first:
            return modes_of_probe(self._blocks, self._schedule, "computed"), {}
        assert self._probe is not None, "a schedule with a probe has its graph"
        (block,) = (each for each in self._blocks if each.name == self._schedule.block)
        weights = torch.tensor(self._numbers(block, "forecast"), dtype=self._precision(block))
        self.report.calls["probe"] += 1
        value, error = self._probe(self._past[block.name].differences, weights, args, kwargs)
        if error.item() < self._schedule.threshold:
            return modes_of_probe(self._blocks, self._schedule, "idle"), {}
        return modes_of_probe(self._blocks, self._schedule, "given"), {block.name: value}

    def _check_shapes(self, args: Any, kwargs: Any) -> None:
        for name, shape in shapes_of(args, kwargs).items():
            expected = self._shapes.get(name, shape)
            if shape != expected:
                raise ShapeError(
                    "the sizes of a step are those of the example; compile_steps with one of these sizes",
                    name,
                    str(list(expected)),
                    str(list(shape)),
                )
        for name, number in numbers_of(args, kwargs).items():
            if number != self._fixed.get(name, number):
                raise ShapeError(
                    "a number of Python's is part of the graphs, as it was in the example; pass a tensor, "
                    f"torch.tensor({number!r}), here and in the example",
                    name,
                    str(self._fixed[name]),
                    str(number),
                )

    def _precision(self, block: Block) -> torch.dtype:
        return precision_of(self._example.get(block.name, ()))

    def _numbers(self, block: Block, mode: Mode) -> list[float]:
        if not isinstance(block.forecast, Taylor):
            return [0.0]
        past = self._past[block.name]
        ahead = self.step - past.last
        if mode == "forecast":
            return block.forecast.weights_at(ahead, past.computed) or [0.0]
        return [1.0 / ahead if past.computed else 0.0] * max(block.forecast.order, 1)

    def measure(self, sample: Callable[[Callable[..., Any]], Any]) -> StepErrors:
        """Run ``sample``, which calls the denoiser that it is given in a loop, on the original and on this.

        The errors are in the report too. ``sample`` draws no random numbers that differ from run to run. What
        the model writes to its buffers and parameters is undone after each run.
        """
        calls: list[tuple[Any, Any]] = []
        results: list[Any] = []

        def original(*args: Any, **kwargs: Any) -> Any:
            calls.append(copied((args, kwargs)))
            found = self._model(*args, **kwargs)
            results.append(copied(found))
            return found

        with torch.no_grad():
            with self._undone():
                expected = copied(sample(original))
            with self._undone():
                steps = [
                    _error(self(*args, **kwargs), wanted)
                    for (args, kwargs), wanted in zip(calls, results, strict=True)
                ]
            with self._undone():
                found = sample(self)
        self.report.errors = StepErrors(tuple(steps), _error(found, expected))
        return self.report.errors

    @contextmanager
    def _undone(self) -> Generator[None]:
        """A generation of its own; the model's state is as before after it."""
        effects = [graph.effects for graph in self._graphs.values() if graph.effects is not None]
        state = [(tensor, tensor.clone()) for each in effects for tensor in each.state]
        self.reset()
        try:
            yield
        finally:
            self.reset()
            for tensor, before in state:
                tensor.copy_(before)


def _error(actual: Any, expected: Any) -> float:
    pairs = zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True)
    return max(
        (
            relative_error(a, b.double() if b.is_floating_point() else b)
            for a, b in pairs
            if isinstance(a, Tensor)
        ),
        default=0.0,
    )


def shapes_of(args: Any, kwargs: Any) -> dict[str, torch.Size]:
    """The shapes of the tensors of a call, by where they are: ``args[0]``, ``kwargs['mask']``."""
    rows = pytree.tree_leaves_with_path({"args": tuple(args), "kwargs": dict(kwargs)})
    return {_place(path): leaf.shape for path, leaf in rows if isinstance(leaf, Tensor)}


def numbers_of(args: Any, kwargs: Any) -> dict[str, int | float]:
    """Python's numbers among the arguments of a call, by where they are."""
    rows = pytree.tree_leaves_with_path({"args": tuple(args), "kwargs": dict(kwargs)})
    return {_place(path): leaf for path, leaf in rows if type(leaf) in (int, float)}


def _place(path: Any) -> str:
    return path[0].key + pytree.keystr(path[1:])


def precision_of(differences: Sequence[Tensor]) -> torch.dtype:
    """The dtype of what multiplies ``differences``: that of an f64 model must not be rounded to f32."""
    double = any(each.dtype in (torch.float64, torch.complex128) for each in differences)
    return torch.float64 if double else torch.float32


# -- schedules -----------------------------------------------------------------------------------


def modes_at(schedule: Every | Steps, blocks: Sequence[Block], step: int) -> _Modes:
    """What ``schedule`` says of each block at ``step``."""
    if isinstance(schedule, Every):
        names = {b.name for b in blocks} if schedule.computes(step) else set[str]()
    else:
        names = {name for name, steps in schedule.of.items() if step in steps}
    return _modes(blocks, names)


def modes_of_probe(blocks: Sequence[Block], schedule: Probe, mode: Mode) -> _Modes:
    """The probe in ``mode``; the others are computed unless it is idle."""
    computed = set[str]() if mode == "idle" else {b.name for b in blocks}
    others = zip(blocks, _modes(blocks, computed), strict=True)
    return tuple(mode if block.name == schedule.block else other for block, other in others)


def _modes(blocks: Sequence[Block], computed: set[str]) -> _Modes:
    sources = _sources(blocks)

    def mode(block: Block) -> Mode:
        if block.name in sources:
            return "computed"
        if block.name in computed:
            return "computed" if isinstance(block.forecast, Taylor) else "idle"
        return "forecast"

    return tuple(mode(block) for block in blocks)


def _sources(blocks: Sequence[Block]) -> list[str]:
    return list(dict.fromkeys(b.forecast.source for b in blocks if isinstance(b.forecast, Feedback)))


def every_mode(schedule: Every | Steps | Probe, blocks: Sequence[Block]) -> list[_Modes]:
    """What a step may do with the blocks, each once."""
    if isinstance(schedule, Probe):
        kinds: tuple[Mode, ...] = ("computed", "given", "idle")
        return [modes_of_probe(blocks, schedule, kind) for kind in kinds]
    if isinstance(schedule, Every):
        last = schedule.first + schedule.interval
    else:
        last = max((step for steps in schedule.of.values() for step in steps), default=0) + 1
    return list(dict.fromkeys(modes_at(schedule, blocks, step) for step in range(last + 1)))


def described(blocks: Sequence[Block], modes: _Modes) -> str:
    """The name of a graph: the blocks that it does not compute."""
    forecast = [b.name for b, mode in zip(blocks, modes, strict=True) if mode == "forecast"]
    given = [b.name for b, mode in zip(blocks, modes, strict=True) if mode == "given"]
    parts = [f"{', '.join(forecast)} forecast"] if forecast else ["all computed"]
    return "; ".join([*parts, *([f"{', '.join(given)} given"] if given else [])])


# -- the compile ---------------------------------------------------------------------------------


def compile_steps(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    cache: StepCache,
    sample: Callable[[Callable[..., Any]], Any] | None = None,
    **options: Any,
) -> CompiledSteps:
    """Compile a denoiser that a scheduler calls step after step, some blocks of which need not run in each.

    The results are approximate by what the forecasts are off: ``sample`` (see ``CompiledSteps.measure``)
    measures that for the report. Steps in which all is computed give what the model gives. Sizes are those of
    the example.

    Args:
        model: a module in eval mode whose named submodules the blocks are.
        args, kwargs: the example arguments of one step.
        cache: which blocks, when, and what stands for them.
        sample: a generation to measure the error over.
        options: as in ``regraft.compile``, for each graph.

    Raises:
        OptionError: a block or a schedule does not fit the model, or the model is in training mode; also
            what ``regraft.compile`` raises.
    """
    _check_options(options)
    check_ready(model)
    given = dict(kwargs or {})
    blocks = _blocks(model, cache)
    schedule = _checked(cache.schedule, blocks)
    outputs = _outputs(model, blocks, args, given)
    example = {
        b.name: [outputs[b.name]] * (b.forecast.order + 1) for b in blocks if isinstance(b.forecast, Taylor)
    }
    numbers = {
        b.name: torch.zeros(
            max(b.forecast.order, 1) if isinstance(b.forecast, Taylor) else 1,
            dtype=precision_of(example.get(b.name, ())),
        )
        for b in blocks
    }
    own = {name: [each.clone() for each in row] for name, row in example.items()}
    graphs: dict[_Modes, CompiledModel] = {}
    for modes in every_mode(schedule, blocks):
        known = {b.name: outputs[b.name].clone() for b, m in zip(blocks, modes, strict=True) if m == "given"}
        arguments = (own, numbers, known, tuple(args), given)
        graphs[modes] = _graph(StepGraph(model, blocks, modes), blocks, arguments, options)
        if isinstance(schedule, Probe):
            _check_repeatable(graphs[modes])
    probe = None
    if isinstance(schedule, Probe):
        (block,) = (b for b in blocks if b.name == schedule.block)
        arguments = (own[block.name], numbers[block.name], tuple(args), given)
        probe = _graph(ProbeGraph(model, block), blocks, arguments, options)
    reports = {described(blocks, modes): graph.report for modes, graph in graphs.items()}
    if probe is not None:
        reports["probe"] = probe.report
    report = StepReport(reports, dict.fromkeys(reports, 0))
    fixed = shapes_of(args, given), numbers_of(args, given)
    compiled = CompiledSteps(model, blocks, schedule, graphs, probe, example, *fixed, report)
    if sample is not None:
        compiled.measure(sample)
    return compiled


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse what would need other sizes, or a switch that the graphs of a step share."""
    ways_out = {
        "batch": "None: the sizes of a step are fixed",
        "dynamic_shapes": "None: the sizes of a step are fixed",
        "adapters": "None: merge an adapter into the weights before",
    }
    for name, way_out in ways_out.items():
        if options.get(name) is not None:
            raise OptionError(f"compile_steps has no option {name}", name, repr(options[name]), way_out)


def _outputs(
    model: nn.Module, blocks: Sequence[Block], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Mapping[str, Tensor]:
    """What the blocks give for the example; the model, its arguments and torch's generator are as before."""
    state = [name for name, _ in model.named_buffers()]
    own_args, own_kwargs = copied((tuple(args), dict(kwargs)))
    wanted = [b.name for b in blocks]
    with torch.no_grad(), same_draws(), apart(model, state), observed(model, {}, wanted) as outputs:
        model(*own_args, **own_kwargs)
    return outputs


def _graph(
    module: nn.Module, blocks: Sequence[Block], arguments: tuple[Any, ...], options: Mapping[str, Any]
) -> CompiledModel:
    try:
        return compile_model(module, arguments, **options)
    except CaptureError as error:
        at = (error.location or "").rpartition(" in model.")[2]
        if any(at == b.name or at.startswith(f"{b.name}.") for b in blocks):
            always = (
                f"a block is called at every step: one that values decide over, as {at} may be, cannot be"
            )
            error.hint = always if error.hint is None else f"{error.hint}; {always}"
        raise


def _check_repeatable(graph: CompiledModel) -> None:
    """Refuse a model of which a step cannot run a part twice.

    Raises:
        OptionError: it writes to what it is given or to its state, or draws random numbers.
    """
    reason = None
    if graph.effects is not None and graph.effects.writes:
        written = {graph.effects.names[target] for target in graph.effects.writes.values()}
        reason = f"writes to {', '.join(sorted(written))}"
    elif any(why == DRAWS for _, _, why in graph.report.fallbacks):
        reason = "draws random numbers"
    if reason is not None:
        raise OptionError(
            f"the model {reason}, and a probe runs a part of each step twice",
            "schedule",
            "a Probe",
            "Every or Steps for such a model",
        )


def _blocks(model: nn.Module, cache: StepCache) -> tuple[Block, ...]:
    """The blocks by their own names, in the order of the model, the sources of feedback among them."""
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, Block] = {}
    for pattern, forecast in cache.blocks.items():
        own = _matching(pattern, names)
        twice = [name for name in own if name in found]
        if twice:
            raise OptionError("two patterns name one block", "blocks", repr(twice[0]), "each block once")
        found |= {name: Block(name, forecast) for name in own}
    for source in _sources(tuple(found.values())):
        if source not in names:
            raise _no_block(source)
        if source in found:
            raise OptionError(
                "the source of feedback is computed at every step, so that nothing stands for it",
                "blocks",
                repr(source),
                "a source that is none of the blocks",
            )
        found[source] = Block(source, Taylor(0))
    nested = [name for name in found for other in found if name.startswith(f"{other}.")]
    if nested:
        raise OptionError(
            "a block lies in another one", "blocks", repr(nested[0]), "blocks outside of one another"
        )
    return tuple(found[name] for name in names if name in found)


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The ``names`` that ``pattern`` stands for, ``*`` and the like standing for parts without dots."""
    parts = pattern.split(".")
    rows = [(name, name.split(".")) for name in names]
    found = [n for n, own in rows if len(own) == len(parts) and all(map(fnmatch.fnmatchcase, own, parts))]
    if not found:
        raise _no_block(pattern)
    return found


def _no_block(name: str) -> OptionError:
    return OptionError("the model has no such block", "blocks", repr(name), "names of its submodules")


def _checked(schedule: Every | Steps | Probe, blocks: Sequence[Block]) -> Every | Steps | Probe:
    """``schedule`` with the names of blocks in place of patterns."""
    sources = _sources(blocks)
    names = [b.name for b in blocks if b.name not in sources]
    if isinstance(schedule, Probe):
        _check_probe(schedule, blocks, names)
        return schedule
    if isinstance(schedule, Every):
        return schedule
    found: dict[str, Sequence[int]] = {}
    for pattern, steps in schedule.of.items():
        own = _matching(pattern, names)
        twice = [name for name in own if name in found]
        if twice:
            raise OptionError("two patterns name one block", "of", repr(twice[0]), "each block once")
        found |= dict.fromkeys(own, tuple(steps))
    late = [name for name in names if 0 not in found.get(name, ())]
    if late:
        raise OptionError(
            f"nothing is known of {late[0]} at the first step", "of", repr(dict(schedule.of)), "step 0 in all"
        )
    return Steps(found)


def _check_probe(schedule: Probe, blocks: Sequence[Block], names: Sequence[str]) -> None:
    """Refuse a probe that has no forecast, or none to decide about; ``names`` are the blocks but sources."""
    forecast = next((b.forecast for b in blocks if b.name == schedule.block and b.name in names), None)
    if not isinstance(forecast, Taylor):
        raise OptionError(
            "the probe is no block with a forecast",
            "block",
            repr(schedule.block),
            "one of the blocks, with a Taylor, and no source of feedback",
        )
    if len(names) == 1:
        raise OptionError(
            "there is no block but the probe", "blocks", repr(schedule.block), "blocks that it decides about"
        )
