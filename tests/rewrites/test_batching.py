"""Ops for many samples at once against one run for each sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from regraft.ir import (
    OPS,
    Builder,
    DType,
    Function,
    Op,
    Region,
    Symbol,
    TensorType,
    Trait,
    Value,
    input_symbols,
    symbol,
)
from regraft.rewrites import batching
from tests.ops import harness
from tests.ops.samples import F64, SAMPLES, Sample

SIZES = {"s": 2, "n": 3}
COUNT = 3

CALLS = [
    sample
    for sample in SAMPLES
    if sample.definition.canonical
    and sample.operands
    and (sample.name in batching.RULES or sample.definition.traits & Trait.ELEMENTWISE)
]

REFUSED = (
    "aten.linear(f32[s, 4], f32[4])",
    "aten.linear(f32[4], f32[4], f32[])",
    "aten.linear(f32[s, 4], f32[3, 4], f32[1, 3])",
    "aten.linear(f32[s, 4], f32[3, 4], f32[s, 1])",
    "aten.linear(f32[s, 4], f32[3, 4], f32[s, 3])",
    "aten.cat((f32[0], f32[s, 3]), 1)",
    "aten.index_put(f32[s, 3, 4], (i64[n], None, i64[n]), f32[n, 3], True)",
    "aten.index_put(f32[s, 3, 4], (bool[s, 3]), f32[])",
    "aten.index_put(f32[s, 3, 4], (None, bool[3]), f32[4], True)",
)
"""Calls without a form for many samples, whichever operands vary."""


def choices(op: Op) -> Iterator[set[Value]]:
    """All operands vary, or one alone does."""
    every = list(dict.fromkeys(op.operands))
    yield set(every)
    if len(every) > 1:
        yield from ({value} for value in every)


def many(op: Op, varying: set[Value], count: int | Symbol) -> Function:
    """``op`` for samples that differ in the arguments ``varying``."""
    size = count if isinstance(count, int) else symbol(count.name, count.lo)
    assert op.parent is not None
    args = op.parent.args
    region = Region([a.tensor.with_shape((size, *a.tensor.shape)) if a in varying else a.type for a in args])
    builder = Builder(OPS, region)
    results = batching.batched(builder, op, dict(zip(args, region.args, strict=True)), varying, size)
    for made, old in zip(results, op.results, strict=True):
        assert made.tensor.shape == (size, *old.tensor.shape)
        assert made.tensor.dtype == old.tensor.dtype
    builder.create("cf.yield", (tuple(results),))
    return Function("forward", region, input_symbols(region.args))


def stacked(
    function: Function, args: Sequence[Value], varying: set[Value], given: Sequence[Sequence[Tensor]]
):
    """What ``function`` gives for each sample, one after another."""
    runs = [
        harness.run(
            function, [each[s if a in varying else 0] for a, each in zip(args, given, strict=True)], {}
        )
        for s in range(COUNT)
    ]
    return [torch.stack(results) for results in zip(*runs, strict=True)]


@pytest.mark.conformance
@pytest.mark.parametrize("sample", CALLS, ids=str)
@pytest.mark.parametrize("open", [False, True], ids=["static", "dynamic"])
def test_samples_at_once_are_samples_one_by_one(sample: Sample, open: bool) -> None:
    fixed = harness.static(sample.at_dtype(F64), SIZES)
    generator = torch.Generator().manual_seed(0)
    given = [[operand.tensor(SIZES, generator) for _ in range(COUNT)] for operand in fixed.operands]
    tried = 0
    for number in range(1 + len(fixed.operands)):
        op = harness.op_of(fixed)
        sets = list(choices(op))
        if number >= len(sets) or batching.obstacle(op, sets[number]) is not None:
            continue
        varying, tried = sets[number], tried + 1
        args = op.parent.args
        count = Symbol("batch", 1) if open else COUNT
        function = many(op, varying, count)
        single = harness.function_of(op)
        tensors = [torch.stack(e) if a in varying else e[0] for a, e in zip(args, given, strict=True)]
        found = harness.run(function, tensors, {"batch": COUNT})
        harness.assert_equal(found, stacked(single, args, varying, given))
    assert bool(tried) != (str(sample) in REFUSED)


def test_every_rule_has_a_sample() -> None:
    assert batching.RULES.keys() <= {sample.name for sample in CALLS}
    assert batching.RULES.keys() <= OPS.keys()


def op_over(name: str, *types: object, **attrs: object) -> Op:
    region = Region(types)
    return Builder(OPS, region).create(name, tuple(region.args), dict(attrs))


def test_the_input_of_a_gate_may_vary() -> None:
    rows, weight, back = (TensorType(DType.F32, shape) for shape in ((2, 3), (5, 3), (3, 5)))
    region = Region([rows, weight, back, weight, rows])
    x, up, down, gate, given = region.args
    builder = Builder(OPS, region)
    op = builder.rg.ffn(x, up, down, gate, gate_input=given, activation="silu").op
    for varying in ({x}, {given}, {x, given}):
        assert batching.obstacle(op, varying) is None
    assert "weights" in (batching.obstacle(op, {gate}) or "")


def test_what_has_no_form_says_so() -> None:
    x, w = TensorType(DType.F32, (2, 3)), TensorType(DType.F32, (4, 3))
    product = op_over("aten.linear", x, w)
    assert "weights" in (batching.obstacle(product, {product.operands[1]}) or "")
    assert batching.obstacle(product, {product.operands[0]}) is None
    region = Region([x])
    found = Builder(OPS, region).create("aten.nonzero", (region.args[0],), symbols=(Symbol("u"),))
    assert "another size" in (batching.obstacle(found, set(region.args)) or "")
    assert "no form" in (batching.obstacle(op_over("rg.dim_value", value=3), set()) or "")
