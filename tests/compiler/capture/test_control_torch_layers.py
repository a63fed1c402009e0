"""Torch's own layers, whose code asks what a trace does not know or writes to what it does not say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regraft
from regraft.errors import CaptureError, RegraftError
from tests.compiler.capture.running import AUTO, BACKENDS, check_calls, compiled


class Encodes(nn.Module):
    """Torch looks whether the mask is the causal one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(x, mask=mask)


def test_a_mask_of_an_encoder_is_taken_as_it_is() -> None:
    x = torch.randn(2, 5, 8)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    # Of other numbers than 0 and -inf, eager's fast path makes nan.
    check_calls(Encodes().eval(), (x, causal), [(x, causal.T), (x, torch.zeros(5, 5)), (x + 1, causal)])


class Greedy(nn.Module):
    """Tokens after tokens, until one is 0 or there are enough: only a call knows how many the layer sees."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embed, self.head = nn.Embedding(7, 8), nn.Linear(8, 7)
        self.layer = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False) if whole else layer

    def forward(self, ids: Tensor) -> Tensor:
        last = ids[:, -1:]
        while last.sum() != 0 and ids.shape[1] < 9:
            mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
            last = self.head(self.layer(self.embed(ids), mask)[:, -1]).argmax(-1, keepdim=True)
            ids = torch.cat([ids, last], 1)
        return ids


@pytest.mark.parametrize("whole", [False, True])
def test_decoding_with_a_mask(whole: bool) -> None:
    calls = [(torch.tensor([[i, 2, j]]),) for i, j in ((1, 3), (4, 5), (6, 0), (2, 2))]
    check_calls(Greedy(whole=whole).eval(), calls[0], calls[1:])


class Adapts(nn.Module):
    """Norms by the statistics of the batch, where it is large."""

    mean: Tensor
    var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))
        self.weight = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().mean() > 1:
            x = F.batch_norm(x, self.mean, self.var, self.weight, training=True, momentum=0.3)
        return x + self.mean[:, None]


def test_a_norm_by_statistics_of_the_batch_in_an_arm() -> None:
    x = torch.randn(3, 4, 5)
    check_calls(Adapts().eval(), (x,), [(x * 4,), (x / 9,), (x * 2 - 1,)])


def test_a_norm_by_statistics_of_an_open_batch() -> None:
    class Norm(Adapts):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.mean, self.var, self.weight, training=True)

    calls = [(torch.randn(n, 4, length) * 2 + 1,) for n, length in ((2, 3), (7, 2), (4, 5))]
    check_calls(Norm().eval(), calls[0], calls, dynamic_shapes={"x": {0: AUTO, 2: AUTO}})


@pytest.mark.parametrize("shape", [(6, 4), (2, 4, 3, 3)])
def test_a_norm_without_running_statistics(shape: tuple[int, ...]) -> None:
    def model(x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, None, torch.arange(4.0, dtype=x.dtype), True)

    check_calls(model, (torch.randn(shape),), [(torch.randn(shape) * 3 + 1,)])


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 2 + 1


class Trains(nn.Module):
    """A norm that trains within a finished model."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        self.norm.train()
        return self.norm(x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1)])
def test_one_value_a_channel_of_an_open_batch_raises(backend: str, shape: tuple[int, ...]) -> None:
    model = Trains(nn.BatchNorm1d(4)).eval()
    dims = {axis: torch.export.Dim(f"d{axis}", min=1) for axis in range(len(shape)) if axis != 1}
    made = compiled(
        model,
        (numbers(3, 4, 5)[..., 0] if len(shape) == 2 else numbers(3, 4, 5),),
        backend,
        dynamic_shapes={"x": dims},
    )
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(RegraftError, match="Expected more than 1 value per channel when training"):
        made(numbers(*shape))
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    if len(shape) == 3:
        made(numbers(1, 4, 5))
        made(numbers(5, 4, 1))


def test_an_empty_batch_leaves_the_statistics_as_they_are() -> None:
    model = Trains(nn.BatchNorm1d(4)).eval()
    dims = {0: torch.export.Dim("n", min=0)}
    calls = [(numbers(n, 4),) for n in (3, 0, 5)]
    check_calls(model, calls[0], calls[1:], dynamic_shapes={"x": dims})


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("momentum", [0.3, 1.0])
def test_an_instance_norm_that_trains(affine: bool, momentum: float) -> None:
    norm = nn.InstanceNorm2d(4, affine=affine, momentum=momentum, track_running_stats=True)
    check_calls(Trains(norm).eval(), (numbers(2, 4, 3, 5),), [(numbers(2, 4, 3, 5) * 3,)])


def test_an_exported_instance_norm_that_trains_is_refused() -> None:
    x = numbers(2, 4, 3)
    program = torch.export.export(Trains(nn.InstanceNorm1d(4, track_running_stats=True)).eval(), (x,))
    with pytest.raises(CaptureError, match=rf"running statistics(.|\n)*{Path(__file__).name}:\d+"):
        regraft.compile(program, fallback="eager")


class Follows(Adapts):
    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().mean() > 1:
            if self.whole:
                x = torch.instance_norm(x, self.weight, None, self.mean, self.var, True, 0.3, 1e-5, False)
            else:
                x = F.instance_norm(x, self.mean, self.var, self.weight, momentum=0.3)
        return x + self.mean[:, None]


@pytest.mark.parametrize("whole", [False, True])
def test_an_instance_norm_with_running_statistics_in_an_arm(whole: bool) -> None:
    x = numbers(3, 4, 5)
    check_calls(Follows(whole=whole).eval(), (x,), [(x / 9,), (x * 4,), (x * 2 - 1,)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_instance_norm_of_open_sizes(backend: str) -> None:
    norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
    dims = {0: torch.export.Dim("n", min=0), 2: torch.export.Dim("length", min=0)}
    calls = [(numbers(*shape),) for shape in ((2, 4, 3), (1, 4, 7), (5, 4, 2), (2, 4, 0))]
    check_calls(Trains(norm).eval(), calls[0], calls[1:], (backend,), dynamic_shapes={"x": dims})
    made = compiled(Trains(norm).eval(), calls[0], backend, dynamic_shapes={"x": dims})
    for shape, message in (((3, 4, 1), "more than 1 spatial element"), ((0, 4, 3), "at least 1 element")):
        with pytest.raises(RegraftError, match=message):
            made(numbers(*shape))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_instance_norm_of_one_place_raises(backend: str) -> None:
    dims = {2: torch.export.Dim("length", min=1)}
    made = compiled(nn.InstanceNorm1d(4).eval(), (numbers(2, 4, 3),), backend, dynamic_shapes={"input": dims})
    with pytest.raises(RegraftError, match="more than 1 spatial element"):
        made(numbers(2, 4, 1))
