"""Networks that branch on data, compiled in one call: each path against eager torch and inductor.

Beside them stand, on each path, the ops of that path alone, traced and compiled by others: they know the path
beforehand.
"""

from __future__ import annotations

import inspect
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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

OURS = "regraft"
LOADED = "regraft, saved and loaded"
"""As the static peers are, from a file: such a model has no original whose weights it would look at."""

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


INDUCTOR, STATIC = "inductor", "static"
PEERS = (INDUCTOR, STATIC)
"""``torch.compile``, and who is given the ops of one path alone."""


@dataclass(frozen=True)
class Settings:
    """How networks are raced.

    Fields:
        backends: what regraft compiles for, each a list as in ``tvm,ort``; the first is compared with all.
        peers: those of ``PEERS`` that take part; inductor takes longer to build than all others together.
        paths: how many paths of a network, spread over its table.
        threads: with one, everybody is timed by the CPU time of the process, which others on the machine do
            not disturb.
        sample: seconds that a sample takes at least: calls of some tenths of a millisecond are timed several
            at a time.
    """

    rounds: int = 20
    patience: float = 10.0
    backends: tuple[str, ...] = ("ort",)
    peers: tuple[str, ...] = (STATIC,)
    paths: int = 2
    threads: int = machine.THREADS
    sample: float = 3e-3

    def __post_init__(self) -> None:
        unknown = ", ".join(sorted(set(self.peers).difference(PEERS)))
        if unknown:
            raise ValueError(f"no such peers: {unknown}; there are {', '.join(PEERS)}")

    @property
    def clock(self) -> Callable[[], float]:
        return time.process_time if self.threads == 1 else time.perf_counter


def run(networks: Sequence[str] = NAMES, settings: Settings | None = None) -> None:
    """Race regraft against the others on paths of each network; writes ``dynamic_<name>.json``.

    On one thread the file is ``dynamic_<name>_one_thread.json``.
    """
    settings = settings or Settings()
    ending = "_one_thread" if settings.threads == 1 else ""
    for name in networks:
        result = race_paths(DYNAMIC[name], "full", settings)
        path = machine.save(f"dynamic_{name}{ending}", result)
        print(f"{result['workload']} -> {path.name}", flush=True)
        for who, why in result["refused"].items():
            print(f"  {who} refuses it: {why}", flush=True)
        for row in result["paths"]:
            medians = {who: entrant["median_ms"] for who, entrant in row["race"]["entrants"].items()}
            print(f"  {row['decisions']}: {medians}", flush=True)


