"""A torch op of the user's own, for the tests of this folder: ``mylib.fancy(x, alpha) = alpha * relu(x)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import regraft
from regraft.ir import CallSite, TensorType


@torch.library.custom_op("mylib::fancy", mutates_args=())
def fancy(x: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.relu(x) * alpha


@fancy.register_fake
def _(x: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("mylib::lying", mutates_args=())
def lying(x: Tensor) -> Tensor:
    return torch.cat([x, x])


@lying.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("mylib::twins", mutates_args=())
def twins(x: Tensor, ys: Sequence[Tensor], z: Tensor | None, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    total = x + sum(ys) if z is None else x + sum(ys) + z
    return total, total.sum(dims)


@twins.register_fake
def _(x: Tensor, ys: Sequence[Tensor], z: Tensor | None, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.sum(dims)


@torch.library.custom_op("mylib::writes", mutates_args=("x",))
def writes(x: Tensor) -> None:
    x.add_(1)


def _make_wave(x: Tensor) -> None:
    x.copy_(torch.ops.mycomposites.wave(x))


#: Ops that torch takes apart, the second one by the first.
COMPOSITES = torch.library.Library("mycomposites", "DEF")
COMPOSITES.define("wave(Tensor x) -> Tensor")
COMPOSITES.impl("wave", lambda x: x.sin() + 1, "CompositeImplicitAutograd")
COMPOSITES.define("make_wave(Tensor(a!) x) -> ()")
COMPOSITES.impl("make_wave", _make_wave, "CompositeImplicitAutograd")


def model(x: Tensor) -> Tensor:
    return torch.ops.mylib.fancy(x * 2, 3) + 1


def rows(count: int = 3) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(0))


def same_type(site: CallSite) -> TensorType:
    return site.type("x")


def two_ops(op: Any, fancy: Any) -> Sequence[Any]:
    return (op.aten.mul.Scalar(op.aten.relu(fancy.operand("x")), fancy.attr("alpha")),)


def on_onnx(emitter: regraft.OnnxEmitter, op: Any) -> Any:
    alpha = emitter.scalar(op.attr("alpha"), op.result.tensor.dtype)
    return emitter.op("Mul", emitter.op("Relu", emitter.operand(op, "x")), alpha)
