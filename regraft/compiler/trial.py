"""Runs that leave no trace: the model, its arguments and torch's generator are as before afterwards."""

# A module's tables of tensors, and what keeps the count of a tensor's changes, have no public names.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.utils import _pytree as pytree

from regraft.runtime import CompiledModel, own_state

#: The results of a run, and the new values of the state and of the arguments.
Run = tuple[list[Tensor], list[Tensor]]


@contextmanager
def same_draws() -> Generator[None]:
    """Random numbers from one seed; the generator goes on afterwards from where it was."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def run_eager(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], state: Sequence[str]) -> Run:
    """The tensors that ``model`` returns, and the new values of its tensors ``state`` and of its arguments.

    ``model`` is a module or a function. Of its tensors only those named by ``state`` are copied.
    """
    own_args, own_kwargs = copied((tuple(args), dict(kwargs)))
    with torch.no_grad(), same_draws(), apart(model, state) as values:
        found = tensors_of(model(*own_args, **own_kwargs))
        own = {id(tensor) for tensor in (_tensor(model, name) for name in state)}
        # What is the state's own tensor goes back to what it was.
        results = [tensor.clone() if id(tensor) in own else tensor for tensor in found]
    return results, [*(values[name] for name in state), *tensors_of((own_args, own_kwargs))]


@contextmanager
def apart(model: Any, state: Sequence[str]) -> Generator[dict[str, Tensor]]:
    """Give the tensors ``state`` of ``model`` other memory for the block; then the dict holds their values.

    The tensors stay the same objects, since code may hold them by other ways than the module's attributes.
    """
    own = {name: _place(model, name) for name in state}
    originals = {name: table[key] for name, (table, key) in own.items()}
    memory = {name: tensor.data for name, tensor in originals.items()}
    values: dict[str, Tensor] = {}
    with _unsafe_preserve_version_counter(tuple(originals.values())):
        for tensor in originals.values():
            tensor.data = tensor.data.clone()
        try:
            yield values
            values |= {name: table[key].detach().clone() for name, (table, key) in own.items()}
        finally:
            for name, (table, key) in own.items():
                table[key] = originals[name]
                originals[name].data = memory[name]


def _place(model: torch.nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The table of a module in which the parameter or buffer ``name`` stands, and its key there."""
    path, _, key = name.rpartition(".")
    owner = model.get_submodule(path)
    return next(table for table in (owner._buffers, owner._parameters) if key in table), key


def _tensor(model: Any, name: str) -> Tensor:
    table, key = _place(model, name)
    return table[key]


@contextmanager
def changed(model: torch.nn.Module, changes: Mapping[str, Tensor]) -> Generator[None]:
    """Let the tensors of ``model`` of these names be more by ``changes`` for the block."""
    with apart(model, tuple(changes)):
        for name, change in changes.items():
            _tensor(model, name).data.add_(change)
        yield


def run_double(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    state: Sequence[str],
    changes: Mapping[str, Tensor] | None = None,
) -> Run:
    """``run_eager`` in fp64, on a copy of the model; ``changes`` are added to its tensors of these names."""
    double = copy.deepcopy(model)
    for tensor in (*double.parameters(), *double.buffers()):
        # Not by double(), which makes new buffers: code may hold these by another way.
        tensor.data = to_double(tensor.data)
    for name, change in (changes or {}).items():
        _tensor(double, name).data.add_(change)
    args, kwargs = pytree.tree_map(to_double, (tuple(args), dict(kwargs)))
    return run_eager(double, args, kwargs, state)


def run_compiled(compiled: CompiledModel, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Run:
    """The same of a compiled model: its results, and the new values of its state and of its arguments."""
    args, kwargs = copied((tuple(args), dict(kwargs)))
    signature, effects = compiled.signature, compiled.effects
    tensors = signature.flatten(args, kwargs)
    with torch.no_grad(), same_draws():
        if effects is None:
            result = signature.unflatten(compiled.plan.run(tensors, signature.sizes(tensors)))
            return tensors_of(result), tensors_of((args, kwargs))
        effects = effects.apart()
        result = signature.unflatten(effects.run(compiled.plan, tensors, signature.sizes(tensors)))
    state = dict(zip(effects.state_names, effects.state, strict=True))
    own = [state[name] for name in own_state(effects.state_names)]
    return tensors_of(result), [*own, *tensors_of((args, kwargs))]


def on_copies(compiled: CompiledModel) -> CompiledModel:
    """The compiled model on a copy of its state, which nobody else sees."""
    effects = None if compiled.effects is None else compiled.effects.apart()
    trial = CompiledModel(
        compiled.signature,
        compiled.plan,
        compiled.report,
        compiled.ir,
        weights=compiled._weights,
        effects=effects,
    )
    vars(trial)["_versions"] = compiled._versions
    return trial


def copied(value: Any) -> Any:
    """``value`` with its tensors copied, each once."""
    made: dict[int, Tensor] = {}

    def copy_of(leaf: Any) -> Any:
        return made.setdefault(id(leaf), leaf.detach().clone()) if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(copy_of, value)


def tensors_of(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def to_double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
