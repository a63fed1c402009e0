"""Constants: leaves that torch owns, and recipes that compute one constant from others.

A rewrite never touches a weight's values. It writes ordinary ops over constants, and the ``fold``
stage gathers them into recipes; ``compiler/materialise`` alone evaluates those, after choosing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from regraft.ir.core import Region
from regraft.ir.opdef import Constant
from regraft.ir.types import TensorType

#: How torch.export names the tensors that it lifts out of the code.
_LITERALS = ("lifted_tensor", "_tensor_constant")


class Leaf(Constant):
    """A parameter, buffer or literal of the model.

    Identity is the object: tied weights are one leaf. ``storage`` is the tensor that holds the
    values (never read here); ``name`` is its qualified name in the model, ``names`` are all of them.
    ``is_added`` says that the compile made the tensor and the model has none like it.
    ``was_read`` says that somebody has asked for ``storage``: a result that depends on it holds for these
    values only, which the compile cache must know.
    """

    __slots__ = ("_storage", "is_added", "name", "names", "type", "was_read")

    def __init__(self, name: str, type: TensorType, storage: Any = None, *, is_added: bool = False) -> None:
        self.name = name
        self.is_added = is_added
        self.names: tuple[str, ...] = ()
        self.type = type
        self.was_read = False
        self._storage = storage

    @property
    def storage(self) -> Any:
        self.was_read = True
        return self._storage

    @storage.setter
    def storage(self, tensor: Any) -> None:
        self._storage = tensor

    @property
    def is_literal(self) -> bool:
        """Whether it is nobody's parameter: lifted out of the code by torch.export, or made here."""
        return self.is_added or self.name.rpartition(".")[2].startswith(_LITERALS)

    def __repr__(self) -> str:
        return f"<leaf {self.name}: {self.type}>"


class Recipe(Constant):
    """A constant computed by a pure region without arguments and with one result."""

    __slots__ = ("body", "name", "type")

    def __init__(self, body: Region, name: str = "") -> None:
        (result_type,) = body.result_types
        assert isinstance(result_type, TensorType)
        self.name = name
        self.type = result_type
        self.body = body

    def constants(self) -> Iterator[Constant]:
        """The constants the recipe reads, in order, repeated as they are repeated."""
        for op in self.body.walk():
            if op.name == "rg.const":
                yield op.attr("value")

    def __repr__(self) -> str:
        return f"<recipe {self.name}: {self.type}, {len(self.body)} ops>"


def leaves(constant: Constant) -> Iterator[Leaf]:
    """Every leaf that ``constant`` depends on."""
    if isinstance(constant, Leaf):
        yield constant
    elif isinstance(constant, Recipe):
        for inner in constant.constants():
            yield from leaves(inner)
