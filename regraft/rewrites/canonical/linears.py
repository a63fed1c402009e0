"""One spelling for a product with a weight: ``linear`` over the input's own shape."""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Declined, Exactness, Example, Match, PatternBuilder, Rewrite, Value, Var, dims
from regraft.rewrites.canonical.atoms import MOVES
from regraft.rewrites.canonical.movement import is_moved_on
from regraft.rewrites.support import is_known


class MatmulWithWeight(Rewrite):
    """matmul(x, W) = linear(x, Wᵀ), for a constant matrix W, or a batch of one.

    The transposed weight is laid out anew, so a library may add up in another order. ``einsum`` multiplies
    batches of one.
    """

    stage = "canonicalize"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, weight: Var) -> Any:
        return op.aten.matmul(x, weight)

    def check(self, m: Match) -> Declined | None:
        weight = m.weight.tensor
        if weight.rank < 2 or any(size != 1 for size in weight.shape[:-2]):
            return m.decline("the second operand is not a matrix", m.weight)
        if weight.rank > max(2, m.x.tensor.rank):
            return m.decline("the weight adds axes to the result", m.weight)
        if not is_known(m.weight) or is_known(m.x):
            culprit = m.x if is_known(m.weight) else m.weight
            return m.decline("the second operand alone must be constant", culprit, "make it a parameter")
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        matrix = op.aten.view(m.weight, m.weight.tensor.shape[-2:])
        return op.aten.linear(m.x, op.aten.permute(matrix, (1, 0)))

    examples = (
        Example(lambda op, x, w: op.aten.matmul(x, w), ("f32[1, S, 8]", "f32[1, 8, 5]"), constants=(1,)),
        Example(lambda op, x, w: op.aten.matmul(x, w), ("f32[2, S, 8]", "f32[8, 5]"), constants=(1,)),
        Example(lambda op, x, w: op.aten.matmul(x, w), ("f32[3, 8]", "f32[8, 5]"), constants=(1,)),
    )
    counterexamples = (
        Example(lambda op, x, w: op.aten.matmul(x, w), ("f32[3, 8]", "f32[8, 5]"), reason="must be constant"),
        Example(
            lambda op, x, w: op.aten.matmul(x, w),
            ("f32[2, 3, 8]", "f32[2, 8, 5]"),
            (1,),
            reason="not a matrix",
        ),
        Example(
            lambda op, x, w: op.aten.matmul(x, w),
            ("f32[3, 8]", "f32[1, 8, 5]"),
            (1,),
            reason="adds axes",
        ),
    )


class AddBias(Rewrite):
    """linear(x, W) + b = linear(x, W, b), for a constant vector b."""

    stage = "canonicalize"

    def pattern(self, op: PatternBuilder, x: Var, weight: Var, bias: Var) -> Any:
        return op.aten.add.Tensor(op.aten.linear(x, weight), bias)

    def check(self, m: Match) -> Declined | None:
        if m.weight.tensor.rank != 2:
            return m.decline("the weight is not a matrix", m.weight)
        width = m.weight.tensor.shape[0]
        if not is_known(m.bias):
            return m.decline("the summand is not constant", m.bias, "make it a parameter")
        if m.bias.tensor.rank != 1 or dims.eq(m.bias.tensor.shape[0], width) is not True:
            return m.decline("the summand is not a vector of the output's width", m.bias)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.linear(m.x, m.weight, m.bias)

    exactness = Exactness.REASSOCIATES
    examples = (
        Example(
            lambda op, x, w, b: op.aten.add.Tensor(op.aten.linear(x, w), b),
            ("f32[2, 8]", "f32[5, 8]", "f32[5]"),
            constants=(1, 2),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, w, b: op.aten.add.Tensor(op.aten.linear(x, w), b),
            ("f32[2, 8]", "f32[5, 8]", "f32[2, 1]"),
            constants=(1, 2),
            reason="not a vector",
        ),
        Example(
            lambda op, x, w, b: op.aten.add.Tensor(op.aten.linear(x, w), b),
            ("f32[2, 8]", "f32[5, 8]", "f32[5]"),
            constants=(1,),
            reason="not constant",
        ),
    )


