"""``batch="per_sample"``: each sample of a batch takes its own path, and gets what it gets alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import regraft
from regraft import ir
from regraft.errors import NumericsMismatch, OptionError, ShapeError, UnsupportedOpError
from regraft.testing import PathCounts, assert_close, randomise

WIDTH = 8


class Exits(nn.Module):
    """Leaves at the first block whose head is sure enough; says which."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 16, activation="gelu", norm_first=True, batch_first=True)
            for _ in range(blocks)
        )
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 3) for _ in range(blocks))

    def forward(self, x: Tensor, threshold: Tensor) -> tuple[Tensor, int]:
        for i, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            x = block(x)
            logits = head(x[:, 0])
            if logits.softmax(-1).max() > threshold:
                return logits, i
        return logits, len(self.blocks)


class Skips(nn.Module):
    """Convolutions that run where their gate says so, one of two ways in the last."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, threshold: Tensor) -> Tensor:
        for gate, block in zip(self.gates, self.blocks, strict=True):
            if gate(x.mean(dim=(2, 3))) > threshold:
                x = x + torch.relu(self.norm(block(x)))
        if x.mean() > threshold:
            return nn.functional.max_pool2d(x, 2).flatten(1)
        return nn.functional.avg_pool2d(x, 2).flatten(1).neg()


class Refines(nn.Module):
    """Repeats until it has settled, at most twelve times; says how often."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, threshold: Tensor) -> tuple[Tensor, int]:
        steps = 0
        while True:
            after = 0.5 * x + 0.25 * torch.tanh(self.step(x))
            steps += 1
            change = (after - x).abs().max()
            if change < threshold or steps >= 12:
                return after, steps
            x = after


def tokens(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 0.2 + 3 * torch.rand(count, 1, 1, generator=generator)
    return scale * torch.randn(count, 5, WIDTH, generator=generator)


def images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, 6, 6, generator=generator) + torch.randn(count, 4, 1, 1, generator=generator)


def vectors(count: int, seed: int) -> Tensor:
    return tokens(count, seed)[:, 0]


CASES: dict[str, tuple[type[nn.Module], Any, float]] = {
    "exits": (Exits, tokens, 0.75),
    "skips": (Skips, images, 0.0),
    "refines": (Refines, vectors, 0.05),
}


def alone(model: nn.Module, x: Tensor, threshold: Tensor) -> list[Tensor]:
    """The results of each sample run alone, one after another."""
    with torch.no_grad():
        runs = [pytree.tree_leaves(model(x[i : i + 1], threshold)) for i in range(len(x))]
    as_rows = [[torch.as_tensor(leaf).reshape(1, -1) for leaf in run] for run in runs]
    return [torch.cat(rows) for rows in zip(*as_rows, strict=True)]


def check(actual: Any, model: nn.Module, x: Tensor, threshold: Tensor) -> list[Tensor]:
    expected = alone(model, x, threshold)
    precise = alone(copy.deepcopy(model).double(), x.double(), threshold.double())
    ours = [leaf.reshape(len(x), -1) for leaf in pytree.tree_leaves(actual)]
    assert all(torch.equal(a, b) for a, b in zip(ours[1:], expected[1:], strict=True))
    assert_close(ours[:1], precise[:1], expected[:1], reassociates=True)
    return expected


def given(name: str) -> tuple[nn.Module, Any, Tensor]:
    make, draw, threshold = CASES[name]
    return randomise(make().eval()), draw, torch.tensor(threshold)


@pytest.mark.parametrize(
    ("name", "backends"),
    [*((name, ("ort",)) for name in CASES), ("refines", ("eager",)), ("exits", ("tvm", "ort"))],
)
def test_each_sample_gets_what_it_gets_alone(name: str, backends: tuple[str, ...], with_one_tvm: Any) -> None:
    """None of no samples, too."""
    model, draw, threshold = given(name)
    paths = PathCounts()
    compiled = regraft.compile(
        model,
        (draw(1, 0), threshold),
        backends=with_one_tvm(backends),
        batch="per_sample",
        passes=paths.passes,
        cache=False,
    )
    x = draw(24, 3)
    for each in (*x.split(1), x):
        decided = check(compiled(each, threshold), model, each, threshold)
    for level in (-5.0, 5.0):
        check(compiled(x[:3], torch.tensor(level)), model, x[:3], torch.tensor(level))
    assert len(decided) == 1 or len(decided[1].unique()) >= 3, "the samples take few paths"
    paths.assert_all_ran()
    check_no_samples(compiled, draw, threshold)


