"""Evaluates the ops of a kernel for one element, where that of what they read is known. Imports TVM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regraft.backends.tvm.cluster import Cluster
from regraft.backends.tvm.kernel import Kernel
from regraft.backends.tvm.lower.kinds import Expr
from regraft.ir import Value


class Elements(Kernel):
    """The ops of ``cluster`` without loops of their own: ``known`` has the elements of what they read."""

    def __init__(self, cluster: Cluster, known: Mapping[Value, Expr]) -> None:
        super().__init__(cluster, {})
        self._elements = dict(known)

    def root(self) -> Expr:
        """The element of the root."""
        root = self.cluster.root.result
        with self.scope():
            for product in self.cluster.products:
                self._elements[product.result] = self.bind(self._elements[product.result])
            return self.at(root, [0] * root.tensor.rank)

    def at(self, value: Value, index: Sequence[Expr]) -> Expr:
        if value in self._elements:
            return self._elements[value]
        return super().at(value, index)
