"""Running programs: memory, arguments of any layout, threads, artefacts, errors."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import regraft
from regraft.backends import LowerOptions, backend
from regraft.backends.tvm import arena, library
from regraft.conformance import Case
from regraft.errors import BackendError
from regraft.ir import Location, Value
from regraft.testing import GraphConstants, assert_close


def lowered(tvm: Any, build: Any, *types: str) -> Any:
    return tvm.lower(Case("", build, types).function(), GraphConstants(), LowerOptions())


@pytest.fixture(scope="module")
def doubled(tvm: Any) -> Any:
    return lowered(tvm, lambda op, x: op.aten.mul.Scalar(x, 2.0), "f32[B, 8]")


def test_arguments_of_any_layout(doubled: Any) -> None:
    x = torch.randn(6, 9)
    views = {
        "aligned": torch.randn(6, 8),
        "unaligned": x.view(-1)[1:49].view(6, 8),
        "strided": x[:, :8],
        "transposed": torch.randn(8, 6).t(),
        "negated": torch.randn(6, 8, dtype=torch.complex64).conj().imag.contiguous(),
    }
    before = doubled.copied
    for view in views.values():
        assert torch.equal(doubled.run([view], {"B": 6})[0], view * 2)
    assert doubled.copied == before + 3


def test_axes_turned_in_tiles(tvm: Any) -> None:
    """Whole tiles and parts of them, on one thread and several, with a step on the way."""
    turned = {
        dims: lowered(tvm, lambda op, x, dims=dims: op.aten.permute(op.aten.neg(x), dims), "f32[A, B, C]")
        for dims in ((0, 2, 1), (2, 0, 1), (2, 1, 0), (-1, 0, 1), (1, 0, 2))
    }
    for shape in ((2, 16, 32), (3, 5, 7), (1, 33, 17), (17, 1, 1), (0, 3, 4), (3, 4, 0), (4, 130, 97)):
        x = torch.randn(*shape)
        for dims, executable in turned.items():
            (found,) = executable.run([x], dict(zip("ABC", shape, strict=True)))
            assert torch.equal(found, (-x).permute(dims)), (shape, dims)
    fixed = lowered(
        tvm, lambda op, x: op.aten.permute(op.aten.view(x, (40, 33, 21)), (2, 0, 1)), "i64[40, 693]"
    )
    x = torch.randint(-9, 9, (40, 693))
    assert torch.equal(fixed.run([x], {})[0], x.view(40, 33, 21).permute(2, 0, 1))


def _part_turned(op: Any, x: Value) -> Value:
    return op.aten.sigmoid(op.aten.permute(op.aten.slice.Tensor(x, 1, 3, 1 << 62, 1), (1, 0)))


def _sum_turned(op: Any, x: Value, y: Value, gain: Value) -> Value:
    """Two values lie along the first axis of the result, and one for each of its places along each axis."""
    turned = op.aten.permute(op.aten.add.Tensor(x, y), (1, 0))
    return op.aten.mul.Tensor(turned, gain)


def _greater_turned(op: Any, x: Value) -> Value:
    return op.aten.permute(op.aten.gt.Scalar(x, 0), (1, 0))


def _rounded_turned(op: Any, x: Value) -> Value:
    return op.aten.round(op.aten.permute(x, (1, 0)))


@pytest.mark.parametrize(
    ("build", "types", "expected"),
    [
        (_part_turned, ("f32[A, B]",), lambda x: torch.sigmoid(x[:, 3:].T)),
        (_part_turned, ("bf16[A, B]",), lambda x: torch.sigmoid(x[:, 3:].T)),
        (_sum_turned, ("f32[A, B]", "f32[A, B]", "f32[A]"), lambda x, y, gain: (x + y).T * gain),
        (_sum_turned, ("f64[A, B]", "f64[A, B]", "f64[B, 1]"), lambda x, y, gain: (x + y).T * gain),
        (_greater_turned, ("f32[A, B]",), lambda x: (x > 0).T),
        (_greater_turned, ("i64[A, B]",), lambda x: (x > 0).T),
        (_rounded_turned, ("f32[A, B]",), lambda x: x.T.round()),
    ],
)
def test_what_is_computed_on_the_way_of_a_tile(tvm: Any, build: Any, types: Any, expected: Any) -> None:
    case = Case("", build, types)
    executable = tvm.lower(case.function(), GraphConstants(), LowerOptions())
    for a, b in ((16, 35), (40, 21), (1, 20), (3, 4), (0, 19), (33, 4), (17, 259)):
        sizes = {"A": a, "B": b}
        given = [each if each.dtype != torch.int64 else each - 1 for each in _drawn(case, sizes)]
        (found,) = executable.run(given, sizes)
        assert_close([found], [expected(*(_wide(each) for each in given))], [expected(*given)])


def _drawn(case: Case, sizes: dict[str, int]) -> list[torch.Tensor]:
    return case.arguments(case.function(), sizes)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def test_many_sizes_at_once(doubled: Any) -> None:
    """Eight threads with sizes of their own, more of them than are remembered."""
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        try:
            for turn in range(40):
                x = torch.randn((seed * 7 + turn) % 23, 8, generator=generator)
                assert torch.equal(doubled.run([x], {"B": len(x)})[0], x * 2)
        except BaseException as error:  # handed to the test's thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_an_index_out_of_range_is_an_error(tvm: Any) -> None:
    executable = lowered(tvm, lambda op, w, i: op.aten.embedding(w, i), "f32[5, 4]", "i64[B]")
    weight = torch.randn(5, 4)
    for index in (5, -1, 1 << 40):
        with pytest.raises(
            BackendError, match=r"embedding.*an index is out of range, it is below 0, or 5 or"
        ):
            executable.run([weight, torch.tensor([0, index])], {"B": 2})
    assert torch.equal(executable.run([weight, torch.tensor([4, 0])], {"B": 2})[0], weight[[4, 0]])


def test_an_index_out_of_range_names_its_own_line(tvm: Any) -> None:
    """Both checks compute the same, and tell of other lines."""

    def build(op: Any, w: Value, i: Value, j: Value) -> tuple[Value, Value]:
        return op.aten.embedding(w, i), op.aten.embedding(w, j)

    function = Case("", build, ("f32[5, 4]", "i64[3]", "i64[3]")).function()
    for line, op in enumerate((op for op in function.body.ops if op.name == "aten.embedding"), 1):
        op.loc = Location("model.py", line)
    executable = tvm.lower(function, GraphConstants(), LowerOptions())
    good, bad = torch.tensor([0, 1, 2]), torch.tensor([0, 9, 2])
    for line, indices in ((1, (bad, good)), (2, (good, bad))):
        with pytest.raises(BackendError, match=rf"model\.py:{line}\b"):
            executable.run([torch.randn(5, 4), *indices], {})


def test_threads_are_bounded(tvm: Any) -> None:
    function = Case("", lambda op, x: op.aten.exp(x), ("f32[B]",)).function()
    count = library.runtime().get_global_func("runtime.NumThreads")
    for threads in (1, 2):
        executable = tvm.lower(function, GraphConstants(), LowerOptions(threads=threads))
        executable.run([torch.randn(3)], {"B": 3})
        assert count() == threads


lives = st.lists(
    st.tuples(st.integers(0, 300), st.integers(0, 9), st.integers(0, 9)).map(
        lambda row: (row[0], min(row[1:]), max(row[1:]))
    ),
    max_size=12,
).map(lambda rows: [arena.Life(number, *row) for number, row in enumerate(rows)])


@given(lives)
def test_buffers_that_live_together_lie_apart(lives: list[arena.Life]) -> None:
    offsets, total = arena.placed(lives)
    assert set(offsets) == {life.number for life in lives}
    for life in lives:
        start = offsets[life.number]
        assert start % arena.ALIGNMENT == 0
        assert start + life.size <= total
        for other in lives:
            if other is not life and life.meets(other) and life.size and other.size:
                begin = offsets[other.number]
                assert start + life.size <= begin or begin + other.size <= start


# -- artefacts ---------------------------------------------------------------------------------

LOADER = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tvm" or name.startswith(("regraft.ir", "regraft.compiler")):
            raise ImportError(f"{name} must not be imported here")

sys.meta_path.insert(0, Blocked())

import torch
import regraft

model = regraft.load(sys.argv[1], allow_native=True)
assert [step.executable.backend for step in model.plan.steps] == ["tvm"]
torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
model.save(sys.argv[1] + ".again")
assert "tvm" not in sys.modules
"""


