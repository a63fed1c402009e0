"""Emission: from a function of the IR to an ONNX graph, through the lowering tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from regraft.backends.ort.dtypes import ONNX_TYPES, ORT_DOMAINS, carrier, kernel_type
from regraft.backends.ort.graph import Input
from regraft.backends.ort.optimiser import constants_read
from regraft.backends.ort.placing import place_constants
from regraft.backends.ort.run import STAND_IN, WRITTEN, offsets, plain
from regraft.backends.ort.sizes import SizeBuilder
from regraft.backends.protocol import ConstantStore
from regraft.errors import BackendError, RegraftError
from regraft.ir import Constant, DType, Function, OnnxOp, Op, Recipe, Region, Value

Emitted = ir.Value | Sequence[ir.Value]
Emit = Callable[["Emitter", Op], Emitted]

#: Constants up to this many bytes are part of the model file; larger ones share torch's memory.
INLINE_BYTES = 1024


@dataclass(frozen=True)
class Lowering:
    """How one op is emitted.

    Fields:
        emit: writes the nodes and returns a value for each result.
        kernels: the kernels that must take the op's type.
        typed_by: the operand whose type that is ("" is the first result).
        check: a reason why this use of the op cannot be lowered, or None.
    """

    emit: Emit
    kernels: tuple[str, ...] = ()
    typed_by: str | None = None
    check: Callable[[Op], str | None] = lambda op: None


@dataclass(frozen=True)
class Target:
    """What may be emitted.

    Fields:
        contrib: use ONNX Runtime's own ops besides standard ONNX.
        opset: version of the standard ops.
        shared: large constants stay outside the model, for the runtime to bind.
    """

    contrib: bool = True
    opset: int = 23
    shared: bool = True


@dataclass
class Emission:
    """An emitted graph, and what its names stand for.

    Fields:
        outputs: the function's results, then one ``bool[]`` for each of ``checks``.
        size_inputs: symbol name -> the input that takes its value.
        shared: external initializers -> their constants.
        checks: a message for each output that must be true.
        blocked: what ONNX Runtime reads when it loads the model.
        written: those of ``shared`` that it finds in a file, in this order.
    """

    model: ir.Model
    inputs: list[str]
    outputs: list[str]
    size_inputs: Mapping[str, str]
    shared: Mapping[str, Constant] = field(default_factory=dict[str, Constant])
    checks: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    written: tuple[str, ...] = ()


class Emitter(SizeBuilder):
    """Emits ops. Lowerings use its methods; values of f16 and bf16 are f32 here (see ``dtypes``)."""

    def __init__(
        self,
        find: Callable[[Op], Lowering | None],
        store: ConstantStore,
        target: Target,
        size_names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(size_names or {}, allow_size_inputs=target.shared)
        self.find = find
        self.store = store
        self.target = target
        self.shared: dict[str, Constant] = {}
        self.checks: list[tuple[ir.Value, str]] = []
        #: Values [B, H, S, D] that are known in the layout [B, S, H, D] as well.
        self.heads_last: dict[Value, ir.Value] = {}
        self._custom: OnnxOp | None = None
        self._values: dict[Value, ir.Value] = {}
        self._weights: dict[Constant, ir.Value] = {}

    # -- values --------------------------------------------------------------------------------

    def get(self, value: Value) -> ir.Value:
        """The ONNX value that stands for ``value``; a constant is emitted when first asked for."""
        if value not in self._values:
            constant = constant_of(value)
            assert constant is not None, f"{value} is used before it is emitted"
            return self.weight(constant)
        return self._values[value]

    def has(self, value: Value) -> bool:
        return value in self._values

    def set(self, value: Value, emitted: ir.Value) -> None:
        self._values[value] = emitted

    def inputs_of(self, op: Op) -> list[ir.Value]:
        return [self.get(v) for v in op.operands]

    def operand(self, op: Op, name: str) -> ir.Value:
        return self.get(op.operand(name))

    def optional(self, op: Op, name: str) -> ir.Value | None:
        found = op.optional(name)
        return None if found is None else self.get(found)

    def weight(self, constant: Constant) -> ir.Value:
        """The constant as an initializer of the main graph."""
        if constant not in self._weights:
            with self.at(0):
                self._weights[constant] = self._weight(constant)
        return self._weights[constant]

    def _weight(self, constant: Constant) -> ir.Value:
        dtype, shape = constant.type.dtype, constant.type.shape
        dims = [d for d in shape if isinstance(d, int)]
        assert len(dims) == len(shape), f"the constant {constant} has symbolic sizes"
        # In a session, constants of 16 bits are widened when they are bound; a file keeps them small.
        held = carrier(dtype) if self.target.shared else dtype
        size = math.prod(dims) * held.bits // 8
        value = self.value(self.store.name(constant), held, dims)
        value.const_value = self._tensor(value, constant, held, size)
        self._add(value)
        return self.cast(value, held, carrier(dtype))

    def _tensor(self, value: ir.Value, constant: Constant, held: DType, size: int) -> ir.TensorProtocol:
        assert value.name is not None
        if self.target.shared and size > INLINE_BYTES:
            self.shared[value.name] = constant
            shape = ir.Shape(value.shape or ())
            return ir.ExternalTensor(STAND_IN, 0, size, ONNX_TYPES[held], shape=shape, name=value.name)
        from onnx_ir.tensor_adapters import TorchTensor

        tensor = plain(self.store.tensor(constant).detach())
        return TorchTensor(tensor.float() if held != constant.type.dtype else tensor, name=value.name)

    # -- nodes ---------------------------------------------------------------------------------

    @property
    def contrib_allowed(self) -> bool:
        return self.target.contrib

    def ops(self, op_type: str, count: int, *inputs: Input, domain: str = "", **attrs: Any) -> list[ir.Value]:
        self._declare(domain)
        return super().ops(op_type, count, *inputs, domain=domain, **attrs)

    def _declare(self, domain: str) -> None:
        """Note the version of a user's domain, which is that of the op being lowered."""
        if domain in ORT_DOMAINS:
            return
        own = self._custom
        if own is None or own.domain != domain:
            raise BackendError(
                f"it emits a node of the domain '{domain}', which is not ONNX Runtime's; "
                f"say so in its definition: OpDef(onnx=OnnxOp('{domain}', ...))",
                backend="ort",
            )
        known = self.domains.setdefault(domain, own.version)
        if known != own.version:
            raise BackendError(
                f"two ops ask for the versions {known} and {own.version} of the domain '{domain}'",
                backend="ort",
            )

    def cast(self, value: ir.Value, source: DType, to: DType) -> ir.Value:
        return value if source == to else self.op("Cast", value, to=int(ONNX_TYPES[to]))

    def kernel(
        self, op_type: str, dtype: DType, *inputs: ir.Value, keep: bool = True, **attrs: Any
    ) -> ir.Value:
        """A node over inputs of one type, in a wider type when the kernel does not take theirs.

        ``keep`` says that the result has the inputs' type and is cast back to it.
        """
        wide = self.wide(op_type, dtype)
        source = carrier(dtype)
        result = self.op(op_type, *(self.cast(v, source, wide) for v in inputs), **attrs)
        return self.cast(result, wide, source) if keep else result

    def wide(self, op_type: str, dtype: DType) -> DType:
        """The type in which ``op_type`` computes values of ``dtype``."""
        wide = kernel_type(op_type, dtype)
        if wide is None:
            raise BackendError(f"ONNX Runtime has no {dtype.value} kernel for {op_type}", backend="ort")
        return wide

    # -- ops and regions -----------------------------------------------------------------------

    def run_op(self, op: Op) -> None:
        """Emit one op, unless an earlier one did it on its behalf."""
        if op.name == "rg.const" or (op.results and all(self.has(r) for r in op.results)):
            return
        lowering = self.find(op)
        if lowering is None:
            raise BackendError("there is no lowering", backend="ort", op=op.name)
        outer, self._custom = self._custom, op.definition.onnx
        try:
            values = _values_of(lowering.emit(self, op), len(op.results))
        except BackendError as error:
            error.op = error.op or op.name
            raise
        except RegraftError:
            raise
        except Exception as error:
            raise BackendError(f"cannot lower {op}: {error}", backend="ort", op=op.name) from error
        self._custom = outer
        for result, value in zip(op.results, values, strict=True):
            self.set(result, value)
            self._describe(result, value)
            if op.symbols:
                self.define_symbols(value, result.type, op.symbols)

    def _describe(self, result: Value, value: ir.Value) -> None:
        """Say the sizes of feature maps, which get lost where convolutions get their layout."""
        if result.tensor.rank == 4 and value.shape is None:
            value.type = ir.TensorType(ONNX_TYPES[carrier(result.tensor.dtype)])
            value.shape = self.onnx_shape(result.tensor.shape)

    def run_region(self, region: Region, args: Sequence[ir.Value]) -> list[Value]:
        """Emit the ops of ``region`` here, its arguments standing for ``args``; the values it yields."""
        for arg, value in zip(region.args, args, strict=True):
            self.set(arg, value)
            self.define_symbols(value, arg.type, region.symbols)
        for op in region.ops:
            if op is not region.terminator:
                self.run_op(op)
        return list(region.results)

    def forget(self, region: Region) -> None:
        """Drop what ``region`` emitted, so that it can be emitted again elsewhere."""
        for value in (*region.args, *(r for op in region.ops for r in op.results)):
            self._values.pop(value, None)
        for inner in (each for op in region.ops for each in op.regions):
            self.forget(inner)

    def graph(self, name: str, results: Sequence[ir.Value], inputs: Sequence[ir.Value] = ()) -> ir.Graph:
        """The current scope as a subgraph."""
        outputs = self.fresh(results, inputs)
        self.prune(outputs)
        return ir.Graph(inputs, outputs, nodes=self.scope.nodes, name=self.unique(name))

    def fresh(self, results: Sequence[ir.Value], inputs: Sequence[ir.Value] = ()) -> list[ir.Value]:
        """``results`` as graph outputs: made by a node of this scope, each once, never an input."""
        made = {output for node in self.scope.nodes for output in node.outputs}
        final: list[ir.Value] = []
        for value in results:
            usable = value in made and value not in final and value not in inputs
            final.append(value if usable else self.op("Identity", value))
        return final


