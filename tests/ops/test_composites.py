"""Ops outside the table that torch takes apart at capture, compiled for sizes that vary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim

import regraft
from regraft.testing import assert_close

Results = Sequence[Tensor]


def joins(x: Tensor, y: Tensor) -> Results:
    return (
        torch.hstack((x, y)),
        torch.vstack((x, y)),
        torch.dstack((x, y)),
        torch.column_stack((x, y)),
        torch.concat((x, y), 1),
        torch.block_diag(x, y),
        torch.stack(torch.meshgrid(x[0], y[0], indexing="ij")),
        torch.rot90(x),
        torch.fliplr(x),
        x.tile(2, 3),
        x.diag_embed(),
        torch.stack(torch.broadcast_tensors(x, y[0])),
    )


def products(x: Tensor, y: Tensor) -> Results:
    return (
        torch.einsum("ij,kj->ik", x, y),
        torch.einsum("ij,ij->i", x, y),
        torch.tensordot(x, y, ([1], [1])),
        torch.inner(x, y),
        torch.addr(x.mT @ y, x[0], y[0]),
        torch.linalg.matrix_norm(x),
        torch.linalg.vecdot(x, y),
        torch.cross(x[:, :3], y[:, :3], dim=1),
        torch.matrix_power(x.mT @ y, 3),
        torch.trace(x.mT @ y),
        x @ torch.eye(x.shape[1], dtype=x.dtype),
    )


def comparisons(x: Tensor, y: Tensor) -> Results:
    return (
        F.cosine_similarity(x, y),
        F.pairwise_distance(x, y),
        F.normalize(x),
        torch.isclose(x, y),
        torch.isfinite(x),
        torch.count_nonzero(x > 0, dim=1),
        torch.norm(x, p=1, dim=1),
        torch.quantile(x, 0.25),
        torch.nansum(x, 1),
        torch.std(x),
        torch.var(x, 1, keepdim=True),
    )


def functions(x: Tensor, y: Tensor) -> Results:
    return (
        torch.lerp(x, y, 0.25),
        torch.lerp(x, y, x),
        torch.logaddexp(x, y),
        torch.xlogy(x, y.abs()),
        torch.nan_to_num(x / 0, 0.0, 2.0, -2.0),
        torch.logit(x.sigmoid()),
        torch.arcsin(x.clamp(-0.9, 0.9)),
        torch.true_divide(x, y),
        torch.float_power(x.abs(), 1.5),
        torch.heaviside(x, y),
        torch.sinc(x),
        torch.special.entr(x.abs()),
        torch.deg2rad(x),
        torch.frac(x),
        torch.sgn(x),
        torch.clip(x, -0.5, 0.5),
        torch.trapezoid(x),
    )


def activations(x: Tensor, y: Tensor) -> Results:
    return (
        F.selu(x),
        F.celu(x, 0.5),
        F.prelu(x, torch.full((4,), 0.2)),
        F.softsign(x),
        F.threshold(x, 0.1, 0.2),
        F.hardshrink(x),
        F.softshrink(x),
        F.tanhshrink(x),
        F.logsigmoid(x),
        F.softmin(x, dim=1),
    )


def losses(x: Tensor, y: Tensor) -> Results:
    target, probability = (y[:, 0] > 0).long(), y.softmax(1)
    return (
        F.cross_entropy(x, target),
        F.cross_entropy(x, probability, label_smoothing=0.1),
        F.cross_entropy(x, target, weight=torch.arange(1.0, 5), ignore_index=0, reduction="sum"),
        F.nll_loss(x.log_softmax(1), target, reduction="none"),
        F.mse_loss(x, y),
        F.l1_loss(x, y, reduction="none"),
        F.smooth_l1_loss(x, y),
        F.huber_loss(x, y, delta=0.5),
        F.binary_cross_entropy(x.sigmoid(), y.sigmoid()),
        F.binary_cross_entropy_with_logits(x, y.sigmoid()),
        F.kl_div(x.log_softmax(1), probability, reduction="batchmean"),
        F.margin_ranking_loss(x, y, y.sign()),
        F.triplet_margin_loss(x, y, x + y),
        F.poisson_nll_loss(x, y.abs()),
    )


def indices(x: Tensor, y: Tensor) -> Results:
    places = (y > 0).long()
    return (
        torch.argsort(x, 1),
        torch.take(x, places),
        torch.linspace(0, 1, 5) + x[:1, :1],
        torch.eye(4) @ x.mT,
        torch.diag(x[0]),
        torch.diag(x.mT @ y),
        torch.tril_indices(4, 4),
        F.one_hot(places, 3),
    )


@pytest.mark.conformance
@pytest.mark.parametrize("function", [joins, products, comparisons, functions, activations, losses, indices])
def test_on_two_matrices(function: Callable[[Tensor, Tensor], Results]) -> None:
    axis = {0: Dim("n", min=2, max=1000)}
    check(function, lambda n: (torch.randn(n, 4), torch.randn(n, 4)), {"x": axis, "y": axis})


def fixed(x: Tensor, y: Tensor) -> Results:
    """These read sizes at capture, so that sizes cannot vary."""
    return (
        torch.kron(x, y),
        torch.linalg.multi_dot([x, y.mT, x]),
        torch.take_along_dim(x, (y > 0).long(), 1),
        torch.isin(x.round(), y.round()),
    )


def test_on_fixed_sizes() -> None:
    check(fixed, lambda n: (torch.randn(3, 4), torch.randn(3, 4)), None)


def images(x: Tensor) -> Results:
    return (
        F.unfold(x, 2, padding=1, stride=2),
        F.fold(F.unfold(x, 2), (6, 6), 2),
        F.channel_shuffle(x, 2),
        F.local_response_norm(x, 3),
        F.adaptive_max_pool1d(x[:, :, 0], 3),
        F.adaptive_avg_pool1d(x[:, :, 0], 3),
        F.lp_pool2d(x.abs(), 2, 2),
        F.interpolate(x, size=(5, 7), mode="area"),
        F.grid_sample(x, grid_of(x), align_corners=False),
        nn_cell(x),
    )


def grid_of(x: Tensor) -> Tensor:
    turn = torch.tensor([[0.8, -0.6, 0.0], [0.6, 0.8, 0.1]])
    return F.affine_grid(turn.expand(x.shape[0], 2, 3), [x.shape[0], 4, 5, 3], align_corners=False)


def nn_cell(x: Tensor) -> Tensor:
    """An LSTM cell, spelled by torch."""
    weights = [torch.linspace(-1, 1, 24).view(4, 6), torch.linspace(-1, 1, 4).view(4, 1)]
    state = torch.zeros(x.shape[0], 1)
    return torch.lstm_cell(x[:, 0, 0], (state, state), *weights)[0]


@pytest.mark.conformance
def test_on_images() -> None:
    check(images, lambda n: (torch.randn(n, 4, 6, 6),), {"x": {0: Dim("n", min=2, max=1000)}})


def check(function: Callable[..., Any], draw: Callable[[int], tuple[Tensor, ...]], shapes: Any) -> None:
    """Compiled for a size that varies, each result is eager's in fp64."""
    torch.manual_seed(0)
    compiled = regraft.compile(function, draw(3), dynamic_shapes=shapes)
    assert set(compiled.report.to_dict()["executors"]) == {"ort"}
    for size in (2, 7):
        args = draw(size)
        torch.set_default_dtype(torch.float64)  # for the tensors that the functions make
        try:
            expected = function(*(a.double() for a in args))
        finally:
            torch.set_default_dtype(torch.float32)
        assert_close(list(compiled(*args)), list(expected))
