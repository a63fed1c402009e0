"""Random scans, against eager torch in fp64: what has a kernel computes the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from regraft.backends import LowerOptions, backend
from regraft.conformance import Case
from regraft.ir import Value
from regraft.testing import GraphConstants, assert_close
from tests.backends.tvm.test_scan import scan

Shape = tuple[int, ...]


@dataclass
class Program:
    """A scan drawn from a seed. Values stay small: sums are means, products are of what is bounded.

    Fields:
        carried, slices, fixed: the shapes of the arguments of a trip.
    """

    seed: int
    draw: random.Random = field(init=False)
    carried: Sequence[Shape] = ()
    slices: Sequence[Shape] = ()
    fixed: Sequence[Shape] = ()

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        rows, columns = self.draw.choice((1, 3, 5, 17, 20)), self.draw.choice((1, 4, 6, 16, 35))
        shapes: list[Shape] = [(rows, columns), (columns,), (rows, 1), (rows,), (1, columns), ()]
        self.carried = self.draw.choices(shapes[:4], k=self.draw.randint(1, 3))
        self.slices = self.draw.choices(shapes, k=self.draw.randint(1, 3))
        self.fixed = self.draw.choices(shapes, k=self.draw.randint(0, 2))

    def case(self) -> Case:
        steps = self.draw.choice((1, 2, 5))
        shapes = (*self.carried, *((steps, *each) for each in self.slices), *self.fixed)
        types = tuple(f"f64[{', '.join(map(str, shape))}]" for shape in shapes)
        first, second = len(self.carried), len(self.carried) + len(self.slices)

        def build(op: Any, *values: Value) -> Sequence[Value]:
            self.draw.seed(self.seed)
            return scan(op, values[:first], values[first:second], values[second:], self._trip)

        return Case(f"program {self.seed}", build, types)

    def _trip(self, op: Any, *given: Value) -> Sequence[Value]:
        pool = list(given)
        for _ in range(self.draw.randint(2, 9)):
            made = self.draw.choice(STEPS)(op, self.draw, self.draw.choice(pool), self.draw.choice(pool))
            if made is not None and made.tensor.rank <= 3:
                pool.append(made)
        after = [_shaped(op, self.draw.choice(pool), shape) for shape in self.carried]
        return (*after, *self.draw.choices(pool, k=self.draw.randint(0, 3)))


def _shaped(op: Any, value: Value, shape: Shape) -> Value:
    """``value`` in ``shape``, by means and broadcasting."""
    while value.tensor.rank > len(shape):
        value = op.aten.mean.dim(value, (0,))
    start = len(shape) - value.tensor.rank
    differing = [a for a, size in enumerate(value.tensor.shape) if size not in (1, shape[start + a])]
    value = op.aten.mean.dim(value, tuple(differing), True) if differing else value
    return value if value.tensor.shape == shape else op.aten.expand(value, shape)


# -- steps: each makes a value of one or two, or nothing where it does not fit -----------------------


def _joined(name: str) -> Callable[..., Value | None]:
    def step(op: Any, draw: random.Random, a: Value, b: Value) -> Value | None:
        pairs = zip(reversed(a.tensor.shape), reversed(b.tensor.shape), strict=False)
        if not all(x == y or 1 in (x, y) for x, y in pairs):
            return None
        return op.call(name, (op.aten.tanh(a), b), {})

    return step


def _of_one(name: str) -> Callable[..., Value | None]:
    def step(op: Any, draw: random.Random, a: Value, b: Value) -> Value | None:
        return op.call(name, (op.aten.mul.Scalar(a, -0.7),), {})

    return step


def _folded(name: str) -> Callable[..., Value | None]:
    def step(op: Any, draw: random.Random, a: Value, b: Value) -> Value | None:
        if not a.tensor.rank:
            return None
        return op.call(name, (a, (draw.randrange(a.tensor.rank),), draw.random() < 0.6), {})

    return step


def _flipped(op: Any, draw: random.Random, a: Value, b: Value) -> Value | None:
    return op.aten.flip(a, (draw.randrange(a.tensor.rank),)) if a.tensor.rank else None


def _part(op: Any, draw: random.Random, a: Value, b: Value) -> Value | None:
    if not a.tensor.rank:
        return None
    axis = draw.randrange(a.tensor.rank)
    start = draw.randrange(a.tensor.shape[axis])
    end = draw.randint(start + 1, a.tensor.shape[axis])
    return op.aten.slice.Tensor(a, axis, start, end, draw.choice((1, 1, 2)))


def _turned(op: Any, draw: random.Random, a: Value, b: Value) -> Value | None:
    return op.aten.permute(a, (1, 0)) if a.tensor.rank == 2 else None


def _reshaped(op: Any, draw: random.Random, a: Value, b: Value) -> Value | None:
    shape = a.tensor.shape
    axis = draw.randint(0, len(shape))
    return op.aten.view(a, draw.choice(((*shape[:axis], 1, *shape[axis:]), (a.tensor.numel,))))


def _product(op: Any, draw: random.Random, a: Value, b: Value) -> Value | None:
    ranks = a.tensor.rank, b.tensor.rank
    if not all(rank in (1, 2) for rank in ranks) or a.tensor.shape[-1] != b.tensor.shape[-ranks[1] :][0]:
        return None
    return op.aten.mul.Scalar(op.aten.matmul(op.aten.tanh(a), b), 1 / a.tensor.shape[-1])


def _chosen(op: Any, draw: random.Random, a: Value, b: Value) -> Value | None:
    return op.aten.where.self(op.aten.gt.Scalar(a, 0.1), a, op.aten.mul.Scalar(a, 0.5))


STEPS: tuple[Callable[..., Value | None], ...] = (
    *map(_joined, ("aten.add.Tensor", "aten.add.Tensor", "aten.mul.Tensor", "aten.maximum")),
    *map(_of_one, ("aten.tanh", "aten.sigmoid", "aten.sin")),
    *map(_folded, ("aten.mean.dim", "aten.amax")),
    *(_flipped, _part, _turned, _reshaped, _product, _chosen),
)


@pytest.mark.conformance
@pytest.mark.parametrize("seed", range(80))
def test_program(tvm: Any, seed: int) -> None:
    case = Program(seed).case()
    function = case.function()
    if any(tvm.supports(op) is not None for op in function.body.ops):
        return
    inputs = case.arguments(function, {})
    expected = backend("eager").lower(case.function(), GraphConstants(), LowerOptions()).run(inputs, {})
    assert_close(tvm.lower(function, GraphConstants(), LowerOptions(threads=1)).run(inputs, {}), expected)


def test_most_programs_have_a_kernel(tvm: Any) -> None:
    """Else the programs say nothing; some have none, which must be as well."""
    reasons = [
        tvm.supports(op)
        for seed in range(80)
        for op in Program(seed).case().function().body.ops
        if op.name == "cf.scan"
    ]
    assert 40 < reasons.count(None) < 80
