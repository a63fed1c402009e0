"""Names of arguments: one that is misspelt is answered with the nearest one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from regraft.errors import UnknownArgumentError, no_such

P = ParamSpec("P")
R = TypeVar("R")


def checks_names(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which takes no ``**kwargs``, with an error of ours for a name that it does not have.

    Python's own names the nearest one only from 3.13 on.
    """
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    called_as = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise UnknownArgumentError(f"{called_as}(): {no_such('argument', name, known)}")
        return function(*args, **kwargs)

    return called
