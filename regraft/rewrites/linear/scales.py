"""Constant factors and summands beside a layer, inside its weight and bias.

Layer scales (Touvron et al. 2021, arXiv:2103.17239), weights of paths, factors of depth and width, scaled
embeddings: each is one op over the activations that a recipe over the weight saves. No factor passes a
nonlinearity, and none moves into a weight that something else reads.
"""

from __future__ import annotations

from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    DType,
    Exactness,
    Example,
    Match,
    Op,
    PatternBuilder,
    Rewrite,
    Value,
    Var,
)
from regraft.rewrites.linear.layers import (
    Factor,
    along,
    is_moderate,
    layer_of,
    scaled,
    times,
    why_not_changed,
    why_not_scaled,
)
from regraft.rewrites.support import is_along, is_known

_MOVES = ("aten.view", "aten.permute", "aten.slice.Tensor", "aten.expand")
_MAX_MOVES = 6


class ScaledLayer(Rewrite):
    """linear(x, W, b) * s = linear(x, W * s, b * s), also of convolutions and embeddings.

    ``s`` is a number or has one for each output. A number passes what only moves elements.
    """

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, y: Var, factor: Var) -> Any:
        return op.one_of(
            op.aten.mul.Scalar(y, op.attr("number")),
            op.aten.div.Scalar(y, op.attr("divisor")),
            op.aten.mul.Tensor(y, factor),
        )

    def check(self, m: Match) -> Declined | None:
        factor = _factor(m)
        if factor is None:
            return m.decline("the divisor is no number to divide a weight by", m.y)
        moves, maker = _maker(m.y)
        if maker is None:
            return m.decline("the factor's neighbour is no layer, or is used elsewhere", m.y)
        if isinstance(factor, Value) and (moves or factor.tensor.rank > m.y.tensor.rank):
            return m.decline("elements move between the layer and a factor that is no number", m.y)
        found = why_not_scaled(maker, factor)
        return None if found is None else m.decline(found.reason, found.culprit)

    def rewrite(self, op: Builder, m: Match) -> Value:
        factor = _factor(m)
        moves, maker = _maker(m.y)
        assert maker is not None
        assert factor is not None
        value = scaled(op, maker, factor)
        for move in reversed(moves):
            value = op.create(move.name, (), move.arguments() | {"self": value}).result
        return value


def _factor(m: Match) -> Factor | None:
    if m.optional("factor") is not None:
        return m.factor
    number = m.attrs.get("number")
    if number is None:
        divisor = m.attr("divisor")
        number = 1 / divisor if is_moderate(divisor) else None
    return number


def _maker(value: Value) -> tuple[list[Op], Op | None]:
    """The layer that makes ``value``, nothing else reading it, with the moves between, last first."""
    moves: list[Op] = []
    while value.op is not None and len(value.uses) == 1:
        if layer_of(value.op) is not None:
            return moves, value.op
        if value.op.name not in _MOVES or len(moves) == _MAX_MOVES:
            break
        moves.append(value.op)
        value = value.op.operand("self")
    return moves, None


class DivisionByConstant(Rewrite):
    """x / c = x * (1 / c), for a constant tensor c beside a layer, which can then take the factor in.

    Rounds twice, where 49 / 49 may come out below 1: nothing else may read the quotient that rounds it down.
    """

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, divisor: Var) -> Any:
        return op.aten.div.Tensor(x, divisor)

    def check(self, m: Match) -> Declined | None:
        if not is_known(m.divisor) or is_known(m.x):
            return m.decline("the divisor alone must be constant", m.divisor)
        if {v.tensor.dtype for v in (m.x, m.divisor)} not in ({DType.F32}, {DType.F64}):
            return m.decline("the inverse would be rounded to 16 bits once more", m.divisor)
        if _maker(m.x)[1] is None and not _ends_in_layers(m.root.result):
            return m.decline("no layer makes the dividend, and others than layers read the quotient", m.x)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.mul.Tensor(m.x, op.aten.reciprocal(m.divisor))