def _values_of(emitted: Any, count: int) -> list[ir.Value]:
    values: Any = [emitted] if isinstance(emitted, ir.Value) else emitted
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, ir.Value) for v in values):
        raise TypeError(f"the lowering returned {emitted!r}, which is no ONNX value")
    if len(values) != count:
        raise TypeError(f"the lowering returned {len(values)} values for {count} results")
    return list(values)


def constant_of(value: Value) -> Constant | None:
    """The constant that ``value`` is, or None."""
    op = value.op
    if op is None or op.name != "rg.const":
        return None
    found = op.attr("value")
    return found if isinstance(found, Constant) else None


def peel_transpose(constant: Constant) -> tuple[Constant, bool]:
    """``(leaf, True)`` when ``constant`` is the transpose of a matrix, else itself and False."""
    if isinstance(constant, Recipe):
        source = constant.body.results[0].op
        if source is not None and source.name == "aten.permute" and tuple(source.attr("dims")) == (1, 0):
            inner = constant_of(source.operand("self"))
            if inner is not None:
                return inner, True
    return constant, False


def emit_function(
    function: Function,
    find: Callable[[Op], Lowering | None],
    store: ConstantStore,
    target: Target,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    size_names: Mapping[str, str] | None = None,
) -> Emission:
    """The ONNX model of ``function``."""
    emitter = Emitter(find, store, target, size_names)
    args = _declare_inputs(emitter, function, input_names)
    for name in output_names or ():
        emitter.unique(name)
    results = emitter.run_region(function.body, args)
    checks = emitter.checks
    rounded = [emitter.cast(emitter.get(r), carrier(r.tensor.dtype), r.tensor.dtype) for r in results]
    outputs = emitter.fresh([*rounded, *(value for value, _ in checks)], emitter.inputs)
    for index, result in enumerate(results):
        output = outputs[index]
        output.name = output_names[index] if output_names else emitter.unique(f"out.{index}")
        output.type = ir.TensorType(ONNX_TYPES[result.tensor.dtype])
        output.shape = emitter.onnx_shape(result.tensor.shape)
    for output in outputs[len(results) :]:
        output.type, output.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([])
    return _emission(emitter, function.name, outputs, target, tuple(message for _, message in checks))


