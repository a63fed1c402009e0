"""Arguments and results that are no plain tensors: the right result, or one error that names the argument."""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree
from transformers.modeling_outputs import BaseModelOutput

import regraft
from regraft.errors import CaptureError, OptionError, ShapeError
from regraft.testing import randomise


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclasses.dataclass
class Registered:
    left: Tensor
    right: Tensor


torch.export.register_dataclass(Registered)


@dataclasses.dataclass
class Unregistered:
    left: Tensor


class Mode(enum.Enum):
    DOUBLE = 1


def rows(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def same(actual: Any, expected: Any) -> None:
    """Equal values in equal structures, of equal classes."""
    assert pytree.tree_structure(actual) == pytree.tree_structure(expected)
    for mine, theirs in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        if isinstance(theirs, Tensor):
            assert torch.equal(mine, theirs)
        else:
            assert type(mine) is type(theirs)
            assert mine == theirs


# -- what runs ---------------------------------------------------------------------------------


def _nested(batch: dict[str, Any]) -> dict[str, Any]:
    return {"out": [batch["a"][0] + batch["b"]["c"], None, "text", 3], "in": (batch["a"][1],)}


RUNS: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "none": (lambda x, mask: x * 2 if mask is None else x * mask, (rows(), None)),
    "string": (lambda x, mode: x * 2 if mode == "double" else x, (rows(), "double")),
    "int": (lambda x, n: x * n, (rows(), 3)),
    "float": (lambda x, n: x * n, (rows(), 1.5)),
    "nan": (lambda x, n: torch.isnan(x * n), (rows(), float("nan"))),
    "bool": (lambda x, flag: x if flag else -x, (rows(), True)),
    "nested": (_nested, ({"a": [rows(), rows(3, 1)], "b": {"c": rows(3, 2)}},)),
    "named tuple": (lambda p: Pair(p.left + p.right, p.left), (Pair(rows(), rows(3, 1)),)),
    "dataclass": (lambda p: Registered(p.left + p.right, p.left), (Registered(rows(), rows(3, 1)),)),
    "ordered dict": (lambda d: d["b"] - d["a"], (collections.OrderedDict(b=rows(), a=rows(3, 1)),)),
    "model output": (
        lambda o: BaseModelOutput(last_hidden_state=o.last_hidden_state * 2),
        (BaseModelOutput(last_hidden_state=rows()),),
    ),
    "many": (lambda *xs: xs[0] + xs[1] * xs[2], (rows(), rows(3, 1), rows(3, 2))),
    "one tensor twice": (lambda a, b: a - 2 * b, (rows(),) * 2),
    "a tensor of rank 0": (lambda x: x * 2, (torch.tensor(2.0),)),
    "nothing": (lambda: torch.ones(3), ()),
    "no result": (lambda x: None, (rows(),)),
    "numbers beside results": (lambda x: (x * 2, 5, "a", None, True), (rows(),)),
    "no rows": (lambda x: x * 2, (rows(0),)),
    "sum of no rows": (lambda x: x.sum(0), (rows(0),)),
    "no features": (lambda x: nn.functional.linear(x, torch.ones(4, 0)), (torch.ones(3, 0),)),
    "cat with no rows": (lambda a, b: torch.cat([a, b]), (rows(0), rows())),
    "softmax of no rows": (lambda x: x.softmax(-1), (rows(0),)),
    "a parameter": (lambda x: x * 2, (nn.Parameter(rows(), requires_grad=False),)),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str) -> None:
    function, arguments = RUNS[name]
    compiled = regraft.compile(function, arguments)
    same(compiled(*arguments), function(*arguments))


def test_keyword_arguments_only() -> None:
    def model(**given: Tensor) -> Tensor:
        return given["a"] - given["b"]

    given = {"a": rows(), "b": rows(3, 1)}
    compiled = regraft.compile(model, kwargs=given)
    same(compiled(**given), model(**given))
    same(compiled(b=given["b"], a=given["a"]), model(**given))


def test_no_rows_in_a_call() -> None:
    """A range that begins at 0 has to be asked for; a call outside of the range is refused."""
    compiled = regraft.compile(lambda x: x * 2, (rows(),), dynamic_shapes=({0: Dim.AUTO},))
    with pytest.raises(ShapeError, match="dimension 0 of 'x' is 0"):
        compiled(rows(0))


# -- fixed values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fixed", "other"),
    [(3, 4), (3, 3.0), (1, True), (1.5, float("nan")), ("a", "b"), (None, 0), (True, 1), ("a", None)],
)
def test_another_value_is_refused(fixed: Any, other: Any) -> None:
    compiled = regraft.compile(lambda x, value: x * 2, (rows(), fixed))
    compiled(rows(), fixed)
    with pytest.raises(ShapeError, match=r"'value' is .* compiled for") as caught:
        compiled(rows(), other)
    assert repr(other) in str(caught.value)


