"""Small memory of one thread, on its stack. Imports TVM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

#: Bytes beyond which a row belongs in TVM's pool: a model's sizes are not to decide how deep a stack is.
MOST = 1 << 14


def on_stack(shape: Sequence[Any], dtype: str) -> Any:
    """A buffer of a known and small size, which LLVM may keep in registers.

    Of itself TVM takes any buffer that is not in the global scope, or has a KiB and more, from a pool: two
    calls each time that its scope is entered, which cost more than to fold a row of a hundred numbers.
    """
    return T.alloc_buffer(tuple(shape), dtype, annotations={"disable_lower_builtin": True})
