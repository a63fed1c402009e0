"""A back end of Dynamo: each graph that it cuts out of a model's code is compiled by regraft.

Dynamo hands over parameters and buffers as inputs. Here they are constants again, so that they are packed and
merged; a call compares who they are and how often they were written to with what was compiled, and takes
over what changed. Several modules that run the same code, such as the layers of a model that are compiled
one by one, share one graph and have constants of their own.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._guards import tracing
from torch.fx import GraphModule, Node

from regraft.compiler.api import compile
from regraft.compiler.dynamo.inputs import (
    GraphFunction,
    number_of,
    open_axes,
    placeholders,
    places,
    source_name,
)
from regraft.compiler.dynamo.results import Results, result_nodes
from regraft.errors import GradientError, OptionError, RecompileError, no_such
from regraft.runtime import CompiledModel, refreshed

#: For so many combinations of numbers that are no sizes a graph is kept; the oldest makes room.
_REMEMBERED = 16


def regraft_backend(
    graph: GraphModule,
    inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., tuple[Any, ...]]:
    """Compile one of Dynamo's graphs: ``torch.compile(model, backend="regraft", options={...})``.

    ``options`` are the keyword arguments of ``regraft.compile`` but for those that Dynamo knows
    (``dynamic_shapes``). ``dump`` gets a folder for each graph.

    Raises:
        OptionError: there is no such option, or a ``mode`` is given.
        GradientError: grad mode is on, and a result would require grad.
        CaptureError: an input is neither a tensor nor a number.
        The errors of ``regraft.compile``.
    """
    given = _checked(options or {}, mode)
    nodes = placeholders(graph)
    if torch.is_grad_enabled():
        _refuse_gradients(graph, nodes)
    compiled = CompiledGraph(graph, inputs, given)
    compiled.prepare(inputs)
    return compiled


def _checked(options: Mapping[str, Any], mode: str | None) -> dict[str, Any]:
    if mode is not None:
        raise OptionError("the regraft back end has no modes", "mode", repr(mode), "options={...}")
    parameters = inspect.signature(compile).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "dynamic_shapes"]
    for name in options:
        if name not in known:
            raise OptionError(f"options: {no_such('option', str(name), known)}")
    return dict(options)


def _refuse_gradients(graph: GraphModule, nodes: Sequence[Node]) -> None:
    """Results that do not require grad, such as those of code under ``torch.no_grad``, lose nothing."""
    if not any(_requires_grad(node) for node in result_nodes(graph)):
        return
    names = [source_name(node) for node in nodes if _requires_grad(node)]
    raise GradientError(
        f"'{names[0]}' requires grad, and so do results; a compiled model computes no gradients: "
        "call it under torch.no_grad(), or train the original model"
    )


def _requires_grad(node: Any) -> bool:
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    return isinstance(value, Tensor) and value.requires_grad


@dataclass(frozen=True)
class _Variant:
    """The graph compiled with certain weights.

    Fields:
        state: where the weights were, and how often they had been written to.
        weights: drop the variant when one of them goes; nothing else keeps them.
    """

    model: CompiledModel
    state: list[Any]
    weights: tuple[weakref.ref[Tensor], ...]


class CompiledGraph:
    """A compiled graph, called as Dynamo calls graphs. Safe in several threads."""

    def __init__(self, graph: GraphModule, inputs: Sequence[Any], options: Mapping[str, Any]) -> None:
        nodes = placeholders(graph)
        found = places(nodes, inputs)
        self._results = Results.of(graph)
        graph.graph.output_node().args = (self._results.computed,)
        graph.recompile()
        self._function = GraphFunction(graph, found)
        self._arguments = [i for i, place in enumerate(found) if place.kind == "argument"]
        self._weights = [i for i, place in enumerate(found) if place.kind == "weight"]
        self._numbers = [i for i, place in enumerate(found) if place.kind == "number"]
        self._written: frozenset[int] = frozenset()
        self._open_axes = tuple([open_axes(nodes[i]) for i in self._arguments])
        self._options = dict(options)
        self._variants: OrderedDict[tuple[Any, ...], dict[tuple[int, ...], _Variant]] = OrderedDict()
        self._preparing = threading.RLock()

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        model = self.prepare(inputs)
        with torch.no_grad():  # no result requires grad, though an argument may
            return self._results.made(inputs, model(tuple([inputs[i] for i in self._arguments])))

    def prepare(self, inputs: Sequence[Any]) -> CompiledModel:
        """The model for the weights and numbers among ``inputs``."""
        weights = [inputs[i] for i in self._weights]
        numbers = tuple([_exactly(number_of(inputs[i])) for i in self._numbers])
        ids, state = tuple([id(w) for w in weights]), self._state(weights)
        variant = self._variants.get(numbers, {}).get(ids)
        if variant is None or variant.state != state:
            with self._preparing:
                variant = self._variants.get(numbers, {}).get(ids)
                if variant is None or variant.state != state:
                    variant = self._made(inputs, numbers, ids, state)
        return variant.model

    def _state(self, weights: Sequence[Tensor]) -> list[Any]:
        """What changes when a weight is written to, or given other memory (``weight.data = ...``).

        What the graph itself writes to is read anew by each call. An inference tensor does not count its
        writes: it never compares equal.
        """
        return [
            (
                w.data_ptr(),
                None if i in self._written else object() if w.is_inference() else w._version,
            )
            for i, w in zip(self._weights, weights, strict=True)
        ]

    def _made(
        self, inputs: Sequence[Any], numbers: tuple[Any, ...], ids: tuple[int, ...], state: list[Any]
    ) -> _Variant:
        variants = self._variants.setdefault(numbers, {})
        like = next(iter(variants.values()), None)
        with self._function.holding(inputs):
            model = self._model(inputs, None if like is None else like.model)
        weights = [inputs[i] for i in self._weights]
        if model.effects is not None and not self._written:
            self._written = self._function.named(model.effects.state_names)
            state = self._state(weights)
        refs = tuple([weakref.ref(w, lambda _: variants.pop(ids, None)) for w in weights])
        variants[ids] = _Variant(model, state, refs)
        if len(self._variants) > _REMEMBERED:
            self._variants.popitem(last=False)
        return variants[ids]

    def _model(self, inputs: Sequence[Any], like: CompiledModel | None) -> CompiledModel:
        """The graph with the weights it holds: ``like`` with these where that is possible."""
        if like is not None:
            try:
                return refreshed(like, self._function)
            except RecompileError:
                pass  # the compile below is what it asks for
        return self._compiled(inputs)

    def _compiled(self, inputs: Sequence[Any]) -> CompiledModel:
        arguments = tuple([inputs[i] for i in self._arguments])
        options = dict(self._options)
        if options.get("dump") is not None:
            options["dump"] = _folder_in(Path(options["dump"]))
        with tracing(None):  # the capture is one of its own, not part of Dynamo's
            return compile(self._function, (arguments,), dynamic_shapes=(self._open_axes,), **options)


def _exactly(number: float) -> tuple[type, str]:
    """A key that tells 1 from 1.0, and 0.0 from -0.0."""
    return type(number), repr(number)


def _folder_in(dump: Path) -> Path:
    """A folder for one graph, besides those of the graphs before it."""
    number = 0
    while (dump / f"graph_{number}").exists():
        number += 1
    return dump / f"graph_{number}"
