"""What a back end is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from regraft.ir import Constant, Function, Op
from regraft.runtime import Executable


class ConstantStore(Protocol):
    """Gives back ends the values of constants, evaluated when first asked for and kept once."""

    def tensor(self, constant: Constant) -> Any:
        """The value as a torch tensor: a leaf's own storage, or a recipe's result."""
        ...

    def name(self, constant: Constant) -> str:
        """A name that is unique in this compile and stable between compiles of equal models."""
        ...


@dataclass(frozen=True)
class LowerOptions:
    """Options that reach every back end.

    Fields:
        threads: worker threads; None lets the library choose (one per core).
    """

    threads: int | None = None


class Backend(Protocol):
    """Turns functions into executables.

    A back end is a class without arguments. ``supports`` must be true to ``lower``: a function all
    of whose ops are supported is lowered, not refused.
    """

    name: str

    def supports(self, op: Op) -> str | None:
        """None when ``op`` can be lowered, else the reason why not, for the user."""
        ...

    def lower(self, function: Function, store: ConstantStore, options: LowerOptions) -> Executable:
        """Compile ``function``, whose ops are all supported.

        Raises:
            BackendError: the library refused what ``supports`` promised.
        """
        ...
