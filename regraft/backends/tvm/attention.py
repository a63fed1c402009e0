"""Attention: what of it is one kernel, and what is taken apart."""

from __future__ import annotations

from regraft.ir import Dim, DType, Op, dims

#: Bytes of a head's keys and values that a thread keeps near, in a second-level cache.
_KEPT = 1 << 17
#: Keys whose scores of a few rows stay beside them.
_KEYS = 1 << 10
#: Rows that must share the keys of a head, which are laid out anew for them.
_ROWS = 8


def is_one_kernel(op: Op) -> bool:
    """Whether a kernel has room for the keys and values of a head, and enough rows for them."""
    query, key, value = (op.operand(name).tensor for name in ("query", "key", "value"))
    rows, (keys, depth), width = query.shape[-2], key.shape[-2:], value.shape[-1]
    if not (isinstance(keys, int) and isinstance(depth, int) and isinstance(width, int)):
        return False
    if not 0 < keys <= _KEYS or (isinstance(rows, int) and rows < _ROWS):
        return False
    bits = max(op.result.tensor.dtype.bits, DType.F32.bits)  # bf16 is computed in f32
    return keys * (depth + width) * bits <= 8 * _KEPT


def scale_of(op: Op) -> float:
    """What scores are multiplied by."""
    scale, size = op.attr("scale"), op.operand("query").tensor.shape[-1]
    if scale is not None:
        return scale
    assert isinstance(size, int), "checked by supports"
    return size**-0.5


def groups_of(op: Op) -> tuple[Dim, Dim] | None:
    """How many heads of keys there are, and how many queries share one; None where each has its own."""
    if not op.attr("enable_gqa"):
        return None
    heads, keys = op.operand("query").tensor.shape[-3], op.operand("key").tensor.shape[-3]
    return None if dims.eq(heads, keys) is True else (keys, dims.floordiv(heads, keys))


def refusal(op: Op) -> str | None:
    """Why there are no kernels for this use of attention; None where there are."""
    if op.attr("enable_gqa"):
        key, value = op.operand("key").tensor.shape[-3], op.operand("value").tensor.shape[-3]
        if dims.eq(key, value) is not True:
            return f"{key} heads of keys and {value} of values"
    known = op.attr("scale") is not None or isinstance(op.operand("query").tensor.shape[-1], int)
    return None if known else "the size of a head is not known, and no scale is given"


def queries_a_head(op: Op) -> Dim:
    """How many heads of queries share one of keys."""
    groups = groups_of(op)
    return 1 if groups is None else groups[1]
