"""``regraft.compile``: what it takes, what it says, and what one can do with the result."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.errors import RecompileError, RegraftError
from regraft.testing import assert_close, randomise
from tests.models import in_double


class Net(nn.Module):
    """A linear, an activation spelled out, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        h = self.first(x)
        return self.second(self.norm(h * torch.sigmoid(h))) * scale


@pytest.fixture
def net() -> nn.Module:
    return randomise(Net().eval())


def rows(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def check(model: Any, compiled: Any, *arguments: Any) -> None:
    with torch.no_grad():
        eager = model(*arguments)
        wide = [a.double() if isinstance(a, Tensor) else a for a in arguments]
        expected = (copy.deepcopy(model).double() if isinstance(model, nn.Module) else model)(*wide)
    assert_close(compiled(*arguments), expected, eager, reassociates=True)


# -- what can be compiled ----------------------------------------------------------------------


def test_a_function() -> None:
    def scores(a: Tensor, b: Tensor) -> Tensor:
        return torch.softmax(a @ b.T, -1)

    compiled = regraft.compile(scores, (rows(), rows(5)), dynamic_shapes=({0: Dim.AUTO}, {0: Dim.AUTO}))
    check(scores, compiled, rows(1), rows(7))


def test_a_function_with_constants() -> None:
    table = torch.arange(8.0)
    compiled = regraft.compile(lambda x: x + table, (rows(),))
    check(lambda x: x + table, compiled, rows())


def test_an_exported_program(net: nn.Module) -> None:
    program = torch.export.export(net, (rows(),), dynamic_shapes=({0: Dim("rows", min=1, max=64)}, None)[:1])
    compiled = regraft.compile(program)
    check(net, compiled, rows(1))
    check(net, compiled, rows(64))


def test_an_exported_program_with_keywords(net: nn.Module) -> None:
    program = torch.export.export(net, (), {"x": rows()})
    assert torch.equal(regraft.compile(program)(x=rows()), regraft.compile(net, (rows(),))(rows()))


def test_a_graph_module(net: nn.Module) -> None:
    traced = torch.fx.symbolic_trace(net, {"scale": 1.0}).eval()
    check(net, regraft.compile(traced, (rows(),)), rows())


def test_positional_and_keyword_arguments(net: nn.Module) -> None:
    compiled = regraft.compile(net, (rows(),), {"scale": 2.0})
    expected = compiled(rows(), 2.0)
    assert torch.equal(compiled(rows(), scale=2.0), expected)
    assert torch.equal(compiled(scale=2.0, x=rows()), expected)


def test_an_example_of_size_one_stays_dynamic(net: nn.Module) -> None:
    compiled = regraft.compile(net, (rows(1),), dynamic_shapes=({0: Dim.AUTO},))
    for count in (1, 2, 7):
        check(net, compiled, rows(count))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(net: nn.Module, dtype: torch.dtype) -> None:
    model = net.to(dtype)
    check(model, regraft.compile(model, (rows().to(dtype),), fallback="eager"), rows().to(dtype))


# -- the result --------------------------------------------------------------------------------


def test_calls_are_independent(net: nn.Module) -> None:
    """Results are fresh: writing into one changes nothing else."""
    compiled = regraft.compile(net, (rows(),))
    first = compiled(rows())
    kept = first.clone()
    first.zero_()
    assert torch.equal(compiled(rows()), kept)


def test_non_contiguous_arguments(net: nn.Module) -> None:
    compiled = regraft.compile(net, (rows(),), dynamic_shapes=({0: Dim.AUTO},))
    check(net, compiled, torch.randn(8, 5).T)
    check(net, compiled, torch.randn(9, 16)[::2, ::2])
    check(net, compiled, rows(1).expand(4, 8))


def test_threads_share_a_model(net: nn.Module) -> None:
    compiled = regraft.compile(net, (rows(),), dynamic_shapes=({0: Dim.AUTO},), threads=1)
    inputs = [rows(1 + i % 5, seed=i) for i in range(24)]
    results: list[Any] = [None] * len(inputs)

    def work(start: int) -> None:
        for i in range(start, len(inputs), 4):
            for _ in range(20):
                results[i] = compiled(inputs[i])

    workers = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(compiled(x), y) for x, y in zip(inputs, results, strict=True))


def test_the_model_is_not_touched(net: nn.Module) -> None:
    before, attributes = copy.deepcopy(net.state_dict()), set(vars(net))
    regraft.compile(net, (rows(),), verify=True)
    assert set(vars(net)) == attributes
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


def test_weights_are_frozen_until_refreshed(net: nn.Module) -> None:
    compiled = regraft.compile(net, (rows(),))
    other = randomise(Net().eval(), seed=1)
    compiled.refresh(other)
    check(other, compiled, rows())
    assert not torch.allclose(net(rows()), compiled(rows()))


