"""What is wrong with a call is said in one clear error, and nothing is left half done."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import LlamaConfig, LlamaForCausalLM

import regraft
from regraft.errors import (
    CaptureError,
    NumericsMismatch,
    OptionError,
    RegraftError,
    ShapeError,
    UnsupportedOpError,
)
from regraft.testing import assert_close, randomise

HERE = Path(__file__).name


def line_of(marker: str) -> str:
    """``file:line`` of the line of this file that ends with the comment ``marker``."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = (i for i, text in enumerate(lines, start=1) if text.endswith(f"# {marker}"))
    return f"{HERE}:{number}"


def rows(count: int = 3) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(0))


def compile_fails(error: type[RegraftError], model: Any, *args: Any, **options: Any) -> str:
    """The message of the error; the model must come out as it went in."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    state = copy.deepcopy(module.state_dict())
    training = {name: each.training for name, each in module.named_modules()}
    with pytest.raises(RegraftError) as caught:
        regraft.compile(model, args, **options)
    assert type(caught.value) is error
    assert {name: each.training for name, each in module.named_modules()} == training
    assert list(module.state_dict()) == list(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    return str(caught.value)


# -- the model ---------------------------------------------------------------------------------


def test_a_dtype_without_a_name_here() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(torch.uint16).float()  # unnamed

    message = compile_fails(CaptureError, Counts().eval(), rows())
    assert "torch.uint16" in message
    assert line_of("unnamed") in message


def test_a_wide_identity() -> None:
    """Which torch takes apart into counting in 16 bits."""

    class Identity(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.eye(8, 300, dtype=x.dtype)

    x, model = rows(), Identity().eval()
    assert_close(regraft.compile(model, (x,))(x), model(x.double()), model(x))


def test_a_cache_among_the_results() -> None:
    """What every causal language model of transformers returns by default."""
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **small)).eval()
    message = compile_fails(CaptureError, model, torch.ones(1, 4, dtype=torch.int64))
    assert message == "the model returns a cache object\n  hint: pass use_cache=False"


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout, self.norm = nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.dropout(self.linear(x)))


def test_training_mode() -> None:
    message = compile_fails(OptionError, Dropping(), rows())
    assert "training mode" in message
    assert "model.eval()" in message


@pytest.mark.parametrize("name", ["dropout", "norm"])
def test_training_mode_of_a_part(name: str) -> None:
    model = Dropping().eval()
    model.get_submodule(name).train()
    message = compile_fails(OptionError, model, rows())
    assert f"'{name}'" in message
    assert "model.eval()" in message


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        try:
            if y.sum() > 0:  # the branch
                return y
        except ValueError:
            pass
        return -y


def test_a_branch_that_cannot_be_followed() -> None:
    message = compile_fails(CaptureError, Branching().eval(), rows())
    assert line_of("the branch") in message
    assert "if y.sum() > 0:" in message
    assert "a decision inside `try` cannot be converted" in message


def test_a_loop_that_cannot_be_followed() -> None:
    def model(x: Tensor) -> Tensor:
        halves = []
        while x.max() > 1:  # the loop
            x = x / 2
            halves.append(x)
        return halves

    message = compile_fails(CaptureError, model, rows())
    assert "a list of which only a call knows the length is returned" in message
    assert "append tensors of one shape" in message


class Remembering(nn.Module):
    """Keeps tensors in attributes, beside an LSTM, which keeps its weights in one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8)
        self.seen = [torch.zeros(3, 8)]

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [x * 2]  # the assignment
        return self.lstm(x[None])[0] + self.seen[0]


def test_a_tensor_kept_in_an_attribute() -> None:
    message = compile_fails(CaptureError, nn.Sequential(Remembering()).eval(), rows())
    assert "writes to its attribute '0.seen'" in message
    assert line_of("the assignment") in message
    assert "self.seen = [x * 2]" in message
    assert "return the new value" in message


def test_an_error_of_the_models_own() -> None:
    def model(x: Tensor) -> Tensor:
        return x @ torch.ones(5, 5)  # the mismatch

    message = compile_fails(CaptureError, model, rows())
    assert line_of("the mismatch") in message


def test_not_a_model() -> None:
    assert "expected an nn.Module" in compile_fails(OptionError, 3, rows())


# -- ops that nobody takes ---------------------------------------------------------------------


