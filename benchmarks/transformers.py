"""The spine: transformers that regraft compiles without being told anything, against each peer."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.models import race_model, save
from benchmarks.peers import PEERS
from tests.models import FAMILIES

MODELS = ("bert", "gpt2", "llama", "vit")


def run(models: Sequence[str] = MODELS, rounds: int = 30, patience: float = 120.0) -> None:
    """Race regraft against the peers on each model; writes ``spine_<model>.json``."""
    for name in models:
        family = FAMILIES[name]
        length = 2048 if name == "modernbert" else 128
        inputs = (family.inputs(1, length, seed=1), family.inputs(1, length, seed=2))
        model = family.make("full")
        save(
            f"spine_{name}",
            race_model("spine", family.workload, model, inputs, PEERS, rounds, patience),
        )
