"""MLP-Mixer (Tolstikhin et al., arXiv:2105.01601): MLPs over patches and over channels in turns."""

from __future__ import annotations

from torch import Tensor, nn


def _mlp(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Block(nn.Module):
    def __init__(self, patches: int, width: int, token_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.token_norm, self.channel_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens, self.channels = _mlp(patches, token_hidden), _mlp(width, channel_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.channel_norm(x))


class Mixer(nn.Module):
    """``image`` is the side of the images, which fixes the number of patches."""

    def __init__(self, image: int, patch: int, width: int, depth: int, hidden: tuple[int, int]) -> None:
        super().__init__()
        patches = (image // patch) ** 2
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*(Block(patches, width, *hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, 1000)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        return self.classify(self.norm(self.blocks(x)).mean(1))
