"""Passes of the user's own, in every stage, and rewrites that break their contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import regraft
from regraft.errors import OptionError, RewriteError, VerifyError
from regraft.ir import STAGES, Rewriter
from tests.extension.fancy import rows


def model(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) + 1  # the model


def line_of(marker: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    (number,) = (i for i, text in enumerate(lines, start=1) if text.endswith(f"# {marker}"))
    return f"{Path(__file__).name}:{number}"


# -- passes ------------------------------------------------------------------------------------


class Recorder:
    """Writes its name down when it runs."""

    def __init__(self, name: str, log: list[str], **order: tuple[str, ...]) -> None:
        self.name = name
        self.log = log
        self.after = order.get("after", ())
        self.before = order.get("before", ())

    def run(self, module: Any, context: Any) -> bool:
        self.log.append(self.name)
        return False


@pytest.mark.parametrize("stage", STAGES)
def test_a_pass_runs_in_its_stage(stage: str) -> None:
    log: list[str] = []
    compiled = regraft.compile(model, (rows(),), passes=[(stage, Recorder("mine", log))])
    assert log == ["mine"]
    assert "mine" in [name for name, _ in compiled.report.passes]


def test_order_is_by_names_and_not_by_the_list() -> None:
    log: list[str] = []
    passes = [
        ("recover", Recorder("zeta", log, before=("recover.rewrite",))),
        ("recover", Recorder("alpha", log, after=("recover.rewrite", "beta"))),
        ("recover", Recorder("beta", log, after=("zeta",))),
    ]
    for given in (passes, passes[::-1]):
        log.clear()
        compiled = regraft.compile(model, (rows(),), passes=given)
        assert log == ["zeta", "beta", "alpha"]
        names = [name for name, _ in compiled.report.passes]
        assert names.index("zeta") < names.index("recover.rewrite") < names.index("alpha")


class Breaks:
    """Leaves an op whose type is not its rule's."""

    name = "breaks"

    def run(self, module: Any, context: Any) -> bool:
        for op in module.main.walk():
            if op.name == "aten.relu":
                op.result.type = op.result.tensor.with_shape((7,))
        return True


class Raises:
    name = "raises"

    def run(self, module: Any, context: Any) -> bool:
        raise KeyError("oh")


class WritesUnknown:
    name = "writes-unknown"

    def run(self, module: Any, context: Any) -> bool:
        Rewriter(context.table, self.name).before(module.main.body.terminator).aten.rleu()
        return True


def test_a_pass_that_breaks_the_graph_is_named() -> None:
    with pytest.raises(VerifyError, match="after pass: breaks"):
        regraft.compile(model, (rows(),), passes=[("recover", Breaks)])


def test_a_pass_that_raises_is_named() -> None:
    with pytest.raises(RewriteError, match=r"'raises' failed.*oh"):
        regraft.compile(model, (rows(),), passes=[("recover", Raises())])
    with pytest.raises(regraft.errors.RegraftError, match=r"no op 'aten\.rleu'"):
        regraft.compile(model, (rows(),), passes=[("recover", WritesUnknown())])


