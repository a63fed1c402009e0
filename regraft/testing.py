"""Helpers for tests: the numerics rule, models without neutral weights, and tests derived from a rewrite.

``check_rewrite(MyRewrite())`` is all a rewrite needs in a test; ``rewrite_cases`` gives its parts to
``pytest.mark.parametrize``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regraft.errors import NumericsMismatch
from regraft.graphs import GraphConstants, build_example, evaluate, random_tensor, region_in_double
from regraft.ir import (
    OPS,
    Builder,
    Declined,
    DType,
    Exactness,
    Example,
    Function,
    Match,
    Module,
    Op,
    OpDef,
    OpTable,
    PassContext,
    Rewrite,
    RewritePass,
    TensorType,
    Value,
    decide,
    print_module,
    verify,
)
from regraft.numerics import TOLERANCES, assert_close, relative_error, same_bits
from regraft.op_testing import OpCase, check_op, op_cases
from regraft.path_counts import Path, PathCounts

__all__ = [
    "TOLERANCES",
    "GraphConstants",
    "OpCase",
    "Path",
    "PathCounts",
    "RewriteCase",
    "assert_close",
    "build_example",
    "check_op",
    "check_rewrite",
    "evaluate",
    "op_cases",
    "random_tensor",
    "randomise",
    "relative_error",
    "rewrite_cases",
    "same_bits",
]

# -- models for tests --------------------------------------------------------------------------

_WEIGHTED = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)  # pyright: ignore[reportPrivateUsage]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and float buffer values that make a difference; returns ``model``.

    Fresh models hide mistakes: biases and LoRA's B are 0, the weights of norms 1, layer scales 1e-6 and
    attention scores almost equal. Matrices are drawn anew with a standard deviation of 1 / √fan-in,
    embeddings with 1, constant vectors around 0 or 1, running variances in [0.5, 1.5]; what has a
    structure of its own (rotary frequencies, decays) keeps it, within 10 %. Integer buffers, masks and
    infinities stay.
    """
    generator = torch.Generator().manual_seed(seed)
    owners: dict[Tensor, tuple[nn.Module, str]] = {}
    for module in model.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            # A tied tensor is drawn as the layer has it that says what it is for.
            if tensor not in owners or not isinstance(owners[tensor][0], (*_WEIGHTED, nn.Embedding)):
                owners[tensor] = (module, name)
    with torch.no_grad():
        for tensor, (module, name) in owners.items():
            if tensor.is_floating_point() and tensor.numel():
                tensor.copy_(_redrawn(module, name, tensor, generator))
    return model


def _redrawn(module: nn.Module, name: str, old: Tensor, generator: torch.Generator) -> Tensor:
    def normal(std: float) -> Tensor:
        return torch.randn(old.shape, generator=generator) * std

    def around_one(spread: float) -> Tensor:
        return 1 + spread * (2 * torch.rand(old.shape, generator=generator) - 1)

    if name == "running_var":
        return around_one(0.5)
    if isinstance(module, nn.Embedding):
        return normal(1.0)
    if isinstance(module, _WEIGHTED) and old.dim() > 1:
        return normal(1 / math.sqrt(old[0].numel()))
    first = float(old.flatten()[0])
    is_constant = bool((old == first).all())
    if is_constant and first == 0:
        return normal(0.2 if old.dim() < 2 else 1 / math.sqrt(old[0].numel()))
    if is_constant and math.isfinite(first) and isinstance(old, nn.Parameter):
        return around_one(0.4) * (first if abs(first) > 1 else 1.0)
    if not isinstance(old, nn.Parameter) and len(torch.unique(old)) < 3:
        return old  # a mask
    return torch.where(old.isfinite(), old.cpu() * around_one(0.1).to(old.dtype), old.cpu())


# -- tests derived from a rewrite --------------------------------------------------------------

_SIZES = (5, 1, 0)
"""The values of the first symbol of an example, one run each; the next symbols get larger ones."""


@dataclass(frozen=True)
class RewriteCase:
    """One derived test; ``run()`` raises AssertionError or NumericsMismatch when it fails."""

    id: str
    run: Callable[[], None]


def check_rewrite(rewrite: Rewrite | type[Rewrite], ops: Sequence[OpDef] = ()) -> None:
    """Run every test that ``rewrite_cases`` derives.

    Raises:
        AssertionError: the rewrite breaks its contract; the message names the case.
        NumericsMismatch: its results are wrong.
    """
    for case in rewrite_cases(rewrite, ops):
        case.run()


