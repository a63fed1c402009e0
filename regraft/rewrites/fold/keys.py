"""When two ops compute the same: a hashable key from what they are and what they read."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from regraft.ir import Attr, Op, Trait


def op_key(op: Op, operands: Sequence[Hashable]) -> Hashable:
    """Equal for two ops that compute the same when ``operands`` identify what they read."""
    # x + alpha * y does not commute, whatever the trait says of addition.
    if op.has(Trait.COMMUTATIVE) and op.attrs.get("alpha", 1) == 1:
        operands = (*sorted(operands[:2], key=str), *operands[2:])
    attrs = tuple(sorted((name, attr_key(value)) for name, value in op.attrs.items()))
    return op.definition, tuple(operands), op.segments, attrs, tuple(r.type for r in op.results)


def attr_key(attr: Attr) -> Hashable:
    """Tells apart what ``==`` does not (0.0 and -0.0, 1 and 1.0 and True); equal NaNs are equal."""
    if isinstance(attr, tuple):
        return tuple(attr_key(item) for item in attr)
    if isinstance(attr, float):
        return ("float", attr.hex())
    return (type(attr).__name__, attr)
