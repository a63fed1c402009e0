"""Building an ONNX graph: scopes, nodes, initializers and names. Knows nothing of our ops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from regraft.backends.ort.dtypes import ONNX_TYPES
from regraft.ir import Dim, DType, Expr, Symbol, dims, symbol

#: ONNX's own name for "no such optional input".
Input: TypeAlias = ir.Value | None

_NUMPY: dict[DType, Any] = {
    DType.BOOL: np.bool_,
    DType.U8: np.uint8,
    DType.I8: np.int8,
    DType.I16: np.int16,
    DType.I32: np.int32,
    DType.I64: np.int64,
    DType.F32: np.float32,
    DType.F64: np.float64,
}


@dataclass(frozen=True)
class SizeSource:
    """Where a symbol's value comes from: axis ``axis`` of ``value`` is ``scale * symbol + offset``.

    ``axis`` None means that ``value`` itself is the size, an ``i64[1]``.
    """

    value: ir.Value
    axis: int | None
    scale: int = 1
    offset: int = 0


@dataclass
class Scope:
    """One graph in the making: the main one, or the body of an ``If`` or ``Loop``."""

    nodes: list[ir.Node] = field(default_factory=list[ir.Node])
    symbols: dict[Symbol, SizeSource] = field(default_factory=dict[Symbol, SizeSource])
    sizes: dict[Expr, ir.Value] = field(default_factory=dict[Expr, ir.Value])
    shapes: dict[Any, ir.Value] = field(default_factory=dict[Any, ir.Value])
    memo: dict[Any, Any] = field(default_factory=dict[Any, Any])


class GraphBuilder:
    """Nodes go to the innermost scope; initializers and graph inputs to the main graph."""

    def __init__(self, size_names: Mapping[str, str] | None = None) -> None:
        self.size_names = size_names or {}
        self.scopes = [Scope()]
        self.inputs: list[ir.Value] = []
        self.initializers: dict[str, ir.Value] = {}
        #: Domain -> its version. That of the standard one is the target's.
        self.domains: dict[str, int] = {"": 1}
        self._taken: set[str] = set()
        self._constants: dict[Any, ir.Value] = {}
        self._counts: dict[str, int] = {}

    # -- names and values ----------------------------------------------------------------------

    def unique(self, hint: str) -> str:
        """``hint``, numbered when it is in use."""
        name = hint
        while name in self._taken:
            self._counts[hint] = self._counts.get(hint, 0) + 1
            name = f"{hint}_{self._counts[hint]}"
        self._taken.add(name)
        return name

    def value(self, name: str, dtype: DType, shape: Sequence[Any] | None) -> ir.Value:
        """A value that no node makes: a graph input or an initializer."""
        onnx_shape = None if shape is None else self.onnx_shape(shape)
        return ir.Value(name=self.unique(name), type=ir.TensorType(ONNX_TYPES[dtype]), shape=onnx_shape)

    def onnx_shape(self, shape: Sequence[Dim]) -> ir.Shape:
        """``shape`` as ONNX has it, with the names that symbols have in the file."""
        return ir.Shape([d if isinstance(d, int) else str(self._renamed(d)) for d in shape])

    def _renamed(self, dim: Expr) -> Dim:
        names = {s: self.size_names[s.name] for s in dims.symbols_of(dim) if s.name in self.size_names}
        return dims.substitute(dim, {s: symbol(name, s.lo, s.hi, s.divisor) for s, name in names.items()})

    @property
    def scope(self) -> Scope:
        return self.scopes[-1]

    @contextmanager
    def nested(self) -> Iterator[Scope]:
        """A scope inside the current one."""
        self.scopes.append(Scope())
        try:
            yield self.scope
        finally:
            self.scopes.pop()

    @contextmanager
    def at(self, depth: int) -> Iterator[None]:
        """Emit into the scope at ``depth``, one of those that are open."""
        inner = self.scopes[depth + 1 :]
        del self.scopes[depth + 1 :]
        try:
            yield
        finally:
            self.scopes += inner

    # -- nodes ---------------------------------------------------------------------------------

    def ops(self, op_type: str, count: int, *inputs: Input, domain: str = "", **attrs: Any) -> list[ir.Value]:
        """A node with ``count`` outputs."""
        self.domains.setdefault(domain, 1)
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        node = ir.node(op_type, given, attrs, domain=domain, num_outputs=count)
        node.name = self.unique(op_type)
        for index, output in enumerate(node.outputs):
            output.name = node.name if index == 0 else self.unique(f"{node.name}.{index}")
        self.scope.nodes.append(node)
        return list(node.outputs)

    def op(self, op_type: str, *inputs: Input, domain: str = "", **attrs: Any) -> ir.Value:
        """A node with one output."""
        return self.ops(op_type, 1, *inputs, domain=domain, **attrs)[0]

    def contrib(self, op_type: str, *inputs: Input, **attrs: Any) -> ir.Value:
        """A node of ONNX Runtime's own domain."""
        return self.op(op_type, *inputs, domain="com.microsoft", **attrs)

    def memoised(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` emitted for ``key``, in this scope or one around it; made here the first time."""
        for scope in reversed(self.scopes):
            if key in scope.memo:
                return scope.memo[key]
        made = self.scope.memo[key] = make()
        return made

    def prune(self, results: Sequence[ir.Value]) -> None:
        """Remove the nodes of this scope that nothing uses: lowerings may emit more than is asked for."""
        wanted = set(results)
        kept: list[ir.Node] = []
        for node in reversed(self.scope.nodes):
            if any(output in wanted or output.uses() for output in node.outputs):
                kept.append(node)
                continue
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        self.scope.nodes[:] = reversed(kept)

    # -- small constants -----------------------------------------------------------------------

    def array(self, array: np.ndarray[Any, Any], name: str = "const") -> ir.Value:
        """An initializer whose values are part of the model file; equal ones are one."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            tensor = ir.tensor(array)
            value = ir.Value(
                name=self.unique(name), type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
            )
            tensor.name = value.name
            value.const_value = tensor
            self._constants[key] = value
            self._add(value)
        return self._constants[key]

    def scalar(self, value: Any, dtype: DType) -> ir.Value:
        """A rank-0 constant."""
        # Through Python's own conversions: numpy refuses -1 as a u8, torch wraps it.
        kind = _NUMPY[dtype]
        array = np.array(value).astype(kind) if dtype.kind != "float" else np.array(value, kind)
        return self.array(array)

    def cast_array(self, array: np.ndarray[Any, Any], dtype: DType) -> ir.Value:
        """``array`` in ``dtype``."""
        return self.array(array.astype(_NUMPY[dtype]))

    def ints(self, *values: int) -> ir.Value:
        """A vector of i64 constants."""
        return self.array(np.array(values, np.int64), "ints")

    def _add(self, value: ir.Value) -> None:
        assert value.name is not None
        self.initializers[value.name] = value
