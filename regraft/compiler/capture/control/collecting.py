"""Lists to which every trip of a loop appends as much, where the number of trips is known, or is a size.

What they collect stands in tensors that have a row for each trip.
"""

# torch's tensors are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from regraft.compiler.capture.control.carried import fit_rows
from regraft.compiler.capture.control.context import Context
from regraft.compiler.capture.control.growing import Element, Growing
from regraft.compiler.capture.control.number import as_tensor
from regraft.compiler.capture.control.optional import in_place_of


@dataclass
class Collecting:
    """The lists that a loop fills.

    Fields:
        trips: how many trips it makes, a number or a size; None where only the loop knows.
        columns: for each list, by its variable, a tensor for each append of a trip.
    """

    context: Context
    trips: Any
    columns: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])

    @property
    def tensors(self) -> list[Tensor]:
        """All columns."""
        return [column for columns in self.columns.values() for column in columns]

    @property
    def _is_size(self) -> bool:
        return not isinstance(self.trips, int)

    def starts(self, name: str, start: Sequence[Any], new: Sequence[Any]) -> bool:
        """Whether the list ``start`` of ``name`` can collect ``new`` in every trip; it then does."""
        if self.trips is None or not all(isinstance(each, Tensor) for each in new):
            return False
        if self._is_size and Growing.starting(start, list(map(Element.like, new))) is None:
            return False
        self.columns[name] = [
            torch.stack([in_place_of(each)]).repeat(self._count, *[1] * each.dim()) for each in new
        ]
        return True

    @functools.cached_property
    def _count(self) -> Any:
        """The number of trips as torch can make tensors with it: it asks each size whether that is 1.

        Where it may be 1 or not, as ``n - 1``, torch gets it as a number that only a call knows.
        """
        if not self._is_size or statically_known_true(self.trips != 1):
            return self.trips
        return as_tensor(self.trips).item()

    def fits(self, name: str, new: Sequence[Any]) -> bool:
        """Whether ``new`` is what the list of ``name`` collects in a trip."""
        return fit_rows(self.columns[name], new)

    def with_row(self, column: Tensor, number: Any, element: Tensor) -> Tensor:
        """``column`` with what trip ``number`` has appended; in eager the list holds ``element`` itself."""
        found = column.index_copy(0, as_tensor(number).reshape(1), element.unsqueeze(0))
        self.context.copied(found, element)
        if self._is_size:  # other trips cannot be made one by one, where a write is found
            self.context.copied(found, element, is_kept=True)
        return found

    def may_hold(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` may be, in eager, one that an earlier trip has appended."""
        if not self._is_size:  # what is written to then is looked for in the graph
            return False
        types = [Element(c.dtype, tuple(c.shape[1:]), c.device, None) for c in self.tensors]
        return any(each.is_like(Element.like(tensor)) for each in types)

    def filled(self, start: list[Any], columns: Sequence[Tensor]) -> Any:
        """The list ``start`` with what ``columns`` hold; another one where its length is a size."""
        if self._is_size:
            return self._grown(start, columns)
        parts = [part for trip in zip(*(c.unbind(0) for c in columns), strict=True) for part in trip]
        if len(columns) == 1 and not start:
            self.context.collected.append((parts, columns[0]))
        start.extend(parts)
        return start

    def _grown(self, start: list[Any], columns: Sequence[Tensor]) -> Growing:
        rows = columns[0] if len(columns) == 1 else torch.stack(list(columns), 1).flatten(0, 1)
        found = Growing(rows, None)
        if start:
            found.rows = torch.cat([torch.stack(start), rows])
        self.context.holds(found, start)
        return found
