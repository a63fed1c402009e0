"""Low-rank, LoRA and block-shuffle networks on our own kernels, against ONNX Runtime and OpenVINO."""

from __future__ import annotations

import copy
import os
import tempfile
import time
from typing import Any

import torch
from torch import Tensor, nn

import regraft
from benchmarks import machine
from benchmarks.algebra import TOKENS as SHUFFLED_TOKENS
from benchmarks.low_rank import RANKS, TOKENS, WIDTH, GatedFFN, LoRAFFN
from benchmarks.peers import Inputs, Peer, error_of, openvino, tensors, torch_onnx
from regraft.testing import randomise
from regraft.timing import race
from tests.zoo.test_low_rank import MLP, BlockShuffle

#: For all forms; peers have the network as it is written.
_MEMORY = 1 << 30


def run(
    ranks: tuple[int, ...] = RANKS, tokens: tuple[int, ...] = TOKENS, rounds: int = 20, patience: float = 5.0
) -> None:
    """Race every point, without tuning database and profile; writes ``low_rank_peers.json``."""
    torch.set_num_threads(machine.THREADS)
    where = machine.describe()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REGRAFT_CACHE_DIR"] = folder
        points = [
            _point(f"rank {rank}", GatedFFN(rank), count, rounds, patience)
            for rank in ranks
            for count in tokens
        ]
        points += [_point("LoRA 64", LoRAFFN(), count, rounds, patience) for count in (1, 128)]
        shuffled = MLP(BlockShuffle, WIDTH, 4096)
        points += [_point("block shuffle", shuffled, count, rounds, patience) for count in SHUFFLED_TOKENS]
    good = [point for point in points if point["never_slower"]]
    result = {
        "benchmark": "low_rank_peers",
        "workload": f"FFNs of {WIDTH}: SwiGLU of 2816 through a rank; LoRA and block-shuffle of 4096",
        "settings": {"threads": machine.THREADS, "dtype": "f32", "batch": 1, "tuned": False},
        "ratio": "time of the entrant over time of regraft on TVM: above 1, regraft is faster",
        "machine": where,
        "points_never_slower": f"{len(good)} of {len(points)}",
        "points": points,
    }
    path = machine.save("low_rank_peers", result)
    print(f"{len(good)} of {len(points)} points not slower than any peer -> {path.name}")


def _point(name: str, model: nn.Module, count: int, rounds: int, patience: float) -> dict[str, Any]:
    """One race. It is lost when a peer is faster beyond the noise."""
    torch.manual_seed(0)
    model = randomise(model.eval())
    inputs: Inputs = {"x": torch.randn(1, count, WIDTH)}
    entrants = [_ours(model, inputs), torch_onnx(model, inputs), openvino(model, inputs)]
    in_double = copy.deepcopy(model).double()
    errors = {
        peer.name: error_of(
            peer.run,
            lambda given: tensors(in_double(given["x"].double())),
            lambda given: [model(**given)],
            inputs,
        )
        for peer in entrants
    }
    assert errors["regraft"]["counts"], errors
    calls = {peer.name: peer.call for peer in entrants if errors[peer.name]["counts"]}
    inner = 20 if count <= 16 else 1
    found = race(calls, rounds=rounds, inner=inner, patience=patience).to_dict()
    verdicts = {key: each["verdict"] for key, each in found["entrants"].items() if "verdict" in each}
    medians = {key: each["ratio"]["median"] for key, each in found["entrants"].items() if "ratio" in each}
    never_slower = "slower" not in verdicts.values()
    print(f"{name:14} tokens {count:4}", medians, "" if never_slower else "SLOWER", flush=True)
    return {
        "network": name,
        "tokens": count,
        "never_slower": never_slower,
        "errors": errors,
        "race": found,
    }


def _ours(model: nn.Module, inputs: Inputs) -> Peer:
    start = time.perf_counter()
    with torch.no_grad():
        compiled = regraft.compile(
            model,
            kwargs=dict(inputs),
            backends=("tvm",),
            threads=machine.THREADS,
            memory_limit=_MEMORY,
            cache=False,
        )
    seconds = time.perf_counter() - start

    def results(given: Inputs) -> list[Tensor]:
        return tensors(compiled(**given))

    return Peer("regraft", lambda: compiled(**inputs), results, seconds)