def test_an_artefact_runs_without_tvm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 3)).eval(), torch.randn(5, 8)
    sizes = {"input": {0: torch.export.Dim("n", min=1, max=64)}}
    compiled = regraft.compile(model, (x[:2],), dynamic_shapes=sizes, backends=("tvm",))
    compiled.save(tmp_path / "model")
    torch.save(x, tmp_path / "x.pt")
    files = [str(tmp_path / file) for file in ("model", "x.pt", "y.pt")]
    run = subprocess.run([sys.executable, "-c", LOADER, *files], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert torch.equal(torch.load(tmp_path / "y.pt"), compiled(x))
    again = regraft.load(tmp_path / "model.again")  # its portable form is still there
    assert [step.executable.backend for step in again.plan.steps] == ["eager"]


def test_an_artefact_has_a_portable_form(tmp_path: Path) -> None:
    model, x = nn.Linear(8, 3).eval(), torch.randn(5, 8)
    regraft.compile(model, (x,), backends=("tvm",)).save(tmp_path / "model")
    loaded = regraft.load(tmp_path / "model")
    assert [step.executable.backend for step in loaded.plan.steps] == ["eager"]
    assert "its portable form runs on 'eager'" in loaded.report.to_dict()["notes"][-1]
    torch.testing.assert_close(loaded(x), model(x).detach())


# -- what is missing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pins", "expected"),
    [
        ({"apache-tvm-of-no-kind": "1"}, r"needs apache-tvm-of-no-kind==1, which is not installed"),
        (
            {"apache-tvm-ffi": "0.1.15.post2"},
            r"needs apache-tvm-ffi==0\.1\.15\.post2, and 0\.1\.14\.post0 is",
        ),
    ],
)
def test_no_tvm_or_another_one(monkeypatch: pytest.MonkeyPatch, pins: dict[str, str], expected: str) -> None:
    monkeypatch.setattr(library, "PINS", pins)
    with pytest.raises(BackendError, match=expected) as raised:
        backend("tvm")
    assert "pip install 'regraft[tvm]'" in str(raised.value)
    compiled = regraft.compile(nn.ReLU().eval(), (torch.randn(3),), backends=("tvm", "eager"))
    assert any("left out" in note for note in compiled.report.to_dict()["notes"])


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BackendError, match="links kernels with a C compiler, and there is none: install gcc"):
        backend("tvm")
    monkeypatch.setenv("CC", "/opt/cc")
    assert library.missing() is None


