"""torch's global state: no arm changes it, and a compile leaves it as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import CaptureError
from tests.compiler.capture.running import compiled, rows

UP, DOWN = rows(3, shift=1.0), rows(3, shift=-1.0)


def state() -> dict[str, Any]:
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "seed": torch.initial_seed(),
        "random": torch.get_rng_state().tolist(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "anomalies": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "cudnn": torch.backends.cudnn.benchmark,
        "mkldnn": torch.backends.mkldnn.enabled,
        "precision": torch.get_float32_matmul_precision(),
    }


@pytest.fixture(autouse=True)
def unchanged() -> Generator[None]:
    torch.manual_seed(7)
    before = state()
    yield
    assert state() == before


def flags() -> None:
    torch._C._set_mkldnn_enabled(not torch._C._get_mkldnn_enabled())


CHANGES: list[tuple[Callable[[], object], str]] = [
    (lambda: torch.set_default_dtype(torch.float64), "the default dtype"),
    (lambda: torch.set_default_device("meta"), "the default device"),
    (lambda: torch.manual_seed(3), "the seed of random numbers"),
    (lambda: torch.manual_seed(7), "the seed of random numbers"),  # that it has already
    (lambda: torch.seed(), "the seed of random numbers"),
    (lambda: torch.default_generator.manual_seed(3), "the seed of random numbers"),
    (lambda: torch.set_grad_enabled(True), "whether gradients are recorded"),
    (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "the number of threads"),
    (lambda: torch.set_flush_denormal(True), "whether denormal numbers count as 0"),
    (lambda: torch.use_deterministic_algorithms(True), "whether algorithms are deterministic"),
    (lambda: torch.autograd.set_detect_anomaly(True), "whether anomalies are looked for"),
    (lambda: torch.set_autocast_enabled("cpu", True), "whether autocast is on for 'cpu'"),
    (lambda: torch.backends.cuda.enable_flash_sdp(False), "'flash_sdp_enabled'"),
    (flags, "'mkldnn_enabled'"),
]


@pytest.mark.parametrize(("change", "named"), CHANGES)
def test_an_arm_that_changes_it_is_refused(change: Callable[[], object], named: str) -> None:
    def model(x: Tensor) -> Tensor:
        y = x * 2
        if y.sum() > 0:  # here
            change()
        return y

    lines, first = inspect.getsourcelines(model)
    (at,) = (i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))
    with pytest.raises(CaptureError, match="torch's global state changes where a tensor decides") as caught:
        regraft.capture(model, (UP,))
    assert caught.value.message.endswith(named)
    assert caught.value.location == f"{__file__}:{first + at}"
    assert caught.value.hint


def in_a_trip(x: Tensor) -> Tensor:
    while x.norm() > 1:
        torch.set_default_dtype(torch.float64)
        x = x * 0.5
    return x


def in_the_other_arm(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else [x, torch.manual_seed(0)][0]


@pytest.mark.parametrize("model", [in_a_trip, in_the_other_arm])
def test_loops_and_expressions(model: Any) -> None:
    with pytest.raises(CaptureError, match="torch's global state changes where a tensor decides"):
        regraft.capture(model, (UP,))


def for_a_while(x: Tensor) -> Tensor:
    if x.sum() > 0:
        torch.set_default_dtype(torch.float64)
        y = torch.ones(4, dtype=torch.float64) * x.double()
        torch.set_default_dtype(torch.float32)
        with torch.enable_grad():
            x = x + y.float()
    return x


def outside_of_arms(x: Tensor) -> Tensor:
    torch.set_num_threads(torch.get_num_threads() + 1)
    y = torch.ones(4)
    return x + y if x.sum() > 0 else x - y


@pytest.mark.parametrize("model", [for_a_while, outside_of_arms])
def test_what_is_put_back_or_outside_of_arms_works(model: Any) -> None:
    made, threads = compiled(model, (UP,), "eager"), torch.get_num_threads()
    for x in (UP, DOWN):
        actual = made(x)
        assert torch.get_num_threads() == threads
        expected = model(x)
        torch.set_num_threads(threads)
        torch.testing.assert_close(actual, expected)


def by_default(x: Tensor) -> Tensor:
    torch.set_default_dtype(torch.float64)
    return x + torch.ones(4)


def of_integers(x: Tensor) -> Tensor:
    n = (x > 0).sum()
    torch.set_default_dtype(torch.float64)
    y = n / 3
    torch.set_default_dtype(torch.float32)
    return x + y


@pytest.mark.parametrize("model", [by_default, of_integers])
def test_a_dtype_by_a_default_that_changes_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="a tensor is float64 because the model changes") as caught:
        regraft.capture(model, (UP,))
    assert __file__ in (caught.value.location or "")


def seeds_and_draws(x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return x + torch.rand(4)


def seeds_for_a_while(x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        y = torch.rand(4)
    return x + y


@pytest.mark.parametrize("model", [seeds_and_draws, seeds_for_a_while])
def test_a_model_that_seeds_and_draws_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="in a model that seeds torch's generator") as caught:
        regraft.capture(model, (UP,))
    assert __file__ in (caught.value.location or "")


def seeds(x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return x * 2


def draws(x: Tensor) -> Tensor:
    return x + torch.rand(4)


def test_seeds_without_draws_and_draws_without_seeds() -> None:
    before = torch.get_rng_state()
    made, drawing = compiled(seeds, (UP,), "eager"), compiled(draws, (UP,), "eager")
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(made(UP), UP * 2)
    found = drawing(UP)
    torch.set_rng_state(before)
    torch.testing.assert_close(found, draws(UP))
    torch.set_rng_state(before)
