"""From an ``ExportedProgram`` in functional form to the IR.

Ops come over one to one. Sizes become dims, so that no integer arithmetic stays in the graph;
parameters, buffers and lifted tensors become constants, tied ones a single constant; casts that
torch does implicitly become ops.
"""

# torch's export and fx classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import operator
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from regraft.compiler.capture.arguments import (
    call_arguments,
    definition_for,
    opaque,
    overload_name,
)
from regraft.compiler.capture.bags import bags, gives_bags
from regraft.compiler.capture.checks import add_check, has_effect
from regraft.compiler.capture.control.facts import condition_of
from regraft.compiler.capture.control.markers import (
    HOLDS,
    IF_BEGIN,
    IF_ELSE,
    IF_END,
    MARKERS,
    SIZE,
    TRUTH,
    WHILE_BEGIN,
    WHILE_DO,
)
from regraft.compiler.capture.control.regions import Regions
from regraft.compiler.capture.example import CallForm
from regraft.compiler.capture.layout import memory_order
from regraft.compiler.capture.promotion import promoted
from regraft.compiler.capture.results import results_of
from regraft.compiler.capture.selection import (
    as_captured,
    check_elements,
    check_sizes,
    differing,
    is_alike,
    longest_result,
    number_as_size,
    picked,
    picking_mask,
    put,
    truth,
)
from regraft.compiler.capture.signature import make_signature
from regraft.compiler.capture.sizes import Sizes
from regraft.compiler.capture.source import location_of
from regraft.errors import CaptureError
from regraft.ir import (
    Builder,
    Dim,
    Function,
    Leaf,
    Location,
    Module,
    Op,
    OpDef,
    OpTable,
    Region,
    Symbol,
    TensorType,
    Trait,
    Value,
    dims,
    refines,
)
from regraft.runtime import MEMORY_ORDER, place

#: Nodes that say something about sizes only; dims carry it already.
_SIZE_OPS = ("aten.sym_size.int", "aten.sym_numel", "aten.sym_stride.int", "aten.sym_storage_offset")
#: What reads a number from a tensor.
_NUMBERS = ("aten.item", "aten._local_scalar_dense")
#: Facts about tensors that the import itself establishes.
_ASSERTS = ("aten._assert_tensor_metadata",)


def import_program(
    program: ExportedProgram,
    table: OpTable,
    arguments: Mapping[str, Any],
    form: CallForm,
    relaxed: frozenset[str],
) -> Module:
    """The module of ``program``, exported with ``arguments`` (by parameter) and called as ``form`` says.

    ``relaxed`` names the symbols that may be 1 although torch.export assumed more.

    Raises:
        CaptureError: the program holds an op that no graph of ours can, or returns what is not a tensor.
    """
    return _Importer(program, table, relaxed).run(arguments, form)


