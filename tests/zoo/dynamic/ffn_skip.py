"""FFN-SkipLLM: decoding that stops running FFNs once they no longer change a token.

Jaiswal et al., arXiv:2404.03865, algorithm 1: the first tokens run all FFNs; after that, outside the first
and last layers, once the cosine of an FFN's input and output passes a threshold the next ones are skipped for
this token. Attention always runs, so the caches stay whole.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.dynamic.layers import DecoderLayer
from tests.zoo.dynamic.record import Decisions, DynamicNetwork, Form, tokens

VOCABULARY = 40


class FFNSkipping(nn.Module):
    """Greedy decoding of ``new_tokens`` tokens. Returns them and how many FFNs were skipped."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        layers: int,
        cold: tuple[int, int],
        warm_up: int,
        new_tokens: int,
        threshold: float,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.first, self.last = cold[0], layers - cold[1]
        self.warm_up, self.new_tokens = warm_up, new_tokens
        self.threshold = threshold

    def forward(self, prompt: Tensor) -> tuple[Tensor, int]:
        caches = [None] * len(self.layers)
        token = prompt
        generated = []
        skipped = 0
        for step in range(self.new_tokens):
            x = self.embed(token)
            skip = False
            for index, layer in enumerate(self.layers):
                attended, caches[index] = layer.attention(layer.attention_norm(x), caches[index])
                x = x + attended
                if step < self.warm_up or index < self.first or index >= self.last:
                    x = x + layer.ffn(layer.ffn_norm(x))
                elif skip:
                    skipped += 1
                else:
                    after = x + layer.ffn(layer.ffn_norm(x))
                    similarity = F.cosine_similarity(x, after, dim=-1).mean()
                    if similarity >= self.threshold:
                        skip = True
                    x = after
            token = self.head(self.norm(x[:, -1:])).argmax(dim=-1)
            generated.append(token)
        return torch.cat(generated, dim=1), skipped


def _skipped(result: tuple[Tensor, int]) -> Decisions:
    return (int(result[1]),)


NETWORKS = (
    DynamicNetwork(
        "ffn_skip_llm",
        "FFN-SkipLLM, 12 layers of 256, 2 cold at each end, 16 tokens after a prompt of [1, 32]",
        Form(
            lambda: FFNSkipping(16, 2, 32, 5, (1, 1), 1, 3, 0.9),
            tokens(VOCABULARY, 1, 4),
            {(2,): 52, (3,): 82, (4,): 36},
        ),
        Form(
            lambda: FFNSkipping(256, 4, 1024, 12, (2, 2), 4, 16, 0.97),
            tokens(VOCABULARY, 1, 32),
            {(36,): 0, (12,): 2},
        ),
        _skipped,
    ),
)
