"""The normal form: spellings decompose, attributes are normal, and the order of rewrites does not matter."""

import itertools
import random

import pytest
import torch

import regraft
from regraft.ir import OPS, DType, Module, PassContext, RewritePass, print_module, verify
from regraft.rewrites import CANONICAL, CanonicalSpellings, default_passes
from regraft.testing import assert_close, evaluate
from tests.rewrites.graphs import graph, names, run

CANONICALIZE = [p for p in default_passes() if p.stage == "canonicalize"]


def canonical(build, *inputs: str, constants: tuple[int, ...] = ()) -> Module:
    """The module after the stage, its results unchanged at S = 3."""
    module = graph(build, *inputs, constants=constants)
    torch.manual_seed(0)
    args = [
        torch.randn([3 if not isinstance(d, int) else d for d in a.type.shape], dtype=torch.float64).float()
        for a in module.main.args
    ]
    expected = evaluate(module.main, args, {"S": 3, "B": 3})
    run(CANONICALIZE, module)
    verify(module, "canonicalize", table=OPS)
    for found, wanted in zip(evaluate(module.main, args, {"S": 3, "B": 3}), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    return module


def test_view_spellings_become_view_and_nothing() -> None:
    def build(op, x):
        y = op.aten.squeeze.dim(op.aten.unsqueeze(op.aten.clone(x), 1), 1)
        y = op.aten.flatten.using_ints(op.aten.reshape(y, (-1, 2, 4)), 1)
        return op.aten.relu(op.aten._unsafe_view(y, (-1, 8)))

    assert names(canonical(build, "f32[S, 8]")) == ["aten.relu"]


def test_splits_become_slices() -> None:
    def build(op, x):
        a, b, c = op.aten.split.Tensor(x, 4, -1)
        d, e = op.aten.chunk(a, 2, -1)
        return b, c, op.aten.add.Tensor(d, e), op.aten.select.int(x, 1, -1)

    module = canonical(build, "f32[S, 12]")
    assert set(names(module)) == {"aten.slice.Tensor", "aten.view", "aten.add.Tensor"}
    # A slice of a slice is one slice.
    assert all(
        op.operands[0] in module.main.args for op in module.main.body.ops if op.name == "aten.slice.Tensor"
    )


def test_transposes_become_one_permute() -> None:
    def build(op, x):
        return op.aten.t(op.aten.transpose.int(op.aten.transpose.int(x, 0, 1), -1, -2)), op.aten.t(x)

    module = canonical(build, "f32[S, 4]")
    assert names(module) == ["aten.permute", "aten.permute"]


def test_attributes_count_from_the_front() -> None:
    def build(op, x):
        y = op.aten.softmax.int(x, -1, DType.F32)
        z = op.aten.cat((op.aten.mean.dim(y, (-1,), True), op.aten.sum.dim_IntList(y, None, True)), -2)
        return op.aten.slice.Tensor(x, -1, None, -1, 1), op.aten.expand(z, (-1, -1)), op.aten.cumsum(x, -2)

    module = canonical(build, "f32[S, 4]")
    found = {op.name: op.attrs for op in module.main.body.ops}
    assert found["aten.softmax.int"] == {"dim": 1, "dtype": None}
    assert found["aten.mean.dim"]["dim"] == (1,)
    assert found["aten.sum.dim_IntList"]["dim"] == (0, 1)
    assert found["aten.cat"]["dim"] == 0
    assert (found["aten.slice.Tensor"]["start"], found["aten.slice.Tensor"]["end"]) == (0, 3)
    assert found["aten.cumsum"]["dim"] == 0


@pytest.mark.parametrize("spelling", ["addmm", "mm", "matmul", "linear"])
def test_products_with_a_weight_become_linear(spelling: str) -> None:
    def build(op, x, w, b):
        if spelling == "addmm":
            return op.aten.addmm(b, x, w)
        if spelling == "linear":
            return op.aten.linear(x, op.aten.t(w), b)
        product = op.aten.mm(x, w) if spelling == "mm" else op.aten.matmul(x, w)
        return op.aten.add.Tensor(b, product)

    assert names(canonical(build, "f32[S, 4]", "f32[4, 5]", "f32[5]", constants=(1, 2))) == [
        "aten.permute",
        "aten.linear",
    ]


def test_conv1d_of_gpt2_keeps_its_shape() -> None:
    def build(op, x, w, b):
        y = op.aten.addmm(b, op.aten.view(x, (-1, 4)), w)
        y = op.aten.gelu(op.aten.view(y, (*x.type.shape[:2], 4)))
        y = op.aten.addmm(b, op.aten.view(y, (-1, 4)), w)
        return op.aten.add.Tensor(op.aten.clone(op.aten.view(y, x.type.shape)), x)

    module = canonical(build, "f32[B, S, 4]", "f32[4, 4]", "f32[4]", constants=(1, 2))
    assert sorted(names(module)) == [
        "aten.add.Tensor",
        "aten.gelu",
        *["aten.linear"] * 2,
        *["aten.permute"] * 2,
    ]


def test_fixpoint_in_any_order_of_rewrites() -> None:
    """Confluence on a graph where many rewrites compete."""

    def build(op, x, w, b):
        y = op.aten.view(
            op.aten.view(op.aten.permute(op.aten.permute(x, (1, 0, 2)), (1, 0, 2)), (6, 4)), (2, 3, 4)
        )
        y = op.aten.view(op.aten.add.Tensor(b, op.aten.linear(op.aten.view(y, (6, 4)), w)), (2, 3, 5))
        one = op.aten.full((), 1.0, dtype=DType.F32)
        y = op.aten.mul.Tensor(
            op.aten.add.Tensor(op.aten.mul.Tensor(one, y), op.aten.full((), 0.0, dtype=DType.F32)), b
        )
        y = op.aten.reciprocal(op.aten.pow.Tensor_Scalar(op.aten.mul.Tensor(y, y), 0.5))
        y = op.aten._to_copy(op.aten._to_copy(y, dtype=DType.F64), dtype=DType.F32)
        return op.aten.expand(op.aten.slice.Tensor(op.aten.cat([y], 0), 1, 0, 3, 1), (2, 3, 5))

    texts: set[str] = set()
    for seed in range(25):
        module = graph(build, "f32[2, 3, 4]", "f32[5, 4]", "f32[5]", constants=(1, 2))
        shuffled = RewritePass("shuffled", "canonicalize", CANONICAL)
        random.Random(seed).shuffle(shuffled.rewrites)
        for _ in range(3):
            shuffled.run(module, PassContext(OPS))
        verify(module, "canonicalize", table=OPS)
        texts.add(print_module(module, locations=False))
    assert len(texts) == 1, "\n\n".join(itertools.islice(texts, 2))


def test_the_type_that_capture_gave_stays() -> None:
    """torch.export takes x[:1] to have one element, where the rule says min(1, S)."""

    def build(op, x):
        known = x.tensor.with_shape((1,))
        first = op.create("aten.slice.Tensor", (x, -1, None, 1), result_types=[known]).result
        return op.aten.relu(first)

    module = graph(build, "f32[S]")
    run(CANONICALIZE, module)
    verify(module, "canonicalize", table=OPS)
    assert module.main.results[0].tensor.shape == (1,)


def test_spellings_alone_report_whether_they_changed_anything() -> None:
    module = graph(lambda op, x: op.aten.t(x), "f32[2, 3]")
    spellings = CanonicalSpellings()
    assert spellings.run(module, PassContext(OPS))
    assert not spellings.run(module, PassContext(OPS))


def test_a_linear_layer_may_have_a_vector_for_a_weight() -> None:
    class Vector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = (torch.nn.Parameter(torch.randn(8)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, self.weight) + self.bias

    regraft.compile(Vector().eval(), (torch.randn(8, 8),), verify=True)


def test_halves_of_a_dynamic_axis() -> None:
    def rotated(x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        return torch.cat([-x[..., half:], x[..., :half]], -1)

    compiled = regraft.compile(rotated, (torch.randn(4, 6),), dynamic_shapes=({1: torch.export.Dim.AUTO},))
    for size in (6, 7, 10):
        x = torch.randn(4, size)
        assert torch.equal(compiled(x), rotated(x))


def test_the_epsilon_of_rms_norm_is_a_number() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = 1e-3 * torch.randn(3, 16).to(dtype)
        compiled = regraft.compile(lambda x: torch.nn.functional.rms_norm(x, (16,)), (x,), fallback="eager")
        assert_close(
            compiled(x),
            torch.nn.functional.rms_norm(
                x.double(), (16,), eps=2.0**-52 if dtype is torch.float64 else 2.0**-23
            ),
            torch.nn.functional.rms_norm(x, (16,)),
            reassociates=True,
        )
