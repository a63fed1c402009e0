"""Approximations that a user asks for: layers of lower rank, and sub-layers left out.

Both are plug-ins for ``compile(..., plugins=[...])``, which needs ``exactness=Exactness.APPROX(tolerance)``
then. What was done is told by the object: a compile with one of them is not cached.
"""

# torch's linear algebra and pytrees are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from regraft.compiler.arguments import checks_names
from regraft.compiler.cache import Uncacheable
from regraft.compiler.extensions import refuse
from regraft.compiler.materialise import Store
from regraft.errors import OptionError, no_such
from regraft.ir import Builder as OpBuilder
from regraft.ir import (
    CallSite,
    Constant,
    DType,
    Module,
    Op,
    Pass,
    PassContext,
    Recipe,
    Region,
    RewritePass,
    TensorType,
    Trait,
    Value,
    define,
    leaves,
)
from regraft.plugins import Plugin
from regraft.rewrites import fold, linear


def _principal_type(site: CallSite) -> TensorType:
    """``w[m, n]`` -> its ``rank`` leading right singular vectors, ``[rank, n]``."""
    weight = site.type("weight")
    return weight.with_shape((site.int("rank"), weight.shape[1]))


def _principal(weight: Tensor, rank: int) -> Tensor:
    return torch.linalg.svd(weight.double(), full_matrices=False).Vh[:rank].to(weight.dtype).contiguous()


#: An op of its own, so that ``refresh`` takes the factors of the new weights, at the same ranks.
PRINCIPAL = define(
    "approximate.principal_rows(Tensor weight, *, int rank)", _principal_type, Trait.PURE, eager=_principal
)


@dataclass(frozen=True)
class FactoredLayer:
    """What ``LowRank`` did to one weight.

    Fields:
        name: of the weight.
        shape, rank: before and after.
        error: of the weight, relative, in the Frobenius norm.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    error: float

    def __str__(self) -> str:
        rows, columns = self.shape
        share = self.rank * (rows + columns) / (rows * columns)
        size = f"{rows} x {columns} at rank {self.rank}, {share:.2f} of the size"
        return f"{self.name}: {size}, error {self.error:.2g}"


@dataclass(frozen=True)
class KeptLayer:
    """A linear layer that ``LowRank`` left as it is, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: as it was, {self.reason}"


class _Approximation:
    """A pass that changes values: only where the user allows that, and never from the cache."""

    name: str
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def require(self, context: PassContext) -> None:
        """Refuse to run where no approximation is allowed.

        Raises:
            OptionError: the compile's exactness is below ``APPROX``.
        """
        if context.exactness.rank < 2:
            raise OptionError(
                f"'{self.name}' changes what the model computes; allow it by "
                "compile(..., exactness=regraft.Exactness.APPROX(tolerance))",
                option="exactness",
                value=str(context.exactness),
                expected="Exactness.APPROX(tolerance)",
            )

    def approximates(self) -> bool:
        """Whether the last run changed values."""
        return True

    def fingerprint(self) -> NoReturn:
        raise Uncacheable(f"'{self.name}' tells what it did by its object")


class LowRank(Plugin):
    """Linear layers as two of lower rank, by the singular value decomposition of their weights.

    ``layers`` lists what was done, ``kept`` the layers that stay and why: one stays where its factors would
    be no smaller. Which of the two forms runs then is decided by cost, as for any layer of low rank. Where
    adapters of low rank change a layer, its base is approximated and the adapters stay beside it.
    """

    @checks_names
    def __init__(
        self,
        *,
        energy: float | None = None,
        rank: int | None = None,
        ranks: Mapping[str, int] | None = None,
    ) -> None:
        """
        Args:
            energy: keep so much of the sum of squared singular values of each weight, between 0 and 1.
            rank: the rank of every layer.
            ranks: the rank of each of these weights, by name; others stay.

        Raises:
            OptionError: not one of the three is given, or it cannot be this.
        """
        given = [each for each in (energy, rank, ranks) if each is not None]
        if len(given) != 1:
            raise OptionError("LowRank takes one of 'energy', 'rank' and 'ranks'")
        if energy is not None and not (_is_number(energy) and 0 < energy <= 1):
            refuse("energy", energy, "a number above 0, at most 1")
        if rank is not None:
            _check_rank("rank", rank)
        if ranks is not None and not (isinstance(ranks, Mapping) and ranks):  # pyright: ignore[reportUnnecessaryIsInstance]
            refuse("ranks", ranks, "a dict of ranks by the names of weights")
        for name, each in (ranks or {}).items():
            _check_rank(f"ranks['{name}']", each)
        factoring = _Factoring(energy, rank, ranks)
        object.__setattr__(self, "layers", factoring.layers)
        object.__setattr__(self, "kept", factoring.kept)
        passes = (*_beside_adapters(), factoring)
        super().__init__("low-rank", passes=tuple(("recover", each) for each in passes), ops=(PRINCIPAL,))

    layers: list[FactoredLayer]
    kept: list[KeptLayer]

    def __str__(self) -> str:
        return "\n".join(map(str, (*self.layers, *self.kept))) or "there is no linear layer with a weight"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_rank(option: str, rank: Any) -> None:
    if not (_is_int(rank) and rank > 0):
        refuse(option, rank, "a positive int")


