"""Approximations that a user asks for: layers of lower rank, and sub-layers left out."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers.pytorch_utils import Conv1D

import regraft
from regraft import Exactness, LowRank, WithoutLayers, rank_layers
from regraft.errors import NumericsMismatch, OptionError
from regraft.testing import assert_close, randomise, relative_error

WIDTH, HIDDEN = 32, 64


class FFN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), Conv1D(WIDTH, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nearly_low_rank(rank: int = 3, noise: float = 1e-3) -> FFN:
    model = randomise(FFN().eval())
    with torch.no_grad():
        for seed, parameter in enumerate((model.up.weight, model.down.weight)):
            rows, columns = parameter.shape
            product = normal(rows, rank, seed=seed) @ normal(rank, columns, seed=seed + 9) / 10
            parameter.copy_(product + noise * normal(rows, columns, seed=seed + 20))
    return model


def truncated(model: FFN, rank: int) -> FFN:
    """The model with the best approximation of each weight."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in (model.up.weight, model.down.weight):
            u, s, v = torch.linalg.svd(parameter.double(), full_matrices=False)
            parameter.copy_((u[:, :rank] * s[:rank]) @ v[:rank])
    return model


LOOSE = Exactness.APPROX(0.1)


@pytest.mark.parametrize(
    "asked", [{"energy": 0.999}, {"rank": 3}, {"ranks": {"up.weight": 3, "down.weight": 3}}]
)
def test_factors_are_the_best_of_their_rank(asked: dict[str, Any]) -> None:
    model, x = nearly_low_rank(), normal(7, WIDTH)
    approximation = LowRank(**asked)
    compiled = regraft.compile(
        model,
        (x,),
        dynamic_shapes=({0: Dim.AUTO},),
        plugins=[approximation],
        exactness=LOOSE,
        verify=True,
        memory_limit=0,
    )
    assert [layer.rank for layer in approximation.layers] == [3, 3]
    assert all(0 < layer.error < 0.05 for layer in approximation.layers)
    assert "at rank 3, 0.14 of the size, error 0.0" in str(approximation)
    assert 0 < compiled.report.error < 0.1
    best = truncated(model, 3)
    for rows in (7, 1, 20):
        x = normal(rows, WIDTH, seed=rows)
        with torch.no_grad():
            assert_close(compiled(x), copy.deepcopy(best).double()(x.double()), best(x), reassociates=True)


def test_a_refresh_takes_the_new_weights() -> None:
    model, x = nearly_low_rank(), normal(7, WIDTH)
    compiled = regraft.compile(model, (x,), plugins=[LowRank(rank=3)], exactness=LOOSE)
    with torch.no_grad():
        for parameter in (model.up.weight, model.down.weight):
            parameter.copy_(parameter.flip(0))
    compiled.refresh(model)
    with torch.no_grad():
        assert relative_error(compiled(x), model(x)) < 0.1


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, x = nearly_low_rank(), normal(7, WIDTH)
    compiled = regraft.compile(model, (x,), plugins=[LowRank(rank=3)], exactness=LOOSE)
    compiled.save(tmp_path / "ffn")
    assert torch.equal(regraft.load(tmp_path / "ffn")(x), compiled(x))


def test_layers_that_would_not_be_smaller_stay() -> None:
    model, x = randomise(FFN().eval()), normal(7, WIDTH)
    approximation = LowRank(rank=30)
    compiled = regraft.compile(model, (x,), plugins=[approximation], exactness=LOOSE, verify=True)
    assert approximation.layers == []
    assert compiled.report.error < 1e-5
    assert [(each.name, each.reason) for each in approximation.kept] == [
        ("up.weight", "since factors of rank 30 would be no smaller than its 64 x 32"),
        ("down.weight", "since factors of rank 30 would be no smaller than its 32 x 64"),
    ]
    assert str(approximation).startswith("up.weight: as it was, since factors of rank 30 would be no smaller")


