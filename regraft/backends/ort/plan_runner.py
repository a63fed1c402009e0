"""Runs a folder that ``regraft.export_plan`` has written. Needs onnxruntime and numpy, and nothing else.

    python run_plan.py FOLDER inputs.npz outputs.npz

or, from Python: ``results = Plan(folder)(x=array)``. ``plan.json`` holds the names of inputs and outputs, and
steps over named values: a file to run, a condition (``if``) or a loop (``while``) with steps of its own.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


class Plan:
    """The networks of a folder and the steps that join them. ``counts`` says how often each file ran."""

    def __init__(self, folder, threads=0):
        self.folder = Path(folder)
        self.plan = json.loads((self.folder / "plan.json").read_text(encoding="utf-8"))
        if self.plan["format"] != 1:
            raise ValueError(f"plan.json has the format {self.plan['format']}; this runner reads 1")
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.sessions = {name: self._session(name) for name in self.plan["files"]}
        self.counts = dict.fromkeys(self.plan["files"], 0)

    def _session(self, name):
        path = str(self.folder / name)
        return onnxruntime.InferenceSession(path, self.options, providers=["CPUExecutionProvider"])

    def __call__(self, **inputs):
        """The outputs by name, for arrays by the names of the inputs.

        Raises:
            ValueError: an input is missing or unknown.
        """
        wanted = set(self.plan["inputs"])
        if set(inputs) != wanted:
            raise ValueError(f"the inputs are {sorted(wanted)}, not {sorted(inputs)}")
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(each, order="C"))
            for name, each in inputs.items()
        }
        self._run(self.plan["steps"], values)
        return {name: values[slot].numpy() for name, slot in self.plan["outputs"].items()}

    def _run(self, steps, values):
        for step in steps:
            if "file" in step:
                self._run_file(step, values)
            elif "if" in step:
                arm = step["then"] if values[step["if"]].numpy() else step["else"]
                self._run(arm["steps"], values)
                results = [values[slot] for slot in arm["results"]]
                values.update(zip(step["results"], results, strict=True))
            else:
                self._run_loop(step["while"], values)

    def _run_file(self, step, values):
        feed = {name: values[slot] for name, slot in step["inputs"].items()}
        made = self.sessions[step["file"]].run_with_ort_values(list(step["outputs"]), feed)
        self.counts[step["file"]] += 1
        values.update(zip(step["outputs"].values(), made, strict=True))

    def _run_loop(self, loop, values):
        now = [values[slot] for slot in loop["starts"]]
        while True:
            values.update(zip(loop["carried"], now, strict=True))
            self._run(loop["test"]["steps"], values)
            if not values[loop["test"]["results"][0]].numpy():
                return
            self._run(loop["body"]["steps"], values)
            now = [values[slot] for slot in loop["body"]["results"]]


def main(folder, inputs, outputs):
    with np.load(inputs) as arrays:
        results = Plan(folder)(**arrays)
    np.savez(outputs, allow_pickle=False, **results)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
