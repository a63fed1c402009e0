"""In-place ops within a model, and writes that no graph holds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.errors import CaptureError
from tests.e2e.mutating import check, rows

HERE = Path(__file__).name


def line_of(marker: str) -> str:
    """``file:line`` of the line of this file that ends with the comment ``marker``."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = (i for i, text in enumerate(lines, start=1) if text.endswith(f"# {marker}"))
    return f"{HERE}:{number}"


# -- aliases within the model ------------------------------------------------------------------


def views_of_views(x: Tensor) -> Tensor:
    y = x * 1
    y.view(-1)[4:20].view(2, 8).T[1].add_(10)
    return y


def row_then_flat(x: Tensor) -> Tensor:
    x[0] += 1
    y = x.view(-1)
    y[2] = 7.0
    return x.t()[0] * 1


def out_variants(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    torch.mul(x, 2, out=y)
    torch.where(x > 0, x, y, out=y)
    torch.add(y, 1, out=y)
    return y


def chunks(x: Tensor) -> Tensor:
    y = x * 2
    a, b = y.chunk(2, dim=1)
    a.add_(b)
    b.mul_(a)
    return y


def slices(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1] = x[:, 0]
    y[1:, 2:6:2] = x[1:, ::4] * 3
    y[..., -1].fill_(5)
    y[0].zero_()
    return y


def indices(x: Tensor) -> Tensor:
    y = x.clone()
    y[y > 0.5] = -1.0
    y.index_put_((torch.tensor([0, 2]), torch.tensor([1, 1])), torch.tensor([3.0, 4.0]))
    y.index_copy_(0, torch.tensor([1]), x[:1])
    y.masked_fill_(y < -1, 9.0)
    y.scatter_(1, torch.tensor([[0, 3], [1, 2], [0, 1]]), 6.0)
    y.index_fill_(1, torch.tensor([7]), 2.0)
    return y


def diagonal(x: Tensor) -> Tensor:
    y = x @ x.T
    y.diagonal().fill_(0)
    y.diagonal(1).add_(1)
    return y


def shapes_in_place(x: Tensor) -> Tensor:
    y = x * 1
    y.t_()
    y.unsqueeze_(0)
    y.add_(1)
    return y.squeeze_()


def written_after_read(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x + 1
    z = y * 2
    y.zero_()
    return y, z


TORTURE = (
    *(views_of_views, row_then_flat, out_variants, chunks, slices),
    *(indices, diagonal, shapes_in_place, written_after_read),
)


@pytest.mark.parametrize("model", TORTURE, ids=lambda f: f.__name__)
def test_aliases_within(model: Any) -> None:
    check(model, rows(), fallback="eager", verify=True)


# -- what no graph holds -----------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cache = torch.zeros(8)

    def forward(self, x: Tensor) -> Tensor:
        self.cache.add_(x.sum(0))  # plain attribute
        return x + self.cache


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.zeros(4, 8))
        self.register_buffer("part", self.whole[1:])

    def forward(self, x: Tensor) -> Tensor:
        self.whole.add_(1)  # tied buffers
        return x + self.part


def transposes(x: Tensor) -> Tensor:
    x.t_()  # t_
    return x * 1


def unsqueezes(x: Tensor) -> Tensor:
    x.unsqueeze_(0)  # unsqueeze_
    return x * 1


def squeezes(x: Tensor) -> Tensor:
    x.squeeze_()  # squeeze_
    return x * 1


def resizes(x: Tensor) -> Tensor:
    x.resize_(30)  # resize_
    return x * 1


def sets(x: Tensor) -> Tensor:
    x.set_(x.clone())  # set_
    return x * 1


def assigns_data(x: Tensor) -> Tensor:
    x.data = x + 1  # data
    return x * 1


def writes_data(x: Tensor) -> Tensor:
    x.data.add_(1)  # data.add_
    return x * 1


def expands(x: Tensor) -> Tensor:
    x[0].expand(4, 8).add_(1)  # expanded
    return x * 1


def strides(x: Tensor) -> Tensor:
    x.as_strided((2, 8), (4, 1)).add_(1)  # as_strided
    return x * 1


_OUTSIDE = torch.zeros(8)


def outside(x: Tensor) -> Tensor:
    _OUTSIDE.add_(1)  # outside
    return x + _OUTSIDE


HOPELESS: dict[str, tuple[Any, str, str]] = {
    "plain attribute": (Plain(), "'cache'", "register_buffer"),
    "tied buffers": (Tied(), "buffer 'whole', which shares memory with its buffer 'part'", "make the other"),
    "t_": (
        transposes,
        r"shape or the storage of its argument 'x' in place \(aten\.t_\)",
        "returns a new tensor",
    ),
    "unsqueeze_": (unsqueezes, "shape or the storage of a tensor in place", "returns a new tensor"),
    "squeeze_": (squeezes, "shape or the storage of its argument 'x'", "returns a new tensor"),
    "resize_": (resizes, "shape or the storage of its argument 'x'", "returns a new tensor"),
    "set_": (sets, "shape or the storage of its argument 'x'", "returns a new tensor"),
    "data": (assigns_data, r"assigns to \.data", "copy_"),
    "expanded": (expands, "writes to an expanded tensor", "clone"),
    "as_strided": (strides, "by strides", "slicing"),
    "outside": (outside, "neither an argument nor a buffer", "register_buffer"),
}


def test_writes_through_data_reach_the_argument() -> None:
    compiled = regraft.compile(writes_data, (rows(),))
    ours, theirs = rows(), rows()
    assert torch.equal(compiled(ours), writes_data(theirs))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("case", HOPELESS)
def test_refused_by_name(case: str) -> None:
    model, message, hint = HOPELESS[case]
    model = model.eval() if isinstance(model, nn.Module) else model
    x = torch.ones(1, 8) if case == "squeeze_" else rows()
    state = copy.deepcopy(model.state_dict()) if isinstance(model, nn.Module) else {}
    with pytest.raises(CaptureError, match=message) as caught:
        regraft.compile(model, (x,))
    assert line_of(case) in str(caught.value)
    assert caught.value.hint is not None
    assert hint in caught.value.hint
    assert x.shape == ((1, 8) if case == "squeeze_" else (3, 8))
    assert not isinstance(model, nn.Module) or all(
        torch.equal(state[k], v) for k, v in model.state_dict().items()
    )
