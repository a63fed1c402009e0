"""Key-value caches: twenty tokens decoded one by one, with the cache in buffers and in arguments."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

import regraft
from regraft.testing import randomise
from tests.e2e.mutating import assert_equal_state, same

HEADS, LENGTH, SIZE = 2, 24, 8


def attend(x: Tensor, keys: Tensor, values: Tensor, qkv: nn.Linear, position: Tensor) -> Tensor:
    """One token of each row attends to those before it; ``keys`` and ``values`` [B, H, S, D] take it in."""
    query, key, value = (
        part.view(x.shape[0], 1, HEADS, SIZE).transpose(1, 2) for part in qkv(x).chunk(3, dim=-1)
    )
    keys.index_copy_(2, position, key)
    values.index_copy_(2, position, value)
    seen = torch.arange(LENGTH) <= position
    mixed = functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen[None, None, None])
    return mixed.transpose(1, 2).reshape(x.shape)


class Decoder(nn.Module):
    """Two layers of attention with static caches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(32, HEADS * SIZE), nn.Linear(HEADS * SIZE, 32)
        self.qkv = nn.ModuleList([nn.Linear(HEADS * SIZE, 3 * HEADS * SIZE) for _ in range(2)])
        for layer in range(2):
            self.register_buffer(f"keys_{layer}", torch.zeros(2, HEADS, LENGTH, SIZE))
            self.register_buffer(f"values_{layer}", torch.zeros(2, HEADS, LENGTH, SIZE), persistent=False)

    def forward(self, ids: Tensor, cache_position: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer, qkv in enumerate(self.qkv):
            keys, values = getattr(self, f"keys_{layer}"), getattr(self, f"values_{layer}")
            x = x + attend(x, keys, values, qkv, cache_position)
        return self.head(x)


class Functional(Decoder):
    """The same with the caches as arguments."""

    def forward(self, ids: Tensor, cache_position: Tensor, caches: list[tuple[Tensor, Tensor]]) -> Tensor:
        x = self.embed(ids)
        for (keys, values), qkv in zip(caches, self.qkv, strict=True):
            x = x + attend(x, keys, values, qkv, cache_position)
        return self.head(x)


def fresh_caches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.zeros(2, HEADS, LENGTH, SIZE), torch.zeros(2, HEADS, LENGTH, SIZE)) for _ in range(2)]


def empty(model: Any) -> Any:
    for buffer in model.buffers():
        buffer.zero_()
    return model


def first() -> Tensor:
    return torch.tensor([[3], [7]])


@torch.no_grad()
def decoded(model: Any, *caches: Any) -> tuple[list[Tensor], list[list[int]]]:
    """Logits and greedy tokens of twenty steps."""
    ids, logits, tokens = first(), [], []
    for step in range(20):
        logits.append(model(ids, torch.tensor([step]), *caches))
        ids = logits[-1].argmax(-1)
        tokens.append(ids.flatten().tolist())
    return logits, tokens


def test_twenty_tokens_with_the_cache_in_buffers() -> None:
    model = empty(randomise(Decoder().eval()))
    reference = copy.deepcopy(model)
    compiled = regraft.compile(model, (first(), torch.tensor([0])), verify=True)
    assert compiled.report.to_dict()["executors"].keys() == {"ort"}
    assert not model.keys_0.any()
    logits, tokens = decoded(compiled)
    expected, wanted = decoded(reference)
    assert tokens == wanted
    same(logits, expected)
    assert_equal_state(model, reference)
    assert model.keys_1[:, :, 19].any()
    assert not model.keys_1[:, :, 20:].any()


def test_twenty_tokens_with_the_cache_in_arguments() -> None:
    model = randomise(Functional().eval())
    example = (first(), torch.tensor([0]), fresh_caches())
    compiled = regraft.compile(model, example, verify=True)
    ours, eagers = fresh_caches(), fresh_caches()
    logits, tokens = decoded(compiled, ours)
    expected, wanted = decoded(model, eagers)
    assert tokens == wanted
    same(logits, expected)
    same(ours, eagers)
    assert not any(cache.any() for pair in example[2] for cache in pair)


def test_twenty_tokens_with_plain_onnxruntime(tmp_path: Path) -> None:
    """Outputs go back to the inputs that the report names."""
    model = empty(randomise(Decoder().eval()))
    example = {"ids": first(), "cache_position": torch.tensor([0])}
    report = regraft.export_onnx(model, (), tmp_path / "decoder.onnx", kwargs=example)
    caches = ("keys_0", "values_0", "keys_1", "values_1")
    assert report.inputs[:2] == ("ids", "cache_position")
    assert sorted(report.inputs[2:]) == sorted(caches)
    assert report.writes == {f"{name}_out": name for name in report.inputs[2:]}
    assert report.outputs[1:] == tuple(report.writes)
    assert json.loads(json.dumps(report.to_dict()))["writes"] == report.writes
    session = onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    state = {name: dict(model.named_buffers())[name].numpy().copy() for name in caches}

    def call(ids: Tensor, position: Tensor) -> Tensor:
        feed = {"ids": ids.numpy(), "cache_position": position.numpy(), **state}
        found = dict(zip(report.outputs, session.run(list(report.outputs), feed), strict=True))
        state.update({target: found[output] for output, target in report.writes.items()})
        return torch.from_numpy(found[report.outputs[0]])

    logits, tokens = decoded(call)
    assert not model.keys_0.any()
    expected, wanted = decoded(model)
    assert tokens == wanted
    same(logits, expected)
    same({name: torch.from_numpy(state[name]) for name in caches}, {n: getattr(model, n) for n in caches})


def test_an_argument_that_is_returned_is_an_output_too(tmp_path: Path) -> None:
    def model(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = x * 2
        return y.add_(x), z

    report = regraft.export_onnx(model, (torch.ones(3), torch.ones(3)), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    assert report.writes == {"y_out": "y"}
    found = session.run(["output_0", "output_1", "y_out"], {"x": np.ones(3, "f4"), "y": np.ones(3, "f4")})
    assert [float(each[0]) for each in found] == [2, 2, 2]
