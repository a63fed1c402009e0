"""A decoder layer as Hugging Face writes Llama: every idiom spelled out, masks from index arithmetic."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, GROUPS, HEAD = 16, 4, 2, 4


class SpelledOutNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32) if x.dtype != torch.float64 else x
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def repeat_heads(x: Tensor, times: int) -> Tensor:
    batch, heads, length, width = x.shape
    x = x[:, :, None, :, :].expand(batch, heads, times, length, width)
    return x.reshape(batch, heads * times, length, width)


def positions_and_mask(x: Tensor) -> tuple[Tensor, Tensor]:
    """Positions, and the causal mask behind the test for packed sequences of transformers 5."""
    batch, length = x.shape[:2]
    positions = (torch.arange(length, device=x.device) + 0).unsqueeze(0)
    spread = positions.expand(batch, -1)
    sequence = (torch.diff(spread, prepend=spread[:, :1] - 1, dim=-1) != 1).cumsum(-1)
    at = torch.arange(batch)[:, None, None, None]
    query, key = torch.arange(length)[None, None, :, None], torch.arange(length)[None, None, None, :]
    mask = query.new_ones((), dtype=torch.bool) & (sequence[at, query] == sequence[at, key])
    return positions, (mask & (spread[at, key] <= spread[at, query])).expand(batch, -1, length, length)


class Decoder(nn.Module):
    def __init__(self, eager_attention: bool = False) -> None:
        super().__init__()
        self.eager_attention = eager_attention
        self.embedding = nn.Embedding(50, WIDTH)
        self.before, self.after = SpelledOutNorm(), SpelledOutNorm()
        self.query = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.key, self.value = (nn.Linear(WIDTH, GROUPS * HEAD, bias=False) for _ in range(2))
        self.out = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.gate, self.up = (nn.Linear(WIDTH, 24, bias=False) for _ in range(2))
        self.down = nn.Linear(24, WIDTH, bias=False)
        self.register_buffer("frequencies", 10000 ** -(torch.arange(0, HEAD, 2) / HEAD), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        positions, mask = positions_and_mask(x)
        angles = positions[:, :, None].float() * self.frequencies.float()
        angles = torch.cat((angles, angles), dim=-1)
        tables = [(table * 1.0).to(x.dtype).unsqueeze(1) for table in (angles.cos(), angles.sin())]
        x = x + self._attention(self.before(x), *tables, mask)
        y = self.after(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        layers = (self.query, self.key, self.value)
        q, k, v = (layer(x).view(batch, length, -1, HEAD).transpose(1, 2) for layer in layers)
        q, k = (y * cos + rotate_half(y) * sin for y in (q, k))
        k, v = (repeat_heads(y, HEADS // GROUPS) for y in (k, v))
        if self.eager_attention:
            lowest = torch.finfo(x.dtype).min
            added = torch.where(mask, torch.zeros((), dtype=x.dtype), lowest)
            scores = torch.matmul(q, k.transpose(2, 3)) * HEAD**-0.5 + added
            mixed = torch.matmul(F.softmax(scores, dim=-1, dtype=scores.dtype), v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, scale=HEAD**-0.5)
        return self.out(mixed.transpose(1, 2).contiguous().view(batch, length, -1))
