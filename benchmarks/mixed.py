"""Whole transformers on ONNX Runtime, on our kernels, and on both where each part pays, against OpenVINO."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import regraft
from benchmarks import machine
from benchmarks.models import save
from benchmarks.peers import Inputs, Peer, error_of, openvino, tensors
from regraft.timing import race
from tests.models import FAMILIES, Family, in_double

MODELS = ("bert", "llama")

#: The entrants that are ours: name -> back ends.
_OURS = {"mixed": ("ort", "tvm"), "ort": ("ort",), "tvm": ("tvm",)}


def run(
    models: Sequence[str] = MODELS,
    rounds: int = 20,
    patience: float = 60.0,
    budget: str = "5min",
    threads: int = machine.THREADS,
) -> None:
    """Race the plans of each model; writes ``mixed_<model>.json``. What is measured to choose is not kept.

    On one thread everybody is timed by the CPU time of the process, which others on the machine do not
    disturb, and the file is ``mixed_<model>_one_thread.json``.
    """
    torch.set_num_threads(threads)
    ending = "_one_thread" if threads == 1 else ""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REGRAFT_CACHE_DIR"] = folder
        for name in models:
            save(f"mixed_{name}{ending}", _raced(FAMILIES[name], rounds, patience, budget, threads))


def _raced(family: Family, rounds: int, patience: float, budget: str, threads: int) -> dict[str, Any]:
    where = machine.describe()
    model = family.make("full")
    given, fresh = family.inputs(1, 128, seed=1), family.inputs(1, 128, seed=2)
    alone = [_compiled(name, model, given, budget, threads)[0] for name in ("ort", "tvm")]
    others = [*alone, openvino(model, given, threads)]
    ours, compiled = _compiled("mixed", model, given, budget, threads)  # the last, since it measures
    peers = [ours, *others]

    def reference(other: Inputs) -> list[Tensor]:
        return tensors(in_double(model, **other))

    def eager(other: Inputs) -> list[Tensor]:
        with torch.inference_mode():
            return tensors(model(**other))

    errors = {peer.name: error_of(peer.run, reference, eager, fresh) for peer in peers}
    assert all(errors[name]["counts"] for name in _OURS), errors
    counted = {peer.name: peer.call for peer in peers if errors[peer.name]["counts"]}
    clock = time.process_time if threads == 1 else time.perf_counter
    return {
        "benchmark": "mixed",
        "workload": family.workload,
        "settings": {
            "threads": threads,
            "clock": clock.__name__,
            "dtype": "f32",
            "batch": 1,
            "shapes": "static",
        },
        "ratio": "time of the entrant over time of the mixed plan: above 1, the mixed plan is faster",
        "machine": where,
        "errors": errors,
        "absent": {},
        "build_seconds": {peer.name: round(peer.build_seconds, 2) for peer in peers},
        "race": race(counted, rounds=rounds, patience=patience, clock=clock).to_dict(),
        "calls": [step.executable.backend for step in compiled.plan.steps],
        "choices": [str(choice) for choice in compiled.report.choices],
        "notes": compiled.report.notes,
    }


def _compiled(
    name: str, model: nn.Module, given: Mapping[str, Tensor], budget: str, threads: int
) -> tuple[Peer, Any]:
    tuning: dict[str, Any] = {"tune": True, "budget": budget} if len(_OURS[name]) > 1 else {}
    start = time.perf_counter()
    compiled = regraft.compile(
        model, kwargs=dict(given), backends=_OURS[name], threads=threads, cache=False, **tuning
    )
    seconds = time.perf_counter() - start

    def ours(other: Inputs) -> list[Tensor]:
        return tensors(compiled(**other))

    return Peer(name, lambda: compiled(**given), ours, seconds), compiled
