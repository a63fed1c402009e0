"""Exported files with inputs and outputs beside them, and the process without torch that runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def write_case(folder: Path, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
    """What ``onnx_runner.py`` reads: NumPy has no bf16, so its bits."""
    folder.mkdir(parents=True)
    for kind, tensors in (("in", inputs), ("out", outputs)):
        for name, tensor in tensors.items():
            is_bf16 = tensor.dtype == torch.bfloat16
            np.save(folder / f"{kind}.{name}.npy", (tensor.view(torch.uint16) if is_bf16 else tensor).numpy())


def run_without_torch(root: Path) -> dict[str, Any]:
    """What ``onnx_runner.py`` finds in ``root``."""
    command = [sys.executable, "-I", str(Path(__file__).with_name("onnx_runner.py")), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
