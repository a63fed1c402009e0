"""`verify="each"` names the rewrite, and which application of it, that changes what a model computes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.compiler import EachApplication, run_passes
from regraft.errors import NumericsMismatch, OptionError, VerifyError
from regraft.ir import OPS, Builder, Module, PassContext, Region, RewritePass, TensorType, parse_module
from tests.compiler.wrong import (
    DropsAbs,
    FarTanh,
    NearTanh,
    SlightlyWrongSign,
    WrongTanh,
    model,
    rows,
)
from tests.models import FAMILIES


def mismatch(**options: Any) -> NumericsMismatch:
    with pytest.raises(NumericsMismatch) as caught:
        regraft.compile(model(), (rows(),), verify="each", **options)
    return caught.value


def test_wrong_rewrite_is_named() -> None:
    error = mismatch(rewrites=[WrongTanh])
    assert (error.suspect, error.application, error.op) == ("WrongTanh", 1, "aten.tanh")
    assert error.location is not None
    assert error.location.rpartition("/")[2].startswith("wrong.py:")
    assert error.error > 0.1 > error.tolerance > 0
    text = str(error)
    assert text.startswith("'WrongTanh' changes what the model computes\n  result 0 of aten.tanh: error ")
    assert "suspect: WrongTanh, application 1\n  op: aten.tanh\n  from: " in text


def test_exact_means_bits() -> None:
    error = mismatch(rewrites=[SlightlyWrongSign])
    assert (error.suspect, error.tolerance) == ("SlightlyWrongSign", 0.0)
    assert 0 < error.error < 1e-14


def test_approx_is_held_to_its_tolerance() -> None:
    options = {"exactness": regraft.Exactness.APPROX(0.05)}
    assert mismatch(rewrites=[FarTanh], **options).tolerance == 0.05
    regraft.compile(model(), (rows(),), verify="each", rewrites=[NearTanh], **options)


@pytest.mark.parametrize("heard", [True, False])
def test_wrong_pass_is_named(heard: bool) -> None:
    error = mismatch(passes=[("recover", DropsAbs(heard))])
    assert error.suspect == "drops-abs"


class BreaksTypes(WrongTanh):
    """Leaves a graph whose types are wrong."""

    def rewrite(self, op: Any, m: Any) -> Any:
        made = op.aten.tanh(op.aten.mul.Scalar(m.x, 3.0))
        made.op.attrs["what"] = 1
        return made


def test_broken_structure_is_named_with_its_application() -> None:
    with pytest.raises(VerifyError) as caught:
        regraft.compile(model(), (rows(),), verify="each", rewrites=[BreaksTypes])
    assert caught.value.after_pass == "BreaksTypes, application 1"


def test_a_program_without_an_example() -> None:
    program = torch.export.export(model(), (rows(),))
    program.example_inputs = None
    with pytest.raises(OptionError, match="the exported program has none"):
        regraft.compile(program, verify="each")


class WrongForm(WrongTanh):
    """Two forms of tanh, of which only the first is one."""

    stage = "algebra"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.aten.tanh(x)

    def check(self, m: Any) -> Any:
        return m.decline("it is a form", m.x) if m.root.parent.parent is not None else None

    def rewrite(self, op: Any, m: Any) -> Any:
        regions = [form(name, m.x.type) for name in ("aten.tanh", "aten.sigmoid")]
        attrs = {"rows": 3, "forms": ("right", "wrong")}
        return op.create("rg.alt", ((m.x,),), attrs, regions=regions).result


def form(name: str, type: TensorType) -> Region:
    region = Region([type])
    builder = Builder(OPS, region)
    builder.create("cf.yield", ([builder.create(name, tuple(region.args)).result],))
    return region


def test_every_form_of_an_alternative_is_compared() -> None:
    error = mismatch(rewrites=[WrongForm])
    assert (error.suspect, error.application) == ("WrongForm", 1)


def test_notes_and_progress_say_what_was_compared() -> None:
    steps: list[str | None] = []
    compiled = regraft.compile(
        model(), (rows(),), verify="each", progress=lambda progress: steps.append(progress.step)
    )
    assert "compared SiLU" in steps
    (note,) = (note for note in compiled.report.to_dict()["notes"] if note.startswith("verify"))
    assert re.fullmatch(r"verify='each': \d+ changes compared", note)


BRANCHES = """
module {
  func @forward(%p: bool[], %x: f32[4]) -> (f32[4]) {
    %y = cf.cond(%p, [%x]) ({
      ^(%a: f32[4])
      %m = aten.mul.Scalar(%a) {other = 3}
      %t = aten.tanh(%m) : f32[4]
      cf.yield([%t])
    }, {
      ^(%b: f32[4])
      cf.yield([%b])
    }) : f32[4]
    cf.yield([%y])
  }
}
"""

LOOP = """
module {
  func @forward(%p: bool[], %x: f32[4]) -> (bool[], f32[4]) {
    %q, %y = cf.while([%p, %x]) ({
      ^(%c: bool[], %a: f32[4])
      cf.yield([%c])
    }, {
      ^(%d: bool[], %b: f32[4])
      %n = aten.bitwise_not(%d) : bool[]
      %m = aten.mul.Scalar(%b) {other = 3}
      %t = aten.tanh(%m) : f32[4]
      cf.yield([%n, %t])
    }) : bool[], f32[4]
    cf.yield([%q, %y])
  }
}
"""


def rewritten(text: str, enters: bool) -> EachApplication:
    module: Module = parse_module(text.replace("{other = 3}", "{other = 3} : f32[4]"))
    inputs = [torch.tensor(enters), torch.linspace(-1, 1, 4)]
    each = EachApplication(module.main, inputs, {}, OPS)
    context = PassContext(OPS, watchers=(each,))
    RewritePass("test", "recover", [WrongTanh()]).run(module, context)
    return each


@pytest.mark.parametrize("text", [BRANCHES, LOOP])
def test_regions_have_the_values_of_their_first_run(text: str) -> None:
    with pytest.raises(NumericsMismatch) as caught:
        rewritten(text, enters=True)
    assert caught.value.suspect == "WrongTanh"


@pytest.mark.parametrize("text", [BRANCHES, LOOP])
def test_regions_that_are_not_entered_are_counted(text: str) -> None:
    each = rewritten(text, enters=False)
    assert (each.compared, each.skipped) == (0, 1)


class Counting(torch.nn.Module):
    """A model that writes to its own buffer, and reads it afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(x.sum(0))
        return torch.tanh(x * 3) + self.seen


