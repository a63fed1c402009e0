"""torch's higher-order ops, whose arms are graphs of their own, written out flat between markers.

``torch.cond`` and ``torch.while_loop`` become the markers of a condition and a loop. ``map`` and ``scan``
become a loop over an index that reads a row of each input and writes a row of each output.
"""

# torch's export and fx classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportPrivateUsage=false

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from regraft.compiler.capture.control.flat import ORIGIN, index_of
from regraft.compiler.capture.control.markers import (
    IF_BEGIN,
    IF_ELSE,
    IF_END,
    TRUTH,
    WHILE_BEGIN,
    WHILE_DO,
    WHILE_END,
    differ,
)
from regraft.compiler.capture.control.trace import too_many
from regraft.compiler.capture.source import location_of
from regraft.errors import CaptureError

_ATEN: Any = torch.ops.aten


def copied(program: ExportedProgram) -> ExportedProgram:
    """The program, with a graph of its own where ``write_out`` changes it; weights are shared."""
    if not any(node.target in _EXPANSIONS for node in program.graph.nodes):
        return program
    graph = Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    for node, own in zip(program.graph.nodes, graph.nodes, strict=True):
        own.meta = dict(node.meta)
    own = program._update(GraphModule(program.graph_module, graph), program.graph_signature)
    own._guards_code = program._guards_code
    return own


def write_out(program: ExportedProgram, limit: int | None = None) -> None:
    """Replace the higher-order ops of ``program`` by what they stand for; loops take ``limit`` trips at most.

    Raises:
        CaptureError: one carries what is no tensor, or gives a result of a size that nothing else has.
    """
    graph, module = program.graph, program.graph_module
    found = [node for node in graph.nodes if node.target in _EXPANSIONS]
    for node in found:
        arguments = [_graph_of(argument, module) for argument in node.args]
        with graph.inserting_before(node):
            results = _Writer(graph, node, limit).expanded(node, arguments)
        for user in list(node.users):
            user.replace_all_uses_with(_standing_for(results[index_of(user)], user))
            graph.erase_node(user)
        graph.erase_node(node)
    if found:
        graph.eliminate_dead_code(lambda node: node.op != "get_attr")
        module.delete_all_unused_submodules()
        module.recompile()


def _graph_of(argument: Any, module: torch.nn.Module) -> Any:
    """The argument of a higher-order op, a graph instead of the node that fetches it."""
    if isinstance(argument, Node) and argument.op == "get_attr":
        found = module.get_submodule(str(argument.target))
        assert isinstance(found, GraphModule), argument
        return found
    return argument


class _Writer:
    """Writes nodes that come from where ``source`` does, at the place that the graph inserts at.

    Loops of which only a call knows the trips take at most ``limit``.
    """

    def __init__(self, graph: Graph, source: Node, limit: int | None) -> None:
        self.graph = graph
        self.source = source
        self.limit = limit

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        node = self.graph.call_function(target, args, kwargs)
        node.meta = {key: value for key, value in self.source.meta.items() if key in ORIGIN}
        return node

    def several(self, target: Any, count: int, *args: Any) -> list[Node]:
        """The results of a marker."""
        marker = self.call(target, *args)
        return [self.call(operator.getitem, marker, index) for index in range(count)]

    def inlined(self, module: GraphModule, operands: Sequence[Node]) -> list[Node]:
        """The nodes of an arm's graph, taking ``operands``; what it returns."""
        values: dict[Node, Any] = {}
        given = iter(operands)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = _standing_for(next(given), node)
            elif node.op == "get_attr":
                values[node] = _graph_of(node, module)
            elif node.op == "output":
                returned = torch.fx.map_arg(node.args[0], values.__getitem__)
                return list(returned) if isinstance(returned, (list, tuple)) else [returned]
            elif node.target is operator.getitem and isinstance(values[node.args[0]], list):
                values[node] = _standing_for(values[node.args[0]][node.args[1]], node)
            elif node.target in _EXPANSIONS:
                values[node] = self.expanded(node, _mapped(node.args, values))
            else:
                values[node] = self.graph.node_copy(node, values.__getitem__)
        raise AssertionError("a graph without an output")

    def expanded(self, node: Node, arguments: Sequence[Any]) -> list[Node]:
        """What stands for the results of a higher-order op."""
        return _EXPANSIONS[node.target](self, node, *arguments)


