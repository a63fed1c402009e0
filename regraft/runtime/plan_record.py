"""Plans as JSON: their steps, and what each executable saves of itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from regraft.runtime.executable import ArtefactWriter, Executable, NativeCode
from regraft.runtime.plan import Bind, Plan, Step
from regraft.runtime.records import ints


def plan_record(plan: Plan, writer: ArtefactWriter) -> dict[str, Any]:
    """The record of ``plan``; what its executables need goes to ``writer``."""
    return {
        "inputs": plan.inputs,
        "slots": plan.slots,
        "results": list(plan.results),
        "steps": [_step_record(step, writer) for step in plan.steps],
    }


def _step_record(step: Step, writer: ArtefactWriter) -> dict[str, Any]:
    record = {
        **_executable_record(step.executable, writer),
        "inputs": list(step.inputs),
        "outputs": list(step.outputs),
        "dead": list(step.dead),
    }
    return {**record, "binds": list(map(list, step.binds))} if step.binds else record


def _executable_record(executable: Executable, writer: ArtefactWriter) -> dict[str, Any]:
    """The record of an executable; of native code with what it needs and its portable form."""
    record = {"backend": executable.backend, "record": executable.save(writer)}
    native = getattr(executable, "native", None)
    if isinstance(native, NativeCode):
        record["requires"] = sorted(native.features)
        record["portable"] = _executable_record(native.portable, writer)
    return record


def binds_from(record: Iterable[Any]) -> tuple[Bind, ...]:
    """The binds that a record lists.

    Raises:
        TypeError, ValueError: it does not list any.
    """
    return tuple((str(name), *_pair(rest)) for name, *rest in record)


def _pair(values: Iterable[Any]) -> tuple[int, int]:
    number, axis = ints(values)
    return number, axis
