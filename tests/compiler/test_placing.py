"""Which back end runs which section: sections, prices, whole plans, what is kept, what the report says.

Back ends of these tests charge made-up times, so that each decision is known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.compiler import choose, tune
from regraft.errors import BackendError
from regraft.testing import assert_close, randomise

FIRST, SECOND = BOTH = ("eager", "ort")
LINEAR, ATTENTION = "aten.linear", "aten.scaled_dot_product_attention"
MIXED = [SECOND, *[FIRST, SECOND] * 3]


class Clock:
    """What calls have cost so far, in microseconds."""

    def __init__(self) -> None:
        self.us = 0.0
        self.measurements = 0

    def measured(self, rows: int, calls: Sequence[Callable[[], object]], *_: Any) -> choose.Measured:
        """Stands for ``choose.tune.measured``."""
        self.measurements += 1
        return choose.Measured(rows, tuple(self._of(call) for call in calls), noise=0.001)

    def _of(self, call: Callable[[], object]) -> float:
        before = self.us
        call()
        return self.us - before


@dataclass
class Charges:
    """Puts prices on calls and ops of back ends, and faults into them.

    Fields:
        call: of any call.
        ops: back end -> op -> price.
        wrong: the back end that gives wrong values.
        refused: the op that the second back end does not build.
    """

    clock: Clock
    ops: Mapping[str, dict[str, float]]
    call: float = 5.0
    wrong: str = ""
    refused: str = ""

    def lower_piece(self, piece: Any, store: Any, options: Any) -> Any:
        """Stands for ``partition.lower_piece``."""
        names, name = [op.name for op in piece.function.walk()], piece.backend.name
        if name == SECOND and self.refused in names:
            raise BackendError(f"no {self.refused} today", name, self.refused)
        price = self.call + sum(self.ops[name].get(op, 0.0) for op in names)
        return Charged(self, piece.backend.lower(piece.function, store, options), price)


class Charged:
    def __init__(self, charges: Charges, inner: Any, price: float) -> None:
        self.backend, self.charges, self.inner, self.price = inner.backend, charges, inner, price

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        self.charges.clock.us += self.price
        results = self.inner.run(inputs, sizes)
        return [result + 1 for result in results] if self.backend == self.charges.wrong else results


class Block(nn.Module):
    """Two products around attention, so that both back ends of a test have something to win."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out, self.norm = nn.Linear(64, 64), nn.Linear(64, 64), nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.first(x).view(*x.shape[:-1], 4, 16).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(heads, heads, heads)
        return self.norm(x + nn.functional.gelu(self.out(mixed.transpose(1, 2).reshape(x.shape))))


class Blocks(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(Block(), Block(), Block())


LENGTHS = {"input": {1: Dim("length", min=33, max=64)}}


@pytest.fixture(autouse=True)
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path))
    made = Clock()
    monkeypatch.setattr("regraft.compiler.placing.measured", made.measured)
    return made


