"""Writes to tensors from outside, in arms of conditions and in loops.

A flat graph has one write after the other: what one arm writes the other would see, and so would every call.
So the tensors from outside that an arm writes to become results of the condition: they are put back between
the arms, and written to after the condition. What a loop's body writes to is carried by the loop. All that is
left is then for functionalization to turn into values, region by region.

In eager a value that a condition gives may be a tensor from outside itself; here it is a new one. Where a
later write would tell the two apart, it is refused.
"""

# torch's export and fx classes are partly untyped, and schemas have no public names.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

import linecache
import operator
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

from regraft.compiler.capture.arguments import draws, overload_name
from regraft.compiler.capture.control.aliases import Aliases
from regraft.compiler.capture.control.flat import (
    ORIGIN,
    Construct,
    FlatGraph,
    Memory,
    listed,
    memories_written_by,
    memory_of,
)
from regraft.compiler.capture.control.markers import BEGINNINGS, HOLDS
from regraft.compiler.capture.source import location_of
from regraft.errors import CaptureError

_CLONE = torch.ops.aten.clone.default
_COPY = torch.ops.aten.copy_.default


def settle_writes(program: ExportedProgram, ends: Collection[Node] = ()) -> None:
    """Make the writes of ``program`` in arms and loops hold there only, by results and carried values.

    ``program`` is as ``torch.export`` gives it, before functionalization. The nodes ``ends`` write what is
    assigned to buffers: in eager that is no write.

    Raises:
        CaptureError: a write, or a draw of random numbers, that no graph of values holds; with its line.
    """
    if not any(node.target in BEGINNINGS for node in program.graph.nodes):
        return
    flat = FlatGraph(program)
    _hoist_assumptions(flat)
    _check_draws(flat)
    _check_tests(flat)
    _check_aliases(program, flat, ends)
    _Settler(program, flat).run()
    program.graph.lint()
    program.graph_module.recompile()


def _hoist_assumptions(flat: FlatGraph) -> None:
    """Let each part begin with what it assumes of sizes: traced anew, it must not be assumed before."""
    for node in [node for node in flat.around if node.target is HOLDS]:
        construct = flat.around[node]
        assert construct is not None, "a fact outside of all arms"
        (construct.middle if flat.parts_of(node)[construct] else construct.begin).append(node)


class _Settler:
    """Changes the graph, construct after construct, inner ones first."""

    def __init__(self, program: ExportedProgram, flat: FlatGraph) -> None:
        self.graph = program.graph
        self.flat = flat
        self.written = {memory for node in flat.around for memory in memories_written_by(node)}

    def run(self) -> None:
        reads = {construct: self._outer_reads(construct) for construct in self.flat.constructs}
        writes: dict[Construct | None, dict[Memory, None]] = {None: {}}
        for construct in self.flat.constructs:
            own = writes.setdefault(construct, {})
            for node in (*construct.parts[0], *construct.parts[1]):
                own.update(dict.fromkeys(memories_written_by(node)))
            outer = [m for m in own if self.flat.comes_from_outside(m, construct)]
            if construct.is_loop:
                outer_too = self._settle_carried(construct, own)
                self._settle_loop(construct, [self.flat.makers[m] for m in outer])
                outer += outer_too
            else:
                self._settle_condition(construct, [self.flat.makers[m] for m in outer])
            writes.setdefault(construct.around, {}).update(dict.fromkeys(outer))
        for construct, nodes in reads.items():
            construct.begin.args = (*construct.begin.args[:-1], nodes)

    def _outer_reads(self, construct: Construct) -> list[Node]:
        """The tensors from outside that the construct uses and that something writes to.

        Functionalization brings a tensor up to date when it is read: it must not do so in one of the arms.
        """
        found: dict[Node, None] = {}
        for node, around in self.flat.around.items():
            if construct.encloses(around) or node in construct.markers:
                for each in node.all_input_nodes:
                    outside = each.op == "placeholder" or not construct.encloses(self.flat.around[each])
                    if outside and memory_of(each) in self.written:
                        found[each] = None
        return list(found)

    def _settle_condition(self, construct: Construct, targets: Sequence[Node]) -> None:
        begin, middle, end = construct.begin, construct.middle, construct.end
        before = [self._before(begin, _CLONE, target) for target in targets]
        first = [self._before(middle, _CLONE, target) for target in targets]
        kept = self._extended(middle, 0, first)
        for target, value in zip(targets, before, strict=True):
            self._after(middle, _COPY, target, value)
        second = [self._before(end, _CLONE, target) for target in targets]
        results = self._extended(end, 1, second)
        end.args = ([*listed(end.args[0]), *kept], end.args[1])
        for target, result in zip(targets, results, strict=True):
            self._after(result, _COPY, target, result)

    def _settle_loop(self, construct: Construct, targets: Sequence[Node]) -> None:
        begin, middle, end = construct.begin, construct.middle, construct.end
        carried = self._extended(begin, 0, [self._before(begin, _CLONE, target) for target in targets])
        results = self._extended(end, 0, [self._before(end, _CLONE, target) for target in targets])
        for target, value, result in zip(targets, carried, results, strict=True):
            self._after(value, _COPY, target, value)
            self._after(middle, _COPY, target, value)
            self._after(result, _COPY, target, result)

    def _settle_carried(self, construct: Construct, written: Collection[Memory]) -> list[Memory]:
        """Write back what trips write to a carried tensor that stays the same object; its memories."""
        found: list[Memory] = []
        for number, (start, inside) in construct.carried.items():
            if memory_of(inside) in written and construct.hands_on(number):
                result = self._getitem(construct.end, number)
                self._after(result, _COPY, start, result)
                found += [memory for memory in [memory_of(start)] if memory is not None]
        return found

    # -- nodes -----------------------------------------------------------------------------------

    def _extended(self, marker: Node, argument: int, values: Sequence[Node]) -> list[Node]:
        """``marker`` with ``values`` appended to a list it takes; the results that it has for them."""
        lists = list(marker.args)
        count = len(listed(lists[argument]))
        lists[argument] = [*listed(lists[argument]), *values]
        marker.args = tuple(lists)
        return [self._getitem(marker, count + index) for index in range(len(values))]

    def _getitem(self, marker: Node, index: int) -> Node:
        return self._after(marker, operator.getitem, marker, index)

    def _before(self, anchor: Node, target: Any, *args: Any) -> Node:
        with self.graph.inserting_before(anchor):
            return self._placed(anchor, target, args)

    def _after(self, anchor: Node, target: Any, *args: Any) -> Node:
        with self.graph.inserting_after(anchor):
            return self._placed(anchor, target, args)

    def _placed(self, anchor: Node, target: Any, args: tuple[Any, ...]) -> Node:
        node = self.graph.call_function(target, args)
        node.meta = {key: value for key, value in anchor.meta.items() if key in ORIGIN}
        return node


def _check_tests(flat: FlatGraph) -> None:
    """Refuse loops whose conditions write: a region that tests gives nothing but the test."""
    for node in flat.around:
        for memory in memories_written_by(node):
            for construct, part in flat.parts_of(node).items():
                carried = {memory_of(inside) for _, inside in construct.carried.values()}
                outside = memory in carried or flat.comes_from_outside(memory, construct)
                if construct.is_loop and part == 0 and outside:
                    _refuse(
                        node,
                        f"{_name(node)} writes, in the condition of a loop, to a tensor from outside of it",
                        "write to it in the loop's body",
                    )


def _check_draws(flat: FlatGraph) -> None:
    for node, construct in flat.around.items():
        target = node.target
        if construct is None or not isinstance(target, OpOverload):
            continue
        schema = target._schema.arguments
        given = {a.name: v for a, v in zip(schema, node.args, strict=False)} | dict(node.kwargs)
        if draws(target, given):
            _refuse(
                node,
                f"{_name(node)} draws random numbers in an arm of a condition or in a loop, and how many "
                "are drawn would depend on the data",
                "draw them before the condition or the loop, and pass them in",
            )


def _check_aliases(program: ExportedProgram, flat: FlatGraph, ends: Collection[Node]) -> None:
    """Refuse writes to what may be, in eager, a tensor that is looked at later under another name."""
    found = Aliases(program, flat).first_conflict(ends)
    if found is not None:
        node, _ = found
        _refuse_alias(node, "the loop" if node.target in BEGINNINGS else _name(node))


def _refuse_alias(node: Node, who: str) -> NoReturn:
    _refuse(
        node,
        f"{who} writes to a tensor that, depending on the data, is one that is used under another name too",
        "write to a copy, such as x = x.clone() before the condition or the loop, or to each tensor in its "
        "own arm, under its own name",
    )


def _name(node: Node) -> str:
    assert isinstance(node.target, OpOverload), node
    return overload_name(node.target)


def _refuse(node: Node, message: str, hint: str) -> NoReturn:
    where = location_of(node)
    line = linecache.getline(where.file, where.line).strip() if where.file else None
    raise CaptureError(message, location=str(where), source_line=line, hint=hint)
