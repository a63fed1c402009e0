"""Image captioning: a convolutional encoder once, then words until the end of the sentence.

Xu et al., "Show, Attend and Tell" (ICML 2015); the PyTorch code that everybody copies is
github.com/sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning: ``models.py`` (``Encoder``, ``Attention``,
``DecoderWithAttention``) and the loop of ``caption.py`` with one beam. Networks 7 and 8 of DyCL, encoded by
ResNeXt (Xie et al., arXiv:1611.05431) and GoogLeNet (Szegedy et al., arXiv:1409.4842). For one image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.zoo.dynamic.record import Decisions, DynamicNetwork, Form, images

START, END = 1, 2
Result = tuple[Tensor, Tensor]


class ResNeXtBlock(nn.Module):
    """A bottleneck whose middle convolution is grouped."""

    def __init__(self, inside: int, outside: int, groups: int, stride: int) -> None:
        super().__init__()
        inner = outside // 2
        self.body = nn.Sequential(
            nn.Conv2d(inside, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _branch(inside: int, *layers: tuple[int, int]) -> nn.Sequential:
    """Convolutions, each of some channels and a kernel, with norm and activation."""
    made: list[nn.Module] = []
    for out, kernel in layers:
        made += [
            nn.Conv2d(inside, out, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(out, eps=1e-3),
            nn.ReLU(inplace=True),
        ]
        inside = out
    return nn.Sequential(*made)


class Inception(nn.Module):
    """Four branches side by side, each of a quarter of the channels."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        width = outside // 4
        self.branches = nn.ModuleList(
            (
                _branch(inside, (width, 1)),
                _branch(inside, (width, 1), (width, 3)),
                _branch(inside, (width // 2, 1), (width, 3)),
                nn.Sequential(nn.MaxPool2d(3, 1, padding=1), _branch(inside, (width, 1))),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def resnext(width: int, depth: int, groups: int) -> nn.Sequential:
    stem = [nn.Conv2d(3, width, 7, 2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    blocks = [ResNeXtBlock(width << i, width << (i + 1), groups, 1 if i == 0 else 2) for i in range(depth)]
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, padding=1), *blocks)


def googlenet(width: int, depth: int) -> nn.Sequential:
    stem = [nn.Conv2d(3, width, 7, 2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    blocks: list[nn.Module] = []
    for i in range(depth):
        blocks += [nn.MaxPool2d(3, 2, ceil_mode=True), Inception(width << i, width << (i + 1))]
    return nn.Sequential(*stem, *blocks)


class Encoder(nn.Module):
    """Features on a grid of ``size``, channels last."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network = network
        self.adaptive_pool = nn.AdaptiveAvgPool2d((size, size))

    def forward(self, image: Tensor) -> Tensor:
        out = self.adaptive_pool(self.network(image))
        return out.permute(0, 2, 3, 1)


class Attention(nn.Module):
    def __init__(self, encoder_dim: int, decoder_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.encoder_att = nn.Linear(encoder_dim, attention_dim)
        self.decoder_att = nn.Linear(decoder_dim, attention_dim)
        self.full_att = nn.Linear(attention_dim, 1)
        self.relu = nn.ReLU()
        self.softmax = nn.Softmax(dim=1)

    def forward(self, encoder_out: Tensor, decoder_hidden: Tensor) -> tuple[Tensor, Tensor]:
        att1 = self.encoder_att(encoder_out)
        att2 = self.decoder_att(decoder_hidden)
        att = self.full_att(self.relu(att1 + att2.unsqueeze(1))).squeeze(2)
        alpha = self.softmax(att)
        return (encoder_out * alpha.unsqueeze(2)).sum(dim=1), alpha


class Decoder(nn.Module):
    """An LSTM cell that attends to the features; its steps are called by name, as a beam search does too."""

    def __init__(self, encoder_dim: int, attention_dim: int, embed_dim: int, decoder_dim: int, words: int):
        super().__init__()
        self.attention = Attention(encoder_dim, decoder_dim, attention_dim)
        self.embedding = nn.Embedding(words, embed_dim)
        self.dropout = nn.Dropout(0.5)
        self.decode_step = nn.LSTMCell(embed_dim + encoder_dim, decoder_dim, bias=True)
        self.init_h = nn.Linear(encoder_dim, decoder_dim)
        self.init_c = nn.Linear(encoder_dim, decoder_dim)
        self.f_beta = nn.Linear(decoder_dim, encoder_dim)
        self.sigmoid = nn.Sigmoid()
        self.fc = nn.Linear(decoder_dim, words)

    def init_hidden_state(self, encoder_out: Tensor) -> tuple[Tensor, Tensor]:
        mean_encoder_out = encoder_out.mean(dim=1)
        return self.init_h(mean_encoder_out), self.init_c(mean_encoder_out)


class Captioner(nn.Module):
    """Greedy. Returns the words, with the end of the sentence if it was reached, and where each looked."""

    def __init__(self, encoder: Encoder, decoder: Decoder, longest: int) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.longest = longest

    def forward(self, image: Tensor) -> Result:
        encoder_out = self.encoder(image)
        encoder_out = encoder_out.view(1, -1, encoder_out.size(3))
        h, c = self.decoder.init_hidden_state(encoder_out)
        word = torch.LongTensor([START])
        words = []
        alphas = []
        step = 1
        while True:
            embeddings = self.decoder.embedding(word)
            awe, alpha = self.decoder.attention(encoder_out, h)
            gate = self.decoder.sigmoid(self.decoder.f_beta(h))
            awe = gate * awe
            h, c = self.decoder.decode_step(torch.cat([embeddings, awe], dim=1), (h, c))
            scores = self.decoder.fc(self.decoder.dropout(h))
            word = scores.argmax(dim=1)
            words.append(word)
            alphas.append(alpha)
            if word.item() == END:
                break
            if step >= self.longest:
                break
            step += 1
        return torch.stack(words, dim=1), torch.stack(alphas, dim=1)


def _decisions(result: Result) -> Decisions:
    """The number of words, and whether the sentence ended."""
    words = result[0][0].tolist()
    return len(words), int(words[-1] == END)


def _small(network: nn.Module, longest: int) -> Captioner:
    return Captioner(Encoder(network, 2), Decoder(16, 8, 8, 12, 8), longest)


def _full(network: nn.Module, channels: int) -> Captioner:
    return Captioner(Encoder(network, 14), Decoder(channels, 512, 512, 512, 1000), 10)


_GAINS = {"decoder.fc.weight": 3.0, "decoder.init_h.weight": 3.0}


def _ends_more_often(by: float, words: int) -> dict[str, float | Sequence[float]]:
    return {"decoder.fc.bias": [by if word == END else 0.0 for word in range(words)]}


NETWORKS = (
    DynamicNetwork(
        "captioning_resnext",
        "captioning, ResNeXt encoder, 512 wide, at most 10 words, image [1, 3, 256, 256]",
        Form(
            lambda: _small(resnext(4, 2, 2), 5),
            images(1, 32),
            {(1, 1): 124, (2, 1): 192, (5, 0): 7, (5, 1): 66},
            _GAINS,
            _ends_more_often(0.75, 8),
        ),
        Form(
            lambda: _full(resnext(64, 4, 32), 1024),
            images(1, 256),
            {(1, 1): 1, (3, 1): 5, (7, 1): 7, (10, 0): 3},
            _GAINS,
            _ends_more_often(2.0, 1000),
        ),
        _decisions,
    ),
    DynamicNetwork(
        "captioning_googlenet",
        "captioning, GoogLeNet encoder, 512 wide, at most 10 words, image [1, 3, 256, 256]",
        Form(
            lambda: _small(googlenet(4, 2), 5),
            images(1, 32),
            {(2, 1): 69, (3, 1): 170, (4, 1): 126, (5, 0): 136, (5, 1): 5},
            _GAINS,
            _ends_more_often(0.5, 8),
        ),
        Form(
            lambda: _full(googlenet(64, 4), 1024),
            images(1, 256),
            {(8, 1): 11, (10, 0): 6},
            _GAINS,
            _ends_more_often(1.4, 1000),
        ),
        _decisions,
    ),
)
