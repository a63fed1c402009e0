"""A compiled model in the place of the original: attributes, the module protocol, transformers' pipelines."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.errors import NoOriginalError, OptionError, RegraftError
from regraft.testing import assert_close, randomise


class Encoder(nn.Module):
    """A model with a configuration, a buffer, and a method that calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"width": 8}
        self.linear = nn.Linear(8, 4)
        self.register_buffer("shift", torch.ones(4))

    @property
    def device(self) -> torch.device:
        return self.linear.weight.device

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.shift

    def twice(self, x: Tensor) -> list[Tensor]:
        return [self(x), self.forward(x)]

    def widen(self) -> None:
        self.linear = nn.Linear(8, 5)


def rows(count: int = 3) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Encoder:
    return randomise(Encoder().eval())


@pytest.fixture
def compiled(model: Encoder) -> Any:
    return regraft.compile(model, (rows(),))


@pytest.fixture
def loaded(compiled: Any, tmp_path: Path) -> Any:
    compiled.save(tmp_path / "model")
    return regraft.load(tmp_path / "model")


# -- attributes --------------------------------------------------------------------------------


def test_attributes_are_the_originals(model: Encoder, compiled: Any) -> None:
    assert compiled.config is model.config
    assert compiled.device == model.device
    assert compiled.linear is model.linear
    assert "config" in dir(compiled)
    assert not hasattr(compiled, "nothing")
    with pytest.raises(NoOriginalError, match="original Encoder has 'nothing'"):
        _ = compiled.nothing


def test_weights_are_the_originals_own(model: Encoder, compiled: Any) -> None:
    assert dict(compiled.named_parameters()) == dict(model.named_parameters())
    assert next(compiled.parameters()) is model.linear.weight
    assert dict(compiled.named_buffers())["shift"] is model.shift
    state = compiled.state_dict()
    assert list(state) == list(model.state_dict())
    assert state["linear.weight"].data_ptr() == model.linear.weight.data_ptr()
    assert compiled.get_parameter("linear.weight") is model.linear.weight


def test_a_method_of_the_originals_calls_the_compiled_model(model: Encoder, compiled: Any) -> None:
    results = compiled.twice(rows())
    assert [result.requires_grad for result in results] == [False, False]
    assert torch.equal(results[0], compiled(rows()))
    assert model.twice(rows())[0].requires_grad


def test_attributes_are_read_only(model: Encoder, compiled: Any) -> None:
    for change in (
        lambda: setattr(compiled, "config", {}),
        lambda: setattr(compiled, "note", 1),
        lambda: delattr(compiled, "plan"),
        compiled.widen,
    ):
        with pytest.raises(NoOriginalError, match="read-only"):
            change()
    assert model.linear.out_features == 4
    assert model.config == {"width": 8}


def test_a_loaded_artefact_says_that_it_has_no_original(loaded: Any) -> None:
    assert loaded(rows()).shape == (3, 4)
    assert not hasattr(loaded, "config")
    with pytest.raises(NoOriginalError, match=r"'config'.*loaded from an artefact"):
        _ = loaded.config
    with pytest.raises(NoOriginalError, match="loaded from an artefact"):
        loaded.state_dict()
    assert list(loaded.parameters()) == []
    with pytest.raises(RegraftError, match="compile the model again"):
        loaded.refresh(nn.Linear(8, 4))


def test_a_function_has_no_state_dict() -> None:
    with pytest.raises(NoOriginalError, match="no module"):
        regraft.compile(torch.nn.functional.silu, (rows(),)).state_dict()


# -- the module protocol -----------------------------------------------------------------------


def test_it_is_a_module_among_modules(model: Encoder, compiled: Any) -> None:
    assert isinstance(compiled, nn.Module)
    head = nn.Linear(4, 2)
    whole = nn.Sequential(compiled, head).eval()
    assert_close(whole(rows()), nn.Sequential(model, head)(rows()).double())
    assert list(whole.state_dict()) == ["0.shift", "0.linear.weight", "0.linear.bias", "1.weight", "1.bias"]
    assert {name for name, _ in whole.named_parameters()} == {
        "0.linear.weight",
        "0.linear.bias",
        "1.weight",
        "1.bias",
    }


def test_hooks_are_called(compiled: Any) -> None:
    seen: list[Any] = []
    with compiled.register_forward_hook(lambda module, args, result: seen.append((module, result))):
        result = compiled(rows())
    assert seen[0][0] is compiled
    assert seen[0][1] is result
    compiled(rows())
    assert len(seen) == 1


