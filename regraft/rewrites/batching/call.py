"""What a rule of batching is given: an op, what stands for its operands, and how to build.

A value *varies* when each sample has its own; what stands for it then has a leading axis, one entry a sample.
Other values are the same for all samples and stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from regraft.ir import Builder, Dim, Op, Value


@dataclass(frozen=True)
class Call:
    """An op that is to run for ``size`` samples at once.

    Fields:
        b: builds what stands for it.
        op: the op for one sample.
        size: how many samples there are.
        new: its operands -> what stands for them.
        varying: those of its operands that vary.
    """

    b: Builder
    op: Op
    size: Dim
    new: Mapping[Value, Value]
    varying: Set[Value]

    def of(self, name: str) -> Value:
        """What stands for the operand ``name``."""
        return self.new[self.op.operand(name)]

    def varies(self, name: str) -> bool:
        value = self.op.optional(name)
        return value is not None and value in self.varying

    def lifted(self, value: Value, rank: int | None = None) -> Value:
        """``value`` with the leading axis, its own axes behind those of size 1 that make up ``rank``."""
        shape = value.tensor.shape
        padded = (1,) * ((rank or 0) - len(shape)) + shape
        if value in self.varying:
            return self.view(self.new[value], (self.size, *padded))
        one = self.view(self.new[value], (1, *padded))
        return self.b.aten.expand(one, (self.size, *padded))

    def padded(self, value: Value, rank: int) -> Value:
        """What stands for ``value`` where it is broadcast with values of ``rank``."""
        return self.lifted(value, rank) if value in self.varying else self.new[value]

    def view(self, value: Value, shape: Sequence[Dim]) -> Value:
        return value if value.tensor.shape == tuple(shape) else self.b.aten.view(value, tuple(shape))

    def again(self, changes: Mapping[str, Any], name: str | None = None) -> tuple[Value, ...]:
        """The op over what stands for its operands, arguments of ``changes`` apart; the results."""
        arguments = {key: self._stands_for(each) for key, each in self.op.arguments().items()}
        made = self.b.create(name or self.op.name, (), {**arguments, **changes})
        return made.results

    def _stands_for(self, argument: Any) -> Any:
        if isinstance(argument, Value):
            return self.new[argument]
        if isinstance(argument, tuple):
            return tuple(self._stands_for(each) for each in argument)  # pyright: ignore[reportUnknownVariableType]
        return argument


@dataclass(frozen=True)
class Rule:
    """How an op runs for many samples at once.

    Fields:
        build: the results for all samples, each with the leading axis.
        check: why that cannot be, given the operands that vary; None when it can.
    """

    build: Callable[[Call], Sequence[Value]]
    check: Callable[[Op, Set[Value]], str | None] = lambda op, varying: None