@pytest.mark.parametrize("rewrites", [(), (WrongTanh,)])
def test_state_has_its_value_of_the_example_and_keeps_it(rewrites: Any) -> None:
    counting = Counting().eval()
    if rewrites:
        with pytest.raises(NumericsMismatch, match="WrongTanh"):
            regraft.compile(counting, (rows(),), verify="each", rewrites=rewrites)
    else:
        regraft.compile(counting, (rows(),), verify="each")
    assert torch.equal(counting.seen, torch.ones(8))


def test_generator_and_inputs_are_left_alone() -> None:
    net, x = model(), rows()
    torch.manual_seed(7)
    before = (x.clone(), torch.get_rng_state())
    regraft.compile(net, (x,), verify="each")
    assert torch.equal(x, before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_values_are_computed_again_when_dropped() -> None:
    def chain(x: Tensor) -> Tensor:
        for _ in range(5):
            x = x * torch.sigmoid(x)
        return x

    module = regraft.capture(chain, (rows(),))
    each = EachApplication(module.main, [rows()], {}, OPS, budget=0)
    context = PassContext(OPS, watchers=(each,))
    run_passes(module, context=context)
    assert context.stats["SiLU"].hits == 5
    assert each.compared >= 5


@pytest.mark.conformance
@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_pass(name: str) -> None:
    """No rewrite of a real model is called wrong."""
    family = FAMILIES[name]
    compiled = regraft.compile(
        family.make(), kwargs=family.inputs(), dynamic_shapes=family.dynamic(), verify="each"
    )
    assert compiled.report.to_dict()["error"] < 1e-5


class Counter(torch.nn.Module):
    """Writes to its state and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Tensor
        self.register_buffer("total", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x * 1.0)
        return torch.tanh(3 * self.total) + torch.rand(4)


def test_state_is_an_input_of_what_is_compared() -> None:
    counter = Counter().eval()
    compiled = regraft.compile(counter, (torch.randn(4),), verify="each")
    assert compiled.report.rewrites["MulOne"].hits == 1
    assert any("1 changes compared" in note for note in compiled.report.notes)
    assert torch.equal(counter.total, torch.ones(4))


def test_a_wrong_rewrite_of_what_reads_the_state_is_caught() -> None:
    with pytest.raises(NumericsMismatch) as caught:
        regraft.compile(Counter().eval(), (torch.randn(4),), rewrites=[WrongTanh], verify="each")
    assert caught.value.suspect == "WrongTanh"


class AsManyRows(torch.nn.Module):
    """Rows of which a value says how many there are, in two branches of different lengths too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = int(x.amax().item())
        part = self.layer(x[:n]) * 1.0 + torch.zeros(n, 3)
        if part.sum() > 0:
            return (x[: n + 1] * 1.0).sum(0)
        return (x[: n - 1] * 1.0).sum(0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_sizes_that_values_decide(sign: float) -> None:
    x = torch.arange(9.0).view(3, 3).flip(0) / 3
    made = AsManyRows().eval()
    with torch.no_grad():
        made.layer.weight.fill_(sign)
    compiled = regraft.compile(made, (x,), verify="each", backends=("eager",), cache=False)
    torch.testing.assert_close(compiled(x), made(x).detach())