@pytest.mark.parametrize("which", ["compiled", "loaded"])
def test_what_changes_nothing_is_allowed(which: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(which)
    assert made.eval() is made
    assert made.train(False) is made
    assert made.requires_grad_(False) is made
    assert made.to("cpu") is made
    assert made.to(torch.float32) is made
    assert made.float() is made
    assert not made.training


@pytest.mark.parametrize("which", ["compiled", "loaded"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.train(), "train the original"),
        (lambda m: m.requires_grad_(), "train the original"),
        (lambda m: m.half(), r"compiled for torch\.float32.*torch\.float16.*compile it again"),
        (lambda m: m.to(torch.bfloat16), r"torch\.bfloat16.*compile it again"),
        (lambda m: m.to("meta"), "on meta.*compile it again"),
        (lambda m: nn.Sequential(m).double(), r"torch\.float64.*compile it again"),
        (copy.deepcopy, "save"),
        (copy.copy, "save"),
        (pickle.dumps, "save"),
        (lambda m: copy.deepcopy(nn.Sequential(m)), "save"),
    ],
)
def test_what_would_make_it_another_model_is_refused(
    which: str, change: Any, words: str, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(which)
    with pytest.raises(RegraftError, match=words):
        change(made)
    assert made(rows()).dtype == torch.float32


class Parent(nn.Module):
    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.first, self.child = nn.Linear(8, 8), child

    def forward(self, x: Tensor) -> Tensor:
        return self.child(self.first(x))


@pytest.mark.parametrize("assign", [False, True])
def test_a_parents_state_dict_is_loaded_into_a_compiled_child(
    model: Encoder, compiled: Any, assign: bool
) -> None:
    new = randomise(Parent(Encoder()).eval(), seed=1)
    parent = Parent(compiled)
    parent.load_state_dict(new.state_dict(), assign=assign)
    with torch.no_grad():
        assert_close(parent(rows()), new.double()(rows().double()))
        assert_close(compiled(rows()), new.child(rows().double()))
        assert_close(model(rows()), new.child(rows().double()), eager=model(rows()))


def test_a_state_dict_that_does_not_fit(compiled: Any) -> None:
    parent = Parent(compiled)
    content = parent.state_dict()
    content["child.more"] = torch.ones(1)
    content["child.linear.other"] = torch.ones(1)
    del content["child.shift"]
    with pytest.raises(RuntimeError) as caught:
        parent.load_state_dict(content)
    for word in ('"child.shift"', '"child.more"', '"child.linear.other"'):
        assert word in str(caught.value)
    assert parent.load_state_dict(content, strict=False).missing_keys == ["child.shift"]


def test_its_own_state_dict(model: Encoder, compiled: Any) -> None:
    new = randomise(Encoder().eval(), seed=2)
    assert compiled.load_state_dict(new.state_dict()).missing_keys == []
    with torch.no_grad():
        assert_close(compiled(rows()), new.double()(rows().double()))
    with pytest.raises(RuntimeError, match="Missing key"):
        compiled.load_state_dict({})


def test_nothing_to_load_into(loaded: Any) -> None:
    function = regraft.compile(lambda x: x + 1, (rows(),))
    for made in (loaded, function):
        with pytest.raises(NoOriginalError, match="nothing to load a state_dict into"):
            made.load_state_dict({})
        with pytest.raises(NoOriginalError, match="nothing to load a state_dict into"):
            Parent(made).load_state_dict({}, strict=False)


def test_the_dtype_of_a_loaded_artefact(tmp_path: Path) -> None:
    made = regraft.compile(nn.Linear(8, 4).double().eval(), (rows().double(),))
    made.save(tmp_path / "model")
    for each in (made, regraft.load(tmp_path / "model")):
        assert each.double() is each
        with pytest.raises(RegraftError, match=r"torch\.float32"):
            each.float()


def test_a_compiled_model_is_not_compiled_again(compiled: Any) -> None:
    with pytest.raises(OptionError, match="the model is compiled by regraft already; compile the original"):
        regraft.compile(compiled, (rows(),))
    with pytest.raises(OptionError, match="the submodule '1' is compiled by regraft already"):
        regraft.compile(nn.Sequential(nn.Identity(), compiled).eval(), (rows(),))


# -- autocast ----------------------------------------------------------------------------------


def test_autocast_at_the_call_is_that_of_the_compile(model: Encoder, tmp_path: Path) -> None:
    plain = regraft.compile(model, (rows(),))
    with torch.autocast("cpu", torch.bfloat16):
        cast = regraft.compile(model, (rows(),), fallback="eager")
        with torch.no_grad():
            expected = model(rows())
        # The layer takes what autocast rounds to bf16; without that rounding this fails.
        rounded = copy.deepcopy(model).bfloat16().double()
        assert_close(cast(rows()), rounded(rows().bfloat16().double()))
        assert cast(rows()).dtype == expected.dtype
        with pytest.raises(RegraftError, match=r"under bf16 autocast.*compiled under no autocast"):
            plain(rows())
    cast.save(tmp_path / "model")
    for each in (cast, regraft.load(tmp_path / "model")):
        with pytest.raises(RegraftError, match=r"under no autocast.*compiled under bf16 autocast"):
            each(rows())


def test_autocast_inside_of_the_model() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y = self.first(x)
            return self.second(y.float())

    mixed = randomise(Mixed().eval())
    compiled = regraft.compile(mixed, (rows(),))
    with torch.no_grad():
        eager = mixed(rows())
        wide = mixed.second.double()(mixed.first.double()(rows().double()))
    assert_close(compiled(rows()), wide, eager, reassociates=True)


# -- transformers ------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "##s", "very"]


def test_a_text_classification_pipeline(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, pipeline

    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = randomise(BertForSequenceClassification(config).eval())
    example = dict(tokenizer(["a good film", "bad"], padding=True, return_tensors="pt"))
    assert tokenizer.convert_ids_to_tokens(example["input_ids"][0])[1:4] == ["a", "good", "film"]
    axes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    compiled = regraft.compile(model, kwargs=example, dynamic_shapes=dict.fromkeys(example, axes))

    texts = ["a very good film", "bad films"]
    expected = pipeline("text-classification", model=model, tokenizer=tokenizer)(texts)
    found = pipeline("text-classification", model=compiled, tokenizer=tokenizer)(texts)
    assert [each["label"] for each in found] == [each["label"] for each in expected]
    scores, wanted = (torch.tensor([each["score"] for each in results]) for results in (found, expected))
    assert_close(scores, wanted.double())
