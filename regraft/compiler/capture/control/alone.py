"""Whether an iterator is nobody's but that of the loop that goes over it.

What holds one need not be a variable of a running function, where a ``Watch`` looks: ``map`` has it on
a stack of C's, a function among its defaults, a class or a module among its attributes. All are references.
"""

# What is walked has any type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import gc
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any

_CONTAINERS: tuple[type, ...] = (tuple, list, dict)
#: References to an object that `is_alone` makes: from its list, and as the argument of `sys.getrefcount`.
_OURS = 2


def is_alone(
    box: list[Any], given: int, variables: Sequence[Callable[[], Any]], frames: Iterable[FrameType]
) -> bool:
    """Whether nobody but ``variables`` holds the iterator in ``box``, nor those that it takes its items from.

    ``given`` references to it are the caller's, that of ``box`` among them. ``frames`` are the running
    functions: where somebody has asked one for its variables, it keeps a copy of them.
    """
    reached, known = _reached(box)
    known[id(box[0])] += given
    for variable in variables:
        known[id(variable())] += 1
    for frame in frames:
        # From Python 3.13 on this is a view, which holds nothing; a module's or a class's are the variables.
        copies: Any = frame.f_locals if frame.f_code.co_flags & inspect.CO_OPTIMIZED else {}
        known.update(id(value) for value in (copies.values() if isinstance(copies, dict) else ()))
    return all(sys.getrefcount(reached[i]) - _OURS <= known[id(reached[i])] for i in range(len(reached)))


def _reached(box: list[Any]) -> tuple[list[Any], Counter[int]]:
    """The iterator in ``box`` and what leads from it to others, and how often these refer to each object."""
    found, seen, known = list(box), {id(box[0])}, Counter[int]()
    pending: list[Any] = list(box)
    while pending:
        holder = pending.pop()
        parts = gc.get_referents(holder)
        known.update(id(part) for part in parts)
        if isinstance(holder, _CONTAINERS) and any(isinstance(part, Iterator) for part in parts):
            found.append(holder)
        for part in parts:
            place = id(part)
            if place not in seen and isinstance(part, (Iterator, *_CONTAINERS)):
                seen.add(place)
                pending.append(part)
                found += [part] if isinstance(part, Iterator) else []
    return found, known