def _declare_inputs(emitter: Emitter, function: Function, names: Sequence[str] | None) -> list[ir.Value]:
    """The graph's inputs, those of 16 bits widened."""
    args: list[ir.Value] = []
    for index, arg in enumerate(function.args):
        name = names[index] if names else f"in.{index}"
        value = emitter.value(name, arg.tensor.dtype, arg.tensor.shape)
        emitter.inputs.append(value)
        emitter.define_symbols(value, arg.type)
        args.append(emitter.cast(value, arg.tensor.dtype, carrier(arg.tensor.dtype)))
    return args


def _emission(
    emitter: Emitter, name: str, outputs: list[ir.Value], target: Target, checks: tuple[str, ...]
) -> Emission:
    emitter.prune(outputs)
    # Initializers that nobody reads (a peeled recipe's result) stay out.
    used = [v for v in emitter.initializers.values() if v.uses()]
    imports = dict(sorted(emitter.domains.items())) | {"": target.opset}
    graph = ir.Graph(
        emitter.inputs,
        outputs,
        nodes=emitter.scopes[0].nodes,
        initializers=used,
        opset_imports=imports,
        name=name,
    )
    nodes = ((n.op_type, tuple((v.name or "") if v else "" for v in n.inputs)) for n in graph.all_nodes())
    names = {v.name for v in used}
    shared = {n: c for n, c in emitter.shared.items() if n in names}
    blocked = constants_read(nodes)
    # What is widened for the session is replaced there, which works in the main graph alone.
    widened = {n for n, c in shared.items() if n not in blocked and carrier(c.type.dtype) != c.type.dtype}
    inner = place_constants(graph, stay=widened)
    written = {n: inner[n] for n in blocked if n in inner and n in shared}
    _give_places(written.values())
    return Emission(
        ir.Model(graph, ir_version=10, producer_name="regraft"),
        [v.name or "" for v in emitter.inputs if v.name not in emitter.size_inputs.values()],
        [v.name or "" for v in outputs],
        emitter.size_inputs,
        shared,
        checks,
        blocked,
        tuple(written),
    )


def _give_places(values: Collection[ir.Value]) -> None:
    """Let the external constants ``values`` lie one after the other in the file ``WRITTEN``."""
    tensors = [value.const_value for value in values]
    external = [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
    assert len(external) == len(tensors), "large constants of a session are external"
    for value, old, offset in zip(values, external, offsets(t.nbytes for t in external), strict=True):
        place = ir.ExternalTensor(WRITTEN, offset, old.nbytes, old.dtype, shape=old.shape, name=old.name)
        value.const_value = place