def race_paths(network: DynamicNetwork, size: str, settings: Settings) -> dict[str, Any]:
    """One model compiled by each, raced on an input for each path.

    Who refuses the network takes no part. Nor does, on a path, who is off by more than the numerics rule.
    """
    where = machine.describe()
    torch.set_num_threads(settings.threads)
    model = network.make(size)
    names = list(inspect.signature(model.forward).parameters)
    paths = spread(tuple(network.form(size).paths.items()), settings.paths)
    inputs = {path: dict(zip(names, network.inputs(seed, size), strict=True)) for path, seed in paths}
    entrants = _entrants(network.name, model, list(inputs.values()), settings)
    return {
        "benchmark": "dynamic",
        "workload": network.workload,
        "settings": {
            "threads": settings.threads,
            "clock": settings.clock.__name__,
            "dtype": "f32",
            "shapes": "static",
            "backends": settings.backends,
            "sample_s": settings.sample,
            "paths": f"{len(paths)} of {len(network.form(size).paths)}",
        },
        "ratio": "time of the entrant over time of the first: above 1, the first is faster",
        "machine": where,
        "build_seconds": entrants.seconds,
        "refused": entrants.refused,
        "paths": [
            {"decisions": list(path), **_race_path(network.name, model, given, entrants.calls, settings)}
            for path, given in inputs.items()
        ],
    }


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` of ``items`` at equal distances, from the first to the last; all where there are fewer."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[-1]]
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


@dataclass
class _Entrants:
    """Calls, seconds to build, and errors, by name; regraft comes first where it compiles the model."""

    calls: dict[str, CallWith] = field(default_factory=dict[str, CallWith])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    refused: dict[str, str] = field(default_factory=dict[str, str])


def _entrants(name: str, model: nn.Module, inputs: Sequence[Inputs], settings: Settings) -> _Entrants:
    def eager(given: Inputs) -> object:
        with torch.inference_mode():
            return model(**given)

    found = _Entrants()
    for number, backends in enumerate(settings.backends):
        _add_ours(
            found, f"regraft {backends}" if number else OURS, name, model, inputs[0], settings, backends
        )
    found.calls["eager"] = eager
    if name not in LOOPS and INDUCTOR in settings.peers:
        theirs = inductor(model, inputs)
        found.calls["inductor"] = theirs.call
        found.seconds["inductor"] = round(theirs.build_seconds, 2)
    return found


def _add_ours(
    found: _Entrants,
    who: str,
    name: str,
    model: nn.Module,
    given: Inputs,
    settings: Settings,
    backends: str,
) -> None:
    start = time.perf_counter()
    exactness = regraft.Exactness.APPROX(0.0) if name in BLENDS else regraft.Exactness.REASSOCIATES
    try:
        compiled = regraft.compile(
            model,
            kwargs=dict(given),
            backends=tuple(backends.split(",")),
            threads=settings.threads,
            exactness=exactness,
            cache=False,
        )
    except RegraftError as error:
        found.refused[who] = str(error)
        return
    found.calls[who] = lambda other: compiled(**other)
    found.seconds[who] = round(time.perf_counter() - start, 2)
    if who == OURS:
        loaded = _loaded(compiled)
        found.calls[LOADED] = lambda other: loaded(**other)


def _loaded(compiled: regraft.CompiledModel) -> regraft.CompiledModel:
    """``compiled`` as from disk: it has the weights alone, and no original to watch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "artefact"
        compiled.save(path)
        return regraft.load(path, allow_native=True)


def _static_peers(name: str, model: nn.Module, given: Inputs, settings: Settings) -> list[Peer]:
    """The path of ``given`` alone, by each who can trace it."""
    found: list[Peer] = []
    for make in STATIC_PEERS if name not in LOOPS and STATIC in settings.peers else ():
        try:
            found.append(make(model, given, settings.threads))
        except Exception as error:  # whatever a tool raises, it takes no part
            print(f"  {make.__name__}: {type(error).__name__}: {str(error)[:100]}", flush=True)
    return found


def _race_path(
    name: str, model: nn.Module, given: Inputs, calls: Mapping[str, CallWith], settings: Settings
) -> dict[str, Any]:
    def reference(other: Inputs) -> list[Tensor]:
        return values(in_double(model, **other))

    static = _static_peers(name, model, given, settings)
    runs = {who: (lambda other, call=call: values(call(other))) for who, call in calls.items()}
    runs |= {peer.name: peer.run for peer in static}
    errors = {who: error_of(run, reference, runs["eager"], given) for who, run in runs.items()}
    entrants = {who: (lambda call=call: call(given)) for who, call in calls.items()}
    entrants |= {peer.name: peer.call for peer in static}
    counted = {who: call for who, call in entrants.items() if errors[who]["counts"]}
    assert OURS in counted or OURS not in calls, errors[OURS]
    inner = _calls_a_sample(next(iter(counted.values())), settings.sample)
    raced = race(
        counted, rounds=settings.rounds, inner=inner, patience=settings.patience, clock=settings.clock
    )
    return {"errors": errors, "race": raced.to_dict()}


def _calls_a_sample(call: Callable[[], object], seconds: float) -> int:
    for _ in range(3):
        call()
    start = time.perf_counter()
    call()
    return max(1, math.ceil(seconds / (time.perf_counter() - start)))
