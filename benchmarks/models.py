"""A whole model, compiled by regraft without being told anything, against peers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import regraft
from benchmarks import machine
from benchmarks.peers import EXPORTED, Inputs, NoPeer, Peer, error_of, exported, tensors
from regraft.timing import race
from tests.models import in_double

BuildPeer = Callable[[nn.Module, Inputs], Peer]


def race_model(
    benchmark: str,
    workload: str,
    model: nn.Module,
    inputs: tuple[Inputs, Inputs],
    peers: Sequence[BuildPeer],
    rounds: int,
    patience: float,
) -> dict[str, Any]:
    """Race regraft with ``peers`` on one model.

    ``inputs`` are those that all are built for and called with, and fresh ones that their errors are taken
    on; ``peers`` hold eager torch. A peer takes no part that cannot run the model, or whose error is beyond
    the numerics rule. The file that regraft exports is raced as well, with those of the other exporters.
    """
    where = machine.describe()
    torch.set_num_threads(machine.THREADS)
    given, fresh = inputs
    start = time.perf_counter()
    compiled = regraft.compile(model, kwargs=dict(given), threads=machine.THREADS)
    ours = Peer(
        "regraft",
        lambda: compiled(**given),
        lambda other: tensors(compiled(**other)),
        time.perf_counter() - start,
    )
    field, absent = [ours], {}
    for build in (exported, *peers):
        try:
            field.append(build(model, given))
        except NoPeer as error:
            absent[build.__name__] = str(error)

    def reference(other: Inputs) -> list[Tensor]:
        return tensors(in_double(model, **other))

    eager = next(peer for peer in field if peer.name == "eager")
    errors = {peer.name: error_of(peer.run, reference, eager.run, fresh) for peer in field}
    counted = {peer.name: peer.call for peer in field if errors[peer.name]["counts"]}
    assert all(errors[name]["counts"] for name in ("regraft", EXPORTED) if name in errors), errors
    files = {name: call for name, call in counted.items() if name not in ("regraft", "eager")}
    return {
        "benchmark": benchmark,
        "workload": workload,
        "settings": {"threads": machine.THREADS, "dtype": dtype_of(model), "batch": 1, "shapes": "static"},
        "ratio": "time of the entrant over time of the first: above 1, the first is faster",
        "machine": where,
        "errors": errors,
        "absent": absent,
        "build_seconds": {peer.name: round(peer.build_seconds, 2) for peer in field},
        "race": race(counted, rounds=rounds, patience=patience).to_dict(),
        "files": race(files, rounds=rounds, patience=patience).to_dict() if EXPORTED in files else None,
        "executors": compiled.report.to_dict()["executors"],
    }


def dtype_of(model: nn.Module) -> str:
    """The dtype of the weights."""
    return {torch.float32: "f32", torch.bfloat16: "bf16"}[next(model.parameters()).dtype]


def save(name: str, result: dict[str, Any]) -> None:
    """Write ``<name>.json`` and print the times."""
    path = machine.save(name, result)
    print(f"{result['workload']} -> {path.name}", flush=True)
    for raced in ("race", "files"):
        for entrant, row in (result.get(raced) or {"entrants": {}})["entrants"].items():
            print(f"  {entrant:24} {_line(row)}")
    for peer, why in result["absent"].items():
        print(f"  {peer:24} cannot run it: {why}")


def _line(row: dict[str, Any]) -> str:
    line = f"{row['median_ms']:8.2f} ms"
    if "ratio" in row:
        ratio = row["ratio"]
        line += f"  ratio {ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    return f"{line}  {row.get('verdict', '')}"
