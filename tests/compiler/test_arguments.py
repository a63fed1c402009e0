"""Arguments of the public calls that have no such name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from regraft.compiler import bench, tune
from regraft.errors import OptionError, UnknownArgumentError

MODEL, X = nn.Linear(4, 4).eval(), torch.ones(2, 4)


@pytest.mark.parametrize(
    ("call", "given", "nearest"),
    [
        (regraft.compile, {"bakends": ["ort"]}, "'backends'"),
        (regraft.compile, {"dynamic_shape": None}, "'dynamic_shapes'"),
        (regraft.capture, {"dynamic_shape": None}, "'dynamic_shapes'"),
        (regraft.export_onnx, {"opsett": 18}, "'opset'"),
        (regraft.export_plan, {"maxtrips": 3}, "'max_trips'"),
        (regraft.explain, {"rewrit": "Rotary"}, "'rewrite'"),
        (regraft.bisect, {"chek": None}, "'check'"),
        (bench, {"round": 3}, "'rounds'"),
        (tune, {"agian": True}, "'again'"),
        (regraft.rank_layers, {"cuont": 3}, "'count'"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(
    call: Callable[..., Any], given: dict[str, Any], nearest: str
) -> None:
    with pytest.raises(TypeError) as caught:
        call(MODEL, (X,), **given)
    assert isinstance(caught.value, UnknownArgumentError)
    (name,) = given
    assert caught.value.message.startswith(f"{call.__name__}(): there is no argument '{name}'")
    assert f"did you mean {nearest}" in caught.value.message


@pytest.mark.parametrize(
    ("plugin", "given", "nearest"),
    [(regraft.LowRank, {"rnak": 4}, "'rank'"), (regraft.WithoutLayers, {"nmaes": ["a"]}, "'names'")],
)
def test_a_misspelt_name_of_a_plug_in_is_answered_too(
    plugin: Callable[..., Any], given: dict[str, Any], nearest: str
) -> None:
    (name,) = given
    message = rf"^{plugin.__name__}\(\): there is no argument '{name}'; did you mean {nearest}"
    with pytest.raises(UnknownArgumentError, match=message):
        plugin(**given)


def test_a_name_like_no_other_lists_all() -> None:
    with pytest.raises(UnknownArgumentError, match=r"there are: adapters, args, backends, .*verify"):
        regraft.compile(MODEL, (X,), zzz=1)  # type: ignore[call-arg]


def test_the_signature_is_the_functions_own() -> None:
    parameters = inspect.signature(regraft.compile).parameters
    assert parameters["tune"].default is False
    assert list(parameters)[:3] == ["model", "args", "kwargs"]
    assert regraft.compile.__doc__ is not None


LARGE = torch.ones(64, 64)
#: Calls with a tensor in the place of something else, by what is named in the error.
TENSORS: dict[str, Callable[[], Any]] = {
    **{
        name: lambda name=name: regraft.compile(MODEL, (X,), **{name: LARGE})
        for name in (
            "kwargs", "backends", "rewrites", "passes", "verify", "tune", "batch", "fallback", "memory_limit",
            "threads", "cache", "dump", "exactness", "max_trips", "dynamic_shapes", "adapters",
        )
    },
    "budget": lambda: regraft.compile(MODEL, (X,), tune=True, budget=LARGE),  # type: ignore[arg-type]
    "tolerance": lambda: regraft.Exactness.APPROX(LARGE),  # type: ignore[arg-type]
    "rank": lambda: regraft.LowRank(rank=LARGE),  # type: ignore[arg-type]
    "names": lambda: regraft.WithoutLayers(LARGE),
    "functions": lambda: regraft.Bundle(LARGE),  # type: ignore[arg-type]
    "'f'": lambda: regraft.Bundle({"f": LARGE}),  # type: ignore[dict-item]
    "opset": lambda: regraft.export_onnx(MODEL, (X,), "x.onnx", opset=LARGE),  # type: ignore[arg-type]
    "adapter": lambda: regraft.export_onnx(MODEL, (X,), "x.onnx", adapters={"a": {}}, adapter=LARGE),  # type: ignore[arg-type]
    "no adapter": lambda: regraft.compile(MODEL, (X,), adapters={"a": {}}).set_adapter(LARGE),  # type: ignore[arg-type]
    "check": lambda: regraft.bisect(MODEL, (X,), check=LARGE),  # type: ignore[arg-type]
    "limit": lambda: regraft.explain(MODEL, (X,), limit=LARGE),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_in_the_place_of_something_else_is_named_and_not_shown(name: str) -> None:
    with pytest.raises(OptionError) as caught:
        TENSORS[name]()
    assert name in str(caught.value)
    assert "tensor([" not in str(caught.value)
    assert len(str(caught.value)) < 300
