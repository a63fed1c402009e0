"""What this machine's CPU can do, for native code and for cache keys."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch


@functools.cache
def cpu_features() -> frozenset[str]:
    """The machine and the instruction sets of its CPU, by the kernel's names where it lists them.

    A system without such a list gives torch's own name for the best vector extension.
    """
    found = {platform.machine().lower()}
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return frozenset(found | {torch.backends.cpu.get_cpu_capability().lower()})
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(found | set(value.split()))
    return frozenset(found | {torch.backends.cpu.get_cpu_capability().lower()})
