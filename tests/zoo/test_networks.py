"""Whole networks: compiled for one shape and for all, equal to eager, and no eager op between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.testing import assert_close
from tests.models import in_double
from tests.zoo.networks import NETWORKS, Network

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
#: Those that a plain run takes; each compile costs seconds.
PLAIN = ("resnet50", "mobilenet_v3", "unet_bilinear", "tagger", "t5")
DYNAMIC = [
    pytest.param(network, id=name, marks=[] if name in PLAIN else [pytest.mark.conformance])
    for name, network in NETWORKS.items()
]
HALVES = [(name, BF16) for name in NETWORKS] + [("resnet50", F16), ("whisper", F16), ("t5", F16)]


def only_ort(compiled: Any) -> None:
    report = compiled.report.to_dict()
    assert list(report["executors"]) == ["ort"]
    assert report["fallbacks"] == []


def compare(model: nn.Module, compiled: Any, inputs: dict[str, Tensor]) -> None:
    result = compiled(**inputs)
    with torch.no_grad():
        eager = model(**inputs)
    assert type(result) is type(eager)
    assert_close(result, in_double(model, **inputs), eager, reassociates=True)


def check_dynamic(network: Network, dtype: torch.dtype) -> None:
    model = network.make(dtype=dtype)
    compiled = regraft.compile(
        model, kwargs=network.inputs(network.example, dtype=dtype), dynamic_shapes=network.dynamic()
    )
    only_ort(compiled)
    for seed, sizes in enumerate((network.example, *network.tried), start=1):
        compare(model, compiled, network.inputs(sizes, seed, dtype))


@pytest.mark.parametrize("network", DYNAMIC)
def test_dynamic(network: Network) -> None:
    check_dynamic(network, F32)


@pytest.mark.conformance
@pytest.mark.parametrize(("name", "dtype"), HALVES, ids=str)
def test_dynamic_in_half_precision(name: str, dtype: torch.dtype) -> None:
    check_dynamic(NETWORKS[name], dtype)


@pytest.mark.conformance
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_static(network: Network, dtype: torch.dtype) -> None:
    model = network.make(dtype=dtype)
    sizes = network.tried[0]
    compiled = regraft.compile(model, kwargs=network.inputs(sizes, dtype=dtype))
    only_ort(compiled)
    compare(model, compiled, network.inputs(sizes, 1, dtype))


@pytest.mark.conformance
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_full_size(network: Network) -> None:
    """The workloads of the benchmarks, at their sizes."""
    model = network.make("full")
    compiled = regraft.compile(model, kwargs=network.inputs(network.at_full), threads=2)
    only_ort(compiled)
    compare(model, compiled, network.inputs(network.at_full, seed=3))
