"""Calls for which the captured graph is not the model: they are refused, never answered wrongly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.export import Dim

import regraft
from regraft.errors import CaptureError, OptionError, RegraftError, ShapeError


def dynamic(function: Callable[..., torch.Tensor], example: torch.Tensor, dim: object = Dim.AUTO) -> object:
    return regraft.compile(function, (example,), dynamic_shapes=({0: dim},))


@pytest.mark.parametrize(
    ("function", "good", "bad"),
    [
        (lambda x: x * 2 if x.shape[0] == 7 else x * 3, 5, 7),
        (lambda x: x * 2 if x.shape[0] % 2 == 0 else x * 3, 6, 5),
        (lambda x: x * 2 if x.shape[0] > 3 else x * 3, 9, 3),
        (lambda x: x * 2 if x.shape[0] == 1 else x * 3, 5, 1),
        (lambda x: x.squeeze(0) * 2, 5, 1),
    ],
)
def test_another_path_for_other_sizes(function: Callable[..., torch.Tensor], good: int, bad: int) -> None:
    compiled = dynamic(function, torch.randn(4, 8))
    x = torch.randn(good, 8)
    torch.testing.assert_close(compiled(x), function(x))
    with pytest.raises(ShapeError):
        compiled(torch.randn(bad, 8))


def test_size_one_where_it_is_the_same() -> None:
    compiled = dynamic(lambda x: torch.relu(x) + x.sum(1, keepdim=True), torch.randn(1, 8))
    for n in (1, 2, 7):
        x = torch.randn(n, 8)
        torch.testing.assert_close(compiled(x), torch.relu(x) + x.sum(1, keepdim=True))


def test_an_example_of_the_special_size() -> None:
    with pytest.raises(CaptureError, match="something else for the example's own sizes"):
        dynamic(lambda x: x * 2 if x.shape[0] == 1 else x * 3, torch.randn(1, 8))


def test_a_minimum_of_the_user_stays() -> None:
    compiled = dynamic(lambda x: x * 2, torch.randn(4, 8), Dim("rows", min=2, max=9))
    with pytest.raises(ShapeError, match=r"in \[2, 9\]"):
        compiled(torch.randn(1, 8))


def test_one_tensor_given_twice_is_two_arguments() -> None:
    x = torch.randn(3)
    compiled = regraft.compile(lambda a, b: a - b, (x, x))
    a, b = torch.randn(3), torch.randn(3)
    torch.testing.assert_close(compiled(a, b), a - b)


def test_nested_sizes_vary() -> None:
    compiled = regraft.compile(
        lambda d: d["a"] * 2, ({"a": torch.randn(1, 3)},), dynamic_shapes={"d": {"a": {0: Dim.AUTO}}}
    )
    assert compiled({"a": torch.randn(5, 3)}).shape == (5, 3)


def test_an_axis_that_is_not_there() -> None:
    with pytest.raises(OptionError, match="axis 5"):
        regraft.compile(lambda x: x, (torch.randn(3, 2),), dynamic_shapes=({5: Dim.AUTO},))


def test_state_in_attributes_is_refused() -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = torch.zeros(())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.n = self.n + 1
            return x + self.n

    model = Counter().eval()
    with pytest.raises(CaptureError, match="writes to its attribute 'n'"):
        regraft.compile(model, (torch.randn(3),))
    assert float(model.n) == 0


def test_equal_results_are_two_tensors() -> None:
    compiled = regraft.compile(lambda x: (x + 1, x + 1), (torch.randn(3),))
    a, b = compiled(torch.zeros(3))
    a.zero_()
    assert b.tolist() == [1, 1, 1]


def test_weights_changed_in_place_are_noticed() -> None:
    model = torch.nn.Linear(4, 3).eval()
    x = torch.randn(2, 4)
    compiled = regraft.compile(model, (x,))
    with torch.no_grad():
        model.weight.mul_(2)
    with pytest.raises(RegraftError, match=r"call refresh\(model\)"):
        compiled(x)
    compiled.refresh(model)
    torch.testing.assert_close(compiled(x), model(x))


def test_arguments_may_be_left_out_at_their_captured_default() -> None:
    compiled = regraft.compile(lambda x, flag=True: x if flag else -x, (torch.ones(2), True))
    assert compiled(torch.ones(2)).tolist() == [1, 1]
    with pytest.raises(ShapeError, match="flag"):
        compiled(torch.ones(2), False)
