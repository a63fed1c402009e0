"""A race between a compiled model, the original and what else runs it: the one behind ``regraft bench``."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from regraft.backends import FileRunner, LowerOptions, backend
from regraft.compiler.arguments import checks_names
from regraft.compiler.check import references, runner_of, state_of
from regraft.compiler.trial import apart, copied, on_copies, run_compiled
from regraft.errors import BackendError, NumericsMismatch
from regraft.numerics import assert_close
from regraft.runtime import CompiledModel
from regraft.timing import AGAIN, Race, race

OURS, EAGER, TORCH_ONNX = "regraft", "eager", "torch.onnx on ORT"


@dataclass(frozen=True)
class BenchReport:
    """Who was how fast.

    Fields:
        race: the times; regraft is the first entrant, and runs twice for the noise floor.
        errors: of each entrant's results against eager in fp64, by the numerics rule.
        left_out: entrant -> why it did not take part.
        threads: worker threads of everybody; None leaves it to each library.
    """

    race: Race
    errors: Mapping[str, float]
    left_out: Mapping[str, str]
    threads: int | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            **self.race.to_dict(),
            "threads": self.threads,
            "errors": dict(self.errors),
            "left_out": dict(self.left_out),
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        columns = ("entrant", "median ms", "time / regraft's", "95 %", "verdict", "error")
        table = Table(*columns, box=None, pad_edge=False)
        for name, row in self.race.to_dict()["entrants"].items():
            ratio = row.get("ratio")
            error = self.errors.get(name)
            table.add_row(
                "regraft again (noise)" if name == AGAIN else name,
                f"{row['median_ms']:.3f}",
                f"{ratio['median']:.2f}" if ratio else "",
                f"{ratio['low']:.2f} to {ratio['high']:.2f}" if ratio else "",
                _verdict(row.get("verdict", "")),
                "" if error is None else f"{error:.1e}",
            )
        left_out = [f"left out: {name}: {reason}" for name, reason in self.left_out.items()]
        return Group(table, *left_out)


@checks_names
def bench(
    model: Any,
    compiled: CompiledModel,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    rounds: int = 30,
    threads: int | None = None,
    peers: bool = True,
    patience: float = 60.0,
) -> BenchReport:
    """Time ``compiled`` against ``model`` and, with ``peers``, against ``torch.onnx`` on ONNX Runtime.

    Everybody runs in turns, in an order that is drawn anew for each round; a peer whose results are off by
    more than the numerics rule allows does not take part. ``patience`` is the seconds to spend on rounds that
    other processes disturbed. ``threads`` is for the peers: ``compiled`` has
    its own, and torch's number belongs to the process. Everybody runs on copies of the arguments and of the
    state.

    Raises:
        NumericsMismatch: the results of ``compiled`` are off.
        The errors of a call.
    """
    runner, state, ours_on_copies = runner_of(model), state_of(compiled), on_copies(compiled)
    args, keywords = copied((tuple(args), dict(kwargs or {})))
    eager, expected = (run[0] for run in references(model, args, keywords, state))
    calls: dict[str, Callable[[], object]] = {
        OURS: lambda: ours_on_copies(*args, **keywords),
        EAGER: lambda: runner(*args, **keywords),
    }
    with torch.inference_mode():
        ours = run_compiled(compiled, args, keywords)[0]
    errors = {OURS: assert_close(ours, expected, eager=eager, reassociates=True)}
    left_out: dict[str, str] = {}
    if peers:
        try:
            call = _torch_onnx(model, args, keywords, threads)
            errors[TORCH_ONNX] = assert_close(call(), expected, eager=eager, reassociates=True)
            calls[TORCH_ONNX] = call
        except (BackendError, NumericsMismatch) as error:
            left_out[TORCH_ONNX] = str(error).replace("\n", "; ")
    with apart(runner, state), torch.inference_mode():
        return BenchReport(race(calls, rounds=rounds, patience=patience), errors, left_out, threads)


def _verdict(verdict: str) -> str:
    return f"regraft is {verdict}" if verdict in ("faster", "slower") else verdict


def _torch_onnx(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], threads: int | None
) -> Callable[[], list[Tensor]]:
    """A call of what ``torch.onnx.export`` makes of the model, in a session of ONNX Runtime's defaults.

    Raises:
        BackendError: a library is missing, or the export or the session fails.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise BackendError("needs onnxscript, which is not installed: pip install 'regraft[bench]'")
    runner = backend("ort")
    assert isinstance(runner, FileRunner), "the ort back end opens files"
    leaves: list[Any] = pytree.tree_leaves((tuple(args), dict(kwargs)))
    given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _export(model, args, kwargs, path)
        opened = runner.open_file(path, LowerOptions(threads))
    if len(opened.inputs) != len(given):
        raise BackendError(f"its file has {len(opened.inputs)} inputs for {len(given)} tensors")
    return opened.bind(given)


def _export(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], path: Path) -> None:
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(  # pyright: ignore[reportUnknownMemberType]
                model, tuple(args), kwargs=dict(kwargs), dynamo=True, verbose=False, optimize=True
            )
            assert program is not None, "without a file, torch.onnx.export returns the program"
            program.save(str(path), external_data=True)  # pyright: ignore[reportUnknownMemberType]
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        raise BackendError(f"torch.onnx.export failed: {type(error).__name__}: {first}") from error


@contextmanager
def _quiet() -> Generator[None]:
    """Exporters talk on both streams and through warnings; what they say is not a result."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
