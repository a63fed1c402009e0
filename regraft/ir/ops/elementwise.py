"""Arithmetic, comparisons, logic, selection and casts: result element i from the operands' elements i."""

from __future__ import annotations

from typing import Any

from regraft.ir.dtypes import DType
from regraft.ir.opdef import CallSite, DecomposeRule, InferRule, OpDef, Trait
from regraft.ir.ops.rules import (
    COMMUTATIVE,
    ELEMENTWISE,
    broadcast_type,
    define,
    drop,
    dtype_attr,
    one,
    per_result,
    refuse,
    require,
    require_float,
    require_scalar_fits,
    same_dtype,
    same_float_type,
    same_type,
    scalar_kind,
    spelling,
)
from regraft.ir.types import TensorType

# -- type rules --------------------------------------------------------------------------------


def binary(first: str = "self", second: str = "other", result: DType | None = None) -> InferRule:
    """Two tensors of one dtype, broadcast; the result has that dtype or ``result``."""

    def infer(site: CallSite) -> TensorType:
        types = (site.type(first), site.type(second))
        dtype = same_dtype(site, types)
        return broadcast_type(site, types, result or dtype)

    return infer


def with_scalar(attr: str = "other", operand: str = "self", result: DType | None = None) -> InferRule:
    """A tensor and a scalar that does not promote it."""

    def infer(site: CallSite) -> TensorType:
        tensor = site.type(operand)
        require_scalar_fits(site, tensor.dtype, site.attr(attr))
        return tensor.with_dtype(result or tensor.dtype)

    return infer


def floating(rule: InferRule, *operands: str) -> InferRule:
    """``rule`` for float operands: torch computes these ops in f32 for ints, the IR wants the cast."""

    def infer(site: CallSite) -> Any:
        for name in operands or ("self",):
            require_float(site, name)
        return rule(site)

    return infer


def bits(rule: InferRule) -> InferRule:
    """``rule`` for bools and integers."""

    def infer(site: CallSite) -> Any:
        found = site.type("self")
        require(found.dtype.kind not in ("float", "complex"), site, f"{found.dtype} has no bits to combine")
        return rule(site)

    return infer


def _signed(site: CallSite) -> TensorType:
    found = site.type("self")
    require(found.dtype != DType.BOOL, site, "operand 'self' is bool, expected numbers")
    return found


def _magnitude(site: CallSite) -> TensorType:
    found = site.type("self")
    return found.with_dtype({DType.C64: DType.F32, DType.C128: DType.F64}.get(found.dtype, found.dtype))


def _to_bool(site: CallSite) -> TensorType:
    return site.type("self").with_dtype(DType.BOOL)


def _logical(site: CallSite) -> TensorType:
    return broadcast_type(site, (site.type("self"), site.type("other")), DType.BOOL)


def _clamp(site: CallSite) -> TensorType:
    tensor = site.type("self")
    low, high = site.attr("min"), site.attr("max")
    require(low is not None or high is not None, site, "neither min nor max is given")
    require_scalar_fits(site, tensor.dtype, low, high)
    return tensor


def _squared(site: CallSite) -> TensorType:
    tensor = site.type("self")
    return tensor.with_dtype(DType.I64) if tensor.dtype == DType.BOOL else tensor


def _hardtanh(site: CallSite) -> TensorType:
    tensor = site.type("self")
    require_scalar_fits(site, tensor.dtype, site.attr("min_val"), site.attr("max_val"))
    return tensor


def _clamp_tensor(site: CallSite) -> TensorType:
    found = (site.type("self"), site.optional("min"), site.optional("max"))
    types = [t for t in found if t is not None]
    require(len(types) > 1, site, "neither min nor max is given")
    return broadcast_type(site, types, same_dtype(site, types))