def _ends_in_layers(value: Value, depth: int = 4) -> bool:
    """Whether layers alone read ``value``, perhaps after constant factors and summands."""

    def is_taken(user: Op) -> bool:
        layer = layer_of(user)
        if layer is not None:
            return user.operand(layer.input) is value
        if user.name not in ("aten.mul.Tensor", "aten.add.Tensor", "aten.sub.Tensor") or depth == 0:
            return False
        others = [operand for operand in user.operands if operand is not value]
        return len(others) == 1 and is_known(others[0]) and _ends_in_layers(user.result, depth - 1)

    return all(map(is_taken, value.users))


class ScaledInput(Rewrite):
    """linear(x * s, W, b) = linear(x, W * s, b), where only linear layers read x * s."""

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, factor: Var, weight: Var, bias: Var) -> Any:
        product = op.one_of(
            op.shared(op.aten.mul.Scalar(x, op.attr("number"))),
            op.shared(op.aten.div.Scalar(x, op.attr("divisor"))),
            op.shared(op.aten.mul.Tensor(x, factor)),
        )
        return op.aten.linear(product, weight, op.optional(bias))

    def check(self, m: Match) -> Declined | None:
        factor, product = _factor(m), m.root.operand("input")
        if factor is None or (not isinstance(factor, Value) and not is_moderate(factor)):
            return m.decline("the factor might overflow or vanish in the weight", product)
        if m.x.type != product.type:
            return m.decline("the factor enlarges the input", m.x)
        if isinstance(factor, Value) and (not is_known(factor) or not is_along(factor, product, -1)):
            return m.decline("the factor is not a constant number a feature", factor)
        return _only_layers_read(m, product)

    def rewrite(self, op: Builder, m: Match) -> Value:
        factor = _factor(m)
        assert factor is not None
        return op.aten.linear(m.x, times(op, m.weight, along(op, factor, 2, 1)), m.optional("bias"))


class ShiftedInput(Rewrite):
    """linear(x + c, W, b) = linear(x, W, b + W c), where only linear layers read x + c."""

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, shift: Var, weight: Var, bias: Var) -> Any:
        total = op.shared(op.aten.add.Tensor(x, shift))
        return op.aten.linear(total, weight, op.optional(bias))

    def check(self, m: Match) -> Declined | None:
        total = m.root.operand("input")
        if m.x.type != total.type:
            return m.decline("the summand enlarges the input", m.x)
        if not is_known(m.shift) or not is_along(m.shift, total, -1):
            return m.decline("the summand is not a constant number a feature", m.shift)
        if m.shift.tensor.numel != m.weight.tensor.shape[1]:
            return m.decline("the summand is not a number for each feature", m.shift)
        return _only_layers_read(m, total)

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.linear(m.x, m.weight, shifted_bias(op, m.weight, m.shift, m.optional("bias")))


def shifted_bias(op: Builder, weight: Value, shift: Value, bias: Value | None) -> Value:
    """``b + W c``"""
    image = op.aten.linear(op.aten.view(shift, (1, shift.tensor.numel)), weight, bias)
    return op.aten.view(image, (weight.tensor.shape[0],))


def _only_layers_read(m: Match, value: Value) -> Declined | None:
    """That every reader of ``value`` is a linear layer whose weight may change; else the op stays anyway."""
    for user in value.users:
        if user.name != "aten.linear" or layer_of(user) is None or user.operand("input") is not value:
            return m.decline(f"{user.name} reads it as well", value)
        weight, bias = user.operand("weight"), user.optional("bias")
        if weight.tensor.rank != 2 or (bias is not None and not is_known(bias)):
            return m.decline("a reader's weight is no matrix, or its bias not constant", user.result)
        found = why_not_changed(weight)
        if found is not None:
            return m.decline(found.reason, found.culprit)
    return None


