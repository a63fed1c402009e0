"""Calls of functions, sorting, counting, scattering and other indexing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.ops.sample import BOOL, F64, I32, I64, N, Operand, S, Sample, T, call, index, positive


def table() -> Iterator[Sample]:
    yield from _functions()
    yield from _products()
    yield from _reductions()
    yield from _orders()
    yield from _scatters()
    yield from _bags()
    yield from _parts()
    yield from _empties()


def _functions() -> Iterator[Sample]:
    for name in ("sinh", "cosh", "asinh", "atan", "erfc", "signbit", "isinf"):
        yield call(f"aten.{name}", T(S, 3))
    unit = replace(T(S, 3), low=-0.9, high=0.9)
    for name in ("tan", "asin", "acos", "atanh"):
        yield call(f"aten.{name}", unit)
    yield call("aten.acosh", replace(T(S, 3), low=1.1, high=3.0))
    yield call("aten.log10", positive(S, 3))
    yield call("aten.round.decimals", T(S, 3), decimals=2)
    yield call("aten.round.decimals", T(S, 3), decimals=-1)
    yield call("aten.signbit", T(S, 3, dtype=I64))
    yield call("aten.signbit", T(S, 3, dtype=BOOL))
    yield call("aten.square", T(S, 3, dtype=BOOL))
    yield call("aten.isinf", T(S, 3, dtype=I64))
    for name in (
        "copysign.Tensor",
        "hypot",
        "fmax",
        "fmin",
        "max.other",
        "min.other",
        "clamp_min.Tensor",
        "clamp_max.Tensor",
    ):
        yield call(f"aten.{name}", T(S, 3), T(3))
    for name in ("fmax", "max.other", "min.other"):
        yield call(f"aten.{name}", T(S, 3, dtype=I64), T(3, dtype=I64))
    yield call("aten.fmod.Tensor", T(S, 3), positive(3))
    yield call("aten.fmod.Scalar", T(S, 3), 0.7)
    yield call("aten.fmod.Scalar", T(S, 3, dtype=I64), 3)
    yield call("aten._prelu_kernel", T(S, 3, 4), T(3, 1))
    count = index(3, below=70)
    for name in ("bitwise_left_shift", "bitwise_right_shift", "__lshift__", "__rshift__"):
        yield call(f"aten.{name}.Tensor", T(S, 3, dtype=I64), count)
        yield call(f"aten.{name}.Tensor", T(S, dtype=I32), index(S, below=40, dtype=I32))
    for name in ("__lshift__", "__rshift__"):
        yield call(f"aten.{name}.Scalar", T(S, 3, dtype=I64), 3)
    for kind in ("and", "or", "xor"):
        for name in (f"bitwise_{kind}", f"__{kind}__"):
            yield call(f"aten.{name}.Scalar", T(S, dtype=I64), 6)
            yield call(f"aten.{name}.Scalar", T(S, dtype=BOOL), True)


def _products() -> Iterator[Sample]:
    yield call("aten.mv", T(S, 4), T(4))
    yield call("aten.dot", T(S), T(S))
    yield call("aten.addmv", T(S), T(S, 4), T(4), beta=0.5, alpha=2)
    yield call("aten.addbmm", T(S, 3), T(N, S, 4), T(N, 4, 3))
    yield call("aten.addbmm", T(3), T(N, S, 4), T(N, 4, 3), beta=0, alpha=0.5)
    for order in (2.0, 1.0, 0.0, 3.0, float("inf")):
        yield call("aten.cdist", T(3, 4), T(5, 4), order)
    yield call("aten.cdist", T(N, S, 4), T(N, 3, 4))
    yield call("aten.cdist", T(N, S, 4), T(3, 4), 1.0)
    yield call("aten.cdist", T(N, S, 4), T(3, 4), 2.0, 2)


def _reductions() -> Iterator[Sample]:
    x = T(S, 3, N)
    for name in ("any.dims", "all.dims"):
        yield call(f"aten.{name}", x, (0, -1))
        yield call(f"aten.{name}", T(S, 2, dtype=BOOL), (1,), True)
        yield call(f"aten.{name}", T(S, 2, dtype=BOOL), None)
    yield call("aten.prod.dim_int", x, 1)
    yield call("aten.prod.dim_int", T(3, 2, dtype=I32), 0, True)
    yield call("aten.prod", T(S, 2))
    yield call("aten.prod", T(3, dtype=I64), dtype=F64)
    for name in ("var_mean", "std_mean"):
        yield call(f"aten.{name}.correction", T(S, 3, 4), (1,), correction=0)
        yield call(f"aten.{name}.correction", T(S, 3, 4), (0, 2), correction=0, keepdim=True)
        yield call(f"aten.{name}.correction", T(S, 3, 4), None)


def _orders() -> Iterator[Sample]:
    x = T(S, 5, N)
    for name, more in (("sort", {}), ("sort.stable", {"stable": True})):
        yield call(f"aten.{name}", x, dim=1, descending=True, **more)
        yield call(f"aten.{name}", T(S, N), dim=-1, descending=False, **more)
        yield call(f"aten.{name}", T(S + 3, dtype=I64), dim=0, descending=False, **more)
    yield call("aten.kthvalue", x, 2, 1)
    yield call("aten.kthvalue", T(S, 4), S, 0, True)
    yield call("aten.median.dim", x, 1)
    yield call("aten.median.dim", T(S, 4), 0, True)
    yield call("aten.median", T(S, 3))
    yield call("aten.median", T(7, dtype=I64))
    yield call("aten.aminmax", x)
    yield call("aten.aminmax", x, dim=-1, keepdim=True)
    yield call("aten.cumprod", x, 1)
    yield call("aten.cumprod", T(S, 3), 0)
    yield call("aten.cumprod", T(4, dtype=I32), 0)
    yield call("aten.logcumsumexp", x, -1)
    for name in ("cummax", "cummin"):
        yield call(f"aten.{name}", x, 1)
        yield call(f"aten.{name}", T(S, dtype=I64), 0)
        yield call(f"aten.{name}", T(S, 3, dtype=BOOL), 0)
    edges = Operand(x.dtype, (4,), 0.0, 0.0)
    yield call("aten.searchsorted.Tensor", edges, T(S, 3))
    yield call("aten.searchsorted.Tensor", Operand(x.dtype, (S, 4), 0.0, 0.0), T(S, 3), right=True)
    yield call("aten.searchsorted.Tensor", edges, T(), side="right", out_int32=True)
    yield call("aten.bucketize.Tensor", T(S, 3), edges)
    yield call("aten.bucketize.Tensor", T(S, 3), edges, right=True, out_int32=True)
    yield call("aten.histc", T(S, 3), 4, -1, 1)
    yield call("aten.histc", T(S, 3), 7, -2, 2)
    yield call("aten.histc", T(S, 5), 6)
    yield call("aten.histc", T(S, 0), 3)
    yield call("aten.one_hot", index(S, 3, below=5), 5)


def _scatters() -> Iterator[Sample]:
    x = T(S, 3, 4)
    # No place is written twice: what is written last then has no say.
    rows = Operand(I64, (S, 1, 4), 0, 3)
    yield call("aten.scatter.src", x, 1, rows, T(S, 2, 4))
    yield call("aten.scatter.value", x, -2, rows, 0.5)
    yield call("aten.scatter.value", T(S, 3, 4, dtype=I64), 1, rows, 2)
    several = index(S, 2, 4, below=3)
    yield call("aten.scatter_add", x, 1, several, x)
    yield call("aten.scatter.reduce", x, 1, several, x, reduce="add")
    yield call("aten.scatter.reduce", x, 1, several, x, reduce="multiply")
    yield call("aten.scatter.value_reduce", x, 1, several, 0.5, reduce="multiply")
    for reduce in ("sum", "prod", "mean", "amax", "amin"):
        yield call("aten.scatter_reduce.two", x, 1, several, x, reduce)
        yield call("aten.scatter_reduce.two", x, 1, several, x, reduce, include_self=False)
    yield call("aten.scatter_reduce.two", T(S, 3, 4, dtype=I64), 1, several, T(S, 3, 4, dtype=I64), "amax")
    one = index(1, below=3)
    yield call("aten.index_put", x, (None, one), T(4))
    yield call("aten.index_put", x, (None, index(N, below=3)), T(S, N, 4), True)
    yield call("aten.index_put", x, (index(N, below=S), index(1, below=3)), T(N, 4), True)
    yield call("aten.index_put", x, (index(N, below=S), None, index(N, below=4)), T(N, 3), True)
    yield call("aten.index_put", x, (T(S, 3, dtype=BOOL),), T())
    yield call("aten.index_put", x, (None, T(3, dtype=BOOL)), T(4), True)
    yield call("aten.index_add", x, 1, index(N, below=3), T(S, N, 4))
    yield call("aten.index_add", x, 0, index(N, below=S), T(N, 3, 4), alpha=0.5)
    yield call("aten.index_copy", x, 1, one, T(S, 1, 4))
    yield call("aten.index_fill.int_Scalar", x, 1, index(N, below=3), 0.5)
    yield call("aten.index_fill.int_Tensor", x, -1, index(below=4), T())
    yield call("aten.masked_scatter", T(S, 3), T(S, 3, dtype=BOOL), T(S, 3))


def _bags() -> Iterator[Sample]:
    """All in the last bag: other offsets, which depend on one another, are in ``test_bags.py``."""
    table, offsets = T(5, 4), Operand(I64, (N,), 0, 1)
    for mode in ("sum", "mean", "max"):
        yield call("rg.embedding_bag", table, index(S, below=5), offsets, mode=mode)
        yield call("rg.embedding_bag", table, index(S, below=5, dtype=I32), offsets, mode=mode, padding_idx=2)
    yield call("rg.embedding_bag", table, index(S, below=5), offsets, T(S))


def _parts() -> Iterator[Sample]:
    x = T(S + 4, 6)
    yield call("aten.slice_scatter", x, T(S + 4, 3), 1, 1, 4)
    yield call("aten.slice_scatter", x, T(S + 4, 3), 1, 0, 6, 2)
    yield call("aten.slice_scatter", x, T(S, 6), 0, 2, S + 2)
    yield call("aten.slice_scatter", x, T(2, 6), 0, -2)
    yield call("aten.slice_scatter", x, x)
    yield call("aten.select_scatter", x, T(S + 4), 1, -1)
    yield call("aten.select_scatter", x, T(6), 0, 2)
    for name in ("diagonal", "diagonal_copy"):
        yield call(f"aten.{name}", T(S, 5))
        yield call(f"aten.{name}", T(4, S, 3), 1, 2, 0)
        yield call(f"aten.{name}", T(S, 3, 4), -1, 1, 2)
    yield call("aten.diagonal_scatter", T(4, 5), T(4))
    yield call("aten.diagonal_scatter", T(S, 3, 4), T(S, 2), -1, 1, 2)
    yield call("aten.diagonal_scatter", T(3, S, 4), T(S, 3), 1, 0, 2)
    yield call("aten.unfold", T(N, S + 4), 1, 3, 2)
    yield call("aten.unfold", T(S + 4, 3), 0, 2, 1)
    yield call("aten.unsafe_split.Tensor", x, 2, 1)
    yield call("aten.instance_norm", T(N, 4, S + 1), T(4), T(4), None, None, True, 0.1, 1e-5, True)
    yield call("aten.instance_norm", T(N, 4, S, 3), None, None, T(4), positive(4), False, 0.1, 1e-5, True)


def _empties() -> Iterator[Sample]:
    yield call("aten.empty.memory_format", (S, 3), dtype=I64)
    yield call("aten.empty_permuted", (S, 3), (1, 0))
    yield call("aten.empty_like", T(S, 3), dtype=BOOL)
    yield call("aten.new_empty", T(S), (2, N))
