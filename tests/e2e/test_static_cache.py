"""transformers' static cache: a decoding step whose cache is state, held by a cache object and as buffers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

import regraft
from regraft.testing import assert_close, randomise

TOKENS = [3, 7, 9, 1, 4, 4, 11]


def decoder(dtype: torch.dtype = torch.float32) -> Any:
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    model: Any = randomise(LlamaForCausalLM(config).eval()).to(dtype)
    model.generation_config.cache_implementation = "static"
    model.generation_config.use_cache = True
    return TorchExportableModuleWithStaticCache(model, batch_size=1, max_cache_len=12).eval()


def step(position: int) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([[TOKENS[position]]]), "cache_position": torch.tensor([position])}


def cached(model: Any) -> list[Tensor]:
    return [tensor for layer in model.static_cache.layers for tensor in (layer.keys, layer.values)]


def test_token_by_token(tmp_path: Path) -> None:
    model, eager, wide = decoder(), decoder(), decoder(torch.float64)
    compiled = regraft.compile(model, kwargs=step(0), verify=True)
    assert set(compiled.report.to_dict()["executors"]) == {"ort"}
    assert not any(tensor.any() for tensor in cached(model)), "the compile wrote to the cache"
    compiled.save(tmp_path / "model")
    loaded = regraft.load(tmp_path / "model")
    with torch.no_grad():
        for position in range(len(TOKENS)):
            expected, own = wide(**step(position)), eager(**step(position))
            for each in (compiled, loaded):
                assert_close(each(**step(position)), expected, own)
    assert_close(cached(model), cached(wide), cached(eager))