def _where(site: CallSite) -> TensorType:
    condition, types = site.type("condition"), (site.type("self"), site.type("other"))
    require(condition.dtype == DType.BOOL, site, f"the condition is {condition.dtype}, expected bool")
    return broadcast_type(site, (condition, *types), same_dtype(site, types))


def _where_scalar(tensor: str, scalar: str) -> InferRule:
    def infer(site: CallSite) -> TensorType:
        condition, found = site.type("condition"), site.type(tensor)
        require(condition.dtype == DType.BOOL, site, f"the condition is {condition.dtype}, expected bool")
        require_scalar_fits(site, found.dtype, site.attr(scalar))
        return broadcast_type(site, (condition, found), found.dtype)

    return infer


def _where_scalars(site: CallSite) -> TensorType:
    return site.type("condition").with_dtype(scalars_dtype(site.attr("self"), site.attr("other")))


def scalars_dtype(*values: Any) -> DType:
    """The dtype torch gives a tensor made of Python scalars alone."""
    return (DType.BOOL, DType.I64, DType.F32, DType.C64)[max(scalar_kind(v) for v in values)]


def _masked_fill(site: CallSite) -> TensorType:
    tensor, mask = site.type("self"), site.type("mask")
    require(mask.dtype == DType.BOOL, site, f"the mask is {mask.dtype}, expected bool")
    require_scalar_fits(site, tensor.dtype, site.attr("value"))
    return broadcast_type(site, (tensor, mask), tensor.dtype)


def _masked_fill_tensor(site: CallSite) -> TensorType:
    tensor, mask, value = site.type("self"), site.type("mask"), site.type("value")
    require(mask.dtype == DType.BOOL, site, f"the mask is {mask.dtype}, expected bool")
    require(value.rank == 0, site, f"the value has rank {value.rank}, expected 0")
    return broadcast_type(site, (tensor, mask), same_dtype(site, (tensor, value)))


def _pow_scalar_base(site: CallSite) -> TensorType:
    tensor = site.type("exponent")
    require_scalar_fits(site, tensor.dtype, site.attr("self"))
    return tensor


def _rounding(rule: InferRule) -> InferRule:
    def infer(site: CallSite) -> Any:
        mode = site.attr("rounding_mode")
        if mode is None:
            require_float(site, "self")
        elif mode not in ("floor", "trunc"):
            refuse(site, f"rounding_mode is {mode!r}, expected 'floor' or 'trunc'")
        return rule(site)

    return infer


def _cast(site: CallSite) -> TensorType:
    tensor = site.type("self")
    return tensor.with_dtype(dtype_attr(site, tensor.dtype))


def _type_as(site: CallSite) -> TensorType:
    return site.type("self").with_dtype(site.type("other").dtype)


# -- decompositions ----------------------------------------------------------------------------


def cast(b: Any, value: Any, dtype: DType) -> Any:
    """``value`` as ``dtype``; itself when it is that already."""
    return value if value.tensor.dtype == dtype else b.aten._to_copy(value, dtype=dtype)


def as_bool(b: Any, value: Any) -> Any:
    """``value != 0``."""
    return value if value.tensor.dtype == DType.BOOL else b.aten.ne.Scalar(value, 0)


def scalar_tensor(b: Any, value: Any, dtype: DType) -> Any:
    return b.aten.full((), value, dtype=dtype)


def _scaled(value: Any, alpha: Any) -> Any:
    return value if alpha == 1 else value * alpha


def _sub_scalar(b: Any, op: Any) -> Any:
    return b.aten.add.Scalar(op.operand("self"), _scaled(-op.attr("other"), op.attr("alpha")))


def _rsub_scalar(b: Any, op: Any) -> Any:
    x, alpha = op.operand("self"), op.attr("alpha")
    negated = b.aten.neg(x) if alpha == 1 else b.aten.mul.Scalar(x, -alpha)
    return b.aten.add.Scalar(negated, op.attr("other"))


