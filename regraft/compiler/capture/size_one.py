"""Sizes of 1.

torch.export assumes that an open size is at least 2: broadcasting, ``squeeze`` and the model's own
``if x.shape[0] == 1`` treat 1 apart, and the graph follows the other path. Most models compute the same
for 1 all the same. So the graph is run with each open size at 1, and with all of them, beside eager:
where no value differs, 1 is allowed, elsewhere a call with 1 is refused. Where data decides what runs, the
other arms are compared with those of a graph captured for the size 1 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.utils import _pytree as pytree

from regraft.backends import LowerOptions, backend
from regraft.compiler.capture.control.arms import arms_agree, has_arms
from regraft.compiler.capture.example import Call, dynamic_axes, split
from regraft.compiler.materialise import Store
from regraft.compiler.trial import run_compiled, run_eager, to_double
from regraft.errors import NumericsMismatch, RegraftError
from regraft.ir import Function, Module, OpTable, PassContext, run_stage
from regraft.numerics import assert_close
from regraft.rewrites import default_passes
from regraft.runtime import CompiledModel, Effects, Plan, Signature, Step, compile_dim

#: torch.export's lower bound for a size that nobody bounded.
UNBOUNDED = 2

#: What a run on sizes that the model was not made for may raise.
_RAISED = (RegraftError, RuntimeError, ValueError, IndexError, TypeError, AssertionError)

Outcome = Literal["agrees", "raises", "differs"]


def with_size_one(
    imported: Callable[[frozenset[str]], Module],
    model: torch.nn.Module,
    arguments: Mapping[str, Any],
    shapes: Mapping[str, Any],
    n_args: int,
    table: OpTable,
    fixed: Callable[[Mapping[str, Any]], Module],
) -> Module:
    """The module, with 1 in the range of each symbol for which the graph gives eager's values.

    ``imported(names)`` imports the program with the lower bound 1 for the symbols ``names``;
    ``fixed(arguments)`` captures the model for the very sizes of ``arguments``.
    """
    strict = imported(frozenset())
    signature: Signature = strict.main.signature
    bounded = _bounded_by_user(signature, arguments, shapes)
    names = [s.name for s in signature.symbols if s.lo == UNBOUNDED and s.name not in bounded]
    if not names:
        return strict
    trial = imported(frozenset(names))
    # In the normal form an op computes what its type says: a squeeze, say, no longer looks at its size.
    run_stage(default_passes(), "canonicalize", trial, PassContext(table))

    def made() -> CompiledModel:
        return _in_torch(trial)

    state = [leaf.name for leaf in trial.main.state]

    def outcome(ones: Sequence[str]) -> Outcome:
        return _compare(made, trial.main.signature, state, model, arguments, ones, n_args)

    alone = {name: outcome([name]) for name in names}
    # Two arguments may share a batch that the graph counts as two symbols: one of them at 1 alone may well
    # be an error, which is no wrong answer, while both at 1 are fine.
    for wanted in (("agrees", "raises"), ("agrees",)):
        ones = [name for name in names if alone[name] in wanted]
        if ones and outcome(ones) == "agrees":
            # The data takes one path, a call at size 1 may take another.
            holds = not has_arms(trial.main) or _arms_agree(trial, fixed, arguments, ones, n_args, table)
            return imported(frozenset(ones)) if holds else strict
    return strict


def _arms_agree(
    trial: Module,
    fixed: Callable[[Mapping[str, Any]], Module],
    arguments: Mapping[str, Any],
    ones: Sequence[str],
    n_args: int,
    table: OpTable,
) -> bool:
    """Whether every arm computes at size 1 what it does where the model is captured for just that size."""
    small = _cut(trial.main.signature, arguments, ones, n_args)
    try:
        exact = fixed(small)
        run_stage(default_passes(), "canonicalize", exact, PassContext(table))
        functions = (trial.main, exact.main)
        inputs = [_inputs(function, *split(small, n_args)) for function in functions]
        given = zip(functions, inputs, strict=True)
        sizes = [f.signature.sizes(each[: len(f.signature.tensors)]) for f, each in given]
        return arms_agree(*functions, inputs[0], sizes)
    except _RAISED:
        return False


def _inputs(function: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    return [*function.signature.flatten(args, kwargs), *(leaf.storage for leaf in function.state)]


def _bounded_by_user(
    signature: Signature, arguments: Mapping[str, Any], shapes: Mapping[str, Any]
) -> set[str]:
    """Symbols of axes whose ``Dim`` has a minimum of its own."""
    found = [pair for p in signature.params for pair in dynamic_axes(arguments[p.name], shapes.get(p.name))]
    bounded: set[str] = set()
    for spec, (_, axes) in zip(signature.tensors, found, strict=True):
        for axis, dim in axes.items():
            if (getattr(dim, "min", None) or 0) >= UNBOUNDED:
                bounded.add(str(spec.shape[axis]))
    return bounded


def holds_at_size_one(compiled: CompiledModel, call: Call) -> bool:
    """Whether what was found about sizes of 1 when the graph was captured holds for the model's weights now.

    ``compiled`` is that graph over these weights; it has no state.
    """
    signature = compiled.signature
    ones = [s.name for s in signature.symbols if s.lo < UNBOUNDED]
    if not ones:
        return True

    def outcome(names: Sequence[str]) -> Outcome:
        return _compare(lambda: compiled, signature, (), call.module, call.arguments, names, call.n_args)

    return all(outcome([name]) != "differs" for name in ones) and outcome(ones) == "agrees"


def _compare(
    made: Callable[[], CompiledModel],
    signature: Signature,
    state: Sequence[str],
    model: torch.nn.Module,
    arguments: Mapping[str, Any],
    ones: Sequence[str],
    n_args: int,
) -> Outcome:
    """How the graph does beside eager on the arguments cut down to size 1 along the symbols ``ones``."""
    args, kwargs = split(_cut(signature, arguments, ones, n_args), n_args)
    try:
        actual = run_compiled(made(), args, kwargs)
        expected = run_eager(model, args, kwargs, state)
        assert_close(actual, tuple([to_double(tensor) for tensor in part] for part in expected))
    except NumericsMismatch:
        return "differs"
    except _RAISED:
        return "raises"
    return "agrees"


def _cut(
    signature: Signature, arguments: Mapping[str, Any], ones: Sequence[str], n_args: int
) -> dict[str, Any]:
    """The arguments with size 1 along the symbols ``ones``."""
    args, kwargs = split(arguments, n_args)
    sizes = {**signature.sizes(signature.flatten(args, kwargs)), **dict.fromkeys(ones, 1)}
    shapes = iter([tuple(compile_dim(d)(sizes) for d in spec.shape) for spec in signature.tensors])

    def cut(leaf: Any) -> Any:
        return leaf[tuple(slice(0, n) for n in next(shapes))] if isinstance(leaf, torch.Tensor) else leaf

    return {name: pytree.tree_map(cut, value) for name, value in arguments.items()}


def _in_torch(module: Module) -> CompiledModel:
    """The module as a model that torch runs."""
    function, store = module.main, Store(module)
    signature: Signature = function.signature
    inputs, results = len(function.args), len(function.results)
    outputs = tuple(range(inputs, inputs + results))
    step = Step(backend("eager").lower(function, store, LowerOptions()), tuple(range(inputs)), outputs)
    plan = Plan(inputs, inputs + results, (step,), outputs[: results - len(signature.returned)])
    state = {leaf.name: store.tensor(leaf) for leaf in function.state}
    return CompiledModel(signature, plan, None, "", effects=Effects.of(signature, function.aliases, state))
