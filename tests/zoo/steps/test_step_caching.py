"""Step caching of four papers, compiled, equal to each written out in plain torch over a whole generation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regraft.errors import OptionError
from regraft.steps import Every, Feedback, Probe, StepCache, Steps, Taylor, compile_steps
from regraft.testing import assert_close, randomise
from tests.zoo.steps.dit import DiT, ddim, walked
from tests.zoo.steps.policy import Policy, alike, best_steps, bubbled

STEPS = 9


def denoiser() -> DiT:
    """The same one at each call."""
    torch.manual_seed(0)
    model = randomise(DiT().eval(), seed=0)
    assert isinstance(model, DiT)
    return model


def noise() -> Tensor:
    return torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))


def example() -> tuple[Tensor, Tensor]:
    return noise(), torch.tensor([900.0, 900.0])


def generation(denoise: Callable[..., Any]) -> Any:
    return ddim(denoise, noise(), STEPS)


def trajectory(model: Callable[..., Tensor], steps: int = STEPS) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """The arguments and the result of each step of a generation by ``model``."""
    found: list[tuple[tuple[Tensor, ...], Tensor]] = []

    def denoise(*args: Tensor) -> Tensor:
        found.append((args, model(*args)))
        return found[-1][1]

    with torch.no_grad():
        ddim(denoise, noise(), steps)
    return found


def check(compiled: Any, reference: Callable[..., Tensor], precise: Callable[..., Tensor]) -> None:
    """The compiled steps on the arguments of the reference's own generation, in f32 and in f64."""
    compiled.reset()
    for args, result in trajectory(reference):
        expected = precise(*(arg.double() for arg in args))
        assert_close(compiled(*args), expected, result, reassociates=True)


class Seer:
    """TaylorSeer (arXiv:2503.06923), as ``taylor_utils`` of Shenyi-Z/TaylorSeer has it."""

    def __init__(self, model: DiT, interval: int, order: int) -> None:
        self.model, self.interval, self.order = model, interval, order
        self.step, self.activated = 0, [-1]
        self.cache: dict[str, dict[int, Tensor]] = {}

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        full = self.step < 2 or (self.step - 1) % self.interval == 0
        if full:
            self.activated.append(self.step)

        def decide(name: str, compute: Callable[[], Tensor]) -> Tensor:
            if not name.endswith(("attn", "mlp")):
                return compute()
            if full:
                self.derive(name, compute())
                return self.cache[name][0]
            ahead = self.step - self.activated[-1]
            return sum(d * (ahead**i) / math.factorial(i) for i, d in self.cache[name].items())  # type: ignore[return-value]

        with torch.no_grad():
            found = walked(self.model, x, t, decide)
        self.step += 1
        return found

    def derive(self, name: str, value: Tensor) -> None:
        gap, old = self.activated[-1] - self.activated[-2], self.cache.get(name, {})
        new = {0: value}
        for i in range(self.order):
            if i not in old:
                break
            new[i + 1] = (new[i] - old[i]) / gap
        self.cache[name] = new


@pytest.mark.parametrize(("interval", "order"), [(3, 1), (2, 2)])
def test_taylor_seer(interval: int, order: int) -> None:
    model = denoiser()
    cache = StepCache(
        {"blocks.*.attn": Taylor(order), "blocks.*.mlp": Taylor(order)}, Every(interval, first=2)
    )
    compiled = compile_steps(model, example(), cache=cache, sample=generation)
    check(compiled, Seer(model, interval, order), Seer(denoiser().double(), interval, order))
    errors = compiled.report.errors
    assert errors is not None
    # The steps in which all is computed are the model's own, the others are not.
    full = [step < 2 or (step - 1) % interval == 0 for step in range(STEPS)]
    assert [error < 1e-5 for error in errors.steps] == full
    assert 0 < errors.result < 1
    assert compiled.report.to_dict()["errors"]["result"] == errors.result


