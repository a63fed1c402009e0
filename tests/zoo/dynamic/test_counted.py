"""Inputs enter every arm and every loop that a compiled network and its file are left with.

The inputs of the table take every path of the source; those of further seeds enter what an unrolled loop has
made of one line. A path that the compiler proved away is none.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from pathlib import Path as FilePath

import onnxruntime
import pytest
import torch
from torch import Tensor

import regraft
from regraft.testing import Path, PathCounts
from tests.zoo.dynamic.networks import DYNAMIC
from tests.zoo.dynamic.record import DynamicNetwork

#: The networks whose paths are counted.
COUNTED = (
    "hrm",
    "ffn_skip_llm",
    "duo_llm_token",
    "duo_llm_tokens",
    "greedy_decode",
    "ranet",
    "early_exit_encoder",
    "skipping_decoder",
    "palbert",
    "pointer_hull",
    "blockdrop",
    "shallow_deep_vgg",
    "captioning_googlenet",
    "skipnet_ff_skipping",
    "shallow_deep_resnet",
    "shrinking_beams",
    "beam_search",
    "kangaroo",
)
#: Those that are captured in half a minute or more.
SLOW = ("kangaroo",)
#: Lines with an arm that a nan alone enters, by network: no tokens give one.
OF_NAN = {"shrinking_beams": ("i = complete_seqs_scores.index(max(complete_seqs_scores))",)}
#: Lines that decide in one step of a loop that is unrolled, and in its other steps must go one way, by what
#: is true in every round. Kangaroo's adapter is behind by a token in the first step of a round alone: from
#: then on it has seen all tokens but the last.
ONCE = {
    "kangaroo": (
        "if adapter_cache[0].shape[2] < end_index - 1:",
        "if early_last is not None:",
    )
}
#: How many seeds are tried beyond those of the table.
MORE = 200


ALL = [
    pytest.param(name, marks=[pytest.mark.conformance, *([pytest.mark.slow] if name in SLOW else [])])
    for name in COUNTED
]


def inputs(network: DynamicNetwork, paths: PathCounts) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of the table, then others for as long as a path has not run."""
    for seed in network.small.paths.values():
        yield network.inputs(seed)
    for seed in range(MORE):
        if not missed(network, paths):
            return
        yield network.inputs(seed)


def missed(network: DynamicNetwork, paths: PathCounts) -> list[str]:
    """The paths that never ran, but for those that a nan alone enters, or that ran in another step."""
    ran = {(source(path), path.what) for path, count in paths.counts.items() if count}
    once = {each for each in ran if each[0] in ONCE.get(network.name, ())}
    return [
        str(path)
        for path in paths.missed
        if source(path) not in OF_NAN.get(network.name, ()) and (source(path), path.what) not in once
    ]


def source(path: Path) -> str:
    """The line of the model that a path comes from."""
    file, _, line = path.location.rpartition(":")
    return linecache.getline(file, int(line)).strip()


def example(network: DynamicNetwork) -> tuple[Tensor, ...]:
    return network.inputs(next(iter(network.small.paths.values())))


@pytest.mark.parametrize("name", ALL)
def test_every_path_of_the_compiled_network_runs(name: str) -> None:
    network, paths = DYNAMIC[name], PathCounts()
    compiled = regraft.compile(network.make(), example(network), passes=paths.passes)
    for arguments in inputs(network, paths):
        compiled(*arguments)
    assert missed(network, paths) == []


@pytest.mark.parametrize("name", ALL)
def test_every_path_of_the_file_runs(name: str, tmp_path: FilePath) -> None:
    network, paths, path = DYNAMIC[name], PathCounts(), tmp_path / "model.onnx"
    report = regraft.export_onnx(network.make(), example(network), path, passes=paths.passes)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each for each in report.inputs if each != "path_counts"]
    zeros = torch.zeros(len(paths.paths), dtype=torch.int64).numpy()
    for arguments in inputs(network, paths):
        tensors = (each.numpy() for each in arguments)
        feed = dict(zip(names, tensors, strict=True)) | {"path_counts": zeros}
        (counts,) = session.run(["path_counts_out"], feed)
        paths.add(counts)
    assert missed(network, paths) == []