@pytest.fixture(autouse=True)
def charges(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Charges:
    """The first back end has the faster attention, the second one the faster products."""
    ops = {
        FIRST: {LINEAR: 100.0, ATTENTION: 50.0},
        SECOND: {LINEAR: 70.0, ATTENTION: 90.0},
    }
    made = Charges(clock, ops)
    for module in ("partition", "placing"):
        monkeypatch.setattr(f"regraft.compiler.{module}.lower_piece", made.lower_piece)
    return made


def compiled(x: Tensor | None = None, **options: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = randomise(Blocks().eval())
    x = torch.randn(2, 48, 64) if x is None else x
    options = {"backends": BOTH, "cache": False, **options}
    return model, regraft.compile(model, (x,), **options)


def steps(model: Any) -> list[str]:
    return [step.executable.backend for step in model.plan.steps]


def whole(model: Any) -> Any:
    """The choice among whole plans."""
    return model.report.choices[0]


# -- sections ------------------------------------------------------------------------------------


def layout_of(**options: Any) -> Any:
    found: list[Any] = []
    kept = choose.Layout.of

    def of(*args: Any) -> Any:
        found.append(kept(*args))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose.Layout, "of", of)
        compiled(**options)
    return found[0]


def test_sections_are_a_product_or_attention_with_what_belongs_to_it() -> None:
    kinds = layout_of().kinds
    names = {kind.sections[0].lead.name: [op.name for op in kind.sections[0].ops] for kind in kinds[1:]}
    first = [op.name for op in kinds[0].sections[0].ops]
    assert first == [LINEAR], "what moves a product's elements belongs to who reads them"
    attention = names[ATTENTION]
    assert attention.count("aten.permute") == 2, "both moves around it"
    assert "aten.gelu" in names[LINEAR]
    assert "aten.layer_norm" in names[LINEAR]
    assert [len(kind.sections) for kind in kinds] == [3, 3, 3]
    assert len({kind.signature for kind in kinds}) == 3


def test_what_sections_cost_depends_on_sizes_and_not_on_names() -> None:
    keys = [kind.signature for kind in layout_of().kinds]
    again = layout_of(dynamic_shapes=LENGTHS)
    assert [kind.signature for kind in again.kinds] == keys, "an open size counts as that of the example"
    other = layout_of(x=torch.randn(2, 40, 64))
    assert not set(keys) & {kind.signature for kind in other.kinds}
    assert other.signature != again.signature


# -- choosing ------------------------------------------------------------------------------------


def test_each_section_goes_where_it_is_cheapest() -> None:
    model, mixed = compiled(tune=True)
    assert steps(mixed) == MIXED
    assert mixed.report.executors[FIRST] > 0
    choice = whole(mixed)
    assert choice.forms[:2] == BOTH
    assert choice.forms[choice.order[0]].startswith("mixed ")
    # 6 products and 3 attentions; 7 calls where one back end alone needs 1.
    assert choice.times[1] == (755.0, 695.0, 605.0)
    x = torch.randn(2, 48, 64)
    assert_close([mixed(x)], [model.double()(x.double())], [model.float()(x)], reassociates=True)


def test_the_report_has_back_ends_times_and_reasons() -> None:
    _, mixed = compiled(tune=True)
    text = str(mixed.report)
    assert "back ends of the whole: mixed" in text.replace("\n", " ")
    attention = next(c for c in mixed.report.choices if "attention" in c.reason)
    assert attention.forms == BOTH
    assert attention.order == (0,)
    assert attention.reason.endswith("3 times")
    assert attention.layers == ("0", "1", "2")
    assert "eager 55.0 us, ort 95.0 us, measured (estimated " in str(attention)
    assert "eager 755.0 us, ort 695.0 us, mixed " in str(whole(mixed))
    assert "noise 0.1 %); mixed " in str(whole(mixed))
    assert attention.to_dict()["measured"]
    assert all(choice["text"] for choice in mixed.report.to_dict()["choices"])


def test_calls_that_cost_more_than_they_save_are_not_made(charges: Charges) -> None:
    charges.call = 25.0
    _, chosen = compiled(tune=True)
    assert steps(chosen) == [SECOND]
    assert whole(chosen).forms == BOTH, "no mixed plan is worth a measurement"


def test_a_mixed_plan_that_does_not_pay_as_a_whole_is_rolled_back(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disturbed(rows: int, calls: Sequence[Any], *_: Any) -> choose.Measured:
        found = clock.measured(rows, calls)
        return choose.Measured(rows, (*found.us[:2], 1000.0), found.noise) if len(calls) == 3 else found

    monkeypatch.setattr("regraft.compiler.placing.measured", disturbed)
    _, chosen = compiled(tune=True)
    assert steps(chosen) == [SECOND]
    assert len(whole(chosen).forms) == 3


def test_the_order_of_the_list_stands_where_noise_hides_the_difference(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(rows: int, calls: Sequence[Any], *_: Any) -> choose.Measured:
        return choose.Measured(rows, clock.measured(rows, calls).us, noise=0.3)

    monkeypatch.setattr("regraft.compiler.placing.measured", noisy)
    _, chosen = compiled(tune=True)
    assert steps(chosen) == [FIRST]


def test_what_was_measured_serves_later_compiles(clock: Clock) -> None:
    _, before = compiled()
    assert steps(before) == [FIRST], "until then the order of the list decides"
    assert not before.report.choices
    compiled(tune=True)
    count = clock.measurements
    _, later = compiled()
    assert steps(later) == MIXED
    assert clock.measurements == count
    compiled(tune=True)
    assert clock.measurements == count + 1, "sections are not measured again, whole plans are"
    compiled(tune="again")
    assert clock.measurements == 2 * count + 1, "all is measured again on request"
    _, other = compiled(threads=1)
    assert steps(other) == [FIRST], "of another number of threads nothing is known"


def test_the_names_of_plans_do_not_depend_on_the_order_of_the_list() -> None:
    one, other = layout_of(), layout_of(backends=BOTH[::-1])
    assert one.signature == other.signature
    assert one.form((0, 1, 1)) == other.form((1, 0, 0))
    assert one.form((0, 1, 1)) != other.form((0, 1, 1)), "the same places, other back ends"
    compiled(tune=True)
    _, later = compiled(backends=BOTH[::-1])
    assert steps(later) == MIXED


def test_times_of_whole_plans_of_different_runs_are_not_compared(tmp_path: Path) -> None:
    layout = layout_of(tune=True)
    database = choose.TuningDatabase(tmp_path / "tuning.db", choose.machine_name(None, "+".join(BOTH)))
    # A run on a busy machine, in which the mixed plan could not be made.
    database.record(layout.signature, BOTH, choose.Measured(1, (1000.0, 2000.0), 0.001))
    _, later = compiled()
    assert steps(later) == [FIRST]
    assert whole(later).times == {1: (1000.0, 2000.0)}


def test_times_of_other_sizes_do_not_count() -> None:
    compiled(tune=True)
    _, other = compiled(x=torch.randn(2, 40, 64))
    assert steps(other) == [FIRST]


def test_a_mixed_plan_takes_every_size() -> None:
    model, mixed = compiled(tune=True, dynamic_shapes=LENGTHS)
    assert set(steps(mixed)) == set(BOTH)
    for length in (33, 64):
        x = torch.randn(2, length, 64)
        assert_close([mixed(x)], [model.double()(x.double())], [model.float()(x)], reassociates=True)


def test_refresh_keeps_what_was_chosen(clock: Clock) -> None:
    model, mixed = compiled(tune=True)
    before, count, choices = steps(mixed), clock.measurements, len(mixed.report.choices)
    mixed.refresh(randomise(model, seed=1))
    assert steps(mixed) == before
    assert clock.measurements == count
    assert len(mixed.report.choices) == choices
    x = torch.randn(2, 48, 64)
    assert_close([mixed(x)], [model.double()(x.double())], [model.float()(x)], reassociates=True)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Blocks()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + torch.rand_like(x)


def test_plans_that_draw_are_compared_on_the_same_draws() -> None:
    state, x = torch.get_rng_state(), torch.randn(2, 48, 64)
    model = randomise(Noisy().eval())
    torch.set_rng_state(state)
    mixed = regraft.compile(model, (x,), backends=BOTH, tune=True, cache=False)
    assert torch.equal(torch.get_rng_state(), state), "measuring leaves torch's generator as it was"
    assert set(steps(mixed)) == set(BOTH)
    assert not [note for note in mixed.report.notes if "left out" in note]


# -- what goes wrong -----------------------------------------------------------------------------


def test_a_plan_of_wrong_values_is_left_out_and_said(charges: Charges) -> None:
    charges.wrong = SECOND
    _, chosen = compiled(tune=True)
    assert steps(chosen) == [FIRST]
    left_out = [note for note in chosen.report.notes if "left out" in note]
    assert [note.split("'")[1].split(" ")[0] for note in left_out] == [SECOND, "mixed"]
    assert all("a result is wrong" in note for note in left_out)


def test_a_back_end_that_refuses_a_section_gets_none_of_its_kind(charges: Charges) -> None:
    charges.refused = ATTENTION
    _, chosen = compiled(tune=True)
    assert steps(chosen) == MIXED
    notes = "\n".join(chosen.report.notes)
    assert "not measured" in notes
    assert "no aten.scaled_dot_product_attention today" in notes
    _, later = compiled()
    assert steps(later) == MIXED, "the plan that could not be made hides no other one"
    assert whole(later).times == whole(chosen).times


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second back end claims attention, which the first one does in less time."""
    claims = "regraft.backends.ort.OrtBackend.claims"
    monkeypatch.setattr(claims, lambda self, op: op.name == ATTENTION, raising=False)


@pytest.mark.usefixtures("claimed")
def test_what_a_back_end_claims_goes_there_until_times_say_otherwise() -> None:
    model, before = compiled()
    assert steps(before) == [*[FIRST, SECOND] * 3, FIRST], "wherever it stands in the list"
    _, mixed = compiled(tune=True)
    assert steps(mixed) == MIXED
    first, *others = whole(mixed).forms
    assert first.startswith("mixed "), "what is compared with is the plan as claimed"
    assert others[:2] == [FIRST, SECOND]
    # The claimed plan makes 7 calls, for 6 products on the first and 3 attentions on the second.
    assert whole(mixed).times[1] == (905.0, 755.0, 695.0, 605.0)
    (attention,) = [choice for choice in mixed.report.choices if choice.reason.startswith(ATTENTION)]
    assert attention.order == (0,)
    _, later = compiled()
    assert steps(later) == MIXED
    x = torch.randn(2, 48, 64)
    for each in (before, mixed):
        assert_close([each(x)], [model.double()(x.double())], [model.float()(x)], reassociates=True)


@pytest.mark.usefixtures("claimed")
def test_what_is_claimed_is_a_section_alone() -> None:
    kinds = layout_of().kinds
    (attention,) = [kind for kind in kinds if kind.sections[0].lead.name == ATTENTION]
    assert [[op.name for op in section.ops] for section in attention.sections] == [[ATTENTION]] * 3


@pytest.mark.usefixtures("claimed")
def test_what_is_claimed_stays_where_it_takes_least(charges: Charges) -> None:
    charges.ops[SECOND][ATTENTION] = 20.0
    _, chosen = compiled(tune=True)
    assert steps(chosen) == [SECOND]
    _, later = compiled()
    assert steps(later) == [SECOND]


def test_plans_that_were_all_left_out_leave_the_order_as_measured(charges: Charges) -> None:
    charges.wrong = SECOND
    compiled(tune=True)
    _, later = compiled()
    assert steps(later) == [FIRST]
    assert whole(later).forms == (FIRST,)


def test_a_budget_that_runs_out_leaves_the_order_and_what_was_measured() -> None:
    _, chosen = compiled(tune=True, budget="1ms")
    assert steps(chosen) == [FIRST]
    notes = "\n".join(chosen.report.notes)
    assert "the next run goes on from there" in notes
    assert "back ends are in the order of the list" in notes
    assert "the budget of 0.001 s sufficed for" in notes, "as given, and not what is left of it"
    assert "the budget of 0.001 s did not suffice" in notes


def test_a_budget_that_runs_out_leaves_what_was_measured_before() -> None:
    _, before = compiled(tune=True)
    _, chosen = compiled(tune=True, budget=1e-9)
    assert steps(chosen) == MIXED
    assert whole(chosen).times == whole(before).times
    assert any("did not suffice" in n and "as measured before" in n for n in chosen.report.notes)


def test_times_of_each_back_end_of_the_list_count_as_ones_own(tmp_path: Path) -> None:
    model, x = randomise(Blocks().eval()), torch.randn(2, 48, 64)
    report = tune(model, (x,), backends=BOTH)
    assert report.choices
    own = choose.TuningDatabase(tmp_path / "tuning.db", choose.machine_name(None, SECOND))
    own.record("key", ("a", "b"), choose.Measured(1, (1.0, 2.0), 0.0))
    assert not remarks(tune(model, (x,), backends=BOTH))
    own.of("elsewhere").record("key", ("a", "b"), choose.Measured(1, (1.0, 2.0), 0.0))
    (remark,) = remarks(tune(model, (x,), backends=BOTH))
    assert "has 2 times of other machines" in remark


def remarks(report: Any) -> list[str]:
    return [note for note in report.notes if "of other machines" in note]


def test_one_back_end_has_nothing_to_choose(clock: Clock) -> None:
    _, chosen = compiled(backends=[FIRST], tune=True)
    assert not chosen.report.choices
    assert not clock.measurements


def test_without_example_arguments_nothing_is_measured() -> None:
    x = torch.randn(2, 48, 64)
    program = torch.export.export(randomise(Blocks().eval()), (x,))
    program.example_inputs = None  # as in a program that was saved without
    chosen = regraft.compile(program, backends=BOTH, tune=True, cache=False)
    assert steps(chosen) == [FIRST]
    assert any("no example arguments" in note for note in chosen.report.notes)
