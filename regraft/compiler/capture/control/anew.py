"""Attributes of modules whose tensors each call sets before it reads them: no later call sees them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from regraft.compiler.capture.control.kept import KeptAttribute, unchanged
from regraft.compiler.capture.control.reach import EMPTY
from regraft.errors import CaptureError

T = TypeVar("T")


class SetAnew:
    """Traces a module whose attributes may be left with tensors of the call, if no later call reads them.

    A graph does not keep them. Where the code reads such an attribute before it sets it, the next call would
    have to see them; so it is traced once more without the attribute, and refused where it is asked for.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._refusals: dict[str, CaptureError] = {}

    def traced(self, trace: Callable[[], T]) -> T:
        """``trace()``, after which the module's objects are as before.

        Raises:
            CaptureError: something else is left where it outlives the call, or the attribute is read first.
        """
        while True:
            read: list[str] = []
            try:
                with self._absent(read), unchanged(self._module, tuple(self._refusals)):
                    found = trace()
            except KeptAttribute as error:
                self._refusals[error.attribute] = error.refusal
                continue
            except Exception:
                if read:
                    raise self._refusals[read[0]] from None
                raise
            if read:
                raise self._refusals[read[0]]
            return found

    @contextmanager
    def _absent(self, read: list[str]) -> Generator[None]:
        """The attributes are not there in the block; ``read`` gets those that are asked for."""
        places = [(*_owner_of(self._module, path), path) for path in self._refusals]
        held = [vars(owner).pop(name, EMPTY) for owner, name, _ in places]
        classes = list({type(owner) for owner, _, _ in places})
        own = [vars(each).get("__getattr__", EMPTY) for each in classes]
        for each in classes:
            setattr(each, "__getattr__", _noting(each.__getattr__, places, read))  # noqa: B010
        try:
            yield
        finally:
            for each, getter in zip(classes, own, strict=True):
                if getter is EMPTY:
                    delattr(each, "__getattr__")
                else:
                    setattr(each, "__getattr__", getter)  # noqa: B010
            for (owner, name, _), value in zip(places, held, strict=True):
                vars(owner).pop(name, None)
                if value is not EMPTY:
                    vars(owner)[name] = value


def _owner_of(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    owner, _, name = path.rpartition(".")
    return module.get_submodule(owner), name


def _noting(
    getter: Callable[[Any, str], Any], places: Sequence[tuple[nn.Module, str, str]], read: list[str]
) -> Callable[[Any, str], Any]:
    """``getter``, which Python calls where an object has no such attribute."""

    def noted(this: Any, name: str) -> Any:
        read.extend(path for owner, own, path in places if owner is this and own == name)
        return getter(this, name)

    return noted
