"""Constants that overflow or vanish once they are merged: the model's own order is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.errors import RecompileError
from regraft.testing import assert_close

WIDTH = 32


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class InARow(nn.Module):
    """Two layers of full rank, which are merged wherever that is allowed."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(size * normal(WIDTH, WIDTH))
            self.second.weight.copy_(size * normal(WIDTH, WIDTH, seed=1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(self.first(x)))


class Biased(nn.Module):
    """Two layers with biases that are 0, which say nothing of their product."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.mul_(size)
                layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Added(nn.Module):
    """A layer of zeros and what an adapter adds to it."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH, bias=False)
        self.down, self.up = nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, WIDTH, bias=False)
        with torch.no_grad():
            self.base.weight.zero_()
            self.down.weight.mul_(size)
            self.up.weight.mul_(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class LowRank(nn.Module):
    """Two factors of f16, of which the product has few digits."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 8, bias=False), nn.Linear(8, 64, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(0.02 * normal(8, 64))
            self.second.weight.copy_(size * normal(64, 8, seed=1))
        self.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Beside(nn.Module):
    """A layer times, or over, one number for each output."""

    def __init__(self, divides: bool, *values: float) -> None:
        super().__init__()
        self.layer, self.divides = nn.Linear(WIDTH, WIDTH), divides
        self.values = nn.Parameter(normal(WIDTH, seed=2).abs() + 0.5)
        with torch.no_grad():
            self.values[: len(values)] = torch.tensor(values)
            self.layer.weight.mul_(100)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y / self.values if self.divides else y * self.values


class Divided(nn.Module):
    """A product and two divisors, whose quotient has nothing left."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(WIDTH, WIDTH))
        self.first, self.second = (nn.Parameter(torch.full((WIDTH,), 1e30)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight / self.first / self.second


class Normed(nn.Module):
    """A convolution and batch normalisation, one of whose deviations may be 0."""

    def __init__(self, deviation: float = 1.0, size: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=size == 1), nn.BatchNorm2d(4, eps=0.0)
        assert self.norm.running_var is not None
        self.norm.running_var[1] = deviation
        with torch.no_grad():
            self.conv.weight.mul_(size)
            self.norm.weight.fill_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


X = normal(5, WIDTH, seed=3)
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "layers in a row": (lambda: InARow(1e25), 1e-30 * X),
    "a divisor of 0": (lambda: Beside(True, 0.0), X),
    "a divisor of nearly 0": (lambda: Beside(True, 1e-40), 1e-30 * X),
    "a factor of inf": (lambda: Beside(False, torch.inf, -torch.inf), X),
    "a large factor": (lambda: Beside(False, 3e38), 1e-30 * X),
    "a deviation of 0": (lambda: Normed(deviation=0.0), normal(1, 3, 8, 8)),
    "large weights below a large norm": (lambda: Normed(size=1e25, scale=1e20), 1e-25 * normal(1, 3, 8, 8)),
    "small weights below a small norm": (lambda: Normed(size=1e-25, scale=1e-20), 1e25 * normal(1, 3, 8, 8)),
    "layers of small weights in a row": (lambda: InARow(1e-25), 1e30 * X),
    "layers of small weights without biases": (lambda: Biased(1e-25), 1e30 * X),
    "a small adapter of zeros": (lambda: Added(1e-25), 1e30 * X),
    "large divisors": (Divided, 1e30 * X),
    "factors of small weights in f16": (lambda: LowRank(1e-4), 100 * normal(4, 64).half()),
}
#: What the merged constants of these have is what the model's own order has.
HARMLESS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "a layer of zeros": (lambda: InARow(0.0), X),
    "an adapter that adds nothing": (lambda: Added(0.0), X),
    "a zero among factors": (lambda: Beside(False, 0.0), X),
    "factors in f16": (lambda: LowRank(0.02), normal(4, 64).half()),
    "a weight that is nan": (lambda: Beside(True, torch.nan), X),
}


def made(case: str) -> tuple[nn.Module, Tensor]:
    make, x = (CASES | HARMLESS)[case]
    torch.manual_seed(0)
    return make().eval(), x


def assert_like(actual: Any, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        assert_close(actual, copy.deepcopy(model).double()(x.double()), model(x), reassociates=True)


def left_out(report: Any) -> list[str]:
    return [note for note in report.notes if "left out, since constants that they merge" in note]


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_models_own_order(case: str) -> None:
    model, x = made(case)
    compiled = regraft.compile(model, (x,), verify=True, cache=False)
    assert_like(compiled(x), model, x)
    assert left_out(compiled.report)


@pytest.mark.parametrize("case", ["layers in a row", "a divisor of 0"])
def test_exports_do_the_same(case: str, tmp_path: Path) -> None:
    model, x = made(case)
    report = regraft.export_onnx(model, (x,), tmp_path / "model.onnx")
    assert left_out(report.compile)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {report.inputs[0]: np.asarray(x)})
    assert_like(torch.as_tensor(found), model, x)


@pytest.mark.parametrize("case", HARMLESS)
def test_nothing_is_left_out_for_what_the_model_itself_has(case: str) -> None:
    model, x = made(case)
    compiled = regraft.compile(model, (x,), verify=True, cache=False)
    assert_like(compiled(x), model, x)
    assert not left_out(compiled.report)


def test_new_weights_may_be_nan() -> None:
    model = InARow(0.1).eval()
    compiled = regraft.compile(model, (X,), cache=False)
    with torch.no_grad():
        model.first.weight[0, 0] = torch.nan
    compiled.refresh(model)
    assert_like(compiled(X), model, X)


def test_a_nan_hides_no_overflow() -> None:
    model, x = InARow(1e25).eval(), 1e-30 * X
    with torch.no_grad():
        model.second.weight[0, 0] = torch.nan
    compiled = regraft.compile(model, (x,), verify=True, cache=False)
    assert left_out(compiled.report)
    assert_like(compiled(x), model, x)


def test_finite_constants_are_merged() -> None:
    merges = {
        "MergedLinear": InARow(0.1),
        "DivisionByConstant": Beside(True, 2.0),
        "ScaledLayer": Beside(False, 3.0),
    }
    for rewrite, model in merges.items():
        compiled = regraft.compile(model.eval(), (X,), verify=True, cache=False)
        assert not left_out(compiled.report)
        assert compiled.report.rewrites[rewrite].hits


def test_masks_may_be_infinite() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.full((6, 6), -torch.inf).triu(1)
            return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask + mask)

    x = normal(1, 2, 6, 8)
    compiled = regraft.compile(Attention().eval(), (x,), verify=True, cache=False)
    assert not left_out(compiled.report)


