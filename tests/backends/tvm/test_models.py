"""Whole models through the kernels alone, and beside ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import regraft
from regraft.backends.tvm import cpu
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


def llama(layers: int = 1) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        use_cache=False,
    )
    return randomise(LlamaForCausalLM(config)).eval()


class Gated(nn.Module):
    """A SwiGLU network with a residual, or its gate alone."""

    def __init__(self, bias: bool, down: bool = True) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(24, 70, bias=bias), nn.Linear(24, 70, bias=bias)
        self.down = nn.Linear(70, 24, bias=bias) if down else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.silu(self.gate(x)) * self.up(x)
        return hidden if self.down is None else x + self.down(hidden)


def kernels_of(compiled: regraft.CompiledModel) -> list[list[str]]:
    return [sorted(kernel["ops"]) for kernel in compiled.report.to_dict()["kernels"]]


def backends_of(compiled: regraft.CompiledModel) -> list[str]:
    return [step.executable.backend for step in compiled.plan.steps]


def test_mlp_of_any_length(tvm: Any) -> None:
    torch.manual_seed(0)
    model, x = randomise(Mlp()).eval(), torch.randn(5, 24)
    sizes = {"x": {0: Dim("n", min=0, max=64)}}
    compiled = regraft.compile(model, (x,), dynamic_shapes=sizes, backends=(tvm,), verify=True)
    assert backends_of(compiled) == ["tvm"]
    for length in (0, 1, 7, 64):
        x = torch.randn(length, 24)
        assert_close([compiled(x)], [model.double()(x.double())], [model.float()(x)], reassociates=True)


GATE = ["aten.linear", "aten.linear", "aten.mul.Tensor", "aten.silu"]
DOWN = ["aten.add.Tensor", "aten.linear"]


@pytest.mark.parametrize(
    ("model", "dtype", "expected"),
    [
        (Gated(bias=True), torch.float32, [["aten.add.Tensor", "rg.ffn"]]),
        (Gated(bias=True), torch.bfloat16, [GATE, DOWN]),
        (Gated(bias=False, down=False), torch.float32, [GATE]),
        (Mlp(), torch.float32, [["aten.add.Tensor", "rg.ffn"]]),
    ],
    ids=["network", "network in bf16", "gate", "plain network"],
)
def test_networks_and_gates_are_kernels_of_templates(
    tvm: Any, model: nn.Module, dtype: torch.dtype, expected: list[list[str]]
) -> None:
    if dtype == torch.bfloat16 and not cpu.host_cpu(1).has_bf16_dot:
        pytest.skip("this CPU has no dot product of bf16 pairs")
    torch.manual_seed(0)
    model = randomise(copy.deepcopy(model)).eval().to(dtype)
    sizes = {"x": {0: Dim("n", min=1, max=512)}}
    x = torch.randn(3, 24, dtype=dtype)
    compiled = regraft.compile(model, (x,), dynamic_shapes=sizes, backends=(tvm,), cache=False)
    assert kernels_of(compiled) == expected
    packed = compiled.report.to_dict()["memory"]["packed"]
    assert packed is not None
    assert packed >= sum(p.nbytes for p in model.parameters() if p.dim() > 1 and p.numel() > 24)
    for rows in (1, 9, 300):
        x = torch.randn(rows, 24, dtype=dtype)
        exact = copy.deepcopy(model).double()(x.double())
        assert_close([compiled(x)], [exact], [model(x)], reassociates=True)


def test_a_network_that_no_template_takes_is_products(tvm: Any) -> None:
    """In f64 there are no templates."""
    model, x = randomise(Gated(bias=True)).eval().double(), torch.randn(4, 24, dtype=torch.float64)
    compiled = regraft.compile(model, (x,), backends=(tvm,), verify=True, cache=False)
    assert kernels_of(compiled) == []


@pytest.mark.parametrize("make", [bert, llama])
def test_transformers_in_bf16(tvm: Any, make: Callable[[], nn.Module]) -> None:
    model = make().bfloat16()
    ids = torch.randint(0, 50, (2, 7))
    compiled = regraft.compile(model, kwargs={"input_ids": ids}, dynamic_shapes=LENGTHS, backends=(tvm,))
    assert backends_of(compiled) == ["tvm"]
    ids = torch.randint(0, 50, (3, 13))
    exact = copy.deepcopy(model).double()(input_ids=ids)[0]
    found = compiled(input_ids=ids)[0]
    assert found.dtype == torch.bfloat16
    assert_close([found], [exact], [model(input_ids=ids)[0]], reassociates=True)


@pytest.mark.parametrize("make", [bert, llama])
def test_transformers_alone(tvm: Any, make: Callable[[], nn.Module]) -> None:
    model = make()
    compiled = regraft.compile(
        model,
        kwargs={"input_ids": torch.randint(0, 50, (2, 7))},
        dynamic_shapes=LENGTHS,
        backends=(tvm,),
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


def test_beside_onnx_runtime(tvm: Any) -> None:
    torch.manual_seed(0)
    model, ids = Tagger().eval(), torch.randint(0, 20, (2, 6))
    compiled = regraft.compile(model, (ids,), backends=(tvm, "ort"), verify=True)
    assert {"tvm", "ort"} == set(backends_of(compiled))
    torch.testing.assert_close(compiled(ids), model(ids).detach())


def test_what_has_no_kernel_is_refused(tvm: Any) -> None:
    model, x = nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 8, 8)
    with pytest.raises(UnsupportedOpError, match="there is no lowering to a kernel"):
        regraft.compile(model, (x,), backends=(tvm,))


class Exits(nn.Module):
    """Leaves behind the block whose values are large enough, or halves what is left until it is small."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Mlp() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
            if x.abs().amax() > 8:
                return x
        while x.abs().amax() > 1:
            x = x / 2
        return x


def test_conditions_and_loops_are_the_plans(tvm: Any) -> None:
    torch.manual_seed(0)
    model, x = Exits().eval(), torch.randn(3, 24)
    compiled = regraft.compile(model, (x,), backends=(tvm,))
    assert set(compiled.report.to_dict()["executors"]) == {"tvm", "host"}
    for y in (x, 10 * x, 0.01 * x, 3 * x):
        assert_close(compiled(y), model.double()(y.double()), model.float()(y), reassociates=True)


def test_a_mask_that_all_layers_read() -> None:
    model = llama(layers=2)
    given = {
        "input_ids": torch.randint(0, 50, (2, 17)),
        "attention_mask": torch.ones(2, 17, dtype=torch.int64),
    }
    given["attention_mask"][1, :4] = 0
    compiled = regraft.compile(model, kwargs=given, backends=("tvm", "ort"), cache=False)
    wanted = copy.deepcopy(model).double()(**given).logits
    seen = given["attention_mask"].bool()
    assert_close(compiled(**given).logits[seen], wanted[seen])
