"""Linear layers over one input against one layer and slices, through ONNX Runtime."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import regraft
from benchmarks import machine
from regraft.testing import randomise
from regraft.timing import race

#: Width, outputs of each layer, layers: projections of attention, gate and up, many narrow branches.
SHAPES = (
    (64, 64, 3),
    (256, 256, 3),
    (768, 768, 3),
    (64, 256, 2),
    (256, 688, 2),
    (1024, 2816, 2),
    (256, 64, 6),
)
ROWS = (1, 16, 128)


class Separate(nn.Module):
    def __init__(self, width: int, out: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.layers = nn.ModuleList(nn.Linear(width, out, bias=False) for _ in range(count))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


class Merged(nn.Module):
    """The same layers as one, its result cut into theirs."""

    def __init__(self, separate: Separate) -> None:
        super().__init__()
        self.weight, self.count = (
            nn.Parameter(torch.cat(list(separate.parameters())).detach()),
            separate.count,
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.nn.functional.linear(x, self.weight).chunk(self.count, -1)


def run(rounds: int = 30, patience: float = 10.0) -> None:
    """Race the two forms; writes ``siblings.json``."""
    torch.set_num_threads(machine.THREADS)
    where = machine.describe()
    points = [_point(shape, rows, rounds, patience) for shape in SHAPES for rows in ROWS]
    result = {
        "benchmark": "siblings",
        "settings": {"threads": machine.THREADS, "dtype": "f32", "batch": 1},
        "ratio": "time of one merged layer over time of separate ones: above 1, separate is faster",
        "machine": where,
        "points": points,
    }
    print(machine.save("siblings", result).name)


def _point(shape: tuple[int, int, int], rows: int, rounds: int, patience: float) -> dict[str, Any]:
    separate = Separate(*shape)
    randomise(separate.eval())
    x = torch.randn(1, rows, shape[0])
    first = regraft.compile(separate, (x,), threads=machine.THREADS, cache=False)
    second = regraft.compile(Merged(separate).eval(), (x,), threads=machine.THREADS, cache=False)
    calls = {"separate": lambda: first(x), "merged": lambda: second(x)}
    found = race(calls, rounds=rounds, inner=20 if rows <= 16 else 1, patience=patience).to_dict()
    print(shape, rows, found["entrants"]["merged"]["ratio"], flush=True)
    return {"width": shape[0], "out": shape[1], "layers": shape[2], "rows": rows, "race": found}
