"""What an import of ours must not drag in."""

import subprocess
import sys

import pytest


def loaded_by(statement: str, libraries: set[str]) -> set[str]:
    """Those of `libraries` that are loaded once a fresh interpreter has run `statement`."""
    report = "import sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", f"{statement}; {report}"], capture_output=True, text=True, check=True
    )
    return libraries & set(result.stdout.split())


def test_a_loaded_library_is_seen() -> None:
    assert loaded_by("import json", {"json", "torch"}) == {"json"}


@pytest.mark.parametrize(
    "statement", ["import regraft", "import regraft.errors", "import regraft; dir(regraft)"]
)
def test_package_loads_nothing_heavy(statement: str) -> None:
    heavy = {"torch", "sympy", "numpy", "onnx", "onnxruntime", "tvm", "regraft.ir", "regraft.compiler"}
    assert loaded_by(statement, heavy) == set()


def test_ir_loads_neither_torch_nor_sympy_nor_numpy() -> None:
    assert loaded_by("import regraft.ir", {"torch", "sympy", "numpy"}) == set()
