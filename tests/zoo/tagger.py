"""A sequence tagger: embedding, bidirectional LSTM, a score for each tag (Huang et al., arXiv:1508.01991,
without the CRF, which decodes outside the network).
"""

from __future__ import annotations

from torch import Tensor, nn


class Tagger(nn.Module):
    def __init__(self, vocabulary: int, width: int, hidden: int, layers: int, tags: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True, bidirectional=True)
        self.score = nn.Linear(2 * hidden, tags)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(tokens))
        return self.score(states)
