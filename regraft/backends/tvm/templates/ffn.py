"""The feed-forward network: two products in one kernel, the hidden values in a buffer that stays in cache.

The rows are taken in chunks, so that the hidden values of a chunk are still in the cache when the second
product reads them; within a chunk each product is parallel over its columns, so that each weight is read by
one core. Nothing of the hidden values is seen from outside.
"""

from __future__ import annotations

from dataclasses import replace
from heapq import nsmallest
from typing import Any

from regraft.backends.tvm.cpu import Cpu
from regraft.backends.tvm.packing import Packing
from regraft.backends.tvm.space import Config, Space
from regraft.backends.tvm.templates.gemm import GemmTemplate
from regraft.backends.tvm.templates.problem import Argument, FeedForward, Gemm, Problem
from regraft.backends.tvm.templates.tile import Tile

#: Rows of a chunk; more of them read the weights less often.
CHUNK = 256


class FeedForwardTemplate:
    """Networks of ``FeedForward`` whose products the template for one product takes."""

    name = "ffn"
    _product = GemmTemplate()

    def takes(self, problem: Problem, cpu: Cpu | None = None) -> str | None:
        if not isinstance(problem, FeedForward):
            return "it is not a feed-forward network"
        if problem.first.has_row_squares:
            return "the hidden values are not seen from outside, and no sums of theirs"
        if problem.second.dtype == "bfloat16":
            return "hidden values of bf16 are not kept"
        return self._product.takes(problem.first, cpu) or self._product.takes(problem.second, cpu)

    def space(self, problem: FeedForward, cpu: Cpu) -> Space:
        first, second = (self._product.space(p, cpu).prefixed(part) for part, p in _products(problem))
        return first.joined(second)

    def estimate(self, problem: FeedForward, config: Config, cpu: Cpu, rows: int | None = None) -> float:
        """As for one product: the sum over both."""
        return sum(
            self._product.estimate(product, config.part(part), cpu, rows)
            for part, product in _products(problem)
        )

    def ranked(self, problem: FeedForward, cpu: Cpu, count: int) -> list[Config]:
        """The best pairs of the products' best configs."""
        first, second = (
            [c.prefixed(part) for c in self._product.ranked(product, cpu, count)]
            for part, product in _products(problem)
        )
        pairs = (Config(a.values + b.values) for a in first for b in second)
        return nsmallest(count, pairs, lambda config: self.estimate(problem, config, cpu))

    def default(self, problem: FeedForward, cpu: Cpu) -> Config:
        """The config to use where nothing was measured."""
        return self.ranked(problem, cpu, 1)[0]

    def packing(self, problem: FeedForward, config: Config) -> dict[str, Packing]:
        """As for one product, by the names in ``arguments``."""
        return {
            f"{part}_{name}": packing
            for part, product in _products(problem)
            for name, packing in self._product.packing(product, config.part(part)).items()
        }

    def arguments(self, problem: FeedForward, config: Config) -> tuple[Argument, ...]:
        """x, the weights and extras of the first product, those of the second (with its part's name before
        theirs), and what the second one gives."""
        found = {
            part: self._product.arguments(product, config.part(part)) for part, product in _products(problem)
        }
        inner = (
            replace(argument, name=f"{part}_{argument.name}")
            for part, arguments in found.items()
            for argument in arguments
            if argument.role in ("weight", "extra")
        )
        outputs = (argument for argument in found["second"] if argument.role == "output")
        return (found["first"][0], *inner, *outputs)

    def build(self, problem: FeedForward, config: Config, symbol: str) -> Any:
        """The kernel as a TIR function called ``symbol``. Imports TVM.

        ``out`` must not share memory with anything else.
        """
        from regraft.backends.tvm.templates.tir import feed_forward_function

        tiles = [Tile.of(config.part(part)) for part, _ in _products(problem)]
        return feed_forward_function(problem, tiles, self.arguments(problem, config), CHUNK, symbol)


def _products(problem: FeedForward) -> tuple[tuple[str, Gemm], ...]:
    return ("first", problem.first), ("second", problem.second)