def _beside_adapters() -> tuple[Pass, ...]:
    """Passes after which a layer that adapters of low rank change has its base by itself."""
    split = RewritePass("low-rank.adapters", "recover", (linear.LowRankEpilogue(),), after=("recover.sweep",))
    return split, fold.ConstantRecipes("low-rank.constants", "recover", after=(split.name,))


class _Factoring(_Approximation):
    name = "low-rank.factors"
    after = ("low-rank.constants",)

    def __init__(self, energy: float | None, rank: int | None, ranks: Mapping[str, int] | None) -> None:
        self.energy, self.rank, self.ranks = energy, rank, ranks
        self.layers: list[FactoredLayer] = []
        self.kept: list[KeptLayer] = []

    def run(self, module: Module, context: PassContext) -> bool:
        self.require(context)
        self.layers.clear()
        self.kept.clear()
        names = {each: self._name(each, name) for each, name in module.constants().items()}
        store = Store(module)
        every = (name for each in names for leaf in leaves(each) for name in leaf.names)
        self._check_names({*names.values(), *every})
        for function in module.functions.values():
            for const in [op for op in function.walk() if op.name == "rg.const"]:
                self._factor(const, names[const.attr("value")], store, context)
        self._check_layers()
        return bool(self.layers)

    def approximates(self) -> bool:
        return bool(self.layers)

    def _name(self, constant: Constant, name: str) -> str:
        """The name of the model's one weight that ``constant`` is computed from, or else its own.

        Of the names of a tied weight it is the one that has a rank.
        """
        found = {leaf for leaf in leaves(constant) if not leaf.is_added}
        if len(found) != 1:
            return name
        (leaf,) = found
        asked = [each for each in leaf.names if each in (self.ranks or ())]
        if len(asked) > 1:
            _no_rank(asked[1], f"'{asked[0]}' and '{asked[1]}' are one tied weight: give one of them a rank")
        return asked[0] if asked else leaf.name

    def _check_names(self, known: Iterable[str]) -> None:
        """Refuse ranks of weights that are not there."""
        unknown = [name for name in self.ranks or () if name not in known]
        if unknown:
            _no_rank(unknown[0], no_such("weight", unknown[0], known))

    def _check_layers(self) -> None:
        """Refuse ranks of what is no weight of a linear layer."""
        seen = {each.name for each in (*self.layers, *self.kept)}
        others = [name for name in self.ranks or () if name not in seen]
        if others:
            _no_rank(others[0], f"'{others[0]}' is the weight of no linear layer")

    def _factor(self, const: Op, name: str, store: Store, context: PassContext) -> None:
        if self.ranks is not None and name not in self.ranks:
            return
        if const.result.tensor.rank != 2:
            return
        linears = [u for u in const.result.users if u.name == "aten.linear" and _reads(u, const.result)]
        if not linears:
            if _is_changed(const.result):
                self.kept.append(KeptLayer(name, "since adapters change more of it than a low rank"))
            return
        found = self._singular(const, name, store)
        if isinstance(found, KeptLayer):
            self.kept.append(found)
            return
        rank = self._rank(name, found)
        rows, columns = store.tensor(const.attr("value")).shape
        if rank * (rows + columns) >= rows * columns:
            reason = f"since factors of rank {rank} would be no smaller than its {rows} x {columns}"
            self.kept.append(KeptLayer(name, reason))
            return
        _split(const, linears, rank, context, self.name)
        total = float(found.square().sum())
        lost = float(found[rank:].square().sum()) / total if total else 0.0
        self.layers.append(FactoredLayer(name, (rows, columns), rank, math.sqrt(lost)))

    def _singular(self, const: Op, name: str, store: Store) -> Tensor | KeptLayer:
        """The singular values of the weight, or why it stays."""
        dtype = const.result.tensor.dtype
        if dtype not in (DType.F32, DType.F64):
            return KeptLayer(name, f"since it is {dtype.value}: weights of f32 and f64 are factored")
        weight: Tensor = store.tensor(const.attr("value")).detach().double()
        if not bool(weight.isfinite().all()):
            return KeptLayer(name, "since not all of it is finite")
        return torch.linalg.svdvals(weight)

    def _rank(self, name: str, singular: Tensor) -> int:
        if self.ranks is not None:
            return self.ranks[name]
        if self.energy is None:
            assert self.rank is not None, "one of the three is given"
            return self.rank
        kept = singular.square().cumsum(0) / singular.square().sum()
        return int((kept < self.energy).sum()) + 1


