"""Where an op stands, for messages: its path, and the ops around it."""

from __future__ import annotations

from regraft.ir.core import Op
from regraft.ir.printer import outermost, printer_of

_CONTEXT = 10


def path_of(op: Op, function: str = "") -> str:
    """The way to ``op``: ``forward.body.op[12].region[0].op[3]``, from ``function`` where it is given."""
    parts: list[str] = []
    inner: Op | None = op
    while inner is not None and inner.parent is not None:
        parts.append(f"op[{position_of(inner)}]")
        outer = inner.parent.parent
        if outer is not None:
            parts.append(f"region[{outer.regions.index(inner.parent)}]")
        inner = outer
    start = [function, "body"] if function else []
    return ".".join([*start, *reversed(parts)])


def position_of(op: Op) -> int:
    """The number of ops before ``op`` in its region; -1 in a broken one that does not list it."""
    assert op.parent is not None, f"{op.name} is not in a region"
    return next((i for i, each in enumerate(op.parent.ops) if each is op), -1)


def excerpt(culprit: Op) -> str:
    """Ten ops either side of ``culprit``, and a caret line under it."""
    assert culprit.parent is not None, f"{culprit.name} is not in a region"
    ops = list(culprit.parent.ops)
    printer = printer_of(outermost(culprit), locations=False)
    position = max(position_of(culprit), 0)
    lines: list[str] = []
    for op in ops[max(position - _CONTEXT, 0) : position + _CONTEXT + 1]:
        line = printer.line(op)
        lines.append(f"    {line}")
        if op is culprit:
            lines.append(f"    {'^' * len(line)}")
    return "\n".join(lines)