#: Those of which the test above asks no samples of what it has compiled.
NOT_ASKED = [
    ("exits", ("eager",)),
    ("skips", ("eager",)),
    ("skips", ("tvm", "ort")),
    ("refines", ("tvm", "ort")),
]


@pytest.mark.parametrize(("name", "backends"), NOT_ASKED)
def test_no_samples(name: str, backends: tuple[str, ...], with_one_tvm: Any) -> None:
    model, draw, threshold = given(name)
    compiled = regraft.compile(
        model, (draw(1, 0), threshold), backends=with_one_tvm(backends), batch="per_sample", cache=False
    )
    check_no_samples(compiled, draw, threshold)


def check_no_samples(compiled: Any, draw: Any, threshold: Tensor) -> None:
    """No samples give what two give, but for their number."""
    some, none = (pytree.tree_leaves(compiled(draw(count, 1), threshold)) for count in (2, 0))
    assert [each.shape for each in none] == [(0, *each.shape[1:]) for each in some]
    assert [each.dtype for each in none] == [each.dtype for each in some]


def test_no_arm_runs_that_no_sample_takes() -> None:
    model, draw, _ = given("exits")
    paths = PathCounts()
    compiled = regraft.compile(
        model, (draw(1, 0), torch.tensor(0.5)), batch="per_sample", passes=paths.passes, cache=False
    )
    x = draw(16, 0)
    check(compiled(x, torch.tensor(-1.0)), model, x, torch.tensor(-1.0))
    ran = [count for path, count in paths.counts.items() if path.what == "predicate true"]
    assert sum(ran) <= 1, paths.counts
    check(compiled(x, torch.tensor(2.0)), model, x, torch.tensor(2.0))


def test_as_a_file(tmp_path: Path) -> None:
    model, draw, threshold = given("exits")
    path = tmp_path / "model.onnx"
    regraft.export_onnx(model, (draw(1, 0), threshold), path, batch="per_sample")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 9, 0):
        x = draw(count, count)
        feed = {"x": x.numpy(), "threshold": threshold.numpy()}
        found = [torch.from_numpy(each) for each in session.run(None, feed)]
        if count:
            check(found, model, x, threshold)
        else:
            assert [each.shape for each in found] == [(0, 3), (0,)]


class Counts(nn.Module):
    """Says how often it went on, an int of Python's."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        steps = 0
        while x[0, 0] > 0.5 and steps < 3:
            x = x * 0.5
            steps += 1
        return x, steps


class OnlyInABatch:
    """A pass that goes wrong where more than one sample is given: a product is scaled by their number."""

    name, stage, after, before = "wrong-in-a-batch", "legalize", (), ()

    def run(self, module: ir.Module, context: ir.PassContext) -> bool:
        function = module.main
        rewriter = context.rewriter(self.name)
        result = function.body.results[0]
        builder = rewriter.before(function.body.terminator)
        count = builder.aten._to_copy(builder.rg.dim_value(result.tensor.shape[0]), dtype=ir.DType.F32)
        yields = [builder.aten.mul.Tensor(result, count), *function.body.results[1:]]
        old = function.body.terminator
        rewriter.at_end(function.body, old.loc).create("cf.yield", (tuple(yields),))
        rewriter.erase(old)
        return True


def test_verified_by_the_compile() -> None:
    model, draw, threshold = given("skips")
    compiled = regraft.compile(model, (draw(1, 0), threshold), batch="per_sample", verify=True, cache=False)
    assert compiled.report.error is not None


def test_verified_on_samples_that_part() -> None:
    """What one sample does not show is found; numbers are results too; an exported program has no call."""
    x = torch.tensor([[4.0, 0.1, 1.0, 0.2]])
    compiled = regraft.compile(Counts().eval(), (x,), batch="per_sample", verify=True, cache=False)
    assert compiled.report.error == 0.0
    assert compiled(torch.cat([x, x.roll(1)]))[1].tolist() == [3, 0]
    with pytest.raises(NumericsMismatch):
        regraft.compile(
            Counts().eval(),
            (x,),
            batch="per_sample",
            verify=True,
            cache=False,
            passes=[("legalize", OnlyInABatch())],
        )
    program = torch.export.export(nn.Linear(4, 2).eval(), (x,))
    compiled = regraft.compile(program, (), batch="per_sample", verify=True, cache=False)
    assert compiled.report.error is not None


class Gathers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten()[(x.flatten() > 0).nonzero().flatten()].sum()[None]


class Writes(nn.Module):
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1.0)
        return x * self.seen


class Noisy(nn.Module):
    """Draws numbers that depend on no sample: one draw would be the same for all."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(1, 4) * torch.rand(4)


