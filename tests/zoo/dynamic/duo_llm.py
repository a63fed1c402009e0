"""Duo-LLM: each token takes a large FFN, a small one or none, in each layer.

Alizadeh et al., arXiv:2410.10846, section 3: routers over the modules {skip, small, big} of a layer, trained
with an oracle; no code is published. ``OneToken`` decides for one token by its router's choice, as a decoding
step does; ``ManyTokens`` dispatches each token of a prompt to its module, as mixtures of experts are written.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.dynamic.layers import CachedAttention, GatedFFN
from tests.zoo.dynamic.record import Decisions, DynamicNetwork, Form, normal

Result = tuple[Tensor, Tensor]


class DuoLayer(nn.Module):
    def __init__(self, width: int, heads: int, big: int, small: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = CachedAttention(width, heads)
        self.ffn_norm = nn.RMSNorm(width, eps=1e-6)
        self.big, self.small = GatedFFN(width, big), GatedFFN(width, small)
        self.router = nn.Linear(width, 3)


class Duo(nn.Module):
    """``sizes`` are the width, heads, and hidden widths of the large and the small FFN."""

    def __init__(self, sizes: tuple[int, int, int, int], layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DuoLayer(*sizes) for _ in range(layers))


class OneToken(Duo):
    """Returns the token's state and the routes, for x [1, 1, width]."""

    def forward(self, x: Tensor) -> Result:
        routes = []
        for layer in self.layers:
            attended, _ = layer.attention(layer.attention_norm(x), None)
            x = x + attended
            normed = layer.ffn_norm(x)
            route = layer.router(normed).argmax(dim=-1)
            if route == 2:
                x = x + layer.big(normed)
            elif route == 1:
                x = x + layer.small(normed)
            routes.append(route)
        return x, torch.cat(routes, dim=1)


class ManyTokens(Duo):
    """Returns the tokens' states and the routes, for x [1, n, width]."""

    def forward(self, x: Tensor) -> Result:
        routes = []
        for layer in self.layers:
            attended, _ = layer.attention(layer.attention_norm(x), None)
            x = x + attended
            flat = layer.ffn_norm(x).flatten(0, 1)
            route = layer.router(flat).argmax(dim=-1)
            update = torch.zeros_like(flat)
            for choice, ffn in ((1, layer.small), (2, layer.big)):
                index = torch.nonzero(route == choice).squeeze(1)
                if index.numel() == 0:
                    continue
                update[index] = ffn(flat[index])
            x = x + update.view_as(x)
            routes.append(route)
        return x, torch.stack(routes)


def _routes(result: Result) -> Decisions:
    return tuple(result[1].flatten().tolist())


def _counts(result: Result) -> Decisions:
    """How many tokens take each module, layer by layer."""
    return tuple(int((layer == choice).sum()) for layer in result[1] for choice in range(3))


NETWORKS = (
    DynamicNetwork(
        "duo_llm_token",
        "Duo-LLM, 8 layers of 512, FFNs of 2048 and 256, x [1, 1, 512]",
        Form(
            lambda: OneToken((16, 2, 32, 8), 3),
            normal(1, 1, 16),
            {(1, 0, 2): 73, (2, 0, 2): 83, (1, 1, 1): 50},
        ),
        Form(
            lambda: OneToken((512, 8, 2048, 256), 8),
            normal(1, 1, 512),
            {(0, 2, 1, 2, 0, 2, 0, 2): 31, (2, 2, 0, 1, 1, 1, 1, 2): 43, (1, 0, 2, 1, 2, 2, 2, 1): 0},
        ),
        _routes,
    ),
    DynamicNetwork(
        "duo_llm_tokens",
        "Duo-LLM, 8 layers of 512, FFNs of 2048 and 256, x [1, 32, 512]",
        Form(
            lambda: ManyTokens((16, 2, 32, 8), 2),
            normal(1, 4, 16),
            {(1, 3, 0, 0, 2, 2): 103, (0, 0, 4, 0, 4, 0): 112, (1, 2, 1, 1, 2, 1): 19},
        ),
        Form(
            lambda: ManyTokens((512, 8, 2048, 256), 8),
            normal(1, 32, 512),
            {
                (
                    *(11, 10, 11, 14, 8, 10, 2, 11, 19, 10, 13, 9),
                    *(12, 7, 13, 8, 23, 1, 2, 19, 11, 8, 3, 21),
                ): 6,
                (
                    *(16, 10, 6, 1, 31, 0, 2, 0, 30, 3, 15, 14),
                    *(13, 0, 19, 14, 1, 17, 23, 0, 9, 14, 12, 6),
                ): 3,
            },
        ),
        _counts,
    ),
)
