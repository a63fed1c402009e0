"""Which configs the kernels of a function get: by what was measured, now or before, else by estimate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from regraft.backends.protocol import KernelTimes, KernelTuning
from regraft.backends.tvm.bodies import bodies
from regraft.backends.tvm.built import calls_of
from regraft.backends.tvm.cluster import Cluster, form
from regraft.backends.tvm.cpu import Cpu
from regraft.backends.tvm.following import kernel_key, problem_of_cluster, title
from regraft.backends.tvm.templates import TYPICAL_ROWS, Problem, Template, template_for
from regraft.backends.tvm.tune import Choice, Times, begin_with, choose, missing, record_key
from regraft.errors import BackendError
from regraft.ir import Function
from regraft.timing import Measured, unmeasured


class Measures(Protocol):
    """Has candidates built and measured that are not ``known``: ``client.Builder`` with a function's text.

    ``first`` are configs to begin with, after the default.
    """

    def __call__(
        self, key: str, rows: Sequence[int], known: Times, deadline: float, first: Sequence[str]
    ) -> tuple[list[tuple[str, list[str], Measured]], list[str]]: ...


def problems_of(function: Function) -> dict[str, Problem]:
    """What the kernels of templates in ``function`` have to compute, by their keys."""
    steps = [step for body in bodies(function) for step in form(body).steps]
    problems = (problem_of_cluster(s) for s in steps if isinstance(s, Cluster) and s.is_closed)
    return {kernel_key(problem): problem for problem in problems}


def choices_of(
    function: Function, cpu: Cpu, times: KernelTimes, tuning: KernelTuning, measure: Measures
) -> dict[str, Choice]:
    """The configs for each kernel of a template in ``function``, by its key.

    What ``times`` lack is measured by ``measure`` while there is time left, and kept at once. A kernel that
    cannot be measured is told of, and keeps its estimate.
    """
    problems = problems_of(function)
    templates: dict[str, Template] = {}
    for key, problem in problems.items():
        template = template_for(problem, cpu)
        assert template is not None, "what no template takes is expanded"
        templates[key] = template
    if tuning.deadline is not None:
        with tuning.measuring():
            _tune(problems, templates, cpu, times, tuning, measure)
    return {key: choose(problem, templates[key], cpu, times) for key, problem in problems.items()}


def _tune(
    problems: Mapping[str, Problem],
    templates: Mapping[str, Template],
    cpu: Cpu,
    times: KernelTimes,
    tuning: KernelTuning,
    measure: Measures,
) -> None:
    """Measure what ``times`` lack, the oldest first; each kernel has an equal share of the time left."""
    assert tuning.deadline is not None
    pending = _oldest_first(problems, templates, cpu, times, tuning.rows or TYPICAL_ROWS)
    for number, (key, counts) in enumerate(pending.items()):
        now = time.perf_counter()
        if now >= tuning.deadline:
            rest = unmeasured(again=tuning.again)
            tuning.tell(f"the budget sufficed for {number} of {len(pending)} kernels; {rest}")
            return
        problem, share = problems[key], (tuning.deadline - now) / (len(pending) - number)
        known = times.recent.times(record_key(problem))
        first = begin_with(problem, templates[key], cpu, times, counts) if tuning.again else ()
        try:
            found, notes = measure(key, counts, known, now + share, first)
        except BackendError as error:  # kernels are right without their times
            found, notes = [], [f"not measured: {error.message}"]
        for signature, forms, measured in found:
            times.record(signature, forms, measured)
        for note in notes:
            tuning.tell(f"kernel {title(problem)}: {note}")


def _oldest_first(
    problems: Mapping[str, Problem],
    templates: Mapping[str, Template],
    cpu: Cpu,
    times: KernelTimes,
    rows: Sequence[int],
) -> dict[str, list[int]]:
    """The numbers of rows to measure each kernel at: those never measured first, then the oldest."""
    found: dict[str, list[tuple[float, int]]] = {}
    for key, problem in problems.items():
        written = times.written(record_key(problem))
        counts = missing(problem, templates[key], cpu, times.recent, rows)
        found[key] = sorted((written.get(count, 0.0), count) for count in counts)
    pending = [key for key, counts in found.items() if counts]
    pending.sort(key=lambda key: min(age for age, _ in found[key]))
    return {key: [count for _, count in found[key]] for key in pending}


def reported(program: Mapping[str, Any], choices: Mapping[str, Choice]) -> list[dict[str, Any]]:
    """What a report says of each kernel of a template in ``program``."""
    found: list[dict[str, Any]] = []
    for name, facts in program["templates"].items():
        calls = [call for call in calls_of(program["calls"]) if call["kernel"] == name]
        choice = choices.get(facts["key"])
        record = {
            "kernel": facts["key"],
            "title": facts["title"],
            "ops": calls[0]["ops"],
            "calls": len(calls),
            "config": facts["config"],
            "estimated_us": dict(facts["estimated_us"]),
            "measured_us": {} if choice is None else _us(choice, facts["config"]),
            "default_us": {} if choice is None else _us(choice, str(choice.default)),
            "measured_at": [] if choice is None else list(choice.measured_at),
        }
        found.append({**record, "text": _text(record)})
    return found


def _us(choice: Choice, config: str) -> dict[int, float]:
    by_text = {rows: {str(c): us for c, us in each.items()} for rows, each in choice.us.items()}
    return {rows: each[config] for rows, each in by_text.items() if config in each}


def _text(record: Mapping[str, Any]) -> str:
    ops = " ".join(name.split(".")[1] for name in record["ops"])
    calls = f" x{record['calls']}" if record["calls"] > 1 else ""
    return f"{ops} of {record['title']}{calls}: {_times(record)}; {record['config']}"


def _times(record: Mapping[str, Any]) -> str:
    measured, default = record["measured_us"], record["default_us"]
    if not measured:
        shown = ", ".join(f"{us:.0f} us at {rows} rows" for rows, us in record["estimated_us"].items())
        return f"the default, estimated {shown}"
    shown = ", ".join(f"{us:.0f} us at {rows} rows" for rows, us in measured.items())
    gains = [f"{default[rows] / us:.2f}" for rows, us in measured.items() if rows in default]
    at = record["measured_at"]
    origin = (
        "measured" if set(measured) <= set(at) else f"from what was measured at {at[0]} and {at[-1]} rows,"
    )
    return f"{origin} {shown}" + (f", {', '.join(gains)} times as fast as the default" if gains else "")
