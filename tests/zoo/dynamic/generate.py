"""Decoding with a small language model: greedy, beam search of fixed width, and beams that leave when done.

Greedy with caches as in ``generate`` of transformers (``GenerationMixin._sample`` without sampling). Beam
search: Sutskever et al., arXiv:1409.3215, section 3.2, kept at full width by letting finished beams go on
with the end token alone. ``ShrinkingBeams`` is the loop of ``caption_image_beam_search`` in ``caption.py`` of
github.com/sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning: finished sequences move to Python lists and the
width shrinks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.dynamic.layers import Cache, DecoderLayer
from tests.zoo.dynamic.record import Decisions, DynamicNetwork, Form, tokens

VOCABULARY, END = 16, 2


class LanguageModel(nn.Module):
    """Decoder layers with caches, and rotary-free learned positions."""

    def __init__(
        self, width: int, heads: int, hidden: int, layers: int, vocabulary: int, longest: int
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(longest, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor, caches: list[Cache | None]) -> tuple[Tensor, list[Cache]]:
        """Logits of the last position [batch, vocabulary], and the caches with ``tokens`` in them."""
        seen = 0 if caches[0] is None else caches[0][0].size(2)
        x = self.embed(tokens) + self.positions(torch.arange(seen, seen + tokens.size(1)))
        new_caches = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, cache = layer(x, cache)
            new_caches.append(cache)
        return self.head(self.norm(x[:, -1])), new_caches


class Greedy(nn.Module):
    """Returns the prompts and what follows, until all sequences of the batch have ended; 0 pads."""

    def __init__(self, model: LanguageModel, new_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.new_tokens = new_tokens

    def forward(self, input_ids: Tensor) -> Tensor:
        caches = [None] * len(self.model.layers)
        unfinished_sequences = torch.ones(input_ids.shape[0], dtype=torch.long)
        longest = input_ids.shape[1] + self.new_tokens
        model_input = input_ids
        this_peer_finished = False
        while not this_peer_finished:
            logits, caches = self.model(model_input, caches)
            next_tokens = torch.argmax(logits, dim=-1)
            next_tokens = next_tokens * unfinished_sequences + 0 * (1 - unfinished_sequences)
            input_ids = torch.cat([input_ids, next_tokens[:, None]], dim=-1)
            model_input = next_tokens[:, None]
            unfinished_sequences = unfinished_sequences & (next_tokens != END).long()
            this_peer_finished = unfinished_sequences.max() == 0 or input_ids.shape[1] >= longest
        return input_ids


class BeamSearch(nn.Module):
    """For one prompt. Returns the best sequence and its score, a sum of log-probabilities."""

    def __init__(self, model: LanguageModel, beams: int, new_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.beams, self.new_tokens = beams, new_tokens

    def forward(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        vocabulary = self.model.head.out_features
        logits, caches = self.model(prompt, [None] * len(self.model.layers))
        scores, words = F.log_softmax(logits, dim=-1)[0].topk(self.beams)
        sequences = torch.cat([prompt.expand(self.beams, -1), words[:, None]], dim=1)
        caches = [(k.expand(self.beams, -1, -1, -1), v.expand(self.beams, -1, -1, -1)) for k, v in caches]
        finished = words == END
        steps = 1
        while steps < self.new_tokens and not finished.all():
            logits, caches = self.model(sequences[:, -1:], caches)
            log_probabilities = F.log_softmax(logits, dim=-1)
            only_end = torch.full_like(log_probabilities[0], -torch.inf)
            only_end[END] = 0.0
            log_probabilities = torch.where(finished[:, None], only_end, log_probabilities)
            totals = (scores[:, None] + log_probabilities).view(-1)
            scores, choices = totals.topk(self.beams)
            origins, words = choices // vocabulary, choices % vocabulary
            sequences = torch.cat([sequences[origins], words[:, None]], dim=1)
            caches = [(k[origins], v[origins]) for k, v in caches]
            finished = finished[origins] | (words == END)
            steps += 1
        return sequences[0], scores[0]


class ShrinkingBeams(nn.Module):
    """For one prompt. Returns the best of the sequences that ended, or of all if none did, and its score."""

    def __init__(self, model: LanguageModel, beams: int, new_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.beams, self.new_tokens = beams, new_tokens

    def forward(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        k = self.beams
        vocabulary = self.model.head.out_features
        seqs = prompt.expand(k, -1)
        top_k_scores = torch.zeros(k, 1)
        complete_seqs = []
        complete_seqs_scores = []
        step = 1
        while True:
            logits, _ = self.model(seqs, [None] * len(self.model.layers))
            scores = F.log_softmax(logits, dim=1)
            scores = top_k_scores.expand_as(scores) + scores
            if step == 1:
                top_k_scores, top_k_words = scores[0].topk(k, 0, True, True)
            else:
                top_k_scores, top_k_words = scores.view(-1).topk(k, 0, True, True)
            prev_word_inds = top_k_words // vocabulary
            next_word_inds = top_k_words % vocabulary
            seqs = torch.cat([seqs[prev_word_inds], next_word_inds.unsqueeze(1)], dim=1)
            incomplete_inds = [ind for ind, next_word in enumerate(next_word_inds) if next_word != END]
            complete_inds = list(set(range(len(next_word_inds))) - set(incomplete_inds))
            if len(complete_inds) > 0:
                complete_seqs.extend(seqs[complete_inds].tolist())
                complete_seqs_scores.extend(top_k_scores[complete_inds])
            k -= len(complete_inds)
            if k == 0:
                break
            seqs = seqs[incomplete_inds]
            top_k_scores = top_k_scores[incomplete_inds].unsqueeze(1)
            if step >= self.new_tokens:
                break
            step += 1
        if not complete_seqs:
            return seqs[0], top_k_scores[0, 0]
        i = complete_seqs_scores.index(max(complete_seqs_scores))
        return torch.tensor(complete_seqs[i]), complete_seqs_scores[i]


def _small() -> LanguageModel:
    return LanguageModel(16, 2, 32, 1, VOCABULARY, 24)


def _full() -> LanguageModel:
    return LanguageModel(256, 4, 1024, 4, 1000, 128)


def _length(result: Tensor) -> Decisions:
    """The length, and that of each sequence."""
    return (result.size(1), *((result != 0).sum(1).tolist()))


def _best(result: tuple[Tensor, Tensor]) -> Decisions:
    return tuple(result[0].tolist())


def _ends_more_often(by: float, vocabulary: int) -> dict[str, float | Sequence[float]]:
    return {"model.head.bias": [by if word == END else 0.0 for word in range(vocabulary)]}


_PROMPT_0 = (731, 969, 807, 775, 880, 190, 321, 110, 674, 418, 427, 491, 990, 640, 861, 318)

NETWORKS = (
    DynamicNetwork(
        "greedy_decode",
        "greedy decoding, 4 layers of 256, at most 32 tokens after prompts [2, 16]",
        Form(
            lambda: Greedy(_small(), 6),
            tokens(VOCABULARY, 2, 4),
            {(6, 6, 6): 33, (6, 5, 6): 45, (6, 6, 5): 69},
        ),
        Form(
            lambda: Greedy(_full(), 32),
            tokens(1000, 2, 16),
            {(36, 23, 36): 9, (48, 23, 48): 0, (48, 48, 48): 6},
            {"model.head.weight": 4.0},
            _ends_more_often(2.0, 1000),
        ),
        _length,
        one_way=("while not this_peer_finished:",),  # a number of the host ends it, or a tensor that is true
    ),
    DynamicNetwork(
        "beam_search",
        "beam search of width 4, 4 layers of 256, at most 8 tokens after a prompt [1, 16]",
        Form(
            lambda: BeamSearch(_small(), 3, 5),
            tokens(VOCABULARY, 1, 3),
            {(9, 6, 11, 5, 4, 2): 56, (11, 14, 15, 5, 4, 2): 37, (10, 4, 10, 5, 4, 2): 84},
        ),
        Form(
            lambda: BeamSearch(_full(), 4, 8),
            tokens(1000, 1, 16),
            {(*_PROMPT_0, 754, 398, 546, 901, 783, 898, 2): 0},
            {"model.head.weight": 10.0},
            _ends_more_often(12.0, 1000),
        ),
        _best,
    ),
    DynamicNetwork(
        "shrinking_beams",
        "beam search whose finished beams leave, 4 layers of 256, at most 8 tokens after a prompt [1, 16]",
        Form(
            lambda: ShrinkingBeams(_small(), 2, 4),
            tokens(VOCABULARY, 1, 3),
            {
                (5, 4, 11, 12, 6, 2): 9,
                (4, 13, 12, 12, 6, 13, 12): 66,
                (6, 8, 13, 13, 4, 2): 106,
                (12, 7, 4, 2): 148,
            },
            shifts=_ends_more_often(-0.5, VOCABULARY),
        ),
        Form(
            lambda: ShrinkingBeams(_full(), 4, 8),
            tokens(1000, 1, 16),
            {(*_PROMPT_0, 754, 398, 546, 901, 783, 898, 2): 0},
            {"model.head.weight": 10.0},
            _ends_more_often(12.0, 1000),
        ),
        _best,
        one_way=("i = complete_seqs_scores.index(max(complete_seqs_scores))",),  # the first is the best here
    ),
)
