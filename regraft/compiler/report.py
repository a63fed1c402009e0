"""What a compile did, for people and as JSON."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from regraft.compiler.choose import Choice
from regraft.ir import RewriteStats


@dataclass
class Report:
    """The report of one compile.

    Fields:
        captured: ops of the captured graph by name.
        passes: seconds by pass, in order; capture's parts come first.
        rewrites: hits, declines and seconds by rewrite.
        executors: ops by back end.
        fallbacks: (op, back end, reason) -> uses, for ops that a preferred back end refused.
        choices: for each computation with several forms, which one runs when, and why.
        notes: what the user should know, such as a back end that is not installed.
        flops, bytes: of the captured and of the final graph, symbols at the example's sizes.
        time: seconds of the whole compile and of its phases.
        error: max |y - reference| / max |reference| against eager in fp64; None when not verified.
        memory: bytes of constants, and peak resident growth where it was measured.
    """

    captured: dict[str, int] = field(default_factory=dict[str, int])
    passes: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    rewrites: dict[str, RewriteStats] = field(default_factory=dict[str, RewriteStats])
    executors: dict[str, int] = field(default_factory=dict[str, int])
    fallbacks: dict[tuple[str, str, str], int] = field(default_factory=dict[tuple[str, str, str], int])
    choices: list[Choice] = field(default_factory=list[Choice])
    notes: list[str] = field(default_factory=list[str])
    flops: dict[str, int] = field(default_factory=dict[str, int])
    bytes: dict[str, int] = field(default_factory=dict[str, int])
    time: dict[str, float] = field(default_factory=dict[str, float])
    error: float | None = None
    memory: dict[str, int] = field(default_factory=dict[str, int])

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "captured": dict(self.captured),
            "passes": [{"name": name, "seconds": seconds} for name, seconds in self.passes],
            "rewrites": {
                name: {"hits": s.hits, "declined": dict(s.declined), "seconds": s.seconds}
                for name, s in self.rewrites.items()
            },
            "executors": dict(self.executors),
            "fallbacks": [
                {"op": op, "backend": backend, "reason": reason, "uses": uses}
                for (op, backend, reason), uses in self.fallbacks.items()
            ],
            "choices": [choice.to_dict() for choice in self.choices],
            "notes": list(self.notes),
            "flops": dict(self.flops),
            "bytes": dict(self.bytes),
            "time": dict(self.time),
            "error": self.error,
            "memory": dict(self.memory),
        }

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(_summary(self), _rewrites(self.rewrites), *self._footer())

    def _footer(self) -> list[str]:
        lines = [
            f"fallback: {op} x{uses} to eager: {backend}: {reason}"
            for (op, backend, reason), uses in self.fallbacks.items()
        ]
        lines += [f"choice: {choice}" for choice in self.choices]
        return lines + [f"note: {note}" for note in self.notes]

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, width=100).print(self)
        return out.getvalue().rstrip()


def _summary(report: Report) -> Any:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("captured", f"{sum(report.captured.values())} ops")
    table.add_row("executors", ", ".join(f"{name}: {ops} ops" for name, ops in report.executors.items()))
    if "before" in report.flops:
        table.add_row("flops", _change(report.flops, 1e9, "GFLOP"))
        table.add_row("bytes", _change(report.bytes, 1e6, "MB"))
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in report.time.items() if name != "total")
    table.add_row("time", f"{report.time.get('total', 0):.2f} s ({phases})")
    if report.error is not None:
        table.add_row("error", f"{report.error:.2e} against eager in fp64")
    if "constants" in report.memory:
        table.add_row("constants", f"{report.memory['constants'] / 1e6:.1f} MB")
    return table


def _change(values: Mapping[str, int], unit: float, name: str) -> str:
    return f"{values['before'] / unit:.2f} -> {values['after'] / unit:.2f} {name}"


def _rewrites(rewrites: Mapping[str, RewriteStats]) -> Any:
    from rich.table import Table

    table = Table("rewrite", "applied", "declined", "ms", box=None, pad_edge=False)
    for name, stats in sorted(rewrites.items(), key=lambda item: -item[1].hits):
        if stats.hits:
            declined = sum(stats.declined.values())
            table.add_row(name, str(stats.hits), str(declined), f"{stats.seconds * 1e3:.0f}")
    return table
