"""A batch of 64 through the early-exit encoder, each sample leaving at its own exit.

Against it: the same layers without exits, compiled for the batch, which is what running all samples to the
last exit costs; and the model for one sample, called 64 times. The ideal is the part of the time to the last
exit that the samples' depths make up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import regraft
from benchmarks import machine
from regraft.testing import relative_error
from regraft.timing import race
from tests.models import in_double
from tests.zoo.dynamic.networks import DYNAMIC
from tests.zoo.dynamic.workloads import EarlyExitEncoder

BATCH = 64
NAME = "early_exit_encoder"


class ToTheEnd(nn.Module):
    """All layers and the last head."""

    def __init__(self, model: EarlyExitEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.model.layers:
            x = layer(x)
        return self.model.heads[-1](x[:, 0])


def run(rounds: int = 20, patience: float = 60.0, size: str = "full") -> None:
    """Writes ``dynamic_per_sample.json``."""
    torch.set_num_threads(machine.THREADS)
    where = machine.describe()
    network = DYNAMIC[NAME]
    model = network.make(size)
    x, depths = _batch(model, network, size)
    given = {"threads": machine.THREADS, "cache": False}
    ours = regraft.compile(model, (x[:1],), batch="per_sample", **given)
    whole = regraft.compile(ToTheEnd(model).eval(), (x,), **given)
    single = regraft.compile(model, (x[:1],), **given)
    logits, exits = ours(x)
    reference = torch.cat([in_double(model, x=each)[0] for each in x.split(1)])
    assert (exits + 1).tolist() == depths, "a sample has left at another exit"
    error = relative_error(logits, reference)
    assert error < 1e-4, error
    calls = {
        "per_sample": lambda: ours(x),
        "all_to_the_end": lambda: whole(x),
        "one_by_one": lambda: [single(each) for each in x.split(1)],
    }
    found = race(calls, rounds=rounds, patience=patience).to_dict()
    medians = {name: entrant["median_ms"] for name, entrant in found["entrants"].items()}
    layers = len(model.layers)
    ideal = sum(depths) / (layers * len(depths)) * medians["all_to_the_end"]
    result: dict[str, Any] = {
        "benchmark": "dynamic",
        "workload": f"{network.workload}, {BATCH} samples, each at its own exit",
        "settings": {"threads": machine.THREADS, "dtype": "f32", "batch": BATCH},
        "machine": where,
        "error": error,
        "depths": depths,
        "mean_depth": sum(depths) / len(depths),
        "layers": layers,
        "share_of_ideal": ideal / medians["per_sample"],
        "faster_than_all_to_the_end": medians["all_to_the_end"] / medians["per_sample"],
        "race": found,
    }
    path = machine.save("dynamic_per_sample", result)
    print(f"{path.name}: {medians}, share of the ideal {result['share_of_ideal']:.2f}", flush=True)


def _batch(model: nn.Module, network: Any, size: str) -> tuple[Tensor, list[int]]:
    """Samples whose mean depth is a third of the layers, and the depths."""
    layers = len(model.layers)
    found: list[tuple[Tensor, int]] = []
    with torch.inference_mode():
        for seed in range(4 * BATCH):
            (x,) = network.inputs(seed, size)
            found.append((x, int(model(x)[1]) + 1))
    # The deepest go until the rest has the mean that is asked for; then as many as the batch holds, evenly.
    found.sort(key=lambda pair: pair[1])
    while len(found) > BATCH and sum(depth for _, depth in found) > layers / 3 * len(found):
        found.pop()
    step = len(found) / BATCH
    chosen = [found[int(i * step)] for i in range(BATCH)]
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [chosen[i] for i in order]
    return torch.cat([x for x, _ in chosen]), [depth for _, depth in chosen]
