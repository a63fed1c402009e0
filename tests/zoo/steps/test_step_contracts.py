"""What step caching holds to beside the forecasts: writes in place, hooks, state, precision, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from regraft.errors import CaptureError, OptionError, ShapeError
from regraft.steps import Every, Feedback, Probe, StepCache, Steps, Taylor, compile_steps
from regraft.testing import assert_close, randomise

_Kind = TypeVar("_Kind", bound=nn.Module)


class Chain(nn.Module):
    """Three layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Writes(Chain):
    """Writes to what its blocks return."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h += x
        k = self.b(h)
        k.mul_(2).add_(h)
        return self.c(k)


class Counts(Chain):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) + self.calls


class Draws(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn(4))


class Decides(Chain):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if h.sum() > 0:
            h = self.b(h)
        return self.c(h)


def made(kind: type[_Kind]) -> _Kind:
    """The same model at each call: what ``randomise`` keeps of a layer's own start is drawn alike."""
    torch.manual_seed(0)
    model = randomise(kind().eval(), seed=0)
    assert isinstance(model, kind)
    return model


def inputs(count: int = 6) -> list[Tensor]:
    draws = torch.Generator().manual_seed(1)
    return [torch.randn(2, 4, generator=draws) for _ in range(count)]


def reused(model: nn.Module, names: tuple[str, ...], interval: int, calls: list[Tensor]) -> list[Tensor]:
    """The results of steps, a block's output as it was when the block returned standing in between."""
    kept: dict[str, Tensor] = {}
    step = 0

    def keep(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if step % interval == 0:
                kept[name] = output.clone()
            return kept[name].clone()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    found: list[Tensor] = []
    with torch.no_grad():
        for x in calls:
            found.append(model(x))
            step += 1
    for handle in handles:
        handle.remove()
    return found


def check_reused(model: nn.Module, precise: nn.Module, names: tuple[str, ...]) -> None:
    compiled = compile_steps(
        model, (inputs()[0],), cache=StepCache(dict.fromkeys(names, Taylor(0)), Every(3))
    )
    eager = reused(model, names, 3, inputs())
    expected = reused(precise.double(), names, 3, [x.double() for x in inputs()])
    for x, one, other in zip(inputs(), expected, eager, strict=True):
        assert_close(compiled(x), one, other, reassociates=True)


@pytest.mark.parametrize("names", [("a",), ("b",), ("a", "b")])
def test_an_output_that_the_model_writes_to_is_remembered_as_it_was(names: tuple[str, ...]) -> None:
    check_reused(made(Writes), made(Writes), names)


def test_a_probe_sees_its_block_before_the_model_writes_to_it() -> None:
    """The step goes on from the probe's output, of which the probe's own graph has written a copy."""
    model = made(Writes)
    cache = StepCache({"a": Taylor(0), "b": Taylor(0)}, Probe("a", threshold=0.0, first=1))
    compiled = compile_steps(model, (inputs()[0],), cache=cache)
    precise = made(Writes).double()
    with torch.no_grad():
        for x in inputs():
            assert_close(compiled(x), precise(x.double()), model(x), reassociates=True)
    assert compiled.report.calls["all computed; a given"] == len(inputs()) - 1


def tripled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 3


def test_hooks_of_a_block_count_once() -> None:
    def hooked() -> Chain:
        model = made(Chain)
        model.b.register_forward_hook(tripled)
        model.b.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        return model

    model = hooked()
    check_reused(model, hooked(), ("b",))
    assert len(model.b._forward_hooks) == len(model.b._forward_pre_hooks) == 1


@pytest.mark.parametrize(("kind", "words"), [(Counts, "writes to model.calls"), (Draws, "draws random")])
def test_a_model_that_cannot_run_twice_has_no_probe(kind: type[nn.Module], words: str) -> None:
    cache = StepCache({"a": Taylor(), "b": Taylor()}, Probe("a", 0.5))
    with pytest.raises(OptionError, match=words):
        compile_steps(made(kind), (inputs()[0],), cache=cache)


def test_buffers_are_written_by_steps_alone() -> None:
    model = made(Counts)
    before = model.calls.clone()
    compiled = compile_steps(
        model, (inputs()[0],), cache=StepCache({"b": Taylor(0)}, Every(2)), sample=walked
    )
    errors = compiled.report.errors
    assert errors is not None
    assert errors.steps[0] < 1e-5  # the original and the compiled steps began at the same count
    assert torch.equal(model.calls, before)
    for x in inputs(3):
        compiled(x)
    assert torch.equal(model.calls, before + 3)


def walked(denoise: Callable[..., Any]) -> Tensor:
    x = torch.ones(2, 4)
    for _ in range(6):
        x = x - 0.3 * denoise(x)
    return x


def test_errors_of_a_sampler_that_writes_to_its_sample() -> None:
    def in_place(denoise: Callable[..., Any]) -> Tensor:
        x = torch.ones(2, 4)
        for _ in range(6):
            x -= 0.3 * denoise(x)
        return x

    compiled = compile_steps(
        made(Chain), (inputs()[0],), cache=StepCache({"b": Taylor(0)}, Every(3)), sample=in_place
    )
    found = compiled.report.errors
    assert found == compiled.measure(walked)
    assert found is not None
    assert found.steps[0] < 1e-5


def test_forecasts_of_f64_models_are_f64() -> None:
    model, steps = made(Chain).double(), [x.double() for x in inputs(8)]
    compiled = compile_steps(model, (steps[0],), cache=StepCache({"b": Taylor(2)}, Every(3, first=3)))
    with torch.no_grad():
        b = [model.b(torch.tanh(model.a(x))) for x in steps]
        slope = b[2] - b[1]
        b[3:5] = taylor(b[2], slope, slope - (b[1] - b[0]))
        b[6:8] = taylor(b[5], (b[5] - b[2]) / 3, ((b[5] - b[2]) / 3 - slope) / 3)
        for x, foreseen in zip(steps, b, strict=True):
            assert_close(compiled(x), model.c(torch.tanh(foreseen)), reassociates=True)


def taylor(value: Tensor, slope: Tensor, curve: Tensor) -> list[Tensor]:
    """One and two steps ahead."""
    return [value + slope * ahead + curve * ahead**2 / 2 for ahead in (1, 2)]


class Bounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-self.block(x * 1.0))


