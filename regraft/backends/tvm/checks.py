"""Kernels that check values before others read with them: an index out of range would read foreign memory."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from regraft.backends.tvm.cluster import Check, Cluster
from regraft.backends.tvm.kernel import MEMORY_TYPES, Built, Kernel
from regraft.ir import Symbol, Value


def build_check(check: Check, memory: Value, symbols: Sequence[Symbol], name: str) -> Built:
    """The kernel of ``check``, whose values lie in ``memory``; it fails with an ``IndexError``."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        handle = T.arg("b0", T.handle())
        sizes = {symbol: T.arg(symbol.name, T.int64()) for symbol in symbols}
        k = Kernel(Cluster(check.op, {}), sizes)
        count = k.size(memory.tensor.numel)
        values = T.match_buffer(handle, (count,), MEMORY_TYPES[memory.tensor.dtype], align=64)
        with T.serial(T.int64(0), count) as place:
            found = k.bind(k.place(values[place]))
            inside = T.And(found >= k.size(check.least), found < k.size(check.size))
            bounds = f"it is below {check.least}, or {check.size} or more"
            message = f"{check.op.name} at {check.op.loc}: an index is out of range, {bounds}"
            k.require(inside, message, "IndexError")
    return Built(builder.get(), (memory,), tuple(symbol.name for symbol in symbols))