def _logical_by(name: str) -> Any:
    def rule(b: Any, op: Any) -> Any:
        return b.call(name, (as_bool(b, op.operand("self")), as_bool(b, op.operand("other"))), {})

    return one(rule)


def _same_as(name: str) -> Any:
    """Decompose to the op ``name`` over the same arguments."""
    return one(lambda b, op: b.call(name, tuple(op.arguments().values()), {}))


def _where_of(b: Any, op: Any) -> Any:
    dtype = op.result.tensor.dtype
    args = op.arguments()
    picked = [
        scalar_tensor(b, args[name], dtype) if name in op.attrs else args[name] for name in ("self", "other")
    ]
    return b.aten.where.self(args["condition"], *picked)


def _masked_fill_by_where(b: Any, op: Any) -> Any:
    value = op.arguments()["value"]
    if "value" in op.attrs:
        value = scalar_tensor(b, value, op.result.tensor.dtype)
    return b.aten.where.self(op.operand("mask"), value, op.operand("self"))


def _clamp_by_extrema(b: Any, op: Any) -> Any:
    value, low, high = op.operand("self"), op.optional("min"), op.optional("max")
    if low is not None:
        value = b.aten.maximum(value, low)
    return value if high is None else b.aten.minimum(value, high)


def _cast_to_result(b: Any, op: Any) -> Any:
    return cast(b, op.operand("self"), op.result.tensor.dtype)


def _addcmul(combine: str) -> Any:
    def rule(b: Any, op: Any) -> Any:
        term = b.call(f"aten.{combine}.Tensor", (op.operand("tensor1"), op.operand("tensor2")), {})
        value = op.attr("value")
        return b.aten.add.Tensor(op.operand("self"), term if value == 1 else b.aten.mul.Scalar(term, value))

    return one(rule)


def _addcmul_type(site: CallSite) -> TensorType:
    types = (site.type("self"), site.type("tensor1"), site.type("tensor2"))
    require_scalar_fits(site, types[0].dtype, site.attr("value"))
    return broadcast_type(site, types, same_dtype(site, types))


# -- the table ---------------------------------------------------------------------------------


def _unary(name: str, infer: InferRule | None = None, params: str = "", count: int = 1) -> OpDef:
    return define(f"aten.{name}(Tensor self{params})", infer or same_type(), ELEMENTWISE, per_result(count))


def _float(name: str, params: str = "", count: int = 1) -> OpDef:
    return _unary(name, same_float_type(), params, count)


def _tensors(name: str, infer: InferRule, traits: Trait = ELEMENTWISE, params: str = "") -> OpDef:
    return define(f"aten.{name}(Tensor self, Tensor other{params})", infer, traits, per_result())


def _scalar(name: str, infer: InferRule, traits: Trait = ELEMENTWISE, params: str = "") -> OpDef:
    return define(f"aten.{name}(Tensor self, Scalar other{params})", infer, traits, per_result())


#: Integer division raises on zero.
DIVIDES = Trait.PURE | Trait.ELEMENTWISE


UNARY = (
    _unary("abs", _magnitude),
    _unary("neg", _signed),
    _unary("sign"),
    _unary("relu", _signed),
    _unary("floor"),
    _unary("ceil"),
    _unary("round"),
    _unary("trunc"),
    _unary("isnan", _to_bool),
    _float("exp"),
    _float("exp2"),
    _float("expm1"),
    _float("log"),
    _float("log2"),
    _float("log1p"),
    _float("sqrt"),
    _float("rsqrt"),
    _float("reciprocal"),
    _float("sin"),
    _float("cos"),
    _float("tanh"),
    _float("erf"),
    _float("sigmoid"),
    _float("silu", count=2),
    _float("mish", count=3),
    _float("hardswish", count=3),
    _float("hardsigmoid", count=2),
    _float("gelu", ", *, str approximate='none'", count=4),
    _float("elu", ", Scalar alpha=1, Scalar scale=1, Scalar input_scale=1", count=3),
    _float("leaky_relu", ", Scalar negative_slope=0.01"),
    _float("softplus", ", Scalar beta=1, Scalar threshold=20", count=3),
    _unary("clamp", _clamp, ", Scalar? min=None, Scalar? max=None"),
    _unary("bitwise_not", bits(same_type())),
)

