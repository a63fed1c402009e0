"""A rewrite of your own: two linear layers on one input, added up, are one linear layer.

Parallel adapters, full-rank LoRA branches and re-parameterised blocks compute `x Vᵀ + x Wᵀ`: two products
where one does. regraft never reads the weights; it writes `V + W`, which becomes a recipe that is
computed once, at compile time.
"""

import torch
from torch import nn

import regraft
from regraft import Exactness, Example, Rewrite


class SiblingSum(Rewrite):
    """linear(x, V, b) + linear(x, W) = linear(x, V + W, b), for constant weights."""

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op, x, v, w, b):
        return op.aten.add.Tensor(op.aten.linear(x, v, op.optional(b)), op.aten.linear(x, w))

    def check(self, m):
        for weight in (m.v, m.w):
            if not weight.is_const:
                return m.decline("a weight is not constant", weight)

    def rewrite(self, op, m):
        return op.aten.linear(m.x, op.aten.add.Tensor(m.v, m.w), m.optional("b"))

    examples = (
        Example(
            lambda op, x, v, w, b: op.aten.add.Tensor(op.aten.linear(x, v, b), op.aten.linear(x, w)),
            ("f32[N, 16]", "f32[32, 16]", "f32[32, 16]", "f32[32]"),
            constants=(1, 2, 3),
        ),
        Example(
            lambda op, x, v, w: op.aten.add.Tensor(op.aten.linear(x, v), op.aten.linear(x, w)),
            ("f32[2, 3, 16]", "f32[32, 16]", "f32[32, 16]"),
            constants=(1, 2),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, y, v, w: op.aten.add.Tensor(op.aten.linear(x, v), op.aten.linear(y, w)),
            ("f32[2, 16]", "f32[2, 16]", "f32[32, 16]", "f32[32, 16]"),
            constants=(2, 3),
            reason="two different values",
        ),
        Example(
            lambda op, x, v, w: op.aten.add.Tensor(op.aten.linear(x, v), op.aten.linear(x, w)),
            ("f32[2, 16]", "f32[32, 16]", "f32[32, 16]"),
            constants=(1,),
            reason="a weight is not constant",
        ),
    )


class Adapted(nn.Module):
    """A layer with a trained branch beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width)
        self.adapter = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.base(x) + self.adapter(x))


def main() -> None:
    model, x = Adapted(256).eval(), torch.randn(8, 256)
    compiled = regraft.compile(model, (x,), rewrites=[SiblingSum()], verify=True)
    report = compiled.report
    print(f"applied {report.rewrites['SiblingSum'].hits} time, error {report.error:.1e}")
    print(f"floating-point operations: {report.flops['before']:,} before, {report.flops['after']:,} after")


if __name__ == "__main__":
    main()
