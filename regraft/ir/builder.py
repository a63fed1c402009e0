"""Writing ops as calls: ``op.aten.linear(x, w, bias)``.

The same spelling builds graph ops here and pattern nodes in ``pattern.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.errors import OptionError
from regraft.ir.core import UNKNOWN, Location, Op, Region, Value, clone_op
from regraft.ir.dims import Symbol
from regraft.ir.opdef import Constant, OpDef, OpTable
from regraft.ir.resize import resize, sizes_over
from regraft.ir.types import Type


class OpPath:
    """A dotted op name in the making: ``op.aten.add.Tensor`` is two attribute reads and a call."""

    __slots__ = ("_name", "_namespace")

    def __init__(self, namespace: OpNamespace, name: str) -> None:
        self._namespace = namespace
        self._name = name

    def __getattr__(self, part: str) -> OpPath:
        return OpPath(self._namespace, f"{self._name}.{part}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._namespace.call(self._name, args, kwargs)


class OpNamespace:
    """Turns attribute access into op names; subclasses say what a call means."""

    def __init__(self, table: OpTable) -> None:
        self.table = table

    def __getattr__(self, dialect: str) -> OpPath:
        if dialect.startswith("_"):
            raise AttributeError(dialect)
        return OpPath(self, dialect)

    def call(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def lookup(self, name: str) -> OpDef:
        """The definition called ``name``.

        Raises:
            OptionError: there is none; the closest names are given.
        """
        found = self.table.get(name)
        if found is None:
            raise OptionError(f"there is no op '{name}'{_suggestion(name, self.table)}")
        return found


def _suggestion(name: str, table: OpTable) -> str:
    import difflib

    near = difflib.get_close_matches(name, table, n=3)
    return f"; did you mean {', '.join(near)}?" if near else ""


class Builder(OpNamespace):
    """Inserts the ops it is asked for into ``region`` before ``anchor`` (at the end when None)."""

    def __init__(
        self, table: OpTable, region: Region, anchor: Op | None = None, loc: Location = UNKNOWN
    ) -> None:
        super().__init__(table)
        self.region = region
        self.anchor = anchor
        self.loc = loc
        self.made: list[Op] = []

    def call(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Value | tuple[Value, ...]:
        op = self.insert(Op.create(self.lookup(name), args, kwargs, loc=self.loc))
        return op.results[0] if len(op.results) == 1 else op.results

    def create(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        result_types: Sequence[Type] | None = None,
        regions: Sequence[Region] = (),
        symbols: Sequence[Symbol] = (),
    ) -> Op:
        """The long form of a call, for ops with regions or with types that capture gives."""
        definition = self.lookup(name)
        op = Op.create(
            definition,
            args,
            kwargs,
            result_types=result_types,
            regions=regions,
            symbols=symbols,
            loc=self.loc,
        )
        return self.insert(op)

    def insert(self, op: Op) -> Op:
        self.region.insert_before(self.anchor, op)
        self.made.append(op)
        return op

    def copy(
        self, region: Region, operands: Sequence[Value], taken: set[str] | None = None
    ) -> tuple[Value, ...]:
        """The ops of ``region`` over ``operands`` in place of its arguments; the values that it yields.

        Sizes that ``region`` has names for are those of ``operands``. Those that its ops define get names
        that are not ``taken``: by default, of sizes in the function that is inserted into.

        Raises:
            RewriteError: no argument has a symbol of ``region`` for one of its sizes.
        """
        mapping = dict(zip(region.args, operands, strict=True))
        sizes = sizes_over(region, operands, self.region, taken)
        for op in region.ops:
            if op is not region.terminator:
                copy = clone_op(op, mapping)
                self.insert(resize(copy, sizes) if sizes else copy)
        return tuple(mapping[value] for value in region.results)

    def constant(self, value: Constant) -> Value:
        """The constant as a value of this region."""
        return self.create("rg.const", (), {"value": value}).result
