"""The spine: transformers that regraft compiles without being told anything, against each peer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import regraft
from benchmarks import machine
from benchmarks.peers import PEERS, Inputs, Peer, error_of, tensors
from regraft.timing import race
from tests.models import FAMILIES, Family, in_double

MODELS = ("bert", "gpt2", "llama", "vit")


def run(models: Sequence[str] = MODELS, rounds: int = 30, patience: float = 120.0) -> None:
    """Race regraft against the peers on each model; writes ``spine_<model>.json``."""
    torch.set_num_threads(machine.THREADS)
    for name in models:
        result = _one(FAMILIES[name], rounds, patience)
        path = machine.save(f"spine_{name}", result)
        print(f"{result['workload']} -> {path.name}", flush=True)
        for entrant, row in result["race"]["entrants"].items():
            print(f"  {entrant:24} {_line(row)}")


def _one(family: Family, rounds: int, patience: float) -> dict[str, Any]:
    where = machine.describe()
    model = family.make("full")
    length = 2048 if family.name == "modernbert" else 128
    inputs, fresh = (family.inputs(1, length, seed=seed) for seed in (1, 2))
    start = time.perf_counter()
    compiled = regraft.compile(model, kwargs=inputs, threads=machine.THREADS)
    ours = Peer(
        "regraft",
        lambda: compiled(**inputs),
        lambda given: tensors(compiled(**given)),
        time.perf_counter() - start,
    )
    field = [ours, *(build(model, inputs) for build in PEERS)]

    def reference(given: Inputs) -> list[Tensor]:
        return tensors(in_double(model, **given))

    eager = next(peer for peer in field if peer.name == "eager")
    errors = {peer.name: error_of(peer.run, reference, eager.run, fresh) for peer in field}
    counted = {peer.name: peer.call for peer in field if errors[peer.name]["counts"]}
    assert "regraft" in counted, errors["regraft"]
    return {
        "benchmark": "spine",
        "workload": family.workload,
        "settings": {"threads": machine.THREADS, "dtype": "f32", "batch": 1, "shapes": "static"},
        "ratio": "time of the entrant over time of regraft: above 1, regraft is faster",
        "machine": where,
        "errors": errors,
        "build_seconds": {peer.name: round(peer.build_seconds, 2) for peer in field},
        "race": race(counted, rounds=rounds, patience=patience).to_dict(),
        "executors": compiled.report.to_dict()["executors"],
    }


def _line(row: dict[str, Any]) -> str:
    line = f"{row['median_ms']:8.2f} ms"
    if "ratio" in row:
        ratio = row["ratio"]
        line += f"  ratio {ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    return f"{line}  {row.get('verdict', '')}"
