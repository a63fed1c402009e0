"""The rules of batching, by family of ops.

Rules are for canonical ops. What an op computes for a sample does not depend on the other samples, so a rule
is exact up to the order of sums in products of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

from regraft.ir import Builder, Dim, Op, TensorType, Trait, Value
from regraft.rewrites.batching.call import Call, Rule
from regraft.rewrites.batching.indexing import INDEXING
from regraft.rewrites.batching.layers import LAYERS

Build = Callable[[Call], Sequence[Value]]


def obstacle(op: Op, varying: Set[Value]) -> str | None:
    """Why ``op`` cannot run for many samples at once when the operands in ``varying`` vary."""
    if op.regions or op.symbols:
        return f"{op.name} gives each sample another size" if op.symbols else f"{op.name} has regions"
    if op.has(Trait.RANDOM):
        return f"{op.name} draws random numbers, in an order of its own"
    rule = _rule(op)
    if rule is None:
        return f"{op.name} has no form for many samples"
    if not all(isinstance(value.type, TensorType) for value in (*op.operands, *op.results)):
        return f"{op.name} is ordered by a token"
    return rule.check(op, varying)


def batched(
    b: Builder, op: Op, new: Mapping[Value, Value], varying: Set[Value], size: Dim
) -> Sequence[Value]:
    """The results of ``op``, of which operands vary and which has no ``obstacle``, for ``size`` samples."""
    rule = _rule(op)
    assert rule is not None, f"{op.name} has no rule"
    results = rule.build(Call(b, op, size, new, varying))
    for old, made in zip(op.results, results, strict=True):
        made.hint = made.hint or old.hint
    return results


def _rule(op: Op) -> Rule | None:
    return _ELEMENTWISE if op.has(Trait.ELEMENTWISE) else RULES.get(op.name)


# -- elements ----------------------------------------------------------------------------------


def _elementwise(call: Call) -> Sequence[Value]:
    rank = max(value.tensor.rank for value in call.op.operands)
    new = {value: call.padded(value, rank) for value in call.op.operands}
    return Call(call.b, call.op, call.size, new, call.varying).again({})


_ELEMENTWISE = Rule(_elementwise)

# -- views -------------------------------------------------------------------------------------


def _view(call: Call) -> Sequence[Value]:
    return [call.view(call.of("self"), (call.size, *call.op.result.tensor.shape))]


def _permute(call: Call) -> Sequence[Value]:
    axes = call.op.attr("dims")
    return call.again({"dims": (0, *(axis % len(axes) + 1 for axis in axes))})


def _expand(call: Call) -> Sequence[Value]:
    shape = call.op.result.tensor.shape
    x = call.lifted(call.op.operand("self"), len(shape))
    return [call.b.aten.expand(x, (call.size, *shape))]


# -- along axes --------------------------------------------------------------------------------


def _along(attr: str) -> Rule:
    """An op whose attribute ``attr`` names axes of its first operand."""

    def build(call: Call) -> Sequence[Value]:
        rank, axes = call.op.operands[0].tensor.rank, call.op.attr(attr)
        if isinstance(axes, int):
            return call.again({attr: axes % rank + 1})
        listed = tuple(range(rank)) if axes in ((), None) else axes
        return call.again({attr: tuple(axis % rank + 1 for axis in listed)})

    def check(op: Op, _: Set[Value]) -> str | None:
        if op.operands[0].tensor.rank == 0:
            return f"{op.name} of a single number"
        return None

    return Rule(build, check)


def _place(call: Call) -> Sequence[Value]:
    """``argmax`` and ``argmin``, whose axis may be left out: the place is one in all elements then."""
    if call.op.attr("dim") is not None:
        return _along("dim").build(call)
    x = call.op.operand("self").tensor
    flat = call.view(call.new[call.op.operand("self")], (call.size, x.numel))
    (found,) = Call(call.b, call.op, call.size, {call.op.operand("self"): flat}, call.varying).again(
        {"dim": 1, "keepdim": False}
    )
    return [call.view(found, (call.size, *call.op.result.tensor.shape))]


def _joined(call: Call) -> Sequence[Value]:
    parts = call.op.variadic("tensors")
    axis = call.op.attr("dim") % call.op.result.tensor.rank + 1
    return [call.b.aten.cat(tuple(call.lifted(part) for part in parts), axis)]


def _joins_alike(op: Op, _: Set[Value]) -> str | None:
    ranks = {part.tensor.rank for part in op.variadic("tensors")}
    return None if len(ranks) == 1 else "a cat leaves an empty operand out"


def _all_of(name: str) -> Rule:
    """``aten.all`` and ``aten.any`` of everything."""

    def build(call: Call) -> Sequence[Value]:
        rank, x = call.op.operand("self").tensor.rank, call.of("self")
        if rank == 0:
            return [call.b.aten.ne.Scalar(x, 0)]
        return [call.b.create(f"{name}.dims", (x, tuple(range(1, rank + 1)), False)).result]

    return Rule(build)


def _through(call: Call) -> Sequence[Value]:
    """An op that looks at the last axes alone."""
    return call.again({})


_AXES = (
    "aten.sum.dim_IntList",
    "aten.mean.dim",
    "aten.amax",
    "aten.amin",
    "aten.var.correction",
    "aten.all.dim",
    "aten.all.dims",
    "aten.any.dim",
    "aten.any.dims",
    "aten.max.dim",
    "aten.min.dim",
    "aten.prod.dim_int",
    "aten.softmax.int",
    "aten.log_softmax.int",
    "aten.cumsum",
    "aten.sort.stable",
    "aten.topk",
    "aten.slice.Tensor",
)

RULES: Mapping[str, Rule] = {
    "aten.view": Rule(_view),
    "aten.permute": Rule(_permute),
    "aten.expand": Rule(_expand),
    "aten.flip": _along("dims"),
    **{name: _along("dim") for name in _AXES},
    "aten.argmax": Rule(_place, _along("dim").check),
    "aten.argmin": Rule(_place, _along("dim").check),
    "aten.all": _all_of("aten.all"),
    "aten.any": _all_of("aten.any"),
    "aten.cat": Rule(_joined, _joins_alike),
    "aten.tril": Rule(_through),
    "aten.triu": Rule(_through),
    "aten.constant_pad_nd": Rule(_through),
    **INDEXING,
    **LAYERS,
}