ARITHMETIC = (
    _tensors("add.Tensor", binary(), COMMUTATIVE, ", *, Scalar alpha=1"),
    _tensors("sub.Tensor", binary(), params=", *, Scalar alpha=1"),
    _tensors("mul.Tensor", binary(), COMMUTATIVE),
    _tensors("div.Tensor", floating(binary())),
    _tensors("div.Tensor_mode", _rounding(binary()), DIVIDES, ", *, str? rounding_mode"),
    _tensors("remainder.Tensor", binary(), DIVIDES),
    _tensors("maximum", binary(), COMMUTATIVE),
    _tensors("minimum", binary(), COMMUTATIVE),
    _tensors("atan2", floating(binary())),
    _scalar("add.Scalar", with_scalar(), params=", Scalar alpha=1"),
    _scalar("mul.Scalar", with_scalar()),
    _scalar("div.Scalar", floating(with_scalar())),
    _scalar("div.Scalar_mode", _rounding(with_scalar()), DIVIDES, ", *, str? rounding_mode"),
    _scalar("remainder.Scalar", with_scalar(), DIVIDES),
    define(
        "aten.pow.Tensor_Scalar(Tensor self, Scalar exponent)",
        with_scalar("exponent"),
        ELEMENTWISE,
        per_result(),
    ),
    define(
        "aten.pow.Tensor_Tensor(Tensor self, Tensor exponent)",
        binary(second="exponent"),
        ELEMENTWISE,
        per_result(),
    ),
    define("aten.pow.Scalar(Scalar self, Tensor exponent)", _pow_scalar_base, ELEMENTWISE, per_result()),
)

COMPARISONS = (
    *(
        _tensors(
            f"{name}.Tensor", binary(result=DType.BOOL), COMMUTATIVE if name in ("eq", "ne") else ELEMENTWISE
        )
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
    ),
    *(
        _scalar(f"{name}.Scalar", with_scalar(result=DType.BOOL))
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
    ),
)

LOGIC = (
    _tensors("bitwise_and.Tensor", bits(binary()), COMMUTATIVE),
    _tensors("bitwise_or.Tensor", bits(binary()), COMMUTATIVE),
    _tensors("bitwise_xor.Tensor", bits(binary()), COMMUTATIVE),
)

SELECTION = (
    define("aten.where.self(Tensor condition, Tensor self, Tensor other)", _where, ELEMENTWISE, per_result()),
    define("aten._to_copy(Tensor self, *, ScalarType? dtype=None)", _cast, ELEMENTWISE),
)


def _spelling(schema: str, infer: InferRule, decompose: DecomposeRule, traits: Trait = ELEMENTWISE) -> OpDef:
    return spelling(schema, infer, decompose, traits)


