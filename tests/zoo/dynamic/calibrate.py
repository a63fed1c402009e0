"""Finds the seeds whose inputs take each path of a network, the ones with the widest margins.

    python -m tests.zoo.dynamic.calibrate shallow_deep_vgg --size full --seeds 400

Prints each path that any seed took, how many did, and the seed that was furthest from deciding otherwise; and
the quantiles of what was compared at each line, to choose thresholds by.
"""

from __future__ import annotations

import argparse
import collections

import torch

from tests.zoo.dynamic.networks import DYNAMIC
from tests.zoo.dynamic.record import Decisions, DynamicNetwork
from tests.zoo.dynamic.watch import Observation, watch


def observe(network: DynamicNetwork, size: str, seeds: int) -> list[Observation]:
    """A watched run for each seed."""
    model = network.make(size)
    return [watch(model, network.inputs(seed, size)) for seed in range(seeds)]


def print_paths(network: DynamicNetwork, observations: list[Observation]) -> None:
    found: dict[Decisions, list[tuple[float, int]]] = collections.defaultdict(list)
    for seed, seen in enumerate(observations):
        found[network.decisions(seen.result)].append((seen.narrowest(network.idle).value, seed))
    for path, each in sorted(found.items()):
        margin, seed = max(each)
        print(f"{path}: {seed},  # {len(each)} of {len(observations)}, margin {margin:.2g}")


def print_quantiles(observations: list[Observation]) -> None:
    """Of the values compared, for each line and each time that a run comes there."""
    values: dict[tuple[str, int], list[float]] = collections.defaultdict(list)
    for seen in observations:
        times: collections.Counter[str] = collections.Counter()
        for margin in seen.margins:
            if margin.left is not None:
                values[margin.line, times[margin.line]].append(margin.left)
                times[margin.line] += 1
    for (line, time), each in sorted(values.items()):
        if time < 16:
            quantiles = torch.tensor(each).quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
            print(f"{line} [{time}]", " ".join(f"{q:.4g}" for q in quantiles.tolist()), f"of {len(each)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(DYNAMIC))
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--seeds", type=int, default=200)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    network = DYNAMIC[chosen.name]
    observations = observe(network, chosen.size, chosen.seeds)
    print_paths(network, observations)
    print_quantiles(observations)


if __name__ == "__main__":
    main()
