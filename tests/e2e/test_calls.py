"""Calls of a compiled model: what is remembered between them, and the tensors it cannot read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.errors import BackendError, GradientError, RegraftError, ShapeError
from regraft.testing import assert_close, randomise


class Scores(nn.Module):
    """Two arguments, one of them of another size; a result whose size is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([self.linear(x) @ y.T, x @ y.T], -1)


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> Scores:
    return randomise(Scores().eval())


@pytest.fixture(scope="module", params=["ort", "eager"])
def compiled(request: pytest.FixtureRequest, model: Scores) -> Any:
    shapes = {"x": {0: Dim.AUTO}, "y": {0: Dim.AUTO}}
    return regraft.compile(model, (rows(3), rows(4)), dynamic_shapes=shapes, backends=(request.param,))


# -- remembered calls --------------------------------------------------------------------------


def test_sizes_come_and_go(model: Scores, compiled: Any) -> None:
    for count, other in ((3, 4), (5, 2), (3, 4), (2, 5), (5, 2), (3, 4)):
        x, y = rows(count, seed=count), rows(other, seed=other)
        with torch.no_grad():
            assert_close(compiled(x, y), model(x, y).double())


def test_more_combinations_of_sizes_than_are_remembered() -> None:
    compiled = regraft.compile(lambda x: x * 2, (rows(3),), dynamic_shapes=({0: Dim.AUTO},))
    for count in (*range(2, 1100), 2, 3):
        assert compiled(torch.ones(count, 8)).shape == (count, 8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m(rows(3).double(), rows(4)), ["'x'", "f64"]),
        (lambda m: m(rows(3)[:, :7], rows(4)), ["'x'", "[3, 7]"]),
        (lambda m: m(rows(3), rows(4).to("meta")), ["'y'", "meta"]),
        (lambda m: m(rows(3)), ["missing argument 'y'"]),
        (lambda m: m(rows(3), x=rows(3)), ["'x'", "twice"]),
        (lambda m: m(rows(3), rows(4), z=rows(3)), ["unexpected argument 'z'"]),
        (lambda m: m(rows(3), 4), ["'y'", "int"]),
    ],
)
def test_a_call_that_fits_excuses_no_other(
    compiled: Any, call: Callable[[Any], Any], words: list[str]
) -> None:
    compiled(rows(3), rows(4))
    for _ in range(2):
        with pytest.raises(ShapeError) as caught:
            call(compiled)
        assert [word for word in words if word not in str(caught.value)] == []
    compiled(rows(3), rows(4))


def test_results_are_nobody_elses(compiled: Any) -> None:
    x, y = rows(3), rows(4)
    results = [compiled(x, y) for _ in range(4)]
    assert len({result.data_ptr() for result in results}) == 4
    kept = results[0].clone()
    results[1].zero_()
    assert torch.equal(results[0], kept)
    assert torch.equal(compiled(x, y), kept)


def test_arguments_are_read_anew(compiled: Any) -> None:
    """An argument at the place of the last one may hold other values, or have another layout."""
    x, y = rows(3), rows(4)
    compiled(x, y)
    x.copy_(rows(3, seed=1))
    assert torch.equal(compiled(x, y), compiled(x.clone(), y))
    turned = x.T.contiguous().T
    assert_close(compiled(turned, y), compiled(x, y).double())


def test_results_whose_size_only_the_run_tells() -> None:
    """ONNX Runtime allocates those; a later call must not write into them."""
    compiled = regraft.compile(lambda x: (torch.relu(x), x + 1), (rows(3),), dynamic_shapes=({0: Dim.AUTO},))
    first, _ = compiled(rows(3))
    kept = first.clone()
    compiled(-rows(3))
    assert torch.equal(first, kept)


def test_after_a_failed_run() -> None:
    compiled = regraft.compile(nn.Embedding(10, 4).eval(), (torch.tensor([1, 2]),))
    expected = compiled(torch.tensor([3, 4]))
    for _ in range(2):
        with pytest.raises(BackendError):
            compiled(torch.tensor([1, 10]))
        assert torch.equal(compiled(torch.tensor([3, 4])), expected)


# -- gradients ---------------------------------------------------------------------------------


def test_a_gradient_is_not_lost_in_silence(compiled: Any) -> None:
    y = rows(4).requires_grad_()
    with pytest.raises(GradientError, match=r"'y' requires grad.*no_grad"):
        compiled(rows(3), y)
    with torch.no_grad():
        result = compiled(rows(3), y)
    assert not result.requires_grad
    assert torch.equal(compiled(rows(3), y.detach()), result)
    with torch.inference_mode():
        assert torch.equal(compiled(rows(3), y), result)


def test_weights_that_require_grad_are_no_matter(model: Scores, compiled: Any) -> None:
    assert model.linear.weight.requires_grad
    assert not compiled(rows(3), rows(4)).requires_grad


def test_an_argument_that_is_returned_has_no_gradient() -> None:
    compiled = regraft.compile(lambda x: (x, x * 2), (rows(3),))
    with torch.no_grad():
        same, _ = compiled(rows(3).requires_grad_())
    assert not same.requires_grad


# -- tensors that are no memory ----------------------------------------------------------------


class Tagged(Tensor):
    """A subclass with a meaning of its own."""


def fake() -> Tensor:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(3, 8)


@pytest.mark.parametrize(
    ("argument", "name"), [(lambda: rows(3).as_subclass(Tagged), "Tagged"), (fake, "FakeTensor")]
)
def test_subclasses_are_refused_by_name(compiled: Any, argument: Callable[[], Tensor], name: str) -> None:
    with pytest.raises(ShapeError, match=rf"'x' is a {name}.*plain torch\.Tensor"):
        compiled(argument(), rows(4))


def test_a_parameter_is_a_plain_tensor(compiled: Any) -> None:
    with torch.no_grad():
        assert torch.equal(compiled(nn.Parameter(rows(3)), rows(4)), compiled(rows(3), rows(4)))


def test_torch_func_is_refused(compiled: Any) -> None:
    x, y = rows(3), rows(4)
    with pytest.raises(RegraftError, match="no memory to read"):
        torch.func.vmap(lambda each: compiled(each, y))(torch.stack([x, x]))
    with pytest.raises(GradientError):
        torch.func.grad(lambda each: compiled(each, y).sum())(x)
    with pytest.raises(RegraftError, match="no memory to read"):
        torch.func.jvp(lambda each: compiled(each, y), (x,), (x,))


def test_sparse_arguments_are_refused(compiled: Any) -> None:
    compiled(rows(3), rows(4))
    with pytest.raises(ShapeError, match=r"'x' is sparse_coo; pass x\.to_dense\(\)"):
        compiled(rows(3).to_sparse(), rows(4))