def test_a_tensor_where_there_was_none() -> None:
    compiled = regraft.compile(lambda x, mask=None: x * 2 if mask is None else x * mask, (rows(), None))
    with pytest.raises(ShapeError, match="'mask'"):
        compiled(rows(), rows())


@pytest.mark.parametrize("other", [np.ones((3, 8), np.float32), [[1.0]], 3.0, "x", None])
def test_no_tensor_where_there_was_one(other: Any) -> None:
    compiled = regraft.compile(lambda x: x * 2, (rows(),))
    with pytest.raises(
        ShapeError, match=r"'x' is (None|of type \w+); the model was compiled for a tensor: |'x' has the"
    ):
        compiled(other)


# -- what is refused at once -------------------------------------------------------------------

REFUSED: Mapping[str, tuple[Any, str, str]] = {
    "array": (np.ones(3, np.float32), "numpy.ndarray", "torch.as_tensor"),
    "array number": (np.float32(1), "numpy.float32", "Python number"),
    "complex number": (1j, "complex", "lambda x: model(x, value)"),
    "dtype": (torch.float64, "torch.dtype", "lambda x: model(x, value)"),
    "device": (torch.device("cpu"), "torch.device", "lambda x: model(x, value)"),
    "enum": (Mode.DOUBLE, "Mode", "lambda x: model(x, value)"),
    "slice": (slice(0, 2), "slice", "lambda x: model(x, value)"),
    "set": ({1, 2}, "set", "lambda x: model(x, value)"),
    "function": (torch.relu, "builtin_function_or_method", "lambda x: model(x, value)"),
    "module": (nn.ReLU(), "ReLU", "lambda x: model(x, value)"),
    "dataclass": (Unregistered(rows()), "Unregistered", "register_dataclass"),
    "meta tensor": (rows().to("meta"), "meta device", "pass a tensor that has"),
    "sparse tensor": (torch.eye(3).to_sparse(), "torch.sparse_coo", "to_dense"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    value, kind, way_out = REFUSED[name]

    def model(x: Tensor, extra: Any) -> Tensor:
        return x * 2

    with pytest.raises(OptionError, match=r"argument 'extra' ") as caught:
        regraft.compile(model, (rows(), value))
    assert kind in str(caught.value)
    assert way_out in str(caught.value)


def test_refused_inside_a_structure() -> None:
    with pytest.raises(OptionError, match=r"argument 'batch\['a'\]\[1\]' is a numpy.ndarray"):
        regraft.compile(lambda batch: batch["a"][0], ({"a": [rows(), np.ones(3)]},))


def test_no_rows_in_the_example_of_a_dynamic_dimension() -> None:
    with pytest.raises(OptionError, match="dimension 0 of the example's argument 'x' is dynamic"):
        regraft.compile(lambda x: x * 2, (rows(0),), dynamic_shapes=({0: Dim.AUTO},))


# -- the user's model --------------------------------------------------------------------------


class Watched(nn.Module):
    """Everything that a compile could disturb: attributes, buffers, modes, hooks, gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.register_buffer("table", torch.ones(8))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.settings, self.last = {"scale": 2.0, "names": ["a"]}, None

    def forward(self, x: Tensor, fail: bool = False) -> Tensor | list[Tensor]:
        self.last = "called"
        y = self.norm(self.linear(x)) * self.settings["scale"] + self.frozen(self.table)
        return [row for row in y if row.sum() > 0] if fail else y


def watched() -> Watched:
    model = randomise(Watched()).train()
    model.linear.register_forward_hook(lambda module, args, result: result + 0)
    model(rows()).sum().backward()
    return model.eval()


def state(model: nn.Module) -> list[Any]:
    """All that can be seen of a model: identities, and copies of what may change in place."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        [(name, id(t), t._version, t.requires_grad, t.detach().clone()) for name, t in tensors],
        [(name, id(p.grad), p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None],
        [(name, m.training, list(m._forward_hooks.items())) for name, m in model.named_modules()],
        [{k: (id(v), repr(v)) for k, v in vars(m).items() if not k.startswith("_")} for m in model.modules()],
        [list(vars(m)) for m in model.modules()],
        (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()),
    ]


def test_the_model_is_untouched() -> None:
    model = watched()
    before = state(model)
    compiled = regraft.compile(model, (rows(),), verify=True)
    same(state(model), before)
    compiled(rows(3, 1))
    same(state(model), before)
    compiled.refresh(model)
    same(state(model), before)


def test_the_model_is_untouched_by_a_failure() -> None:
    model = watched()
    before = state(model)
    with pytest.raises(CaptureError):
        regraft.compile(model, (rows(), True))
    same(state(model), before)
    with pytest.raises(OptionError):
        regraft.compile(model, (rows(), np.ones(3)))
    same(state(model), before)
