"""The table of steps, and the code that runs it, over kernels that are Python functions."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.backends.tvm import table

_KERNEL = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64), ctypes.c_int32, ctypes.c_void_p
)


@pytest.fixture(scope="module", params=["c", "c++"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> table.StepLibrary:
    """TVM links by whatever compiler there is, of C or of C++, which must not warn."""
    path = tmp_path_factory.mktemp("table") / "steps.so"
    strict = ["-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC"]
    subprocess.run(["gcc", "-x", request.param, *strict, "-o", str(path), str(table.SOURCE)], check=True)
    return table.StepLibrary(str(path))


class Kernels:
    """Kernels that note what they were called with."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[Any]]] = []
        self._kept: list[Any] = []

    def make(self, name: str, status: int = 0) -> int:
        def kernel(_: int, arguments: Any, count: int, __: int) -> int:
            self.seen.append((name, list(_values(arguments, count))))
            return status

        made = _KERNEL(kernel)
        self._kept.append(made)
        return ctypes.cast(made, ctypes.c_void_p).value or 0


def _values(words: Any, count: int) -> Iterator[Any]:
    """The arguments of a kernel: a number, or address, shape, code, bits, strides and offset of a tensor."""
    for index in range(count):
        kind, value = words[2 * index], words[2 * index + 1]
        if kind == 1:
            yield value
            continue
        assert kind == 7
        tensor = ctypes.cast(value, ctypes.POINTER(ctypes.c_int64))
        assert tensor[1] == 1, "a CPU"
        assert tensor[4] == tensor[5] == 0, "contiguous, from its address on"
        dims, code, bits, lanes = (tensor[2] & 0xFFFFFFFF, *((tensor[2] >> s) & 0xFF for s in (32, 40, 48)))
        assert lanes == 1
        shape = ctypes.cast(tensor[3], ctypes.POINTER(ctypes.c_int64))
        yield tensor[0], tuple(shape[d] for d in range(dims)), code, bits


@pytest.mark.parametrize(
    ("dtype", "code", "bits"),
    [
        (torch.float32, 2, 32),
        (torch.float64, 2, 64),
        (torch.bfloat16, 4, 16),
        (torch.bool, 6, 8),
        (torch.uint16, 1, 16),
        (torch.int64, 0, 64),
    ],
)
def test_tensors_are_as_dlpack_has_them(
    library: table.StepLibrary, dtype: torch.dtype, code: int, bits: int
) -> None:
    kernels, builder = Kernels(), table.TableBuilder()
    builder.call(kernels.make("k"), [table.Argument(0, dtype, (2, 3)), table.Argument(1, dtype, ())], [-7])
    tensor = torch.zeros(2, 3, dtype=dtype)
    steps = table.StepTable(builder, {0: tensor.data_ptr()})
    assert steps.open == {1}
    steps.place(1, 64)
    assert steps.run(library) is None
    ((_, (first, second, number)),) = kernels.seen
    assert first == (tensor.data_ptr(), (2, 3), code, bits)
    assert second == (64, (), code, bits)
    assert number == -7


def _branches(kernels: Kernels) -> table.TableBuilder:
    """a; if 0: (b; if 1: c else: d) else: (copy 2 to 3; e); f"""
    builder = table.TableBuilder()

    def call(name: str) -> None:
        builder.call(kernels.make(name), [], [])

    call("a")
    outer = builder.branch(0)
    call("b")
    inner = builder.branch(1)
    call("c")
    builder.otherwise(inner)
    call("d")
    builder.end(inner)
    builder.otherwise(outer)
    builder.copy(2, 3, 4)
    call("e")
    builder.end(outer)
    call("f")
    return builder


@pytest.mark.parametrize(
    ("flags", "path"), [((1, 1), "abcf"), ((1, 0), "abdf"), ((0, 1), "aef"), ((0, 0), "aef")]
)
def test_conditions_run_one_arm(library: table.StepLibrary, flags: Sequence[int], path: str) -> None:
    kernels = Kernels()
    preds = [torch.tensor(bool(flag)) for flag in flags]
    source, target = torch.tensor([5, 6], dtype=torch.int16), torch.zeros(2, dtype=torch.int16)
    steps = table.StepTable(_branches(kernels), {2: source.data_ptr(), 3: target.data_ptr()})
    for number, pred in enumerate(preds):
        steps.place(number, pred.data_ptr())
    for _ in range(2):
        kernels.seen.clear()
        assert steps.run(library) is None
        assert "".join(name for name, _ in kernels.seen) == path
    assert target.tolist() == ([0, 0] if flags[0] else [5, 6])


def test_a_step_that_fails_ends_the_run_and_is_told(library: table.StepLibrary) -> None:
    kernels, builder = Kernels(), table.TableBuilder()
    builder.call(kernels.make("before"), [], [1])
    branch = builder.branch(0)
    place = len(builder)
    builder.call(kernels.make("fails", -1), [], [2])
    builder.call(kernels.make("after"), [], [3])
    builder.otherwise(branch)
    builder.end(branch)
    builder.call(kernels.make("after"), [], [4])
    holds = torch.tensor(True)
    steps = table.StepTable(builder, {0: holds.data_ptr()})
    assert steps.run(library) == place
    assert kernels.seen == [("before", [1]), ("fails", [2])]


def test_a_table_of_nothing(library: table.StepLibrary) -> None:
    assert table.StepTable(table.TableBuilder(), {}).run(library) is None


def test_a_library_of_another_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "no.c").write_text("int nothing;\n")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", str(tmp_path / "no.so"), str(tmp_path / "no.c")], check=True
    )
    with pytest.raises(AttributeError, match="regraft_run_steps"):
        table.StepLibrary(str(tmp_path / "no.so"))
