"""Kangaroo: self-speculative decoding; shallow layers and an adapter draft, the deep layers verify.

Liu et al., arXiv:2404.18911; github.com/Equationliu/Kangaroo, ``evaluation/inference_kangaroo.py``
(``kangaroo_forward``), ``kangaroo/earlyexit.py`` and ``kangaroo/adapter.py``. Greedy, one prompt. As there:
tokens are written into a tensor of full length, caches are cut back to what was accepted, drafting stops
early when the adapter is not sure, after a draft that was accepted whole the adapter catches up on one token,
and names are read that only an earlier trip has set.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.dynamic.layers import Cache, CachedAttention, DecoderLayer
from tests.zoo.dynamic.record import Decisions, DynamicNetwork, Form, tokens

VOCABULARY, END = 16, 2


class Adapter(nn.Module):
    """One attention between two norms, without an FFN."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, eps=1e-6)
        self.attention = CachedAttention(width, heads)
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, x: Tensor, past: Cache | None) -> tuple[Tensor, Cache]:
        attended, cache = self.attention(self.input_layernorm(x), past)
        return self.norm(x + attended), cache


def _run(layers: nn.ModuleList, x: Tensor, caches: list[Cache | None]) -> tuple[Tensor, list[Cache]]:
    new_caches = []
    for layer, cache in zip(layers, caches, strict=True):
        x, cache = layer(x, cache)
        new_caches.append(cache)
    return x, new_caches


class Kangaroo(nn.Module):
    """``exit_layer`` shallow layers of ``layers``. Returns the tokens and how many each round accepted."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        layers: int,
        exit_layer: int,
        new_tokens: int,
        draft_steps: int,
        threshold: float,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.shallow = nn.ModuleList(DecoderLayer(width, heads, hidden) for _ in range(exit_layer))
        self.deep = nn.ModuleList(DecoderLayer(width, heads, hidden) for _ in range(layers - exit_layer))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.adapter = Adapter(width, heads)
        self.new_tokens, self.draft_steps, self.threshold = new_tokens, draft_steps, threshold

    def prefill(self, context: Tensor) -> tuple[Tensor, list[Cache], list[Cache], Cache]:
        early, shallow_caches = _run(self.shallow, self.embed(context), [None] * len(self.shallow))
        late, deep_caches = _run(self.deep, early, [None] * len(self.deep))
        _, adapter_cache = self.adapter(early, None)
        first = self.head(self.norm(late[:, -1])).argmax(dim=-1)
        return first, shallow_caches, deep_caches, adapter_cache

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        start_index = context.size(1)
        limit = start_index + self.new_tokens
        global_tokens = torch.full((1, limit + self.draft_steps + 2), END)
        global_tokens[:, :start_index] = context
        accept_length_list = []

        first, shallow_caches, deep_caches, adapter_cache = self.prefill(context)
        global_tokens[:, start_index] = first.item()
        stop = False
        while start_index < limit:
            start_index_copy = start_index
            end_index = start_index + 1
            for step in range(1 + self.draft_steps):
                in_tokens_small = global_tokens[:, end_index - 1 : end_index]
                if adapter_cache[0].shape[2] < end_index - 1:
                    early_last = exited_hidden_states[:, -1:, :]  # noqa: F821
                else:
                    early_last = None
                early, shallow_caches = _run(self.shallow, self.embed(in_tokens_small), shallow_caches)
                if step == 0:
                    exited_hidden_states = None
                exited_hidden_states = (
                    early if exited_hidden_states is None else torch.cat([exited_hidden_states, early], dim=1)
                )
                if early_last is not None:
                    early = torch.cat([early_last, early], dim=1)
                if step == self.draft_steps or (step > 0 and predict_score < self.threshold):  # noqa: F821
                    break
                adapted, adapter_cache = self.adapter(early, adapter_cache)
                predict_logits = self.head(adapted[:, -1:, :])
                global_tokens[:, end_index] = torch.argmax(predict_logits[:, -1, :], dim=-1)
                end_index += 1
                predict_score = predict_logits.softmax(dim=-1).max().item()  # noqa: F841

            late, deep_caches = _run(self.deep, exited_hidden_states, deep_caches)
            output_tokens = torch.argmax(self.head(self.norm(late)), dim=-1)
            output_length = end_index - start_index
            for i in range(output_length):
                if (
                    i == output_length - 1
                    or output_tokens[0, i] == END
                    or output_tokens[0, i] != global_tokens[0, start_index + 1 + i]
                ):
                    global_tokens[0, start_index + 1 + i] = output_tokens[0, i]
                    start_index = start_index + 1 + i
                    if output_tokens[0, i] == END:
                        stop = True
                    break
            accept_length_list.append(start_index - start_index_copy)
            shallow_caches = [(k[:, :, :start_index], v[:, :, :start_index]) for k, v in shallow_caches]
            deep_caches = [(k[:, :, :start_index], v[:, :, :start_index]) for k, v in deep_caches]
            if adapter_cache[0].shape[2] > start_index:
                k, v = adapter_cache
                adapter_cache = (k[:, :, :start_index], v[:, :, :start_index])
            if stop:
                break

        return global_tokens[:, : start_index + 1], torch.tensor(accept_length_list)


def _accepted(result: tuple[Tensor, Tensor]) -> Decisions:
    return tuple(result[1].tolist())


NETWORKS = (
    DynamicNetwork(
        "kangaroo",
        "Kangaroo, 2 of 8 layers of 256 draft up to 6 tokens, 32 tokens after a prompt [1, 32]",
        Form(
            lambda: Kangaroo(16, 2, 32, 3, 1, 5, 3, 0.2),
            tokens(VOCABULARY, 1, 4),
            {(4, 4): 52, (2, 1, 1, 1): 55, (1, 1, 1, 4): 99, (1, 1, 2): 56, (1,): 485},
        ),
        Form(
            lambda: Kangaroo(256, 4, 1024, 8, 2, 32, 6, 0.3),
            tokens(VOCABULARY, 1, 32),
            {(1, 1): 5, (1,): 11, (1, 1, 1, 1, 1, 1, 1): 9},
        ),
        _accepted,
    ),
)