def test_it_must_be_allowed() -> None:
    model, x = randomise(FFN().eval()), normal(7, WIDTH)
    with pytest.raises(
        OptionError, match=r"exactness: expected Exactness.APPROX\(tolerance\), got reassociates"
    ):
        regraft.compile(model, (x,), plugins=[LowRank(rank=2)])


BEYOND = "an approximation is off by more than was allowed"


def test_it_must_be_within_the_tolerance(tmp_path: Path) -> None:
    """Whether the compile verifies or not, and in exports."""
    model, x = randomise(FFN().eval()), normal(7, WIDTH)
    tight: dict[str, Any] = {"plugins": [LowRank(rank=2)], "exactness": Exactness.APPROX(1e-3)}
    calls: list[Callable[[], object]] = [
        lambda: regraft.compile(model, (x,), verify=True, **tight),
        lambda: regraft.compile(model, (x,), **tight),
        lambda: regraft.export_onnx(model, (x,), tmp_path / "ffn.onnx", **tight),
        lambda: regraft.export_plan(model, (x,), tmp_path / "ffn", **tight),
    ]
    found: list[float] = []
    for call in calls:
        with pytest.raises(NumericsMismatch, match=BEYOND) as caught:
            call()
        assert caught.value.tolerance == 1e-3
        assert "tolerance 0.001" in str(caught.value)
        assert "allow more by Exactness.APPROX" in str(caught.value)
        found.append(caught.value.error)
    assert found == pytest.approx([found[0]] * 4, rel=1e-3), "all measure the same"
    assert not list(tmp_path.iterdir())


def test_the_error_is_reported_without_verification(tmp_path: Path) -> None:
    model, x = nearly_low_rank(), normal(7, WIDTH)
    options: dict[str, Any] = {"exactness": LOOSE, "dynamic_shapes": ({0: Dim.AUTO},)}
    verified = regraft.compile(model, (x,), verify=True, plugins=[LowRank(rank=3)], **options).report
    compiled = regraft.compile(model, (x,), plugins=[LowRank(rank=3)], **options).report
    exported = regraft.export_onnx(
        model, (x,), tmp_path / "ffn.onnx", plugins=[LowRank(rank=3)], **options
    ).compile
    assert 0 < verified.error < 0.1
    for report in (compiled, exported):
        assert report.error is None
        assert report.approximation == pytest.approx(verified.error, rel=1e-2)
        assert report.to_dict()["approximation"] == report.approximation
        assert "by the graph, on the example in eager torch" in str(report)
    assert verified.approximation is None
    assert regraft.compile(model, (x,)).report.approximation is None


