"""Memory of a compile: the peak above the loaded model over the compile and ten calls, in a fresh process."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine

CALLS = 10


def run() -> None:
    """Measure BERT-base, with the libraries cold and already imported; writes ``memory_bert.json``."""
    where = machine.describe()
    rows = {form: _child(form) for form in ("cold", "libraries_loaded")}
    result = {
        "benchmark": "memory",
        "workload": f"BERT-base, ids [1, 128]: compile and {CALLS} calls",
        "ratio": "peak resident memory above the loaded model, over the bytes of the weights",
        "forms": {
            "cold": "as a user meets it: torch.export, ONNX Runtime and the rest are imported on the way",
            "libraries_loaded": "after a model of two small layers was compiled in the same process",
        },
        "machine": where,
        **rows,
    }
    path = machine.save("memory_bert", result)
    for form, row in rows.items():
        print(f"{form:18} peak +{row['peak_mb']} MB, end +{row['end_mb']} MB, ratio {row['ratio']}")
    print(path.name)


def _child(form: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", form]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=machine.ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def measure(form: str) -> dict[str, Any]:
    """The figures of this very process; to be called once in a fresh one."""
    import torch

    import regraft
    from tests.models import FAMILIES

    torch.set_num_threads(machine.THREADS)
    family = FAMILIES["bert"]
    if form == "libraries_loaded":
        regraft.compile(family.make("small"), kwargs=family.inputs(), threads=machine.THREADS)
    model, inputs = family.make("full"), family.inputs(1, 128)
    with torch.inference_mode():
        model(**inputs)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    compiled = regraft.compile(model, kwargs=inputs, threads=machine.THREADS)
    after_compile, peak_of_compile = _status("VmRSS"), _status("VmHWM")
    for _ in range(CALLS):
        compiled(**inputs)
    gc.collect()
    peak, end = _status("VmHWM"), _status("VmRSS")
    return {
        "weights_mb": _mb(weights),
        "compile_peak_mb": _mb(peak_of_compile - before),
        "after_compile_mb": _mb(after_compile - before),
        "peak_mb": _mb(peak - before),
        "end_mb": _mb(end - before),
        "ratio": round((peak - before) / weights, 3),
    }


def _status(key: str) -> int:
    """Bytes, from the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(key)


def _mb(count: int) -> float:
    return round(count / 1e6, 1)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
