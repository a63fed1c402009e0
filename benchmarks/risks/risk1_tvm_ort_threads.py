"""Risk 1: can a TVM kernel and an ONNX Runtime session alternate on the same buffers at no cost to either?

Each has a thread pool of its own, whose idle workers spin. Each policy runs in a process of its own (the TVM
pool is configured by the environment) and alternates an ORT session (MatMul + Gelu, buffer p -> q) with a TVM
GEMM (q -> p) on two 64-byte-aligned buffers, bound by pointer and by DLPack. "Alone" runs two instances with
different weights in turn, so that it touches as many weights as the alternation. Two reference processes use
one library only.

    flock /tmp/bench.lock python benchmarks/risks/risk1_tvm_ort_threads.py
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from _common import (
    QuietRounds,
    aligned,
    bound,
    compile_gemm,
    machine,
    median_interval,
    ort_session,
    pack,
    save,
)

LIMIT = 1.05
SIZES = {"small": (16, 256), "medium": (64, 768), "large": (128, 1536)}  # rows, width (square weights)
ROUNDS, SLICE, PATIENCE = 11, 0.03, 12.0
NO_SPIN = {"session.intra_op.allow_spinning": "0"}
STOP = {"session.force_spinning_stop": "1"}  # workers spin within a run, not after it
BRIEF = {"session.intra_op.spin_duration_us": "50"}
Call = Callable[[], object]


def policy(ort: dict[str, str], spin: int | None = None, bind: int | None = None, **more: object) -> dict:
    env = {"TVM_NUM_THREADS": "2"}
    env |= {} if spin is None else {"TVM_THREAD_POOL_SPIN_COUNT": str(spin)}
    env |= {} if bind is None else {"TVM_BIND_THREADS": str(bind)}
    return {"ort": ort, "env": env, **more}


PINNED = STOP | {"session.intra_op_thread_affinities": "2"}
POLICIES = {
    "reference: ORT only": policy({}, only="ort"),
    "reference: TVM only": policy({}, only="tvm"),
    "as shipped (TVM on 1 thread)": policy({}) | {"env": {}},
    "both spin": policy({}),
    "TVM spins": policy(NO_SPIN),
    "ORT spins": policy({}, spin=0),
    "neither spins": policy(NO_SPIN, spin=0),
    "ORT spins 50 us, TVM 2000": policy(BRIEF, spin=2000),
    "ORT spins in run, TVM never": policy(STOP, spin=0),
    "ORT spins in run, TVM always": policy(STOP),
    "ORT spins in run, TVM 200": policy(STOP, spin=200),
    "ORT spins in run, TVM 2000": policy(STOP, spin=2000),
    "ORT spins in run, TVM 200, unbound": policy(STOP, spin=200, bind=0),
    "ORT spins in run, TVM 2000, unbound": policy(STOP, spin=2000, bind=0),
    "ORT spins in run, TVM 2000, all pinned": policy(PINNED, spin=2000, bind=1, pin_caller=True),
}
MIXED = [name for name, config in POLICIES.items() if "only" not in config]


def settle() -> None:
    """Waits until this process's workers sleep (at most half a second)."""
    for _ in range(25):
        before = time.process_time()
        time.sleep(0.02)
        if time.process_time() - before < 0.002:
            return


