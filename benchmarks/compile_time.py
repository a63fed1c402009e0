"""How long a compile takes, by phase, in fresh processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import machine


def run(repeats: int = 3) -> None:
    """Compile BERT-base in ``repeats`` fresh processes; writes ``compile_time_bert.json``."""
    where = machine.describe()
    rows = [_child() for _ in range(repeats)]
    medians = {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
    result = {
        "benchmark": "compile time",
        "workload": "BERT-base, ids [1, 128]",
        "phases": "export, decompositions and import are the capture; total is the whole of regraft.compile",
        "machine": where,
        "median_seconds": medians,
        "runs": rows,
    }
    path = machine.save("compile_time_bert", result)
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in medians.items()))
    print(path.name)


def _child() -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.compile_time"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=machine.ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def measure() -> dict[str, Any]:
    """Seconds by phase in this very process; to be called once in a fresh one."""
    import torch

    from tests.models import FAMILIES

    torch.set_num_threads(machine.THREADS)
    family = FAMILIES["bert"]
    model, inputs = family.make("full"), family.inputs(1, 128)
    start = time.perf_counter()
    import regraft

    compiled = regraft.compile(model, kwargs=inputs, threads=machine.THREADS)
    called = time.perf_counter()
    compiled(**inputs)
    seconds = dict(compiled.report.to_dict()["time"])
    seconds["with_imports"] = called - start
    seconds["first_call"] = time.perf_counter() - called
    return {name: round(value, 3) for name, value in seconds.items()}


if __name__ == "__main__":
    print(json.dumps(measure()))