class TwinNorm(Rewrite):
    """linear(norm(x, g, c), W, b) = linear(norm(x), W * g, b + W c), where x has another norm of its own.

    Without their scales the two are one op: parallel branches each behind a norm (GPT-NeoX) normalise once.
    A norm alone keeps its scale, by which its kernel multiplies anyway.
    """

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, scale: Var, shift: Var, weight: Var, bias: Var) -> Any:
        shape, eps = op.attr("shape"), op.attr("eps")
        normal = op.one_of(
            op.shared(
                op.aten.layer_norm(
                    x, shape, op.optional(scale), op.optional(shift), eps, op.attr("cudnn_enable")
                )
            ),
            op.shared(op.aten.rms_norm(x, shape, op.optional(scale), eps)),
        )
        return op.aten.linear(normal, weight, op.optional(bias))

    def check(self, m: Match) -> Declined | None:
        normal = m.root.operand("input")
        own = normal.op
        assert own is not None
        if m.optional("scale") is None and m.optional("shift") is None:
            return m.decline("the norm has no scale", normal)
        if len(m.attr("shape")) != 1:
            return m.decline("the norm is not over the features alone", normal)
        twins = [op for op in m.x.users if op is not own and _is_twin(op, own)]
        if not twins:
            return m.decline("its input has no other norm of the same kind", m.x)
        for each in (own, *twins):
            found = _why_not_bare(m, each)
            if found is not None:
                return found
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        own = m.root.operand("input").op
        assert own is not None
        plain = op.create(own.name, (), own.arguments() | dict.fromkeys(_parameters(own))).result
        weight, bias = m.weight, m.optional("bias")
        if m.optional("shift") is not None:
            bias = shifted_bias(op, weight, m.shift, bias)
        if m.optional("scale") is not None:
            weight = times(op, weight, along(op, m.scale, 2, 1))
        return op.aten.linear(plain, weight, bias)


def _is_twin(op: Op, own: Op) -> bool:
    """Whether the two norms differ in scale and shift alone."""
    return op.name == own.name and op.attrs == own.attrs and op.operand("input") is own.operand("input")


def _parameters(norm: Op) -> list[str]:
    return [name for name in ("weight", "bias") if name in norm.arguments()]


def _why_not_bare(m: Match, norm: Op) -> Declined | None:
    """Why ``norm`` cannot give its scale and shift to its readers, if it cannot."""
    given = [v for v in map(norm.optional, _parameters(norm)) if v is not None]
    for value in given:
        if not is_known(value):
            return m.decline("a norm's scale is not constant", value)
    return _only_layers_read(m, norm.result) if given else None


def _linear_scaled(op: Builder, x: Value, w: Value, b: Value, s: Value) -> Value:
    return op.aten.mul.Tensor(op.aten.linear(x, w, b), s)


def _conv_scaled(op: Builder, x: Value, w: Value, b: Value, s: Value) -> Value:
    return op.aten.mul.Tensor(op.aten.conv2d(x, w, b, (1, 1), (1, 1), (1, 1), 2), s)


def _heads_scaled(op: Builder, x: Value, w: Value) -> Value:
    """A query's scale behind the split into heads."""
    batch, length, _ = x.tensor.shape
    heads = op.aten.view(op.aten.linear(x, w), (batch, length, 2, 3))
    return op.aten.mul.Scalar(op.aten.permute(heads, (0, 2, 1, 3)), 0.25)


def _tied(op: Builder, ids: Value, table: Value) -> tuple[Value, Value]:
    row = op.aten.mul.Scalar(op.aten.embedding(table, ids), 4.0)
    return row, op.aten.linear(row, table)


def _through_relu(op: Builder, x: Value, w: Value) -> Value:
    return op.aten.mul.Scalar(op.aten.relu(op.aten.linear(x, w)), 0.5)


def _read_twice(op: Builder, x: Value, w: Value) -> tuple[Value, Value]:
    y = op.aten.linear(x, w)
    return op.aten.mul.Scalar(y, 0.5), y


