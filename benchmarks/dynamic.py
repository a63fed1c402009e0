"""Networks that branch on data, compiled in one call: each path against eager torch and inductor.

Beside them stand, on each path, the ops of that path alone, traced and compiled by others: they know the path
beforehand.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import regraft
from benchmarks import machine
from benchmarks.peers import STATIC_PEERS, Inputs, Peer, error_of, inductor, values
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
    "skipnet_ff",
    "skipnet_rnn",
    "lstm_loop",
    "gru_loop",
    "mamba_loop",
)
"""The workloads with exits and skipped layers, DyCL's nine, SkipNet as published, and loops over steps."""

BLENDS = ("skipnet_ff", "skipnet_rnn")
"""Those that compute every block and blend by a 0/1 mask: skipped where the user allows it."""

LOOPS = ("lstm_loop", "gru_loop", "mamba_loop")
"""Those that run hundreds of trips: inductor and tracers unroll them, and are not asked."""


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
    calls, seconds, refused = _entrants(network.name, model, list(inputs.values()))
    return {
        "benchmark": "dynamic",
        "workload": network.workload,
        "settings": {"threads": machine.THREADS, "dtype": "f32", "shapes": "static"},
        "ratio": "time of the entrant over time of the first: above 1, the first is faster",
        "machine": where,
        "build_seconds": seconds,
        "refused": refused,
        "paths": [
            {"decisions": list(path), **_race_path(network.name, model, given, calls, rounds, patience)}
            for path, given in inputs.items()
        ],
    }


def _entrants(
    name: str, model: nn.Module, inputs: Sequence[Inputs]
) -> tuple[dict[str, CallWith], dict[str, float], dict[str, str]]:
    """Calls, seconds to build, and errors, by name; regraft comes first where it compiles the model."""

    def eager(given: Inputs) -> object:
        with torch.inference_mode():
            return model(**given)

    calls: dict[str, CallWith] = {}
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    start = time.perf_counter()
    exactness = regraft.Exactness.APPROX(0.0) if name in BLENDS else regraft.Exactness.REASSOCIATES
    try:
        compiled = regraft.compile(
            model, kwargs=dict(inputs[0]), threads=machine.THREADS, exactness=exactness, cache=False
        )
    except RegraftError as error:
        refused["regraft"] = str(error)
    else:
        calls["regraft"] = lambda given: compiled(**given)
        seconds["regraft"] = round(time.perf_counter() - start, 2)
    calls["eager"] = eager
    if name not in LOOPS:
        theirs = inductor(model, inputs)
        calls["inductor"] = theirs.call
        seconds["inductor"] = round(theirs.build_seconds, 2)
    return calls, seconds, refused


def _static_peers(name: str, model: nn.Module, given: Inputs) -> list[Peer]:
    """The path of ``given`` alone, by each who can trace it."""
    found: list[Peer] = []
    for make in () if name in LOOPS else STATIC_PEERS:
        try:
            found.append(make(model, given))
        except Exception as error:  # whatever a tool raises, it takes no part
            print(f"  {make.__name__}: {type(error).__name__}: {str(error)[:100]}", flush=True)
    return found


def _race_path(
    name: str, model: nn.Module, given: Inputs, calls: Mapping[str, CallWith], rounds: int, patience: float
) -> dict[str, Any]:
    def reference(other: Inputs) -> list[Tensor]:
        return values(in_double(model, **other))

    static = _static_peers(name, model, given)
    runs = {who: (lambda other, call=call: values(call(other))) for who, call in calls.items()}
    runs |= {peer.name: peer.run for peer in static}
    errors = {who: error_of(run, reference, runs["eager"], given) for who, run in runs.items()}
    entrants = {who: (lambda call=call: call(given)) for who, call in calls.items()}
    entrants |= {peer.name: peer.call for peer in static}
    counted = {who: call for who, call in entrants.items() if errors[who]["counts"]}
    assert "regraft" in counted or "regraft" not in calls, errors["regraft"]
    return {"errors": errors, "race": race(counted, rounds=rounds, patience=patience).to_dict()}
