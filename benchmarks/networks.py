"""Convolutional, recurrent and encoder-decoder networks against eager torch and torch.onnx on ORT."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.models import race_model, save
from benchmarks.peers import eager, torch_onnx
from tests.zoo.networks import NETWORKS


def run(networks: Sequence[str] = tuple(NETWORKS), rounds: int = 30, patience: float = 120.0) -> None:
    """Race regraft against the two on each network; writes ``network_<name>.json``."""
    for name in networks:
        network = NETWORKS[name]
        inputs = (network.inputs(network.at_full, seed=1), network.inputs(network.at_full, seed=2))
        model = network.make("full")
        result = race_model("network", network.workload, model, inputs, (eager, torch_onnx), rounds, patience)
        save(f"network_{name}", result)
