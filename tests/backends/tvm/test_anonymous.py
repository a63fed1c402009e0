"""Functions without names: what computes the same is built once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.backends import LowerOptions
from regraft.errors import BackendError
from regraft.ir import OPS, Builder, DType, Function, Leaf, Location, Region, TensorType


class Named:
    """Constants under names of their own."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def name(self, constant: Any) -> str:
        return f"{self.prefix}.{constant.name}"

    def tensor(self, constant: Any) -> Tensor:
        return constant.storage


def layer(name: str, line: int) -> tuple[Function, Tensor]:
    """A linear layer over looked-up rows, its values and its source line named by ``name`` and ``line``."""
    weight = torch.randn(8, 8)
    leaf = Leaf(name, TensorType(DType.F32, (8, 8)), weight)
    region = Region([TensorType(DType.I64, (3,))])
    region.args[0].hint = name
    builder = Builder(OPS, region, loc=Location("model.py", line))
    rows = builder.aten.embedding(builder.constant(leaf), region.args[0])
    rows.hint = f"{name}_rows"
    builder.create("cf.yield", ((builder.aten.linear(rows, builder.constant(leaf)),),))
    return Function("layer", region), weight


def test_equal_layers_are_built_once_and_name_their_own_lines(
    tvm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    build = tvm._builder.build

    def counted(text: str, *others: Any) -> Any:
        asked.append(text)
        return build(text, *others)

    monkeypatch.setattr(tvm._builder, "build", counted)
    for name, line, builds in (("first", 10, 1), ("second", 10, 1), ("third", 20, 2)):
        function, weight = layer(name, line)
        executable = tvm.lower(function, Named(name), LowerOptions())
        assert len(asked) == builds
        ids = torch.tensor([1, 7, 1])
        torch.testing.assert_close(executable.run([ids], {})[0], weight[ids] @ weight.T)
        with pytest.raises(BackendError, match=f"model.py:{line}"):
            executable.run([torch.tensor([1, 8, 1])], {})
