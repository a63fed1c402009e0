"""Kernels of products with constant weights, by the templates. Imports TVM.

What follows a product in its kernel is one step of the template's epilogue: an expression over the sum and
over elements of further buffers, each as large as the result, or a row or a column of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regraft.backends.tvm.cluster import Cluster
from regraft.backends.tvm.cpu import Cpu
from regraft.backends.tvm.epilogue import axes_of_leaf, leaves
from regraft.backends.tvm.kernel import Kernel
from regraft.backends.tvm.lower.kinds import Expr
from regraft.backends.tvm.packing import Packing
from regraft.backends.tvm.templates import Extra, Gemm, Step, template_for
from regraft.ir import Dim, Op, Value, dims


@dataclass(frozen=True)
class Parameter:
    """A buffer that the kernel takes: what ``values_of`` has under ``name``, packed if it is a weight."""

    name: str
    shape: tuple[Dim, ...]
    packing: Packing | None


@dataclass(frozen=True)
class BuiltProduct:
    """A kernel of a template, and what it takes, the result last."""

    function: Any
    parameters: tuple[Parameter, ...]


def build(cluster: Cluster, description: str, cpu: Cpu, name: str) -> BuiltProduct:
    """The kernel of ``cluster``, whose anchor is a product.

    ``description`` tells its epilogue from others; ``cpu`` is what configs are ranked for.
    """
    product = _product(cluster)
    rows = dims.product(product.operand("input").tensor.shape[:-1])
    problem = _problem(cluster, rows, description)
    template = template_for(problem)
    assert template is not None, "what no template takes is expanded"
    config = template.default(problem, cpu)
    packing = template.packing(problem, config)
    parameters = (
        Parameter(a.name, tuple(rows if size is None else size for size in a.shape), packing.get(a.name))
        for a in template.arguments(problem, config)
    )
    return BuiltProduct(template.build(problem, config, name), tuple(parameters))


def values_of(cluster: Cluster) -> dict[str, Value]:
    """The values in the buffers of the kernel of ``cluster``, by the names of its parameters."""
    product = _product(cluster)
    given = {"x": product.operand("input"), "w": product.operand("weight"), **_extras(cluster)}
    return {name: cluster.memory(value) for name, value in given.items()} | {"out": cluster.result}


def _product(cluster: Cluster) -> Op:
    assert cluster.anchor is not None
    return cluster.anchor


def _extras(cluster: Cluster) -> dict[str, Value]:
    return {f"e{number}": value for number, value in enumerate(leaves(_product(cluster), cluster.inlined))}


def _problem(cluster: Cluster, rows: Dim, description: str) -> Gemm:
    op, named = _product(cluster), _extras(cluster)
    columns, depth = op.operand("weight").tensor.shape
    assert isinstance(columns, int)
    assert isinstance(depth, int)
    extras = tuple(Extra(name, axes_of_leaf(value, cluster.root)) for name, value in named.items())
    is_bare = cluster.root is op and op.optional("bias") is None
    steps = () if is_bare else (Step(description, _Following(cluster, tuple(named.values())), extras),)
    return Gemm(rows if isinstance(rows, int) and rows else None, columns, depth, epilogue=steps)


class _Following:
    """The epilogue of a cluster as a template's step: what becomes of a sum."""

    def __init__(self, cluster: Cluster, read: tuple[Value, ...]) -> None:
        self.cluster, self.read = cluster, read

    def __call__(self, math: Any, total: Expr, *elements: Expr) -> Expr:
        op = self.cluster.anchor
        assert op is not None
        known = dict(zip(self.read, elements, strict=True))
        bias = op.optional("bias")
        product = total if bias is None else total + known[bias]
        if self.cluster.root is op:
            return product
        return _Elements(self.cluster, known).following(product)


class _Elements(Kernel):
    """Evaluates elementwise ops whose operands' elements are given."""

    def __init__(self, cluster: Cluster, known: dict[Value, Expr]) -> None:
        super().__init__(cluster, {})
        self.elements = known

    def following(self, product: Expr) -> Expr:
        """The element of the root, given that of the anchor."""
        root = self.cluster.root.result
        with self.scope():
            return self.after(product, [0] * root.tensor.rank)

    def at(self, value: Value, index: Sequence[Expr]) -> Expr:
        if value in self.elements:
            return self.elements[value]
        return super().at(value, index)
