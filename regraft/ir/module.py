"""Functions and modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft.ir.constants import Leaf, Recipe
from regraft.ir.core import Op, Region, Value, clone_region
from regraft.ir.dims import Expr, Symbol, symbols_of
from regraft.ir.opdef import Constant
from regraft.ir.types import TensorType


@dataclass
class Function:
    """A region with a signature.

    Fields:
        name: the entry point's name, ``forward`` for a module.
        body: its arguments are the flat tensor inputs, then the state; its results the flat tensor outputs.
        symbols: the sizes that the inputs define; each occurs in an input's shape.
        aliases: result index -> index of the argument that the result is written back to when the call ends.
        state: the tensors of the model that are read as they are at each call, one for each of the last
            arguments. A leaf that calls write to is state: its value is no fact that a rewrite may use.
        signature: how user arguments become flat inputs and flat outputs the user's result. The IR
            only carries it; capture makes it and the runtime reads it.
    """

    name: str
    body: Region
    symbols: tuple[Symbol, ...] = ()
    aliases: Mapping[int, int] = field(default_factory=dict[int, int])
    signature: Any = None
    state: tuple[Leaf, ...] = ()

    @property
    def args(self) -> Sequence[Value]:
        return self.body.args

    @property
    def results(self) -> tuple[Value, ...]:
        return self.body.results

    def walk(self) -> Iterator[Op]:
        return self.body.walk()

    def clone(self) -> Function:
        body = clone_region(self.body)
        return Function(self.name, body, self.symbols, dict(self.aliases), self.signature, self.state)


@dataclass
class Module:
    """The functions of one artefact. Constants are found from the ops that use them."""

    functions: dict[str, Function]

    @property
    def main(self) -> Function:
        """The first entry point."""
        return next(iter(self.functions.values()))

    def constants(self) -> dict[Constant, str]:
        """Every constant in use -> its unique name, those a recipe reads before the recipe."""
        found: dict[Constant, str] = {}
        taken: set[str] = set()

        def visit(constant: Constant) -> None:
            if constant in found:
                return
            if isinstance(constant, Recipe):
                for inner in constant.constants():
                    visit(inner)
            name = unique_name(getattr(constant, "name", "") or "recipe", taken)
            found[constant] = name

        for function in self.functions.values():
            for op in function.walk():
                if op.name == "rg.const":
                    visit(op.attr("value"))
        return found

    def clone(self) -> Module:
        return Module({name: function.clone() for name, function in self.functions.items()})


def unique_name(hint: str, taken: set[str]) -> str:
    """``hint``, or ``hint`` with a number, that is not in ``taken``; it is added there."""
    name, count = hint, 1
    while name in taken:
        count += 1
        name = f"{hint}_{count}"
    taken.add(name)
    return name


def input_symbols(args: Sequence[Value]) -> tuple[Symbol, ...]:
    """The symbols in the types of ``args``, each once, in order of appearance."""
    shapes = (a.type.shape for a in args if isinstance(a.type, TensorType))
    return tuple(dict.fromkeys(s for shape in shapes for dim in shape for s in symbols_of(dim)))


def symbols_in(value: Any) -> Iterator[Symbol]:
    """The symbols of a type or an attribute."""
    if isinstance(value, TensorType):
        for dim in value.shape:
            yield from symbols_of(dim)
    elif isinstance(value, Expr):
        yield from symbols_of(value)
    elif isinstance(value, tuple):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            yield from symbols_in(item)


def mentioned(op: Op) -> Iterator[Symbol]:
    """The symbols that ``op`` and the ops of its regions mention."""
    for each in (op, *(inner for region in op.regions for inner in region.walk())):
        for result in each.results:
            yield from symbols_in(result.type)
        for attr in each.attrs.values():
            yield from symbols_in(attr)
