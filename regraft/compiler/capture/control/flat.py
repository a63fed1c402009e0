"""What is where in a flat graph with markers, and which nodes share memory."""

# torch's export and fx classes are partly untyped, and neither storages nor schemas have public names.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

from regraft.compiler.capture.control.markers import BEGINNINGS, ENDS, MIDDLES, WHILE_BEGIN

#: The memory of a tensor: tensors with equal ones share it.
Memory = int


@dataclass(eq=False)
class Construct:
    """A condition or a loop: three markers, and the nodes of the two parts between them."""

    begin: Node
    around: Construct | None
    parts: tuple[list[Node], list[Node]] = field(default_factory=lambda: ([], []))
    middle: Node | None = None
    end: Node | None = None

    @property
    def is_loop(self) -> bool:
        return self.begin.target is WHILE_BEGIN

    def encloses(self, other: Construct | None) -> bool:
        """Whether ``other`` is this construct or stands in it."""
        while other is not None and other is not self:
            other = other.around
        return other is self


class FlatGraph:
    """The constructs of an exported program, inner ones first, and where each memory is made."""

    def __init__(self, program: ExportedProgram) -> None:
        self.constructs: list[Construct] = []
        #: The constructs that nodes stand in, by the markers around them; a marker stands outside of its own.
        self.around: dict[Node, Construct | None] = {}
        #: Memory -> the first node that is a tensor in it.
        self.makers: dict[Memory, Node] = {}
        innermost: Construct | None = None
        for node in program.graph.nodes:
            if node.target in BEGINNINGS:
                innermost = Construct(node, innermost)
                self.around[node] = innermost.around
                continue
            if node.target in ENDS:
                assert innermost is not None, "an end without its beginning"
                innermost.end = node
                self.constructs.append(innermost)
                innermost = innermost.around
            self.around[node] = innermost
            self._note(node, innermost)

    def _note(self, node: Node, construct: Construct | None) -> None:
        if node.target in MIDDLES:
            assert construct is not None, "a middle without its beginning"
            construct.middle = node
        elif construct is not None:
            construct.parts[construct.middle is not None].append(node)
        memory = memory_of(node)
        if memory is not None:
            self.makers.setdefault(memory, node)

    def comes_from_outside(self, memory: Memory, construct: Construct) -> bool:
        """Whether ``memory`` was made before ``construct`` began."""
        return not construct.encloses(self.around[self.makers[memory]])


def memory_of(node: Node) -> Memory | None:
    """The memory of a node that is a tensor, by the fake tensors that ``torch.export`` left."""
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None


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
