"""What is known of open sizes in all calls that are answered.

torch.export assumes that an open size is 2 or more. Calls have any size that its ``Dim`` lets pass; where
there is none, 1 too (``size_one``).
"""

# The classes of symbolic shapes are partly untyped, and a size's node has no public name.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import StrictMinMaxConstraint
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

#: What torch.export assumes of an open size.
_ASSUMED = 2


def at_least(value: Any, bound: int) -> bool:
    """Whether ``value`` is proved to be ``bound`` or more: an integer, a size, or a number of a call."""
    if type(value) is int:
        return value >= bound
    if not isinstance(value, torch.SymInt):
        return False
    node: Any = value.node
    declared, env = _declared(node.shape_env), node.shape_env
    symbols: list[Any] = list(node.expr.free_symbols)
    least = {each: _least(each, env, declared.get(each, 1)) for each in symbols}
    ranges: Any = {symbol: ValueRanges(sympy.Integer(low), int_oo) for symbol, low in least.items()}
    lower: Any = bound_sympy(node.expr, ranges).lower
    return bool(lower >= bound)


def _least(symbol: Any, env: Any, declared: int) -> int:
    """The least value of a size; calls check what the code has shown beyond torch's assumption."""
    known = int(env.var_to_range[symbol].lower)
    if env.is_unbacked_symint(symbol):
        return max(known, 0)
    return known if known > _ASSUMED else declared


def _declared(env: Any) -> dict[Any, int]:
    """The least value of each size of an argument that has a ``Dim``."""
    found: dict[Any, int] = {}
    for each in env.tracked_fakes or ():
        constraints = getattr(each.symbolic_context, "constraint_sizes", None) or ()
        sizes: Sequence[Any] = getattr(each.fake, "shape", ())
        for size, constraint in zip(sizes, cast(Sequence[Any], constraints), strict=False):
            if isinstance(size, torch.SymInt) and isinstance(constraint, StrictMinMaxConstraint):
                symbol: Any = size.node.expr
                if symbol.is_Symbol:
                    found[symbol] = int(constraint.vr.lower)
    return found