def test_new_weights_that_overflow_ask_for_a_compile() -> None:
    model = InARow(0.1).eval()
    compiled = regraft.compile(model, (X,), cache=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e26)
    with pytest.raises(RecompileError, match=r"merged overflow or vanish\. Compile again"):
        compiled.refresh(model)
    assert_like(regraft.compile(model, (1e-30 * X,), cache=False)(1e-30 * X), model, 1e-30 * X)


def test_an_entry_of_the_cache_does_not_serve_weights_that_overflow(tmp_path: Path) -> None:
    regraft.compile(InARow(0.1).eval(), (X,), cache=tmp_path)
    assert regraft.compile(InARow(0.2).eval(), (X,), cache=tmp_path).report.cache.status == "hit"
    model, x = InARow(1e25).eval(), 1e-30 * X
    compiled = regraft.compile(model, (x,), cache=tmp_path, verify=True)
    assert "constants that were merged overflow or vanish" in compiled.report.cache.reason
    assert_like(compiled(x), model, x)


def test_what_leaves_rewrites_out_is_not_kept_for_other_weights(tmp_path: Path) -> None:
    model, x = InARow(1e25).eval(), 1e-30 * X
    for _ in range(2):
        compiled = regraft.compile(model, (x,), cache=tmp_path)
        assert compiled.report.cache.status == "not cached"
        assert "left out for these weights" in compiled.report.cache.reason
        assert left_out(compiled.report)
    other = regraft.compile(InARow(0.1).eval(), (x,), cache=tmp_path)
    assert other.report.cache.status == "miss"
    assert other.report.rewrites["MergedLinear"].hits


@pytest.mark.parametrize("divisor", [0.0, torch.nan])
def test_torch_compile_takes_weights_that_cannot_be_merged(divisor: float) -> None:
    torch._dynamo.reset()
    model = Beside(True, 1.0).eval()
    compiled = torch.compile(model, backend="regraft")
    with torch.no_grad():
        assert_like(compiled(X), model, X)
        model.values[0] = divisor
        assert_like(compiled(X), model, X)
        model.values[0] = 2.0
        assert_like(compiled(X), model, X)