def test_outputs_are_judged_one_by_one() -> None:
    """One that is off by less than was allowed is not to blame for another."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.near, self.far = nearly_low_rank(), randomise(FFN().eval(), seed=4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.near(x), self.far(x)

    for verify in (True, False):
        with pytest.raises(NumericsMismatch, match="output 1: error"):
            regraft.compile(
                Two().eval(), (normal(7, WIDTH),), plugins=[LowRank(rank=3)], exactness=LOOSE, verify=verify
            )


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("decide", [lambda y: y.argmax(-1) + 30000, lambda y: y > 0])
def test_integers_and_bools_must_be_equal(decide: Callable[[Tensor], Tensor], verify: bool) -> None:
    class Decides(FFN):
        def forward(self, x: Tensor) -> Tensor:
            return decide(super().forward(x))

    model = randomise(Decides().eval())
    with pytest.raises(NumericsMismatch, match="integers and bools must be equal"):
        regraft.compile(
            model,
            (normal(64, WIDTH),),
            plugins=[LowRank(rank=3)],
            exactness=Exactness.APPROX(1.0),
            verify=verify,
        )


@pytest.mark.parametrize("verify", [False, True])
def test_results_of_another_size_are_off(verify: bool) -> None:
    class Picks(FFN):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y[y > 0.5]

    model = randomise(Picks().eval())
    with pytest.raises(NumericsMismatch, match="off by more than was allowed") as raised:
        regraft.compile(
            model,
            (normal(64, WIDTH),),
            plugins=[LowRank(rank=3)],
            exactness=Exactness.APPROX(0.5),
            verify=verify,
        )
    assert raised.value.error == float("inf")


def test_a_program_without_example_says_that_nothing_was_checked() -> None:
    model, x = nearly_low_rank(), normal(7, WIDTH)
    program = torch.export.export(model, (x,))
    program.example_inputs = None
    compiled = regraft.compile(program, plugins=[LowRank(rank=3)], exactness=LOOSE)
    assert any("tolerance of approximations was not checked" in note for note in compiled.report.notes)
    assert compiled.report.approximation is None


class PerSample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nearly_low_rank(), nearly_low_rank(noise=1e-2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x).mean() if x.mean() > 0 else x.mean()


def test_each_sample_of_a_batch_may_be_off_by_as_much() -> None:
    x = normal(1, WIDTH)
    options: dict[str, Any] = {"plugins": [LowRank(rank=3)], "batch": "per_sample"}
    compiled = regraft.compile(PerSample().eval(), (x,), exactness=Exactness.APPROX(0.5), **options)
    assert 0 < compiled.report.approximation < 0.5
    with pytest.raises(NumericsMismatch, match=BEYOND):
        regraft.compile(PerSample().eval(), (x,), exactness=Exactness.APPROX(1e-3), **options)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "one of 'energy', 'rank' and 'ranks'"),
        ({"energy": 0.9, "rank": 3}, "one of 'energy', 'rank' and 'ranks'"),
        ({"energy": 0.0}, "a number above 0"),
        ({"energy": 1.5}, "a number above 0"),
        ({"energy": True}, "a number above 0"),
        ({"energy": float("nan")}, "energy: expected a number above 0"),
        ({"rank": 0}, "rank: expected a positive int"),
        ({"rank": 2.0}, "rank: expected a positive int"),
        ({"ranks": {"up.weight": -1}}, r"ranks\['up.weight'\]: expected a positive int"),
        ({"ranks": {}}, "ranks: expected a dict of ranks"),
        ({"ranks": 3}, "ranks: expected a dict of ranks"),
    ],
)
def test_bad_ranks(asked: dict[str, Any], expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        LowRank(**asked)


@pytest.mark.parametrize(
    ("name", "message"),
    [("upp.weight", "did you mean 'up.weight'"), ("up.bias", "'up.bias' is the weight of no linear layer")],
)
def test_a_rank_for_no_linear_layer(name: str, message: str) -> None:
    plugin = LowRank(ranks={name: 3})
    with pytest.raises(OptionError, match=message) as caught:
        regraft.compile(FFN().eval(), (normal(7, WIDTH),), plugins=[plugin], exactness=LOOSE)
    assert caught.value.option == "ranks"


def test_weights_that_are_not_finite_or_of_half_precision_stay() -> None:
    model, x = nearly_low_rank(), normal(7, WIDTH)
    with torch.no_grad():
        model.up.weight[0, 0] = torch.inf
    approximation = LowRank(rank=3)
    regraft.compile(model, (x,), plugins=[approximation], exactness=LOOSE)
    assert str(approximation.kept[0]) == "up.weight: as it was, since not all of it is finite"
    assert [layer.name for layer in approximation.layers] == ["down.weight"]
    half = LowRank(rank=3)
    regraft.compile(nearly_low_rank().bfloat16(), (x.bfloat16(),), plugins=[half], exactness=LOOSE)
    assert half.layers == []
    assert "since it is bf16: weights of f32 and f64 are factored" in str(half)


def adapter(layer: str, width: int, out: int, rank: int, seed: int) -> dict[str, Tensor]:
    return {
        f"{layer}.lora_A.weight": normal(rank, width, seed=seed) / 8,
        f"{layer}.lora_B.weight": normal(out, rank, seed=seed + 1) / 8,
    }


ADAPTERS = {
    "one": {**adapter("up", WIDTH, HIDDEN, 2, 3), **adapter("down", HIDDEN, WIDTH, 2, 5)},
    "two": adapter("up", WIDTH, HIDDEN, 1, 7),
}


def adapted(model: FFN, name: str | None) -> FFN:
    """The model with the adapter's changes in its weights."""
    model, changes = copy.deepcopy(model), ADAPTERS.get(name or "", {})
    with torch.no_grad():
        for layer, transposed in (("up", False), ("down", True)):
            if f"{layer}.lora_A.weight" in changes:
                change = changes[f"{layer}.lora_B.weight"] @ changes[f"{layer}.lora_A.weight"]
                model.get_submodule(layer).weight += change.T if transposed else change
    return model


