"""Shared by the risk proofs: the machine, quiet-round timing, statistics, and the GEMM template in TIR."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parents[1] / "results"
FOREIGN_LIMIT = 0.10  # cores other processes may use in a round that counts
TICKS = os.sysconf("SC_CLK_TCK")

ROOF_SOURCE = r"""
#include <immintrin.h>
#include <stddef.h>
float fma_loop(long n) {
  __m512 acc[16], x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
  for (int i = 0; i < 16; i++) acc[i] = _mm512_set1_ps(i);
  for (long k = 0; k < n; k++)
    for (int i = 0; i < 16; i++) acc[i] = _mm512_fmadd_ps(acc[i], x, y);
  for (int i = 1; i < 16; i++) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  return _mm512_reduce_add_ps(acc[0]);
}
float read_loop(const float *p, size_t n, long repeats) {
  __m512 acc[8];
  for (int i = 0; i < 8; i++) acc[i] = _mm512_setzero_ps();
  for (long r = 0; r < repeats; r++)
    for (size_t k = 0; k + 128 <= n; k += 128)
      for (int i = 0; i < 8; i++) acc[i] = _mm512_add_ps(acc[i], _mm512_loadu_ps(p + k + 16 * i));
  for (int i = 1; i < 8; i++) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  return _mm512_reduce_add_ps(acc[0]);
}
"""


class Roof:
    """f32 FMA peak and read bandwidth of two threads (best of four), the latter at a given working set."""

    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        folder = tempfile.mkdtemp()
        source, library = Path(folder, "roof.c"), Path(folder, "roof.so")
        source.write_text(ROOF_SOURCE)
        subprocess.run(
            ["gcc", "-O3", "-march=native", "-shared", "-fPIC", str(source), "-o", str(library)], check=True
        )
        self.lib = ctypes.CDLL(str(library))
        self.lib.fma_loop.argtypes = [ctypes.c_long]
        self.lib.read_loop.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
        self.pool = ThreadPoolExecutor(2)
        self.block = aligned((32 << 20,))  # 128 MiB, more than any working set asked for
        self.block[:] = 0

    def _both(self, call: Callable[[int], object]) -> float:
        start = time.perf_counter()
        list(self.pool.map(call, range(2)))
        return time.perf_counter() - start

    def gflops(self, steps: int = 2_000_000) -> float:
        return (
            2 * steps * 16 * 32 / min(self._both(lambda _: self.lib.fma_loop(steps)) for _ in range(4)) / 1e9
        )

    def gbytes(self, working_set: int) -> float:
        half = min(working_set // 8, self.block.size // 2) // 128 * 128
        repeats = max(2, int(2e8 / (half * 4)))
        base = self.block.ctypes.data
        seconds = min(
            self._both(lambda t: self.lib.read_loop(base + 4 * half * t, half, repeats)) for _ in range(4)
        )
        return 2 * 4 * half * repeats / seconds / 1e9


def aligned(shape: tuple[int, ...], alignment: int = 64) -> np.ndarray:
    """An uninitialised f32 array whose first byte is aligned (TVM kernels segfault on less)."""
    count = int(np.prod(shape)) * 4
    raw = np.empty(count + alignment, np.uint8)
    offset = -raw.ctypes.data % alignment
    return raw[offset : offset + count].view(np.float32).reshape(shape)


def machine(*packages: str) -> dict[str, object]:
    model = next(
        x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "load_at_start": os.getloadavg(),
        "note": "shared machine: other processes compile and test at the same time; timings are interleaved, "
        f"rounds in which others used more than {FOREIGN_LIMIT:.0%} of one core are dropped where possible",
    }


def _busy_and_own() -> tuple[float, float, float]:
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    own = os.times()
    return (sum(fields) - fields[3] - fields[4]) / TICKS, own.user + own.system, time.perf_counter()


def foreign_cores(before: tuple[float, float, float]) -> float:
    """Cores used by everyone else (hypervisor steal included) since `before`."""
    after = _busy_and_own()
    wall = after[2] - before[2]
    return max(0.0, (after[0] - before[0] - (after[1] - before[1])) / wall)


class QuietRounds:
    """Runs rounds, keeps those in which the machine was ours; gives up waiting after `patience` seconds."""

    def __init__(self, patience: float) -> None:
        self.patience, self.dropped, self.noisy_kept = patience, 0, 0

    def run(self, body: Callable[[], object]) -> None:
        """`body` returns a callable that commits its samples; it is called only for a round that counts."""
        while True:
            before = _busy_and_own()
            start = time.perf_counter()
            commit = body()
            if foreign_cores(before) <= FOREIGN_LIMIT or self.patience <= 0:
                self.noisy_kept += self.patience <= 0
                commit()  # type: ignore[operator]
                return
            self.dropped += 1
            while self.patience > 0:
                before = _busy_and_own()
                time.sleep(0.25)
                if foreign_cores(before) <= FOREIGN_LIMIT:
                    break
                self.patience -= 0.25
            self.patience -= time.perf_counter() - start if self.dropped > 40 else 0.0


def median_interval(values: list[float] | np.ndarray, draws: int = 2000) -> dict[str, float]:
    """Median and its bootstrapped 95 % interval."""
    data = np.asarray(values, float)
    picks = np.random.default_rng(0).choice(data, (draws, data.size))
    low, high = np.percentile(np.median(picks, axis=1), [2.5, 97.5])
    return {"median": float(np.median(data)), "low": float(low), "high": float(high), "n": int(data.size)}


def save(name: str, payload: dict[str, object]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / name).write_text(json.dumps(payload, indent=1, default=float) + "\n")


def pack(weight: np.ndarray, width: int) -> np.ndarray:
    """[K, N] to zero-padded, 64-byte aligned [ceil(N / width)][K][width]."""
    depth, columns = weight.shape
    blocks = -(-columns // width)
    padded = np.zeros((depth, blocks * width), np.float32)
    padded[:, :columns] = weight
    out = aligned((blocks, depth, width))
    out[:] = padded.reshape(depth, blocks, width).transpose(1, 0, 2)
    return out


def gemm_template(
    m: int, n: int, k: int, rows: int = 4, width: int = 64, depth: int | None = None, unroll: int = 4
):
    """C[m, n] = A[m, k] @ packed W: a `rows` x `width` register tile, `depth` of k a pass."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    depth = depth or k
    assert k % depth == 0
    assert width % 16 == 0
    vectors, blocks = width // 16, -(-n // width)

    def lanes(start):
        return T.ramp(start, 1, 16)

    with IRBuilder() as builder, T.prim_func():
        T.func_name("gemm")
        T.func_attr({"tirx.noalias": True})
        handles = [T.arg(name, T.handle()) for name in "awc"]
        a = T.match_buffer(handles[0], (m, k), "float32")
        w = T.match_buffer(handles[1], (blocks, k, width), "float32")
        c = T.match_buffer(handles[2], (m, n), "float32")

        def tile(row, count: int, block, k0, first) -> None:
            acc = T.alloc_buffer((count * width,), "float32", scope="local")
            if hasattr(acc, "__enter__"):
                acc = acc.__enter__()
            for i in range(count):
                for j in range(vectors):
                    T.buffer_store(acc, T.broadcast(T.float32(0), 16), [lanes(i * width + j * 16)])

            def step(kk) -> None:
                for i in range(count):
                    scalar = T.broadcast(a[row + i, kk], 16)
                    for j in range(vectors):
                        at = [lanes(i * width + j * 16)]
                        T.buffer_store(acc, acc[at[0]] + scalar * w[block, kk, lanes(j * 16)], at)

            with T.serial(0, depth // unroll) as outer:
                for inner in range(unroll):
                    step(k0 + outer * unroll + inner)
            for rest in range(depth - depth % unroll, depth):
                step(k0 + rest)
            for i in range(count):
                for j in range(vectors):
                    write(row + i, block, j, acc, i * width + j * 16, first)

        def write(row, block, j: int, acc, at: int, first) -> None:
            column = block * width + j * 16

            def whole() -> None:
                value = acc[lanes(at)]
                if depth == k:
                    T.buffer_store(c, value, [row, lanes(column)])
                    return
                with T.If(first):
                    with T.Then():
                        T.buffer_store(c, value, [row, lanes(column)])
                    with T.Else():
                        T.buffer_store(c, c[row, lanes(column)] + value, [row, lanes(column)])

            if n % width == 0:
                whole()
                return
            assert depth == k, "k blocking is only written for whole column blocks"
            with T.If(column + 16 <= n):
                with T.Then():
                    whole()
                with T.Else():
                    for v in range(16):
                        with T.If(column + v < n), T.Then():
                            T.buffer_store(c, acc[at + v], [row, column + v])

        with T.parallel(0, blocks) as block, T.serial(0, k // depth) as k_block:
            with T.serial(0, m // rows) as row_block:
                tile(row_block * rows, rows, block, k_block * depth, k_block == 0)
            if m % rows:
                tile(m - m % rows, m % rows, block, k_block * depth, k_block == 0)
    return builder.get()


def compile_gemm(*shape: int, **tile: int) -> Callable[..., None]:
    import tvm

    target = tvm.target.Target({"kind": "llvm", "mcpu": "znver4", "num-cores": 2})
    return tvm.compile(tvm.IRModule({"gemm": gemm_template(*shape, **tile)}), target=target)["gemm"]


def ort_session(weights: list[np.ndarray], gelu: list[bool], options: dict[str, str]):
    """A two-thread session: a chain of MatMul, each with a Gelu after it where asked."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    nodes, current = [], "x"
    for i, has_gelu in enumerate(gelu):
        nodes.append(helper.make_node("MatMul", [current, f"w{i}"], [current := f"m{i}"]))
        if has_gelu:
            nodes.append(helper.make_node("Gelu", [current], [current := f"g{i}"]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", weights[0].shape[0]])],
        [helper.make_tensor_value_info(current, TensorProto.FLOAT, ["m", weights[-1].shape[1]])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = 2
    for key, value in options.items():
        session_options.add_session_config_entry(key, value)
    return ort.InferenceSession(model.SerializeToString(), session_options, ["CPUExecutionProvider"])


def bound(session, x: np.ndarray, out: np.ndarray) -> Callable[[], None]:
    """A call of the session that reads and writes these very arrays (bound by pointer, no copy)."""
    binding = session.io_binding()
    binding.bind_input(session.get_inputs()[0].name, "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output(session.get_outputs()[0].name, "cpu", 0, np.float32, out.shape, out.ctypes.data)

    def call(keep: tuple = (x, out)) -> None:  # a binding by pointer does not own its buffers
        session.run_with_iobinding(binding)

    return call
