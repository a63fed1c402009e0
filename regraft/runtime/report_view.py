"""A report for people, from its JSON form: so that one read back from a file looks the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from regraft.runtime.choice_view import alike, choice_lines, hanging

UNKNOWN = "unknown"

Content = Mapping[str, Any]


def summary(report: Content) -> Group:
    """What matters, in some ten lines and a row for each rewrite that was applied."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    for name, text in _facts(report):
        facts.add_row(name, text)
    applied = [row for row in _by_hits(report) if row[1]["hits"]]
    parts: list[Any] = [facts, *([_rewrites(applied)] if applied else [])]
    return Group(*parts, *(hanging(line) for line in remarks(report)))


def details(report: Content) -> Group:
    """The summary and every list behind it."""
    reasons = Table("declined by", "times", "reason", box=None, pad_edge=False)
    for name, stats in _by_hits(report):
        for reason, count in sorted(stats["declined"].items(), key=lambda item: -item[1]):
            reasons.add_row(name, str(count), reason)
    return Group(
        summary(report),
        "",
        _two_columns("captured op", "uses", sorted(report["captured"].items(), key=lambda item: -item[1])),
        "",
        _two_columns("pass", "ms", [(p["name"], f"{1e3 * p['seconds']:.1f}") for p in report["passes"]]),
        "",
        _rewrites(_by_hits(report)),
        "",
        reasons,
        *(["", _steps(report["measured"])] if report["measured"] else []),
    )


def _facts(report: Content) -> Iterator[tuple[str, str]]:
    measured = report["measured"]
    yield "captured", f"{sum(report['captured'].values())} ops"
    yield "executors", ", ".join(_executor(name, ops, measured) for name, ops in report["executors"].items())
    if "before" in report["flops"]:
        yield "flops", _change(report["flops"], "FLOP") + _uncounted(report["uncounted"])
        yield "bytes", _change(report["bytes"], "B")
    yield "call", f"{_measured(measured)}, estimated {_estimated(report['estimated'])}"
    yield "compile", _phases(report["time"])
    cache = report.get("cache") or {"status": "off"}
    if cache["status"] != "off":
        yield "cache", f"{cache['status']}: {cache['reason']}" if cache["reason"] else cache["status"]
    error = report["error"]
    yield "error", "not verified" if error is None else f"{error:.2e} against eager in fp64"
    approximation = report.get("approximation")
    if approximation is not None:
        yield "approx", f"{approximation:.2e} by the graph, on the example in eager torch"
    memory = report["memory"]
    constants, intermediates = (_megabytes(memory.get(key)) for key in ("constants", "intermediates"))
    made = ""
    if memory.get("made"):
        read, new = _megabytes(memory["read"]), _megabytes(memory["made"])
        made = f" ({read} of them read as they are), made of them {new}"
    packed = f", packed {_megabytes(memory['packed'])}" if memory.get("packed") else ""
    yield "memory", f"constants {constants}{made}{packed}, intermediates {intermediates} (estimated)"
    growth, peak = (_megabytes(memory.get(key)) for key in ("growth", "peak_growth"))
    yield "process", f"grew by {growth} in the compile, at most by {peak}"


def _executor(name: str, ops: int, measured: Content | None) -> str:
    seconds = measured["executors"].get(name) if measured else None
    return f"{name}: {ops} ops" + ("" if seconds is None else f" in {_milliseconds(seconds)}")


def _measured(measured: Content | None) -> str:
    if measured is None:
        return "not measured"
    copied = "".join(f", {count} arguments copied for {name}" for name, count in measured["copied"].items())
    return f"{_milliseconds(measured['seconds'])} measured (median of {measured['calls']}{copied})"


def _estimated(estimate: Content | None) -> str:
    if estimate is None:
        return UNKNOWN
    return f"{_milliseconds(estimate['seconds'])} ({estimate['profile']} profile)"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _change(values: Mapping[str, int], unit: str) -> str:
    """Both amounts in the unit that suits the larger one."""
    largest = max(values.values())
    prefix, scale = next((p, s) for p, s in _PREFIXES if largest >= s or not p)
    return f"{values['before'] / scale:.2f} -> {values['after'] / scale:.2f} {prefix}{unit}"


_PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1))


def _uncounted(uses: Mapping[str, int]) -> str:
    if not uses:
        return ""
    return f", and those of {sum(uses.values())} ops that are {UNKNOWN} ({', '.join(uses)})"


def _phases(time: Mapping[str, float]) -> str:
    parts = [f"{name} {seconds:.2f}" for name, seconds in time.items() if name not in ("total", "verify")]
    text = f"{time.get('total', 0.0):.2f} s ({', '.join(parts)})"
    return f"{text}, verify {time['verify']:.2f} s" if "verify" in time else text


def _megabytes(count: int | None) -> str:
    return UNKNOWN if count is None else f"{count / 1e6:.1f} MB"


def remarks(report: Content) -> list[str]:
    """What the user should know of fallbacks, choices and kernels, and the notes, in lines."""
    lines = [
        f"fallback: {f['op']} x{f['uses']} to eager: {f['backend']}: {f['reason']}"
        for f in report["fallbacks"]
    ]
    for same in alike(report["choices"]):
        first, *rest = choice_lines(same)
        lines += [f"choice: {first}", *rest]
    lines += [f"kernel: {kernel['text']}" for kernel in report.get("kernels", [])]
    return lines + [f"note: {note}" for note in report["notes"]]


def _by_hits(report: Content) -> list[tuple[str, Content]]:
    return sorted(report["rewrites"].items(), key=lambda item: (-item[1]["hits"], item[0]))


def _rewrites(rows: Sequence[tuple[str, Content]]) -> Table:
    table = Table("rewrite", "applied", "declined", "ms", box=None, pad_edge=False)
    for name, stats in rows:
        declined = sum(stats["declined"].values())
        table.add_row(name, str(stats["hits"]), str(declined), f"{1e3 * stats['seconds']:.0f}")
    return table


def _two_columns(first: str, second: str, rows: Sequence[tuple[str, Any]]) -> Table:
    table = Table(first, second, box=None, pad_edge=False)
    for name, value in rows:
        table.add_row(name, str(value))
    return table


def _steps(measured: Content) -> Table:
    table = Table("step of the plan", "back end", "ms", box=None, pad_edge=False)
    for index, step in enumerate(measured["steps"]):
        table.add_row(str(index), step["backend"], f"{1e3 * step['seconds']:.3f}")
    table.add_row("whole call", "", f"{1e3 * measured['seconds']:.3f}")
    return table
