"""Block-wise adaptive caching of a diffusion policy, and its schedule.

Ji et al., arXiv:2506.13456 (no code of the authors at the time of writing): the transformer of Diffusion
Policy (Chi et al., arXiv:2303.04137), of which each self-attention, cross-attention and FFN has update steps
of its own, chosen by how alike its outputs are from step to step; blocks whose changes are largest pass their
update steps on to the FFNs behind them ("bubbling union").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            layer(source).view(batch, source.shape[1], self.heads, -1).transpose(1, 2)
            for layer, source in ((self.q, x), (self.k, context), (self.v, context))
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class SelfAttention(CrossAttention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x)


class PolicyLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.sa, self.ca = SelfAttention(width, heads), CrossAttention(width, heads)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.sa(self.norm1(x))
        x = x + self.ca(self.norm2(x), context)
        return x + self.ffn(self.norm3(x))


class Policy(nn.Module):
    """Noise in a chunk of actions, from the actions, the time and tokens of what was observed."""

    def __init__(self, actions: int = 3, width: int = 16, heads: int = 2, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(actions, width)
        self.time = nn.Linear(1, width)
        self.layers = nn.ModuleList(PolicyLayer(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, actions)

    def forward(self, actions: Tensor, time: Tensor, observed: Tensor) -> Tensor:
        context = torch.cat([self.time(time[:, None, None]), observed], dim=1)
        x = self.embed(actions)
        for layer in self.layers:
            x = layer(x, context)
        return self.head(x)


def alike(outputs: Sequence[Tensor]) -> Tensor:
    """Cosine similarity of each two of a block's outputs, one a step."""
    flat = F.normalize(torch.stack([each.flatten() for each in outputs]), dim=1)
    return flat @ flat.T


def best_steps(similarity: Tensor, count: int) -> tuple[int, ...]:
    """The ``count`` update steps, 0 among them, at which reused outputs are most alike what they replace.

    By dynamic programming: an update at step i serves the steps up to the next one.
    """
    steps = len(similarity)
    served = [[float(similarity[i, i + 1 : j].sum()) for j in range(steps + 1)] for i in range(steps)]
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, 1): (0.0, (0,))}
    for m in range(2, count + 1):
        for j in range(m - 1, steps):
            best[j, m] = max(
                (best[i, m - 1][0] + served[i][j], (*best[i, m - 1][1], j))
                for i in range(m - 2, j)
                if (i, m - 1) in best
            )
    ends = [(best[j, count][0] + served[j][steps], best[j, count][1]) for j in range(count - 1, steps)]
    return max(ends)[1]


def bubbled(
    steps: Mapping[str, tuple[int, ...]], changes: Mapping[str, float], ffns: Sequence[str], count: int
) -> dict[str, tuple[int, ...]]:
    """``steps``; the ``count`` FFNs that change most add those of the FFNs behind them, deepest first."""
    found = dict(steps)
    most = sorted(ffns, key=lambda name: -changes[name])[:count]
    for name in sorted(most, key=ffns.index, reverse=True):
        downstream = ffns[ffns.index(name) + 1 :]
        found[name] = tuple(sorted(set(found[name]).union(*(found[each] for each in downstream))))
    return found
