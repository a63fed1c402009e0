"""Runs exported files in a process that has neither torch nor regraft. Usage: ``onnx_runner.py FOLDER``.

Each subfolder holds ``model.onnx`` and cases, with ``in.<name>.npy`` and ``out.<name>.npy`` each; NumPy has
no bf16, which is there as its bits. Prints, as JSON, the names of inputs and outputs and for each output the
error of each case.
"""

import ctypes
import importlib.abc
import json
import sys
from pathlib import Path

#: ONNX's number for it.
BF16 = 16
BLOCKED = ("torch", "regraft", "transformers", "onnx", "onnxscript", "onnx_ir")


class Blocker(importlib.abc.MetaPathFinder):
    """Refuses what the file must not need."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")
        return None


sys.meta_path.insert(0, Blocker())

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402


def run(folder: Path) -> dict:
    """The errors of one model's cases."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    errors: dict[str, list[float]] = {}
    for case in sorted(path for path in folder.iterdir() if path.is_dir()):
        feed = {
            port.name: ort_value(port, np.load(case / f"in.{port.name}.npy")) for port in session.get_inputs()
        }
        made = session.run_with_ort_values([port.name for port in session.get_outputs()], feed)
        for port, value in zip(session.get_outputs(), map(array, made), strict=True):
            expected = np.load(case / f"out.{port.name}.npy")
            assert value.shape == expected.shape, f"{port.name} is {value.shape}, expected {expected.shape}"
            if expected.dtype == bool:  # an error of 1 where a truth differs
                value, expected = value.astype(float), expected.astype(float)
            scale = np.abs(expected).max() or 1.0
            errors.setdefault(port.name, []).append(float(np.abs(value - expected).max() / scale))
    return {"inputs": [port.name for port in session.get_inputs()], "errors": errors}


def ort_value(port, value: np.ndarray) -> onnxruntime.OrtValue:
    if port.type == "tensor(bfloat16)":
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(value, BF16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(value)


def array(value: onnxruntime.OrtValue) -> np.ndarray:
    """The numbers of ``value``, those of bf16 in f32."""
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    count = int(np.prod(value.shape()))
    bits = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr()))
    return (bits.astype(np.uint32) << 16).view(np.float32).reshape(value.shape())


if __name__ == "__main__":
    results = {folder.name: run(folder) for folder in sorted(Path(sys.argv[1]).iterdir())}
    assert not [name for name in BLOCKED if name in sys.modules]
    print(json.dumps(results))
