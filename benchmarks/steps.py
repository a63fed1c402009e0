"""A diffusion transformer over 50 steps: eager, compiled, and compiled with the step caching of four papers.

A generation is timed as a whole, the sampler's own arithmetic included. What caching saves is to be read
beside its error, which is that of random weights: it says that the forecasts do something, and not what a
trained model would lose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import regraft
from benchmarks import machine
from regraft.steps import Every, Feedback, Probe, StepCache, Steps, Taylor, compile_steps
from regraft.testing import relative_error
from regraft.timing import race
from tests.zoo.steps.dit import DiT, ddim
from tests.zoo.steps.policy import alike, best_steps

STEPS, TOKENS = 50, 64
WIDTH, HEADS, DEPTH = 256, 4, 8
THRESHOLD = 0.05
"""Of the confidence gate."""
UPDATES = 10
"""Steps at which block-wise adaptive caching computes a block."""
ALL, EAGER = "all steps", "eager"


def run(rounds: int = 20, patience: float = 60.0, threads: int = machine.THREADS) -> None:
    """Writes ``steps_dit.json``; on one thread, by CPU time, ``steps_dit_one_thread.json``."""
    torch.set_num_threads(threads)
    where = machine.describe()
    torch.manual_seed(0)
    model = DiT(width=WIDTH, heads=HEADS, depth=DEPTH).eval()
    noise = torch.randn(1, TOKENS, 4)
    calls, rows = entrants(model, noise, threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    raced = race(calls, rounds=rounds, patience=patience, warm_up=1, clock=clock)
    for name, row in rows.items():
        row["faster_than_all_steps"] = round(1 / raced.ratio(name).median, 3) if name != ALL else 1.0
    path = machine.save(
        "steps_dit_one_thread" if threads == 1 else "steps_dit",
        {
            "benchmark": "steps",
            "workload": f"DiT, {DEPTH} blocks of {WIDTH}, {TOKENS} tokens, {STEPS} steps of DDIM",
            "settings": {
                "threads": threads,
                "clock": clock.__name__,
                "dtype": "f32",
                "batch": 1,
                "backends": "ort",
            },
            "ratio": "time of the entrant over time of the first: below 1, the entrant is faster",
            "machine": where,
            "entrants": rows,
            "race": raced.to_dict(),
        },
    )
    print(path.name, flush=True)
    for name, row in rows.items():
        print(f"  {name}: {row}", flush=True)


def entrants(
    model: DiT, noise: Tensor, threads: int, steps: int = STEPS
) -> tuple[Mapping[str, Callable[[], Tensor]], dict[str, dict[str, Any]]]:
    """A generation of ``steps`` steps by each, and what is to be said about it."""

    def sample(denoise: Callable[..., Tensor]) -> Tensor:
        with torch.no_grad():
            return ddim(denoise, noise, steps)

    example = (noise, torch.full((len(noise),), 900.0))
    whole = regraft.compile(model, example, threads=threads)
    expected = sample(model)
    error = relative_error(sample(whole), expected.double())
    calls: dict[str, Callable[[], Tensor]] = {ALL: lambda: sample(whole), EAGER: lambda: sample(model)}
    rows: dict[str, dict[str, Any]] = {ALL: {"error": error}, EAGER: {}}
    for name, cache in caches(model, sample).items():
        row, calls[name] = _cached(model, example, cache, sample, threads)
        rows[name] = row
    return calls, rows


def _cached(
    model: DiT,
    example: tuple[Tensor, ...],
    cache: StepCache,
    sample: Callable[..., Tensor],
    threads: int,
) -> tuple[dict[str, Any], Callable[[], Tensor]]:
    compiled = compile_steps(model, example, cache=cache, threads=threads)

    def generation() -> Tensor:
        compiled.reset()
        return sample(compiled)

    generation()
    ran = {name: count for name, count in compiled.report.calls.items() if count}
    errors = compiled.measure(sample)
    row = {
        "error": errors.result,
        "largest_error_of_a_step": max(errors.steps),
        "graphs": len(compiled.report.graphs),
        "steps_by_blocks_computed": _shares(compiled.report.graphs, ran),
    }
    return row, generation


def _shares(graphs: Mapping[str, Any], ran: Mapping[str, int]) -> list[dict[str, Any]]:
    """How often graphs ran, by the part of the whole model's arithmetic that they do."""
    whole = graphs["all computed"].to_dict()["flops"]["after"]
    shares: dict[float, int] = {}
    for name, count in ran.items():
        share = round(graphs[name].to_dict()["flops"]["after"] / whole, 2)
        shares[share] = shares.get(share, 0) + count
    return [{"share": share, "calls": count} for share, count in sorted(shares.items(), reverse=True)]


def caches(model: DiT, sample: Callable[..., Tensor]) -> dict[str, StepCache]:
    """The caching of each paper (docs/steps.md), as its own examples have it."""
    first, middle, last = "blocks.0", f"blocks.{DEPTH // 2 - 1}", f"blocks.{DEPTH - 1}"
    parts = [f"blocks.{i}.{part}" for i in range(DEPTH) for part in ("attn", "mlp")]
    updates = _best_updates(model, parts, sample)
    return {
        "TaylorSeer, every third step": StepCache(dict.fromkeys(parts, Taylor(1)), Every(3, first=2)),
        f"CG-Taylor, threshold {THRESHOLD}": StepCache(
            {first: Taylor(3), last: Taylor(1)}, Probe(first, THRESHOLD)
        ),
        "ILF, every second step": StepCache({middle: Feedback(model.foresee, source=last)}, Every(2)),
        f"BAC, {UPDATES} updates a block": StepCache(dict.fromkeys(parts, Taylor(0)), Steps(updates)),
    }


@dataclass
class _Kept:
    """What a block has given, step by step."""

    outputs: list[Tensor]

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.outputs.append(output)


def _best_updates(
    model: DiT, parts: Sequence[str], sample: Callable[..., Tensor]
) -> dict[str, tuple[int, ...]]:
    """The steps at which each of ``parts`` is computed, by how alike its outputs are from step to step."""
    kept = {name: _Kept([]) for name in parts}
    handles = [model.get_submodule(name).register_forward_hook(each) for name, each in kept.items()]
    sample(model)
    for handle in handles:
        handle.remove()
    return {name: best_steps(alike(each.outputs), UPDATES) for name, each in kept.items()}
