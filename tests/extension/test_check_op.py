"""``check_op``: good definitions pass, and each way of being wrong is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from regraft import Example, OnnxOp, op_from_torch
from regraft.errors import NumericsMismatch
from regraft.ir import DType, OpDef, define, symbol
from regraft.testing import check_op, op_cases
from tests.extension.fancy import fancy, lying, on_onnx, same_type, twins, two_ops

SAMPLES = [
    Example(lambda op, x: op.mylib.fancy(x, 3.0), ("f32[B, 8]",)),
    Example(lambda op, x: op.mylib.fancy(x), ("f64[2, B, T]",)),
]
GOOD = op_from_torch(fancy, infer=same_type, decompose=two_ops, lowerings={"ort": on_onnx})


def test_a_good_definition() -> None:
    assert check_op(GOOD, SAMPLES) == {}
    ids = {case.id for case in op_cases(GOOD, SAMPLES)}
    assert len(ids) == 8
    assert "mylib.fancy-sample1-lowering-ort" in ids


def test_a_definition_without_a_rule() -> None:
    assert check_op(op_from_torch(fancy, lowerings={"ort": on_onnx}), SAMPLES) == {}
    sample = Example(lambda op, x, y: op.mylib.twins(x, (y, x), None, (0,)), ("f32[B, 8]", "f32[B, 8]"))
    assert check_op(op_from_torch(twins), [sample]) == {}


def test_a_definition_that_python_runs() -> None:
    doubled = define("mylib.doubled(Tensor x)", same_type, eager=lambda x: x * 2)
    assert check_op(doubled, [Example(lambda op, x: op.mylib.doubled(x), ("f32[B]",))]) == {}


def test_what_a_back_end_does_not_take_is_told() -> None:
    (reason,) = check_op(op_from_torch(fancy, onnx=OnnxOp("com.mycompany", "Fancy")), SAMPLES[:1]).values()
    assert "no kernel for com.mycompany::Fancy" in reason


def wrong(**fields: Any) -> OpDef:
    return replace(GOOD, **fields)


def wide_type(site: Any) -> Any:
    return site.type("x").with_dtype(DType.F64)


def open_type(site: Any) -> Any:
    """A rule that answers another size than the operand's, unless that is fixed."""
    x = site.type("x")
    return x if x.is_static else x.with_shape((symbol("C"), 8))


def writing(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return x.relu_() * alpha


def drawing(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return torch.relu(x) * alpha + torch.rand_like(x)


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (wrong(infer=wide_type), "gave torch.float32 [5, 8] where its type rule, or its fake function"),
        (wrong(infer=open_type), "the type rule of mylib.fancy promises ['f32[C, 8]'], and the op gives"),
        (wrong(eager=writing), "wrote to its arguments"),
        (wrong(eager=drawing), "something else the second time"),
        (wrong(decompose=lambda op, f: None), "has nothing for this use"),
        (wrong(lowerings={"otr": on_onnx}), "no back end of regraft's"),
    ],
)
def test_a_definition_that_is_wrong(op: OpDef, words: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_op(op, SAMPLES[:1])
    assert words in str(caught.value)


def test_a_fake_function_that_is_wrong() -> None:
    with pytest.raises(AssertionError, match=r"'mylib\.lying' gave torch\.float32 \[10\]"):
        check_op(op_from_torch(lying), [Example(lambda op, x: op.mylib.lying(x), ("f32[B]",))])


@pytest.mark.parametrize(
    "op",
    [
        wrong(decompose=lambda op, f: (op.aten.relu(f.operand("x")),)),
        wrong(lowerings={"ort": lambda e, op: e.op("Relu", e.operand(op, "x"))}),
    ],
    ids=["decomposition", "lowering"],
)
def test_values_that_are_wrong(op: OpDef) -> None:
    with pytest.raises(NumericsMismatch) as caught:
        check_op(op, SAMPLES[:1])
    assert any("in the case mylib.fancy-sample0-" in note for note in caught.value.__notes__)


def nearly(op: Any, fancy: Any) -> Any:
    """Off by less than the tolerance of f32."""
    return (op.aten.mul.Scalar(op.aten.relu(fancy.operand("x")), fancy.attr("alpha") * (1 + 1e-6)),)


def test_a_decomposition_is_compared_in_fp64() -> None:
    with pytest.raises(NumericsMismatch) as caught:
        check_op(wrong(decompose=nearly), SAMPLES[:1])
    assert "the decomposition of mylib.fancy in fp64 at B=5" in caught.value.__notes__


def narrow(x: torch.Tensor, alpha: float) -> torch.Tensor:
    if x.dtype is torch.float64:
        raise NotImplementedError("narrow is not implemented for 'Double'")
    return torch.relu(x) * alpha


def test_an_op_without_a_kernel_for_fp64_is_compared_in_its_own_type() -> None:
    assert check_op(wrong(eager=narrow), SAMPLES[:1]) == {}
    with pytest.raises(NumericsMismatch):
        check_op(wrong(eager=narrow, decompose=lambda op, f: (op.aten.relu(f.operand("x")),)), SAMPLES[:1])


def test_samples_are_needed() -> None:
    with pytest.raises(AssertionError, match="no samples"):
        check_op(GOOD, [])