class ConfidenceGated:
    """CG-Taylor: the first block tells whether the last one's output may be foreseen."""

    def __init__(self, model: DiT, threshold: float) -> None:
        self.model, self.threshold = model, threshold
        self.seers = {"first": Seer(model, 1, 3), "last": Seer(model, 1, 1)}
        self.step, self.skipped = 0, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        first, last = self.seers["first"], self.seers["last"]
        with torch.no_grad():
            h, c = self.model.x_embedder(x), self.model.condition(t)
            h = self.model.blocks[0](h, c)
            skip = False
            if self.step >= 2:
                error = (self.foreseen(first) - h).abs().mean() / h.abs().mean()
                skip = bool(error < self.threshold)
            if skip:
                self.skipped += 1
                hidden = self.foreseen(last)
            else:
                hidden = h
                for block in list(self.model.blocks)[1:]:
                    hidden = block(hidden, c)
                for seer, value in ((first, h), (last, hidden)):
                    seer.activated.append(self.step)
                    seer.derive("", value)
            self.step += 1
            return self.model.final(self.model.norm(hidden))

    def foreseen(self, seer: Seer) -> Tensor:
        ahead = self.step - seer.activated[-1]
        return sum(d * (ahead**i) / math.factorial(i) for i, d in seer.cache[""].items())  # type: ignore[return-value]


def test_confidence_gated_taylor() -> None:
    """Steps of both kinds come up, and some that are computed again after some that were not."""
    model = denoiser()
    cache = StepCache({"blocks.0": Taylor(3), "blocks.3": Taylor(1)}, Probe("blocks.0", threshold=0.05))
    compiled = compile_steps(model, example(), cache=cache)
    reference = ConfidenceGated(model, 0.05)
    check(compiled, reference, ConfidenceGated(denoiser().double(), 0.05))
    calls = compiled.report.calls
    assert calls["blocks.3 forecast"] == reference.skipped
    assert 0 < reference.skipped < STEPS - 2
    assert calls["probe"] == STEPS - 2
    assert calls["all computed"] == 2


def test_inner_loop_feedback() -> None:
    """Every second step begins at the third block, with what is foreseen of the second one's output."""
    model = denoiser()
    cache = StepCache({"blocks.1": Feedback(model.foresee, source="blocks.3")}, Every(2))
    compiled = compile_steps(model, example(), cache=cache)

    def fed_back(own: DiT) -> Callable[..., Tensor]:
        state: dict[str, Any] = {"step": 0}

        def step(x: Tensor, t: Tensor) -> Tensor:
            with torch.no_grad():
                c = own.condition(t)
                if state["step"] % 2 == 0:
                    h = own.blocks[1](own.blocks[0](own.x_embedder(x), c), c)
                else:
                    h = own.feedback(state["features"], c)
                h = own.blocks[3](own.blocks[2](h, c), c)
                state.update(step=state["step"] + 1, features=h)
                return own.final(own.norm(h))

        return step

    check(compiled, fed_back(model), fed_back(denoiser().double()))


def test_block_wise_adaptive_caching() -> None:
    model = randomise(Policy().eval(), seed=0)
    observed = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(2))
    draws = torch.Generator().manual_seed(3)
    calls = [
        (torch.randn(1, 6, 3, generator=draws) * (1 - step / 20), torch.tensor([1 - step / 8]), observed)
        for step in range(8)
    ]
    names = [name for name, _ in model.named_modules() if name.endswith((".sa", ".ca", ".ffn"))]
    outputs = outputs_of(model, names, calls)
    steps = {name: best_steps(alike(outputs[name]), 3) for name in names}
    changes = {
        name: sum(float((a - b).abs().mean()) for a, b in pairwise(each)) for name, each in outputs.items()
    }
    ffns = [name for name in names if name.endswith(".ffn")]
    steps = bubbled(steps, changes, ffns, 1)
    assert len(set(steps.values())) > 2  # blocks that differ in when they are computed
    cache = StepCache(dict.fromkeys(names, Taylor(0)), Steps(steps))
    compiled = compile_steps(model, calls[0], cache=cache)
    eager, precise = reused(model, steps), reused(copy.deepcopy(model).double(), steps)
    for args in calls:
        expected = precise(*(arg.double() for arg in args))
        assert_close(compiled(*args), expected, eager(*args), reassociates=True)


