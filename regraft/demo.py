"""``regraft demo``: two transformers and a module with a rewrite of one's own, compiled and checked."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import regraft
from regraft.errors import OptionError
from regraft.ir import Builder, Declined, DType, Example, Match, TensorType, Value
from regraft.testing import randomise

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


def run_demo(console: Console, folder: Path | None = None, pairs: int = 10) -> None:
    """Compile each case, compare it with eager, time both and write the ONNX file into ``folder``.

    Raises:
        OptionError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise OptionError("the demo needs transformers: pip install 'regraft[demo]'") from error
    transformers.logging.set_verbosity_error()
    target = folder or Path(tempfile.mkdtemp(prefix="regraft-demo-"))
    target.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(CASES, start=1):
        console.rule(f"[bold]{number}. {case.title}", align="left")
        _show(console, case, target / f"demo_{number}.onnx", pairs)


def _show(console: Console, case: Case, path: Path, pairs: int) -> None:
    torch.manual_seed(0)
    model = randomise(case.make().eval())
    inputs = case.inputs()
    compiled = regraft.compile(model, kwargs=inputs, rewrites=case.rewrites, verify=True)
    console.print(compiled.report)
    eager_ms, compiled_ms = _time(model, compiled, inputs, pairs)
    console.print(
        f"eager {eager_ms:.2f} ms, compiled {compiled_ms:.2f} ms: "
        f"[bold]{eager_ms / compiled_ms:.2f}x[/bold] (medians of {pairs} interleaved calls)"
    )
    path.unlink(missing_ok=True)
    written = regraft.export_onnx(model, (), path, kwargs=inputs, rewrites=case.rewrites)
    console.print(
        f"wrote {written.path} ({written.bytes / 1e6:.1f} MB, opset {written.opset})\n", highlight=False
    )


def _time(
    model: nn.Module, compiled: Callable[..., Any], inputs: Mapping[str, torch.Tensor], pairs: int
) -> tuple[float, float]:
    """Median milliseconds of eager and compiled calls, taken in turns."""
    samples: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for round_ in range(pairs + 2):
            for call, kept in zip((model, compiled), samples, strict=True):
                start = time.perf_counter()
                call(**inputs)
                if round_ >= 2:  # the first calls warm caches and threads up
                    kept.append(1e3 * (time.perf_counter() - start))
    return statistics.median(samples[0]), statistics.median(samples[1])
