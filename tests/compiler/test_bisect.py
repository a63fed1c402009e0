"""`bisect` finds the guilty pass, rewrite, application, back end and op."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import regraft
from regraft.errors import OptionError
from tests.compiler.wrong import DropsAbs, WrongBackend, WrongTanh, model, rows


def bisected(**options: Any) -> Any:
    return regraft.bisect(model(), (rows(),), **options)


def source_of(report: Any) -> str:
    with open(report.location.file) as file:
        return file.read().splitlines()[report.location.line - 1].strip()


def test_wrong_rewrite() -> None:
    steps: list[str] = []
    report = bisected(rewrites=[WrongTanh], progress=steps.append)
    assert (report.verdict, report.rewrite, report.application) == ("rewrite", "WrongTanh", 1)
    assert report.pass_name == "recover.rewrite"
    assert source_of(report) == "y = torch.tanh(y * 3)  # second"
    assert report.path.startswith("forward.body.op[")
    assert "aten.tanh" in report.op
    assert "+%tanh_1 = aten.sigmoid" in report.diff.replace(" (", "(")
    assert report.trials == len(steps)
    assert "'WrongTanh', application 1, in the pass 'recover.rewrite'" in str(report)
    content = report.to_dict()
    assert json.loads(json.dumps(content)) == content
    out = io.StringIO()
    Console(file=out, width=300).print(report)
    assert out.getvalue().strip() == str(report)


class LaterOnly(WrongTanh):
    """Right at the first place and wrong at the second."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.aten.tanh(x)

    def check(self, m: Any) -> Any:
        return m.decline("it is done", m.x) if m.root.loc.made_by else None

    def rewrite(self, op: Any, m: Any) -> Any:
        is_first = any(use.op.name == "aten.abs" for use in m.root.result.uses)
        return op.aten.tanh(m.x) if is_first else op.aten.sigmoid(m.x)


def test_second_application_is_the_guilty_one() -> None:
    report = bisected(rewrites=[LaterOnly])
    assert (report.verdict, report.rewrite, report.application) == ("rewrite", "LaterOnly", 2)
    assert source_of(report) == "y = torch.tanh(y * 3)  # second"


@pytest.mark.parametrize("heard", [True, False])
def test_wrong_pass(heard: bool) -> None:
    report = bisected(passes=[("recover", DropsAbs(heard))])
    assert (report.verdict, report.pass_name, report.rewrite) == ("pass", "drops-abs", "")
    assert "aten.abs" in report.diff


def test_wrong_back_end() -> None:
    report = bisected(backends=[WrongBackend(), "ort"])
    assert (report.verdict, report.backend) == ("backend", "wrong")
    assert "aten.tanh" in report.op
    assert source_of(report) == "y = torch.tanh(y * 3)  # second"


def test_nothing_is_wrong() -> None:
    report = bisected()
    assert (report.verdict, report.trials) == ("right", 1)
    assert str(report).startswith("the compiled model is right")


def test_a_failure_before_any_pass_is_captures() -> None:
    report = bisected(check=lambda compiled: False)
    assert report.verdict == "capture"
    assert report.failure == "'check' returned False"


def test_a_failure_that_does_not_reproduce() -> None:
    verdicts = iter([False, True])
    assert bisected(check=lambda compiled: next(verdicts)).verdict == "unstable"


class Raising(WrongTanh):
    def rewrite(self, op: Any, m: Any) -> Any:
        raise KeyError("oh")


def test_a_compile_that_raises_is_a_failure() -> None:
    report = bisected(rewrites=[Raising])
    assert (report.verdict, report.pass_name) == ("rewrite", "recover.rewrite")
    assert (report.rewrite, report.application) == ("Raising", 1)
    assert "'Raising'.rewrite failed: KeyError: 'oh'" in report.failure


def test_checks_of_the_users() -> None:
    report = bisected(rewrites=[WrongTanh], check=lambda compiled: "WrongTanh" not in compiled.ir)
    assert (report.verdict, report.rewrite) == ("rewrite", "WrongTanh")
    assert report.failure == "'check' returned False"


def test_checks_that_cannot_be_used() -> None:
    with pytest.raises(OptionError, match="'check' returned 'yes'; it must return True or False"):
        bisected(check=lambda compiled: "yes")
    with pytest.raises(OptionError, match=r"'check' raised ZeroDivisionError: .*; it must return") as caught:
        bisected(check=lambda compiled: 1 // 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(OptionError, match="check: expected a function"):
        bisected(check="numerics")


def test_options_are_those_of_compile() -> None:
    with pytest.raises(OptionError, match="rewrites"):
        bisected(rewrites=[nn.Linear])
    with pytest.raises(OptionError, match="there is no back end 'otr'"):
        bisected(backends=["otr"])


class WrongProduct(regraft.Rewrite):
    """a @ b = -a @ b, which is so for the factors of no adapter: they are zeros."""

    exactness = regraft.Exactness.REASSOCIATES

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        return op.aten.matmul(a, b)

    def check(self, m: Any) -> Any:
        is_made = m.a.op is not None and m.a.op.name == "aten.neg"
        return m.decline("it is done", m.a) if is_made else None

    def rewrite(self, op: Any, m: Any) -> Any:
        return op.aten.matmul(op.aten.neg(m.a), m.b)


def test_wrong_under_an_adapter() -> None:
    factors = {"linear.lora_A.weight": torch.ones(2, 8), "linear.lora_B.weight": torch.ones(8, 2)}
    assert bisected(rewrites=[WrongProduct]).verdict == "right", "there is no product"
    assert bisected(adapters={"a": factors}).verdict == "right"
    report = bisected(rewrites=[WrongProduct], adapters={"a": factors})
    assert (report.verdict, report.rewrite) == ("rewrite", "WrongProduct")
    assert "under the adapter 'a'" in report.failure
    with pytest.raises(OptionError, match="the adapter 'a'"):
        bisected(adapters={"a": {"other.lora_A.weight": torch.ones(2, 8)}})
