"""What may be left out, moved, or run early: ops with regions are as harmless as what is in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from regraft.ir import DType, Op, TensorType, Value, is_dead, is_pure, is_speculatable
from tests.ir.graphs import f32, module, region

FLAG = TensorType(DType.BOOL, ())
Inner = Callable[[Any, Value], Any]


def harmless(op: Any, x: Value) -> Value:
    return op.aten.relu(x)


def raising(op: Any, x: Value) -> Value:
    index = op.aten.full((1,), 7, dtype=DType.I64)
    return op.aten.index.Tensor(x, (index,))


def checking(op: Any, x: Value) -> Value:
    op.rg.check(op.aten.full((), True, dtype=DType.BOOL), "holds")
    return x


def drawing(op: Any, x: Value) -> Value:
    op.create("my.draw", (x,))
    return x


def nested(name: str, inner: Inner) -> Inner:
    def build(op: Any, x: Value) -> Value:
        body = region(lambda op, x: [inner(op, x)], [x.type])
        flag = op.aten.full((), False, dtype=DType.BOOL)
        if name == "cf.cond":
            other = region(lambda op, x: [x], [x.type])
            return op.create(name, (flag, (x,)), regions=[body, other], result_types=[x.type]).result
        test = region(lambda op, x: [op.aten.full((), False, dtype=DType.BOOL)], [x.type])
        return op.create(name, ((x,),), regions=[test, body], result_types=[x.type]).result

    return build


def root(inner: Inner, uses: bool = True) -> Op:
    made = module(lambda op, x: [inner(op, x), x][0 if uses else 1 :][:1], [f32(1)])
    return next(op for op in reversed(list(made.main.body.ops)) if op.name != "cf.yield")


@pytest.mark.parametrize(
    ("inner", "pure", "speculatable"),
    [(harmless, True, True), (raising, True, False), (checking, False, False), (drawing, False, False)],
)
@pytest.mark.parametrize(
    "around", [("cf.cond",), ("cf.while",), ("cf.cond", "cf.cond"), ("cf.while", "cf.cond")]
)
def test_regions_decide(inner: Inner, pure: bool, speculatable: bool, around: tuple[str, ...]) -> None:
    build = inner
    for name in around:
        build = nested(name, build)
    op = root(build)
    assert op.name == around[-1]
    assert is_pure(op) is pure
    assert is_speculatable(op) is (speculatable and "cf.while" not in around), "a loop may have no end"
    assert not is_dead(op)
    assert is_dead(root(build, uses=False)) is pure
