"""From a function to a program: kernels, buffers, and calls of kernels over buffers. Imports TVM.

The program is JSON, and ``loaded.py`` says what it means. Calls that compute the same over other memory share
one kernel: a model of equal layers has the kernels of one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from regraft.backends.tvm import cluster as clusters
from regraft.backends.tvm import kernel as kernels
from regraft.backends.tvm import sweep as sweeps
from regraft.backends.tvm.checks import build_check
from regraft.backends.tvm.cluster import Branch, Check, Cluster, Step, Sweep, symbols_of
from regraft.backends.tvm.following import values_of
from regraft.backends.tvm.packing import Packing
from regraft.backends.tvm.products import BuiltProduct, Products
from regraft.ir import Constant, Dim, DType, Function, Op, Region, Symbol, Trait, Value, symbols_in

#: A kernel that no name tells: kernels are named by their number, calls of them by their ops.
_KERNEL = "kernel_{}"


@dataclass(frozen=True)
class Program:
    """What ``loaded.py`` reads.

    Fields:
        record: the program as JSON.
        functions: name -> the kernel's TIR function.
    """

    record: dict[str, Any]
    functions: Mapping[str, Any]


def assemble(function: Function, products: Products, alone: Collection[Op] = ()) -> Program:
    """The program of ``function``, whose ops all have lowerings; ``products`` builds kernels of templates.

    No op follows the products in ``alone`` in their kernel.
    """
    return _Assembly(function, products, alone).run()


@dataclass
class _Assembly:
    function: Function
    products: Products
    alone: Collection[Op]
    buffers: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    numbers: dict[Value, int] = field(default_factory=dict[Value, int])
    memories: dict[Value, Value] = field(default_factory=dict[Value, Value])
    """A view that is no kernel's -> the value in whose memory it lies."""
    constants: dict[str, int] = field(default_factory=dict[str, int])
    packed: dict[tuple[int, Packing], int] = field(default_factory=dict[Any, int])
    functions: dict[str, Any] = field(default_factory=dict[str, Any])
    known: dict[str, tuple[str, kernels.Built | BuiltProduct]] = field(default_factory=dict[str, Any])

    def run(self) -> Program:
        for number, value in enumerate(self.function.args):
            self._buffer(value, {"input": number})
        formed = self._formed(self.function.body)
        for number, value in enumerate(self.function.results):
            source = self._own(value, formed)
            if source is not None:
                self._buffer(source, {"result": number})
        steps = self._steps(formed)
        results = [
            {"buffer": self._number(value), "shape": _texts(value.tensor.shape)}
            for value in self.function.results
        ]
        facts = {name: built.facts for name, built in self.known.values() if isinstance(built, BuiltProduct)}
        record = {"buffers": self.buffers, "calls": steps, "results": results, "templates": facts}
        return Program(record, self.functions)

    def _formed(self, body: Region) -> Sequence[Step | Check]:
        """The steps of ``body``, whose constants have buffers from then on."""
        formed = clusters.form(body, self.alone)
        self.memories |= formed.memories
        for op in body.ops:
            if op.has(Trait.CONSTANT_LIKE):
                self._constant(op.result, _name(op.attr("value")))
        return formed.steps

    def _own(self, value: Value, steps: Sequence[Step | Check]) -> Value | None:
        """What ``steps`` compute for ``value`` and have no buffer for yet; None where it is there already."""
        source = self.memories.get(value, value)
        is_computed = any(source in _written(step) for step in steps)
        return source if is_computed and source not in self.numbers else None

    def _number(self, value: Value) -> int:
        return self.numbers[self.memories.get(value, value)]

    def _constant(self, value: Value, name: str) -> None:
        """Arms that read the same constant share its buffer."""
        if name not in self.constants:
            self._buffer(value, {"constant": name})
            self.constants[name] = self.numbers[value]
        self.numbers[value] = self.constants[name]

    def _buffer(self, value: Value, origin: Mapping[str, Any]) -> None:
        self.numbers[value] = len(self.buffers)
        tensor = value.tensor
        self.buffers.append({"dtype": tensor.dtype.value, "size": str(tensor.numel), **origin})

    def _steps(self, steps: Sequence[Step | Check]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for step in steps:
            for value in _written(step):
                if value not in self.numbers:
                    self._buffer(value, {})
            found.append(self._branch(step) if isinstance(step, Branch) else self._call(step))
        return found

    def _branch(self, step: Branch) -> dict[str, Any]:
        pred, *operands = step.root.operands
        arms = [self._arm(arm, operands, step.results) for arm in step.root.regions]
        return {"pred": self._number(pred), "arms": arms}

    def _arm(self, arm: Region, operands: Sequence[Value], results: Sequence[Value]) -> list[dict[str, Any]]:
        """The steps of ``arm``, which computes the condition's ``results`` where they are read from.

        What the arm only hands on, and what it yields twice, is copied.
        """
        for argument, operand in zip(arm.args, operands, strict=True):
            self.numbers[argument] = self._number(operand)
        formed = self._formed(arm)
        for value, result in zip(arm.results, results, strict=True):
            source = self._own(value, formed)
            if source is not None:
                self.numbers[source] = self.numbers[result]
        steps = self._steps(formed)
        pairs = [(self._number(v), self.numbers[r]) for v, r in zip(arm.results, results, strict=True)]
        return steps + [{"copy": source, "to": target} for source, target in pairs if source != target]

    def _call(self, step: Cluster | Sweep | Check) -> dict[str, Any]:
        key, values = _described(step, self.memories)
        if key not in self.known:
            name = _KERNEL.format(len(self.known))
            built = self._build(step, name)
            self.functions[name] = built.function
            self.known[key] = name, built
        name, built = self.known[key]
        ops = [step.op.name] if isinstance(step, Check) else [op.name for op in step.inlined]
        call: dict[str, Any] = {"kernel": name, "ops": ops}
        if isinstance(built, BuiltProduct):
            assert isinstance(step, Cluster)
            return call | self._taken(built, values_of(step))
        reads = [self.numbers[v] for v in values]
        writes = [self.numbers[v] for v in _written(step)]
        views = _views("uint16" if v.tensor.dtype == DType.BF16 else None for v in built.buffers)
        return call | {"reads": reads, "writes": writes, "symbols": list(built.symbols), **views}

    def _taken(self, built: BuiltProduct, values: Mapping[str, Value]) -> dict[str, Any]:
        """What a template's kernel takes: buffers that have shapes, packed constants among them."""
        numbers = [
            self.numbers[values[p.name]] if p.packing is None else self._packed(values[p.name], p.packing)
            for p in built.parameters
        ]
        shapes = [_texts(p.shape) for p in built.parameters]
        views = _views(p.view for p in built.parameters)
        return {"reads": numbers[:-1], "writes": numbers[-1:], "symbols": [], "shapes": shapes, **views}

    def _packed(self, value: Value, packing: Packing) -> int:
        """The buffer of the constant ``value`` as ``packing`` lays it out."""
        key = self.numbers[value], packing
        if key not in self.packed:
            self.packed[key] = len(self.buffers)
            size = math.prod(packing.packed_shape)
            self.buffers.append({**self.buffers[key[0]], "size": size, "packing": asdict(packing)})
        return self.packed[key]

    def _build(self, step: Cluster | Sweep | Check, name: str) -> kernels.Built | BuiltProduct:
        symbols = _symbols(step)
        if isinstance(step, Check):
            return build_check(step, self.memories.get(step.value, step.value), symbols, name)
        if isinstance(step, Sweep):
            return sweeps.build(step, symbols, name)
        if step.is_closed:
            return self.products.build(step, name)
        return kernels.build(step, symbols, name)


def _written(step: Step | Check) -> tuple[Value, ...]:
    """What ``step`` computes."""
    return () if isinstance(step, Check) else step.results


def _symbols(step: Cluster | Sweep | Check) -> tuple[Symbol, ...]:
    """The symbols that the kernel computes with."""
    if isinstance(step, Check):
        found = [*symbols_in(step.value.type), *symbols_in((step.least, step.size))]
        return tuple(dict.fromkeys(found))
    return symbols_of(step.inlined, step.inputs)


def _described(step: Cluster | Sweep | Check, memories: Mapping[Value, Value]) -> tuple[str, Sequence[Value]]:
    """A text that is equal for steps that compute the same, and what the step reads, in the text's order."""
    if isinstance(step, Check):
        value = memories.get(step.value, step.value)
        # Its message names the op and its source line.
        return f"check {value.type} {step.least} {step.size} {step.op.name} {step.op.loc}", (value,)
    names: dict[Value, str] = {value: f"b{i}:{value.type}" for i, value in enumerate(step.inputs)}
    for op in step.inlined:
        for value in op.operands:
            if value.op not in step.inlined:
                names.setdefault(value, f"{names[step.memory(value)]} as {value.type}")
    ranges = [f"{s.name} in {s.lo}..{s.hi} by {s.divisor}" for s in _symbols(step)]
    return "\n".join([*_lines(step.inlined, names), *ranges]), step.inputs


def _lines(ops: Iterable[Op], names: dict[Value, str]) -> Iterator[str]:
    """A line for each of ``ops``, over values with ``names``; those of regions follow their op."""
    for op in ops:
        operands = ", ".join(names[value] for value in op.operands)
        types = " ".join(str(result.type) for result in op.results)
        yield f"{op.name}({operands}) {op.segments} {op.attrs} {types}"
        for region in op.regions:
            names |= {value: f"a{len(names) + n}:{value.type}" for n, value in enumerate(region.args)}
            yield from _lines(region.ops, names)
        for result in op.results:
            names[result] = f"v{len(names)}"


def _views(types: Iterable[str | None]) -> dict[str, list[str | None]]:
    """What a kernel sees the elements of its buffers as; nothing where it sees all as they are."""
    listed = list(types)
    return {"views": listed} if any(listed) else {}


def _texts(shape: Sequence[Dim]) -> list[int | str]:
    return [dim if isinstance(dim, int) else str(dim) for dim in shape]


def _name(constant: Constant) -> str:
    """The name that the constant has in the text that was sent here."""
    return str(getattr(constant, "name"))  # noqa: B009 - a leaf, since nothing else is sent
