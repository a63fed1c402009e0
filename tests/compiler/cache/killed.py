"""Starts processes that compile, save and write cache entries, and kills each at a random moment.

Usage: killed.py MODE FOLDER KILLS SEED. A child is a fork, so that it costs no imports; it works in a loop
until it is killed.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import torch

import regraft
from regraft.compiler import cache


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x))


X = torch.ones(2, 64)


def compiled(folder: Path, factor: float = 1.0) -> regraft.runtime.CompiledModel:
    model = Model().eval()
    model.factor = factor  # type: ignore[assignment]
    return regraft.compile(model, (X,), backends=("eager",), cache=folder)


def work(mode: str, folder: Path, first: int) -> None:
    """Work until somebody ends this process."""
    for number in itertools.count(first):
        if mode == "compile":
            compiled(folder / "cache", float(number % 3))
        elif mode == "save":
            compiled(folder / "cache").save(folder / f"model-{number}")
        else:
            cache.CacheFolder(folder / "cache").write(f"e{number % 3}", bytes([number % 251]) * (1 << 20))


def _work_alone(mode: str, folder: Path, first: int) -> NoReturn:
    try:
        work(mode, folder, first)
    except BaseException:  # a fork must not go on as its parent does
        traceback.print_exc()
    os._exit(1)


def main(mode: str, folder: Path, kills: int, seed: int) -> None:
    generator = random.Random(seed)
    torch.set_num_threads(1)  # a fork keeps no threads
    compiled(folder / "warm-up")
    start = time.perf_counter()
    compiled(folder / "warm-up", 9.0)
    unit = time.perf_counter() - start
    for kill in range(kills):
        child = os.fork()
        if child == 0:
            _work_alone(mode, folder, 1000 * kill)
        time.sleep(generator.uniform(0.0, 0.1 if mode == "write" else 3 * unit))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "it ended before it was killed"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
