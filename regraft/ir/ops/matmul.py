"""Matrix products. ``aten.linear`` and ``aten.matmul`` are the two forms that stay."""

from __future__ import annotations

from typing import Any

from regraft.ir.dims import Dim, eq
from regraft.ir.opdef import SAFE, CallSite, InferRule, Trait
from regraft.ir.ops.elementwise import cast
from regraft.ir.ops.rules import (
    Shape,
    broadcast,
    define,
    one,
    refuse,
    require,
    require_equal,
    require_float,
    require_rank,
    require_scalar_fits,
    result_types,
    same_dtype,
    spelling,
)
from regraft.ir.ops.views import view
from regraft.ir.types import TensorType

# -- type rules --------------------------------------------------------------------------------


def linear_type(
    site: CallSite, x: TensorType, weight: TensorType, bias: TensorType | None, suffix: str = ""
) -> TensorType:
    """``x[..., K]``, ``weight[N, K]``, ``bias[N]`` -> ``[..., N]``."""
    require(x.rank > 0, site, "the input has rank 0")
    require(weight.rank == 2, site, f"the {suffix}weight has rank {weight.rank}, expected 2")
    require_equal(site, x.shape[-1], weight.shape[1], f"the input's features and the {suffix}weight's")
    width = weight.shape[0]
    if bias is not None:
        require(bias.rank == 1, site, f"the {suffix}bias has rank {bias.rank}, expected 1")
        width = require_equal(site, width, bias.shape[0], f"the sizes of {suffix}weight and bias")
    dtype = same_dtype(site, (x, weight, bias))
    return TensorType(dtype, (*x.shape[:-1], width), x.device)


def _linear(site: CallSite) -> TensorType:
    """``linear_type``, of a vector as weight and of a bias that broadcasts to the result as well."""
    x, weight, bias = site.type("input"), site.type("weight"), site.optional("bias")
    if has_normal_form(weight, bias):
        return linear_type(site, x, weight, bias)
    vector = weight.rank == 1
    shape = matmul_shape(site, x.shape, weight.shape) if vector else linear_type(site, x, weight, None).shape
    if bias is not None:
        pairs = zip(reversed(bias.shape), reversed(shape), strict=False)
        fits = bias.rank <= len(shape) and all(a == 1 or eq(a, b) is True for a, b in pairs)
        require(fits, site, f"the bias {bias} does not broadcast to the result")
    return TensorType(same_dtype(site, (x, weight, bias)), shape, x.device)


def has_normal_form(weight: TensorType, bias: TensorType | None) -> bool:
    """Whether a linear layer has a matrix for a weight, and a bias of one number for each row of it."""
    if weight.rank == 1:
        return False
    return bias is None or (bias.rank == 1 and (bias.shape != (1,) or weight.shape[0] == 1))


def matmul_shape(site: CallSite, a: Shape, b: Shape) -> Shape:
    """The shape of ``a @ b`` as torch.matmul defines it, vectors and batches included."""
    if not a or not b:
        refuse(site, "an operand has rank 0")
    left = a if len(a) > 1 else (1, *a)
    right = b if len(b) > 1 else (*b, 1)
    require_equal(site, left[-1], right[-2], "the inner sizes")
    batch = broadcast(site, [left[:-2], right[:-2]])
    rows = () if len(a) == 1 else (left[-2],)
    columns = () if len(b) == 1 else (right[-1],)
    return (*batch, *rows, *columns)


def _matmul(site: CallSite) -> TensorType:
    a, b = site.type("self"), site.type("other")
    return TensorType(same_dtype(site, (a, b)), matmul_shape(site, a.shape, b.shape), a.device)


def _product(rank: int, first: str = "self", second: str = "mat2") -> InferRule:
    """``mm`` and ``bmm``: both operands have ``rank``, nothing broadcasts."""

    def infer(site: CallSite) -> TensorType:
        a, b = require_rank(site, first, rank), require_rank(site, second, rank)
        batch = tuple(
            require_equal(site, x, y, "the batch sizes")
            for x, y in zip(a.shape[:-2], b.shape[:-2], strict=True)
        )
        require_equal(site, a.shape[-1], b.shape[-2], "the inner sizes")
        return TensorType(same_dtype(site, (a, b)), (*batch, a.shape[-2], b.shape[-1]), a.device)

    return infer


def _with_addend(rule: InferRule, first: str, second: str) -> InferRule:
    """``beta * self + alpha * (first @ second)``, where ``self`` broadcasts to the product."""

    def infer(site: CallSite) -> TensorType:
        result = rule(site)
        assert isinstance(result, TensorType)
        dtype = same_dtype(site, (site.type("self"), site.type(first), site.type(second)))
        require_scalar_fits(site, dtype, site.attr("alpha"), site.attr("beta"))
        shape = broadcast(site, [site.type("self").shape, result.shape])
        require(len(shape) == result.rank, site, "the addend has more axes than the product")
        return result.with_shape(shape)

    return infer


