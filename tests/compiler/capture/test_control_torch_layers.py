"""Torch's own layers, whose code asks what a trace does not know or writes to what it does not say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.compiler.capture.running import AUTO, check_calls


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
