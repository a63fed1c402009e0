"""What a kernel should give, by torch in fp64: for the tuner, which trusts no kernel, and for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from regraft.backends.tvm.templates.problem import (
    Argument,
    Axis,
    Dims,
    Extra,
    FeedForward,
    Gemm,
    Problem,
    Step,
)


def _bound(value: Tensor, body: Callable[[Tensor], Tensor]) -> Tensor:
    return body(value)


MATH = SimpleNamespace(
    bound=_bound,
    constant=lambda number, like: torch.full((), number, dtype=torch.float64),
    select=torch.where,
    maximum=torch.maximum,
    relu=torch.relu,
    exp=torch.exp,
    erf=torch.erf,
    tanh=torch.tanh,
    sigmoid=torch.sigmoid,
    silu=torch.nn.functional.silu,
    gelu=torch.nn.functional.gelu,
    gelu_tanh=lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
)
"""``templates.functions``, for tensors: what a step's ``emit`` is given here."""


def reference(problem: Problem, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The kernel's outputs by name, in fp64, from its other arguments by name.

    Weights are as they are before packing. The row sums of squares are whole, not by blocks of columns:
    [batch, rows].
    """
    exact = {name: value.double() for name, value in values.items()}
    if isinstance(problem, Gemm):
        return _product(problem, exact)
    return _feed_forward(problem, exact)


def _feed_forward(problem: FeedForward, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def part(name: str, x: Tensor) -> dict[str, Tensor]:
        own = {n.removeprefix(f"{name}_"): v for n, v in values.items() if n.startswith(f"{name}_")}
        return {**own, "x": x}

    hidden = _product(problem.first, part("first", values["x"]))["out"]
    return _product(problem.second, part("second", hidden))


def _product(problem: Gemm, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    x = _laid_out(problem, values["x"], problem.x_axes(), ("batch", "rows", "depth"))
    for step in problem.prologue:
        x = _step(problem, step, [x], values, ("batch", "rows", "depth"))
    sums: list[Tensor] = []
    for name in problem.weight_names:
        weight = values[name] if problem.batch > 1 else values[name][None]
        sums.append(x @ (weight.transpose(-1, -2) if problem.is_transposed else weight))
    for step in problem.epilogue:
        sums = [_step(problem, step, sums, values, ("batch", "rows", "columns"))]
    (out,) = sums
    found = {"out": _as_stored(problem, out)}
    if problem.has_row_squares:
        squares = out.square().sum(-1)
        found["row_squares"] = squares if problem.batch > 1 else squares[0]
    return found


def _step(
    problem: Gemm, step: Step, running: Sequence[Tensor], values: Mapping[str, Tensor], axes: Sequence[Axis]
) -> Tensor:
    extras = [_extra(problem, extra, values[extra.name], axes) for extra in step.extras]
    return step.emit(MATH, *running, *extras)


def _extra(problem: Gemm, extra: Extra, value: Tensor, axes: Sequence[Axis]) -> Tensor:
    return _laid_out(problem, value, extra.axes, axes)


def _laid_out(problem: Gemm, value: Tensor, own: Sequence[Axis], axes: Sequence[Axis]) -> Tensor:
    """``value``, which has the axes ``own``, with the axes ``axes``: those that it lacks have size 1."""
    present = [axis for axis in own if axis != "batch" or problem.batch > 1]
    if not present:
        return value.reshape([1] * len(axes))
    ordered = value.permute([present.index(axis) for axis in axes if axis in present])
    return ordered[tuple(slice(None) if axis in present else None for axis in axes)]


def _as_stored(problem: Gemm, out: Tensor) -> Tensor:
    """[batch, rows, columns] as the kernel stores it."""
    if problem.batch == 1:
        return out[0]
    return out.transpose(0, 1) if problem.is_block_diagonal else out


def example_values(problem: Problem, arguments: Sequence[Argument], rows: int) -> dict[str, Tensor]:
    """Random values at ``rows`` rows for all of ``arguments`` but the outputs; weights before packing.

    They are the same for every config, and those of weights at every number of rows. Weights have the scale
    at which sums keep that of ``x``.
    """
    shapes = _weight_shapes(problem)
    values: dict[str, Tensor] = {}
    for number, argument in enumerate(a for a in arguments if a.role != "output"):
        generator = torch.Generator().manual_seed(number)
        given: Dims = shapes.get(argument.name, argument.shape)
        shape = [rows if size is None else size for size in given]
        if argument.name == "x":
            shape[-1] = problem.depth if isinstance(problem, Gemm) else problem.first.depth
        value = torch.randn(shape, generator=generator, dtype=torch.float32)
        scale = _depth_of(problem, argument.name) ** -0.5 if argument.role == "weight" else 1.0
        values[argument.name] = (value * scale).to(getattr(torch, argument.viewed_from or argument.dtype))
    return values


def _weight_shapes(problem: Problem) -> dict[str, tuple[int, ...]]:
    if isinstance(problem, Gemm):
        return dict.fromkeys(problem.weight_names, problem.weight_shape())
    return {
        f"{part}_{name}": product.weight_shape()
        for part, product in (("first", problem.first), ("second", problem.second))
        for name in product.weight_names
    }


def _depth_of(problem: Problem, weight: str) -> int:
    if isinstance(problem, Gemm):
        return problem.depth
    return problem.first.depth if weight.startswith("first_") else problem.second.depth