def _standing_for(value: Any, node: Node) -> Any:
    """``value``, made here and so without a type of its own, with that of ``node``."""
    if isinstance(value, Node) and "val" in node.meta:
        value.meta.setdefault("val", node.meta["val"])
    return value


def _mapped(argument: Any, values: Mapping[Node, Any]) -> Any:
    if isinstance(argument, Node):
        return values[argument]
    return [_mapped(each, values) for each in argument] if isinstance(argument, (list, tuple)) else argument


def _condition(
    w: _Writer, node: Node, pred: Any, then: GraphModule, otherwise: GraphModule, operands: Sequence[Any]
) -> list[Node]:
    if isinstance(pred, bool):
        return w.inlined(then if pred else otherwise, operands)
    flag = pred if isinstance(pred.meta.get("val"), torch.Tensor) else w.call(TRUTH, pred)
    w.call(IF_BEGIN, flag, [])
    first = w.inlined(then, operands)
    kept = w.several(IF_ELSE, len(first), first)
    second = w.inlined(otherwise, operands)
    return w.several(IF_END, len(first), kept, second)


def _loop(
    w: _Writer,
    node: Node,
    test: GraphModule,
    body: GraphModule,
    carried: Sequence[Any],
    additional: Sequence[Any],
) -> list[Node]:
    _check_tensors(node, carried)
    changing = _changing(body, carried)
    if w.limit is not None:
        return _bounded(w, node, test, body, carried, additional, changing, w.limit)
    inside = w.several(WHILE_BEGIN, len(carried), list(carried), changing, [])
    (go_on,) = w.inlined(test, [*inside, *additional])
    w.call(WHILE_DO, go_on)
    after = w.inlined(body, [*inside, *additional])
    return w.several(WHILE_END, len(carried), after, changing)


def _bounded(
    w: _Writer,
    node: Node,
    test: GraphModule,
    body: GraphModule,
    carried: Sequence[Any],
    additional: Sequence[Any],
    changing: Sequence[int],
    limit: int,
) -> list[Node]:
    """The loop with a count of its trips before what it carries, as ``trace.loop`` has it."""
    changing = [each + 1 - i % 2 for i, each in enumerate(changing)]
    first = w.call(_ATEN.new_zeros.default, carried[0], [], dtype=torch.int64)
    trips, *inside = w.several(WHILE_BEGIN, len(carried) + 1, [first, *carried], changing, [])
    (go_on,) = w.inlined(test, [*inside, *additional])
    w.call(WHILE_DO, w.call(_ATEN.logical_and.default, go_on, w.call(_ATEN.le.Scalar, trips, limit)))
    after = [w.call(_ATEN.add.Tensor, trips, 1), *w.inlined(body, [*inside, *additional])]
    trips, *results = w.several(WHILE_END, len(after), after, changing)
    message = too_many(limit, location_of(node))
    w.call(_ATEN._assert_async.msg, w.call(_ATEN.le.Scalar, trips, limit), message)
    return results


def _changing(body: GraphModule, carried: Sequence[Node]) -> list[int]:
    """The sizes that are others in the body than those that the loop begins with."""
    inside = [node.meta["val"] for node in body.graph.nodes if node.op == "placeholder"]
    return [
        number_or_axis
        for number, (start, each) in enumerate(zip(carried, inside, strict=False))
        for axis, sizes in enumerate(zip(start.meta["val"].shape, each.shape, strict=True))
        if differ(*sizes)
        for number_or_axis in (number, axis)
    ]


