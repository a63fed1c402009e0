"""What kernel templates know of a CPU: its vectors, registers, caches and speeds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from regraft.runtime import cpu_features

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Cpu:
    """One kind of CPU and the threads that kernels run on.

    Fields:
        family: the vector extension that kernels are written for: avx512, avx2, neon or generic.
        lanes: f32 numbers in a vector register.
        registers: vector registers.
        has_bf16_dot: whether there is a dot product of bf16 pairs that adds up in f32.
        l1, l2: bytes of the caches of one core.
        threads: how many threads share a kernel.
        peak: f32 operations a second of all these threads.
        bandwidth: bytes a second that all these threads read from main memory.
    """

    family: str
    lanes: int
    registers: int
    has_bf16_dot: bool = False
    l1: int = 32 << 10
    l2: int = 512 << 10
    threads: int = 1
    peak: float = 100e9
    bandwidth: float = 20e9


#: Family -> (the feature that tells it, lanes, registers), the widest vectors first.
_FAMILIES = {
    "avx512": ("avx512f", 16, 32),
    "avx2": ("avx2", 8, 16),
    "neon": ("asimd", 4, 32),
}


def host_cpu(threads: int, peak: float | None = None, bandwidth: float | None = None) -> Cpu:
    """This machine's CPU; ``peak`` and ``bandwidth`` are those of a machine profile where there is one.

    Without them, and for a CPU of no known family, rough figures stand: they only rank configs.
    """
    features = cpu_features()
    known = ((name, *rest) for name, (feature, *rest) in _FAMILIES.items() if feature in features)
    family, lanes, registers = next(known, ("generic", 4, 16))
    return Cpu(
        family,
        lanes,
        registers,
        has_bf16_dot="avx512_bf16" in features,
        l1=_cache(1) or Cpu.l1,
        l2=_cache(2) or Cpu.l2,
        threads=threads,
        peak=peak or 7e9 * lanes * threads,
        bandwidth=bandwidth or 20e9 * threads,
    )


def _cache(level: int) -> int | None:
    """Bytes of the data cache at ``level``, where Linux tells."""
    for folder in sorted(_CACHES.glob("index*")):
        try:
            kind, found, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        number = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind != "Instruction" and found == str(level) and number is not None:
            return int(number[1]) * _UNITS[number[2]]
    return None