def test_below_adapters_the_base_is_approximated() -> None:
    model = nearly_low_rank()
    approximation = LowRank(rank=3)
    compiled = regraft.compile(
        model,
        (normal(7, WIDTH),),
        dynamic_shapes=({0: Dim.AUTO},),
        adapters=ADAPTERS,
        plugins=[approximation],
        exactness=LOOSE,
        memory_limit=0,
        verify=True,
    )
    assert [(layer.name, layer.rank) for layer in approximation.layers] == [
        ("up.weight", 3),
        ("down.weight", 3),
    ]
    best = truncated(model, 3)
    for name in (None, "one", "two"):
        compiled.set_adapter(name)
        for rows in (7, 1, 20):
            x, own = normal(rows, WIDTH, seed=rows), adapted(best, name)
            with torch.no_grad():
                assert_close(compiled(x), copy.deepcopy(own).double()(x.double()), own(x), reassociates=True)


def test_one_adapter_is_merged_before_the_approximation(tmp_path: Path) -> None:
    approximation = LowRank(ranks={"up.weight": 20})
    regraft.export_onnx(
        nearly_low_rank(),
        (normal(7, WIDTH),),
        tmp_path / "ffn.onnx",
        adapters=ADAPTERS,
        adapter="one",
        plugins=[approximation],
        exactness=LOOSE,
    )
    assert [layer.name for layer in approximation.layers] == ["up.weight"]


def test_a_base_that_adapters_change_wholly_stays() -> None:
    approximation = LowRank(rank=3)
    change = {"one": {"up.weight": normal(HIDDEN, WIDTH) / 8}}
    regraft.compile(
        nearly_low_rank(), (normal(7, WIDTH),), adapters=change, plugins=[approximation], exactness=LOOSE
    )
    assert [layer.name for layer in approximation.layers] == ["down.weight"]
    assert (
        str(approximation.kept[0]) == "up.weight: as it was, since adapters change more of it than a low rank"
    )


def test_what_was_approximated_is_in_the_file_and_its_report(tmp_path: Path) -> None:
    model, x = nearly_low_rank(), normal(7, WIDTH)
    options: dict[str, Any] = {"exactness": LOOSE, "plugins": [LowRank(rank=3)]}
    report = regraft.export_onnx(model, (x,), tmp_path / "ffn.onnx", **options)
    plan = regraft.export_plan(model, (x,), tmp_path / "ffn", **options)
    error = report.compile.approximation
    assert error is not None
    for each, path in ((report, report.path), (plan, plan.folder / plan.files[0])):
        assert each.approximated_by == tuple(each.to_dict()["approximated_by"]) == ("low-rank.factors",)
        found = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
        told = {"by": ["low-rank.factors"], "tolerance": 0.1, "error": error}
        assert json.loads(found["regraft.approximation"]) == told
        assert f"approximated by low-rank.factors: error {error:.2e} on the example" in str(each)
        assert "choice: " in str(each), "which form runs is told as well"