DivisionByConstant.examples = (
    Example(
        lambda op, x, c, w: op.aten.linear(op.aten.div.Tensor(x, _far_from_zero(op, c)), w),
        ("f32[N, 8]", "f32[8]", "f32[5, 8]"),
        constants=(1, 2),
    ),
    Example(
        lambda op, x, w, c: op.aten.relu(op.aten.div.Tensor(op.aten.linear(x, w), _far_from_zero(op, c))),
        ("f32[3, 8]", "f32[5, 8]", "f32[5]"),
        constants=(1, 2),
    ),
)
DivisionByConstant.counterexamples = (
    Example(lambda op, x, c: op.aten.div.Tensor(x, c), ("f32[3, 8]", "f32[8]"), reason="must be constant"),
    Example(
        lambda op, x, c: op.aten.floor(op.aten.div.Tensor(x, c)),
        ("f32[3, 8]", "f32[8]"),
        constants=(1,),
        reason="others than layers read",
    ),
    Example(
        lambda op, x, c, w: _also_returned(op, op.aten.div.Tensor(x, c), w),
        ("f32[3, 8]", "f32[8]", "f32[5, 8]"),
        constants=(1, 2),
        reason="others than layers read",
    ),
    Example(
        lambda op, x, c: op.aten.div.Tensor(c, x),
        ("f32[3, 8]", "f32[8]"),
        constants=(1,),
        reason="must be constant",
    ),
    Example(
        lambda op, x, c: op.aten.div.Tensor(x, c),
        ("bf16[3, 8]", "bf16[8]"),
        constants=(1,),
        reason="rounded to 16 bits",
    ),
)


def _also_returned(op: Builder, quotient: Value, w: Value) -> tuple[Value, Value]:
    return op.aten.linear(quotient, w), quotient


def _far_from_zero(op: Builder, c: Value) -> Value:
    return op.aten.add.Scalar(op.aten.abs(c), 0.5)


ScaledLayer.examples = (
    Example(_linear_scaled, ("f32[B, S, 8]", "f32[6, 8]", "f32[6]", "f32[6]"), constants=(1, 2, 3)),
    Example(_linear_scaled, ("f32[N, 8]", "f32[6, 8]", "f32[6]", "f32[1]"), constants=(1, 2, 3)),
    Example(
        _conv_scaled, ("f32[N, 4, 5, 5]", "f32[6, 2, 3, 3]", "f32[6]", "f32[6, 1, 1]"), constants=(1, 2, 3)
    ),
    Example(_heads_scaled, ("f32[B, S, 8]", "f32[6, 8]"), constants=(1,)),
    Example(lambda op, x, w: op.aten.div.Scalar(op.aten.linear(x, w), 3.0), ("f32[N, 8]", "f32[6, 8]"), (1,)),
    Example(
        lambda op, ids, table: op.aten.mul.Scalar(op.aten.embedding(table, ids), 4.0),
        ("i64[N]", "f32[6, 8]"),
        constants=(1,),
    ),
)
ScaledLayer.counterexamples = (
    Example(_through_relu, ("f32[N, 8]", "f32[6, 8]"), constants=(1,), reason="neighbour is no layer"),
    Example(_read_twice, ("f32[N, 8]", "f32[6, 8]"), constants=(1,), reason="used elsewhere"),
    Example(
        lambda op, ids, table: op.aten.mul.Scalar(op.aten.embedding(table, ids), 4.0),
        ("i64[N]", "f32[524289, 8]"),
        constants=(1,),
        reason="the table is large",
    ),
    Example(_tied, ("i64[N]", "f32[6, 8]"), constants=(1,), reason="the weight is shared"),
    Example(
        _linear_scaled,
        ("f32[5, 8]", "f32[6, 8]", "f32[6]", "f32[5, 1]"),
        constants=(1, 2, 3),
        reason="not one number an output",
    ),
    Example(
        lambda op, x, w: op.aten.mul.Scalar(op.aten.linear(x, w), 0.5),
        ("bf16[N, 8]", "bf16[6, 8]"),
        constants=(1,),
        reason="rounded to 16 bits",
    ),
    Example(
        lambda op, x, w: op.aten.mul.Scalar(op.aten.linear(x, w), 1e-30),
        ("f32[N, 8]", "f32[6, 8]"),
        constants=(1,),
        reason="might overflow or vanish",
    ),
)


def _inputs_scaled(op: Builder, x: Value, s: Value, v: Value, w: Value) -> tuple[Value, Value]:
    y = op.aten.mul.Tensor(x, s)
    return op.aten.linear(y, v), op.aten.linear(y, w)


def _also_added(op: Builder, x: Value, s: Value, w: Value) -> Value:
    y = op.aten.mul.Tensor(x, s)
    return op.aten.add.Tensor(op.aten.linear(y, w), y)


