"""`explain`: the nearest miss of a rewrite, the first thing that is wrong, the op and the line to blame."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import regraft
from regraft.errors import CaptureError, OptionError, RewriteError
from regraft.ir import Progress
from tests.compiler.near_misses import NEAR_MISSES, NearMiss, ParallelSum, X, gelu_of_another_half


@pytest.mark.conformance
@pytest.mark.parametrize("case", NEAR_MISSES, ids=lambda case: case.model.__name__)
def test_near_miss(case: NearMiss, check_golden: Callable[[str, str], None]) -> None:
    found = regraft.explain(case.model, case.inputs, rewrite=case.rewrite, rewrites=[ParallelSum])
    (explanation,) = found.rewrites
    best, file = explanation.attempts[0], sys.modules[case.model.__module__].__file__
    assert (explanation.name, explanation.hits) == (case.rewrite, 0)
    assert case.reason in best.reason
    assert best.culprit.startswith(case.culprit)
    assert best.progress.name.lower() == case.progress
    assert (best.location.file, best.location.line) == (file, case.line)
    # Line numbers and folders are not what the text is about.
    text = "\n".join(best.lines()).replace(f"{file}:{case.line}", "the marked line")
    check_golden(f"tests/compiler/golden/near_misses/{case.model.__name__}.txt", f"{text}\n")


class Block(nn.Module):
    """One rewrite that applies, and some that nearly do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(16, 16), Gate())

    def forward(self, x: Tensor) -> Tensor:
        normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.inner(normal)


class Gate(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(x)
        return x * gate, gate


def test_all_rewrites_are_ranked() -> None:
    explanation = regraft.explain(Block().eval(), (X,))
    ranks = [each.progress for each in explanation.rewrites if not each.canonical]
    assert ranks == sorted(ranks, reverse=True)
    assert explanation.rewrites[0].name == "RMSNorm"
    assert explanation["RMSNorm"].hits == 1
    assert explanation["RMSNorm"].attempts[0].progress is Progress.APPLIED
    assert explanation["SiLU"].progress is Progress.OUTSIDE_USE
    assert explanation["Rotary"].progress <= Progress.PARTIAL
    assert explanation["GroupedHeads"].progress is Progress.NO_MATCH
    assert "no aten.scaled_dot_product_attention" in explanation["GroupedHeads"].attempts[0].reason
    assert len({each.name for each in explanation.rewrites}) == len(explanation.rewrites)
    shown = str(explanation)
    assert "RMSNorm (recover): applied 1 time" in shown
    assert "GroupedHeads" not in shown
    assert "more were not near anything" in shown.splitlines()[-1]


def test_module_path_and_use_outside_are_told() -> None:
    (attempt,) = regraft.explain(Block().eval(), (X,), rewrite="SiLU", limit=1)["SiLU"].attempts
    assert attempt.location.module == "inner.1"
    assert attempt.source == "gate = torch.sigmoid(x)"
    assert attempt.change.startswith("the model returns this value too")


def test_use_in_another_op_is_told_with_its_line() -> None:
    def used_twice(x: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        return x * gate + gate.cos()

    (attempt,) = regraft.explain(used_twice, (X,), rewrite="SiLU", limit=1)["SiLU"].attempts
    assert attempt.change.startswith("aten.cos at ")
    assert attempt.change.endswith("uses this value too: compute it apart there")


def test_explanation_as_json_and_in_a_terminal() -> None:
    explanation = regraft.explain(gelu_of_another_half, (X,))
    content = explanation.to_dict()
    assert json.loads(json.dumps(content)) == content
    names = [each["name"] for each in content["rewrites"]]
    gelu = content["rewrites"][names.index("GeluErf")]
    assert gelu["progress"] == "declined"
    assert gelu["attempts"][0]["source"] == "half = 0.51 * x  # <-"
    out = io.StringIO()
    Console(file=out, width=200).print(explanation)
    assert out.getvalue().strip() == str(explanation)


class Roundabout(ParallelSum):
    exactness = regraft.Exactness.APPROX(0.5)


def sum_of_linears(x: Tensor) -> Tensor:
    return nn.functional.linear(x, X[0, :2]) + nn.functional.linear(x, X[1, :2])


def test_exactness_that_is_not_allowed() -> None:
    (attempt,) = regraft.explain(sum_of_linears, (X,), rewrite=Roundabout)["Roundabout"].attempts
    assert attempt.progress is Progress.LEFT_OUT
    assert attempt.reason == "it matches, but is 'approx(0.5)' where the compile allows 'reassociates'"
    assert attempt.change == "compile(..., exactness=Exactness.APPROX(0.5))"
    allowed = regraft.Exactness.APPROX(0.5)
    found = regraft.explain(sum_of_linears, (X,), rewrite=Roundabout(), exactness=allowed)
    assert found["Roundabout"].hits == 1


class ZetaSum(ParallelSum):
    """Comes after ``ParallelSum`` by name, and never gets its turn."""


def test_another_rewrite_came_first() -> None:
    found = regraft.explain(sum_of_linears, (X,), rewrite=ZetaSum, rewrites=[ParallelSum])["ZetaSum"]
    assert found.attempts[0].progress is Progress.LEFT_OUT
    assert found.attempts[0].reason == "'ParallelSum' applied at this op first"
    assert 'before = ("ParallelSum",)' in found.attempts[0].change


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(OptionError, match="no rewrite 'RMSnorm'; did you mean 'RMSNorm'"):
        regraft.explain(Block().eval(), (X,), rewrite="RMSnorm")
    with pytest.raises(OptionError, match="did you mean 'GeluErf'"):
        _ = regraft.explain(gelu_of_another_half, (X,))["GeluErv"]


@pytest.mark.parametrize("rewrite", [3, nn.Linear])
def test_what_is_no_rewrite(rewrite: Any) -> None:
    with pytest.raises(OptionError, match="Rewrite classes or instances"):
        regraft.explain(Block().eval(), (X,), rewrite=rewrite)


@pytest.mark.parametrize("limit", [0, -1, "many", True])
def test_limit(limit: Any) -> None:
    with pytest.raises(OptionError, match="limit: expected a positive int"):
        regraft.explain(Block().eval(), (X,), limit=limit)


def test_capture_fails_as_in_compile() -> None:
    def branching(x: Tensor) -> Tensor:
        try:
            return x if x.sum() > 0 else -x
        except ValueError:
            return x

    messages = []
    for call in (regraft.compile, regraft.explain, regraft.bisect):
        with pytest.raises(CaptureError) as caught:
            call(branching, (X,))
        messages.append(str(caught.value))
    assert len(set(messages)) == 1


class Raising(ParallelSum):
    def check(self, m: Any) -> Any:
        return 1 // 0


def test_check_that_raises_is_named() -> None:
    with pytest.raises(RewriteError, match=r"'Raising'\.check failed: ZeroDivisionError"):
        regraft.explain(sum_of_linears, (X,), rewrite=Raising)