def test_what_could_not_be_approximated_is_no_approximation(tmp_path: Path) -> None:
    model, x = randomise(FFN().eval()), normal(7, WIDTH)
    options: dict[str, Any] = {"exactness": LOOSE, "plugins": [LowRank(rank=30)]}
    report = regraft.export_onnx(model, (x,), tmp_path / "ffn.onnx", **options)
    assert (report.approximated_by, report.metadata) == ((), {})


class Tied(nn.Module):
    """A language model's head that is its embedding, and a layer with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(HIDDEN, WIDTH), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.head.weight = self.embedding.weight
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = self.first

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.second(torch.relu(self.first(self.embedding(ids)))))


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight", "first.weight", "second.weight"])
def test_a_tied_weight_has_a_rank_under_each_of_its_names(name: str) -> None:
    approximation = LowRank(ranks={name: 2})
    model, ids = randomise(Tied().eval()), torch.arange(6)[None]
    regraft.compile(model, (ids,), plugins=[approximation], exactness=Exactness.APPROX(10.0))
    assert [(layer.name, layer.rank) for layer in approximation.layers] == [(name, 2)]


def test_a_tied_weight_has_one_rank() -> None:
    plugin = LowRank(ranks={"embedding.weight": 2, "head.weight": 3})
    with pytest.raises(OptionError, match="are one tied weight: give one of them a rank"):
        regraft.compile(Tied().eval(), (torch.arange(6)[None],), plugins=[plugin], exactness=LOOSE)


def test_the_reports_memory_has_the_factors() -> None:
    model, x = nearly_low_rank(), normal(7, WIDTH)
    options: dict[str, Any] = {"exactness": LOOSE, "memory_limit": 0, "dynamic_shapes": ({0: Dim.AUTO},)}
    memory = regraft.compile(model, (x,), plugins=[LowRank(rank=3)], **options).report.memory
    biases = 4 * (WIDTH + HIDDEN)
    assert memory["constants"] == 4 * 2 * WIDTH * HIDDEN + biases
    assert memory["read"] == biases
    assert memory["made"] == 2 * 4 * 3 * (WIDTH + HIDDEN)


class Branch(nn.Module):
    """What is added to the residual: a pair, as attentions return one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return torch.tanh(self.inner(self.norm(x))), None


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Branch(), Branch()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)[0]
        return x + self.mlp(x)[0]


def stack(depth: int = 3) -> nn.Sequential:
    model = randomise(nn.Sequential(*(Layer() for _ in range(depth))).eval())
    with torch.no_grad():
        model[1].mlp.inner.weight.mul_(0.01)
        model[1].mlp.inner.bias.mul_(0.01)
        model[2].attention.inner.weight.mul_(0.1)
        model[2].attention.inner.bias.mul_(0.1)
    return model