def time_pair(first: Call, second: Call) -> float:
    """Median seconds of `first` followed by `second`, the first quarter of the slice left out as warm-up."""
    settle()
    samples: list[float] = []
    end = time.perf_counter() + SLICE
    while time.perf_counter() < end or len(samples) < 8:
        start = time.perf_counter()
        first()
        second()
        samples.append(time.perf_counter() - start)
    return float(np.median(samples[len(samples) // 4 :]))


def build(rows: int, width: int, config: dict) -> tuple[dict[str, tuple[Call, Call]], float | None]:
    """The pairs of calls to time, and the largest error of one alternation against fp64."""
    import tvm_ffi

    rng = np.random.default_rng(0)
    p, q = aligned((rows, width)), aligned((rows, width))
    p[:] = rng.standard_normal((rows, width))
    q[:] = rng.standard_normal((rows, width))
    weights = [(rng.standard_normal((width, width)) / width**0.5).astype(np.float32) for _ in range(4)]
    pairs: dict[str, tuple[Call, Call]] = {}
    if config.get("only") != "tvm":
        sessions = [bound(ort_session([w], [True], config["ort"]), p, q) for w in weights[:2]]
        pairs["ort"] = pairs["ort_again"] = (sessions[0], sessions[1])
        pairs["ort_single"] = (
            sessions[0],
            sessions[0],
        )  # two sessions are two pools, which also disturb each other
    if config.get("only") != "ort":
        gemm = compile_gemm(rows, width, width, rows=4, width=64)
        a, c = tvm_ffi.from_dlpack(q), tvm_ffi.from_dlpack(p)
        packed = [tvm_ffi.from_dlpack(pack(w, 64)) for w in weights[2:]]
        pairs["tvm"] = (lambda: gemm(a, packed[0], c), lambda: gemm(a, packed[1], c))
    if "only" in config:
        return pairs, None
    pairs["alternating"] = (pairs["ort"][0], pairs["tvm"][0])
    h = p.astype(np.float64) @ weights[0]
    exact = 0.5 * h * (1 + np.vectorize(math.erf)(h / 2**0.5)) @ weights[2]
    for call in pairs["alternating"]:
        call()
    return pairs, float(np.abs(p - exact).max() / np.abs(exact).max())


def child(config: dict) -> None:
    if config.get("pin_caller"):
        os.sched_setaffinity(0, {0})  # before any pool exists: its threads inherit this unless bound
    built = {size: build(*shape, config) for size, shape in SIZES.items()}
    print(json.dumps({size: error for size, (_, error) in built.items()}), flush=True)
    quiet = QuietRounds(PATIENCE)
    for line in sys.stdin:
        pairs = built[line.strip()][0]
        sample: dict[str, float] = {}

        def body(pairs: dict = pairs, sample: dict = sample) -> Call:
            times = {name: time_pair(*pair) for name, pair in pairs.items()}
            return lambda: sample.update(times)

        quiet.run(body)
        print(json.dumps({"sample": sample, "dropped": quiet.dropped, "noisy": quiet.noisy_kept}), flush=True)


def measure() -> tuple[dict[tuple[str, str], list[dict[str, float]]], dict, dict]:
    """Samples by policy and size from interleaved rounds, errors against fp64, and rounds dropped."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TVM_")}
    children = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--child", json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | config["env"],
        )
        for name, config in POLICIES.items()
    }
    errors = {name: json.loads(process.stdout.readline()) for name, process in children.items()}
    samples: dict[tuple[str, str], list[dict[str, float]]] = {}
    noise: dict[str, dict[str, int]] = {}
    order = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for size in SIZES:
            for name in order.permutation(list(children)):
                process = children[name]
                process.stdin.write(size + "\n")
                process.stdin.flush()
                reply = json.loads(process.stdout.readline())
                samples.setdefault((str(name), size), []).append(reply["sample"])
                noise[str(name)] = {key: reply[key] for key in ("dropped", "noisy")}
    for process in children.values():
        process.stdin.close()
        process.wait()
    return samples, errors, noise


def main() -> None:
    info = machine("apache-tvm", "apache-tvm-ffi", "onnxruntime", "numpy")
    samples, errors, noise = measure()

    def column(name: str, size: str, key: str) -> np.ndarray:
        return np.array([row[key] for row in samples[name, size]])

    floor: dict[str, dict[str, float]] = {}
    table = []
    for size in SIZES:
        best_ort = column("reference: ORT only", size, "ort")
        best_tvm = column("reference: TVM only", size, "tvm")
        floor[size] = median_interval(column("reference: ORT only", size, "ort_again") / best_ort)
        us_ort, us_tvm = (5e5 * float(np.median(t)) for t in (best_ort, best_tvm))
        print(
            f"\n{size} {SIZES[size]}, us per call with one library only: ORT {us_ort:.0f}, TVM {us_tvm:.0f};",
            end=" ",
        )
        print(f"A/A {floor[size]['median']:.3f} [{floor[size]['low']:.3f} {floor[size]['high']:.3f}]")
        print(f"{'policy':40}    ORT    TVM  alternating  / own sum            / reference sum")
        for name in MIXED:
            ort, tvm, both = (column(name, size, key) for key in ("ort", "tvm", "alternating"))
            own = median_interval(2 * both / (ort + tvm))
            reference = median_interval(2 * both / (best_ort + best_tvm))
            times = {"ort": ort / 2, "tvm": tvm / 2, "alternating": both}
            table.append(
                {
                    "size": size,
                    "policy": name,
                    "us": {key: median_interval(1e6 * value) for key, value in times.items()},
                    "alternating_over_own_sum": own,
                    "alternating_over_reference_sum": reference,
                    "ort_alone_over_reference": median_interval(ort / best_ort),
                    "tvm_alone_over_reference": median_interval(tvm / best_tvm),
                    "noise_floor_a_vs_a": median_interval(column(name, size, "ort_again") / ort),
                    "within_limit": max(own["median"], reference["median"]) <= LIMIT,
                    "error_vs_fp64": errors[name][size],
                }
            )
            ratios = "  ".join(
                f"{r['median']:.3f} [{r['low']:.3f} {r['high']:.3f}]" for r in (own, reference)
            )
            us = [1e6 * float(np.median(value)) for value in times.values()]
            print(f"{name:40} {us[0]:6.0f} {us[1]:6.0f} {us[2]:8.0f}    {ratios}")
    worst = {
        name: max(row["alternating_over_reference_sum"]["median"] for row in table if row["policy"] == name)
        for name in MIXED
    }
    best = min(worst, key=worst.__getitem__)
    strict = {}
    for size in SIZES:
        rows = [row for row in table if row["size"] == size]
        alone = sum(min(row["us"][library]["median"] for row in rows) for library in ("ort", "tvm"))
        strict[size] = {row["policy"]: row["us"]["alternating"]["median"] / alone for row in rows}
    print("over the fastest either library was alone under any policy:")
    for name in MIXED:
        print(f"{name:40} " + "  ".join(f"{size} {strict[size][name]:.2f}" for size in SIZES))
    print(f"\nsmallest worst case over the sizes: {best} ({worst[best]:.3f} of the references' sum)")
    payload = {
        "machine": info | {"load_at_end": os.getloadavg()},
        "sizes_rows_width": SIZES,
        "rounds": {"count": ROUNDS, "per_policy": noise},
        "policies": POLICIES,
        "reference_noise_floor": floor,
        "results": table,
        "alternating_over_fastest_alone_of_any_policy": strict,
        "worst_over_sizes": worst,
        "smallest_worst_case": best,
    }
    save("risk_1_tvm_ort_threads.json", payload)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
    else:
        main()
