"""The bodies of a function: its own, and the arms of its conditions. What is done to each is done to all."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.ir import Function, Region


def bodies(function: Function) -> Iterator[Region]:
    """The body of ``function`` and the arms of the conditions in it, each before those that it holds."""
    pending = [function.body]
    while pending:
        body = pending.pop()
        yield body
        pending += [arm for op in body.ops if op.name == "cf.cond" for arm in op.regions]