def _no_rank(name: str, message: str) -> NoReturn:
    raise OptionError(message, option="ranks", value=repr(name), expected="names of linear layers' weights")


def _split(const: Op, linears: Sequence[Op], rank: int, context: PassContext, made_by: str) -> None:
    """Two layers of ``rank`` in the place of each of ``linears``, whose weight is ``const``."""
    rewriter = context.rewriter(made_by)
    op = rewriter.before(reduce(lambda a, b: a if a.comes_before(b) else b, linears))
    right = op.constant(_recipe(const, rank, context))
    left = op.aten.linear(const.result, right)
    for layer in linears:
        op = rewriter.before(layer)
        low = op.aten.linear(layer.operand("input"), right)
        rewriter.replace(layer, (op.aten.linear(low, left, layer.optional("bias")),))


def _is_changed(weight: Value) -> bool:
    """Whether calls add to ``weight`` what they know alone, as adapters do, and multiply by the sum."""
    sums = [weight]
    for value in sums:
        for use in value.uses:
            if use.op.name in ("aten.linear", "aten.matmul") and use.index == 1 and value is not weight:
                return True
            if use.op.name == "aten.add.Tensor" and use.op.result.tensor.shape == weight.tensor.shape:
                sums.append(use.op.result)
    return False


def _reads(linear: Op, weight: Value) -> bool:
    return linear.operand("weight") is weight


def _recipe(const: Op, rank: int, context: PassContext) -> Recipe:
    """The leading right singular vectors of a constant."""
    region = Region()
    op = OpBuilder(context.table, region)
    rows = op.call(PRINCIPAL.name, (op.constant(const.attr("value")),), {"rank": rank})
    op.create("cf.yield", ((rows,),))
    return Recipe(region, "principal_rows")


# -- leaving layers out ------------------------------------------------------------------------


class WithoutLayers(Plugin):
    """The model without some of its sub-layers (FinerCut, arXiv:2405.18218): what they give is zero.

    Where that is added to something, nothing of it is left.
    """

    @checks_names
    def __init__(self, names: Iterable[str]) -> None:
        """
        Args:
            names: paths of submodules, such as ``layers.3.mlp``; ``rank_layers`` finds the least important.

        Raises:
            OptionError: there are none, or they are no names.
        """
        given = _paths(names)
        if not given:
            refuse("names", names, "paths of submodules")
        super().__init__("without-layers", passes=(("canonicalize", _Removal(given)),))


def _paths(names: Any) -> tuple[str, ...]:
    """Paths of submodules, as a user gave them: one, or some."""
    given = (names,) if isinstance(names, str) else names
    if not isinstance(given, Iterable):
        refuse("names", names, "paths of submodules")
    paths: tuple[Any, ...] = tuple(given)
    if not all(isinstance(name, str) and name for name in paths):
        refuse("names", names, "paths of submodules")
    return paths


class _Removal(_Approximation):
    name = "without-layers.zeros"
    before = ("canonicalize.rewrite",)

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def run(self, module: Module, context: PassContext) -> bool:
        self.require(context)
        for name in self.names:
            self._remove(name, module, context)
        return True

    def _remove(self, name: str, module: Module, context: PassContext) -> None:
        inside = [op for op in module.main.body.ops if _is_of(op, name)]
        if not inside:
            paths = {op.loc.module for op in module.main.body.ops if op.loc.module}
            known = {*paths, *(p.rpartition(".")[0] for p in paths if "." in p)}
            _no_layer(name, no_such("layer", name, known))
        kept = set(inside)
        rewriter = context.rewriter(self.name)
        for op in inside:
            if not op.has(Trait.PURE):
                _no_layer(name, f"the layer '{name}' does more than give a value ({op.name} at {op.loc})")
            for result in op.results:
                leaving = [use.op for use in result.uses if use.op not in kept]
                if leaving:
                    zeros = _zeros(rewriter.before(op), result, name)
                    rewriter.replace_uses(result, zeros, lambda use: use.op not in kept)