def outputs_of(model: nn.Module, names: list[str], calls: list[Any]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: found[name].append(out))
        for name in names
    ]
    with torch.no_grad():
        for args in calls:
            model(*args)
    for handle in handles:
        handle.remove()
    return found


class reused:
    """``model`` whose blocks give their last output at the steps that are not theirs."""

    def __init__(self, model: nn.Module, steps: Mapping[str, tuple[int, ...]]) -> None:
        self.model, self.steps, self.step = model, steps, 0
        self.kept: dict[str, Tensor] = {}

    def __call__(self, *args: Tensor) -> Tensor:
        def hook(name: str) -> Any:
            def replace(module: nn.Module, given: Any, output: Tensor) -> Tensor:
                if self.step in self.steps[name]:
                    self.kept[name] = output
                return self.kept[name]

            return replace

        handles = [self.model.get_submodule(n).register_forward_hook(hook(n)) for n in self.steps]
        with torch.no_grad():
            found = self.model(*args)
        for handle in handles:
            handle.remove()
        self.step += 1
        return found


def test_the_best_steps_are_those_of_all_choices() -> None:
    outputs = [torch.randn(8, generator=torch.Generator().manual_seed(i)) for i in range(7)]
    similarity = alike(outputs)

    def worth(steps: tuple[int, ...]) -> float:
        ends = (*steps[1:], 7)
        return sum(float(similarity[i, i + 1 : j].sum()) for i, j in zip(steps, ends, strict=True))

    every = [(0, *rest) for rest in combinations(range(1, 7), 2)]
    assert best_steps(similarity, 3) == max(every, key=worth)


# -- the interface ---------------------------------------------------------------------------------


def test_a_generation_starts_anew_after_a_reset() -> None:
    model = denoiser()
    compiled = compile_steps(model, example(), cache=StepCache({"blocks.2": Taylor(1)}, Every(2)))
    first = generation(compiled)
    assert compiled.step == STEPS
    compiled.reset()
    assert torch.equal(generation(compiled), first)
    assert compiled.report.calls == {"all computed": 10, "blocks.2 forecast": 8}


def test_what_is_forecast_is_not_computed() -> None:
    model = denoiser()
    compiled = compile_steps(model, example(), cache=StepCache({"blocks.*": Taylor(0)}, Every(2)))
    full, reduced = compiled.report.graphs["all computed"], compiled.report.graphs[_last(compiled)]
    assert reduced.to_dict()["flops"]["after"] < full.to_dict()["flops"]["after"] / 4


def _last(compiled: Any) -> str:
    return next(name for name in compiled.report.graphs if "forecast" in name)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
        self.pair = nn.LSTM(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.block(self.block(x)))[0]


@pytest.mark.parametrize(
    ("blocks", "schedule", "words"),
    [
        ({"nothing.*": Taylor()}, Every(2), "no such block"),
        ({"block": Taylor()}, Every(2), "more than once"),
        ({"unused": Taylor()}, Every(2), "not called"),
        ({"pair": Taylor()}, Every(2), "returns a tuple"),
        ({"block": Taylor(), "b*": Taylor()}, Every(2), "two patterns name one block"),
        ({"block": Taylor()}, Steps({"block": (1, 2)}), "at the first step"),
        ({"block": Taylor()}, Probe("unused", 0.1), "the probe"),
        ({"block": Feedback(lambda h, x: h, source="none")}, Every(2), "no such block"),
    ],
)
def test_blocks_that_cannot_be_reused(blocks: Any, schedule: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        compile_steps(Twice().eval(), (torch.randn(2, 3, 4),), cache=StepCache(blocks, schedule))


def test_blocks_in_one_another_are_refused() -> None:
    cache = StepCache({"blocks.1": Taylor(), "blocks.*.mlp": Taylor()}, Every(2))
    with pytest.raises(OptionError, match="lies in another"):
        compile_steps(denoiser(), example(), cache=cache)


@pytest.mark.parametrize(
    "make", [lambda: Taylor(-1), lambda: Every(0), lambda: Probe("a", -1.0), lambda: Every(2, 0)]
)
def test_numbers_that_cannot_be(make: Callable[[], Any]) -> None:
    with pytest.raises(OptionError):
        make()
