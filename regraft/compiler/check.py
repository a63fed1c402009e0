"""Comparing a compiled model with the original: the numerics rule on the example arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from regraft.compiler.adapters import Adapters, changes_of
from regraft.compiler.capture import Captured, as_module
from regraft.compiler.tolerance import judged
from regraft.compiler.trial import (
    Run,
    changed,
    run_compiled,
    run_double,
    run_eager,
    tensors_of,
    to_double,
)
from regraft.errors import NumericsMismatch, OptionError
from regraft.ir import Trait
from regraft.numerics import assert_close
from regraft.runtime import CompiledModel, own_state


def error_against_eager(
    model: Any,
    compiled: CompiledModel,
    captured: Captured,
    *,
    reassociates: bool,
    tolerance: float = 0.0,
    changes: Mapping[str, Tensor] | None = None,
) -> float:
    """The error of ``compiled`` against ``model`` in fp64, on the arguments of the capture.

    What is written counts as what is returned. State and generator are afterwards as before. A module is
    copied to fp64, which takes memory for two more sets of weights. A plain function may hold weights out of
    reach, and random numbers are others in fp64: there the reference is eager as it is. An error up to
    ``tolerance``, relative to the largest output, is what the user allowed. ``model`` is compared as if its
    weights of these names were more by ``changes``.

    Raises:
        NumericsMismatch: the error is beyond what the numerics rule allows.
    """
    draws = any(op.has(Trait.RANDOM) for op in captured.module.main.walk())
    actual = run_compiled(compiled, captured.args, captured.kwargs)
    eager, expected = references(
        model, captured.args, captured.kwargs, state_of(compiled), draws=draws, changes=changes
    )
    found, wanted, own = (tensors_of(each) for each in (actual, expected, eager))
    if len(found) != len(wanted):
        return assert_close(actual, expected, eager=eager)  # which says so
    errors = [
        judged(f"output {index}", mine, theirs, tolerance, plain, reassociates=reassociates)
        for index, (mine, theirs, plain) in enumerate(zip(found, wanted, own, strict=True))
    ]
    return max(errors, default=0.0)


def references(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    state: Sequence[str],
    *,
    draws: bool = False,
    changes: Mapping[str, Tensor] | None = None,
) -> tuple[Run, Run]:
    """What eager gives, and what it gives in fp64; see ``error_against_eager``.

    ``state`` names the model's tensors that it writes to, ``draws`` says that it draws random numbers.
    """
    runner = runner_of(model)
    if changes and isinstance(runner, torch.nn.Module):
        runner = as_module(runner)  # names are those in what a wrapper holds
    with changed(as_module(runner), changes) if changes else nullcontext():
        eager = run_eager(runner, args, kwargs, state)
    if isinstance(runner, torch.nn.Module) and not draws:
        return eager, run_double(runner, args, kwargs, state, changes)
    results, written = ([to_double(tensor) for tensor in part] for part in eager)
    return eager, (results, written)


def state_of(compiled: CompiledModel) -> tuple[str, ...]:
    """The names of the original's tensors that ``compiled`` writes to."""
    return () if compiled.effects is None else own_state(compiled.effects.state_names)


def runner_of(model: Any) -> Any:
    """What runs ``model`` in eager torch."""
    return model.module() if isinstance(model, torch.export.ExportedProgram) else model


def errors_under_adapters(
    model: Any,
    compiled: CompiledModel,
    captured: Captured,
    adapters: Adapters,
    *,
    reassociates: bool,
    tolerance: float,
) -> dict[str, float]:
    """The error under each of the ``adapters``, by name, against eager with its changes in the weights.

    Afterwards none applies.

    Raises:
        NumericsMismatch: an error is beyond what the numerics rule allows; it names the adapter.
        OptionError: an adapted weight is neither a parameter nor a buffer, so that eager has no way to it.
    """
    if not adapters.names:
        return {}
    weights = _weights_of(model)
    _check_reachable(adapters, weights)
    errors: dict[str, float] = {}
    for number, name in enumerate(adapters.names, start=1):
        compiled.set_adapter(name)
        try:
            errors[name] = error_against_eager(
                model,
                compiled,
                captured,
                reassociates=reassociates,
                tolerance=tolerance,
                changes=changes_of(adapters, number, weights),
            )
        except NumericsMismatch as error:
            error.value = f"{error.value} under the adapter '{name}'"
            error.hint = error.hint or "the model as it is, without an adapter, is right"
            raise
        finally:
            compiled.set_adapter(None)
    return errors


def _weights_of(model: Any) -> dict[str, Tensor]:
    """The parameters and buffers of ``model``, under each of the names that a capture may give them."""
    holder = as_module(runner_of(model))
    parameters = holder.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(holder.named_buffers(remove_duplicate=False))}


def _check_reachable(adapters: Adapters, weights: Mapping[str, Tensor]) -> None:
    others = [name for name in adapters.changes if name not in weights]
    if others:
        raise OptionError(
            f"'{others[0]}', which adapters change, is neither a parameter nor a buffer: there is no way to "
            "have it changed in eager, to compare with",
            option="verify",
            value="True",
            expected="False, with adapters of such a weight",
        )
