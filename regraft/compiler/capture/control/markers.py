"""Marker ops: where the arms of a condition, or the parts of a loop, begin and end in a flat graph.

Tracing each arm into a graph of its own would lose what the arm takes from around it. So both arms of
``if_begin .. if_else .. if_end`` are recorded one after the other, and so are the test and the body of
``while_begin .. while_do .. while_end``; the importer cuts the graph into regions afterwards. Markers
compute nothing: what they return stands for values, and has the type of these.
"""

# torch.library and the classes of fake tensors are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import has_side_effect

from regraft.compiler.capture.control.facts import Known

#: ``reads`` lists views that the arms read, so that functionalization brings them up to date before the arms.
#: What ``if_else`` returns are the values of the first arm's results. ``changing`` lists pairs of the number
#: of a carried value and of an axis of which the size changes from trip to trip.
_SCHEMAS = (
    "if_begin(Tensor pred, Tensor[] reads) -> ()",
    "if_else(Tensor[] results) -> Tensor[]",
    "if_end(Tensor[] then, Tensor[] otherwise) -> Tensor[]",
    "while_begin(Tensor[] carried, int[] changing, Tensor[] reads) -> Tensor[]",
    "while_do(Tensor pred) -> ()",
    "while_end(Tensor[] carried, int[] changing) -> Tensor[]",
    "holds(str fact, str message) -> ()",
    "truth(Scalar condition) -> Tensor",
    "size(SymInt value) -> Tensor",
)

_LIBRARY = torch.library.Library("regraft", "FRAGMENT")
for _schema in _SCHEMAS:
    # The tag keeps tracers from evaluating a marker of which all operands are constants.
    _LIBRARY.define(_schema, tags=(torch.Tag.nondeterministic_seeded,))

_OPS: Any = torch.ops.regraft
IF_BEGIN = _OPS.if_begin.default
IF_ELSE = _OPS.if_else.default
IF_END = _OPS.if_end.default
WHILE_BEGIN = _OPS.while_begin.default
WHILE_DO = _OPS.while_do.default
WHILE_END = _OPS.while_end.default
#: What an arm needs of sizes from outside (see ``facts``).
HOLDS = _OPS.holds.default
#: A condition on sizes as a tensor, ``bool[]``.
TRUTH = _OPS.truth.default
#: A size as a tensor, ``i64[]``.
SIZE = _OPS.size.default

BEGINNINGS = (IF_BEGIN, WHILE_BEGIN)
MIDDLES = (IF_ELSE, WHILE_DO)
ENDS = (IF_END, WHILE_END)
MARKERS = frozenset((*BEGINNINGS, *MIDDLES, *ENDS, HOLDS))
for _marker in MARKERS:
    has_side_effect(_marker)


class _Scope:
    """A stretch of the graph between markers, as the epoch of a ``FakeTensorMode``.

    A fake tensor remembers the symbol of its ``nonzero`` for as long as the epoch stays: with an epoch of its
    own no arm is given a size that another arm has found.
    """

    def __init__(self, outer: object, env: Any) -> None:
        self.outer = outer
        self.known = Known(env)
        #: What the arm itself checks about sizes from outside.
        self.facts: set[str] = set()


def _mode() -> Any:
    """The fake mode that is tracing."""
    return torch.library.get_ctx()._fake_mode


def _enter() -> None:
    mode = _mode()
    mode.epoch = _Scope(mode.epoch, mode.shape_env)


def _leave() -> None:
    scope = _mode().epoch
    assert isinstance(scope, _Scope), "a marker without its beginning"
    scope.known.forget(scope.facts)
    _mode().epoch = scope.outer


def assumed(mode: Any) -> list[Any]:
    """torch's runtime asserts about sizes from outside that the present part of the trace has added."""
    return mode.epoch.known.learnt() if isinstance(mode.epoch, _Scope) else []


def _next_part() -> None:
    _leave()
    _enter()


def differ(size: int | torch.SymInt, other: int | torch.SymInt) -> bool:
    """Whether two sizes are not the same expression, so that they may differ in a call."""
    first, second = (s.node.expr if isinstance(s, torch.SymInt) else s for s in (size, other))
    return bool(first != second)


def _like(tensor: Tensor, changing: Sequence[int] = ()) -> Tensor:
    """A tensor that stands for ``tensor``, with new symbols for the sizes of the axes ``changing``."""
    sizes = list(tensor.shape)
    for axis in changing:
        sizes[axis] = torch.library.get_ctx().new_dynamic_size()
    # Not new_empty: of a constant, a fake tensor would take it for a constant too, of whatever values.
    return torch.empty(sizes, dtype=tensor.dtype, device=tensor.device)


def _axes(changing: Sequence[int], number: int) -> list[int]:
    """The axes that ``changing`` lists for the carried value ``number``."""
    pairs = zip(changing[::2], changing[1::2], strict=True)
    return [axis for each, axis in pairs if each == number]


def _if_begin(pred: Tensor, reads: Sequence[Tensor]) -> None:
    _enter()


def _if_else(results: Sequence[Tensor]) -> list[Tensor]:
    _next_part()
    return [_like(result) for result in results]


def _if_end(then: Sequence[Tensor], otherwise: Sequence[Tensor]) -> list[Tensor]:
    _leave()
    found: list[Tensor] = []
    for one, other in zip(then, otherwise, strict=True):
        sizes = zip(one.shape, other.shape, strict=True)
        found.append(_like(one, [axis for axis, pair in enumerate(sizes) if differ(*pair)]))
    return found


def _while_begin(carried: Sequence[Tensor], changing: Sequence[int], reads: Sequence[Tensor]) -> list[Tensor]:
    _enter()
    return [_like(value, _axes(changing, number)) for number, value in enumerate(carried)]


def _while_do(pred: Tensor) -> None:
    _next_part()


def _while_end(carried: Sequence[Tensor], changing: Sequence[int]) -> list[Tensor]:
    _leave()
    return [_like(value, _axes(changing, number)) for number, value in enumerate(carried)]


def _holds(fact: str, message: str) -> None:
    scope = _mode().epoch
    assert isinstance(scope, _Scope), "a fact outside of all arms"
    scope.facts.add(fact)


def _truth(condition: Any) -> Tensor:
    return torch.empty((), dtype=torch.bool)


def _size(value: Any) -> Tensor:
    return torch.empty((), dtype=torch.int64)


for _marker, _kernel in (
    (IF_BEGIN, _if_begin),
    (IF_ELSE, _if_else),
    (IF_END, _if_end),
    (WHILE_BEGIN, _while_begin),
    (WHILE_DO, _while_do),
    (WHILE_END, _while_end),
    (HOLDS, _holds),
    (TRUTH, _truth),
    (SIZE, _size),
):
    torch.library.register_fake(_marker, _kernel, lib=_LIBRARY)
