"""The results of one of Dynamo's graphs: what is computed, what is a size, what shares memory.

Code after a graph break may write to a result. What was a view in eager must then be one here: of an input,
or of another result.
"""

# Dynamo's graphs and their metadata are untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from regraft.compiler.dynamo.inputs import Extent, extent_of, placeholders
from regraft.errors import CaptureError


@dataclass(frozen=True)
class _Fixed:
    """A value that the graph does not compute, such as None."""

    value: Any


@dataclass(frozen=True)
class _Number:
    """A number computed from sizes."""

    extent: Extent


@dataclass(frozen=True)
class _Whole:
    """A tensor as it is: the ``index``-th input, or the ``index``-th one that was computed."""

    of_input: bool
    index: int


@dataclass(frozen=True)
class _View:
    """A view of such a tensor. ``offset`` counts from the first element of that tensor."""

    base: _Whole
    base_size: tuple[Extent, ...]
    base_stride: tuple[Extent, ...]
    size: tuple[Extent, ...]
    stride: tuple[Extent, ...]
    offset: Extent


@dataclass(frozen=True)
class Results:
    """How the results of a graph are made from its inputs and from the tensors that were computed.

    Fields:
        computed: the nodes whose tensors are to be computed.
        forms: one for each result.
        symbols: each symbol of a size -> the input that it is, or whose axis it is.
    """

    computed: tuple[Node, ...]
    forms: tuple[_Fixed | _Number | _Whole | _View, ...]
    symbols: Mapping[Any, tuple[int, int | None]]

    @staticmethod
    def of(graph: GraphModule) -> Results:
        """The results of ``graph``.

        Raises:
            CaptureError: one shares memory with another tensor in a way that cannot be kept.
        """
        inputs = placeholders(graph)
        outputs = result_nodes(graph)
        roots = _roots(graph)
        shared = Counter(_storage(node) for node in dict.fromkeys(outputs) if isinstance(node, Node))
        computed: list[Node] = []
        forms = [_form(node, inputs, computed, roots, shared) for node in outputs]
        return Results(tuple(computed), tuple(forms), _symbols(inputs))

    def made(self, inputs: Sequence[Any], computed: Sequence[Tensor]) -> tuple[Any, ...]:
        """The results of a call."""
        bases: dict[_Whole, Tensor] = {}
        return tuple([self._made(form, inputs, computed, bases) for form in self.forms])

    def _made(
        self, form: Any, inputs: Sequence[Any], computed: Sequence[Tensor], bases: dict[_Whole, Tensor]
    ) -> Any:
        if isinstance(form, _Fixed):
            return form.value
        if isinstance(form, _Number):
            return self._numbers((form.extent,), inputs)[0]
        if isinstance(form, _Whole):
            return inputs[form.index] if form.of_input else computed[form.index]
        base = bases.get(form.base)
        if base is None:
            base = self._made(form.base, inputs, computed, bases)
            if not form.base.of_input:
                base = _restrided(base, self._numbers(form.base_stride, inputs))
            bases[form.base] = base
        size, stride = self._numbers(form.size, inputs), self._numbers(form.stride, inputs)
        (offset,) = self._numbers((form.offset,), inputs)
        return base.as_strided(size, stride, base.storage_offset() + offset)

    def _numbers(self, extents: Sequence[Extent], inputs: Sequence[Any]) -> list[int]:
        if all(isinstance(extent, int) for extent in extents):
            return list(extents)
        values = {
            symbol: inputs[i] if axis is None else inputs[i].shape[axis]
            for symbol, (i, axis) in self.symbols.items()
        }
        return [
            extent if isinstance(extent, int) else int(sympy_interp(PythonReferenceAnalysis, values, extent))
            for extent in extents
        ]


def result_nodes(graph: GraphModule) -> Sequence[Any]:
    """The nodes, or plain values, that a graph returns."""
    return graph.graph.output_node().args[0]  # pyright: ignore[reportReturnType]


def _form(
    node: Any,
    inputs: Sequence[Node],
    computed: list[Node],
    roots: Mapping[Any, Node],
    shared: Mapping[Any, int],
) -> _Fixed | _Number | _Whole | _View:
    if not isinstance(node, Node):
        return _Fixed(node)
    value = node.meta["example_value"]
    if not isinstance(value, Tensor):
        return _Number(extent_of(value))
    storage = _storage(node)
    root = roots.get(storage, node)
    if node in inputs or not (root in inputs or shared[storage] > 1):
        return _whole(node, inputs, computed)
    whole = root.meta["example_value"]
    if whole.dtype != value.dtype:
        raise CaptureError(
            f"the results of a graph share memory as {whole.dtype} and as {value.dtype}",
            hint="return a clone of the one that is a view",
        )
    return _View(
        _whole(root, inputs, computed),
        _extents(whole.shape),
        _extents(whole.stride()),
        _extents(value.shape),
        _extents(value.stride()),
        extent_of(value.storage_offset() - whole.storage_offset()),
    )


def _whole(node: Node, inputs: Sequence[Node], computed: list[Node]) -> _Whole:
    if node in inputs:
        return _Whole(True, inputs.index(node))
    if node not in computed:
        computed.append(node)
    return _Whole(False, computed.index(node))


def _roots(graph: GraphModule) -> dict[Any, Node]:
    """Each piece of memory -> the node that came by it first: those after it are views."""
    roots: dict[Any, Node] = {}
    for node in graph.graph.nodes:
        storage = _storage(node)
        if storage is not None:
            roots.setdefault(storage, node)
    return roots


def _storage(node: Node) -> Any:
    value = node.meta.get("example_value")
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None
    return value.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _symbols(inputs: Sequence[Node]) -> dict[Any, tuple[int, int | None]]:
    found: dict[Any, tuple[int, int | None]] = {}
    for i, node in enumerate(inputs):
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymInt) and not isinstance(extent_of(value), int):
            found.setdefault(extent_of(value), (i, None))
        elif isinstance(value, Tensor):
            for axis, size in enumerate(value.shape):
                if not isinstance(extent_of(size), int):
                    found.setdefault(extent_of(size), (i, axis))
    return found


def _extents(sizes: Sequence[Any]) -> tuple[Extent, ...]:
    return tuple([extent_of(size) for size in sizes])


def _restrided(tensor: Tensor, stride: Sequence[int]) -> Tensor:
    """``tensor`` with the strides that it has in eager, in which the strides of its views are counted."""
    if tensor.stride() == tuple(stride):
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
