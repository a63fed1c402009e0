"""Places of buffers in one block of memory: those that live at different times share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: What kernels take for granted of every address.
ALIGNMENT = 64


@dataclass(frozen=True)
class Life:
    """A buffer of ``size`` bytes that is in use from the call ``first`` to the call ``last``."""

    number: int
    size: int
    first: int
    last: int

    def meets(self, other: Life) -> bool:
        return self.first <= other.last and other.first <= self.last


def placed(lives: Sequence[Life]) -> tuple[dict[int, int], int]:
    """The offset of each buffer and the size of the block: the largest first, each as low as it fits."""
    offsets: dict[int, int] = {}
    done: list[Life] = []
    total = 0
    for life in sorted(lives, key=lambda life: -life.size):
        offset = 0
        taken = sorted((offsets[other.number], other.size) for other in done if other.meets(life))
        for start, size in taken:
            if offset + life.size <= start:
                break
            offset = max(offset, -(-(start + size) // ALIGNMENT) * ALIGNMENT)
        offsets[life.number] = offset
        total = max(total, offset + life.size)
        done.append(life)
    return offsets, total
