"""Builds programs in a process of its own: TVM costs 200 MB and seconds that the model's process never pays.

One line of JSON in, ``{"id": a number, "text": a module, "cpu": what templates know of it, "folder": where to
write}``, one line out, with the same id: ``{"program": ..., "library": the path of a shared object}`` or
``{"error": ..., "kind": ...}``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

from regraft.backends.tvm.cpu import Cpu


def main() -> None:
    """Answer requests until the input ends. What libraries print goes to stderr, not among the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _answer(answers, {"ready": _versions()})
    for line in sys.stdin:
        request = json.loads(line)
        _answer(answers, {**_handled(request), "id": request["id"]})


def _answer(out: TextIO, answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


def _versions() -> dict[str, str]:
    import tvm
    import tvm_ffi

    return {"tvm": tvm.__version__, "tvm-ffi": tvm_ffi.__version__}


def _handled(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return build(request["text"], Cpu(**request["cpu"]), Path(request["folder"]))
    except Exception as error:  # whatever it is, the other process has to hear of it
        return {"error": str(error), "kind": type(error).__name__}


def build(text: str, cpu: Cpu, folder: Path) -> dict[str, Any]:
    """The program of the one function in ``text``, its kernels in a shared object in ``folder``."""
    from regraft.backends.tvm.building import build as compiled
    from regraft.backends.tvm.program import assemble
    from regraft.ir import parse_module

    program = assemble(parse_module(text).main, cpu)
    if not program.functions:
        return {"program": program.record, "library": None}
    built = compiled(list(program.functions.values()))
    handle, path = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    built.export_library(path)
    return {"program": program.record, "library": path}


if __name__ == "__main__":
    main()
