"""GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415): y = x * Φ(x), and its tanh approximation."""

from __future__ import annotations

import math
from typing import Any

from regraft.ir import Builder, Declined, Exactness, Example, Match, PatternBuilder, Rewrite, Value, Var
from regraft.rewrites.support import is_number

_CUBIC = 0.044715
_ROOT = math.sqrt(2 / math.pi)
_DIVIDE = "divide by math.sqrt(2), or call torch.nn.functional.gelu"


def _halves(op: PatternBuilder, x: Var, gate: Any) -> Any:
    """The spellings of 0.5 * x * (1 + gate)."""
    half, one = op.attr("half"), op.attr("one")
    raised = op.aten.add.Scalar(gate, one)
    return op.one_of(
        op.aten.mul.Tensor(op.aten.mul.Scalar(x, half), raised),
        op.aten.mul.Scalar(op.aten.mul.Tensor(x, raised), half),
        op.aten.mul.Tensor(x, op.aten.mul.Scalar(raised, half)),
        op.aten.mul.Tensor(x, op.aten.add.Scalar(op.aten.mul.Scalar(gate, half), op.attr("half_more"))),
    )


def _half_is_wrong(m: Match) -> Declined | None:
    for name, expected in (("half", 0.5), ("one", 1.0), ("half_more", 0.5)):
        if name in m.attrs and not is_number(m.attrs[name], expected, m.x.tensor.dtype):
            return _not_gelus(m, name, expected)
    return None


def _not_gelus(m: Match, name: str, expected: float) -> Declined:
    reason = f"{m.attrs[name]!r} stands where gelu has {expected}"
    return m.decline(reason, m.holder(name), f"{expected!r}, or torch.nn.functional.gelu")


class GeluErf(Rewrite):
    """0.5 * x * (1 + erf(x / √2)) = gelu(x). Source: ``gelu_python`` of transformers and its kin."""

    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        scaled = op.one_of(op.aten.div.Scalar(x, op.attr("root")), op.aten.mul.Scalar(x, op.attr("inverse")))
        return _halves(op, x, op.aten.erf(scaled))

    def check(self, m: Match) -> Declined | None:
        dtype = m.x.tensor.dtype
        if "root" in m.attrs and not is_number(m.attr("root"), math.sqrt(2), dtype):
            reason = f"erf is taken of x / {m.attr('root')!r}, not of x / √2"
            return m.decline(reason, m.holder("root"), _DIVIDE)
        if "inverse" in m.attrs and not is_number(m.attr("inverse"), math.sqrt(0.5), dtype):
            reason = f"erf is taken of x * {m.attr('inverse')!r}, not of x / √2"
            return m.decline(reason, m.holder("inverse"), _DIVIDE)
        return _half_is_wrong(m)

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.gelu(m.x)

    examples = (
        Example(
            lambda op, x: _erf_halved_first(op, x, op.aten.div.Scalar(x, 1.4142135623730951)), ("f32[B, 8]",)
        ),
        Example(
            lambda op, x: _erf_halved_last(op, x, op.aten.mul.Scalar(x, 0.7071067811865476)), ("f32[8]",)
        ),
        Example(lambda op, x: _erf_gate_halved(op, x), ("f32[8]",)),
    )
    counterexamples = (
        Example(
            lambda op, x: _erf_halved_first(op, x, op.aten.div.Scalar(x, 1.4142)),
            ("f32[8]",),
            reason="not of x / √2",
        ),
        Example(
            lambda op, x: _erf_halved_first(op, x, op.aten.div.Scalar(x, 2**0.5), 0.51),
            ("f32[8]",),
            reason="gelu has 0.5",
        ),
        Example(
            lambda op, x: _erf_halved_first(op, x, op.aten.div.Scalar(x, 2**0.5), one=1.5),
            ("f32[8]",),
            reason="gelu has 1.0",
        ),
        Example(
            lambda op, x, y: _erf_halved_first(op, y, op.aten.div.Scalar(x, 2**0.5)),
            ("f32[8]", "f32[8]"),
            reason="two different values",
        ),
    )


