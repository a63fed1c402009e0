"""What the inputs of one of Dynamo's graphs are, and the graph as a function of its arguments alone."""

# Dynamo's graphs and their metadata are untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import guarding_hint_or_throw

from regraft.errors import CaptureError

#: A number, or an expression in sympy over the symbols of Dynamo's graph.
Extent = Any
Kind = Literal["argument", "weight", "size", "number"]


@dataclass(frozen=True)
class Place:
    """One input of a graph.

    ``argument`` is a tensor that varies from call to call, ``weight`` one that stays while the model does,
    ``size`` an axis of an argument, and ``number`` a Python number that is no such size.
    """

    kind: Kind
    name: str
    argument: int = 0
    axis: int = 0


@dataclass(frozen=True)
class _Scalar:
    """Stands for the tensor in which Dynamo hands over a float that may vary: its graph asks for the item."""

    value: float

    def item(self) -> float:
        return self.value


def placeholders(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def places(nodes: Sequence[Node], inputs: Sequence[Any]) -> tuple[Place, ...]:
    """What each input is, by its placeholder and the value it has at the compile.

    Raises:
        CaptureError: one is neither a tensor nor a number.
    """
    kinds: list[Kind | None] = [_tensor_kind(node, value) for node, value in zip(nodes, inputs, strict=True)]
    arguments = [node for node, kind in zip(nodes, kinds, strict=True) if kind == "argument"]
    axes: dict[Extent, tuple[int, int]] = {}
    for i, node in enumerate(arguments):
        for axis in open_axes(node):
            axes.setdefault(extent_of(node.meta["example_value"].shape[axis]), (i, axis))
    found: list[Place] = []
    for node, value, kind in zip(nodes, inputs, kinds, strict=True):
        name = source_name(node)
        if kind is not None:
            found.append(Place(kind, name))
        elif not isinstance(value, (int, float, torch.SymInt)):
            raise CaptureError(
                f"the graph takes '{name}', a {type(value).__name__}, which is neither a tensor nor a number"
            )
        elif (size := extent_of(node.meta["example_value"])) in axes:
            found.append(Place("size", name, *axes[size]))
        else:
            found.append(Place("number", name))
    return tuple(found)


def _tensor_kind(node: Node, value: Any) -> Kind | None:
    if not isinstance(value, Tensor):
        return None
    if node.users and all(use.op == "call_method" and use.target == "item" for use in node.users):
        return "number"
    # Dynamo marks the tensors that modules hold. Writes to an inference tensor are not counted.
    stays = isinstance(value, nn.Parameter) or hasattr(value, "_dynamo_static_input_type")
    return "weight" if stays and not value.is_inference() else "argument"


def source_name(node: Node) -> str:
    """Where an input comes from, as the user wrote it: ``self.linear.weight`` for one of Dynamo's sources."""
    source = getattr(node, "_dynamo_source", None)
    if source is None:
        return node.name
    text = re.sub(r"\._(?:modules|parameters|buffers)\['(\w+)'\]", r".\1", str(source.name))
    return re.sub(r"^[LG]\['(\w+)'\]", r"\1", text)


def open_axes(node: Node) -> dict[int, Any]:
    """The axes of an argument whose sizes Dynamo left open, as torch.export wants them."""
    shape = node.meta["example_value"].shape
    return {axis: Dim.AUTO for axis, size in enumerate(shape) if not isinstance(extent_of(size), int)}


def extent_of(size: Any) -> Extent:
    """What a size is after all that Dynamo learnt: a symbol may have turned out to be fixed."""
    if not isinstance(size, torch.SymInt):
        return size
    expr = size.node.expr
    return int(expr) if expr.is_number else expr


def number_of(value: Any) -> int | float:
    """The number behind an input of kind ``number``, at the compile or at a call."""
    if isinstance(value, Tensor):
        return value.item()
    return guarding_hint_or_throw(value) if isinstance(value, torch.SymInt) else value


class GraphFunction(nn.Module):
    """A graph as a function of its arguments: weights are its own, sizes are read off, numbers are fixed."""

    def __init__(self, graph: GraphModule, places: Sequence[Place]) -> None:
        super().__init__()
        self.graph = graph
        self.places = tuple(places)
        self.held = nn.Module()
        self.numbers: dict[int, Any] = {}
        self.eval()

    @contextmanager
    def holding(self, inputs: Sequence[Any]) -> Generator[None]:
        """Hold the weights and numbers among ``inputs`` for a compile, and no longer: the model may go."""
        for i, (place, value) in enumerate(zip(self.places, inputs, strict=True)):
            if place.kind == "weight" and isinstance(value, nn.Parameter):
                self.held.register_parameter(f"w{i}", value)
            elif place.kind == "weight":
                self.held.register_buffer(f"w{i}", value)
            elif place.kind == "number":
                number = number_of(value)
                self.numbers[i] = _Scalar(number) if isinstance(value, Tensor) else number
        try:
            yield
        finally:
            self.held = nn.Module()
            self.held.eval()
            self.numbers = {}

    def named(self, names: Collection[str]) -> frozenset[int]:
        """The inputs that are weights with these names, as paths from this module."""
        return frozenset([i for i in range(len(self.places)) if f"held.w{i}" in names])

    def forward(self, arguments: tuple[Tensor, ...]) -> Any:
        given = iter(arguments)
        values: list[Any] = []
        for i, place in enumerate(self.places):
            if place.kind == "argument":
                values.append(next(given))
            elif place.kind == "weight":
                values.append(getattr(self.held, f"w{i}"))
            elif place.kind == "size":
                values.append(arguments[place.argument].shape[place.axis])
            else:
                values.append(self.numbers[i])
        return self.graph(*values)