class Unsupported(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        q, r = torch.linalg.qr(x)  # the first
        u = torch.linalg.qr(r)[0]  # the second
        return torch.special.bessel_j0(q) + u.sum()  # the third


def test_unsupported_ops_all_at_once(tmp_path: Path) -> None:
    message = compile_fails(UnsupportedOpError, Unsupported().eval(), rows(8))
    assert "no executor for 2 ops (3 uses)" in message
    assert "aten.linalg_qr x2" in message
    assert "aten.special_bessel_j0 x1" in message
    for marker in ("the first", "the second", "the third"):
        assert line_of(marker) in message
    assert message.count("ort: ") == 2


def test_fallback_runs_them_through_eager() -> None:
    compiled = regraft.compile(Unsupported().eval(), (rows(8),), fallback="eager")
    assert torch.allclose(compiled(rows(8)), Unsupported()(rows(8)), atol=1e-5)


# -- the options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backends": "ort"}, ["backends", "a list"]),
        ({"backends": ()}, ["backends"]),
        ({"backends": ("nothing",)}, ["backends", "'nothing'", "eager", "ort"]),
        ({"fallback": "maybe"}, ["fallback", "'maybe'", "'error' or 'eager'"]),
        ({"verify": "sometimes"}, ["verify", "'sometimes'"]),
        ({"threads": 0}, ["threads", "0"]),
        ({"threads": True}, ["threads", "True"]),
        ({"memory_limit": True}, ["memory_limit", "True"]),
        ({"rewrites": [object()]}, ["rewrites"]),
        ({"passes": [("nowhere", object())]}, ["passes", "'nowhere'", "canonicalize"]),
        ({"exactness": "exact"}, ["exactness"]),
        ({"dynamic_shapes": {"y": {0: Dim.AUTO}}}, ["dynamic_shapes", "'y'", "input"]),
        ({"dynamic_shapes": 3}, ["dynamic_shapes"]),
        ({"kwargs": {"input": torch.ones(3, 8)}}, ["'input'", "args and in kwargs"]),
    ],
)
def test_option(options: dict[str, Any], words: list[str]) -> None:
    message = compile_fails(OptionError, nn.Linear(8, 8).eval(), rows(), **options)
    assert [word for word in words if word not in message] == []


def test_args_that_are_no_tuple() -> None:
    with pytest.raises(OptionError, match=r"args=\(x,\)"):
        regraft.compile(nn.Linear(8, 8).eval(), rows())


@pytest.mark.parametrize(
    ("path", "args", "words"),
    [
        ((rows(),), "model.onnx", "path is a tuple; the order is export_onnx(model, args, path)"),
        (None, (rows(),), "path is None; the order is export_onnx(model, args, path)"),
    ],
)
def test_an_export_with_its_arguments_in_another_order(path: Any, args: Any, words: str) -> None:
    with pytest.raises(OptionError) as caught:
        regraft.export_onnx(nn.Linear(8, 8).eval(), args, path)
    assert words in str(caught.value)


def test_too_many_args() -> None:
    assert "takes 1 positional" in compile_fails(OptionError, nn.Linear(8, 8).eval(), rows(), rows())


def test_a_missing_arg() -> None:
    assert "lacks the argument 'input'" in compile_fails(OptionError, nn.Linear(8, 8).eval())


def test_dump_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    message = compile_fails(OptionError, nn.Linear(8, 8).eval(), rows(), dump=tmp_path / "file")
    assert "dump" in message
    assert (tmp_path / "file").read_text() == "mine"