def _vectors(site: CallSite) -> TensorType:
    a, b = require_rank(site, "self", 1), require_rank(site, "vec2", 1)
    return TensorType(same_dtype(site, (a, b)), (*a.shape, *b.shape), a.device)


def _vector_product(first: str, second: str, ranks: tuple[int, int]) -> InferRule:
    def infer(site: CallSite) -> TensorType:
        a, b = (require_rank(site, n, r) for n, r in zip((first, second), ranks, strict=True))
        return TensorType(same_dtype(site, (a, b)), matmul_shape(site, a.shape, b.shape), a.device)

    return infer


def _summed_products(site: CallSite) -> TensorType:
    found = _product(3, "batch1", "batch2")(site)
    assert isinstance(found, TensorType)
    return found.with_shape(found.shape[1:])


def _distances(site: CallSite) -> TensorType:
    """``x1[..., P, M]``, ``x2[..., R, M]`` -> ``[..., P, R]``."""
    a, b = require_float(site, "x1"), require_float(site, "x2")
    require(a.rank >= 2 and b.rank >= 2, site, "points need an axis of their own")
    require_equal(site, a.shape[-1], b.shape[-1], "the sizes of the points")
    batch = broadcast(site, [a.shape[:-2], b.shape[:-2]])
    return TensorType(same_dtype(site, (a, b)), (*batch, a.shape[-2], b.shape[-2]), a.device)


# -- counts ------------------------------------------------------------------------------------


def product_flops(inner: str) -> Any:
    """2 operations per element of the result and of the last axis of ``inner``."""

    def flops(site: CallSite) -> Dim:
        (result,) = result_types(site)
        assert isinstance(result, TensorType)
        return 2 * result.numel * site.type(inner).shape[-1]

    return flops


# -- decompositions ----------------------------------------------------------------------------


def is_constant(value: Any) -> bool:
    """Whether ``value`` depends on constants alone."""
    op = value.op
    if op is None:
        return False
    if op.has(Trait.CONSTANT_LIKE):
        return True
    return op.has(Trait.PURE) and not op.regions and bool(op.operands) and all(map(is_constant, op.operands))


def is_weight(value: Any) -> bool:
    """Whether ``x @ value`` is a linear layer: the matrix is known at compile time."""
    return value.tensor.rank == 2 and is_constant(value)


def product_of(b: Any, x: Any, y: Any) -> Any:
    """``x @ y``, as ``aten.linear`` when ``y`` is a weight."""
    if is_weight(y) and x.tensor.rank > 0:
        return b.aten.linear(x, b.aten.permute(y, (1, 0)), None)
    return b.aten.matmul(x, y)


def _in_normal_form(b: Any, op: Any) -> Any:
    """``linear`` with a vector for a weight, or a bias that broadcasts; None where it has neither."""
    x, weight, bias = op.operand("input"), op.operand("weight"), op.optional("bias")
    if has_normal_form(weight.tensor, None if bias is None else bias.tensor):
        return None
    matrix = weight.tensor.rank == 2
    if bias is None:
        return (b.aten.matmul(x, weight),)
    shape = bias.tensor.shape
    if matrix and all(size == 1 for size in shape[:-1]):
        row = view(b, bias, shape[-1:] or (1,))
        whole = row.tensor.shape == weight.tensor.shape[:1]
        return (b.aten.linear(x, weight, row if whole else b.aten.expand(row, weight.tensor.shape[:1])),)
    product = b.aten.linear(x, weight, None) if matrix else b.aten.matmul(x, weight)
    return (b.aten.add.Tensor(product, bias),)


def _by_matmul(second: str) -> Any:
    return one(lambda b, op: product_of(b, op.operand("self"), op.operand(second)))


def _times(b: Any, value: Any, factor: Any) -> Any:
    return value if factor == 1 else b.aten.mul.Scalar(value, factor)


def _sum_by_parts(first: str, second: str) -> Any:
    def rule(b: Any, op: Any) -> Any:
        x, y, addend = op.operand(first), op.operand(second), op.operand("self")
        alpha, beta = op.attr("alpha"), op.attr("beta")
        is_bias = addend.tensor.rank == 1 and addend.tensor.shape == y.tensor.shape[-1:]
        if alpha == beta == 1 and is_bias and is_weight(y):
            return b.aten.linear(x, b.aten.permute(y, (1, 0)), addend)
        product = _times(b, product_of(b, x, y), alpha)
        # torch ignores the addend at beta 0, even where it is nan.
        return product if beta == 0 else b.aten.add.Tensor(product, _times(b, addend, beta))

    return one(rule)


def _sum_of_products(b: Any, op: Any) -> Any:
    """``beta * self + alpha * sum(batch1 @ batch2)``."""
    alpha, beta = op.attr("alpha"), op.attr("beta")
    products = b.aten.matmul(op.operand("batch1"), op.operand("batch2"))
    total = _times(b, b.aten.sum.dim_IntList(products, (0,), dtype=products.tensor.dtype), alpha)
    return total if beta == 0 else b.aten.add.Tensor(total, _times(b, op.operand("self"), beta))


