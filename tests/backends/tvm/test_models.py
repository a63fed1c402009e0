"""Whole models through the kernels alone, and beside ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.export import Dim
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import regraft
from regraft.errors import UnsupportedOpError
from regraft.testing import assert_close, randomise

LENGTHS = {"input_ids": {0: Dim.AUTO, 1: Dim.AUTO}}


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(24), nn.Linear(24, 70), nn.Linear(70, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    return randomise(BertModel(config, add_pooling_layer=False)).eval()


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        use_cache=False,
    )
    return randomise(LlamaForCausalLM(config)).eval()


def backends_of(compiled: regraft.CompiledModel) -> list[str]:
    return [step.executable.backend for step in compiled.plan.steps]


def test_mlp_of_any_length() -> None:
    torch.manual_seed(0)
    model, x = randomise(Mlp()).eval(), torch.randn(5, 24)
    sizes = {"x": {0: Dim("n", min=0, max=64)}}
    compiled = regraft.compile(model, (x,), dynamic_shapes=sizes, backends=("tvm",), verify=True)
    assert backends_of(compiled) == ["tvm"]
    for length in (0, 1, 7, 64):
        x = torch.randn(length, 24)
        assert_close([compiled(x)], [model.double()(x.double())], [model.float()(x)], reassociates=True)


@pytest.mark.parametrize("make", [bert, llama])
def test_transformers_alone(make: Callable[[], nn.Module]) -> None:
    model = make()
    compiled = regraft.compile(
        model,
        kwargs={"input_ids": torch.randint(0, 50, (2, 7))},
        dynamic_shapes=LENGTHS,
        backends=("tvm",),
        verify=True,
    )
    assert backends_of(compiled) == ["tvm"]
    for shape in ((1, 1), (3, 13)):
        ids = torch.randint(0, 50, shape)
        found, expected = compiled(input_ids=ids)[0], model(input_ids=ids)[0]
        exact = model.double()(input_ids=ids)[0]
        model.float()
        assert_close([found], [exact], [expected], reassociates=True)


class Tagger(nn.Module):
    """An LSTM, which has no kernel here, between layers that have."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(20, 16), nn.LSTM(16, 8, batch_first=True)
        self.out = nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.lstm(torch.tanh(self.embed(ids)))
        return self.out(hidden).softmax(-1)


def test_beside_onnx_runtime() -> None:
    torch.manual_seed(0)
    model, ids = Tagger().eval(), torch.randint(0, 20, (2, 6))
    compiled = regraft.compile(model, (ids,), backends=("tvm", "ort"), verify=True)
    assert {"tvm", "ort"} == set(backends_of(compiled))
    torch.testing.assert_close(compiled(ids), model(ids).detach())


def test_what_has_no_kernel_is_refused() -> None:
    model, x = nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 8, 8)
    with pytest.raises(UnsupportedOpError, match="there is no lowering to a kernel"):
        regraft.compile(model, (x,), backends=("tvm",))
