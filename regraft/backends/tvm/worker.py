"""Builds programs in a process of its own: TVM costs 200 MB and seconds that the model's process never pays.

It ends with the process that started it, whatever it is at: see ``_end_with``.

One line of JSON in, one line out with the same ``id``. A request has ``do``, the ``text`` of a module, and
``cpu``, what templates know of it:

- ``build``: with ``configs`` (see ``build`` below) and a ``folder`` to write to. The answer is ``{"program":
  ..., "library": the path of a shared object, "notes": [...]}``.
- ``tune``: with the ``key`` of a kernel, numbers of ``rows``, pairs of such a number and the times that are
  ``known`` of it, a ``budget`` in seconds, and the configs to try ``first``, after the default. The answer is
  ``{"measured": [...], "notes": [...]}``.

Where something failed, the answer is ``{"error": ..., "kind": ...}``.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from regraft.backends.tvm.choices import problems_of
from regraft.backends.tvm.cpu import Cpu
from regraft.backends.tvm.library import use_threads
from regraft.backends.tvm.space import Config
from regraft.backends.tvm.templates import template_for
from regraft.backends.tvm.tune import KernelTuner, Times
from regraft.errors import BackendError
from regraft.ir import Function, parse_module
from regraft.timing import Measured


def main() -> None:
    """Answer requests until the input ends. What libraries print goes to stderr, not among the answers."""
    _end_with(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _answer(answers, {"ready": _versions()})
    for line in sys.stdin:
        request = json.loads(line)
        _answer(answers, {**_handled(request), "id": request["id"]})


def _end_with(lifeline: int) -> None:
    """Have the kernel end this process when the other end of the pipe ``lifeline`` closes.

    A build holds Python's lock for seconds, and no thread of ours would see that the input has ended. Nothing
    is ever written to the pipe: its owner holds it as long as it lives, and the signal's default is the end.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # it was closed before
        sys.exit()


def _answer(out: TextIO, answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


def _versions() -> dict[str, str]:
    import tvm
    import tvm_ffi

    return {"tvm": tvm.__version__, "tvm-ffi": tvm_ffi.__version__}


def _handled(request: dict[str, Any]) -> dict[str, Any]:
    cpu = Cpu(**request["cpu"])
    try:
        if request["do"] == "tune":
            known = dict(request["known"])
            asked = (request["key"], request["rows"], known, request["budget"], request["first"])
            return tune(request["text"], cpu, *asked)
        return build(request["text"], cpu, request["configs"], Path(request["folder"]))
    except Exception as error:  # whatever it is, the other process has to hear of it
        return {"error": str(error), "kind": type(error).__name__}


def build(text: str, cpu: Cpu, configs: Mapping[str, Sequence[str]], folder: Path) -> dict[str, Any]:
    """The program of the one function in ``text``, its kernels in a shared object in ``folder``.

    ``configs`` has for kernels of templates, by their keys, the configs to take, the best first; where the
    kernels do not build with the first ones, each takes its own first one that builds, and a product that
    does not build with what follows it has a kernel of its own.
    """
    parsed = {key: [Config.parse(each) for each in listed] for key, listed in configs.items()}
    try:
        return _built(text, cpu, parsed, folder, is_careful=False)
    except BackendError:
        return _built(text, cpu, parsed, folder, is_careful=True)


def _built(
    text: str, cpu: Cpu, configs: Mapping[str, Sequence[Config]], folder: Path, *, is_careful: bool
) -> dict[str, Any]:
    from regraft.backends.tvm import building
    from regraft.backends.tvm.products import Products
    from regraft.backends.tvm.program import assemble

    products = Products(cpu, configs, is_careful, [])
    function = _function(text)
    program = assemble(function, products, products.alone(function) if is_careful else ())
    answer = {"program": program.record, "library": None, "notes": products.notes}
    if not program.record["calls"]:
        return answer
    handle, path = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    building.link(list(program.functions.values()), path)
    return {**answer, "library": path}


def tune(
    text: str,
    cpu: Cpu,
    key: str,
    rows: Sequence[int],
    known: Times,
    budget: float,
    first: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure the candidates for the kernel ``key`` of the function in ``text`` at each number of rows.

    Those that are ``known`` there are not tried again; the configs ``first`` are tried next to the default.
    """
    from regraft.backends.tvm.bench import KernelBench

    use_threads(cpu.threads)
    problem = problems_of(_function(text))[key]
    template = template_for(problem, cpu)
    assert template is not None, "what no template takes is expanded"
    taken = _Taken(known)
    tuner = KernelTuner(taken, cpu, budget, first=first)
    tuner.run(problem, template, KernelBench(problem, template), rows)
    return {"measured": taken.measured, "notes": tuner.notes}


class _Taken:
    """Records that go back with the answer: the process that asked has the database."""

    def __init__(self, known: Times) -> None:
        self.known = known
        self.measured: list[dict[str, Any]] = []

    def record(self, signature: str, forms: Sequence[str], measured: Measured) -> None:
        self.measured.append({"signature": signature, "forms": forms, **asdict(measured)})

    def times(self, signature: str) -> Times:
        return self.known


@lru_cache(maxsize=1)
def _function(text: str) -> Function:
    """The one function in ``text``; tuning asks for it once a kernel."""
    return parse_module(text).main


if __name__ == "__main__":
    main()
