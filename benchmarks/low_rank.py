"""Low-rank layers and LoRA: the chosen form against each form, through ONNX Runtime."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import regraft
from benchmarks import machine
from regraft.testing import randomise
from regraft.timing import Call, race

WIDTH, HIDDEN = 1024, 2816
RANKS = (64, 128, 256, 512, 896, 1024)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class LowRankLinear(nn.Sequential):
    def __init__(self, inner: int, outer: int, rank: int) -> None:
        super().__init__(nn.Linear(inner, rank, bias=False), nn.Linear(rank, outer, bias=False))


class GatedFFN(nn.Module):
    """SwiGLU without biases (the workloads page), each of its layers as two of ``rank``."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.gate, self.up = LowRankLinear(WIDTH, HIDDEN, rank), LowRankLinear(WIDTH, HIDDEN, rank)
        self.down = LowRankLinear(HIDDEN, WIDTH, rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Merged(nn.Module):
    """The same network with dense weights."""

    def __init__(self, factored: GatedFFN) -> None:
        super().__init__()
        for name in ("gate", "up", "down"):
            first, second = getattr(factored, name)
            dense = nn.Linear(first.in_features, second.out_features, bias=False)
            dense.weight = nn.Parameter(second.weight.detach() @ first.weight.detach())
            setattr(self, name, dense)

    forward = GatedFFN.forward


class LoRALayer(nn.Module):
    def __init__(self, inner: int, outer: int, rank: int = 64) -> None:
        super().__init__()
        self.base = nn.Linear(inner, outer)
        self.a, self.b = nn.Linear(inner, rank, bias=False), nn.Linear(rank, outer, bias=False)
        self.scale = 16 / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.scale * self.b(self.a(x))


class LoRAFFN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = LoRALayer(WIDTH, 4096), LoRALayer(4096, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x)))


def run(
    ranks: tuple[int, ...] = RANKS, tokens: tuple[int, ...] = TOKENS, rounds: int = 20, patience: float = 10.0
) -> None:
    """Race the three on the grid, without tuning database and profile; writes ``low_rank.json``."""
    torch.set_num_threads(machine.THREADS)
    where = machine.describe()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REGRAFT_CACHE_DIR"] = folder
        grid = [_point(rank, count, rounds, patience) for rank in ranks for count in tokens]
        lora = [_lora(count, rounds, patience) for count in (1, 128)]
    good = [point for point in grid if point["good"]]
    result = {
        "benchmark": "low_rank",
        "workload": f"SwiGLU d={WIDTH} f={HIDDEN}, each layer through a rank; LoRA FFN d=1024 f=4096 r=64",
        "settings": {"threads": machine.THREADS, "dtype": "f32", "batch": 1, "tuned": False},
        "ratio": "time of the entrant over time of the chosen form: above 1, the chosen form is faster",
        "machine": where,
        "share_of_good_choices": round(len(good) / len(grid), 4),
        "grid": grid,
        "lora": lora,
    }
    path = machine.save("low_rank", result)
    print(f"{len(good)} of {len(grid)} choices good -> {path.name}")


def _point(rank: int, count: int, rounds: int, patience: float) -> dict[str, Any]:
    """One point of the grid. A choice is good when no form is faster beyond 5 % or the noise."""
    factored = randomise(GatedFFN(rank).eval())
    x = torch.randn(1, count, WIDTH)
    chosen = regraft.compile(factored, (x,), threads=machine.THREADS, memory_limit=1 << 30)
    forms = {
        "factored": regraft.compile(factored, (x,), threads=machine.THREADS, memory_limit=0),
        "merged": regraft.compile(Merged(factored).eval(), (x,), threads=machine.THREADS),
    }
    found = _race({"chosen": chosen, **forms}, x, rounds, patience)
    ratios = {name: found["entrants"][name]["ratio"] for name in forms}
    noise = found["entrants"]["the same again"]["ratio"]
    good = all(r["median"] > 0.95 or r["high"] > min(1.0, noise["low"]) for r in ratios.values())
    forms_taken = sorted({c.forms[i] for c in chosen.report.choices for i in c.order})
    line = f"rank {rank:5} tokens {count:4}: {', '.join(forms_taken):10}"
    print(line, {name: r["median"] for name, r in ratios.items()}, "" if good else "NOT GOOD", flush=True)
    return {"rank": rank, "tokens": count, "chosen": forms_taken, "good": good, "race": found}


def _lora(count: int, rounds: int, patience: float) -> dict[str, Any]:
    adapted = randomise(LoRAFFN().eval())
    dense = randomise(nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)).eval())
    x = torch.randn(1, count, 1024)
    entrants = {
        "LoRA, compiled": regraft.compile(adapted, (x,), threads=machine.THREADS),
        "plain": regraft.compile(dense, (x,), threads=machine.THREADS),
        "LoRA, as written": regraft.compile(adapted, (x,), threads=machine.THREADS, memory_limit=0),
    }
    found = _race(entrants, x, rounds, patience)
    print(f"LoRA tokens {count}", {n: e.get("ratio", {}).get("median") for n, e in found["entrants"].items()})
    return {"tokens": count, "race": found}


def _race(models: Mapping[str, Any], x: torch.Tensor, rounds: int, patience: float) -> dict[str, Any]:
    calls: dict[str, Call] = {name: (lambda m=model: m(x)) for name, model in models.items()}
    inner = 20 if x.shape[1] <= 16 else 1
    return race(calls, rounds=rounds, inner=inner, patience=patience).to_dict()