class UnfoldedLinear(Rewrite):
    """view(linear(view(x, [M, K]), W, b), [..., N]) = linear(view(x, [..., K]), W, b)

    A linear layer acts on the last dimension alone, so folding the others before it, or before another layer
    that it follows, and unfolding them after it is idle. A library may take another kernel for another rank.
    Sources: ``Conv1D`` of transformers, and torch's own ``linear`` decomposition.
    """

    stage = "canonicalize"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, weight: Var, bias: Var) -> Any:
        return op.aten.view(op.aten.linear(x, weight, op.optional(bias)), op.attr("size"))

    def check(self, m: Match) -> Declined | None:
        if m.weight.tensor.rank != 2:
            return m.decline("the weight is not a matrix", m.weight)
        size, width = m.attr("size"), m.weight.tensor.shape[0]
        if not size or dims.eq(size[-1], width) is not True:
            return m.decline("the view splits the linear layer's output", m.root.result)
        if dims.eq(dims.product(size[:-1]), dims.product(m.x.tensor.shape[:-1])) is not True:
            return m.decline("the number of rows is not known to stay", m.root.result)
        if not is_folded(m.x):
            return m.decline("nothing folded the rows before", m.x)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        shape = (*m.attr("size")[:-1], m.weight.tensor.shape[1])
        return op.aten.linear(op.aten.view(m.x, shape), m.weight, m.optional("bias"))

    examples = (
        Example(
            lambda op, x, w, b: _folded_linear(op, x, w, b, (*x.type.shape[:2], 5)),
            ("f32[B, S, 8]", "f32[5, 8]", "f32[5]"),
            constants=(1, 2),
        ),
        Example(
            lambda op, x, w: _folded_linear(op, x, w, None, (2, 3, 5)),
            ("f32[2, 3, 2, 4]", "f32[5, 8]"),
            constants=(1,),
        ),
        Example(
            lambda op, x, v, w: op.aten.view(
                op.aten.linear(op.aten.linear(op.aten.view(x, (6, 1, 4)), v), w), (2, 3, 5)
            ),
            ("f32[2, 3, 4]", "f32[3, 4]", "f32[5, 3]"),
            constants=(1, 2),
            count=2,
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, w: _folded_linear(op, x, w, None, (2, 3, 2, 3)),
            ("f32[2, 3, 8]", "f32[6, 8]"),
            constants=(1,),
            reason="splits the linear layer's output",
        ),
        Example(
            lambda op, x, w: op.aten.view(op.aten.linear(x, w), (2, 3, 6)),
            ("f32[6, 8]", "f32[6, 8]"),
            constants=(1,),
            reason="nothing folded the rows",
        ),
    )


def is_folded(value: Value) -> bool:
    """Whether ``value`` is a view, or what linear layers that nothing else reads make of one."""
    while value.op is not None and value.op.name == "aten.linear" and len(value.uses) == 1:
        if value.op.operand("weight").tensor.rank != 2:
            return False
        value = value.op.operand("input")
    return value.op is not None and value.op.name == "aten.view"


class LinearOfPermute(Rewrite):
    """linear(permute(x), W, b) = permute(linear(x, W, b)), where moves follow that join the permutation.

    Rows come first to one layer as to the next: attention with sequences along the first axis turns its
    arguments twice, and its heads a third time.
    """

    stage = "canonicalize"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, weight: Var, bias: Var) -> Any:
        turned = op.shared(op.aten.permute(x, op.attr("dims")))
        return op.aten.linear(turned, weight, op.optional(bias))

    def check(self, m: Match) -> Declined | None:
        order = m.attr("dims")
        if m.weight.tensor.rank != 2 or order[-1] != len(order) - 1:
            return m.decline("the features are moved", m.holder("dims"))
        if not is_moved_on(m.root.result):
            return m.decline("not all that read the result move it", m.root.result)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.permute(op.aten.linear(m.x, m.weight, m.optional("bias")), m.attr("dims"))

    examples = (
        Example(
            lambda op, x, w, b: op.aten.view(op.aten.linear(op.aten.permute(x, (1, 0, 2)), w, b), (15, 4)),
            ("f32[3, 5, 8]", "f32[4, 8]", "f32[4]"),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, w: op.aten.relu(op.aten.linear(op.aten.permute(x, (1, 0, 2)), w)),
            ("f32[3, 5, 8]", "f32[4, 8]"),
            reason="not all that read the result move it",
        ),
        Example(
            lambda op, x, w: op.aten.view(op.aten.linear(op.aten.permute(x, (0, 2, 1)), w), (60,)),
            ("f32[3, 8, 5]", "f32[4, 8]"),
            reason="the features are moved",
        ),
    )


class PermuteOfLinear(Rewrite):
    """permute(linear(x, W, b)) = linear(permute(x), W, b), where ``x`` comes from moves that it joins."""

    stage = "canonicalize"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, weight: Var, bias: Var) -> Any:
        return op.aten.permute(op.aten.linear(x, weight, op.optional(bias)), op.attr("dims"))

    def check(self, m: Match) -> Declined | None:
        order = m.attr("dims")
        if m.weight.tensor.rank != 2 or order[-1] != len(order) - 1:
            return m.decline("the features are moved", m.holder("dims"))
        if m.x.op is None or m.x.op.name not in MOVES or is_moved_on(m.root.result):
            return m.decline("no moves stand before it, or some behind it", m.x)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.linear(op.aten.permute(m.x, m.attr("dims")), m.weight, m.optional("bias"))

    examples = (
        Example(
            lambda op, x, w, b: op.aten.permute(op.aten.linear(op.aten.view(x, (5, 3, 8)), w, b), (1, 0, 2)),
            ("f32[15, 8]", "f32[4, 8]", "f32[4]"),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, w: op.aten.permute(op.aten.linear(x, w), (1, 0, 2)),
            ("f32[3, 5, 8]", "f32[4, 8]"),
            reason="no moves stand before it",
        ),
        Example(
            lambda op, x, w: op.aten.permute(op.aten.linear(op.aten.view(x, (5, 3, 8)), w), (2, 0, 1)),
            ("f32[15, 8]", "f32[4, 8]"),
            reason="the features are moved",
        ),
    )


def _folded_linear(op: Builder, x: Value, w: Value, b: Value | None, size: tuple[dims.Dim, ...]) -> Value:
    width = w.tensor.shape[1]
    rows = dims.floordiv(x.tensor.numel, width)
    return op.aten.view(op.aten.linear(op.aten.view(x, (rows, width)), w, b), size)
