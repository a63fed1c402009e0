"""What a failing pass or rewrite says: which, where, from which line of the model, and once."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from regraft.errors import NumericsMismatch, OptionError, RewriteError
from regraft.ir import (
    Builder,
    DType,
    Location,
    Match,
    Module,
    PassContext,
    PatternBuilder,
    Rewrite,
    RewritePass,
    TensorType,
    Value,
    Var,
    run_pass,
)
from tests.ir.graphs import TABLE, f32, module, region


class Tanh(Rewrite):
    """A rewrite of tanh that fails; ``error`` is what it raises."""

    def __init__(self, error: Exception, method: str = "rewrite") -> None:
        self.error, self.method = error, method

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.tanh(x)

    def check(self, m: Match) -> None:
        if self.method == "check":
            raise self.error

    def rewrite(self, op: Builder, m: Match) -> Value:
        op.aten.sigmoid(m.x)
        raise self.error


def nested() -> Module:
    """A tanh from model.py:7, the fourth op of the second region of the third op."""

    def inside(op: Builder, x: Value) -> list[Value]:
        for _ in range(3):
            x = op.aten.relu(x)
        return [op.aten.tanh(x)]

    def forward(op: Builder, p: Value, x: Value) -> list[Value]:
        x = op.aten.neg(op.aten.abs(x))
        branches = [region(lambda op, y: [y], [f32(2)]), region(inside, [f32(2)])]
        return [op.create("cf.cond", (p, [x]), regions=branches).result]

    made = module(forward, [TensorType(DType.BOOL, ()), f32(2)])
    tanh = next(op for op in made.main.walk() if op.name == "aten.tanh")
    tanh.loc = Location("model.py", 7, "layers.0")
    return made


def failure(rewrite: Rewrite, made: Module | None = None) -> RewriteError:
    with pytest.raises(RewriteError) as caught:
        run_pass(RewritePass("my-pass", "recover", [rewrite]), made or nested(), PassContext(TABLE))
    return caught.value


def test_the_whole_text() -> None:
    error = failure(Tanh(KeyError("oh"), "check"))
    raising = Tanh.check.__code__
    head, excerpt = str(error).split("    %", 1)
    assert head == (
        "'Tanh'.check failed: KeyError: 'oh'\n"
        "  rewrites: Tanh\n"
        f"  source: {__file__}:{raising.co_firstlineno + 2}\n"
        "  in pass: my-pass\n"
        "  at: forward.body.op[2].region[1].op[3]\n"
        "  from: model.py:7 in layers.0\n"
    )
    lines = ["%" + excerpt.splitlines()[0], *(line[4:] for line in excerpt.splitlines()[1:])]
    assert [line.split("= ")[-1].split("(")[0] for line in lines[:4]] == ["aten.relu"] * 3 + ["aten.tanh"]
    assert lines[4] == "^" * len(lines[3])
    assert lines[5].startswith("cf.yield")
    assert len(lines) == 6


def test_ten_ops_either_side() -> None:
    def forward(op: Builder, x: Value) -> list[Value]:
        for number in range(40):
            x = op.aten.tanh(x) if number == 20 else op.aten.relu(x)
        return [x]

    error = failure(Tanh(KeyError("oh")), module(forward, [f32(2)]))
    assert error.excerpt is not None
    lines = error.excerpt.splitlines()
    caret = next(i for i, line in enumerate(lines) if set(line.strip()) == {"^"})
    # What the rewrite had built before it failed stands there as well.
    assert [i for i, line in enumerate(lines) if "aten.sigmoid" in line] == [caret - 2]
    assert (caret, len(lines)) == (11, 22)
    assert error.path == "forward.body.op[21]"


@pytest.mark.parametrize("method", ["check", "rewrite"])
@pytest.mark.parametrize("original", [KeyError("oh"), NumericsMismatch("wrong", "x", 1.0, 0.0)])
def test_the_original_is_the_cause(method: str, original: Exception) -> None:
    error = failure(Tanh(original, method))
    assert error.__cause__ is original
    assert str(error).count(type(original).__name__) == 1
    assert pickle.loads(pickle.dumps(error)).path == error.path


class Wrapped:
    """A pass that runs another one."""

    name, stage, after, before = "outer", "recover", (), ()

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def run(self, made: Module, context: PassContext) -> bool:
        run_pass(self.inner, made, context)
        return True


def test_place_is_told_once() -> None:
    inner = RewritePass("inner", "recover", [Tanh(KeyError("oh"))])
    with pytest.raises(RewriteError) as caught:
        run_pass(Wrapped(inner), nested(), PassContext(TABLE))
    text = str(caught.value)
    assert caught.value.in_pass == "inner"
    assert [text.count(part) for part in ("in pass:", "at:", "from:", "KeyError", "^^^\n")] == [1] * 5


class Visits:
    """A pass that fails at the first tanh, having said so or not."""

    name, stage, after, before = "visits", "recover", (), ()

    def __init__(self, tells: bool) -> None:
        self.tells = tells

    def run(self, made: Module, context: PassContext) -> bool:
        tanh = next(op for op in made.main.walk() if op.name == "aten.tanh")
        if self.tells:
            context.rewriter(self.name).before(tanh)
        raise ValueError("no")


@pytest.mark.parametrize("tells", [True, False])
def test_a_pass_that_fails(tells: bool) -> None:
    with pytest.raises(RewriteError) as caught:
        run_pass(Visits(tells), nested(), PassContext(TABLE))
    error = caught.value
    assert error.message == "the pass 'visits' failed: ValueError: no"
    assert isinstance(error.__cause__, ValueError)
    assert (error.path, error.location) == (
        ("forward.body.op[2].region[1].op[3]", "model.py:7 in layers.0") if tells else (None, None)
    )


class WrongNumber(Tanh):
    def rewrite(self, op: Builder, m: Match) -> Any:
        return self.error


@pytest.mark.parametrize("built", [None, 3, ["x"]])
def test_what_a_rewrite_returns(built: Any) -> None:
    error = failure(WrongNumber(built))
    assert "'WrongNumber'.rewrite failed: TypeError: it returned" in error.message
    assert error.rewrites == ("WrongNumber",)


@pytest.mark.parametrize("built", [{}, {"root": []}])
def test_replacements_by_op_name_the_root(built: Any) -> None:
    error = failure(WrongNumber(built))
    assert "return values for aten.tanh, and for other ops by op" in error.message


class Loses(Tanh):
    def rewrite(self, op: Builder, m: Match) -> Any:
        return op.aten.view(m.x, (2, 1))


def test_a_replacement_that_does_not_fit_is_located() -> None:
    error = failure(Loses(KeyError()))
    assert error.message.startswith("'Loses' replaces aten.tanh: f32[2] by a f32[2, 1]")
    assert (error.rewrites, error.in_pass) == (("Loses",), "my-pass")
    assert error.path == "forward.body.op[2].region[1].op[4]"


class Asks(Visits):
    """A pass that a user's option does not suit, or that builds an op wrongly."""

    def __init__(self, option: str | None) -> None:
        self.option = option

    def run(self, made: Module, context: PassContext) -> bool:
        raise OptionError("there is no weight 'w'", option=self.option, value="'w'", expected="a name")


def test_an_option_that_does_not_fit_is_no_fault_of_the_pass() -> None:
    with pytest.raises(OptionError, match="ranks: expected a name, got 'w'"):
        run_pass(Asks("ranks"), nested(), PassContext(TABLE))
    with pytest.raises(RewriteError, match="the pass 'visits' failed: OptionError"):
        run_pass(Asks(None), nested(), PassContext(TABLE))
