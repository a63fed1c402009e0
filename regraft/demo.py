"""``regraft demo``: two transformers and a module with a rewrite of one's own, compiled and checked."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import regraft
from regraft.errors import OptionError
from regraft.ir import Builder, Declined, DType, Example, Match, TensorType, Value
from regraft.testing import randomise
from regraft.timing import Race, race

OURS, EAGER = "regraft", "eager"

X, W = TensorType(DType.F32, (4, 8)), TensorType(DType.F32, (6, 8))


class ParallelSum(regraft.Rewrite):
    """``x @ a.T + x @ b.T  ->  x @ (a + b).T``: one product in place of two."""

    exactness = regraft.Exactness.REASSOCIATES
    examples = (
        Example(
            lambda op, x, a, b: op.aten.add.Tensor(op.aten.linear(x, a), op.aten.linear(x, b)),
            (X, W, W),
            (1, 2),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, a, b: op.aten.add.Tensor(op.aten.linear(x, a), op.aten.linear(x, b)),
            (X, W, W),
            (),
            reason="not constant",
        ),
    )

    def pattern(self, op: Any, x: Any, a: Any, b: Any) -> Any:
        return op.aten.add.Tensor(op.aten.linear(x, a), op.aten.linear(x, b))

    def check(self, m: Match) -> Declined | None:
        for weight in (m.a, m.b):
            if not weight.is_const:
                return m.decline("the weight is not constant", weight)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.linear(m.x, op.aten.add.Tensor(m.a, m.b))


class TwoBranches(nn.Module):
    """Two parallel linears that are summed, as re-parameterised networks leave them."""

    def __init__(self, width: int = 1024) -> None:
        super().__init__()
        self.left = nn.Linear(width, width, bias=False)
        self.right = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.left(x) + self.right(x))


@dataclass(frozen=True)
class Case:
    """One model of the demo."""

    title: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Mapping[str, torch.Tensor]]
    rewrites: tuple[type[regraft.Rewrite], ...] = ()


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=1000))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=12,
        num_key_value_heads=4,
        vocab_size=1000,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def _ids() -> Mapping[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, 1000, (1, 128))}


CASES = (
    Case("BERT-base, 128 tokens", _bert, _ids),
    Case("Llama-style decoder, 6 layers, 128 tokens", _llama, _ids),
    Case(
        "a module with a rewrite of your own (ParallelSum)",
        TwoBranches,
        lambda: {"x": torch.randn(128, 1024)},
        (ParallelSum,),
    ),
)


@dataclass(frozen=True)
class Shown:
    """What became of one case.

    Fields:
        title: the case's.
        report: of the compile.
        race: regraft against eager, and against itself for the noise.
        written: the ONNX file.
    """

    title: str
    report: Any
    race: Race
    written: Any

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "title": self.title,
            "report": self.report.to_dict(),
            "race": self.race.to_dict(),
            "file": self.written.to_dict(),
        }

    def __str__(self) -> str:
        times = {name: statistics.median(each) for name, each in self.race.times.items()}
        return (
            f"{self.report}\n"
            f"eager {times[EAGER]:.2f} ms, compiled {times[OURS]:.2f} ms: "
            f"{self.race.ratio(EAGER).median:.2f}x, {self.race.verdict(EAGER)} "
            f"({len(times)} entrants, {len(self.race.times[OURS])} interleaved rounds, medians)\n"
            f"wrote {self.written.path} ({self.written.bytes / 1e6:.1f} MB, opset {self.written.opset})"
        )


def demo_folder(folder: Path | None) -> Path:
    """The folder for the files of the demo, made if need be; a temporary one without ``folder``.

    Raises:
        OptionError: transformers is not installed, or the folder cannot be made.
    """
    try:
        import transformers
    except ImportError as error:
        raise OptionError("the demo needs transformers: pip install 'regraft[demo]'") from error
    transformers.logging.set_verbosity_error()
    try:
        target = folder or Path(tempfile.mkdtemp(prefix="regraft-demo-"))
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"cannot make the folder '{folder}': {error.strerror}") from error
    return target


def run_case(
    case: Case, path: Path, rounds: int = 20, progress: Callable[[Any], object] | None = None
) -> Shown:
    """Compile ``case``, compare it with eager, time both in turns and write the ONNX file ``path``."""
    torch.manual_seed(0)
    model = randomise(case.make().eval())
    inputs = case.inputs()
    compiled = regraft.compile(model, kwargs=inputs, rewrites=case.rewrites, verify=True, progress=progress)
    with torch.inference_mode():
        calls: dict[str, Callable[[], object]] = {
            OURS: lambda: compiled(**inputs),
            EAGER: lambda: model(**inputs),
        }
        times = race(calls, rounds=rounds, patience=10.0)
    written = regraft.export_onnx(model, (), path, kwargs=inputs, rewrites=case.rewrites)
    return Shown(case.title, compiled.report, times, written)
