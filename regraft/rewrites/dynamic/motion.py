"""Which ops of a region could run before it, and how they are put there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from regraft.ir import Builder, Op, Region, Symbol, Trait, Value, clone_op, mentioned


def movable_ops(region: Region, outside: Collection[Value], may_move: Callable[[Op], bool]) -> list[Op]:
    """The ops of ``region`` that read nothing but arguments in ``outside``, constants, and one another.

    In order. Those that read no argument at all are left out: they are constants in the making, best made
    where they are used.
    """
    own = own_symbols(region)
    known, reading, found = set(outside), set(outside), list[Op]()
    for op in region.ops:
        if op.has(Trait.TERMINATOR) or op.symbols or not may_move(op):
            continue
        if not known.issuperset(op.operands) or not own.isdisjoint(mentioned(op)):
            continue
        known.update(op.results)
        if not reading.isdisjoint(op.operands):
            reading.update(op.results)
            found.append(op)
    return found


def pull_out(op: Builder, ops: Sequence[Op], mapping: dict[Value, Value]) -> None:
    """Copy ``ops`` to where ``op`` inserts, with the constants they read; ``mapping`` learns the results."""
    for each in ops:
        for value in each.operands:
            _bring(op, value, mapping)
        op.insert(clone_op(each, mapping))


def _bring(op: Builder, value: Value, mapping: dict[Value, Value]) -> None:
    if value in mapping:
        return
    assert value.op is not None, "an argument that stays in its region"
    for operand in value.op.operands:
        _bring(op, operand, mapping)
    op.insert(clone_op(value.op, mapping))


def own_symbols(region: Region) -> set[Symbol]:
    """The symbols that mean something in ``region`` alone."""
    return {*region.symbols, *(symbol for op in region.ops for symbol in op.symbols)}
