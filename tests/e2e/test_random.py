"""Models that draw random numbers: the same numbers as eager from the same seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional
from torch.utils import _pytree as pytree

import regraft
from regraft.errors import CaptureError, UnsupportedOpError
from regraft.testing import randomise
from tests.e2e.mutating import rows, same


def check(model: Any, *args: Tensor, **options: Any) -> Any:
    """Compile ``model``; from one seed it gives eager's numbers, call after call.

    The compile itself draws nothing.
    """
    torch.manual_seed(7)
    before = torch.get_rng_state()
    compiled = regraft.compile(model, args, **options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    expected = [model(*args) for _ in range(3)]
    after = torch.get_rng_state()
    torch.manual_seed(3)
    found = [compiled(*args) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), after)
    same(found, expected)
    first, second = (pytree.tree_leaves(each)[0] for each in found[:2])
    assert not torch.equal(first, second)
    return compiled


DRAWS: dict[str, Callable[[Tensor], Any]] = {
    "rand": lambda x: x + torch.rand(3, 8),
    "rand in f64": lambda x: x + torch.rand(8, dtype=torch.float64),
    "randn": lambda x: x + torch.randn(8),
    "randint": lambda x: x + torch.randint(0, 9, (3, 8)),
    "randperm": lambda x: x[:, torch.randperm(8)],
    "rand_like": lambda x: torch.rand_like(x),
    "randn_like": lambda x: torch.randn_like(x) * x,
    "randint_like": lambda x: torch.randint_like(x, 2, 90),
    "normal": lambda x: torch.normal(x, x.abs()),
    "normal of numbers": lambda x: torch.normal(0.5, 2.0, (3, 8)) + x,
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli_": lambda x: x.clone().bernoulli_(0.3) * x,
    "uniform_": lambda x: (x * 1).uniform_(-1, 1),
    "exponential_": lambda x: (x * 1).exponential_(),
    "multinomial": lambda x: torch.multinomial(x.softmax(1), 3),
    "multinomial with replacement": lambda x: torch.multinomial(x.softmax(1), 20, replacement=True),
    "poisson": lambda x: torch.poisson(x.exp() * 5),
    "dropout": lambda x: functional.dropout(x, 0.4, training=True),
    "alpha_dropout": lambda x: functional.alpha_dropout(x, 0.4, training=True),
    "rrelu": lambda x: functional.rrelu(x, training=True),
    "gumbel_softmax": lambda x: functional.gumbel_softmax(x, tau=0.5),
    "transposed": lambda x: functional.dropout(x.T.exp(), 0.4, training=True),
    "like a transposed": lambda x: torch.randn_like((x * 2).T),
    "rows picked from columns": lambda x: torch.multinomial(x.T.exp(), 2),
    "normal of transposed": lambda x: torch.normal((x * 1).T, x.T.exp()),
    "channels last": lambda x: torch.randn_like(
        x.view(1, 2, 3, 4).to(memory_format=torch.channels_last) if x.numel() == 24 else x
    ),
    "attention": lambda x: functional.scaled_dot_product_attention(
        x[None, None], x[None, None], x[None, None], dropout_p=0.5
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws(name: str) -> None:
    compiled = check(DRAWS[name], rows(), verify=True, fallback="eager")
    report = compiled.report.to_dict()
    assert report["executors"]["eager"] >= 1
    reasons = [row["reason"] for row in report["fallbacks"]]
    assert any("torch's generator" in reason for reason in reasons)


class Noisy(nn.Module):
    """Draws between products, which another library computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        late = torch.rand(8)
        y = functional.dropout(self.first(x), 0.3, training=True)
        z = self.second(y) + torch.randn_like(y)
        other = torch.rand(8) + functional.dropout(x, 0.1, training=True)
        return z + late, other, torch.rand(2)