def rewrite_cases(given: Rewrite | type[Rewrite], ops: Sequence[OpDef] = ()) -> list[RewriteCase]:
    """The tests of a rewrite's examples and counterexamples, with ``ops`` beside the built-in ones."""
    rewrite = given() if isinstance(given, type) else given
    assert rewrite.examples, f"{rewrite.name} has no examples, so nothing shows that it fires"
    table = OPS.extended(ops)
    checks: Mapping[str, Callable[[_Trial], None]] = {
        "fires": _check_fires,
        "matching-changes-nothing": _check_read_only,
        "idempotent": _check_idempotent,
        "numerics": _check_numerics,
        "mutants-are-caught": _check_mutants,
    }
    cases: list[RewriteCase] = []
    for index, example in enumerate(rewrite.examples):
        trial = _Trial(rewrite, example, table)
        cases += [_case(rewrite, f"example{index}-{name}", check, trial) for name, check in checks.items()]
    for index, example in enumerate(rewrite.counterexamples):
        trial = _Trial(rewrite, example, table)
        cases.append(_case(rewrite, f"counterexample{index}-declines", _check_declines, trial))
    return cases


def _case(rewrite: Rewrite, id: str, check: Callable[[_Trial], None], trial: _Trial) -> RewriteCase:
    return RewriteCase(f"{rewrite.name}-{id}", lambda: check(trial))


@dataclass(frozen=True)
class _Trial:
    rewrite: Rewrite
    example: Example
    table: OpTable

    def before(self) -> Module:
        module = build_example(self.example, self.table)
        verify(module, None, table=self.table)
        return module

    def apply(self, module: Module) -> int:
        """Apply the rewrite everywhere; how often it fired."""
        context = PassContext(self.table, Exactness(2, math.inf))
        RewritePass(self.rewrite.name, self.rewrite.stage, [self.rewrite]).run(module, context)
        verify(module, None, table=self.table)
        return context.stats_of(self.rewrite.name).hits

    def after(self) -> Module:
        module = self.before()
        self.apply(module)
        return module

    def outcomes(self, module: Module) -> list[Match | Declined]:
        """What the rewrite says of each op that a pattern of it may start at."""
        patterns = self.rewrite.patterns(self.table)
        return [
            decide(self.rewrite, pattern, op)
            for op in module.main.walk()
            for pattern in patterns
            if op.name == pattern.root.definition.name
        ]


def _check_fires(trial: _Trial) -> None:
    module = trial.before()
    text = print_module(module)
    hits = trial.apply(module)
    reasons = [o.reason for o in trial.outcomes(trial.before()) if isinstance(o, Declined)]
    count = trial.example.count
    assert hits == count, f"{trial.rewrite.name} fired {hits} times, expected {count}: {reasons}\n{text}"
    assert print_module(module) != text, f"{trial.rewrite.name} left the text as it was:\n{text}"


def _check_read_only(trial: _Trial) -> None:
    module = trial.before()
    text, uses = print_module(module), _use_counts(module)
    trial.outcomes(module)
    assert print_module(module) == text, f"matching changed the graph:\n{text}"
    assert _use_counts(module) == uses, "matching left users on the graph's values"


def _use_counts(module: Module) -> list[int]:
    values = [*module.main.args, *(result for op in module.main.walk() for result in op.results)]
    return [len(value.uses) for value in values]


def _check_idempotent(trial: _Trial) -> None:
    module = trial.after()
    text = print_module(module)
    assert trial.apply(module) == 0, f"{trial.rewrite.name} fires on its own result:\n{text}"
    assert print_module(module) == text


def _check_declines(trial: _Trial) -> None:
    module, wanted = trial.before(), trial.example.reason
    assert wanted, f"a counterexample of {trial.rewrite.name} gives no reason"
    outcomes = trial.outcomes(module)
    text = print_module(module)
    assert not any(isinstance(o, Match) for o in outcomes), f"{trial.rewrite.name} fires on\n{text}"
    reasons = [o.reason for o in outcomes if isinstance(o, Declined)]
    assert any(wanted in reason for reason in reasons), f"expected '{wanted}' among {reasons}\n{text}"


def _check_numerics(trial: _Trial) -> None:
    references = _References(trial.before())
    for after in _in_each_form(trial):
        _compare(trial, references, after)


def _in_each_form(trial: _Trial) -> Iterator[Module]:
    """The rewritten graph, its alternatives (``rg.alt``) set to their first form, their second, ..."""
    count = max((len(op.regions) for op in trial.after().main.walk() if op.name == "rg.alt"), default=1)
    for form in range(count):
        yield _in_form(trial.after(), form)


def _in_form(module: Module, form: int) -> Module:
    for op in module.main.walk():
        if op.name == "rg.alt":
            op.attrs |= {"cuts": (), "order": (min(form, len(op.regions) - 1),)}
    return module


@dataclass(frozen=True)
class _Reference:
    """What a graph gives of ``inputs``, and of the same ones, ``wide``, in fp64."""

    inputs: list[Tensor]
    wide: list[Tensor]
    sizes: dict[str, int]
    native: Sequence[Tensor]
    expected: Sequence[Tensor]