@pytest.mark.parametrize(
    ("passes", "words"),
    [
        ([Raises()], "pairs"),
        ([("recovery", Raises())], "a stage: canonicalize"),
        ([("recover", 3)], "a name and run"),
        (
            [("recover", Raises), ("fuse", Raises)],
            "two passes are called 'raises'",
        ),
        ([("recover", Recorder("recover.rewrite", []))], "'recover.rewrite', or regraft has one"),
        ([("recover", Recorder("mine", [], after=("recover.rewrit",)))], "did you mean 'recover.rewrite'"),
        ([("recover", Recorder("mine", [], after="fold"))], "a tuple of names"),  # type: ignore[arg-type]
    ],
)
def test_passes_that_cannot_be(passes: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        regraft.compile(model, (rows(),), passes=passes)


def test_passes_that_wait_for_each_other() -> None:
    passes = [
        ("recover", Recorder("a", [], after=("b",))),
        ("recover", Recorder("b", [], after=("a",))),
    ]
    with pytest.raises(RewriteError, match="cyclic order"):
        regraft.compile(model, (rows(),), passes=passes)


# -- rewrites ----------------------------------------------------------------------------------


class Wrong(regraft.Rewrite):
    """``relu`` into something that is wrong."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.aten.relu(x)

    def rewrite(self, op: Any, m: Any) -> Any:
        return op.aten.relu(m.x)


class UnknownInPattern(Wrong):
    def pattern(self, op: Any, x: Any) -> Any:
        return op.aten.rleu(x)  # the pattern


class RaisingPattern(Wrong):
    def pattern(self, op: Any, x: Any) -> Any:
        return op.aten.relu(x.tensor)  # the raising pattern


class RaisingCheck(Wrong):
    def check(self, m: Any) -> Any:
        return m.nonsense  # the check


class StrangeCheck(Wrong):
    def check(self, m: Any) -> Any:
        return "no"


class RaisingRewrite(Wrong):
    def rewrite(self, op: Any, m: Any) -> Any:
        return 1 // 0  # the rewrite


class UnknownInRewrite(Wrong):
    def rewrite(self, op: Any, m: Any) -> Any:
        return op.aten.rleu(m.x)  # the unknown op


class WrongType(Wrong):
    def rewrite(self, op: Any, m: Any) -> Any:
        return op.aten.view(m.x, (24,))


class WrongCall(Wrong):
    def rewrite(self, op: Any, m: Any) -> Any:
        return op.aten.matmul(m.x, m.x)  # the wrong call


class Nothing(Wrong):
    def rewrite(self, op: Any, m: Any) -> Any:
        return None


class TooMany(Wrong):
    def rewrite(self, op: Any, m: Any) -> Any:
        return (m.x, m.x)


AT_PATTERN = [".pattern failed", "source: "]
AT_MODEL = ["aten.relu", line_of("the model")]


@pytest.mark.parametrize(
    ("rewrite", "words"),
    [
        (UnknownInPattern, [*AT_PATTERN, "no op 'aten.rleu'; did you mean", line_of("the pattern")]),
        (RaisingPattern, [*AT_PATTERN, "AttributeError", line_of("the raising pattern")]),
        (RaisingCheck, [".check failed", "no value 'nonsense'", line_of("the check"), *AT_MODEL]),
        (StrangeCheck, [".check failed", "it returned 'no'", "m.decline", *AT_MODEL]),
        (RaisingRewrite, [".rewrite failed", "by zero", line_of("the rewrite"), *AT_MODEL]),
        (UnknownInRewrite, ["no op 'aten.rleu'; did you mean", line_of("the unknown op"), *AT_MODEL]),
        (WrongType, ["f32[3, 8] by a f32[24]", "insert a cast or a view", *AT_MODEL]),
        (WrongCall, ["aten.matmul: ", "inner sizes", line_of("the wrong call"), *AT_MODEL]),
        (Nothing, ["it returned None; return a value for each result", *AT_MODEL]),
        (TooMany, ["(1 results) by 2 values", *AT_MODEL]),
    ],
)
def test_a_rewrite_that_breaks_its_contract(rewrite: Any, words: list[str]) -> None:
    with pytest.raises(RewriteError) as caught:
        regraft.compile(model, (rows(),), rewrites=[rewrite])
    text, name = str(caught.value), rewrite.__name__
    assert [word for word in (*words, f"'{name}'", f"rewrites: {name}") if word not in text] == []


def test_a_check_that_returns_false_declines() -> None:
    class Declines(Wrong):
        def check(self, m: Any) -> Any:
            return False

    compiled = regraft.compile(model, (rows(),), rewrites=[Declines])
    assert compiled.report.rewrites["Declines"].hits == 0
    assert "check returned False" in compiled.report.rewrites["Declines"].declined
