"""Row maps: which sub-graphs are one, and that their dense form is the same map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.export import Dim

import regraft
from regraft.ir import OPS, Builder, Example, PassContext, RewritePass, dims
from regraft.rewrites import LINEAR
from regraft.testing import assert_close, build_example, randomise, rewrite_cases

(MERGED,) = [rewrite for rewrite in LINEAR if rewrite.name == "MergedLinear"]


def cases(*examples: Example) -> list[Any]:
    """The derived tests of examples that are not part of the rewrite itself."""
    more = type("More", (type(MERGED),), {"examples": examples, "counterexamples": ()})
    return [case for case in rewrite_cases(more()) if not case.id.endswith("mutants-are-caught")]


def tucker(op: Builder, x: Any, first: Any, core: Any, last: Any) -> Any:
    """``x`` as a matrix of 4 x 2: a factor on one axis, one on the other, a core over both."""
    rows = x.tensor.shape[0]
    grid = op.aten.view(x, (rows, 4, 2))
    columns = op.aten.permute(op.aten.linear(op.aten.permute(grid, (0, 2, 1)), first), (0, 2, 1))
    both = op.aten.linear(columns, core)
    return op.aten.linear(op.aten.view(both, (rows, dims.product(both.tensor.shape[1:]))), last)


def left_product(op: Builder, x: Any, a: Any, b: Any) -> Any:
    """The constant on the left of the transposed input."""
    return op.aten.permute(op.aten.matmul(b, op.aten.matmul(a, op.aten.permute(x, (1, 0)))), (1, 0))


def rows_apart(op: Builder, x: Any, a: Any, b: Any) -> Any:
    """Rows folded for the first product and unfolded for the second."""
    batch, length, width = x.tensor.shape
    flat = op.aten.linear(op.aten.view(x, (batch * length, width)), a)
    return op.aten.linear(op.aten.view(flat, (batch, length, flat.tensor.shape[1])), b)


def scaled(op: Builder, x: Any, a: Any, scale: Any, b: Any) -> Any:
    return op.aten.linear(op.aten.mul.Tensor(op.aten.linear(x, a), scale), b)


def minus(op: Builder, x: Any, a: Any, b: Any, bias: Any) -> Any:
    return op.aten.sub.Tensor(op.aten.linear(x, a), op.aten.linear(op.aten.neg(x), b, bias))


def blocks_by_loop(op: Builder, x: Any, first: Any, second: Any, last: Any) -> Any:
    """Halves of a row through weights of their own, and joined again the other way round."""
    rows = x.tensor.shape[0]
    left, right = (op.aten.slice.Tensor(x, 1, start, start + 4, 1) for start in (0, 4))
    joined = op.aten.cat((op.aten.linear(right, second), op.aten.linear(left, first)), 1)
    return op.aten.linear(op.aten.view(joined, (rows, joined.tensor.shape[1])), last)


MAPS = (
    Example(tucker, ("f32[N, 8]", "f32[3, 4]", "f32[5, 2]", "f32[7, 15]"), constants=(1, 2, 3)),
    Example(left_product, ("f32[N, 6]", "f32[3, 6]", "f32[5, 3]"), constants=(1, 2)),
    Example(rows_apart, ("f32[B, S, 6]", "f32[3, 6]", "f32[5, 3]"), constants=(1, 2)),
    Example(rows_apart, ("f32[1, 1, 6]", "f32[3, 6]", "f32[5, 3]"), constants=(1, 2)),
    Example(scaled, ("f32[N, 6]", "f32[3, 6]", "f32[3]", "f32[5, 3]"), constants=(1, 2, 3)),
    Example(blocks_by_loop, ("f32[N, 8]", "f32[3, 4]", "f32[2, 4]", "f32[5, 5]"), constants=(1, 2, 3)),
    Example(minus, ("f32[N, 6]", "f32[3, 6]", "f32[3, 6]", "f32[3]"), constants=(1, 2, 3)),
)


@pytest.mark.parametrize("case", cases(*MAPS), ids=lambda case: case.id)
def test_maps(case: Any) -> None:
    case.run()


def one_weight_a_row(op: Builder, x: Any, a: Any, b: Any) -> Any:
    """A matrix for each row, as in evolution strategies with low-rank perturbations (EGGROLL)."""
    rows, width = x.tensor.shape
    hidden = op.aten.matmul(op.aten.view(x, (rows, 1, width)), a)
    return op.aten.matmul(hidden, b)


def scale_by_row(op: Builder, x: Any, a: Any, scale: Any, b: Any) -> Any:
    return op.aten.linear(op.aten.mul.Tensor(op.aten.linear(x, a), scale), b)


def mixing_rows(op: Builder, x: Any, a: Any, b: Any) -> Any:
    """A product along the rows, as in a mixer."""
    return op.aten.linear(op.aten.permute(op.aten.linear(op.aten.permute(x, (1, 0)), a), (1, 0)), b)


def of_two_inputs(op: Builder, x: Any, y: Any, a: Any, b: Any) -> Any:
    return op.aten.add.Tensor(op.aten.linear(op.aten.linear(x, a), b), y)


def across_rows(op: Builder, x: Any, a: Any, b: Any) -> Any:
    """Half a row beside half of the next one."""
    return op.aten.linear(op.aten.view(op.aten.linear(x, a), (2, 6)), b)


def rows_cut(op: Builder, x: Any, a: Any, b: Any) -> Any:
    return op.aten.linear(op.aten.slice.Tensor(op.aten.linear(x, a), 0, 1, 3, 1), b)


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (Example(rows_cut, ("f32[4, 6]", "f32[3, 6]", "f32[5, 3]"), (1, 2)), "rows are left out"),
        (Example(one_weight_a_row, ("f32[4, 6]", "f32[4, 6, 3]", "f32[4, 3, 5]"), (1, 2)), "of their own"),
        (Example(scale_by_row, ("f32[4, 6]", "f32[3, 6]", "f32[4, 1]", "f32[5, 3]"), (1, 2, 3)), "rows"),
        (Example(mixing_rows, ("f32[4, 6]", "f32[4, 4]", "f32[5, 6]"), (1, 2)), "rows are summed up"),
        (Example(across_rows, ("f32[4, 6]", "f32[3, 6]", "f32[5, 6]"), (1, 2)), "takes a row apart"),
    ],
)
def test_what_is_no_map_of_rows(example: Example, reason: str) -> None:
    counter = Example(example.build, example.inputs, example.constants, reason=reason)
    declining = type("Declining", (type(MERGED),), {"counterexamples": (counter,)})
    (case,) = [c for c in rewrite_cases(declining()) if "counterexample0" in c.id]
    case.run()


def test_a_sum_with_another_input_is_left_outside() -> None:
    example = Example(of_two_inputs, ("f32[N, 6]", "f32[N, 5]", "f32[3, 6]", "f32[5, 3]"), (2, 3))
    for case in cases(example):
        case.run()


def test_the_largest_map_is_taken() -> None:
    """Three products are one map: no map of two is made on the way."""
    module = build_example(MERGED.examples[-1])
    context = PassContext(OPS)
    RewritePass("linear", "algebra", [MERGED]).run(module, context)
    (alt,) = [op for op in module.main.walk() if op.name == "rg.alt"]
    assert [op.name for op in alt.regions[0].ops].count("aten.linear") == 3


def test_the_trap_of_structured_ffn() -> None:
    """The product of the two block-diagonal matrices without the shuffles is another matrix.

    CLAIRE-Labo/StructuredFFN initialises its guide with it (src/modules/op/block_shuffle.py).
    """
    first, second = torch.randn(2, 4, 4), torch.randn(2, 4, 4)
    x = torch.randn(5, 8)

    def forward(x: torch.Tensor) -> torch.Tensor:
        hidden = torch.bmm(x.view(-1, 2, 4).transpose(0, 1), first).transpose(0, 1).reshape(-1, 8)
        mixed = hidden.reshape(-1, 4, 2).transpose(-1, -2)
        out = torch.bmm(mixed.transpose(0, 1), second).transpose(0, 1)
        return out.permute(0, 2, 1).reshape(-1, 8)

    naive = x @ torch.block_diag(*first) @ torch.block_diag(*second)
    assert (forward(x) - naive).abs().max() > 0.1
    compiled = regraft.compile(forward, (x,), memory_limit=1 << 20)
    assert_close(compiled(x), forward(x).double(), forward(x), reassociates=True)


class Renamed:
    """Two modules that differ in names alone."""

    @staticmethod
    def make(base: str, down: str, up: str) -> torch.nn.Module:
        class Layer(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                setattr(self, base, torch.nn.Linear(8, 6))
                setattr(self, down, torch.nn.Linear(8, 2, bias=False))
                setattr(self, up, torch.nn.Linear(2, 6, bias=False))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                low = getattr(self, up)(getattr(self, down)(x))
                return torch.tanh(getattr(self, base)(x) + 2.0 * low)

        return randomise(Layer().eval())


def test_names_mean_nothing() -> None:
    hits = [
        regraft.compile(Renamed.make(*names), (torch.randn(3, 8),)).report.rewrites["MergedLinear"].hits
        for names in (("base", "lora_A", "lora_B"), ("alpha", "beta", "gamma"))
    ]
    assert hits == [1, 1]


@pytest.mark.parametrize("rows", [1, 5])
def test_dynamic_rows_of_every_count(rows: int) -> None:
    layer = Renamed.make("base", "down", "up")
    compiled = regraft.compile(layer, (torch.randn(3, 8),), dynamic_shapes=({0: Dim.AUTO},), verify=True)
    x = torch.randn(rows, 8)
    with torch.no_grad():
        assert_close(compiled(x), layer.double()(x.double()), layer.float()(x), reassociates=True)