def test_a_worker_that_ends_is_an_error_and_is_started_again() -> None:
    tvm: Any = backend("tvm")
    lowered(tvm, lambda op, x: op.aten.exp(x), "f32[3]")
    tvm._builder._process.kill()
    tvm._builder._process.wait()
    x = torch.randn(3)
    executable = lowered(tvm, lambda op, x: op.aten.neg(x), "f32[3]")
    assert torch.equal(executable.run([x], {})[0], -x)


def test_an_interrupted_request_is_not_answered_later(monkeypatch: pytest.MonkeyPatch) -> None:
    tvm: Any = backend("tvm")
    lowered(tvm, lambda op, x: op.aten.exp(x), "f32[3]")
    process = tvm._builder._process

    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "stdout", SimpleNamespace(readline=interrupted, close=process.stdout.close))
    with pytest.raises(KeyboardInterrupt):
        lowered(tvm, lambda op, x: op.aten.abs(x), "f32[3]")
    assert process.returncode is not None
    x = torch.randn(3)
    executable = lowered(tvm, lambda op, x: op.aten.neg(x), "f32[3]")
    assert torch.equal(executable.run([x], {})[0], -x)


CALLER = """
from regraft.backends import LowerOptions, backend
from regraft.conformance import Case
from regraft.testing import GraphConstants, assert_close

def build(op, x):
    for size in range(1000, 700, -1):
        x = op.aten.softmax.int(op.aten.slice.Tensor(x, 1, 0, size, 1), 1)
    return x

tvm = backend("tvm")
print(tvm._builder._running().pid, flush=True)
tvm.lower(Case("", build, ("f32[4, 1001]",)).function(), GraphConstants(), LowerOptions())
"""


