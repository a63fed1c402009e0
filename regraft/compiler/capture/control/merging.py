"""Which containers are which where two paths meet.

A list, dict or record that is the same on both paths stays that object. Where it is another one on each,
nobody knows which of them it is: a change of it, or of one of them, is refused where others hold it.
"""

# What is merged has any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from regraft.compiler.capture.control.context import Context
from regraft.compiler.capture.control.growing import Growing
from regraft.compiler.capture.control.number import Array
from regraft.compiler.capture.control.state import CONTAINERS, UNBOUND, Node, fill, holding, still_holds
from regraft.compiler.capture.control.structure import is_atom, is_record, parted
from regraft.compiler.capture.control.watch import Watch


@dataclass
class Merging:
    """The containers of one meeting.

    Fields:
        made: for each pair of containers, by identity, what it is after the meeting.
        chosen: what is another one on each path, after what it is on each.
    """

    made: dict[tuple[int, int], Any] = field(default_factory=dict[tuple[int, int], Any])
    chosen: list[tuple[Any, Any, Any]] = field(default_factory=list[tuple[Any, Any, Any]])

    def merged(self, value: Any, one: Node, other: Node) -> Any:
        """``value``, new, with the containers themselves in it that are the same in ``one`` and ``other``.

        A path without a value has that of the other path, of which it is a copy.
        """
        is_whole = isinstance(value, (set, Growing))
        if not is_whole and (not _is_known(value) or is_atom(value)):
            return value
        parts, make = ([], None) if is_whole else parted(value)
        pair = (id(one.value), id(other.value))
        if pair not in self.made:
            rows = [_parts(each, parts) for each in (one, other)]
            found = [self.merged(part, *sides) for part, *sides in zip(parts, *rows, strict=True)]
            self.made[pair] = self._object(make(found) if make else value, one.value, other.value)
        return self.made[pair]

    def _object(self, value: Any, one: Any, other: Any) -> Any:
        """The object of the type of ``value`` and with its parts that ``one`` and ``other`` are."""
        if one is not other or type(value) is not type(one):
            if _may_change(value):
                self.chosen.append((value, one, other))
            return value
        if still_holds(one, holding(value)):
            return one
        if not _may_change(one):
            return value
        fill(one, value)
        return one

    def note(self, context: Context, *, is_loop: bool = False) -> None:
        """Let nobody change what is chosen, nor what it may be, where somebody holds what it may be.

        What a trip of a loop gives, the other of the two, its own variables may still hold that nobody reads.
        """
        if not self.chosen:
            return
        held = Watch.of(context).reached.holders
        sides = Counter(place for _, *both in self.chosen for place in set(map(id, both)))
        for value, *both in self.chosen:
            known = [side for side in both if side is not UNBOUND]
            looked_at = [side for side in (both[:1] if is_loop else both) if side is not UNBOUND]
            is_shared = any(sides[id(side)] > 1 or context.is_given(side) for side in known)
            if is_shared or any(id(side) in held for side in looked_at):
                context.may_be(value, *(side for side in known if _may_change(side)))


def _parts(node: Node, parts: list[Any]) -> list[Node]:
    """The nodes of the parts of ``node``; without a value where it has others than ``parts``."""
    nothing = Node(UNBOUND, ())
    return list(node.parts) if len(node.parts) == len(parts) else [nothing] * len(parts)


def _is_known(value: Any) -> bool:
    """Whether ``value`` is merged part by part. What else torch takes apart is made anew."""
    return isinstance(value, (*CONTAINERS, tuple, deque)) or (
        is_record(value) and not isinstance(value, Array)
    )


def _may_change(value: Any) -> bool:
    if is_record(value):
        return not isinstance(value, Array) and not type(value).__dataclass_params__.frozen
    return isinstance(value, (*CONTAINERS, deque))