class _Importer:
    """The state of one import: values and constants by fx name."""

    def __init__(self, program: ExportedProgram, table: OpTable, relaxed: frozenset[str]) -> None:
        self.program = program
        self.table = table
        self.sizes = Sizes(program, relaxed)
        self.results = results_of(program)
        self.region = Region()
        self.regions = Regions(table, self.region)
        self.state: list[Leaf] = []
        self.values: dict[str, Value | tuple[Value, ...]] = {}
        self.constants: dict[str, Leaf] = {}
        self.used: dict[tuple[Region, Leaf], Value] = {}
        self.leaves: dict[Any, Leaf] = {}
        self.places: dict[Value, Value] = {}

    def run(self, arguments: Mapping[str, Any], form: CallForm) -> Module:
        self._add_inputs()
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                self._add_call(node)
        aliases = self._add_results()
        symbols, specs = self.sizes.input_symbols([a.type for a in self.region.args])
        signature = make_signature(
            self.program, self.region.args, specs, symbols, arguments, form, self.results
        )
        state = tuple(self.state)
        return Module({"forward": Function("forward", self.region, symbols, aliases, signature, state)})

    def _add_inputs(self) -> None:
        """The arguments, then the state; constants wait for their first use."""
        nodes = {n.name: n for n in self.program.graph.nodes if n.op == "placeholder"}
        state: dict[str, Leaf] = {}
        for spec in self.program.graph_signature.input_specs:
            if spec.kind is InputKind.USER_INPUT:
                if isinstance(spec.arg, TensorArgument):
                    node = nodes[spec.arg.name]
                    self.values[node.name] = self.region.add_arg(
                        self.sizes.tensor_type(node.meta["val"]), node.name
                    )
                elif not isinstance(spec.arg, ConstantArgument):
                    raise CaptureError(
                        f"the argument '{spec.arg.name}' is a number that may change from call to call",
                        hint="pass it as a tensor, or leave it out of dynamic_shapes to fix its value",
                    )
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                leaf = self._leaf(str(spec.target))
                if spec.target in self.results.state:
                    # The model's own object: a call notices what becomes of its shape.
                    leaf.storage = self._stored(str(spec.target))
                    state[spec.arg.name] = leaf
                else:
                    self.constants[spec.arg.name] = leaf
            elif spec.kind is not InputKind.TOKEN:
                raise CaptureError(f"the model's input '{spec.arg.name}' is a {spec.kind.name.lower()}")
        for name, leaf in state.items():
            self.state.append(leaf)
            self.values[name] = self.region.add_arg(leaf.type, leaf.name)

    def _stored(self, target: str) -> torch.Tensor:
        stored = self.program.state_dict.get(target, self.program.constants.get(target))
        assert isinstance(stored, torch.Tensor), f"{target} is not in the program"
        return stored

    def _leaf(self, target: str) -> Leaf:
        tensor = self._stored(target).detach()
        # An empty tensor has no storage to be shared, and its pointer says nothing.
        identity = place(tensor) if tensor.numel() else target
        leaf = self.leaves.setdefault(identity, Leaf(target, self.sizes.tensor_type(tensor), tensor))
        leaf.names = (*leaf.names, target)
        return leaf

    def _builder(self, node: Node) -> Builder:
        return Builder(self.table, self.regions.current, loc=location_of(node))

    def _value(self, node: Node) -> Any:
        """The IR value of an argument node, in the region that is open."""
        if node.name in self.constants:
            return self._constant(self.constants[node.name], node)
        if node.name in self.values:
            value = self.values[node.name]
            assert isinstance(value, Value), f"{node.name} is several values"
            return self.regions.here(value, location_of(node))
        size = node.meta.get("val")
        if isinstance(size, (int, torch.SymInt)):
            return self.sizes.dim(size)
        if isinstance(size, (float, bool)):
            return size
        raise CaptureError(
            f"'{node.name}' is a {type(size).__name__}, which a graph of tensors cannot hold",
            location=str(location_of(node)),
        )

    def _constant(self, leaf: Leaf, node: Node) -> Value:
        """The constant as a value of the open region, which it enters where it is first used."""
        key = (self.regions.current, leaf)
        if key not in self.used:
            self.used[key] = self._builder(node).constant(leaf)
            self.used[key].hint = leaf.name
        return self.used[key]

    def _add_call(self, node: Node) -> None:
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, Node), source
            assert isinstance(index, int), index
            if has_effect(source):
                return  # the token; checks have no results
            values = self.values[source.name]
            self.values[node.name] = values[index] if isinstance(values, tuple) else values
            return
        if node.target in MARKERS:
            self._add_marker(node, node.target)
            return
        if node.target is TRUTH:
            self.values[node.name] = truth(self._truth(node.args[0]), self.sizes, self._builder(node))
            return
        if node.target is SIZE:
            self.values[node.name] = self._builder(node).rg.dim_value(self._dim(node.args[0]))
            return
        if has_effect(node):
            with _located(node):
                add_check(node, self._value, self._builder(node))
            return
        if not isinstance(node.target, OpOverload):
            if isinstance(
                node.meta.get("val"), (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
            ):
                return
            raise CaptureError(
                f"{_target_name(node)} is not an operation on tensors that can be captured yet",
                location=str(location_of(node)),
                hint="compute both sides and select with torch.where, unroll a loop in Python, or leave this "
                "part outside of the compiled model",
            )
        name = overload_name(node.target)
        if name in _SIZE_OPS or name in _ASSERTS or self._is_size_assert(node):
            return
        if name == "aten.copy":
            self._add_copy(node)
            return
        if name in _NUMBERS and isinstance(node.meta.get("val"), (int, torch.SymInt)):
            self._add_size(node)
            return
        with _located(node):
            self._add_op(node, node.target)

    def _add_copy(self, node: Node) -> None:
        """The values of the second operand, in the type of the first, which may be another arm's."""
        (type,), _ = self._fresh_types(node)
        builder, source = self._builder(node), node.args[1]
        assert isinstance(source, Node), source
        value = self._value(source)
        if value.tensor.dtype != type.dtype:
            value = builder.create("aten._to_copy", (value,), {"dtype": type.dtype}).result
        if value.tensor.shape != type.shape:
            value = builder.aten.expand(value, type.shape)
        self.values[node.name] = value

    def _add_size(self, node: Node) -> None:
        """An integer that a tensor holds, which later code takes for a size."""
        size, value = node.meta["val"], self._value(node.all_input_nodes[0])
        known = value.op.site.dim_attr("value") if value.op and value.op.name == "rg.dim_value" else None
        if known is not None and self.sizes.settle(size, known):
            return
        dim, symbols = self.sizes.dim(size), self.sizes.take_fresh()
        number_as_size(self._builder(node), value, dim, symbols)

    def _is_size_assert(self, node: Node) -> bool:
        """Whether ``node`` asserts a fact about sizes; one that is not proved becomes a check."""
        name = _target_name(node)
        if not name.startswith(("aten._assert_scalar", "aten.sym_constrain_range")):
            return False
        condition = node.args[0]
        value: Any = condition.meta.get("val") if isinstance(condition, Node) else condition
        unbacked = getattr(getattr(value, "node", None), "shape_env", None)
        if unbacked is not None and free_unbacked_symbols(value) and name.startswith("aten._assert_scalar"):
            check_sizes(value.node.expr, self.sizes, self._builder(node), str(node.args[1]))
        return True

    def _add_marker(self, node: Node, marker: Any) -> None:
        """Open or close a region. What stands for values is these values, as they are in the region."""
        loc, regions = location_of(node), self.regions
        arguments: Any = node.args
        if marker is IF_BEGIN:
            regions.begin_condition(self._value(arguments[0]), loc)
        elif marker is IF_ELSE:
            self.values[node.name] = self._all_values(arguments[0])
            regions.begin_else()
        elif marker is IF_END:
            then: list[Any] = [self.values[each.name] for each in arguments[0]]
            otherwise = self._all_values(arguments[1])
            types, symbols = self._joined(node, [then, otherwise])
            self._settle(node, regions.end_condition(then, otherwise, types, symbols))
        elif marker is WHILE_BEGIN:
            carried = self._all_values(arguments[0])
            self.values[node.name] = regions.begin_loop(carried, *self._fresh_types(node), loc)
        elif marker is WHILE_DO:
            regions.begin_body(self._value(arguments[0]))
        elif marker is HOLDS:
            check_sizes(condition_of(arguments[0]), self.sizes, self._builder(node), arguments[1])
        else:
            after = self._all_values(arguments[0])
            types, symbols = self._joined(node, [*regions.carried, after])
            self._settle(node, regions.end_loop(after, types, symbols))

    def _joined(self, node: Node, paths: Sequence[Sequence[Value]]) -> tuple[list[TensorType], list[Symbol]]:
        """The types of values that are those of one path or another, and the symbols that the op defines.

        torch may have taken a size that differs for the number that later code needs it to be.
        """
        captured, fresh = self._fresh_types(node)
        symbols: list[Symbol] = []
        types: list[TensorType] = []
        for type, *values in zip(captured, *paths, strict=True):
            shape = list(type.shape)
            for axis, dim in enumerate(shape):
                first, *others = (value.tensor.shape[axis] for value in values)
                if any(dims.eq(first, other) is not True for other in others):
                    own = dims.as_symbol(dim)
                    symbols.append(own if own is not None and own in fresh else self.sizes.new_symbol())
                    shape[axis] = dims.as_expr(symbols[-1])
            types.append(type.with_shape(tuple(shape)))
        return types, [*symbols, *(symbol for symbol in fresh if symbol not in symbols)]

    def _settle(self, node: Node, results: Sequence[Value]) -> None:
        """Let ``results`` stand for the node, in the types that it was captured with."""
        builder, (types, _) = self._builder(node), self._fresh_types(node)
        self.values[node.name] = tuple(
            as_captured(builder, value, type) for value, type in zip(results, types, strict=True)
        )

    def _all_values(self, nodes: Any) -> tuple[Value, ...]:
        return tuple(self._value(node) for node in nodes)

    def _truth(self, condition: Any) -> Any:
        """A condition on sizes, a node or settled, as sympy or Python has it."""
        value = condition.meta["val"] if isinstance(condition, Node) else condition
        return value.node.expr if isinstance(value, torch.SymBool) else value

    def _dim(self, size: Any) -> Dim:
        """A size, a node or settled, as a dim."""
        return self._value(size) if isinstance(size, Node) else size

    def _fresh_types(self, node: Node) -> tuple[list[TensorType], tuple[Symbol, ...]]:
        """The types of a node's results and the symbols that they define."""
        self.sizes.longest = None
        types = [self.sizes.tensor_type(value) for value in _results(node)]
        return types, self.sizes.take_fresh()

    def _add_op(self, node: Node, target: OpOverload) -> None:
        builder = self._builder(node)
        arguments = call_arguments(target, node.args, node.kwargs, self._value)
        self.sizes.longest = longest_result(overload_name(target), arguments)
        result_types = [self.sizes.tensor_type(v) for v in _results(node)]
        symbols = self.sizes.take_fresh()
        if gives_bags(overload_name(target), node):
            self.values[node.name] = bags(arguments, builder)
            return
        if symbols and overload_name(target) == "aten.slice.Tensor":
            raise CaptureError(
                "a part of a tensor is taken up to a number that only a call knows",
                hint="select the part with a mask, or with an index made by torch.arange",
            )
        if overload_name(target) == "aten.index_put" and (mask := differing(arguments)) is not None:
            arguments = put(builder, arguments, mask, self._places_of(mask, (), builder))
        known = self._known(overload_name(target), arguments, result_types, symbols, builder)
        if known is not None:
            self.values[node.name] = known
            return
        check_elements(overload_name(target), arguments, builder)
        definition, bound = definition_for(target, arguments, self.table, builder)
        _refuse_effects(definition, node)
        if definition.opaque and Trait.RANDOM in definition.traits:
            self._add_draw(node, definition, bound, builder)
            return
        bound = promoted(definition, bound, result_types, builder)
        op = _typed(definition, bound, result_types, builder.loc, symbols)
        if isinstance(op, str):
            # A use that the table does not cover: eager can still run it.
            plain = replace(opaque(target), refusal=op)
            known = {p.name for p in plain.params}
            given = {name: value for name, value in arguments.items() if name in known}
            op = Op.create(plain, (), given, result_types=result_types, symbols=symbols, loc=builder.loc)
        builder.insert(op)
        for result, type in zip(op.results, result_types, strict=True):
            result.hint = node.name
            result.type = type
        if definition.name == "aten.nonzero":
            self.places[arguments["self"]] = op.results[0]
        many = isinstance(node.meta["val"], (tuple, list))
        self.values[node.name] = op.results if many else op.results[0]

    def _known(
        self,
        name: str,
        arguments: Mapping[str, Any],
        types: Sequence[TensorType],
        symbols: tuple[Symbol, ...],
        builder: Builder,
    ) -> Value | None:
        """What the places of a mask give: torch gives all uses of one mask one symbol, and finds it once."""
        mask = arguments["self"] if name == "aten.nonzero" else picking_mask(name, arguments)
        if mask is None or (name == "aten.nonzero" and symbols):
            return None
        places = self._places_of(mask, symbols, builder)
        found = places if name == "aten.nonzero" else picked(builder, arguments, mask, places)
        return as_captured(builder, found, types[0])

    def _places_of(self, mask: Value, symbols: tuple[Symbol, ...], builder: Builder) -> Value:
        """``nonzero(mask)``, found once for each mask."""
        if not symbols and mask not in self.places:
            # A mask that is computed anew, as in y[y > 0] = f(y[y > 0]).
            alike = (each for known, each in self.places.items() if is_alike(known, mask))
            here = (each for each in alike if each.op is not None and each.op.parent is self.regions.current)
            if (found := next(here, None)) is not None:
                self.places[mask] = found
        if mask not in self.places or symbols:
            # Where later code settles how many there are, torch has no symbol for it.
            own = symbols or (self.sizes.new_symbol(),)
            self.places[mask] = builder.create("aten.nonzero", (mask,), symbols=own).result
        return self.places[mask]

    def _add_draw(self, node: Node, definition: OpDef, arguments: dict[str, Any], builder: Builder) -> None:
        """An op that draws random numbers, with what its numbers depend on besides the operands' values."""
        captured = [each.meta.get("val") for each in node.all_input_nodes]
        operands = [tensor for tensor in captured if isinstance(tensor, torch.Tensor)]
        arguments[MEMORY_ORDER] = memory_order(definition.name, operands)
        types = [self.sizes.tensor_type(v) for v in _results(node)]
        if not operands and "dtype" in {spec.name for spec in definition.attrs}:
            arguments["dtype"] = types[0].dtype  # left out it is torch's default, which may change
        op = builder.insert(Op.create(definition, (), arguments, result_types=types, loc=builder.loc))
        many = isinstance(node.meta["val"], (tuple, list))
        self.values[node.name] = op.results if many else op.results[0]

    def _add_results(self) -> dict[int, int]:
        """End the region; the arguments that results are written back to, by the results' indices."""
        nodes = {n.name: n for n in self.program.graph.nodes}
        results = [self._value(nodes[name]) for name in self.results.names]
        Builder(self.table, self.region).create("cf.yield", (results,))
        targets = [self.values[name] for name in self.results.written]
        first = len(self.results.computed)
        return {first + i: target.index for i, target in enumerate(targets) if isinstance(target, Value)}


def _typed(
    definition: OpDef,
    bound: Mapping[str, Any],
    result_types: Sequence[TensorType],
    loc: Location,
    symbols: Sequence[Symbol] = (),
) -> Op | str:
    """The op with its types inferred and compared with those captured.

    The reason instead where a built-in op has no type rule for this use.
    """
    if definition.opaque:
        return Op.create(definition, (), bound, result_types=result_types, symbols=symbols, loc=loc)
    try:
        op = Op.create(definition, (), bound, symbols=symbols, loc=loc)
    except Exception as error:
        if not definition.origin:
            if isinstance(error, TypeError):
                return str(error).removeprefix(f"{definition.name}: ")
            raise
        raise CaptureError(
            f"the type rule of {definition.name} refuses a use of it that torch takes: {error}",
            location=str(loc),
            hint=f"mend OpDef.infer ({definition.origin}), or leave it out: capture knows the types",
        ) from error
    _check_types(op, result_types)
    return op


@contextmanager
def _located(node: Node) -> Generator[None]:
    """Errors in the block are at the line of ``node`` where they name none."""
    try:
        yield
    except CaptureError as error:
        error.location = error.location or str(location_of(node))
        raise


def _refuse_effects(definition: OpDef, node: Node) -> None:
    if definition.opaque and not definition.traits & (Trait.PURE | Trait.RANDOM):
        raise CaptureError(
            f"{definition.name} writes to its arguments",
            location=str(location_of(node)),
            hint="use the form that returns a new tensor",
        )


def _results(node: Node) -> list[torch.Tensor]:
    value = node.meta.get("val")
    given: Sequence[Any] = value if isinstance(value, (tuple, list)) else [value]
    results = [v for v in given if isinstance(v, torch.Tensor)]
    if len(results) != len(given):
        raise CaptureError(
            f"{_target_name(node)} gives a {type(value).__name__}: a number read from a tensor cannot be "
            "captured yet",
            location=str(location_of(node)),
            hint="keep it a tensor: leave out .item() or .tolist()",
        )
    return results


def _check_types(op: Op, expected: Sequence[TensorType]) -> None:
    if op.definition.origin and len(op.results) != len(expected):
        raise _types_differ(op, f"{len(expected)} results", f"{len(op.results)} results")
    for result, type in zip(op.results, expected, strict=True):
        if not isinstance(result.type, TensorType):
            raise _types_differ(op, str(type), str(result.type))
        same = result.type.dtype == type.dtype and result.type.rank == type.rank
        if not same or not (
            refines(type, result.type) or refines(result.type, type) or _may_equal(result.type, type)
        ):
            raise _types_differ(op, str(type), str(result.type))


def _types_differ(op: Op, captured: str, inferred: str) -> CaptureError:
    origin = op.definition.origin
    return CaptureError(
        f"{op.name} was captured with the type {captured}, but its rule gives {inferred}; "
        + (f"mend OpDef.infer ({origin})" if origin else "this is a bug in regraft's op table"),
        location=str(op.loc),
    )


def _may_equal(a: TensorType, b: TensorType) -> bool:
    return all(dims.eq(x, y) is not False for x, y in zip(a.shape, b.shape, strict=True))


def _target_name(node: Node) -> str:
    return str(node.target).removesuffix(".default")
