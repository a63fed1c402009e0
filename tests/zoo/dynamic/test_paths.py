"""The zoo in eager torch: the inputs of the table take every path, by wide margins, and every line runs.

Tests of compiled models rely on it: one path that is right says nothing of the others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.testing import TOLERANCES
from tests.models import in_double
from tests.zoo.dynamic.networks import DYNAMIC, FAMILIES
from tests.zoo.dynamic.record import DynamicNetwork
from tests.zoo.dynamic.watch import Observation, undecided, watch

#: A decision is safe from rounding when it is this far from going the other way.
MARGIN = 10 * TOLERANCES[torch.float32]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks gain nothing from a second thread, and wait for it when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check_paths(network: DynamicNetwork) -> list[Observation]:
    """The inputs take the paths of the table, in double and with noise too, and by wide margins."""
    model = network.make()
    runs: list[Observation] = []
    for path, seed in network.small.paths.items():
        arguments = network.inputs(seed)
        runs.append(watch(model, arguments))
        assert network.decisions(runs[-1].result) == path
        assert network.decisions(in_double(model, *arguments)) == path
        with torch.no_grad():
            assert network.decisions(model(*map(_with_noise, arguments))) == path
    narrowest = min((run.narrowest(network.idle) for run in runs), key=lambda margin: margin.value)
    assert narrowest.value >= MARGIN, narrowest
    return runs


def _with_noise(x: Tensor) -> Tensor:
    """Moved by the tolerance: this tries what no comparison of tensors shows, such as NumPy's selections."""
    if not x.is_floating_point():
        return x
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return x + TOLERANCES[torch.float32] * x.abs().max() * noise


@pytest.mark.parametrize("network", DYNAMIC.values(), ids=DYNAMIC)
def test_inputs_take_every_path(network: DynamicNetwork) -> None:
    runs = check_paths(network)
    assert runs
    lines = undecided(runs)
    assert sorted(line.partition(": ")[2] for line in lines) == sorted(network.one_way), lines


@pytest.mark.conformance
@pytest.mark.parametrize("network", DYNAMIC.values(), ids=DYNAMIC)
def test_inputs_take_paths_at_full_size(network: DynamicNetwork) -> None:
    """Where thousands of values are compared some are close: of these only the paths are asked."""
    model = network.make("full")
    assert network.full.paths
    for path, seed in network.full.paths.items():
        with torch.no_grad():
            assert network.decisions(model(*network.inputs(seed, "full"))) == path


def test_a_network_is_the_same_each_time() -> None:
    """An LSTM starts from torch's own random numbers."""
    first, second = (DYNAMIC["skipnet_rnn"].make().state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__.rpartition(".")[2])
def test_every_line_runs(family: Any) -> None:
    """There is no code in a family's modules that its networks do not reach."""
    assert family.__doc__
    path = family.__file__
    seen: set[int] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != path:
            return None
        seen.add(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for network in family.NETWORKS:
            model = network.make()
            for seed in network.small.paths.values():
                with torch.no_grad():
                    network.decisions(model(*network.inputs(seed)))
    finally:
        sys.settrace(before)
    text = Path(path).read_text(encoding="utf-8").splitlines()
    missed = sorted(set(_lines_of_methods(compile("\n".join(text), path, "exec"))) - seen)
    assert [f"{number}: {text[number - 1].strip()}" for number in missed] == []


def _lines_of_methods(module: CodeType) -> Iterable[int]:
    """The lines with code in the functions of classes; the rest of a module ran when it was imported."""
    is_function = 0x2
    for made in _codes(module):
        if not made.co_flags & is_function:
            for method in _codes(made):
                lines = (line for _, _, line in method.co_lines())
                yield from (line for line in lines if line not in (None, method.co_firstlineno))


def _codes(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def test_a_site_that_decides_one_way_is_found() -> None:
    network = DYNAMIC["early_exit_encoder"]
    model = network.make()
    runs = [watch(model, network.inputs(network.small.paths[(3,)]))]
    (line,) = undecided(runs)
    assert line.startswith("workloads.py:")


def test_margins_are_measured() -> None:
    network = DYNAMIC["palbert"]
    run = watch(network.make(), network.inputs(network.small.paths[(2,)]))
    assert "current_cdf" in run.narrowest().line
    assert MARGIN < run.narrowest().value < 0.5