def test_order_across_back_ends() -> None:
    compiled = check(randomise(Noisy().eval()), rows(), verify=True)
    executors = compiled.report.to_dict()["executors"]
    assert executors["ort"] >= 3
    assert executors["eager"] == 6


def test_equal_draws_are_two() -> None:
    """Neither shared, nor moved to compile time, nor dropped where a product with zero hides them."""
    compiled = check(lambda x: (torch.rand(8) - torch.rand(8), torch.rand(8) * 0 + x), rows())
    assert compiled.ir.count("aten.rand(") == 1 + 3  # its definition, and the draws
    assert "recipe" not in compiled.ir


def test_dynamic_sizes() -> None:
    def model(x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, training=True) + torch.rand(x.shape[0], 1)

    compiled = regraft.compile(model, (rows(),), dynamic_shapes={"x": {0: Dim.AUTO}})
    for count in (1, 2, 11):
        torch.manual_seed(count)
        expected = model(rows(count))
        torch.manual_seed(count)
        same(compiled(rows(count)), expected)


def test_dropout_that_does_not_drop() -> None:
    """No draw: eager makes none either, and nothing goes to torch."""
    compiled = regraft.compile(lambda x: functional.dropout(x.exp(), 0.5, training=False) + 1, (rows(),))
    before = torch.get_rng_state()
    same(compiled(rows()), rows().exp() + 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(compiled.report.to_dict()["executors"]) == ["ort"]


def test_an_artefact_draws_from_torchs_generator(tmp_path: Path) -> None:
    model = randomise(Noisy().eval())
    regraft.compile(model, (rows(),)).save(tmp_path / "saved")
    loaded = regraft.load(tmp_path / "saved")
    torch.manual_seed(5)
    expected = model(rows())
    torch.manual_seed(5)
    same(loaded(rows()), expected)


def test_state_and_draws() -> None:
    class Walking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("place", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            self.place.add_(torch.randn_like(self.place))
            return x + self.place

    model = Walking().eval()
    compiled = regraft.compile(model, (rows(),), verify=True)
    assert torch.equal(model.place, torch.zeros(8))
    torch.manual_seed(1)
    found = [compiled(rows()) for _ in range(3)]
    own = model.place.clone()
    model.place.zero_()
    torch.manual_seed(1)
    same(found, [model(rows()) for _ in range(3)])
    same(own, model.place)


# -- refused -----------------------------------------------------------------------------------


def test_a_draw_nobody_uses() -> None:
    def model(x: Tensor) -> Tensor:
        torch.rand(3)
        return x + 1

    with pytest.raises(CaptureError, match=r"nobody uses the random numbers of aten\.rand") as caught:
        regraft.compile(model, (rows(),))
    assert "torch.rand(3)" in str(caught.value)


def test_a_generator_of_ones_own() -> None:
    generator = torch.Generator()
    with pytest.raises(CaptureError, match="a generator of its own") as caught:
        regraft.compile(lambda x: x + torch.rand(8, generator=generator), (rows(),))
    assert "torch.manual_seed" in str(caught.value)


def test_a_layout_that_no_order_of_axes_gives() -> None:
    def model(x: Tensor) -> Tensor:
        return functional.dropout(x[:1].expand(3, 8), 0.5, training=True)

    with pytest.raises(CaptureError, match="an expanded one") as caught:
        regraft.compile(model, (rows(),))
    assert ".contiguous()" in str(caught.value)


def test_in_a_branch() -> None:
    """Only torch draws; a branch that ONNX Runtime would take whole goes to torch where that is allowed."""

    def noisy(x: Tensor) -> Tensor:
        return x + torch.rand(8)

    def model(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, noisy, torch.neg, (x,))

    with pytest.raises((UnsupportedOpError, CaptureError)):
        regraft.compile(model, (rows(),))


def test_an_onnx_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOpError, match="torch's generator"):
        regraft.export_onnx(lambda x: x + torch.rand(8), (rows(),), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