def test_a_worker_ends_with_its_caller_whatever_it_is_at() -> None:
    """It is in the middle of 300 kernels, which would take it a minute."""
    caller = subprocess.Popen([sys.executable, "-c", CALLER], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    with caller.stdout:
        worker = int(caller.stdout.readline())
    time.sleep(1.5)  # until it is at work
    assert _is_running(worker)
    caller.kill()
    caller.wait()
    _await_end(worker)


def _await_end(process: int) -> None:
    end = time.monotonic() + 60
    while _is_running(process) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _is_running(process)


FORKS = """
import os
import time

from regraft.backends import backend

builder = backend("tvm")._builder
worker = builder._running().pid
with builder._lock:
    child = os.fork()
    if child:
        os.write(1, f"{worker} {child}\\n".encode())
    else:
        os.write(1, f"{builder._lock.acquire(timeout=1.0)}\\n".encode())
    time.sleep(120)
"""


def test_a_forked_process_neither_keeps_the_worker_nor_waits_for_it() -> None:
    caller = subprocess.Popen([sys.executable, "-c", FORKS], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    with caller.stdout:  # a line is one write: both processes share the pipe
        lines = sorted(caller.stdout.readline().split() for _ in range(2))
    (worker, child), answer = map(int, lines[0]), lines[1]
    try:
        assert answer == ["True"], "the lock that another thread held is free"
        assert _is_running(worker)
        caller.kill()
        caller.wait()
        _await_end(worker)
        assert _is_running(child)
    finally:
        caller.kill()
        os.kill(child, signal.SIGKILL)


CALLED_BEFORE_A_FORK = """
import os

import torch

import regraft

torch.set_num_threads(1)  # its own workers do not survive a fork either
model, x = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Tanh()).eval(), torch.randn(64, 256)
compiled = regraft.compile(model, (x,), backends=("tvm",), cache=False)
expected = compiled(x)
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
same = [torch.equal(compiled(x), expected) for _ in range(2)]
os._exit(0 if all(same) else 1)
"""


def test_a_forked_process_calls_what_its_parent_has_called() -> None:
    command = [sys.executable, "-c", CALLED_BEFORE_A_FORK]
    with subprocess.Popen(command, start_new_session=True) as caller:
        try:
            assert caller.wait(timeout=120) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(caller.pid, signal.SIGKILL)


def test_a_worker_imports_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "signal.py").write_text("raise SystemExit('not the library')")
    monkeypatch.chdir(tmp_path)
    own: Any = backend("tvm")
    assert own._builder._running().poll() is None


class Forgetful(dict[str, Any]):
    """Another thread drops each entry at once."""

    def __setitem__(self, key: str, value: Any) -> None:
        pass


def test_what_another_thread_drops_is_still_returned(tvm: Any) -> None:
    own: Any = backend("tvm")
    own._builder, own._known = tvm._builder, Forgetful()
    x = torch.randn(3)
    executable = lowered(own, lambda op, x: op.aten.neg(x), "f32[3]")
    assert torch.equal(executable.run([x], {})[0], -x)


def _is_running(pid: int) -> bool:
    """Whether there is such a process, and not only what is left of it until somebody asks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_library_at_all() -> None:
    with pytest.raises(BackendError, match="kernels cannot be loaded"):
        library.load(b"no machine code")