class _References:
    """The references of ``before`` at all of ``_runs``, each computed when it is first asked for."""

    def __init__(self, before: Module) -> None:
        self._rest = (_reference(before, *run) for run in _runs(before))
        self._known: list[_Reference] = []

    def __iter__(self) -> Iterator[_Reference]:
        yield from self._known
        for reference in self._rest:
            self._known.append(reference)
            yield reference


def _reference(before: Module, inputs: list[Tensor], sizes: dict[str, int]) -> _Reference:
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    native, expected = evaluate(before.main, inputs, sizes), evaluate(_in_double(before.main), wide, sizes)
    return _Reference(inputs, wide, sizes, native, expected)


def _compare(trial: _Trial, references: Iterable[_Reference], after: Module) -> None:
    """Raise NumericsMismatch where ``after`` is not what the rewrite's exactness allows of ``references``."""
    is_exact = trial.rewrite.exactness == Exactness.EXACT
    precise = _in_double(after.main)
    for reference in references:
        native, expected = reference.native, reference.expected
        result = evaluate(after.main, reference.inputs, reference.sizes)
        exact = evaluate(precise, reference.wide, reference.sizes)
        if trial.rewrite.exactness.rank == 2:
            _check_tolerance(trial.rewrite, exact, expected)
            continue
        assert_close(exact, expected, suspect=trial.rewrite.name)
        assert_close(result, expected, native, reassociates=not is_exact, suspect=trial.rewrite.name)
        if is_exact:
            _check_bits(trial.rewrite, exact, expected)
            _check_bits(trial.rewrite, result, native)


def _in_double(function: Function) -> Function:
    return Function(function.name, region_in_double(function.body), function.symbols)


def _check_tolerance(rewrite: Rewrite, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        error, tolerance = relative_error(a, b), rewrite.exactness.tolerance
        if error > tolerance:
            raise NumericsMismatch("a result is wrong", f"output {index}", error, tolerance, rewrite.name)


def _check_bits(rewrite: Rewrite, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        if not same_bits(a, b):
            message, error = "an exact rewrite changes bits", relative_error(a, b)
            raise NumericsMismatch(message, f"output {index}", error, 0.0, rewrite.name)


def _runs(module: Module) -> Iterator[tuple[list[Tensor], dict[str, int]]]:
    """Random inputs, at several sizes when there are symbols, and with every combination of single bools."""
    symbols, args = module.main.symbols, module.main.args
    flags = [a.index for a in args if a.tensor == TensorType(DType.BOOL, ())]
    for base in _SIZES if symbols else (0,):
        generator = torch.Generator().manual_seed(base)
        values = {s.name: min(base + 2 * i, 1) if base < 2 else base + 2 * i for i, s in enumerate(symbols)}
        inputs = [random_tensor(a.tensor, values, generator) for a in args]
        for combination in itertools.product((True, False), repeat=len(flags)):
            chosen = dict(zip(flags, map(torch.tensor, combination), strict=True))
            yield [chosen.get(index, x) for index, x in enumerate(inputs)], values


def _check_mutants(trial: _Trial) -> None:
    """The numeric check must refuse a replacement that is slightly wrong, or it proves nothing."""
    references = _References(trial.before())
    for describe, mutant in _mutants(trial):
        try:
            _compare(trial, references, mutant)
        except NumericsMismatch:
            continue
        raise AssertionError(f"nothing shows that {trial.rewrite.name} is wrong with {describe}")


def _mutants(trial: _Trial) -> Iterator[tuple[str, Module]]:
    """The rewritten graph with each result, and each number of a new op, a little off."""
    count = len(trial.after().main.results)
    for index in range(count):
        module = trial.after()
        terminator = module.main.body.terminator
        value = terminator.operands[index]
        builder = Builder(trial.table, module.main.body, terminator)
        terminator.set_operand(index, _altered(builder, value, trial.rewrite.exactness.tolerance))
        yield f"result {index} altered", module
    for position, op in enumerate(_new_ops(trial, trial.after())):
        for name, number in op.attrs.items():
            if isinstance(number, float) and 0 < abs(number) < _ANY_HUGE:
                module = trial.after()
                _new_ops(trial, module)[position].attrs[name] = number * 1.25
                yield f"{op.name}'s {name} at {number * 1.25}", module


_ANY_HUGE = 1e30
"""Beyond this a number stands for infinity, as in masks, and another one does as well."""


def _new_ops(trial: _Trial, module: Module) -> list[Op]:
    return [op for op in module.main.walk() if trial.rewrite.name in op.loc.made_by]


def _altered(builder: Builder, value: Value, tolerance: float) -> Value:
    """Another value, further off than ``tolerance``."""
    dtype = value.tensor.dtype
    if dtype is DType.BOOL:
        return builder.aten.bitwise_not(value)
    if dtype.is_integer:
        return builder.aten.add.Scalar(value, 1)
    return builder.aten.mul.Scalar(value, 1.001 + 2 * tolerance)
