"""``adapters=``: weights as functions of the adapter that applies.

A weight ``W`` that adapters change becomes ``W + L[i] @ R[i] + D[i]`` in the captured graph, where ``i`` is
the number of the adapter that applies (0 for none, whose factors are zeros), ``L`` and ``R`` are all
adapters' low-rank factors and ``D`` their full deltas. What a layer makes of such a weight is left to the
rewrites. Where one adapter always applies, there is no ``i``: the sum is one of constants.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from regraft.compiler.inner_values import InnerValue
from regraft.errors import OptionError, no_such, shown
from regraft.ir import Builder, DType, Function, Leaf, Module, Op, OpTable, TensorType, Value
from regraft.runtime import ACTIVE_ADAPTER

Adapter = Mapping[str, Any]

_PREFIX = "base_model.model."
#: ``layer.lora_A.weight`` as peft saves it, ``layer.lora_A.name.weight`` as its modules call it, loralib's
#: ``layer.lora_A``.
_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.(?:[^.]+\.)?weight)?")
_SCALING = "scaling"


@dataclass
class _Change:
    """What one adapter does to one weight: ``scaling * b @ a``, and ``delta``."""

    a: Tensor | None = None
    b: Tensor | None = None
    delta: Tensor | None = None


@dataclass(frozen=True)
class Adapters:
    """The adapters of a compile, checked as far as that goes without the model.

    Fields:
        names: of the adapters, in order.
        changes: weight -> number of the adapter, counted from one -> what it does.
        scaling: of each adapter's factors.
    """

    names: tuple[str, ...] = ()
    changes: Mapping[str, dict[int, _Change]] = field(default_factory=dict[str, dict[int, _Change]])
    scaling: tuple[float, ...] = ()

    @staticmethod
    def checked(given: Any) -> Adapters:
        """The adapters of a user's argument, None for none.

        Raises:
            OptionError: it is no dict of state dicts, or a state dict has half a pair of factors.
        """
        if given is None:
            return Adapters()
        if not isinstance(given, Mapping) or not given:
            raise _refused("adapters", given, "a dict of state dicts by adapter name")
        changes: dict[str, dict[int, _Change]] = {}
        scaling: list[float] = []
        for number, (name, state) in enumerate(given.items(), start=1):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            if not isinstance(name, str) or not name:
                raise _refused("adapters", name, "names of adapters that are strings")
            if not isinstance(state, Mapping):
                raise _refused(f"adapters['{name}']", state, "a state dict: tensors by name")
            scaling.append(_read(name, number, state, changes))  # pyright: ignore[reportUnknownArgumentType]
        return Adapters(tuple(given), changes, tuple(scaling))  # pyright: ignore[reportUnknownArgumentType]

    def only(self, name: Any) -> Adapters:
        """The adapter ``name`` without the others.

        Raises:
            OptionError: there is no such adapter.
        """
        if name not in self.names:
            given = name if isinstance(name, str) else shown(name)
            known = no_such("adapter", given, self.names) if self.names else "no adapters= are given"
            raise OptionError(f"'adapter' is {shown(name)}: {known}", option="adapter", value=shown(name))
        number = self.names.index(name) + 1
        changes = {weight: {1: by[number]} for weight, by in self.changes.items() if number in by}
        return Adapters((name,), changes, (self.scaling[number - 1],))


def _refused(option: str, value: Any, expected: str) -> OptionError:
    return OptionError(f"'{option}' cannot be this", option=option, value=shown(value), expected=expected)


def _read(name: str, number: int, state: Adapter, changes: dict[str, dict[int, _Change]]) -> float:
    """Note what the adapter ``name`` does in ``changes``; its scaling."""
    scaling = _number(state.get(_SCALING, 1.0))
    if scaling is None:
        option = f"adapters['{name}']['{_SCALING}']"
        raise _refused(option, state[_SCALING], "a finite number, lora_alpha / r")
    for key, tensor in state.items():
        if key == _SCALING:
            continue
        if not isinstance(key, str) or not isinstance(tensor, Tensor) or not tensor.is_floating_point():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise _refused(f"adapters['{name}']['{key}']", tensor, "a tensor of floats")
        found = _FACTOR.fullmatch(key.removeprefix(_PREFIX))
        weight = f"{found['layer']}.weight" if found else key.removeprefix(_PREFIX)
        change = changes.setdefault(weight, {}).setdefault(number, _Change())
        setattr(change, found["side"].lower() if found else "delta", tensor.detach())
    for weight, by_number in changes.items():
        change = by_number.get(number, _Change())
        if (change.a is None) != (change.b is None):
            there, missing = ("lora_A", "lora_B") if change.b is None else ("lora_B", "lora_A")
            layer = weight.removesuffix(".weight")
            raise OptionError(f"the adapter '{name}' has '{layer}.{there}' and no '{layer}.{missing}'")
    return scaling


def _number(value: Any) -> float | None:
    """The finite number that ``value`` is, or a tensor of no axes holds; None for anything else."""
    held: Any = value.item() if isinstance(value, Tensor) and value.dim() == 0 else value
    is_number = isinstance(held, Real) and held is not True and held is not False
    return float(held) if is_number and math.isfinite(held) else None


# -- the graph ---------------------------------------------------------------------------------


def insert_adapters(
    module: Module, adapters: Adapters, table: OpTable, model: Any, *, switched: bool = True
) -> str | None:
    """Make each adapted weight of the captured ``module`` depend on the adapter that applies.

    ``model`` tells which layers hold their weights as ``[out, in]``. Without ``switched`` there is one
    adapter, which always applies. Returns a note for the report.

    Raises:
        OptionError: an adapter has a tensor for a weight that is not there, or of the wrong shape.
    """
    if not adapters.names:
        return None
    function = module.main
    number = InnerValue(_active_number(function), table) if switched else None
    constants = {n: c for c in module.constants() if isinstance(c, Leaf) for n in (c.name, *c.names)}
    bytes_added = 0
    _check_weights(adapters, constants)
    for weight, by_number in adapters.changes.items():
        leaf = constants[weight]
        stacks = _stacks(weight, leaf, by_number, adapters, model)
        bytes_added += sum(stack.nbytes for stack in stacks.values())
        leaves = {kind: _leaf(f"adapters:{weight}.{kind}", leaf, stacks[kind], switched) for kind in stacks}
        for const in [op for op in function.walk() if op.name == "rg.const" and op.attr("value") is leaf]:
            assert const.parent is not None
            _adapt(const, leaves, number and number.at(const.parent), table)
    if not switched:
        return f"the adapter '{adapters.names[0]}' is merged into {len(adapters.changes)} weights"
    counts = f"{len(adapters.names)} adapters over {len(adapters.changes)} weights"
    return f"{counts}, {bytes_added / 1e6:.1f} MB; set_adapter switches between them, in a file its input"


def _check_weights(adapters: Adapters, constants: Mapping[str, Leaf]) -> None:
    """Refuse names of weights that are not there, and two of one adapter for one tied weight."""
    seen: dict[tuple[Leaf, int], str] = {}
    for weight, by_number in adapters.changes.items():
        if weight not in constants:
            owner = adapters.names[min(by_number) - 1]
            raise OptionError(f"the adapter '{owner}': {no_such('weight', weight, constants)}")
        for number in by_number:
            other = seen.setdefault((constants[weight], number), weight)
            if other != weight:
                name = adapters.names[number - 1]
                raise OptionError(
                    f"the adapter '{name}' has changes of '{other}' and '{weight}', which are one tied "
                    "weight: either name stands for both, give one of them"
                )


def _active_number(function: Function) -> Value:
    """The number of the adapter that applies, as a new state of ``function``."""
    active = torch.zeros(1, dtype=torch.int64)
    leaf = Leaf(ACTIVE_ADAPTER, TensorType(DType.I64, (1,)), active, is_added=True)
    function.state = (*function.state, leaf)
    return function.body.add_arg(leaf.type, "active_adapter")


def _stacks(
    name: str, leaf: Leaf, by_number: Mapping[int, _Change], adapters: Adapters, model: Any
) -> dict[str, Tensor]:
    """All adapters' factors and deltas of one weight, the first of each being zeros."""
    shape, dtype = tuple(leaf.storage.shape), leaf.storage.dtype
    count = len(adapters.names) + 1
    factors = {n: c for n, c in by_number.items() if c.a is not None}
    stacks: dict[str, Tensor] = {}
    if factors:
        is_linear = any(_is_linear(model, each.removesuffix(".weight")) for each in {name, *leaf.names})
        flipped = _is_flipped(name, shape, factors, adapters, is_linear)
        rank = max(c.a.shape[0] for c in factors.values() if c.a is not None)
        stacks["left"] = torch.zeros(count, shape[0], rank, dtype=dtype)
        stacks["right"] = torch.zeros(count, rank, shape[1], dtype=dtype)
        for n, change in factors.items():
            assert change.a is not None
            assert change.b is not None
            b = change.b * adapters.scaling[n - 1]
            left, right = (change.a.T, b.T) if flipped else (b, change.a)
            own = change.a.shape[0]
            stacks["left"][n, :, :own], stacks["right"][n, :own] = left.to(dtype), right.to(dtype)
    deltas = {n: c.delta for n, c in by_number.items() if c.delta is not None}
    if deltas:
        stacks["delta"] = torch.zeros(count, *shape, dtype=dtype)
        for n, delta in deltas.items():
            if tuple(delta.shape) != shape:
                raise _misfit(adapters.names[n - 1], name, delta, f"{list(shape)}, as the weight")
            stacks["delta"][n] = delta.to(dtype)
    return stacks


