"""What this machine's CPU is and can do: for native code, cache keys, measured times and ``doctor``."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from pathlib import Path

import torch


@functools.cache
def cpu_features() -> frozenset[str]:
    """The machine and the instruction sets of its CPU, by the kernel's names where it lists them.

    A system without such a list gives torch's own name for the best vector extension.
    """
    rows = _rows()
    listed = rows.get("flags") or rows.get("Features")
    best = torch.backends.cpu.get_cpu_capability().lower()
    return frozenset({platform.machine().lower(), *(listed.split() if listed else [best])})


def cpu_model() -> str:
    """The name of the CPU as Linux tells it; what else is known of it on other systems."""
    return _rows().get("model name") or platform.processor() or platform.machine()


@functools.cache
def _rows() -> Mapping[str, str]:
    """What Linux tells of the first CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return {}
    rows = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in rows}