def test_refresh_takes_another_parameter_in_the_place_of_one() -> None:
    model, x = nn.Linear(8, 8).eval(), torch.randn(3, 8)
    compiled = regraft.compile(model, (x,))
    before = compiled(x)
    model.weight = nn.Parameter(torch.randn(8, 8))
    assert torch.equal(compiled(x), before)  # a call does not look for it
    compiled.refresh(model)
    assert_close(compiled(x), in_double(model, x), model(x))
    with torch.no_grad():
        model.weight.mul_(2)
    with pytest.raises(RegraftError, match="refresh"):
        compiled(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("name", ["first", "second"])
def test_refresh_refuses_weights_that_were_tied_and_are_two_now(name: str) -> None:
    model = Tied().eval()
    compiled = regraft.compile(model, (torch.ones(2, 8),))
    model.get_submodule(name).weight = nn.Parameter(torch.randn(8, 8))
    with pytest.raises(RecompileError, match="were one tied weight and are two now"):
        compiled.refresh(model)


def test_refresh_refuses_another_model(net: nn.Module) -> None:
    compiled = regraft.compile(net, (rows(),))
    before = compiled(rows())
    other = Net().eval()
    other.first = nn.Linear(8, 17)
    with pytest.raises(RegraftError, match=r"'first\.weight'.*\[17, 8\].*Compile again"):
        compiled.refresh(other)
    with pytest.raises(RegraftError):
        compiled.refresh(nn.Linear(8, 8))
    assert torch.equal(compiled(rows()), before)


# -- the report --------------------------------------------------------------------------------


def test_report(net: nn.Module) -> None:
    report = regraft.compile(net, (rows(),), verify=True).report
    content = report.to_dict()
    assert json.loads(json.dumps(content)) == content
    assert content["captured"]["aten.linear"] == 2
    assert content["rewrites"]["SiLU"]["hits"] == 1
    assert set(content["executors"]) == {"ort"}
    assert 0 < content["error"] < 1e-4
    assert content["time"]["total"] >= content["time"]["export"] > 0
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    assert content["memory"]["constants"] == weights
    # Two products of 3 rows, and a few operations an element beside them.
    assert 2 * 3 * (8 * 16 + 16 * 4) <= content["flops"]["after"] < 2000
    assert "SiLU" in str(report)


def test_error_is_none_without_verify(net: nn.Module) -> None:
    assert regraft.compile(net, (rows(),)).report.to_dict()["error"] is None


def test_verify_each(net: nn.Module) -> None:
    assert regraft.compile(net, (rows(),), verify="each").report.to_dict()["error"] < 1e-4


def test_fallback_to_eager_is_reported() -> None:
    def spectrum(x: Tensor) -> Tensor:
        return torch.linalg.qr(x.relu())[1].abs() + 1

    compiled = regraft.compile(spectrum, (rows(8),), fallback="eager")
    check(spectrum, compiled, rows(8))
    content = compiled.report.to_dict()
    assert content["executors"]["eager"] == 1
    assert content["executors"]["ort"] >= 2
    (entry,) = content["fallbacks"]
    assert (entry["op"], entry["backend"], entry["uses"]) == ("aten.linalg_qr", "ort", 1)
    assert entry["reason"]
    assert "aten.linalg_qr" in str(compiled.report)


def test_dump_writes_the_graph_after_each_pass(net: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "dump"
    regraft.compile(net, (rows(),), dump=folder)
    files = sorted(folder.glob("*.ir"))
    assert files[0].name == "00-captured.ir"
    assert len(files) >= 2
    assert "aten.sigmoid" in files[0].read_text()
    assert "aten.sigmoid" not in files[-1].read_text()
    assert "aten.silu" in files[-1].read_text()


# -- rewrites and passes of the user's ---------------------------------------------------------


class DoubleNegation(regraft.Rewrite):
    """-(-x) = x"""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.aten.neg(op.aten.neg(x))

    def rewrite(self, op: Any, m: Any) -> Any:
        return m.x


@pytest.mark.parametrize("form", [DoubleNegation, DoubleNegation()])
def test_a_rewrite_of_the_users(form: Any) -> None:
    def twice_negated(x: Tensor) -> Tensor:
        return torch.neg(torch.neg(torch.exp(x)))

    compiled = regraft.compile(twice_negated, (rows(),), rewrites=[form])
    assert compiled.report.to_dict()["rewrites"]["DoubleNegation"]["hits"] == 1
    assert "aten.neg" not in compiled.ir
    check(twice_negated, compiled, rows())


class Counting:
    """A pass of the user's."""

    name = "counting"
    after = before = ()

    def __init__(self) -> None:
        self.ops = 0

    def run(self, module: Any, context: Any) -> bool:
        self.ops = len(list(module.main.walk()))
        return False


def test_a_pass_of_the_users(net: nn.Module) -> None:
    counting = Counting()
    compiled = regraft.compile(net, (rows(),), passes=[("fuse", counting)])
    assert counting.ops > 3
    assert "counting" in [entry["name"] for entry in compiled.report.to_dict()["passes"]]


@pytest.mark.parametrize("backends", [("ort",), ("tvm", "ort")])
def test_what_defines_a_size_that_nobody_needs_does_not_run(
    backends: tuple[str, ...], with_one_tvm: Any
) -> None:
    def returns_its_argument(x: Tensor) -> Tensor:
        positive = x[x > 0]
        torch._check(positive.shape[0] >= 0)
        return x

    compiled = regraft.compile(returns_its_argument, (rows(),), backends=with_one_tvm(backends))
    assert "aten.nonzero" not in compiled.ir
    check(returns_its_argument, compiled, rows())
