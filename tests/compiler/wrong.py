"""Rewrites, passes and a back end that are wrong, and a model that falls to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import regraft


class Model(nn.Module):
    """Two places for ``WrongTanh``; a SiLU and a GELU to compile besides."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y = y * torch.sigmoid(y)
        y = torch.tanh(y).abs()
        y = torch.tanh(y * 3)  # second
        return nn.functional.gelu(y)


def model() -> nn.Module:
    torch.manual_seed(0)
    return Model().eval()


def rows(count: int = 3) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(count))


class WrongTanh(regraft.Rewrite):
    """tanh(3x) = sigmoid(3x), which it is not."""

    exactness = regraft.Exactness.REASSOCIATES

    def pattern(self, op: Any, x: Any) -> Any:
        return op.aten.tanh(op.aten.mul.Scalar(x, 3))

    def rewrite(self, op: Any, m: Any) -> Any:
        return op.aten.sigmoid(op.aten.mul.Scalar(m.x, 3))


class SlightlyWrongSign(regraft.Rewrite):
    """abs(x) = abs(x * 1), exactly; and exactly not."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.aten.abs(x)

    def check(self, m: Any) -> Any:
        return m.decline("it is scaled already", m.x) if m.x.op.name == "aten.mul.Scalar" else None

    def rewrite(self, op: Any, m: Any) -> Any:
        return op.aten.abs(op.aten.mul.Scalar(m.x, 1 + 2**-50))


class NearTanh(WrongTanh):
    """tanh(3x) = tanh(3.01x), within 5 %."""

    exactness = regraft.Exactness.APPROX(0.05)
    factor = 3.01

    def rewrite(self, op: Any, m: Any) -> Any:
        return op.aten.tanh(op.aten.mul.Scalar(m.x, self.factor))


class FarTanh(NearTanh):
    factor = 3.9


class DropsAbs:
    """A pass that removes the first ``abs``, through the context's rewriter or behind its back."""

    name = "drops-abs"

    def __init__(self, heard: bool) -> None:
        self.heard = heard

    def run(self, module: Any, context: Any) -> bool:
        found = next(op for op in module.main.walk() if op.name == "aten.abs")
        if self.heard:
            context.rewriter(self.name).replace(found, found.operands)
        else:
            for use in list(found.result.uses):
                use.op.set_operand(use.index, found.operands[0])
        return True


class WrongBackend:
    """Takes ``tanh``, and is wrong where no element is negative, as in the second place."""

    name = "wrong"

    def supports(self, op: Any) -> str | None:
        return None if op.name == "aten.tanh" else "it only knows tanh"

    def lower(self, function: Any, store: Any, options: Any) -> Any:
        return _WrongExecutable(len(list(function.walk())) - 1)


class _WrongExecutable:
    backend = "wrong"

    def __init__(self, count: int) -> None:
        assert count == 1

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        return [inputs[0].tanh() + (0.01 if inputs[0].min() >= 0 else 0)]

    def save(self, writer: Any) -> dict[str, Any]:
        return {}