def test_draws_are_refused_that_do_not_depend_on_a_sample() -> None:
    with pytest.raises(UnsupportedOpError, match="draws random numbers") as caught:
        regraft.compile(Noisy().eval(), (torch.randn(1, 4),), batch="per_sample", cache=False)
    assert {op.name for op in caught.value.ops} == {"aten.randn", "aten.rand"}


def test_adapters_that_a_call_switches_are_refused(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(4, 2)).eval(), torch.randn(1, 4)
    adapters = {"a": {"0.lora_A.weight": torch.randn(1, 4), "0.lora_B.weight": torch.randn(2, 1)}}
    with pytest.raises(OptionError, match=r"adapters.*'batch' is set"):
        regraft.compile(model, (x,), batch="per_sample", adapters=adapters, cache=False)
    with pytest.raises(OptionError, match=r"adapters.*'batch' is set"):
        regraft.export_onnx(model, (x,), tmp_path / "two.onnx", batch="per_sample", adapters=adapters)
    path = tmp_path / "one.onnx"
    regraft.export_onnx(model, (x,), path, batch="per_sample", adapters=adapters, adapter="a")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    many = torch.randn(5, 4)
    (found,) = session.run(None, {session.get_inputs()[0].name: many.numpy()})
    change = adapters["a"]["0.lora_B.weight"] @ adapters["a"]["0.lora_A.weight"]
    with torch.no_grad():
        merged = copy.deepcopy(model)
        merged.get_parameter("0.weight").add_(change)
        assert_close(torch.from_numpy(found), copy.deepcopy(merged).double()(many.double()), merged(many))


def test_what_has_no_meaning_is_refused_by_name() -> None:
    x = torch.randn(1, 4)
    with pytest.raises(UnsupportedOpError, match=r"aten\.nonzero") as caught:
        regraft.compile(Gathers().eval(), (x,), batch="per_sample", cache=False)
    (refused,) = [op for op in caught.value.ops if op.name == "aten.nonzero"]
    assert refused.reasons == {"batch='per_sample'": "aten.nonzero gives each sample another size"}
    assert all("test_per_sample.py" in line for line in refused.source_lines)
    with pytest.raises(OptionError, match="writes to a tensor"):
        regraft.compile(Writes().eval(), (x,), batch="per_sample", cache=False)
    with pytest.raises(OptionError, match=r"(?s)first size of 1: 'input' has 3.*the example, input\[:1\]"):
        regraft.compile(nn.Linear(4, 2).eval(), (torch.randn(3, 4),), batch="per_sample", cache=False)
    shapes = ({0: torch.export.Dim("samples")},)
    with pytest.raises(OptionError, match="leave it out of dynamic_shapes"):
        regraft.compile(nn.Linear(4, 2).eval(), (x,), dynamic_shapes=shapes, batch="per_sample", cache=False)
    with pytest.raises(OptionError, match="batch"):
        regraft.compile(nn.Linear(4, 2).eval(), (x,), batch="whole", cache=False)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="verify"):
        regraft.compile(nn.Linear(4, 2).eval(), (x,), batch="per_sample", verify="each", cache=False)


def test_an_example_of_several_samples_is_named() -> None:
    """Before it is traced: what decides for one sample is ambiguous for several."""

    def model(given: dict[str, Tensor], threshold: Tensor) -> Tensor:
        return given["x"] if given["x"].sum(1) > threshold else -given["x"]

    given = {"x": torch.randn(4, 3)}
    with pytest.raises(OptionError, match=r"(?s)'given\['x'\]' has 4.*one sample.*given\['x'\]\[:1\]"):
        regraft.compile(model, (given, torch.tensor(0.0)), batch="per_sample", cache=False)


def test_arguments_have_as_many_samples() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y if x.sum() > 0 else y

    example = torch.randn(1, 3), torch.randn(1, 3)
    compiled = regraft.compile(Two().eval(), example, batch="per_sample", cache=False)
    with pytest.raises(ShapeError, match="batch"):
        compiled(torch.randn(2, 3), torch.randn(3, 3))


def test_an_argument_that_is_the_same_for_all_samples_is_named() -> None:
    """One of more than one row in the example, by mistake or not."""

    def model(x: Tensor, table: Tensor) -> Tensor:
        return x + table.sum(0) if x.sum() > 0 else x

    example = torch.randn(1, 3), torch.randn(2, 3)
    compiled = regraft.compile(model, example, batch="per_sample", backends=("eager",), cache=False)
    assert "batch='per_sample': the same for all samples: 'table'" in compiled.report.notes
    with pytest.raises(ShapeError, match="dynamic_shapes or batch leaves it out"):
        compiled(torch.randn(4, 3), torch.randn(4, 3))
