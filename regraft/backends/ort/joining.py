"""Feature maps keep ONNX Runtime's blocked layout on their way into a condition and out of one.

``NchwcTransformer`` gives the convolutions of one graph a layout in blocks of channels. It looks at each
graph by itself: what an arm of an ``If`` takes from outside, or hands on, goes back to plain order and is put
in blocks again, and the sum and activation behind such a convolution stay nodes of their own. A network of
skipped layers is little else. Here the graphs that it left are joined: ``ReorderInput`` of what is known in
blocks reads that, sums and activations of such values are computed in blocks, within the convolution
before them where it has no other reader, and an ``If`` hands on blocks where a reader of its result wants
them.

The lanes that fill a last block are whatever they are: every reader's weights are zero there, as in the
transformer's own graphs.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, MutableMapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

BLOCKED = "com.microsoft.nchwc"

_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh"})
_ELEMENTWISE = frozenset({"Add", "Mul", "Identity", *_ACTIVATIONS})

_ENTERS = 4
"""``ReorderInput`` takes channels by so many; convolutions make blocks of any number."""

_Twins = MutableMapping[ir.Value, ir.Value]
"""Plain value -> the same in blocks."""


def joined(path: str) -> bool:
    """Join the graphs of the file at ``path``, which ONNX Runtime has optimised, in place.

    Whether there was anything to join: the file is what it was where there was not.
    """
    model = ir.load(path)
    if not join_layouts(model):
        return False
    NameFixPass()(model)  # graphs number their values alone, and read each other's now
    ir.save(model, path)
    return True


def join_layouts(model: ir.Model) -> bool:
    """Change ``model``, which ONNX Runtime has optimised, in place; whether there was anything to change."""
    joining = _Joining()
    joining.mark(model.graph)
    joining.visit(model.graph, ChainMap[ir.Value, ir.Value]())
    _sweep(model.graph)
    return joining.has_changed


class _Joining:
    """One walk over the graphs of a model."""

    def __init__(self) -> None:
        self.has_changed = False
        self._wanted: set[ir.Value] = set()
        """Plain values that somebody reads in blocks."""

    def mark(self, graph: ir.Graph) -> None:
        """Find what is wanted in blocks; readers come behind what they read."""
        for node in reversed(graph):
            if _is_reorder(node, "ReorderInput"):
                self._wanted.update(_inputs(node))
            elif _is_elementwise(node):
                is_summed = any(_is_reordered(x) for x in _inputs(node))
                if is_summed or node.outputs[0] in self._wanted:
                    self._wanted.update(_inputs(node))
            for inner in _arms(node):
                if node.op_type == "If":
                    pairs = zip(node.outputs, inner.outputs, strict=True)
                    self._wanted.update(made for result, made in pairs if result in self._wanted)
                self.mark(inner)

    def visit(self, graph: ir.Graph, twins: ChainMap[ir.Value, ir.Value]) -> None:
        """Join what ``graph`` reads and makes; ``twins`` has what is known in blocks there, and comes to have
        what it makes.
        """
        for node in list(graph):
            if _is_reorder(node, "ReorderInput"):
                self._enter(graph, node, twins)
            elif _is_reorder(node, "ReorderOutput"):
                (inside,) = _inputs(node)
                twins[node.outputs[0]] = inside
            elif _is_elementwise(node):
                self._elementwise(graph, node, twins)
            else:
                scopes = [(inner, twins.new_child()) for inner in _arms(node)]
                for inner, scope in scopes:
                    self.visit(inner, scope)
                if node.op_type == "If":
                    self._condition(graph, node, scopes, twins)

    def _enter(self, graph: ir.Graph, node: ir.Node, twins: _Twins) -> None:
        (plain,) = _inputs(node)
        if plain not in twins:
            twins[plain] = node.outputs[0]
            return
        _replace(node.outputs[0], twins[plain])
        graph.remove(node, safe=True)
        self.has_changed = True

    def _elementwise(self, graph: ir.Graph, node: ir.Node, twins: _Twins) -> None:
        given = _inputs(node)
        shapes = {_shape(x) for x in given}
        if not all(x in twins for x in given) or len(shapes) != 1 or None in shapes:
            return
        inside = [twins[x] for x in given]
        made = _within_convolution(graph, node, given, inside) or _like(node, inside)
        graph.insert_before(node, made)
        self._hand_on(graph, node, node.outputs[0], made.outputs[0], twins)
        graph.remove(node, safe=True)

    def _condition(
        self,
        graph: ir.Graph,
        node: ir.Node,
        scopes: Sequence[tuple[ir.Graph, ChainMap[ir.Value, ir.Value]]],
        twins: _Twins,
    ) -> None:
        for number, result in enumerate(node.outputs):
            made = [scope.get(inner.outputs[number]) for inner, scope in scopes]
            shape = _shape(result)
            if result not in self._wanted or shape is None or not any(made):
                continue
            if None in made and int(shape[1]) % _ENTERS:
                continue
            for (inner, _), value in zip(scopes, made, strict=True):
                inner.outputs[number] = _own(inner, value or _entered(inner, inner.outputs[number]))
            self._hand_on(graph, node, result, result, twins)

    def _hand_on(
        self, graph: ir.Graph, node: ir.Node, plain: ir.Value, inside: ir.Value, twins: _Twins
    ) -> None:
        """Behind ``node``, let those that read ``plain`` read a reordered ``inside``."""
        shape = _shape(plain)
        assert shape is not None
        back = ir.node("ReorderOutput", [inside], {"channels": shape[1], "channels_last": 0}, domain=BLOCKED)
        (fresh,) = back.outputs
        fresh.name, fresh.type, fresh.shape = plain.name, plain.type, plain.shape  # a result keeps its name
        plain.name = None
        _replace(plain, fresh, but=back)
        if plain is inside:
            plain.shape = None
        graph.insert_after(node, back)
        twins[fresh] = inside
        if plain in self._wanted:
            self._wanted.add(fresh)
        self.has_changed = True


def _within_convolution(
    graph: ir.Graph, node: ir.Node, given: Sequence[ir.Value], inside: Sequence[ir.Value]
) -> ir.Node | None:
    """``node`` as the end of the convolution before it, whose result nobody else reads."""
    for number, (plain, value) in enumerate(zip(given, inside, strict=True)):
        convolution = value.producer()
        if convolution is None or not _may_end(convolution, graph, node, plain):
            continue
        inputs, attributes = list(convolution.inputs), dict(convolution.attributes)
        if node.op_type in _ACTIVATIONS:
            attributes["activation"] = ir.AttrString("activation", node.op_type)
        elif node.op_type == "Add" and len(inputs) < 4:
            inputs += [None] * (3 - len(inputs))
            inputs.append(inside[1 - number])
        else:
            continue
        return ir.Node(BLOCKED, "Conv", inputs, list(attributes.values()), num_outputs=1)
    return None


def _may_end(convolution: ir.Node, graph: ir.Graph, node: ir.Node, plain: ir.Value) -> bool:
    """Whether ``convolution`` may be computed where ``node`` is, which reads it as ``plain``, instead."""
    (result,) = convolution.outputs if len(convolution.outputs) == 1 else (None,)
    if result is None or (convolution.domain, convolution.op_type) != (BLOCKED, "Conv"):
        return False
    is_free = convolution.graph is graph and "activation" not in convolution.attributes
    readers = [user for user, _ in result.uses()]
    is_alone = readers == [plain.producer()] and [user for user, _ in plain.uses()] == [node]
    return is_free and is_alone and not plain.is_graph_output()


def _like(node: ir.Node, inputs: Sequence[ir.Value]) -> ir.Node:
    return ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=1)


def _entered(graph: ir.Graph, plain: ir.Value) -> ir.Value:
    """``plain`` in blocks, at the end of ``graph``."""
    node = ir.node("ReorderInput", [plain], {"channels_last": 0}, domain=BLOCKED)
    graph.append(node)
    return node.outputs[0]


def _own(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """``value`` as a result of ``graph``, which must have made it, and for this one place."""
    producer = value.producer()
    if producer is not None and producer.graph is graph and value not in graph.outputs:
        return value
    copy = ir.node("Identity", [value])
    graph.append(copy)
    return copy.outputs[0]


def _replace(value: ir.Value, by: ir.Value, but: ir.Node | None = None) -> None:
    """Let all readers of ``value`` but one read another value, and graphs return that."""
    for user, index in tuple(value.uses()):
        if user is not but:
            user.replace_input_with(index, by)
    graph = value.graph
    if graph is not None and value.is_graph_output():
        for index, result in enumerate(graph.outputs):
            if result is value:
                graph.outputs[index] = by


def _sweep(graph: ir.Graph) -> None:
    """Drop what nobody reads any more: moves, and convolutions that ended in another node."""
    for node in reversed(graph):
        for inner in _arms(node):
            _sweep(inner)
        may_go = node.domain == BLOCKED or node.op_type == "Identity"
        if may_go and not any(result.uses() or result.is_graph_output() for result in node.outputs):
            graph.remove(node, safe=True)


def _arms(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()


def _inputs(node: ir.Node) -> list[ir.Value]:
    return [x for x in node.inputs if x is not None]


def _is_reorder(node: ir.Node, name: str) -> bool:
    """Whether ``node`` is that move between blocks and the plain order N, C, H, W."""
    is_named = (node.domain, node.op_type) == (BLOCKED, name)
    return is_named and not node.attributes.get_int("channels_last", 0)


def _is_reordered(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and _is_reorder(producer, "ReorderOutput")


def _is_elementwise(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in _ELEMENTWISE


def _shape(value: ir.Value) -> tuple[int | str, ...] | None:
    """The dims of a value of rank 4; None where they are not all known."""
    shape = value.shape
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int):
        return None
    dims = tuple(dim if isinstance(dim, int) else dim.value for dim in shape)
    return None if None in dims else dims  # pyright: ignore[reportReturnType]
