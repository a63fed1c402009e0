"""What follows products in their kernel, as a step of a template's epilogue.

The step is one expression over the sums and over elements of further buffers, each as large as the result, or
a row or a column of it. It has two meanings: expressions of TIR in a kernel, and tensors of fp64 by torch's
own ops, which the tuner judges kernels by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from regraft.backends.tvm.cluster import Cluster
from regraft.backends.tvm.epilogue import axes_of_leaf, is_number, leaves
from regraft.backends.tvm.problems import inputs_of, last_bias, problem_of
from regraft.backends.tvm.templates import Extra, Gemm, Problem, Step
from regraft.ir import DType, Op, Value
from regraft.runtime import TORCH_DTYPES, torch_op

Element = Any
"""A TIR expression, or a tensor of fp64."""


def problem_of_cluster(cluster: Cluster) -> Problem:
    """What the kernel of ``cluster``, whose anchor is a template's op, has to compute."""
    op, root = _anchor(cluster), cluster.root
    named = _extras(cluster)
    is_bare = root is op and last_bias(op) is None
    extras = tuple(Extra(name, axes_of_leaf(value, root), _type(value)) for name, value in named.items())
    steps = () if is_bare else (Step(_text(cluster), Following(cluster, tuple(named.values())), extras),)
    problem = problem_of(op, steps, products=len(cluster.products), out=root.result.tensor.dtype)
    assert problem is not None, "what no template takes is expanded"
    return problem


def kernel_key(problem: Problem) -> str:
    """Equal for problems that are the same kernel's."""
    return f"{problem.signature}, {'any' if problem.rows is None else problem.rows} rows"


def title(problem: Problem) -> str:
    """``problem`` in a few words, by its sizes alone."""
    products = [problem] if isinstance(problem, Gemm) else [problem.first, problem.second]
    sizes = " then ".join(f"{p.products}x" * (p.products > 1) + f"{p.depth}->{p.columns}" for p in products)
    rows = "any number of" if problem.rows is None else problem.rows
    return f"{products[0].dtype} {sizes}, {rows} rows"


def values_of(cluster: Cluster) -> dict[str, Value]:
    """The values in the buffers of the kernel of ``cluster``, by the names of its parameters."""
    op = _anchor(cluster)
    start = "" if op.name == "aten.linear" else "second_"
    extras = {f"{start}{name}": value for name, value in _extras(cluster).items()}
    given = {**inputs_of(op, cluster.twin), **extras}
    return {name: cluster.memory(value) for name, value in given.items()} | {"out": cluster.result}


def _anchor(cluster: Cluster) -> Op:
    assert cluster.anchor is not None
    return cluster.anchor


def _extras(cluster: Cluster) -> dict[str, Value]:
    read = leaves(cluster.products, cluster.inlined)
    return {f"e{number}": value for number, value in enumerate(read)}


def _type(value: Value) -> str:
    return str(TORCH_DTYPES[value.tensor.dtype.value]).removeprefix("torch.")


def _text(cluster: Cluster) -> str:
    """What becomes of the sums, by values that are numbered: equal in every model for equal steps."""
    names = {value: name for name, value in _extras(cluster).items()}
    lines: list[str] = []
    for number, op in enumerate(cluster.products):
        added = last_bias(op)
        names[op.result] = f"s{number}" if added is None else f"(s{number}+{names[added]})"
    for op in _steps(cluster):
        if is_number(op):
            names[op.result] = f"{op.attr('fill_value')!r}:{op.result.tensor.dtype}"
            continue
        attrs = [f"{name}={value}" for name, value in op.attrs.items()]
        names[op.result] = f"v{len(lines)}"
        lines.append(f"{op.name}({', '.join([names[v] for v in op.operands] + attrs)})")
    return "; ".join(lines) or names[cluster.root.result]


def _steps(cluster: Cluster) -> Iterator[Op]:
    return (op for op in cluster.inlined if op not in cluster.products)


class Following:
    """The value of a cluster's root where the sums of its products, and the ``read`` values, are known."""

    def __init__(self, cluster: Cluster, read: tuple[Value, ...]) -> None:
        self.cluster, self.read = cluster, read

    def __call__(self, math: Any, *values: Element) -> Element:
        """See ``templates.problem.Emit``: sums, then elements; tensors of fp64 where they are tensors."""
        products = self.cluster.products
        sums, elements = values[: len(products)], values[len(products) :]
        known = dict(zip(self.read, elements, strict=True))
        for op, total in zip(products, sums, strict=True):
            added = last_bias(op)
            known[op.result] = total if added is None else total + known[added]
        if isinstance(values[0], Tensor):
            return self._exact(known)
        from regraft.backends.tvm.elements import Elements

        return Elements(self.cluster, known).root()

    def _exact(self, known: dict[Value, Tensor]) -> Tensor:
        for op in _steps(self.cluster):
            known[op.result] = _number(op) if is_number(op) else _called(op, known)
        return known[self.cluster.root.result]


def _number(op: Op) -> Tensor:
    return torch.tensor(op.attr("fill_value"), dtype=_wide(op.result.tensor.dtype))


def _called(op: Op, known: Mapping[Value, Tensor]) -> Tensor:
    """torch's op of that name on values of fp64."""
    found = torch_op(op.name)
    assert found is not None, f"torch has no {op.name}"
    given = {name: _given(value, known) for name, value in op.arguments().items()}
    return found(**given)


def _given(value: Any, known: Mapping[Value, Tensor]) -> Any:
    if isinstance(value, Value):
        return known[value]
    return _wide(value) if isinstance(value, DType) else value


def _wide(dtype: DType) -> torch.dtype:
    return torch.float64 if dtype.is_float else TORCH_DTYPES[dtype.value]
