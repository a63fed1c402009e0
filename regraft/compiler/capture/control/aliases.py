"""Values that may share memory in eager, because a condition or a loop gives one tensor or another."""

# torch's export and fx classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from torch.export import ExportedProgram
from torch.fx import Node

from regraft.compiler.capture.control.flat import (
    Construct,
    FlatGraph,
    Memory,
    getitems,
    listed,
    memories_written_by,
    memory_of,
)

#: A memory of the graph, or one that the trip before has made.
_Origin = tuple[Construct | None, Memory]


class Aliases:
    """Which memories of a flat graph may be one in eager.

    The graph gives each result of a condition or a loop memory of its own. In eager such a result is the
    tensor that the arm gave, or the one that the loop began with; and what stands for a carried tensor is the
    one that the loop began with, or that the trip before has made. ``copies`` are pairs of memories of which
    the first is a part of the second.
    """

    def __init__(
        self, program: ExportedProgram, flat: FlatGraph, copies: Sequence[tuple[Memory, Memory]] = ()
    ) -> None:
        self._flat = flat
        self._uses: dict[Memory, list[Node]] = defaultdict(list)
        for node in program.graph.nodes:
            for memory in {memory_of(each) for each in node.all_input_nodes}:
                if memory is not None:
                    self._uses[memory].append(node)
        #: Memory -> the memories that it may be, the loop before whose present trip that is, or None.
        self._given: dict[Memory, set[_Origin]] = defaultdict(set)
        for construct in flat.constructs:
            self._link(construct)
        for copy, original in copies:
            if copy in flat.makers and original in flat.makers:  # else of a trip that was thrown away
                self._given[copy].add((None, original))
        self._origins = self._closed()

    def _link(self, construct: Construct) -> None:
        for number, result in getitems(construct.end).items():
            for given in construct.given(number):
                self._add(result, given)
        for number, (start, inside) in construct.carried.items():
            self._add(inside, start)
            self._add(inside, listed(construct.end.args[0])[number], construct)

    def _add(self, node: Node, given: Node, before: Construct | None = None) -> None:
        memory, other = memory_of(node), memory_of(given)
        if memory is not None and other is not None:
            self._given[memory].add((before, other))

    def _closed(self) -> dict[Memory, set[_Origin]]:
        """For each memory all that it may be."""
        involved = set(self._given).union(*({m for _, m in each} for each in self._given.values()))
        found: dict[Memory, set[_Origin]] = {memory: {(None, memory)} for memory in involved}
        changed = True
        while changed:
            changed = False
            for memory, given in self._given.items():
                more = {self._seen_from(before, o) for before, other in given for o in found[other]}
                changed = changed or not more <= found[memory]
                found[memory] |= more
        return found

    def _seen_from(self, loop: Construct | None, origin: _Origin) -> _Origin:
        """What the trip before left as ``origin``: in this trip another tensor has that name."""
        before, memory = origin
        is_new = before is None and loop is not None and not self._flat.comes_from_outside(memory, loop)
        return (loop, memory) if is_new else origin

    def _others(self, memory: Memory) -> Iterator[Memory]:
        own = self._origins.get(memory)
        if own is not None:
            yield from (m for m, origins in self._origins.items() if m != memory and own & origins)

    def may_be(self, memory: Memory) -> set[Memory]:
        """``memory``, and the others that it may be."""
        return {memory, *self._others(memory)}

    def first_conflict(self, apart: Collection[Node] = ()) -> tuple[Node, Memory] | None:
        """A write to what may be, in eager, a tensor that is looked at later under another name.

        The nodes ``apart`` do not count.

        Gives the node that writes, or a loop's beginning where the whole loop does, and what is written to.
        """
        handed_on = {
            memory_of(inside): construct
            for construct in self._flat.constructs
            for number, (_, inside) in construct.carried.items()
            if construct.hands_on(number)
        }
        for node in self._flat.around:
            for memory in memories_written_by(node) if node not in apart else ():
                if self._conflict(node, memory, handed_on.get(memory)):
                    return node, memory
                loop = self._conflicts_back(memory, handed_on)
                if loop is not None:
                    return loop.begin, memory
        return None

    def _conflicts_back(
        self, memory: Memory, handed_on: Mapping[Memory | None, Construct]
    ) -> Construct | None:
        """The loop that, in conflict, writes to what it began with what its trips write to ``memory``.

        That tensor may be one that a loop around it hands on from trip to trip, and so writes back too.
        """
        loop = handed_on.get(memory)
        if loop is None:
            return None
        pairs = [(memory_of(start), memory_of(inside)) for start, inside in loop.carried.values()]
        for start in {start for start, inside in pairs if start is not None and inside == memory}:
            if self._conflict(loop.end, start, handed_on.get(start)):
                return loop
            outer = self._conflicts_back(start, handed_on)
            if outer is not None:
                return outer
        return None

    def _conflict(self, node: Node, memory: Memory, within: Construct | None = None) -> bool:
        """Whether, after ``node`` has written to ``memory``, someone may look at a memory that may be it.

        ``within`` is the loop that ends in writing to what it began with: of what was made before it, only
        what it reads itself counts.
        """
        made_before = (m for m in self._others(memory) if self._flat.comes_before(self._flat.makers[m], node))
        return any(self._is_live(other, node, within) for other in made_before)

    def _is_live(self, memory: Memory, node: Node, within: Construct | None) -> bool:
        uses = self._uses[memory]
        if within is not None and self._flat.comes_from_outside(memory, within):
            return any(within.encloses(self._flat.around[use]) for use in uses)
        if self._flat.makers[memory].op == "placeholder" or any(self._follows(use, node) for use in uses):
            return True
        return any(
            self._flat.comes_from_outside(memory, loop)
            and any(loop.encloses(self._flat.around[use]) for use in uses)
            for loop in self._flat.loops_around(node)
        )

    def _follows(self, use: Node, node: Node) -> bool:
        return self._flat.comes_before(node, use) and not self._flat.exclusive(use, node)
