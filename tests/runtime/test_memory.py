"""The memory of large results: used again once nobody reads it, never before."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.runtime import LARGE, ResultMemory

SHAPE = (3, LARGE // 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_tensor_is_dense_and_aligned(dtype: torch.dtype) -> None:
    memory = ResultMemory()
    for shape in (SHAPE, (LARGE,), (5, 1, LARGE)):
        tensor = memory.empty(shape, dtype)
        assert (tensor.shape, tensor.dtype, tensor.device.type) == (shape, dtype, "cpu")
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        assert not tensor._is_view()
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert torch.equal(tensor.fill_(1), torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("shape", [(), (0,), (0, LARGE), (7,)])
def test_small_tensor(shape: tuple[int, ...]) -> None:
    tensor = ResultMemory().empty(shape, torch.float32)
    assert tensor.shape == shape
    assert tensor.is_contiguous()


def test_memory_is_used_again() -> None:
    memory = ResultMemory()
    first = memory.empty(SHAPE, torch.float32)
    second = memory.empty(SHAPE, torch.float32)  # a caller that overwrites its last result holds both
    place = first.data_ptr()
    del first
    third = memory.empty(SHAPE, torch.float32)
    assert third.data_ptr() == place != second.data_ptr()


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda tensor: tensor,
    "view": lambda tensor: tensor[1, 3:5],
    "detached": lambda tensor: tensor.detach(),
    "other type": lambda tensor: tensor.view(torch.int32),
    "storage": lambda tensor: tensor.untyped_storage(),
    "array": lambda tensor: tensor.numpy(),
    "capsule": torch.utils.dlpack.to_dlpack,
    "parameter": lambda tensor: nn.Parameter(tensor),
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_memory_that_is_held_is_left_alone(holder: Callable[[Tensor], Any]) -> None:
    memory = ResultMemory()
    tensor = memory.empty(SHAPE, torch.float32)
    place, held = tensor.data_ptr(), holder(tensor)
    del tensor
    others = [memory.empty(SHAPE, torch.float32).data_ptr() for _ in range(4)]
    assert place not in others
    del held


def test_memory_for_other_sizes() -> None:
    memory = ResultMemory()
    place = memory.empty((8, LARGE), torch.float32).data_ptr()
    assert memory.empty((5, LARGE), torch.float32).data_ptr() == place
    # A small result would hold on to much more than it needs.
    assert memory.empty((1, LARGE), torch.float32).data_ptr() != place


def test_only_the_last_blocks_are_kept() -> None:
    memory = ResultMemory()
    held = [memory.empty(SHAPE, torch.float32) for _ in range(5)]
    places = [tensor.data_ptr() for tensor in held]
    del held[:]
    assert [memory.empty(SHAPE, torch.float32).data_ptr() for _ in range(3)] == [places[3]] * 3


class Sums(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x.sum()


@pytest.mark.parametrize("backends", [("ort",), ("tvm",)], ids=["ort", "tvm"])
def test_results_of_a_model(backends: tuple[str, ...], with_one_tvm: Any) -> None:
    x = torch.randn(64, 1024)
    compiled = regraft.compile(
        Sums().eval(), (x,), dynamic_shapes=({0: Dim.AUTO},), backends=with_one_tvm(backends)
    )
    first, _ = compiled(x)
    kept, place = first.clone(), first.data_ptr()
    second, _ = compiled(-x)
    assert torch.equal(first, kept)
    assert torch.equal(second, 1 - x)
    del first
    assert compiled(x)[0].data_ptr() == place
    third = compiled(x)[0].requires_grad_()  # a result is a leaf like any other tensor
    (third * 2).sum().backward()
    assert third.grad is not None
    assert torch.equal(third, 1 + x)


def test_calls_in_threads_have_results_of_their_own() -> None:
    x = torch.randn(64, 1024)
    compiled = regraft.compile(Sums().eval(), (x,))

    def work(number: int) -> bool:
        last = None
        for step in range(50):
            value = torch.full_like(x, number * 1000 + step)
            result, _ = compiled(value)
            if last is not None and not torch.equal(last, torch.full_like(x, number * 1000 + step)):
                return False
            last = result
            if not torch.equal(result, value + 1):
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
