"""Products, block-diagonal and streamed layers: what rewrites of linear algebra gain over ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from benchmarks import machine
from benchmarks.peers import Run, error_of, tensors, torch_onnx
from benchmarks.zoo import without
from regraft.testing import randomise
from regraft.timing import race
from tests.zoo.test_flash_svd import SVDFeedForward, SVDSwiGLU
from tests.zoo.test_low_rank import MLP, BlockShuffle
from tests.zoo.test_products import LAMA, SoftmaxFreeAttention

TOKENS = (1, 16, 128, 512)


class SoftmaxFreeProducts(SoftmaxFreeAttention):
    """SOFT's attention on queries and values that are given: one head of 64, 56 x 56 tokens, 49 landmarks."""

    def __init__(self) -> None:
        super().__init__(dim=64, num_heads=1, ratio=8, side=56, steps=20)
        self.q = self.v = nn.Identity()


def run(rounds: int = 20, patience: float = 30.0) -> None:
    """Race SOFT and block-shuffle FFNs against torch.onnx, and low-rank FFNs of many rows against themselves
    unfused; writes ``algebra.json``."""
    torch.set_num_threads(machine.THREADS)
    where = machine.describe()
    block_shuffle = randomise(MLP(BlockShuffle, 1024, 4096).eval())
    races = {"soft, 3136 tokens": _against_torch_onnx(SoftmaxFreeProducts(), (1, 3136, 64), rounds, patience)}
    for count in TOKENS:
        name = f"block shuffle, 4 blocks, {count} tokens"
        races[name] = _against_torch_onnx(block_shuffle, (1, count, 1024), rounds, patience)
    result = {
        "benchmark": "algebra",
        "settings": {"threads": machine.THREADS, "dtype": "f32", "batch": 1, "tuned": False},
        "ratio": "time of the entrant over time of regraft: above 1, regraft is faster",
        "machine": where,
        "races": races,
        "streamed_ffn": _streamed(rounds, patience),
        "lama_flops": _lama(),
    }
    for name, each in {**races, **result["streamed_ffn"]}.items():
        found = {k: (v["ratio"], v["verdict"]) for k, v in each["race"]["entrants"].items() if "verdict" in v}
        print(name, found)
    print(machine.save("algebra", result).name)


def _against_torch_onnx(
    model: nn.Module, shape: Sequence[int], rounds: int, patience: float
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = randomise(model.eval())
    inputs = {"x": torch.randn(*shape)}
    compiled = regraft.compile(model, kwargs=inputs, threads=machine.THREADS, cache=False)
    peer = torch_onnx(model, inputs)
    error = error_of(peer.run, _eager(copy.deepcopy(model).double()), _eager(model), inputs)
    calls = {"regraft": lambda: compiled(**inputs), peer.name: peer.call}
    found = race(calls, rounds=rounds, inner=1, patience=patience).to_dict()
    return {"shape": list(shape), "peer_error": error, "flops": compiled.report.flops, "race": found}


def _eager(model: nn.Module) -> Run:
    """``model`` on inputs in its own precision."""
    dtype = next(model.parameters()).dtype
    return lambda inputs: tensors(model(**{name: x.to(dtype) for name, x in inputs.items()}))


def _streamed(rounds: int, patience: float) -> dict[str, Any]:
    """FFNs of rank 96 on 2048 rows, streamed, and as their separate products; plain and gated, of a number of
    rows that is known and one that is not (then on few rows as well)."""
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {
        "plain": SVDFeedForward(768, 3072, 96),
        "gated": SVDSwiGLU(1024, 2816, 96),
    }
    found: dict[str, Any] = {}
    for name, model in models.items():
        width = 1024 if name == "gated" else 768
        model = randomise(model.eval())
        fixed, symbolic = (_forms(model, width, dynamic=each) for each in (False, True))
        found[f"{name}, 2048 rows"] = _race_forms(fixed, torch.randn(1, 2048, width), rounds, patience)
        for count in (100, 500, 2048):
            x = torch.randn(1, count, width)
            found[f"{name}, {count} rows of any number"] = _race_forms(symbolic, x, rounds, patience)
    return found


def _forms(model: nn.Module, width: int, dynamic: bool) -> dict[str, Any]:
    """``model`` for rows of ``width``, streamed and not."""
    x = torch.randn(1, 2048, width)
    sizes = ({1: Dim.AUTO},) if dynamic else None

    def compiled() -> Any:
        return regraft.compile(model, (x,), dynamic_shapes=sizes, threads=machine.THREADS, cache=False)

    streamed = compiled()
    with without("StreamedFFN", "PlainFFN", "LowRankGatedFFN"):
        return {"streamed": streamed, "unfused": compiled()}


def _race_forms(forms: Mapping[str, Any], x: Tensor, rounds: int, patience: float) -> dict[str, Any]:
    calls = {name: partial(form, x) for name, form in forms.items()}
    memory = {name: form.report.memory["intermediates"] for name, form in forms.items()}
    return {
        "intermediate_bytes": memory,
        "race": race(calls, rounds=rounds, inner=1, patience=patience).to_dict(),
    }


def _lama() -> dict[str, Any]:
    model: nn.Module = randomise(LAMA(512, 64, 8).eval())
    x: Tensor = torch.randn(1, 128, 512)
    return regraft.compile(model, (x,), threads=machine.THREADS, cache=False).report.flops
