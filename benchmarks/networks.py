"""Convolutional, recurrent and encoder-decoder networks against eager torch and torch.onnx on ORT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from benchmarks.models import BuildPeer, race_model, save
from benchmarks.peers import eager, torch_onnx, torch_onnx_in_f32
from tests.zoo.networks import NETWORKS

#: Dtype -> what its results' names end with, and the peers.
DTYPES: Mapping[torch.dtype, tuple[str, Sequence[BuildPeer]]] = {
    torch.float32: ("", (eager, torch_onnx)),
    torch.bfloat16: ("_bf16", (eager, torch_onnx, torch_onnx_in_f32)),
}


def run(
    networks: Sequence[str] = tuple(NETWORKS),
    rounds: int = 30,
    patience: float = 120.0,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Race regraft against the two on each network; writes ``network_<name>.json``."""
    ending, peers = DTYPES[dtype]
    for name in networks:
        network = NETWORKS[name]
        inputs = (network.inputs(network.at_full, 1, dtype), network.inputs(network.at_full, 2, dtype))
        model = network.make("full", dtype)
        result = race_model("network", network.workload, model, inputs, peers, rounds, patience)
        save(f"network_{name}{ending}", result)
