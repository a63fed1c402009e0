"""Networks that branch on data, compiled in one call: each path against eager torch and inductor."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import regraft
from benchmarks import machine
from benchmarks.peers import Inputs, error_of, inductor
from regraft.errors import RegraftError
from regraft.timing import race
from tests.models import in_double
from tests.zoo.dynamic.networks import DYNAMIC
from tests.zoo.dynamic.record import DynamicNetwork

CallWith = Callable[[Inputs], object]

NAMES = (
    "early_exit_encoder",
    "skipping_decoder",
    "shallow_deep_vgg",
    "shallow_deep_resnet",
    "shallow_deep_mobilenet",
    "shallow_deep_wide_resnet",
    "skipnet_ff_skipping",
    "skipnet_rnn_skipping",
    "captioning_resnext",
    "captioning_googlenet",
    "blockdrop",
)
"""The workloads with exits and skipped layers, and DyCL's nine networks."""


def run(networks: Sequence[str] = NAMES, rounds: int = 30, patience: float = 60.0) -> None:
    """Race regraft against the two on each path of each network; writes ``dynamic_<name>.json``."""
    for name in networks:
        result = race_paths(DYNAMIC[name], "full", rounds, patience)
        path = machine.save(f"dynamic_{name}", result)
        print(f"{result['workload']} -> {path.name}", flush=True)
        for who, why in result["refused"].items():
            print(f"  {who} refuses it: {why}", flush=True)
        for row in result["paths"]:
            medians = {who: entrant["median_ms"] for who, entrant in row["race"]["entrants"].items()}
            print(f"  {row['decisions']}: {medians}", flush=True)


def race_paths(network: DynamicNetwork, size: str, rounds: int, patience: float) -> dict[str, Any]:
    """One model compiled by each, raced on an input for each path.

    Who refuses the network takes no part. Nor does, on a path, who is off by more than the numerics rule.
    """
    where = machine.describe()
    torch.set_num_threads(machine.THREADS)
    model = network.make(size)
    names = list(inspect.signature(model.forward).parameters)
    inputs = {
        path: dict(zip(names, network.inputs(seed, size), strict=True))
        for path, seed in network.form(size).paths.items()
    }
    calls, seconds, refused = _entrants(model, list(inputs.values()))
    return {
        "benchmark": "dynamic",
        "workload": network.workload,
        "settings": {"threads": machine.THREADS, "dtype": "f32", "shapes": "static"},
        "ratio": "time of the entrant over time of the first: above 1, the first is faster",
        "machine": where,
        "build_seconds": seconds,
        "refused": refused,
        "paths": [
            {"decisions": list(path), **_race_path(model, given, calls, rounds, patience)}
            for path, given in inputs.items()
        ],
    }


def _entrants(
    model: nn.Module, inputs: Sequence[Inputs]
) -> tuple[dict[str, CallWith], dict[str, float], dict[str, str]]:
    """Calls, seconds to build, and errors, by name; regraft comes first where it compiles the model."""

    def eager(given: Inputs) -> object:
        with torch.inference_mode():
            return model(**given)

    calls: dict[str, CallWith] = {}
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    start = time.perf_counter()
    try:
        compiled = regraft.compile(model, kwargs=dict(inputs[0]), threads=machine.THREADS)
    except RegraftError as error:
        refused["regraft"] = str(error)
    else:
        calls["regraft"] = lambda given: compiled(**given)
        seconds["regraft"] = round(time.perf_counter() - start, 2)
    calls["eager"] = eager
    theirs = inductor(model, inputs)
    calls["inductor"] = theirs.call
    seconds["inductor"] = round(theirs.build_seconds, 2)
    return calls, seconds, refused


def _values(result: Any) -> list[Tensor]:
    """The values of a result; a number that the data decide, such as an exit, may come as a tensor."""
    return [leaf if isinstance(leaf, Tensor) else torch.tensor(leaf) for leaf in pytree.tree_leaves(result)]


def _race_path(
    model: nn.Module, given: Inputs, calls: Mapping[str, CallWith], rounds: int, patience: float
) -> dict[str, Any]:
    def reference(other: Inputs) -> list[Tensor]:
        return _values(in_double(model, **other))

    runs = {name: (lambda other, call=call: _values(call(other))) for name, call in calls.items()}
    errors = {name: error_of(run, reference, runs["eager"], given) for name, run in runs.items()}
    counted = {
        name: (lambda call=call: call(given)) for name, call in calls.items() if errors[name]["counts"]
    }
    assert "regraft" in counted or "regraft" not in calls, errors["regraft"]
    return {"errors": errors, "race": race(counted, rounds=rounds, patience=patience).to_dict()}
