"""Running the command line in this process and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

Invoke = Callable[..., Result]

GRAPH = """module {
  func @forward(%x: f32[4, 3]) -> (f32[12]) {
    %a = aten.view(%x) {size = (3, 4)} : f32[3, 4]
    %b = aten.view(%a) {size = (12,)} : f32[12]
    %c = aten.relu(%b) : f32[12]
    cf.yield([%b])
  }
}
"""


def run_process(
    *arguments: object, cwd: Path | None = None, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own; None takes a variable out of the environment."""
    changed = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "regraft", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=cwd,
        env={name: value for name, value in changed.items() if value is not None},
    )
