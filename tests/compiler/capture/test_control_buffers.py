"""Buffers that arms and trips assign and write to through their attributes."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.errors import CaptureError
from tests.compiler.capture.running import check_calls

CALLS = [(torch.tensor([[1.0, -0.4], [0.7, 0.2]]) * scale,) for scale in (2.0, -3.0, 0.1, 9.0, -0.5)]


class Counts(nn.Module):
    """A count of the trips, written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        while x.norm() > 1:
            x = x * 0.5
            self.n += 1
        return x * self.n


class Assigns(Counts):
    def forward(self, x: Tensor) -> Tensor:
        while x.norm() > 1:
            x = x * 0.5
            if x.sum() > 0:
                self.n = self.n + 2
        return x + self.n


class Traces(nn.Module):
    trace: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("trace", torch.zeros(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        i, row = 0, x[0]
        while row.norm() > 0.5 and i < 4:
            row = row * 0.6
            self.trace[i] = row
            i += 1
        return row


class Cools(nn.Module):
    """The buffer itself ends the loop, which may be left."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("heat", torch.tensor(4.0))

    def forward(self, x: Tensor) -> Tensor:
        while self.heat > 0.5:
            self.heat *= 0.8
            if x.sum() > self.heat:
                break
        else:
            self.heat = self.heat + 3
        return x / self.heat


class Within(nn.Module):
    """A module in the model has the buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Counts()

    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = x * 0.5
            self.inner.n += 1
        return x + self.inner.n


class AssignsWithin(Within):
    """A buffer of a module in the model, in a trip and behind it."""

    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = x * 0.5
            self.inner.n = self.inner.n + 1
        before = self.inner.n
        self.inner.n = self.inner.n * 2
        return x + before


class ByName(Counts):
    """An assignment that is spelt as a call."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            setattr(self, "n", self.n + 1)  # noqa: B010
        return x + self.n


class InArms(Counts):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.n += 1
        elif x.sum() > -2:
            self.n = self.n * 3 + 1
        return x * self.n


@pytest.mark.parametrize("model", [Counts, Assigns, Traces, Cools, Within, AssignsWithin, ByName, InArms])
def test_every_call_leaves_what_eager_leaves(model: type[nn.Module]) -> None:
    check_calls(model().eval(), CALLS[0], CALLS[1:], backends=("ort",))


# -- one buffer's tensor is assigned to another -------------------------------------------------


class Three(nn.Module):
    a: Tensor
    b: Tensor
    c: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("a", 0.0), ("b", 1.0), ("c", 3.0)):
            self.register_buffer(name, torch.full((2,), value))


class Takes(Three):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.a = self.b
        self.b = self.b + 1
        return x + self.a


class TakesOneOrTheOther(Three):
    def forward(self, x: Tensor) -> Tensor:
        before = self.a
        if x.sum() > 0:
            self.a = self.b
        else:
            self.a = self.c
            self.c = self.c * 2
        return x + self.a - before


class Swaps(Three):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.a, self.b = self.b, self.a
        self.c = self.c + x[0]
        return x + self.a * 2 - self.b


class SwapsByAThird(Three):
    def forward(self, x: Tensor) -> Tensor:
        kept = self.a
        if x.sum() > 0:
            self.a = self.b
            self.b = kept
        return x + self.a * 2 - kept


class GivesToEachOther(Three):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.a = self.b
        else:
            self.b = self.a
        if x.abs().sum() > 2:
            self.c = self.a
        self.a = self.a + 1
        return x + self.c


class SwapsInTrips(Three):
    def forward(self, x: Tensor) -> Tensor:
        while x.norm() > 1:
            x = x * 0.5
            self.a, self.b = self.b, self.a
            self.a = self.a + 1
        return x + self.b


class Shifts(Three):
    """Each takes what the one before had."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.c = self.b
            self.b = self.a
            self.a = x[0] * 2
        return x + self.c


class TakesAlways(Three):
    def forward(self, x: Tensor) -> Tensor:
        self.a = self.b
        self.b = self.b + x[0]
        self.c = self.a
        return x + self.a


class SwapsAndWrites(Three):
    """Two tensors that change places stay two."""

    def forward(self, x: Tensor) -> Tensor:
        self.a, self.b = self.b, self.a
        if x.sum() > 0:
            self.a.mul_(2)
        return x + self.b


class TakesOfAnother(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Three(), Three()

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.one.a = self.other.b
        self.other.b = self.other.b + 1
        return x + self.one.a


@pytest.mark.parametrize(
    "model",
    [
        *(Takes, TakesOneOrTheOther, Swaps, SwapsByAThird, GivesToEachOther, SwapsInTrips, Shifts),
        *(TakesAlways, SwapsAndWrites, TakesOfAnother),
    ],
)
def test_a_buffer_that_takes_anothers_tensor(model: type[nn.Module]) -> None:
    check_calls(model().eval(), CALLS[0], CALLS[1:] + CALLS[:2], backends=("eager",))


class TakesAndWrites(Three):
    """In eager both are one tensor from the first call on that assigns."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.a = self.b
        else:
            self.b.add_(1)  # here
        return x + self.a


class WritesBefore(Three):
    def forward(self, x: Tensor) -> Tensor:
        self.b.add_(1)  # here
        if x.sum() > 0:
            self.a = self.b
        return x + self.a


class WritesToTheOther(Three):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.a = self.b
        elif x.sum() > -4:
            self.a[0] = 5.0  # here
        return x + self.b


class WritesBehind(Three):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.a = self.b[:]
        self.a.add_(1)  # here
        return x + self.a + self.b


class WritesBetweenCalls(Three):
    """What the second call writes to is what the first has assigned."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.a
        self.b.add_(1)  # here
        y = y + self.a
        self.a = self.b
        return y


class TwoOfOneValue(Three):
    def forward(self, x: Tensor) -> Tensor:
        self.c.mul_(2)
        if x.sum() > 0:
            self.a = self.b = x[0] * 2
        else:
            self.a.add_(1)  # here
        return x + self.b


class WritesInTrips(Three):
    def forward(self, x: Tensor) -> Tensor:
        while x.norm() > 1:
            x = x * 0.5
            self.b.mul_(0.5)  # here
            self.a = self.b
        return x + self.a


@pytest.mark.parametrize(
    "model",
    [
        *(TakesAndWrites, WritesBefore, WritesToTheOther, WritesBehind, WritesBetweenCalls, TwoOfOneValue),
        WritesInTrips,
    ],
)
def test_writes_to_what_two_buffers_have_come_to_be_are_refused(model: type[nn.Module]) -> None:
    lines, first = inspect.getsourcelines(model)
    (at,) = (i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))
    with pytest.raises(CaptureError, match=r"one tensor of its buffers '[abc]' and '[abc]'") as caught:
        regraft.capture(model().eval(), CALLS[0])
    assert caught.value.location == f"{__file__}:{first + at}"
    assert "clone()" in (caught.value.hint or "")


NO_TENSOR: Any = None


class OfTheEnd(Three):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.a = NO_TENSOR  # here
        return x


class OfTheArgument(Three):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.a = x  # here
        return x


@pytest.mark.parametrize("model", [OfTheEnd, OfTheArgument])
def test_what_no_buffer_can_be_is_refused_with_its_line(model: type[nn.Module]) -> None:
    lines, first = inspect.getsourcelines(model)
    (at,) = (i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))
    with pytest.raises(CaptureError) as caught:
        regraft.capture(model().eval(), CALLS[0])
    assert caught.value.location == f"{__file__}:{first + at}"
    assert caught.value.hint