def _is_flipped(
    name: str, shape: tuple[int, ...], factors: Mapping[int, _Change], adapters: Adapters, is_linear: bool
) -> bool:
    """Whether the weight is held as ``[in, out]``: GPT-2's ``Conv1D`` does, an ``nn.Linear`` does not.

    Raises:
        OptionError: the factors do not fit, or a square weight leaves it open.
    """
    for n, change in factors.items():
        assert change.a is not None
        assert change.b is not None
        if change.a.dim() != 2 or change.b.dim() != 2 or change.a.shape[0] != change.b.shape[1]:
            raise _misfit(
                adapters.names[n - 1], name, change.a, f"[rank, in] beside a B of {list(change.b.shape)}"
            )
        made = (change.b.shape[0], change.a.shape[1])
        if made not in (shape, *(() if is_linear else (shape[::-1],))):
            raise _misfit(
                adapters.names[n - 1], name, change.a, f"[rank, in] and [out, rank] of {list(shape)}"
            )
    change = next(iter(factors.values()))
    assert change.a is not None
    assert change.b is not None
    if is_linear or shape[0] != shape[1]:
        return (change.b.shape[0], change.a.shape[1]) != shape
    raise OptionError(
        f"'{name}' is square and of no nn.Linear, so that nothing says which axis is the input; give the "
        "product of the factors as a delta, in the weight's own layout"
    )