class Zero(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return torch.zeros_like(x), None


def test_layers_left_out() -> None:
    model, x = stack(), normal(2, 5, WIDTH)
    plugin = WithoutLayers(["1.mlp", "2.attention"])
    compiled = regraft.compile(
        model,
        (x,),
        dynamic_shapes=({1: Dim.AUTO},),
        plugins=[plugin],
        exactness=Exactness.APPROX(0.5),
        verify=True,
    )
    assert 0 < compiled.report.error < 0.5
    assert compiled.ir.count("aten.tanh(") == 4, "nothing of the two is left"
    assert compiled.ir.count("aten.full(") == 0
    model[1].mlp, model[2].attention = Zero(), Zero()
    for length in (5, 1, 9):
        x = normal(2, length, WIDTH, seed=length)
        with torch.no_grad():
            assert_close(compiled(x), copy.deepcopy(model).double()(x.double()), model(x), reassociates=True)


def test_layers_ranked_by_what_their_absence_changes() -> None:
    model = stack()
    names = [f"{i}.{part}" for i in range(3) for part in ("attention", "mlp")]
    examples = [(normal(2, 5, WIDTH, seed=s),) for s in range(3)]
    ranking = rank_layers(model, examples, names, count=3)
    assert [each.name for each in ranking[:2]] == ["1.mlp", "2.attention"]
    changes = [each.change for each in ranking]
    assert changes == sorted(changes)
    assert 0 < changes[0] < 0.05
    assert not any(module._forward_hooks for module in model.modules()), "the model is as it was"
    chosen = [each.name for each in ranking[:1]]
    compiled = regraft.compile(
        model, examples[0], plugins=[WithoutLayers(chosen)], exactness=LOOSE, verify=True
    )
    assert compiled.report.error < 0.1


def test_bad_layers() -> None:
    model, x = stack(), normal(2, 5, WIDTH)
    with pytest.raises(OptionError, match=r"names: expected paths of submodules"):
        regraft.compile(model, (x,), plugins=[WithoutLayers("1.mlpp")], exactness=LOOSE)
    with pytest.raises(OptionError, match="there are: 0, 1, 2"):
        regraft.compile(
            nn.Sequential(nn.ReLU(), nn.Tanh(), nn.GELU()).eval(),
            (x,),
            plugins=[WithoutLayers("7")],
            exactness=LOOSE,
        )
    with pytest.raises(OptionError, match="exactness: expected"):
        regraft.compile(model, (x,), plugins=[WithoutLayers("1.mlp")])
    with pytest.raises(OptionError, match="paths of submodules"):
        WithoutLayers([])
    with pytest.raises(OptionError, match=r"1\.mlp"):
        rank_layers(model, [(x,)], ["1.mlpp"])
    with pytest.raises(OptionError, match="needs names of layers and examples"):
        rank_layers(model, [], ["1.mlp"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"model": print}, "model: expected an nn.Module"),
        (
            {"examples": normal(2, WIDTH)},
            r"examples: expected a list of calls.*got a Tensor of torch.float32 \[2, 32\]",
        ),
        ({"examples": [normal(2, WIDTH)]}, r"examples\[0\]: expected a tuple of positional arguments"),
        ({"examples": 3}, "examples: expected a list of calls"),
        (
            {"examples": [(normal(2, WIDTH),), (normal(2, 3),)]},
            r"cannot be called with examples\[1\]: RuntimeError",
        ),
        ({"examples": [()]}, r"cannot be called with examples\[0\]: TypeError"),
        ({"names": 3}, "names: expected paths of submodules"),
        ({"names": [3]}, "names: expected paths of submodules"),
        ({"count": 0}, "count: expected a positive int"),
        ({"count": "2"}, "count: expected a positive int"),
        ({"count": True}, "count: expected a positive int"),
        ({"count": 1.5}, "count: expected a positive int"),
    ],
)
def test_bad_data_to_rank_by(given: dict[str, Any], expected: str) -> None:
    asked: dict[str, Any] = {"model": stack(), "examples": [(normal(2, WIDTH),)], "names": ["1.mlp"]}
    with pytest.raises(OptionError, match=expected) as caught:
        rank_layers(**(asked | given))
    assert len(str(caught.value)) < 400


def test_one_layer_is_named_by_itself() -> None:
    assert [each.name for each in rank_layers(stack(), [(normal(2, WIDTH),)], "1.mlp")] == ["1.mlp"]


def test_a_model_without_floats_cannot_be_ranked() -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = stack()

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x).argmax(-1)

    with pytest.raises(OptionError, match="gives no tensor of floats"):
        rank_layers(Decides().eval(), [(normal(2, WIDTH),)], ["layers.1.mlp"])


def test_not_from_the_cache(tmp_path: Path) -> None:
    model, x = nearly_low_rank(), normal(7, WIDTH)
    for _ in range(2):
        approximation = LowRank(rank=3)
        compiled = regraft.compile(model, (x,), plugins=[approximation], exactness=LOOSE, cache=tmp_path)
        assert compiled.report.cache.status == "not cached"
        assert len(approximation.layers) == 2
