"""Products of three and more operands, in the order in which their authors write them.

- SOFT: fudan-zvg/SOFT, models/softmax_free_transformer.py: ``subtraction_gaussian_kernel_torch``,
  ``SoftmaxFreeAttentionKernel.forward`` and SOFT/kernel/inverse.py's ``newton_inv``.
- Linear attention: Katharopoulos et al. 2020, arXiv:2006.16236, equation 5, computed left to right.
- LAMA: low-rank bilinear attention over GRU states; its equations, there being no code.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.zoo.checking import at_sizes, check, normal


def newton_inv(mat: Tensor, steps: int) -> Tensor:
    """The inverse by Newton's iteration, from ``alpha * P``."""
    p = mat
    identity = torch.eye(p.shape[-1], dtype=p.dtype).expand(p.shape)
    alpha = 0.9 * 2 / torch.max(torch.sum(p, dim=-1)) ** 2
    beta, v = 0.01, alpha * p
    pnew = p + beta * identity
    for _ in range(steps):
        v = 2 * v - v @ pnew @ v
    return v


def subtraction_gaussian_kernel(q: Tensor, k: Tensor) -> Tensor:
    """``|q_i - k_j|^2`` for ``q[B, H, N, C]`` and ``k[B, H, C, M]``."""
    mat_a_square = q**2.0 @ torch.ones(k.shape[-2:], dtype=q.dtype)
    mat_b_square = torch.ones(q.shape[-2:], dtype=q.dtype) @ k**2.0
    return mat_a_square + mat_b_square - 2.0 * (q @ k)


class SoftmaxFreeAttention(nn.Module):
    """One head group over an image of ``side * side`` tokens, with ``(side / ratio) ** 2`` landmarks."""

    def __init__(
        self, dim: int = 16, num_heads: int = 2, ratio: int = 4, side: int = 8, steps: int = 4
    ) -> None:
        super().__init__()
        self.num_heads, self.side, self.steps = num_heads, side, steps
        self.scale = (dim // num_heads) ** -0.25
        self.q, self.v = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        head = dim // num_heads
        self.Qlandmark_op = nn.Conv2d(head, head, ratio, ratio, bias=False)
        self.Qnorm_act = nn.Sequential(nn.LayerNorm(head), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        head = c // self.num_heads
        q = self.q(x).reshape(b, n, self.num_heads, head).permute(0, 2, 1, 3) * self.scale
        v = self.v(x).reshape(b, n, self.num_heads, head).permute(0, 2, 1, 3)
        image = q.reshape(b * self.num_heads, self.side, self.side, head).permute(0, 3, 1, 2)
        landmarks = self.Qlandmark_op(image).flatten(2).transpose(1, 2)
        landmarks = self.Qnorm_act(landmarks).reshape(b, self.num_heads, -1, head)
        kernel_1_ = torch.exp(-0.5 * subtraction_gaussian_kernel(q, landmarks.transpose(-1, -2)))
        kernel_2_ = torch.exp(-0.5 * subtraction_gaussian_kernel(landmarks, landmarks.transpose(-1, -2)))
        kernel_3_ = kernel_1_.transpose(-1, -2)
        inverse = newton_inv(kernel_2_, self.steps)
        out = torch.matmul(torch.matmul(kernel_1_, inverse), torch.matmul(kernel_3_, v))
        return out.permute(0, 2, 1, 3).reshape(b, n, c)


class LinearAttention(nn.Module):
    """``phi(Q) (phi(K)^T V)``, written as ``(phi(Q) phi(K)^T) V``."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        normalised = q / (q @ k.sum(dim=-2, keepdim=True).transpose(-1, -2))
        return normalised @ k.transpose(-1, -2) @ v


class LAMA(nn.Module):
    """``f_t = (U^T h_t) * (V^T c)``, ``A = softmax_t(f P^T)``, ``M = A^T H``."""

    def __init__(self, states: int = 12, rank: int = 5, heads: int = 3) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.empty(states, rank)), nn.Parameter(torch.empty(states, rank))
        self.p = nn.Parameter(torch.empty(heads, rank))
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, h: Tensor) -> Tensor:
        context = h.mean(dim=1, keepdim=True)
        pooled = (h @ self.u) * (context @ self.v)
        weights = torch.softmax(pooled @ self.p.t(), dim=1)
        return weights.transpose(1, 2) @ h


def test_soft() -> None:
    fired = {"ProductOrder": 1, "SumOfOnes": 4}
    compiled = check(SoftmaxFreeAttention(), (normal(2, 64, 16),), rewrites=fired)
    flops = compiled.report.flops
    assert flops["after"] < 0.9 * flops["before"]


@pytest.mark.parametrize("sizes", [(5, 3), (40, 8)])
def test_linear_attention(sizes: tuple[int, int]) -> None:
    """With 40 tokens of 8 features the other order is cheaper, with 5 of 3 it is not by much."""
    tokens, width = sizes
    arguments = tuple(normal(2, tokens, width, seed=s) for s in range(3))
    compiled = check(LinearAttention(), arguments, rewrites={"ProductOrder": 1})
    assert compiled.report.flops["after"] < compiled.report.flops["before"]


def test_linear_attention_of_any_length() -> None:
    """Which order is cheaper depends on the length: both stay, and the length decides in each call."""
    length = Dim("length", max=4096)
    shapes = {name: {1: length} for name in ("q", "k", "v")}
    inputs = [tuple(normal(2, n, 4, seed=s) for s in range(3)) for n in (9, 2, 3000)]
    compiled = check(LinearAttention(), *inputs, dynamic_shapes=shapes, rewrites={"ProductOrder": 1})
    (choice,) = compiled.report.choices
    assert choice.forms == ("((A B) C)", "(A (B C))")
    assert choice.order[-1] == 1, "the product of two long sides is never formed"


def test_lama() -> None:
    inputs = at_sizes([2, "T", 12], [{"T": 7}, {"T": 1}, {"T": 30}])
    check(LAMA(), *inputs, dynamic_shapes=({1: Dim.AUTO},))
