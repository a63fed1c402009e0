"""Encoders of language models that stop when their answer is settled: PABEE and PALBERT.

PABEE: Zhou et al., "BERT Loses Patience" (NeurIPS 2020); github.com/JetRunner/PABEE,
``pabee/modeling_albert.py``, ``AlbertModel.forward``: stop once the answer stayed the same ``patience``
times, for all samples of the batch; for regression, once it moved by less than a threshold.
PALBERT: Balagansky and Gavrilov (NeurIPS 2022); github.com/tinkoff-ai/palbert,
``src/modeling/palbert_fast.py``, ``forward`` with ``exit_criteria="threshold"`` (Q-exit), for one sample.
The ALBERT layer is shared by all steps. The repositories count layers in attributes; here they are returned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.zoo.dynamic.layers import EncoderLayer
from tests.zoo.dynamic.record import Decisions, DynamicNetwork, Form, tokens

VOCABULARY = 50


class Albert(nn.Module):
    """Embeddings, one encoder layer for all steps, and the pooled first token."""

    def __init__(self, width: int, heads: int, hidden: int, embedding: int, longest: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, embedding, padding_idx=0)
        self.position_embeddings = nn.Embedding(longest, embedding)
        self.embedding_norm = nn.LayerNorm(embedding, eps=1e-12)
        self.embedding_hidden_mapping_in = nn.Linear(embedding, width)
        self.layer = EncoderLayer(width, heads, hidden)
        self.pooler = nn.Linear(width, width)
        self.pooler_activation = nn.Tanh()

    def embed(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.size(1), device=input_ids.device).unsqueeze(0)
        embedded = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        return self.embedding_norm(embedded)

    def mask(self, input_ids: Tensor) -> Tensor:
        attention_mask = torch.ones(input_ids.size(), device=input_ids.device)
        extended = attention_mask.unsqueeze(1).unsqueeze(2).to(dtype=next(self.parameters()).dtype)
        return (1.0 - extended) * -10000.0

    def adaptive_forward(self, hidden_states: Tensor, current_layer: int, mask: Tensor) -> Tensor:
        if current_layer == 0:
            hidden_states = self.embedding_hidden_mapping_in(hidden_states)
        return self.layer(hidden_states, mask)

    def pool(self, hidden_states: Tensor) -> Tensor:
        return self.pooler_activation(self.pooler(hidden_states[:, 0]))


class Pabee(nn.Module):
    """``labels`` of 1 is regression. Returns the logits and the number of layers that ran."""

    def __init__(
        self, albert: Albert, width: int, layers: int, labels: int, patience: int, threshold: float
    ) -> None:
        super().__init__()
        self.albert = albert
        self.num_hidden_layers = layers
        self.classifiers = nn.ModuleList(nn.Linear(width, labels) for _ in range(layers))
        self.regression = labels == 1
        self.patience = patience
        self.regression_threshold = threshold

    def forward(self, input_ids: Tensor) -> tuple[Tensor, int]:
        mask = self.albert.mask(input_ids)
        encoder_outputs = self.albert.embed(input_ids)
        patient_counter = 0
        patient_result = None
        calculated_layer_num = 0
        for i in range(self.num_hidden_layers):
            calculated_layer_num += 1
            encoder_outputs = self.albert.adaptive_forward(encoder_outputs, current_layer=i, mask=mask)
            pooled_output = self.albert.pool(encoder_outputs)
            logits = self.classifiers[i](pooled_output)
            if self.regression:
                labels = logits.detach()
                if (patient_result is not None) and torch.abs(
                    patient_result - labels
                ) < self.regression_threshold:
                    patient_counter += 1
                else:
                    patient_counter = 0
            else:
                labels = logits.detach().argmax(dim=1)
                if patient_result is not None:
                    patient_labels = patient_result.detach().argmax(dim=1)
                if (patient_result is not None) and torch.all(labels.eq(patient_labels)):
                    patient_counter += 1
                else:
                    patient_counter = 0

            patient_result = logits
            if patient_counter == self.patience:
                break
        return patient_result, calculated_layer_num


class Palbert(nn.Module):
    """Stops once the probability of having stopped passes ``threshold``.

    The exit head sees the pooled state, with an embedding of the layer's index, beside the previous one.
    Returns the logits and the number of layers that ran.
    """

    def __init__(self, albert: Albert, width: int, layers: int, labels: int, threshold: float) -> None:
        super().__init__()
        self.albert = albert
        self.num_hidden_layers = layers
        self.layer_positional_embeddings = nn.Embedding(layers, width)
        self.cls_head = nn.Linear(width, labels)
        self.exit_head = nn.Sequential(
            nn.Sequential(nn.Linear(2 * width, 2 * width), nn.Tanh()),
            nn.Sequential(nn.Linear(2 * width, 2 * width), nn.Tanh()),
            nn.Linear(2 * width, 1),
        )
        self.threshold = threshold

    def forward(self, input_ids: Tensor) -> tuple[Tensor, int]:
        mask = self.albert.mask(input_ids)
        encoder_outputs = self.albert.embed(input_ids)
        prev_state = None
        current_cdf = 0
        conditioned_prob = 1
        calculated_layer_num = 0
        for current_layer_idx in range(self.num_hidden_layers):
            calculated_layer_num += 1
            encoder_outputs = self.albert.adaptive_forward(encoder_outputs, current_layer_idx, mask)
            pooled_output = self.albert.pool(encoder_outputs)
            index = torch.tensor(current_layer_idx, device=pooled_output.device, dtype=torch.long)
            encoding = self.layer_positional_embeddings(index.unsqueeze(0))
            pos_pooled_output = pooled_output + encoding.expand_as(pooled_output)
            if prev_state is None:
                prev_state = torch.zeros_like(pos_pooled_output)
            _prev_state = pos_pooled_output
            pos_pooled_output = torch.cat((pos_pooled_output, prev_state), dim=1)
            prev_state = _prev_state

            lambdas = torch.sigmoid(self.exit_head(pos_pooled_output))
            current_pdf = lambdas.item() * conditioned_prob
            conditioned_prob *= 1 - lambdas.item()
            current_cdf += current_pdf
            if current_cdf > self.threshold:
                logits = self.cls_head(pooled_output)
                break
            if current_layer_idx + 1 == self.num_hidden_layers:
                logits = self.cls_head(pooled_output)
        return logits, calculated_layer_num


def _layers(result: tuple[Tensor, int]) -> Decisions:
    return (int(result[1]),)


Sizes = tuple[int, int, int, int]
"""Width, heads, hidden width and width of the embeddings."""


def _pabee(layers: int, sizes: Sizes, labels: int, patience: int, threshold: float) -> Pabee:
    return Pabee(Albert(*sizes, longest=64), sizes[0], layers, labels, patience, threshold)


def _palbert(layers: int, sizes: Sizes, threshold: float) -> Palbert:
    return Palbert(Albert(*sizes, longest=64), sizes[0], layers, 3, threshold)


_SMALL, _BASE = (32, 2, 64, 16), (768, 12, 3072, 128)
_LESS_POSITION = {"albert.position_embeddings.weight": 0.1}
_STOPPING = {"exit_head.2.weight": 3.0, "layer_positional_embeddings.weight": 0.3}


def _centred(terms: Sequence[float], labels: int) -> dict[str, float | Sequence[float]]:
    """``terms`` are added to what each classifier gives, so that its median is 0."""
    return {
        f"classifiers.{index}.bias": term if labels == 1 else (0.0, term) for index, term in enumerate(terms)
    }


NETWORKS = (
    DynamicNetwork(
        "pabee",
        "PABEE on ALBERT-base, 12 layers, patience 3, tokens [1, 64]",
        Form(
            lambda: _pabee(6, _SMALL, 2, 2, 0.0),
            tokens(VOCABULARY, 2, 9),
            {(3,): 29, (4,): 145, (5,): 75, (6,): 69},
            {**_LESS_POSITION, "classifiers.3.weight": -1.0},
            _centred((0.65, 0.11, -0.81, -0.63, -0.24, -0.34), 2),
        ),
        Form(
            lambda: _pabee(12, _BASE, 2, 3, 0.0),
            tokens(VOCABULARY, 1, 64),
            {(4,): 95, (5,): 66, (6,): 96, (7,): 5, (8,): 120, (9,): 62, (10,): 99, (11,): 23, (12,): 113},
            {**_LESS_POSITION, **{f"classifiers.{index}.weight": -1.0 for index in (1, 2, 5, 6, 7, 8)}},
            _centred((-0.36, 0.28, 0.14, 0.21, -0.71, -0.18, -0.21, -0.05, -0.71, -0.14, 0.61, 1.89), 2),
        ),
        _layers,
    ),
    DynamicNetwork(
        "pabee_regression",
        "PABEE on ALBERT-base for regression, 12 layers, patience 3, tokens [1, 64]",
        Form(
            lambda: _pabee(6, _SMALL, 1, 2, 0.4),
            tokens(VOCABULARY, 1, 9),
            {(3,): 45, (4,): 297, (5,): 194, (6,): 137},
            _LESS_POSITION,
            _centred((-0.94, -1.5, -0.42, -2.89, -0.27, -1.43), 1),
        ),
        Form(
            lambda: _pabee(12, _BASE, 1, 3, 0.4),
            tokens(VOCABULARY, 1, 64),
            {(4,): 98, (5,): 107, (6,): 75, (7,): 83, (8,): 74, (9,): 44, (10,): 10, (11,): 50, (12,): 56},
            _LESS_POSITION,
            _centred((-0.56, -1.37, -1.47, -1.33, 0.08, -0.93, -1.84, -1.08, -0.88, -1.46, -1.4, -1.9), 1),
        ),
        _layers,
    ),
    DynamicNetwork(
        "palbert",
        "PALBERT on ALBERT-base, 12 layers, Q-exit at one half, tokens [1, 64]",
        Form(
            lambda: _palbert(6, _SMALL, 0.5),
            tokens(VOCABULARY, 1, 9),
            {(1,): 139, (2,): 36, (3,): 64, (4,): 188, (5,): 171, (6,): 3},
            {**_LESS_POSITION, **_STOPPING},
            {"exit_head.2.bias": -1.4},
        ),
        Form(
            lambda: _palbert(12, _BASE, 0.5),
            tokens(VOCABULARY, 1, 64),
            {(1,): 142, (2,): 119, (3,): 20, (4,): 81, (5,): 106, (6,): 42},
            {**_LESS_POSITION, **_STOPPING},
            {"exit_head.2.bias": -2.6},
        ),
        _layers,
    ),
)
