"""Ops that this back end computes as several simpler ones, taken apart before kernels are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.backends.tvm import attention
from regraft.backends.tvm.attention import groups_of, scale_of
from regraft.backends.tvm.bodies import bodies
from regraft.backends.tvm.cpu import Cpu
from regraft.backends.tvm.problems import template_of
from regraft.ir import OPS, DType, Function, Op, Region, Rewriter, Trait, Value, clone_op, dims


def _always(op: Op) -> str | None:
    return None


def _every_use(op: Op, cpu: Cpu) -> bool:
    return True


def _no_template(op: Op, cpu: Cpu) -> bool:
    return template_of(op, cpu) is None


@dataclass(frozen=True)
class Expansion:
    """How an op is taken apart.

    Fields:
        build: ``build(builder, op)`` gives the values that replace its results.
        check: why this use of the op cannot be lowered, or None.
        applies: whether this use is taken apart on a CPU; one that is not has a kernel of its own.
    """

    build: Callable[[Any, Op], Value | Sequence[Value]]
    check: Callable[[Op], str | None] = _always
    applies: Callable[[Op, Cpu], bool] = _every_use


def expand(function: Function, cpu: Cpu) -> None:
    """Take apart what has no kernel of its own on ``cpu``, in place, until nothing is left to."""
    for body in bodies(function):
        _expand(body, cpu)


def _expand(body: Region, cpu: Cpu) -> None:
    rewriter = Rewriter(OPS, "tvm")
    pending = list(body.ops)
    while pending:
        op = pending.pop(0)
        expansion = EXPANSIONS.get(op.name)
        if expansion is None or not expansion.applies(op, cpu):
            continue
        builder = rewriter.before(op)
        made = expansion.build(builder, op)
        rewriter.replace(op, [made] if isinstance(made, Value) else made)
        pending = [new for new in builder.made if new.parent is not None] + pending


def lift_constants(function: Function) -> None:
    """Give scans the constants in their trips as fixed values, in place: a kernel reads what it is given."""
    rewriter = Rewriter(OPS, "tvm")
    for op in [op for body in bodies(function) for op in body.ops if op.name == "cf.scan"]:
        constants = [inner for inner in op.regions[0].ops if inner.has(Trait.CONSTANT_LIKE)]
        if constants:
            builder = rewriter.before(op)
            given = [builder.insert(clone_op(inner, {})).result for inner in constants]
            lists = (op.variadic("carried"), op.variadic("scanned"), (*op.variadic("fixed"), *given))
            body = _without_constants(op.regions[0])
            rewriter.replace(op, builder.create("cf.scan", lists, regions=(body,)).results)


def _without_constants(region: Region) -> Region:
    """A copy of ``region`` that takes its constants as its last arguments."""
    body, mapping = Region(), dict[Value, Value]()
    for argument in region.args:
        mapping[argument] = body.add_arg(argument.type, argument.hint)
    for op in region.ops:
        if op.has(Trait.CONSTANT_LIKE):
            mapping[op.result] = body.add_arg(op.result.type, op.result.hint)
    for op in region.ops:
        if not op.has(Trait.CONSTANT_LIKE):
            body.append(clone_op(op, mapping))
    return body


def _feed_forward(b: Any, op: Op) -> Any:
    assert op.definition.decompose is not None
    return op.definition.decompose(b, op)


# -- products ----------------------------------------------------------------------------------


def _linear(b: Any, op: Op) -> Value:
    x, weight, bias = op.operand("input"), op.operand("weight"), op.optional("bias")
    product = b.aten.matmul(x, b.aten.permute(weight, (1, 0)) if weight.tensor.rank == 2 else weight)
    return product if bias is None else b.aten.add.Tensor(product, bias)


def _has_vector(op: Op, cpu: Cpu) -> bool:
    return op.operand("self").tensor.rank == 1 or op.operand("other").tensor.rank == 1


def _matmul(b: Any, op: Op) -> Value:
    x, y = op.operand("self"), op.operand("other")
    left = b.aten.view(x, (1, *x.tensor.shape)) if x.tensor.rank == 1 else x
    right = b.aten.view(y, (*y.tensor.shape, 1)) if y.tensor.rank == 1 else y
    return b.aten.view(b.aten.matmul(left, right), op.result.tensor.shape)


# -- attention ---------------------------------------------------------------------------------


def _attention(b: Any, op: Op) -> Value:
    """Scores, their softmax, the weighted values; heads that share keys are a batch beside each other."""
    query, key, value = (op.operand(name) for name in ("query", "key", "value"))
    mask = op.optional("attn_mask")
    out = op.result.tensor.shape
    groups = groups_of(op)
    if groups is not None:
        query, key, value = _grouped(b, query, groups), _alone(b, key), _alone(b, value)
        mask = None if mask is None else _mask_of_groups(b, mask, groups)
    rank = key.tensor.rank
    flipped = b.aten.permute(key, (*range(rank - 2), rank - 1, rank - 2))
    scores = b.aten.mul.Scalar(b.aten.matmul(query, flipped), scale_of(op))
    weights = _weights(b, op, scores, mask)
    return _as(b, b.aten.matmul(weights, value), out)


def _in_parts(op: Op, cpu: Cpu) -> bool:
    return not attention.is_one_kernel(op)


def _weights(b: Any, op: Op, scores: Value, mask: Value | None) -> Value:
    last = scores.tensor.rank - 1
    dtype = scores.tensor.dtype
    if mask is None and not op.attr("is_causal"):
        return b.aten.softmax.int(scores, last)
    nothing = b.aten.full((), float("-inf"), dtype=dtype)
    if op.attr("is_causal"):
        rows, columns = scores.tensor.shape[-2:]
        row = b.aten.view(b.aten.arange.start_step(0, rows, 1, dtype=DType.I64), (rows, 1))
        column = b.aten.arange.start_step(0, columns, 1, dtype=DType.I64)
        scores = b.aten.where.self(b.aten.ge.Tensor(row, column), scores, nothing)
    if mask is None:
        return b.aten.softmax.int(scores, last)
    is_choice = mask.tensor.dtype == DType.BOOL
    scores = b.aten.where.self(mask, scores, nothing) if is_choice else b.aten.add.Tensor(scores, mask)
    # A row that sees nothing weighs nothing, where its softmax is nan.
    sees = b.aten.ne.Scalar(b.aten.amax(scores, (last,), True), float("-inf"))
    return b.aten.where.self(sees, b.aten.softmax.int(scores, last), b.aten.full((), 0.0, dtype=dtype))


def _grouped(b: Any, x: Value, groups: tuple[Any, Any]) -> Value:
    shape = x.tensor.shape
    return b.aten.view(x, (*shape[:-3], *groups, *shape[-2:]))


def _alone(b: Any, x: Value) -> Value:
    shape = x.tensor.shape
    return b.aten.view(x, (*shape[:-2], 1, *shape[-2:]))


def _mask_of_groups(b: Any, mask: Value, groups: tuple[Any, Any]) -> Value:
    if mask.tensor.rank < 3:
        return mask
    return _alone(b, mask) if dims.eq(mask.tensor.shape[-3], 1) is True else _grouped(b, mask, groups)


def _as(b: Any, x: Value, shape: tuple[Any, ...]) -> Value:
    return x if x.tensor.shape == shape else b.aten.view(x, shape)


EXPANSIONS: Mapping[str, Expansion] = {
    "rg.ffn": Expansion(_feed_forward, applies=_no_template),
    "aten.linear": Expansion(_linear, applies=_no_template),
    "aten.matmul": Expansion(_matmul, applies=_has_vector),
    "aten.scaled_dot_product_attention": Expansion(_attention, attention.refusal, _in_parts),
}
