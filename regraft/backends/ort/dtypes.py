"""Element types: ours, ONNX's, and the ones that ONNX Runtime's CPU kernels really take.

The CPU provider computes neither f16 nor bf16 (a bf16 MatMul fails, an f16 one silently runs in f32
and loses its rounding casts), so values of those types travel through a graph as f32, their
*carrier*, and are rounded where they enter or leave it.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from regraft.ir import DType

ONNX_TYPES: Mapping[DType, ir.DataType] = {
    DType.BOOL: ir.DataType.BOOL,
    DType.U8: ir.DataType.UINT8,
    DType.I8: ir.DataType.INT8,
    DType.I16: ir.DataType.INT16,
    DType.I32: ir.DataType.INT32,
    DType.I64: ir.DataType.INT64,
    DType.F16: ir.DataType.FLOAT16,
    DType.BF16: ir.DataType.BFLOAT16,
    DType.F32: ir.DataType.FLOAT,
    DType.F64: ir.DataType.DOUBLE,
}

#: The domains whose operators ONNX Runtime itself may have.
ORT_DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft"})

_WIDER: Mapping[DType, tuple[DType, ...]] = {
    DType.BOOL: (DType.BOOL, DType.U8, DType.I32),
    DType.U8: (DType.U8, DType.I32, DType.I64),
    DType.I8: (DType.I8, DType.I32, DType.I64),
    DType.I16: (DType.I16, DType.I32, DType.I64),
    DType.I32: (DType.I32, DType.I64),
    DType.I64: (DType.I64,),
    DType.F32: (DType.F32,),
    DType.F64: (DType.F64,),
}


def _types(text: str) -> frozenset[DType]:
    return frozenset(DType(name) for name in text.split())


_WIDE = _types("f32 f64 i32 i64")
_FLOATS = _types("f32 f64")
_F32 = _types("f32")
_BOOL = _types("bool")
_MOVABLE = _types("bool u8 i8 i16 i32 i64 f32 f64")

#: Op type -> the types its CPU kernel takes (a test holds this against onnxruntime's own list). It
#: says less than the newest release: older ones that we allow lack the narrow integers.
KERNELS: Mapping[str, frozenset[DType]] = {
    **dict.fromkeys(("Abs", "Sign"), _types("f32 f64 i8 i16 i32 i64 u8")),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "MatMul", "Pow", "Neg"), _WIDE),
    **dict.fromkeys(("Greater", "GreaterOrEqual", "Less", "LessOrEqual"), _WIDE),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceProd", "CumSum", "Range"), _WIDE),
    **dict.fromkeys(("ReduceMax", "ReduceMin"), _types("f32 f64 i32 i64")),
    **dict.fromkeys(("ArgMax", "ArgMin", "TopK"), _WIDE),
    **dict.fromkeys(("Max", "Min", "Clip"), _WIDE),
    **dict.fromkeys(("Floor", "Ceil", "Round", "Exp", "Log", "Sqrt", "Reciprocal"), _FLOATS),
    **dict.fromkeys(("Sin", "Cos", "Tanh", "Sigmoid", "Softmax", "LogSoftmax", "Gemm"), _FLOATS),
    **dict.fromkeys(("LayerNormalization", "FusedMatMul", "BatchNormalization", "MaxPool"), _FLOATS),
    **dict.fromkeys(("Erf", "Gelu", "Conv", "ConvTranspose", "AveragePool", "GridSample"), _F32),
    **dict.fromkeys(("Asin", "Acos", "Tan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "RNN", "LSTM"), _F32),
    **dict.fromkeys(("Atan", "LeakyRelu", "Resize", "QuickGelu", "FastGelu", "BiasGelu"), _F32),
    **dict.fromkeys(("InstanceNormalization", "MultiHeadAttention", "RotaryEmbedding"), _F32),
    **dict.fromkeys(("SimplifiedLayerNormalization", "GlobalAveragePool"), _F32),
    "GRU": _FLOATS,
    "Unique": _types("f32 f64 i8 i64"),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _F32),
    **dict.fromkeys(("And", "Or", "Xor", "Not"), _BOOL),
    **dict.fromkeys(("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"), _types("u8 i8 i16 i32 i64")),
    "Equal": _types("bool f32 f64 i32 i64"),
    "IsNaN": _FLOATS,
    "Mod": _types("f32 f64 i8 i16 i32 i64 u8"),
    "Where": _types("f32 f64 i32 i64 u8"),
    "NonZero": _types("bool f32 i32 i64 u8"),
    "Trilu": _types("bool f32 f64 i64"),
    "Pad": _types("bool f32 f64 i8 i32 i64 u8"),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"), _MOVABLE),
    **dict.fromkeys(("Concat", "Slice", "Transpose", "Reshape", "Expand", "Tile"), _MOVABLE),
    **dict.fromkeys(("Identity", "If", "Loop", "Cast", "Shape"), _MOVABLE),
}


def carrier(dtype: DType) -> DType:
    """The type in which values of ``dtype`` travel through a graph."""
    return DType.F32 if dtype in (DType.F16, DType.BF16) else dtype


def kernel_type(op_type: str, dtype: DType) -> DType | None:
    """The narrowest type at least as wide as ``dtype`` that the kernel takes; None when there is none."""
    allowed = KERNELS[op_type]
    return next((wide for wide in _WIDER.get(carrier(dtype), ()) if wide in allowed), None)