def _is_linear(model: Any, path: str) -> bool:
    try:
        return isinstance(model, nn.Module) and isinstance(model.get_submodule(path), nn.Linear)
    except AttributeError:
        return False


def _misfit(adapter: str, weight: str, tensor: Tensor, expected: str) -> OptionError:
    return OptionError(
        f"the adapter '{adapter}' does not fit the weight '{weight}'",
        option=f"adapters['{adapter}']",
        value=f"a tensor of {list(tensor.shape)}",
        expected=expected,
    )


def _leaf(name: str, weight: Leaf, stack: Tensor, switched: bool) -> Leaf:
    """All of ``stack`` as a constant, or the one adapter's part of it where none is switched to."""
    held = stack if switched else stack[1]
    return Leaf(name, TensorType(weight.type.dtype, tuple(held.shape)), held, is_added=True)


def _adapt(const: Op, leaves: Mapping[str, Leaf], number: Value | None, table: OpTable) -> None:
    """Let the users of ``const`` read ``W + L[i] @ R[i] + D[i]``, or ``W + L @ R + D`` without a number."""
    uses = list(const.result.uses)
    if not uses:
        return
    first = reduce(lambda a, b: a if a.comes_before(b) else b, const.result.users)
    assert const.parent is not None
    op = Builder(table, const.parent, first, const.loc)

    def picked(kind: str) -> Value:
        factors = op.constant(leaves[kind])
        if number is None:
            return factors
        return op.aten.view(op.aten.index_select(factors, 0, number), factors.tensor.shape[1:])

    adapted = const.result
    if "left" in leaves:
        adapted = op.aten.add.Tensor(adapted, op.aten.matmul(picked("left"), picked("right")))
    if "delta" in leaves:
        adapted = op.aten.add.Tensor(adapted, picked("delta"))
    for use in uses:
        use.op.set_operand(use.index, adapted)


def changes_of(adapters: Adapters, number: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the adapter of that ``number`` adds to those of ``weights`` that it changes, in fp64."""
    changes: dict[str, Tensor] = {}
    for name, by_number in adapters.changes.items():
        change = by_number.get(number)
        if change is None:
            continue
        total = torch.zeros(weights[name].shape, dtype=torch.float64)
        if change.a is not None and change.b is not None:
            product = adapters.scaling[number - 1] * (change.b.double() @ change.a.double())
            total += product if product.shape == total.shape else product.T  # a square one is an nn.Linear's
        if change.delta is not None:
            total += change.delta.double()
        changes[name] = total
    return changes
