"""The early-exit encoder and the FFN-skipping decoder of docs/workloads.md.

Exits after each layer: BranchyNet (Teerapittayanon et al., arXiv:1709.01686) on a transformer encoder, with a
threshold for each exit as MSDNet has them (Huang et al., arXiv:1703.09844). Skipped FFNs: SkipNet's gates
(Wang et al., arXiv:1711.09485) on the mean token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tests.zoo.dynamic.layers import GatedFFN
from tests.zoo.dynamic.record import Decisions, Draw, DynamicNetwork, Form, Paths, normal


class EarlyExitEncoder(nn.Module):
    """A classifier on the first token after each layer. Returns the logits and the index of the exit."""

    def __init__(
        self, width: int, heads: int, hidden: int, classes: int, thresholds: Sequence[float]
    ) -> None:
        super().__init__()
        self.thresholds = list(thresholds)
        self.layers, self.heads = nn.ModuleList(), nn.ModuleList()
        for _ in range(len(thresholds) + 1):
            self.layers.append(
                nn.TransformerEncoderLayer(
                    width, heads, hidden, activation="gelu", norm_first=True, batch_first=True
                )
            )
            self.heads.append(nn.Linear(width, classes))

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        for i, (layer, head) in enumerate(zip(self.layers, self.heads, strict=True)):
            x = layer(x)
            logits = head(x[:, 0])
            if i < len(self.thresholds) and logits.softmax(-1).max() > self.thresholds[i]:
                return logits, i
        return logits, len(self.thresholds)


class SkippingDecoder(nn.Module):
    """FFNs that run where their gate is positive. Returns the tokens and the gates."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(width, 1) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.ffns = nn.ModuleList(GatedFFN(width, hidden) for _ in range(layers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates = []
        for gate, norm, ffn in zip(self.gates, self.norms, self.ffns, strict=True):
            decision = gate(x.mean(dim=1))
            gates.append(decision)
            if decision <= 0:
                continue
            x = x + ffn(norm(x))
        return x, torch.cat(gates, dim=1)


def _exit(result: tuple[Tensor, int]) -> Decisions:
    return (int(result[1]),)


def _ran(result: tuple[Tensor, Tensor]) -> Decisions:
    return tuple(int(gate > 0) for gate in result[1].flatten())


_SMALL_EXITS = (0.7788, 0.6909, 0.6057)
_EXITS = (0.9359, 0.9433, 0.9049, 0.9453, 0.9514, 0.9273, 0.9278, 0.9368, 0.964, 0.8277, 0.8164)
_SMALL_GATES = (-0.563, -0.167, -0.396, -0.172)
_GATES = (-0.75, -0.448, -0.973, -1.0, -0.729, -0.445, -0.726, -0.477)


def _skipping(make: Callable[[], nn.Module], draw: Draw, paths: Paths, gates: Sequence[float]) -> Form:
    """Five of eight FFNs run, in the mean; ``gates`` are added to the logits."""
    gains = {f"gates.{index}.weight": 2.0 for index in range(len(gates))}
    shifts = {f"gates.{index}.bias": gate for index, gate in enumerate(gates)}
    return Form(make, draw, paths, gains, shifts)


NETWORKS = (
    DynamicNetwork(
        "early_exit_encoder",
        "12-block encoder, 256 wide, an exit after each block, x [1, 64, 256]",
        Form(
            lambda: EarlyExitEncoder(32, 2, 64, 4, _SMALL_EXITS),
            normal(1, 10, 32),
            {(0,): 44, (1,): 30, (2,): 84, (3,): 182},
        ),
        Form(
            lambda: EarlyExitEncoder(256, 4, 1024, 4, _EXITS),
            normal(1, 64, 256),
            {
                (0,): 107,
                (1,): 37,
                (2,): 81,
                (3,): 138,
                (4,): 26,
                (5,): 56,
                (6,): 143,
                (7,): 80,
                (8,): 190,
                (9,): 60,
                (10,): 113,
                (11,): 64,
            },
        ),
        _exit,
    ),
    DynamicNetwork(
        "skipping_decoder",
        "8-layer decoder of gated FFNs, 512 wide, FFNs skipped by gates, x [1, 32, 512]",
        _skipping(
            lambda: SkippingDecoder(32, 64, 4),
            normal(1, 6, 32),
            {(1, 1, 0, 1): 155, (0, 0, 1, 0): 117},
            _SMALL_GATES,
        ),
        _skipping(
            lambda: SkippingDecoder(512, 2048, 8),
            normal(1, 32, 512),
            {
                (0, 0, 1, 0, 1, 1, 1, 0): 152,
                (1, 1, 0, 1, 1, 0, 0, 1): 130,
                (1, 1, 0, 1, 0, 1, 1, 1): 190,
            },
            _GATES,
        ),
        _ran,
    ),
)