def _scan(
    w: _Writer,
    node: Node,
    step: GraphModule,
    start: Sequence[Any],
    rows: Sequence[Any],
    additional: Sequence[Any],
) -> list[Node]:
    """``step`` takes what is carried and a row of each of ``rows``; it gives what is carried and new rows."""
    _check_tensors(node, [*start, *rows])
    length = _size_of(w, rows[0], 0)
    outputs = _returned(step)[len(start) :]
    known = [*rows, *start, *additional]
    made = [
        w.call(_ATEN.new_zeros.default, rows[0], [length, *_sizes(w, node, each, known)], dtype=each.dtype)
        for each in outputs
    ]
    first = w.call(_ATEN.new_zeros.default, rows[0], [], dtype=torch.int64)
    carried = [first, *start, *made]
    index, *inside = w.several(WHILE_BEGIN, len(carried), carried, [], [])
    w.call(WHILE_DO, w.call(_ATEN.lt.Scalar, index, length))
    place = w.call(_ATEN.view.default, index, [1])
    row = [w.call(_ATEN.squeeze.dim, w.call(_ATEN.index_select.default, x, 0, place), 0) for x in rows]
    results = w.inlined(step, [*inside[: len(start)], *row, *additional])
    written = [
        w.call(_ATEN.index_copy.default, whole, 0, place, w.call(_ATEN.unsqueeze.default, each, 0))
        for whole, each in zip(inside[len(start) :], results[len(start) :], strict=True)
    ]
    after = [w.call(_ATEN.add.Tensor, index, 1), *results[: len(start)], *written]
    return w.several(WHILE_END, len(carried), after, [])[1:]


def _map(
    w: _Writer, node: Node, step: GraphModule, rows: Sequence[Any], additional: Sequence[Any]
) -> list[Node]:
    return _scan(w, node, step, (), rows, additional)


def _returned(module: GraphModule) -> list[torch.Tensor]:
    (returned,) = (node.args[0] for node in module.graph.nodes if node.op == "output")
    return [each.meta["val"] for each in returned]


def _size_of(w: _Writer, tensor: Node, axis: int) -> Any:
    size: Any = tensor.meta["val"].shape[axis]
    return size if isinstance(size, int) else w.call(_ATEN.sym_size.int, tensor, axis)


def _sizes(w: _Writer, node: Node, row: torch.Tensor, known: Sequence[Node]) -> list[Any]:
    """The sizes of a row of the results, the open ones read from a tensor that has them."""
    places = [(each, axis) for each in known for axis in range(each.meta["val"].dim())]
    found: list[Any] = list(row.shape)
    for axis, size in enumerate(found):
        if not isinstance(size, int):
            holder = next((p for p in places if not differ(p[0].meta["val"].shape[p[1]], size)), None)
            if holder is None:
                _refuse(node, f"a row of its results has the size {size}, which none of its inputs has")
            found[axis] = _size_of(w, *holder)
    return found


def _check_tensors(node: Node, values: Sequence[Any]) -> None:
    if not all(isinstance(v, Node) and isinstance(v.meta.get("val"), torch.Tensor) for v in values):
        _refuse(node, "it carries a number, which no graph of tensors holds")


def _refuse(node: Node, why: str) -> NoReturn:
    raise CaptureError(
        f"{node.target} cannot be captured: {why}",
        location=str(location_of(node)),
        hint="pass it as a tensor, or write the loop in Python",
    )


_HIGHER_ORDER: Any = torch.ops.higher_order
_EXPANSIONS: Mapping[Any, Callable[..., list[Node]]] = {
    _HIGHER_ORDER.cond: _condition,
    _HIGHER_ORDER.while_loop: _loop,
    _HIGHER_ORDER.scan: _scan,
    _HIGHER_ORDER.map_impl: _map,
}
