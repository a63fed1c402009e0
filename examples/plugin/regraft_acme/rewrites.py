"""Rewrites towards the ops of this package."""

from __future__ import annotations

from typing import Any

from regraft import Exactness, Example, Rewrite


def _capped(op: Any, x: Any, by: float, times: float) -> Any:
    return op.aten.mul.Scalar(op.aten.tanh(op.aten.div.Scalar(x, by)), times)


class RecoverSoftCap(Rewrite):
    """``cap * tanh(x / cap)  ->  acme.soft_cap(x, cap)``: three ops in one."""

    exactness = Exactness.EXACT
    examples = (Example(lambda op, x: _capped(op, x, 30.0, 30.0), ("f32[B, 8]",)),)
    counterexamples = (
        Example(
            lambda op, x: _capped(op, x, 30.0, 15.0), ("f32[B, 8]",), reason="one number is not the other"
        ),
    )

    def pattern(self, op, x):
        return op.aten.mul.Scalar(op.aten.tanh(op.aten.div.Scalar(x, op.attr("by"))), op.attr("times"))

    def check(self, m):
        if m.attr("by") != m.attr("times"):
            return m.decline("one number is not the other", m.root.result)
        return None

    def rewrite(self, op, m):
        return op.acme.soft_cap(m.x, float(m.attr("by")))