#: From this many points on torch takes distances from a product of matrices.
_MANY = 25


def _distance(b: Any, op: Any) -> Any:
    x, y, order, mode = op.operand("x1"), op.operand("x2"), op.attr("p"), op.attr("compute_mode")
    points = (x.tensor.shape[-2], y.tensor.shape[-2])
    many = any(not isinstance(n, int) or n > _MANY for n in points)
    if order == 2 and (mode == 1 or (mode != 2 and many)):
        return _euclidean(b, x, y)
    rows = view(b, x, (*x.tensor.shape[:-1], 1, x.tensor.shape[-1]))
    columns = view(b, y, (*y.tensor.shape[:-2], 1, *y.tensor.shape[-2:]))
    apart = b.aten.abs(b.aten.sub.Tensor(rows, columns))
    axes = (apart.tensor.rank - 1,)
    if order == float("inf"):
        return b.aten.amax(apart, axes)
    if order == 0:
        return b.aten.sum.dim_IntList(cast(b, b.aten.ne.Scalar(apart, 0), apart.tensor.dtype), axes)
    if order == 1:
        return b.aten.sum.dim_IntList(apart, axes)
    if order == 2:
        return b.aten.sqrt(b.aten.sum.dim_IntList(b.aten.mul.Tensor(apart, apart), axes))
    total = b.aten.sum.dim_IntList(b.aten.pow.Tensor_Scalar(apart, order), axes)
    return b.aten.pow.Tensor_Scalar(total, 1 / order)


def _euclidean(b: Any, x: Any, y: Any) -> Any:
    """``|x|² - 2 x y + |y|²``, not below 0, under the root."""
    last = x.tensor.rank - 1
    squares = b.aten.sum.dim_IntList(b.aten.mul.Tensor(x, x), (last,), True)
    others = b.aten.sum.dim_IntList(b.aten.mul.Tensor(y, y), (y.tensor.rank - 1,), True)
    products = b.aten.matmul(x, _flipped(b, y))
    apart = b.aten.add.Tensor(b.aten.mul.Scalar(products, -2), squares)
    return b.aten.sqrt(b.aten.clamp(b.aten.add.Tensor(apart, _flipped(b, others)), min=0))


def _flipped(b: Any, x: Any) -> Any:
    rank = x.tensor.rank
    return b.aten.permute(x, (*range(rank - 2), rank - 1, rank - 2))


def _outer(b: Any, op: Any) -> Any:
    column = op.operand("self")
    return b.aten.mul.Tensor(view(b, column, (*column.tensor.shape, 1)), op.operand("vec2"))


# -- the table ---------------------------------------------------------------------------------

OPS = (
    define(
        "aten.linear(Tensor input, Tensor weight, Tensor? bias=None)",
        _linear,
        SAFE,
        product_flops("input"),
        decompose=_in_normal_form,
    ),
    define("aten.matmul(Tensor self, Tensor other)", _matmul, SAFE, product_flops("self")),
    spelling("aten.mm(Tensor self, Tensor mat2)", _product(2), _by_matmul("mat2")),
    spelling("aten.bmm(Tensor self, Tensor mat2)", _product(3), _by_matmul("mat2")),
    spelling(
        "aten.addmm(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, Scalar alpha=1)",
        _with_addend(_product(2, "mat1", "mat2"), "mat1", "mat2"),
        _sum_by_parts("mat1", "mat2"),
    ),
    spelling(
        "aten.baddbmm(Tensor self, Tensor batch1, Tensor batch2, *, Scalar beta=1, Scalar alpha=1)",
        _with_addend(_product(3, "batch1", "batch2"), "batch1", "batch2"),
        _sum_by_parts("batch1", "batch2"),
    ),
    spelling("aten.mv(Tensor self, Tensor vec)", _vector_product("self", "vec", (2, 1)), _by_matmul("vec")),
    spelling(
        "aten.dot(Tensor self, Tensor tensor)",
        _vector_product("self", "tensor", (1, 1)),
        _by_matmul("tensor"),
    ),
    spelling(
        "aten.addmv(Tensor self, Tensor mat, Tensor vec, *, Scalar beta=1, Scalar alpha=1)",
        _with_addend(_vector_product("mat", "vec", (2, 1)), "mat", "vec"),
        _sum_by_parts("mat", "vec"),
    ),
    spelling(
        "aten.addbmm(Tensor self, Tensor batch1, Tensor batch2, *, Scalar beta=1, Scalar alpha=1)",
        _with_addend(_summed_products, "batch1", "batch2"),
        one(_sum_of_products),
    ),
    spelling(
        "aten.cdist(Tensor x1, Tensor x2, float p=2, int? compute_mode=None)", _distances, one(_distance)
    ),
    spelling("aten.outer(Tensor self, Tensor vec2)", _vectors, one(_outer)),
)
