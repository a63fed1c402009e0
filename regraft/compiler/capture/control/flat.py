"""What is where in a flat graph with markers, and which nodes share memory."""

# torch's export and fx classes are partly untyped, and neither storages nor schemas have public names.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._C._functorch import is_batchedtensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

from regraft.compiler.capture.control.markers import BEGINNINGS, ENDS, MIDDLES, WHILE_BEGIN

#: A tensor that the code writes out: to the trace it shares the memory of the constant that it is a copy of.
_LITERAL = torch.ops.aten.lift_fresh_copy.default

#: What a node's metadata say of where in the model it comes from.
ORIGIN = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn")

#: The memory of a tensor: tensors with equal ones share it.
Memory = int


@dataclass(eq=False)
class Construct:
    """A condition or a loop: its three markers, and the nodes between them that are in no inner one."""

    begin: Node
    around: Construct | None
    parts: tuple[list[Node], list[Node]] = field(default_factory=lambda: ([], []))
    markers: list[Node] = field(default_factory=list[Node])

    @property
    def middle(self) -> Node:
        return self.markers[0]

    @property
    def end(self) -> Node:
        return self.markers[1]

    @property
    def is_loop(self) -> bool:
        return self.begin.target is WHILE_BEGIN

    @property
    def carried(self) -> dict[int, tuple[Node, Node]]:
        """For each value that trips read, by its number: what it begins as, and what stands for it inside."""
        starts = listed(self.begin.args[0]) if self.is_loop else []
        return {number: (starts[number], inside) for number, inside in getitems(self.begin).items()}

    def given(self, number: int) -> list[Node]:
        """What the result ``number`` may be."""
        if self.is_loop:
            return [listed(self.begin.args[0])[number], listed(self.end.args[0])[number]]
        kept = listed(self.end.args[0])[number]
        return [listed(self.middle.args[0])[index_of(kept)], listed(self.end.args[1])[number]]

    def hands_on(self, number: int) -> bool:
        """Whether each trip hands on the carried value ``number`` as the object that it got."""
        inside = self.carried.get(number)
        return inside is not None and identity(listed(self.end.args[0])[number]) is inside[1]

    def encloses(self, other: Construct | None) -> bool:
        """Whether ``other`` is this construct or stands in it."""
        while other is not None and other is not self:
            other = other.around
        return other is self


class FlatGraph:
    """The constructs of an exported program, inner ones first, and where each memory is made."""

    def __init__(self, program: ExportedProgram) -> None:
        self.constructs: list[Construct] = []
        #: What each node stands in; a marker stands outside of its own construct.
        self.around: dict[Node, Construct | None] = {}
        #: Memory -> the first node that is a tensor in it.
        self.makers: dict[Memory, Node] = {}
        self._order = {node: index for index, node in enumerate(program.graph.nodes)}
        innermost: Construct | None = None
        for node in program.graph.nodes:
            if node.target in BEGINNINGS:
                innermost = Construct(node, innermost)
                self.around[node] = innermost.around
            elif node.target in MIDDLES:
                assert innermost is not None, "a middle without its beginning"
                innermost.markers.append(node)
                self.around[node] = innermost.around
            elif node.target in ENDS:
                assert innermost is not None, "an end without its beginning"
                innermost.markers.append(node)
                self.constructs.append(innermost)
                innermost = innermost.around
                self.around[node] = innermost
            else:
                self._note(node, innermost)

    def _note(self, node: Node, construct: Construct | None) -> None:
        self.around[node] = construct
        if construct is not None:
            construct.parts[len(construct.markers)].append(node)
        memory = memory_of(node)
        if memory is not None and (memory not in self.makers or node.target is _LITERAL):
            self.makers[memory] = node

    def comes_from_outside(self, memory: Memory, construct: Construct) -> bool:
        """Whether ``memory`` was made before ``construct`` began."""
        return not construct.encloses(self.around[self.makers[memory]])

    def comes_before(self, node: Node, other: Node) -> bool:
        return self._order[node] < self._order[other]

    def loops_around(self, node: Node) -> Iterator[Construct]:
        construct = self.around[node]
        while construct is not None:
            if construct.is_loop:
                yield construct
            construct = construct.around

    def exclusive(self, node: Node, other: Node) -> bool:
        """Whether the nodes stand in the two arms of one condition."""
        mine, theirs = self.parts_of(node), self.parts_of(other)
        return any(not c.is_loop and theirs.get(c, part) != part for c, part in mine.items())

    def parts_of(self, node: Node) -> dict[Construct, int]:
        """The constructs around a node, and which of their two parts it is in."""
        found: dict[Construct, int] = {}
        construct = self.around[node]
        while construct is not None:
            found[construct] = int(self._order[node] > self._order[construct.middle])
            construct = construct.around
        return found


def memory_of(node: Node) -> Memory | None:
    """The memory of a node that is a tensor, by the fake tensors that ``torch.export`` left."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or is_batchedtensor(value):
        return None  # what torch.func batches has no memory, and is refused later on
    return value.untyped_storage()._cdata


def written_by(node: Node) -> Iterator[Node]:
    """The arguments that ``node`` writes to."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return
    schema = node.target._schema.arguments
    given = {a.name: v for a, v in zip(schema, node.args, strict=False)} | dict(node.kwargs)
    for argument in schema:
        if argument.alias_info is not None and argument.alias_info.is_write:
            values: Any = given.get(argument.name)
            for value in values if isinstance(values, (list, tuple)) else [values]:
                if isinstance(value, Node):
                    yield value


def memories_written_by(node: Node) -> set[Memory]:
    return {memory for each in written_by(node) if (memory := memory_of(each)) is not None}


def identity(node: Node) -> Node:
    """The node that made the tensor object which the in-place op ``node`` gives back."""
    while isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
        node = next(written_by(node))
    return node


def listed(argument: Any) -> list[Node]:
    """An argument that is a list of nodes."""
    return list(argument)


def index_of(getitem: Node) -> int:
    """Which result of its marker a node is."""
    assert getitem.target is operator.getitem, getitem
    return int(getitem.args[1])  # pyright: ignore[reportArgumentType]


def getitems(marker: Node) -> dict[int, Node]:
    """The results of a marker that someone uses."""
    return {index_of(user): user for user in marker.users if user.target is operator.getitem}