def _no_layer(name: str, message: str) -> NoReturn:
    expected = "paths of submodules that only give values of floats"
    raise OptionError(message, option="names", value=repr(name), expected=expected)


def _is_of(op: Op, name: str) -> bool:
    return op.loc.module == name or op.loc.module.startswith(f"{name}.")


def _zeros(op: OpBuilder, value: Value, name: str) -> Value:
    """Zeros in the place of ``value``; negative ones, which change nothing that they are added to."""
    type = value.tensor
    if not type.dtype.is_float:
        _no_layer(name, f"the layer '{name}' gives values of {type.dtype.value}, which cannot be left out")
    return op.aten.full(type.shape, -0.0, dtype=type.dtype)


@dataclass(frozen=True)
class LayerChange:
    """How far the outputs are from the whole model's without ``name`` and those before it in the list."""

    name: str
    change: float


@checks_names
def rank_layers(
    model: nn.Module, examples: Iterable[Sequence[Any]], names: Iterable[str], *, count: int | None = None
) -> list[LayerChange]:
    """The sub-layers in the order in which to leave them out, by what that changes on calibration data.

    Greedily, as FinerCut: the one without which the outputs change least goes first, then the one that
    changes least besides. The change is the norm of the difference over the norm of the outputs.

    Args:
        model: in eval mode.
        examples: positional arguments of some calls.
        names: paths of the submodules to choose among, such as all attentions and MLPs.
        count: how many to leave out; all by default.

    Raises:
        OptionError: there is no such submodule, no example, or one with which the model cannot be called.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        refuse("model", model, "an nn.Module")
    if count is not None and not (_is_int(count) and count > 0):
        refuse("count", count, "a positive int, or None for all")
    calls, given = _calls(examples), _paths(names)
    candidates, known = list(dict.fromkeys(given)), dict(model.named_modules())
    for name in candidates:
        if name not in known:
            raise OptionError(no_such("layer", name, known))
    if not candidates or not calls:
        raise OptionError("rank_layers needs names of layers and examples to measure with")
    with torch.no_grad():
        whole = [_result(model, args, number) for number, args in enumerate(calls)]
        order: list[LayerChange] = []
        while candidates and (count is None or len(order) < count):
            gone = [each.name for each in order]
            changes = {name: _change(model, calls, whole, [*gone, name]) for name in candidates}
            best = min(candidates, key=lambda name: changes[name])
            candidates.remove(best)
            order.append(LayerChange(best, changes[best]))
    return order


def _calls(examples: Any) -> list[tuple[Any, ...]]:
    """The positional arguments of each example."""
    if isinstance(examples, (Tensor, str)) or not isinstance(examples, Iterable):
        refuse("examples", examples, "a list of calls, each a tuple of positional arguments: [(x,), ...]")
    calls: list[Any] = list(examples)
    for number, each in enumerate(calls):
        if not isinstance(each, (tuple, list)):
            refuse(f"examples[{number}]", each, "a tuple of positional arguments: (x,)")
    return [tuple(each) for each in calls]


def _result(model: nn.Module, args: Sequence[Any], number: int) -> list[Tensor]:
    """What the whole model gives for an example.

    Raises:
        OptionError: it raises, or gives no floats to compare.
    """
    try:
        found = _floats(model(*args))
    except Exception as error:
        message = f"the model cannot be called with examples[{number}]: {type(error).__name__}: {error}"
        raise OptionError(message) from error
    if not found:
        raise OptionError(f"with examples[{number}] the model gives no tensor of floats to compare")
    return found


def _change(
    model: nn.Module, calls: Sequence[tuple[Any, ...]], whole: Sequence[list[Tensor]], gone: Sequence[str]
) -> float:
    hooks = [model.get_submodule(name).register_forward_hook(_give_zeros) for name in gone]
    try:
        found = [_floats(model(*args)) for args in calls]
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [
        (a, b) for left, right in zip(found, whole, strict=True) for a, b in zip(left, right, strict=True)
    ]
    distance = sum(float((a - b).square().sum()) for a, b in pairs)
    scale = sum(float(b.square().sum()) for _, b in pairs)
    return math.sqrt(distance / scale) if scale else math.inf


def _give_zeros(module: nn.Module, args: Any, result: Any) -> Any:
    return pytree.tree_map(lambda leaf: torch.zeros_like(leaf) if isinstance(leaf, Tensor) else leaf, result)


def _floats(result: Any) -> list[Tensor]:
    leaves = (leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor))
    return [leaf.double() for leaf in leaves if leaf.is_floating_point()]
