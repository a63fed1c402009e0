"""One compiled model called by many threads: the results of one caller, and no memory that stays."""

from __future__ import annotations

import gc
import threading
import time

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.testing import randomise

THREADS = 8
#: A result of the largest call has 1 MiB; what allocators keep for eight threads is far below this.
ALLOWED_GROWTH = 32 << 20
#: So many results would be far above it.
ENOUGH_CALLS = 128


class Block(nn.Module):
    """Attention and an MLP, so that a call has scratch memory too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(64), nn.MultiheadAttention(64, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        self.out = nn.Linear(64, 4096)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.out(x + self.mlp(x)), x.mean(1)


class Caller(threading.Thread):
    """Calls the model on inputs of its own until told to stop, and compares with what one caller gets."""

    def __init__(self, compiled: regraft.CompiledModel, index: int, start: threading.Barrier) -> None:
        super().__init__(daemon=True)
        self.compiled, self.begin, self.stop = compiled, start, threading.Event()
        generator = torch.Generator().manual_seed(index)
        self.inputs = [torch.randn(rows, 16, 64, generator=generator) for rows in (1 + index % 3, 4)]
        self.expected = [compiled(x) for x in self.inputs]
        self.calls = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for _ in range(5):
                self._call()
            self.begin.wait()
            while not self.stop.is_set():
                self._call()
        except Exception as error:  # the test raises it
            self.error = error
            self.begin.abort()

    def _call(self) -> None:
        for x, expected in zip(self.inputs, self.expected, strict=True):
            for mine, theirs in zip(self.compiled(x), expected, strict=True):
                assert torch.equal(mine, theirs)
            self.calls += 1


@pytest.mark.parametrize("seconds", [2.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_eight_threads(seconds: float) -> None:
    model = randomise(Block().eval())
    compiled = regraft.compile(model, (torch.randn(2, 16, 64),), dynamic_shapes=({0: Dim.AUTO},))
    ready = threading.Barrier(THREADS + 1)
    callers = [Caller(compiled, index, ready) for index in range(THREADS)]
    for caller in callers:
        caller.start()
    try:
        ready.wait(timeout=300)
        before = memory()
        deadline = time.monotonic() + seconds
        # A busy machine gets the calls done later.
        while time.monotonic() < deadline or sum(c.calls for c in callers) < ENOUGH_CALLS:
            time.sleep(0.05)
            if any(not c.is_alive() for c in callers):
                break
    except threading.BrokenBarrierError:
        before = memory()
    finally:
        for caller in callers:
            caller.stop.set()
        for caller in callers:
            caller.join(timeout=120)
    for caller in callers:
        if caller.error is not None:
            raise caller.error
    assert all(caller.calls >= 10 for caller in callers)
    assert memory() - before < ALLOWED_GROWTH


def memory() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss
