"""Risk 4: does one TVM schedule template with few parameters reach 85 % of each GEMM's own ceiling?

The template (`_common.gemm_template`) has packed weights, one register tile, 16-wide vectors and parallel
column blocks; per shape four to six candidates are measured. The ceiling is min(measured FMA peak, flops /
bytes * read bandwidth measured at the same working set). Peers: onnxruntime MatMul (weight as initializer)
and torch linear. Then the same GEMM runs between two onnxruntime sessions (MatMul + Gelu) to see whether it
keeps its speed.

    flock /tmp/bench.lock python benchmarks/risks/risk4_gemm_template.py
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

os.environ["TVM_NUM_THREADS"] = "2"  # one core of two is used otherwise
os.environ["TVM_BIND_THREADS"] = (
    "0"  # a pinned worker shares a core with the caller when the other one is taken
)
os.environ["TVM_THREAD_POOL_SPIN_COUNT"] = "2000"  # workers that spin for long slow down whoever comes next

import numpy as np
import torch
import tvm_ffi
from _common import (
    QuietRounds,
    Roof,
    aligned,
    bound,
    compile_gemm,
    machine,
    median_interval,
    ort_session,
    pack,
    save,
)

TARGET = 0.85
SHAPES = [  # m, n, k, copies of the weight used in turn (8: weights come from memory, as in a large model)
    (128, 2816, 1024, 1),
    (128, 3072, 768, 1),
    (128, 768, 3072, 1),
    (512, 1024, 2816, 1),
    (37, 1003, 517, 1),
    (1, 2816, 1024, 1),
    (1, 2816, 1024, 8),
]
ROUNDS, SLICE, PAUSE = 15, 0.03, 0.01
Call = Callable[[], object]


def candidates(m: int, n: int, k: int) -> list[dict[str, int]]:
    if m == 1:
        return [
            {"rows": 1, "width": w, "unroll": u} for w, u in ((64, 4), (64, 8), (64, 16), (128, 4), (128, 8))
        ]
    tiles = [{"rows": r, "width": w, "unroll": 4} for r, w in ((4, 64), (5, 64), (6, 64), (8, 32))]
    if n % 64 == 0:
        tiles += [{"rows": r, "width": 64, "unroll": 4, "depth": k // 2} for r in (4, 5)]
    return tiles


def tvm_calls(x: np.ndarray, weights: list[np.ndarray], out: np.ndarray, tile: dict[str, int]) -> list[Call]:
    kernel = compile_gemm(x.shape[0], out.shape[1], x.shape[1], **tile)
    a, c = tvm_ffi.from_dlpack(x), tvm_ffi.from_dlpack(out)
    packed = [tvm_ffi.from_dlpack(pack(w, tile["width"])) for w in weights]
    return [lambda w=w: kernel(a, w, c) for w in packed]


def time_calls(calls: list[Call]) -> float:
    """Median seconds of one call over a slice of time, after a warm-up."""
    time.sleep(PAUSE)
    for call in calls[:3] * 3:
        call()
    samples, end = [], time.perf_counter() + SLICE
    while time.perf_counter() < end or len(samples) < 5:
        start = time.perf_counter()
        calls[len(samples) % len(calls)]()
        samples.append(time.perf_counter() - start)
    return float(np.median(samples))


def interleave(
    contenders: dict[str, Callable[[], float]], rounds: int, quiet: QuietRounds
) -> dict[str, np.ndarray]:
    names, rows = list(contenders), []
    order = np.random.default_rng(0)
    for _ in range(rounds):

        def body() -> Call:
            row = {names[i]: contenders[names[i]]() for i in order.permutation(len(names))}
            return lambda: rows.append(row)

        quiet.run(body)
    return {name: np.array([row[name] for row in rows]) for name in names}


def relative_error(out: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(out - exact).max() / np.abs(exact).max())


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / 2**0.5))


def measure_shape(shape: tuple[int, int, int, int], roof: Roof, quiet: QuietRounds) -> dict[str, object]:
    m, n, k, copies = shape
    rng = np.random.default_rng(1)
    x, out = aligned((m, k)), aligned((m, n))
    x[:] = rng.standard_normal((m, k))
    weights = [rng.standard_normal((k, n)).astype(np.float32) for _ in range(copies)]
    exact = x.astype(np.float64) @ weights[0]

    tiles = {str(tile): tile for tile in candidates(m, n, k)}
    start = time.perf_counter()
    built = {name: tvm_calls(x, weights, out, tile) for name, tile in tiles.items()}
    build_seconds = (time.perf_counter() - start) / len(tiles)
    trial = interleave({name: lambda c=c: time_calls(c) for name, c in built.items()}, 5, quiet)
    best = min(trial, key=lambda name: float(np.median(trial[name])))

    ort_calls = [bound(ort_session([w], [False], {}), x, out) for w in weights]
    tx, tw = torch.from_numpy(x), [torch.from_numpy(np.ascontiguousarray(w.T)) for w in weights]
    torch_calls = [lambda w=w: torch.nn.functional.linear(tx, w) for w in tw]
    errors = {"torch": relative_error(torch_calls[0]().numpy(), exact)}
    for name, calls in (("template", built[best]), ("ort", ort_calls)):
        out[:] = np.nan
        calls[0]()
        errors[name] = relative_error(out, exact)

    touched = 4 * (k * n + m * k + m * n)
    contenders = {
        "peak": roof.gflops,
        "bandwidth": lambda: roof.gbytes(touched if copies == 1 else 4 * k * n * copies),
        "template": lambda: time_calls(built[best]),
        "template_again": lambda: time_calls(built[best]),
        "ort": lambda: time_calls(ort_calls),
        "torch": lambda: time_calls(torch_calls),
    }
    raw = interleave(contenders, ROUNDS, quiet)
    work = 2 * m * n * k / 1e9
    ceiling = np.minimum(np.median(raw["peak"]), work / (touched / 1e9) * np.median(raw["bandwidth"]))
    share = median_interval(work / raw["template"] / ceiling)
    return {
        "shape": {"m": m, "n": n, "k": k, "weight_copies": copies},
        "tile": tiles[best],
        "candidates_gflops": {name: work / float(np.median(t)) for name, t in trial.items()},
        "build_seconds_each": build_seconds,
        "peak_gflops": median_interval(raw["peak"]),
        "bandwidth_gbytes": median_interval(raw["bandwidth"]),
        "ceiling_gflops": float(ceiling),
        "gflops": {name: median_interval(work / raw[name]) for name in ("template", "ort", "torch")},
        "share_of_ceiling": share,
        "speedup_over_ort": median_interval(raw["ort"] / raw["template"]),
        "speedup_over_torch": median_interval(raw["torch"] / raw["template"]),
        "noise_floor_a_vs_a": median_interval(raw["template_again"] / raw["template"]),
        "max_error_over_max_value_vs_fp64": errors,
        "goes_to": "template" if share["median"] >= TARGET else "library",
    }


def measure_in_plan(
    m: int, n: int, k: int, tile: dict[str, int], options: dict[str, str], quiet: QuietRounds
) -> dict:
    """Session (k to k, Gelu), GEMM (k to n), session (n to k, Gelu); GEMM from TVM or ORT, or all in ORT."""
    rng = np.random.default_rng(2)
    x, h, y, z = aligned((m, k)), aligned((m, k)), aligned((m, n)), aligned((m, k))
    x[:] = rng.standard_normal((m, k))
    sizes = ((k, k), (k, n), (n, k))
    weights = [(rng.standard_normal(s) / s[0] ** 0.5).astype(np.float32) for s in sizes]
    before = bound(ort_session(weights[:1], [True], options), x, h)
    after = bound(ort_session(weights[2:], [True], options), y, z)
    one = bound(ort_session(weights, [True, False, True], options), x, z)
    middle = {
        "tvm": tvm_calls(h, weights[1:2], y, tile)[0],
        "ort": bound(ort_session(weights[1:2], [False], options), h, y),
    }
    inside: dict[str, list[float]] = {"tvm": [], "ort": []}
    hidden = gelu(x.astype(np.float64) @ weights[0])
    exact = gelu(hidden @ weights[1] @ weights[2])

    def plan(name: str, first: Call = before, last: Call = after) -> Call:
        def call() -> None:
            first()
            start = time.perf_counter()
            middle[name]()
            inside[name].append(time.perf_counter() - start)
            last()

        return call

    def gemm_inside(name: str, *around: Call) -> float:
        inside[name].clear()
        time_calls([plan(name, *around)])
        return float(np.median(inside[name][3:]))

    def check() -> dict[str, dict[str, float]]:
        """Error against fp64 over ten runs on poisoned buffers; what is not written stays NaN and counts."""
        found = {}
        for name, call in (("tvm", plan("tvm")), ("ort", plan("ort")), ("one_ort_session", one)):
            worst, unwritten = 0.0, 0
            for _ in range(10):
                h[:] = y[:] = z[:] = np.nan
                call()
                unwritten += int(np.isnan(z).sum())
                worst = max(worst, relative_error(z, exact))
            found[name] = {"max_error_vs_fp64": worst, "unwritten": unwritten}
        return found

    def touch() -> None:
        for weight in (weights[0], weights[2]):
            weight.sum()

    plan("tvm")()  # on buffers as allocated, which may hold the values of an earlier call
    first_result = z.copy()
    one()
    first_difference = relative_error(first_result, z)
    checks = {"before_timing": check()}
    before()
    contenders = {f"{name}_alone": lambda c=call: time_calls([c]) for name, call in middle.items()}
    contenders["tvm_alone_other_weights_read"] = lambda: gemm_inside("tvm", touch, lambda: None)
    contenders |= {f"{name}_in_plan": lambda name=name: gemm_inside(name) for name in middle}
    contenders |= {f"plan_{name}": lambda name=name: time_calls([plan(name)]) for name in middle}
    contenders["plan_one_ort_session"] = lambda: time_calls([one])
    raw = interleave(contenders, ROUNDS, quiet)
    checks["after_timing"] = check()
    return {
        "shape": {"m": m, "n": n, "k": k},
        "tile": tile,
        "ort_options": options,
        "ms": {name: median_interval(1e3 * t) for name, t in raw.items()},
        "tvm_in_plan_over_alone": median_interval(raw["tvm_in_plan"] / raw["tvm_alone"]),
        "tvm_in_plan_over_other_weights_read": median_interval(
            raw["tvm_in_plan"] / raw["tvm_alone_other_weights_read"]
        ),
        "plan_tvm_over_one_ort_session": median_interval(raw["plan_tvm"] / raw["plan_one_ort_session"]),
        "first_difference_tvm_vs_one_session": first_difference,
        "checks": checks,
    }


def main() -> None:
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    quiet, roof = QuietRounds(patience=150), Roof()
    info = machine("apache-tvm", "apache-tvm-ffi", "onnxruntime", "torch", "numpy")
    print("m x n x k (weights)      tile  ceiling  template  share             ORT  torch   A/A   error  to")
    shapes = []
    for shape in SHAPES:
        r = measure_shape(shape, roof, quiet)
        shapes.append(r)
        g, s, tile = r["gflops"], r["share_of_ceiling"], r["tile"]
        label = "{}x{}x{} ({})".format(*shape)
        cells = [
            f"{label:22} {tile['rows']:3}x{tile['width']:<3} {r['ceiling_gflops']:7.0f}",
            f"{g['template']['median']:8.0f}  {s['median']:5.2f} [{s['low']:.2f} {s['high']:.2f}]",
            f"{g['ort']['median']:6.0f} {g['torch']['median']:6.0f}  {r['noise_floor_a_vs_a']['median']:.3f}",
            f" {r['max_error_over_max_value_vs_fp64']['template']:.0e}  {r['goes_to']}",
        ]
        print(*cells, flush=True)
    print("in plan: TVM GEMM / alone, / alone with the other weights read, plan / one ORT session")
    plans = []
    no_spin, stop = {"session.intra_op.allow_spinning": "0"}, {"session.force_spinning_stop": "1"}
    keys = ("tvm_in_plan_over_alone", "tvm_in_plan_over_other_weights_read", "plan_tvm_over_one_ort_session")
    for index, options in (
        (0, {}),
        (0, no_spin),
        (0, stop),
        (1, {}),
        (1, stop),
        (5, {}),
        (5, no_spin),
        (5, stop),
    ):
        m, n, k, _ = SHAPES[index]
        r = measure_in_plan(m, n, k, shapes[index]["tile"], options, quiet)
        plans.append(r)
        cells = [f"{r[key]['median']:6.3f} [{r[key]['low']:.3f} {r[key]['high']:.3f}]" for key in keys]
        found = [one for check in r["checks"].values() for one in check.values()]
        error = max(one["max_error_vs_fp64"] for one in found)
        unwritten = sum(one["unwritten"] for one in found)
        first = r["first_difference_tvm_vs_one_session"]
        print(f"{m}x{n}x{k} {options or 'default'}", *cells, end=" ")
        print(f"error {error:.1e} unwritten {unwritten} first difference {first:.1e}", flush=True)
    noise = {
        "dropped_rounds": quiet.dropped,
        "noisy_rounds_kept": quiet.noisy_kept,
        "load_at_end": os.getloadavg(),
    }
    save("risk_4_gemm_template.json", {"machine": info, "rounds": noise, "gemm": shapes, "in_plan": plans})
    print(noise)


if __name__ == "__main__":
    main()