ScaledInput.examples = (
    Example(
        _inputs_scaled, ("f32[B, S, 8]", "f32[8]", "f32[6, 8]", "f32[5, 8]"), constants=(1, 2, 3), count=2
    ),
    Example(
        lambda op, x, w, b: op.aten.linear(op.aten.div.Scalar(x, 4.0), w, b),
        ("f32[N, 8]", "f32[6, 8]", "f32[6]"),
        constants=(1, 2),
    ),
)
ScaledInput.counterexamples = (
    Example(_also_added, ("f32[N, 8]", "f32[8]", "f32[8, 8]"), (1, 2), reason="aten.add.Tensor reads it"),
    Example(
        lambda op, x, s, w: op.aten.linear(op.aten.mul.Tensor(x, s), w),
        ("f32[5, 8]", "f32[5, 1]", "f32[6, 8]"),
        constants=(1, 2),
        reason="not a constant number a feature",
    ),
    *(
        Example(
            lambda op, x, s, w: op.aten.linear(op.aten.mul.Tensor(x, s), w),
            (x, s, "f32[6, 8]"),
            constants=(1, 2),
            reason="enlarges the input",
        )
        for x, s in (("f32[3, 1]", "f32[8]"), ("f32[8]", "f32[1, 8]"))
    ),
)


def _input_shifted(op: Builder, x: Value, c: Value, w: Value, b: Value | None = None) -> Value:
    return op.aten.linear(op.aten.add.Tensor(x, c), w, b)


ShiftedInput.examples = (
    Example(_input_shifted, ("f32[B, S, 8]", "f32[8]", "f32[6, 8]", "f32[6]"), constants=(1, 2, 3)),
    Example(_input_shifted, ("f32[N, 8]", "f32[1, 8]", "f32[6, 8]"), constants=(1, 2)),
)
ShiftedInput.counterexamples = (
    Example(
        _input_shifted,
        ("f32[5, 8]", "f32[5, 8]", "f32[6, 8]"),
        (1, 2),
        reason="not a constant number a feature",
    ),
    Example(_input_shifted, ("f32[1, 8]", "f32[5, 8]", "f32[6, 8]"), (1, 2), reason="enlarges the input"),
)


def _norm(op: Builder, x: Value, g: Value | None, c: Value | None) -> Value:
    return op.aten.layer_norm(x, x.tensor.shape[-1:], g, c, 1e-5)


def _twins(op: Builder, x: Value, g: Value, c: Value, h: Value, v: Value, w: Value) -> tuple[Value, Value]:
    return op.aten.linear(_norm(op, x, g, c), v), op.aten.linear(_norm(op, x, h, None), w)


def _rms_twins(op: Builder, x: Value, g: Value, v: Value, w: Value, b: Value) -> tuple[Value, Value]:
    first = op.aten.rms_norm(x, x.tensor.shape[-1:], g, 1e-5)
    second = op.aten.rms_norm(x, x.tensor.shape[-1:], None, 1e-5)
    return op.aten.linear(first, v), op.aten.linear(second, w, b)


def _twin_returned(op: Builder, x: Value, g: Value, v: Value) -> tuple[Value, Value]:
    return op.aten.linear(_norm(op, x, g, None), v), _norm(op, x, None, g)


TwinNorm.examples = (
    Example(
        _twins,
        ("f32[B, S, 8]", "f32[8]", "f32[8]", "f32[8]", "f32[6, 8]", "f32[5, 8]"),
        constants=(1, 2, 3, 4, 5),
        count=2,
    ),
    Example(_rms_twins, ("f32[N, 8]", "f32[8]", "f32[6, 8]", "f32[5, 8]", "f32[5]"), constants=(1, 2, 3, 4)),
)
TwinNorm.counterexamples = (
    Example(
        lambda op, x, g, w: op.aten.linear(_norm(op, x, g, None), w),
        ("f32[N, 8]", "f32[8]", "f32[6, 8]"),
        constants=(1, 2),
        reason="no other norm",
    ),
    Example(
        _twin_returned, ("f32[N, 8]", "f32[8]", "f32[6, 8]"), constants=(1, 2), reason="reads it as well"
    ),
)
