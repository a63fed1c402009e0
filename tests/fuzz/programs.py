"""Random programs: hypothesis draws float arithmetic, shapes, conditions and loops over symbolic sizes.

Floats stay in a range in which no program overflows, and no float decides a branch: a rewrite may round
otherwise than eager, and both must go the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor

from regraft.ir import (
    OPS,
    Builder,
    Dim,
    DType,
    Function,
    Leaf,
    Module,
    Region,
    Symbol,
    TensorType,
    Value,
    dims,
)
from tests.rewrites.programs import SHAPE_STEPS, SIZES, SYMBOLS, Draw, together

FLAG, COUNT = TensorType(DType.BOOL, ()), TensorType(DType.I64, ())
INPUTS = (
    TensorType(DType.F32, SIZES[:2]),
    TensorType(DType.F32, (SIZES[0], 4)),
    TensorType(DType.F32, (3, 1)),
    FLAG,
    COUNT,
)
#: Values of the two symbols, the flag and the count to run a program with.
RUNS = ((2, 5, True, 2), (1, 1, False, 1), (4, 7, True, 0), (1, 0, False, 3), (3, 2, False, 2))
_DEPTH = 2

Step = Callable[["Block"], Value]


@dataclass
class Block:
    """A region that grows, and the values in it."""

    draw: Draw
    region: Region
    constants: list[Leaf]
    fresh: Iterator[int]
    depth: int = 0
    values: list[Value] = field(default_factory=list)

    @property
    def op(self) -> Builder:
        return Builder(OPS, self.region)

    def pick(self, dtype: DType = DType.F32, rank: int | None = None) -> Value:
        """Any value of ``dtype``, of any rank but 0 where none is given."""
        fitting = [
            v
            for v in self.values
            if v.tensor.dtype == dtype and (v.tensor.rank > 0 if rank is None else v.tensor.rank == rank)
        ]
        assert fitting
        return fitting[self.draw(st.integers(0, len(fitting) - 1))]

    def axis(self, value: Value) -> int:
        return self.draw(st.integers(0, value.tensor.rank - 1))

    def grow(self, steps: int) -> None:
        """Append up to ``steps`` random ops. A call that has no type is left out."""
        for step in self.draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=steps)):
            try:
                self.values.append(step(self))
            except (TypeError, AssertionError, ValueError):
                continue

    def nested(self, types: Sequence[TensorType], symbols: Sequence[Symbol] = ()) -> Block:
        region = Region(types, symbols)
        return Block(self.draw, region, self.constants, self.fresh, self.depth + 1, list(region.args))

    def finish(self, values: Sequence[Value]) -> Region:
        self.op.create("cf.yield", (tuple(values),))
        return self.region


def _unary(block: Block) -> Value:
    names = ("tanh", "sigmoid", "relu", "gelu", "silu", "neg", "abs", "sin")
    return block.op.call(f"aten.{block.draw(st.sampled_from(names))}", (block.pick(),), {})


def _spelled(block: Block) -> Value:
    """Ops that the normal form replaces."""
    x = block.op.aten.tanh(block.pick())
    name = block.draw(st.sampled_from(["clone", "contiguous", "square", "rsub.Scalar", "unsqueeze"]))
    more = {"rsub.Scalar": (0.5,), "unsqueeze": (0,)}.get(name, ())
    return block.op.call(f"aten.{name}", (x, *more), {})


def _with_scalar(block: Block) -> Value:
    name = block.draw(st.sampled_from(["add.Scalar", "mul.Scalar", "div.Scalar"]))
    number = block.draw(st.sampled_from([0.5, 1.0, -1.0, 1.5, 2.0]))
    return block.op.call(f"aten.{name}", (block.op.aten.tanh(block.pick()), number), {})


def _binary(block: Block) -> Value:
    name = block.draw(st.sampled_from(["add.Tensor", "sub.Tensor", "mul.Tensor", "maximum", "minimum"]))
    x, y = block.op.aten.tanh(block.pick()), block.op.aten.sigmoid(block.pick())
    together(x, y)
    return block.op.call(f"aten.{name}", (x, y), {})


def _constant(block: Block, *shape: Dim) -> Value:
    number = len(block.constants)
    leaf = Leaf(f"w{number}", TensorType(DType.F32, shape), _normal(number, *shape))
    block.constants.append(leaf)
    return block.op.constant(leaf)


def _normal(seed: int, *shape: Dim) -> Tensor:
    sizes = [size for size in shape if isinstance(size, int)]
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def _linear(block: Block) -> Value:
    x = block.pick()
    width = x.tensor.shape[-1]
    assert isinstance(width, int)
    out = block.draw(st.sampled_from([1, 3, 4]))
    bias = [_constant(block, out)] if block.draw(st.booleans()) else []
    return block.op.aten.linear(block.op.aten.tanh(x), _constant(block, out, width), *bias)


def _norm(block: Block) -> Value:
    x = block.pick()
    width = x.tensor.shape[-1]
    assert isinstance(width, int)
    assert width > 1
    if block.draw(st.booleans()):
        return block.op.aten.rms_norm(x, (width,), _constant(block, width), 1e-2)
    return block.op.aten.layer_norm(x, (width,), _constant(block, width), _constant(block, width), 1e-2)


def _softmax(block: Block) -> Value:
    x = block.pick()
    return block.op.aten.softmax.int(x, block.axis(x))


def _reduce(block: Block) -> Value:
    x = block.pick()
    name = block.draw(st.sampled_from(["sum.dim_IntList", "mean.dim", "amax"]))
    axis = block.axis(x)
    assert name == "sum.dim_IntList" or not _may_be_empty(x.tensor.shape[axis])
    return block.op.call(f"aten.{name}", (block.op.aten.tanh(x), (axis,), block.draw(st.booleans())), {})


def _may_be_empty(size: Dim) -> bool:
    return dims.le(1, size) is not True


def _matmul(block: Block) -> Value:
    x = block.op.aten.tanh(block.pick(rank=2))
    y = block.op.aten.permute(block.op.aten.sigmoid(block.pick(rank=2)), (1, 0))
    assert dims.eq(x.tensor.shape[1], y.tensor.shape[0]) is True
    return block.op.aten.div.Scalar(block.op.aten.matmul(x, y), 4.0)


def _masked(block: Block) -> Value:
    x = block.pick()
    size = x.tensor.shape[-1]
    counted = block.op.aten.arange.start_step(0, size, 1, dtype=DType.I64)
    mask = block.op.aten.gt.Scalar(counted, block.draw(st.integers(0, 2)))
    if block.draw(st.booleans()):
        return block.op.aten.masked_fill.Scalar(x, mask, 0.5)
    y = block.pick()
    together(x, y, mask)
    return block.op.aten.where.self(mask, x, y)


def _shape(block: Block) -> Value:
    return block.draw(st.sampled_from(SHAPE_STEPS))(block.op, block.draw, block.pick)


def _size(block: Block) -> Value:
    """A size as a number that conditions and loops can use."""
    x = block.pick()
    return block.op.rg.dim_value(dims.minimum(x.tensor.shape[block.axis(x)], 3))


def _flag(block: Block) -> Value:
    name = block.draw(st.sampled_from(["gt", "eq", "le"]))
    count = block.pick(DType.I64, 0)
    return block.op.call(f"aten.{name}.Scalar", (count, block.draw(st.integers(0, 3))), {})


def _condition(block: Block) -> Value:
    """Arms of random ops. Where their results differ in a size, the op defines a symbol for it."""
    assert block.depth < _DEPTH
    operands = [block.pick() for _ in range(block.draw(st.integers(1, 2)))]
    operands.append(block.pick(DType.I64, 0))
    types = [value.tensor for value in operands]
    then, other = block.nested(types), block.nested(types)
    for arm in (then, other):
        arm.grow(4)
    a, b = then.pick(), other.pick()
    assert a.tensor.rank == b.tensor.rank
    differing = [dims.eq(x, y) is not True for x, y in zip(a.tensor.shape, b.tensor.shape, strict=True)]
    fresh = [_fresh(block) for each in differing if each]
    regions = [then.finish([a]), other.finish([b])]
    pred = block.pick(DType.BOOL, 0)
    return block.op.create("cf.cond", (pred, operands), regions=regions, symbols=fresh).result


def _fresh(block: Block) -> Symbol:
    return Symbol(f"n{next(block.fresh)}", 0)


def _logic(block: Block) -> Value:
    p, q = block.pick(DType.BOOL, 0), block.pick(DType.BOOL, 0)
    name = block.draw(st.sampled_from(["not", "and.Tensor", "or.Tensor"]))
    return block.op.call(f"aten.bitwise_{name}", (p,) if name == "not" else (p, q), {})


def _exit(block: Block) -> Value:
    """A condition whose arms say by a flag which of them ran, or leave it to another bool."""
    assert block.depth < _DEPTH
    operands = [block.pick(), block.pick(DType.BOOL, 0), block.pick(DType.BOOL, 0)]
    pred = block.pick(DType.BOOL, 0)
    arms = [block.nested([value.tensor for value in operands]) for _ in range(2)]
    for arm in arms:
        if block.draw(st.booleans()):
            arm.grow(3)
    kept = [[v for v in arm.values if v.type == operands[0].type][-1] for arm in arms]
    flags = [arm.op.aten.full((), block.draw(st.booleans()), dtype=DType.BOOL) for arm in arms]
    if block.draw(st.booleans()):
        number = block.draw(st.integers(0, 1))
        flags[number] = arms[number].pick(DType.BOOL, 0)
    regions = [arm.finish([value, flag]) for arm, value, flag in zip(arms, kept, flags, strict=True)]
    value, flag = block.op.create("cf.cond", (pred, operands), regions=regions).results
    block.values.append(flag)
    return value


def _still(block: Block) -> Value:
    """A loop that computes the same from a value that it does not change in each trip."""
    assert block.depth < _DEPTH
    count, x, still = block.op.aten.clamp(block.pick(DType.I64, 0), 0, 3), block.pick(), block.pick()
    types = [count.tensor, x.tensor, still.tensor]
    test, body = block.nested(types), block.nested(types)
    number, value, same = body.region.args
    body.values = [same]
    body.grow(4)
    found = body.op.aten.tanh(body.pick())
    more = body.op.aten.tanh(body.op.aten.sum.dim_IntList(found, tuple(range(found.tensor.rank))))
    after = body.op.aten.add.Tensor(body.op.aten.tanh(value), more)
    assert after.type == value.type
    condition = test.finish([test.op.aten.gt.Scalar(test.region.args[0], 0)])
    trip = body.finish([body.op.aten.add.Scalar(number, -1), after, same])
    return block.op.create("cf.while", ((count, x, still),), regions=[condition, trip]).results[1]


def _loop(block: Block) -> Value:
    """At most three trips of random ops on a value that keeps its type, beside one that no trip changes."""
    assert block.depth < _DEPTH
    count, x, still = block.pick(DType.I64, 0), block.pick(), block.pick()
    start = block.op.aten.clamp(count, 0, 3)
    types = [start.tensor, x.tensor, still.tensor]
    test, body = block.nested(types), block.nested(types)
    body.grow(4)
    kept = [v for v in body.values if v.type == x.type and v is not body.region.args[1]]
    after = kept[-1] if kept else body.op.aten.tanh(body.region.args[1])
    condition = test.finish([test.op.aten.gt.Scalar(test.region.args[0], 0)])
    trip = body.finish([body.op.aten.add.Scalar(body.region.args[0], -1), after, body.region.args[2]])
    return block.op.create("cf.while", ((start, x, still),), regions=[condition, trip]).results[1]


def _growing(block: Block) -> Value:
    """A loop that doubles a value along an axis of any size: its size is bound anew in each trip."""
    assert block.depth < _DEPTH
    count, x = block.pick(DType.I64, 0), block.pick()
    axis = block.axis(x)
    start = block.op.aten.clamp(count, 0, 2)
    carried, final = _fresh(block), _fresh(block)

    def sized(size: Dim) -> TensorType:
        shape = list(x.tensor.shape)
        shape[axis] = size
        return x.tensor.with_shape(tuple(shape))

    types = [start.tensor, sized(dims.as_expr(carried))]
    test, body = block.nested(types, [carried]), block.nested(types, [carried])
    condition = test.finish([test.op.aten.gt.Scalar(test.region.args[0], 0)])
    number, value = body.region.args
    doubled = body.op.aten.cat((value, body.op.aten.neg(value)), axis)
    trip = body.finish([body.op.aten.add.Scalar(number, -1), doubled])
    return block.op.create(
        "cf.while",
        ((start, x),),
        result_types=[start.type, sized(dims.as_expr(final))],
        regions=[condition, trip],
        symbols=[final],
    ).results[1]


STEPS: tuple[Step, ...] = (
    _unary, _unary, _spelled, _with_scalar, _with_scalar, _binary, _binary, _linear, _norm, _softmax, _reduce,
    _matmul, _masked, _shape, _shape, _shape, _shape, _size, _flag, _condition, _condition, _loop, _loop,
    _growing, _logic, _exit, _exit, _exit, _still,
)  # fmt: skip


@st.composite
def programs(draw: Draw) -> Module:
    """A module whose function takes ``INPUTS`` and gives some of the values of a random program."""
    region = Region(INPUTS)
    block = Block(draw, region, [], itertools.count(), values=list(region.args))
    block.grow(12)
    made = [v for v in block.values[len(INPUTS) :] if v.tensor.dtype == DType.F32]
    results = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3)) if made else [region.args[0]]
    block.finish(results)
    return Module({"forward": Function("forward", region, SYMBOLS)})


def arguments(run: tuple[int, int, bool, int]) -> tuple[list[Tensor], dict[str, int]]:
    """The tensors of one of ``RUNS``, and the values of the symbols."""
    rows, length, flag, count = run
    tensors = [_normal(1, rows, length), _normal(2, rows, 4), _normal(3, 3, 1)]
    return [*tensors, torch.tensor(flag), torch.tensor(count)], {"B": rows, "S": length}