def test_a_dimension_that_the_model_fixes() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.ones(3, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.positions

    message = compile_fails(CaptureError, Fixed().eval(), rows(), dynamic_shapes={"x": {0: Dim.AUTO}})
    assert "dimension 0 of 'x'" in message
    assert "fixes it to 3" in message


def test_a_dim_with_a_range_that_the_model_refuses() -> None:
    shapes = {"x": {0: Dim("rows", min=2, max=9)}}
    message = compile_fails(CaptureError, lambda x: x.reshape(-1, 6), rows(3), dynamic_shapes=shapes)
    assert "dynamic_shapes" in message or "dimension 0" in message


# -- calls -------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0, flag: bool = False) -> Tensor:
        return (self.linear(x) + y) * scale


@pytest.fixture(scope="module")
def two() -> Any:
    shapes = {"x": {0: Dim.AUTO}, "y": {0: Dim.AUTO}}
    return regraft.compile(randomise(Two().eval()), (rows(), rows(), 2.0), dynamic_shapes=shapes)


CALLS: list[tuple[Callable[[Any], Any], list[str]]] = [
    (lambda m: m(rows(), rows()), ["missing argument 'scale'"]),
    (lambda m: m(rows(), scale=2.0), ["missing argument 'y'"]),
    (lambda m: m(rows(), rows(), 3.0), ["'scale'", "3.0", "compiled for 2.0"]),
    (lambda m: m(rows(), rows(), 2.0, True), ["'flag' was not in the example", "default, False"]),
    (lambda m: m(rows(), rows(), 2.0, mask=rows()), ["unexpected argument 'mask'"]),
    (lambda m: m(rows(), rows(), 2.0, False, 1), ["at most 4 positional", "5"]),
    (lambda m: m(rows(), rows(), 2.0, x=rows()), ["'x'", "twice"]),
    (lambda m: m(rows().double(), rows(), 2.0), ["'x'", "f64", "f32"]),
    (lambda m: m(rows()[0], rows(), 2.0), ["'x'", "[8]"]),
    (lambda m: m(rows()[:, :5], rows(), 2.0), ["'x'", "[3, 5]", "8"]),
    (lambda m: m(rows(3), rows(4), 2.0), ["'y'", "[4, 8]", "3, as dimension 0 of 'x' is"]),
    (lambda m: m(rows(0), rows(0), 2.0), ["'x'", "0"]),
    (lambda m: m([1.0], rows(), 2.0), ["'x'", "list", "tensor"]),
    (lambda m: m(rows().to("meta"), rows(), 2.0), ["'x'", "meta", "cpu"]),
    (lambda m: m(None, rows(), 2.0), ["'x'", "is None"]),
]


@pytest.mark.parametrize(("call", "words"), CALLS)
def test_call(two: Any, call: Callable[[Any], Any], words: list[str]) -> None:
    with pytest.raises(ShapeError) as caught:
        call(two)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_failed_call_leaves_the_model_usable(two: Any) -> None:
    with pytest.raises(ShapeError):
        two(rows(), rows(4), 2.0)
    assert two(rows(), rows(), 2.0).shape == (3, 8)
    assert two(rows(), rows(), 2.0, False).shape == (3, 8)


def test_another_structure() -> None:
    compiled = regraft.compile(lambda pair: pair["a"] + pair["b"], ({"a": rows(), "b": rows()},))
    with pytest.raises(ShapeError, match="'pair' has the structure"):
        compiled({"a": rows()})
    with pytest.raises(ShapeError, match="'pair' has the structure"):
        compiled([rows(), rows()])


def test_a_static_size() -> None:
    compiled = regraft.compile(nn.Linear(8, 8).eval(), (rows(),))
    with pytest.raises(ShapeError, match=r"\[4, 8\].*compiled for \[3, 8\].*dynamic_shapes"):
        compiled(rows(4))


def test_an_index_out_of_range() -> None:
    model = nn.Embedding(10, 4).eval()
    compiled = regraft.compile(model, (torch.tensor([1, 2]),))
    with pytest.raises(RegraftError, match="range"):
        compiled(torch.tensor([1, 10]))
    assert torch.equal(compiled(torch.tensor([1, 9])), model(torch.tensor([1, 9])))


class Sigmoid(regraft.Rewrite):
    """Wrong."""

    exactness = regraft.Exactness.REASSOCIATES

    def pattern(self, op: Any, x: Any) -> Any:
        return op.aten.tanh(x)

    def rewrite(self, op: Any, m: Any) -> Any:
        return op.aten.sigmoid(m.x)


def test_a_wrong_result_says_how_to_find_the_cause() -> None:
    with pytest.raises(NumericsMismatch) as caught:
        regraft.compile(nn.Tanh().eval(), (rows(),), rewrites=[Sigmoid], verify=True)
    assert 'verify="each"' in str(caught.value)
    assert "regraft.bisect(...)" in str(caught.value)


# -- what libraries have to say beside an error -------------------------------------------------


class Mismatched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(5)


def index_out_of_range() -> None:
    regraft.compile(nn.Embedding(10, 4).eval(), (torch.tensor([1, 2]),))(torch.tensor([1, 10]))


@pytest.mark.parametrize(
    "fails",
    [
        lambda: regraft.compile(Mismatched().eval(), (rows(),)),
        index_out_of_range,
    ],
)
def test_an_error_stands_alone(fails: Callable[[], Any], capfd: pytest.CaptureFixture[str]) -> None:
    """Neither torch's tracers nor ONNX Runtime print beside it what it says already."""
    with pytest.raises(RegraftError):
        fails()
    assert capfd.readouterr() == ("", "")


class Talking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print("traced")
        return x + 1


def test_what_the_model_prints_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    regraft.compile(Talking().eval(), (rows(),))
    assert "traced" in capfd.readouterr().out
