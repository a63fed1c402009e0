"""Low-rank changes of a weight that are not known until the call: adapters that are switched."""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Declined, Exactness, Example, Match, PatternBuilder, Rewrite, Value, Var, dims
from regraft.rewrites.support import is_known, same_dims


class LowRankEpilogue(Rewrite):
    """linear(x, W + L R, b) = linear(x, W, b) + linear(linear(x, R), L), for W constant and L R not.

    The weight stays the library's to pack, and the change costs its rank times input and output. Also of a
    product ``x @ (W + L R)``.
    """

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, weight: Var, left: Var, right: Var, bias: Var) -> Any:
        adapted = op.shared(op.aten.add.Tensor(op.shared(op.aten.matmul(left, right)), weight))
        return op.one_of(op.aten.linear(x, adapted, op.optional(bias)), op.aten.matmul(x, adapted))

    def check(self, m: Match) -> Declined | None:
        if not is_known(m.weight):
            return m.decline("the weight is not constant", m.weight)
        if is_known(m.left) and is_known(m.right):
            return m.decline("the change is constant as well", m.left)
        if any(v.tensor.rank != 2 for v in (m.weight, m.left, m.right)):
            return m.decline("a factor is no matrix", m.left)
        rows, columns = m.weight.tensor.shape
        if not same_dims((m.left.tensor.shape[0], m.right.tensor.shape[1]), (rows, columns)):
            return m.decline("the change is one row or column, spread over the weight", m.left)
        rank = m.right.tensor.shape[0]
        if dims.le(2 * rank * (rows + columns), rows * columns) is not True:
            return m.decline("the rank is not low", m.right)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        if m.root.name == "aten.matmul":
            base = op.aten.linear(m.x, op.aten.permute(m.weight, (1, 0)))
            change = op.aten.matmul(op.aten.matmul(m.x, m.left), m.right)
        else:
            base = op.aten.linear(m.x, m.weight, m.optional("bias"))
            change = op.aten.linear(op.aten.linear(m.x, m.right), m.left)
        return op.aten.add.Tensor(base, change)

    examples = (
        Example(
            lambda op, x, w, a, c, b: op.aten.linear(x, _adapted(op, w, a, c), b),
            ("f32[B, S, 16]", "f32[12, 16]", "f32[12, 2]", "f32[2, 16]", "f32[12]"),
            constants=(1, 4),
        ),
        Example(
            lambda op, x, w, a, c: op.aten.matmul(x, _adapted(op, w, a, c)),
            ("f32[N, 16]", "f32[16, 12]", "f32[16, 2]", "f32[2, 12]"),
            constants=(1,),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, w, a, c: op.aten.linear(x, _adapted(op, w, a, c)),
            ("f32[N, 16]", "f32[12, 16]", "f32[12, 8]", "f32[8, 16]"),
            constants=(1,),
            reason="the rank is not low",
        ),
        Example(
            lambda op, x, w, a, c: op.aten.linear(x, _adapted(op, w, a, c)),
            ("f32[N, 16]", "f32[12, 16]", "f32[12, 2]", "f32[2, 16]"),
            constants=(1, 2, 3),
            reason="constant as well",
        ),
        Example(
            lambda op, x, w, a, c: op.aten.matmul(x, _adapted(op, w, a, c)),
            ("f32[5, 64]", "f32[64, 64]", "f32[1, 1]", "f32[1, 64]"),
            constants=(1,),
            reason="spread over the weight",
        ),
        Example(
            lambda op, x, w, a, c: op.aten.linear(x, _adapted(op, w, a, c)),
            ("f32[5, 64]", "f32[64, 64]", "f32[64, 1]", "f32[1, 1]"),
            constants=(1,),
            reason="spread over the weight",
        ),
    )


def _adapted(op: Builder, weight: Value, left: Value, right: Value) -> Value:
    return op.aten.add.Tensor(weight, op.aten.matmul(left, right))