class GeluTanh(Rewrite):
    """0.5 * x * (1 + tanh(√(2/π) * (x + 0.044715 x³))) = gelu(x, approximate="tanh")

    Sources: ``NewGELUActivation`` (GPT-2), ``FastGELUActivation`` and BERT's own code.
    """

    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        square, cubic, root = op.aten.pow.Tensor_Scalar(x, 2), op.attr("cubic"), op.attr("root")
        cube = op.one_of(op.aten.pow.Tensor_Scalar(x, 3), op.aten.mul.Tensor(square, x))
        quadratic = op.one_of(
            op.aten.mul.Scalar(square, cubic), op.aten.mul.Tensor(op.aten.mul.Scalar(x, cubic), x)
        )
        stretched = op.aten.add.Scalar(quadratic, op.attr("one_more"))
        inner = op.one_of(
            op.aten.mul.Scalar(op.aten.add.Tensor(x, op.aten.mul.Scalar(cube, cubic)), root),
            op.aten.mul.Tensor(op.aten.mul.Scalar(x, root), stretched),
            op.aten.mul.Scalar(op.aten.mul.Tensor(x, stretched), root),
        )
        return _halves(op, x, op.aten.tanh(inner))

    def check(self, m: Match) -> Declined | None:
        for name, expected in (("cubic", _CUBIC), ("root", _ROOT), ("one_more", 1.0)):
            if name in m.attrs and not is_number(m.attrs[name], expected, m.x.tensor.dtype):
                return _not_gelus(m, name, expected)
        return _half_is_wrong(m)

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.gelu(m.x, approximate="tanh")

    examples = (
        Example(lambda op, x: _new_gelu(op, x), ("f32[B, 8]",)),
        Example(lambda op, x: _fast_gelu(op, x), ("f32[8]",)),
    )
    counterexamples = (
        Example(lambda op, x: _new_gelu(op, x, cubic=0.0447), ("f32[8]",), reason="gelu has 0.044715"),
        Example(lambda op, x: _new_gelu(op, x, power=2), ("f32[8]",), reason="expected"),
        Example(lambda op, x: _new_gelu(op, x, root=0.8), ("f32[8]",), reason="gelu has 0.797"),
        Example(lambda op, x: _new_gelu(op, x, root=0.79788456), ("f64[8]",), reason="gelu has 0.797"),
    )


def _erf_halved_first(op: Builder, x: Value, scaled: Value, half: float = 0.5, one: float = 1.0) -> Value:
    raised = op.aten.add.Scalar(op.aten.erf(scaled), one)
    return op.aten.mul.Tensor(op.aten.mul.Scalar(x, half), raised)


def _erf_halved_last(op: Builder, x: Value, scaled: Value) -> Value:
    return op.aten.mul.Scalar(op.aten.mul.Tensor(x, op.aten.add.Scalar(op.aten.erf(scaled), 1)), 0.5)


def _erf_gate_halved(op: Builder, x: Value) -> Value:
    gate = op.aten.mul.Scalar(op.aten.erf(op.aten.div.Scalar(x, math.sqrt(2))), 0.5)
    return op.aten.mul.Tensor(op.aten.add.Scalar(gate, 0.5), x)


def _new_gelu(op: Builder, x: Value, cubic: float = _CUBIC, power: float = 3.0, root: float = _ROOT) -> Value:
    cube = op.aten.mul.Scalar(op.aten.pow.Tensor_Scalar(x, power), cubic)
    gate = op.aten.tanh(op.aten.mul.Scalar(op.aten.add.Tensor(x, cube), root))
    return op.aten.mul.Tensor(op.aten.mul.Scalar(x, 0.5), op.aten.add.Scalar(gate, 1.0))


def _fast_gelu(op: Builder, x: Value) -> Value:
    square = op.aten.mul.Tensor(op.aten.mul.Scalar(x, _CUBIC), x)
    inner = op.aten.mul.Tensor(op.aten.mul.Scalar(x, 0.7978845608), op.aten.add.Scalar(square, 1.0))
    return op.aten.mul.Tensor(op.aten.mul.Scalar(x, 0.5), op.aten.add.Scalar(op.aten.tanh(inner), 1.0))