SPELLINGS = (
    _spelling("aten.sub.Scalar(Tensor self, Scalar other, Scalar alpha=1)", with_scalar(), one(_sub_scalar)),
    _spelling(
        "aten.rsub.Scalar(Tensor self, Scalar other, Scalar alpha=1)", with_scalar(), one(_rsub_scalar)
    ),
    _spelling(
        "aten.floor_divide(Tensor self, Tensor other)",
        binary(),
        one(
            lambda b, op: b.aten.div.Tensor_mode(
                op.operand("self"), op.operand("other"), rounding_mode="floor"
            )
        ),
        DIVIDES,
    ),
    _spelling(
        "aten.square(Tensor self)",
        _squared,
        one(lambda b, op: b.aten.pow.Tensor_Scalar(cast(b, op.operand("self"), op.result.tensor.dtype), 2)),
    ),
    _spelling(
        "aten.clamp_min(Tensor self, Scalar min)",
        with_scalar("min"),
        one(lambda b, op: b.aten.clamp(op.operand("self"), min=op.attr("min"))),
    ),
    _spelling(
        "aten.clamp_max(Tensor self, Scalar max)",
        with_scalar("max"),
        one(lambda b, op: b.aten.clamp(op.operand("self"), max=op.attr("max"))),
    ),
    _spelling(
        "aten.clamp.Tensor(Tensor self, Tensor? min=None, Tensor? max=None)",
        _clamp_tensor,
        one(_clamp_by_extrema),
    ),
    _spelling(
        "aten.relu6(Tensor self)", same_type(), one(lambda b, op: b.aten.clamp(op.operand("self"), 0, 6))
    ),
    _spelling(
        "aten.hardtanh(Tensor self, Scalar min_val=-1, Scalar max_val=1)",
        _hardtanh,
        one(lambda b, op: b.aten.clamp(op.operand("self"), op.attr("min_val"), op.attr("max_val"))),
    ),
    *(
        _spelling(
            f"aten.__{name}__.Tensor(Tensor self, Tensor other)",
            bits(binary()),
            _same_as(f"aten.bitwise_{name}.Tensor"),
        )
        for name in ("and", "or", "xor")
    ),
    *(
        _spelling(
            f"aten.logical_{name}(Tensor self, Tensor other)",
            _logical,
            _logical_by(f"aten.bitwise_{name}.Tensor"),
        )
        for name in ("and", "or", "xor")
    ),
    _spelling(
        "aten.logical_not(Tensor self)",
        _to_bool,
        one(lambda b, op: b.aten.bitwise_not(as_bool(b, op.operand("self")))),
    ),
    _spelling(
        "aten.where.ScalarOther(Tensor condition, Tensor self, Scalar other)",
        _where_scalar("self", "other"),
        one(_where_of),
    ),
    _spelling(
        "aten.where.ScalarSelf(Tensor condition, Scalar self, Tensor other)",
        _where_scalar("other", "self"),
        one(_where_of),
    ),
    _spelling(
        "aten.where.Scalar(Tensor condition, Scalar self, Scalar other)", _where_scalars, one(_where_of)
    ),
    _spelling(
        "aten.masked_fill.Scalar(Tensor self, Tensor mask, Scalar value)",
        _masked_fill,
        one(_masked_fill_by_where),
    ),
    _spelling(
        "aten.masked_fill.Tensor(Tensor self, Tensor mask, Tensor value)",
        _masked_fill_tensor,
        one(_masked_fill_by_where),
    ),
    _spelling(
        "aten.addcmul(Tensor self, Tensor tensor1, Tensor tensor2, *, Scalar value=1)",
        _addcmul_type,
        _addcmul("mul"),
    ),
    _spelling(
        "aten.addcdiv(Tensor self, Tensor tensor1, Tensor tensor2, *, Scalar value=1)",
        floating(_addcmul_type),
        _addcmul("div"),
    ),
    _spelling(
        "aten.to.dtype(Tensor self, ScalarType dtype)",
        _cast,
        one(_cast_to_result),
    ),
    _spelling("aten.to.dtype_layout(Tensor self, *, ScalarType? dtype=None)", _cast, one(_cast_to_result)),
    _spelling("aten.to.device(Tensor self, ScalarType dtype)", _cast, one(_cast_to_result)),
    spelling("aten.type_as(Tensor self, Tensor other)", _type_as, one(_cast_to_result)),
    *(
        spelling(f"aten.{name}(Tensor self)", same_type(), drop())
        for name in ("clone", "alias", "detach", "contiguous", "lift_fresh_copy")
    ),
)

OPS = (*UNARY, *ARITHMETIC, *COMPARISONS, *LOGIC, *SELECTION, *SPELLINGS)