def test_a_difference_that_is_not_known_yet_is_nothing_times_infinity() -> None:
    x = torch.tensor([[1.0, float("inf")]])
    compiled = compile_steps(Bounded().eval(), (x,), cache=StepCache({"block": Taylor(2)}, Every(3)))
    for _ in range(2):
        assert_close(compiled(x), torch.exp(-x.double()), torch.exp(-x))


def test_other_sizes_are_refused_by_the_place_of_the_argument() -> None:
    compiled = compile_steps(made(Chain), (inputs()[0],), cache=StepCache({"b": Taylor(0)}, Every(2)))
    with pytest.raises(ShapeError, match="of the example") as caught:
        compiled(torch.randn(3, 4))
    assert "args[0]: expected [2, 4], got [3, 4]" in str(caught.value)
    assert "dynamic_shapes" not in str(caught.value)


def test_a_number_that_changes_is_to_be_a_tensor() -> None:
    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Linear(4, 4)

        def forward(self, x: Tensor, t: float) -> Tensor:
            return x + self.block(x * t)

    x = torch.ones(2, 4)
    compiled = compile_steps(Timed().eval(), (x, 1.0), cache=StepCache({"block": Taylor(0)}, Every(2)))
    compiled(x, 1.0)
    with pytest.raises(
        ShapeError, match=r"pass a tensor, torch\.tensor\(0\.5\), here and in the ex"
    ) as caught:
        compiled(x, 0.5)
    assert "args[1]: expected 1.0, got 0.5" in str(caught.value)


# -- refusals ----------------------------------------------------------------------------------------


def doubled(h: Tensor, x: Tensor) -> Tensor:
    return h * 2


@pytest.mark.parametrize(
    ("blocks", "schedule", "words"),
    [
        ({"b": Feedback(doubled, source="b")}, Every(2), "source of feedback"),
        ({"a": Feedback(doubled, source="c"), "c": Taylor(1)}, Every(2), "source of feedback"),
        (
            {"a": Feedback(doubled, source="b"), "b": Feedback(doubled, source="c")},
            Every(2),
            "source of feedback",
        ),
        ({"b": Feedback(doubled, source="a"), "c": Taylor(0)}, Probe("a", 0.1), "the probe"),
        ({"a": Taylor()}, Probe("a", 0.1), "no block but the probe"),
        ({"a": Taylor(0), "b": Taylor(0)}, Steps({"*": (0, 1, 2), "a": (0,)}), "two patterns"),
    ],
)
def test_caches_that_contradict_themselves(blocks: Any, schedule: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        compile_steps(made(Chain), (inputs()[0],), cache=StepCache(blocks, schedule))


def test_a_source_needs_no_steps_of_its_own() -> None:
    cache = StepCache({"a": Feedback(doubled, source="b")}, Steps({"a": (0, 2)}))
    compiled = compile_steps(made(Chain), (inputs()[0],), cache=cache)
    assert list(compiled.report.graphs) == ["all computed", "a forecast"]


@pytest.mark.parametrize("steps", [(0, 2.5), (0, -1), (0, True)])
def test_steps_are_integers_from_0(steps: Any) -> None:
    with pytest.raises(OptionError, match="no such step of a"):
        Steps({"a": steps})


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch", "per_sample"), ("dynamic_shapes", {"x": {0: torch.export.Dim.AUTO}}), ("adapters", {"l": {}})],
)
def test_options_that_steps_do_not_have(name: str, value: Any) -> None:
    cache = StepCache({"b": Taylor(0)}, Every(2))
    with pytest.raises(OptionError, match=f"no option {name}"):
        compile_steps(made(Chain), (inputs()[0],), cache=cache, **{name: value})


def test_a_block_that_values_decide_over() -> None:
    model, cache = made(Decides), StepCache({"b": Taylor(0)}, Every(2))
    with torch.no_grad():
        called, skipped = (
            next(x for x in inputs(30) if bool(model.a(x).sum() > 0) == decides) for decides in (True, False)
        )
    with pytest.raises(CaptureError, match="values decide over"):
        compile_steps(model, (called,), cache=cache)
    with pytest.raises(OptionError, match="values decide over"):
        compile_steps(model, (skipped,), cache=cache)


def test_a_model_in_training_mode_is_refused_and_left_so() -> None:
    model = made(Chain).train()
    with pytest.raises(OptionError, match="training mode"):
        compile_steps(model, (inputs()[0],), cache=StepCache({"b": Taylor(0)}, Every(2)))
    assert model.training
    assert model.b.training
