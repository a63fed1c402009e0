"""Comparing a compiled model with the original: the numerics rule on the example arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from regraft.compiler.capture import Captured
from regraft.compiler.tolerance import judged
from regraft.compiler.trial import Run, run_compiled, run_double, run_eager, tensors_of, to_double
from regraft.ir import Trait
from regraft.numerics import assert_close
from regraft.runtime import CompiledModel, own_state


def error_against_eager(
    model: Any, compiled: CompiledModel, captured: Captured, *, reassociates: bool, tolerance: float = 0.0
) -> float:
    """The error of ``compiled`` against ``model`` in fp64, on the arguments of the capture.

    What is written counts as what is returned. State and generator are afterwards as before. A module is
    copied to fp64, which takes memory for two more sets of weights. A plain function may hold weights out of
    reach, and random numbers are others in fp64: there the reference is eager as it is. An error up to
    ``tolerance``, relative to the largest output, is what the user allowed.

    Raises:
        NumericsMismatch: the error is beyond what the numerics rule allows.
    """
    draws = any(op.has(Trait.RANDOM) for op in captured.module.main.walk())
    actual = run_compiled(compiled, captured.args, captured.kwargs)
    eager, expected = references(model, captured.args, captured.kwargs, state_of(compiled), draws=draws)
    found, wanted, own = (tensors_of(each) for each in (actual, expected, eager))
    if len(found) != len(wanted):
        return assert_close(actual, expected, eager=eager)  # which says so
    errors = [
        judged(f"output {index}", mine, theirs, tolerance, plain, reassociates=reassociates)
        for index, (mine, theirs, plain) in enumerate(zip(found, wanted, own, strict=True))
    ]
    return max(errors, default=0.0)


def references(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], state: Sequence[str], *, draws: bool = False
) -> tuple[Run, Run]:
    """What eager gives, and what it gives in fp64; see ``error_against_eager``.

    ``state`` names the model's tensors that it writes to, ``draws`` says that it draws random numbers.
    """
    runner = runner_of(model)
    eager = run_eager(runner, args, kwargs, state)
    if isinstance(runner, torch.nn.Module) and not draws:
        return eager, run_double(runner, args, kwargs, state)
    results, written = ([to_double(tensor) for tensor in part] for part in eager)
    return eager, (results, written)


def state_of(compiled: CompiledModel) -> tuple[str, ...]:
    """The names of the original's tensors that ``compiled`` writes to."""
    return () if compiled.effects is None else own_state(compiled.effects.state_names)


def runner_of(model: Any) -> Any:
    """What runs ``model`` in eager torch."""
    return model.module() if isinstance(model, torch.export.ExportedProgram) else model
