"""Kernels of the TVM back end's templates against ONNX Runtime, OpenVINO and oneDNN, in f32."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.peers import BoundPeer, openvino_bound, ort_bound
from regraft.backends.tvm import bench, cpu, templates, tune
from regraft.errors import NumericsMismatch
from regraft.testing import assert_close
from regraft.timing import Call, Measured, race

ROWS = (1, 4, 16, 64, 128, 512)
#: Columns and depth: BERT-base, Llama-style, an expert's two.
SHAPES = ((768, 768), (3072, 768), (768, 3072), (2816, 1024), (1024, 2816), (512, 1024), (1024, 512))
KINDS = ("plain", "bias_gelu", "gate", "residual")
ALL_KINDS = (*KINDS, "swiglu", "bf16")
#: From so many rows on bf16 is worth its rounding.
BF16_ROWS = 64
SWIGLU = (1024, 2816)
SWIGLU_ROWS = (1, 128)
OURS = "regraft"
#: A sample takes at least so many seconds.
_SAMPLE = 1e-3
_ONEDNN = torch.ops.mkldnn


@dataclass(frozen=True)
class Case:
    """One product, or a SwiGLU network (``kind`` swiglu: ``columns`` is then the hidden width)."""

    kind: str
    rows: int
    columns: int
    depth: int

    @property
    def flops(self) -> int:
        products = {"gate": 2, "swiglu": 3}.get(self.kind, 1)
        return 2 * products * self.rows * self.columns * self.depth

    def problem(self) -> templates.Problem:
        epilogue: dict[str, tuple[templates.Step, ...]] = {
            "plain": (),
            "bias_gelu": (templates.bias(), templates.activation("gelu")),
            "gate": (templates.gate("silu"),),
            "residual": (templates.residual(),),
            "swiglu": (templates.gate("silu"),),
        }
        products = 2 if self.kind in ("gate", "swiglu") else 1
        first = templates.Gemm(
            self.rows, self.columns, self.depth, products=products, epilogue=epilogue[self.kind]
        )
        if self.kind != "swiglu":
            return first
        return templates.FeedForward(first, templates.Gemm(self.rows, self.depth, self.columns))

    def values(self) -> dict[str, Tensor]:
        """The inputs, and the weights as torch's linear has them."""
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(shape, generator=generator) * scale

        found = {"x": random(self.rows, self.depth)}
        found["w"] = random(self.columns, self.depth, scale=self.depth**-0.5)
        if self.kind in ("gate", "swiglu"):
            found["w1"] = random(self.columns, self.depth, scale=self.depth**-0.5)
        if self.kind == "swiglu":
            found["down"] = random(self.depth, self.columns, scale=self.columns**-0.5)
        if self.kind == "bias_gelu":
            found["bias"] = random(self.columns)
        if self.kind == "residual":
            found["residual"] = random(self.rows, self.columns)
        return found


def exact(case: Case, values: Mapping[str, Tensor]) -> Tensor:
    """The result in fp64."""
    v = {name: value.double() for name, value in values.items()}
    y = v["x"] @ v["w"].T
    if case.kind == "bias_gelu":
        return torch.nn.functional.gelu(y + v["bias"])
    if case.kind == "residual":
        return y + v["residual"]
    if case.kind in ("gate", "swiglu"):
        y = torch.nn.functional.silu(v["x"] @ v["w1"].T) * y
    return y @ v["down"].T if case.kind == "swiglu" else y


# -- entrants ------------------------------------------------------------------------------------


def ours(case: Case, values: Mapping[str, Tensor], is_tuned: bool) -> tuple[BoundPeer, dict[str, Any]]:
    """Our kernel, and which config it has."""
    problem, host = case.problem(), cpu.host_cpu(machine.THREADS)
    template = templates.template_for(problem)
    assert template is not None
    own = bench.KernelBench(problem, template)
    notes: list[str] = []
    if is_tuned:
        tuner = tune.KernelTuner(_Records(), host)
        choice = tuner.run(problem, template, own)
        notes += tuner.notes
    else:
        choice = tune.choose(problem, template, host)
    config, kernel = tune.built(choice.configs, own.build, notes)
    names = {"first_w": "w", "first_w1": "w1", "second_w": "down"}
    given = {
        argument.name: values[names.get(argument.name, argument.name)]
        for argument in template.arguments(problem, config)
        if argument.role != "output"
    }
    for name, packing in template.packing(problem, config).items():
        given[name] = packing.apply(given[name])
    out = torch.empty(case.rows, case.depth if case.kind == "swiglu" else case.columns)
    peer = BoundPeer(kernel(*given.values(), out), lambda: out, given)
    return peer, {"config": str(config), "is_tuned": is_tuned, "notes": notes}


class _Records:
    """A tuning database that keeps nothing beyond the process."""

    def __init__(self) -> None:
        self.kept: dict[int, dict[str, tuple[float, float]]] = {}

    def record(self, signature: str, forms: Sequence[str], measured: Measured) -> None:
        found = {form: (us, measured.noise) for form, us in zip(forms, measured.us, strict=True)}
        self.kept[measured.rows] = found

    def times(self, signature: str) -> tune.Times:
        return self.kept


def onnx_model(case: Case, values: Mapping[str, Tensor]) -> bytes:
    """The case as an ONNX file, weights inside."""
    from onnx import TensorProto, helper, numpy_helper

    weights = {n: v.T.contiguous() if v.dim() > 1 else v for n, v in values.items() if n not in _inputs(case)}
    node = helper.make_node
    last = {"plain": "out", "swiglu": "up", "gate": "up"}.get(case.kind, "y")
    nodes = [node("MatMul", ["x", "w"], [last])]
    if case.kind == "bias_gelu":
        nodes += [node("Add", ["y", "bias"], ["z"]), node("Gelu", ["z"], ["out"])]
    elif case.kind == "residual":
        nodes.append(node("Add", ["y", "residual"], ["out"]))
    elif case.kind in ("gate", "swiglu"):
        joined = "out" if case.kind == "gate" else "hidden"
        nodes += [node("MatMul", ["x", "w1"], ["g"]), node("Sigmoid", ["g"], ["s"])]
        nodes += [node("Mul", ["g", "s"], ["silu"]), node("Mul", ["silu", "up"], [joined])]
        nodes += [node("MatMul", ["hidden", "down"], ["out"])] if case.kind == "swiglu" else []
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, list(values[n].shape)) for n in _inputs(case)
    ]
    width = case.depth if case.kind == "swiglu" else case.columns
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, [case.rows, width])
    tensors = [numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "case", inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def _inputs(case: Case) -> list[str]:
    return ["x", "residual"] if case.kind == "residual" else ["x"]


def onednn(case: Case, values: Mapping[str, Tensor]) -> BoundPeer:
    """oneDNN as torch's own compiler calls it: weights packed once, steps fused where it can."""
    x = values["x"]
    packed = {
        name: _ONEDNN._reorder_linear_weight(values[name], case.rows)
        for name in ("w", "w1", "down")
        if name in values
    }

    def linear(x: Tensor, name: str, bias: Tensor | None = None, step: str = "none", how: str = "") -> Tensor:
        return _ONEDNN._linear_pointwise(x, packed[name], bias, step, [], how)

    def call() -> Tensor:
        if case.kind == "bias_gelu":
            return linear(x, "w", values["bias"], "gelu", "none")
        if case.kind == "residual":
            return _ONEDNN._linear_pointwise.binary(x, values["residual"], packed["w"], None, "add")
        if case.kind == "plain":
            return linear(x, "w")
        gated = _ONEDNN._linear_pointwise.binary(x, linear(x, "w1", step="swish"), packed["w"], None, "mul")
        return linear(gated, "down") if case.kind == "swiglu" else gated

    return BoundPeer(call, call, values)


# -- races ---------------------------------------------------------------------------------------


def run(
    rows: Sequence[int] = ROWS,
    kinds: Sequence[str] = ALL_KINDS,
    rounds: int = 20,
    patience: float = 5.0,
    is_tuned: bool = False,
    name: str = "kernels",
) -> None:
    """Race every case; writes ``<name>.json``."""
    # Workers that spin on after a call would take a core from the next entrant (docs/risks_tvm.md).
    os.environ |= {
        "TVM_NUM_THREADS": str(machine.THREADS),
        "TVM_THREAD_POOL_SPIN_COUNT": "2000",
        "TVM_BIND_THREADS": "0",
    }
    torch.set_num_threads(machine.THREADS)
    torch.set_grad_enabled(False)
    where = machine.describe()
    cases = [Case(k, r, *shape) for k in kinds if k in KINDS for r in rows for shape in SHAPES]
    if "swiglu" in kinds:
        cases += [Case("swiglu", r, SWIGLU[1], SWIGLU[0]) for r in SWIGLU_ROWS if r in rows]
    points = [point(case, rounds, patience, is_tuned) for case in cases]
    has_bf16 = "bf16" in kinds and cpu.host_cpu(machine.THREADS).has_bf16_dot
    pairs = [
        bf16_point(Case("plain", r, *shape), rounds, patience)
        for r in rows
        if has_bf16 and r >= BF16_ROWS
        for shape in SHAPES
    ]
    result = {
        "benchmark": name,
        "settings": {"threads": machine.THREADS, "dtype": "f32", "is_tuned": is_tuned},
        "ratio": "time of a peer over ours: above 1, ours is faster",
        "machine": where,
        "summary": summary(points, pairs),
        "points": points,
        "bf16": pairs,
    }
    print(result["summary"])
    print(machine.save(name, result).name)


def point(case: Case, rounds: int, patience: float, is_tuned: bool) -> dict[str, Any]:
    """One case: errors of all entrants, and the race of those that are right."""
    values = case.values()
    model = onnx_model(case, values)
    feed = {name: values[name] for name in _inputs(case)}
    mine, described = ours(case, values, is_tuned)
    entrants = {
        OURS: mine,
        "onnxruntime": ort_bound(model, feed),
        "openvino": openvino_bound(model, feed),
        "onednn": onednn(case, values),
    }
    wanted = exact(case, values)
    errors = {name: _error(entrant, wanted) for name, entrant in entrants.items()}
    assert "wrong" not in str(errors[OURS]), f"our kernel is wrong: {case} {described} {errors[OURS]}"
    right: dict[str, Call] = {n: e.call for n, e in entrants.items() if isinstance(errors[n], float)}
    if case.kind == "swiglu" and case.rows == 1:
        right["read"] = read_call(4 * 3 * case.columns * case.depth)
    found = race(right, rounds=rounds, inner=_inner(mine.call), patience=patience)
    peers = {name: found.ratio(name) for name in right if name not in (OURS, "read")}
    best = min(peers, key=lambda peer: peers[peer].median)
    record = found.to_dict()
    seconds = record["entrants"][OURS]["median_ms"] / 1e3
    print(
        f"{case.kind:10} {case.rows:4} x {case.columns:5} x {case.depth:5}",
        f"{case.flops / seconds / 1e9:6.0f} GFLOP/s",
        *(f"{peer} {ratio.median:.3f}" for peer, ratio in peers.items()),
        f"A/A {record['entrants']['the same again']['ratio']['median']:.3f}",
        *([f"read {found.ratio('read').median:.3f}"] if "read" in right else []),
        described["config"],
        flush=True,
    )
    return {
        "case": vars(case),
        **described,
        "gflops": case.flops / seconds / 1e9,
        "errors": errors,
        "best_peer": best,
        "over_best_peer": peers[best].to_dict(),
        "race": record,
    }


def bf16_point(case: Case, rounds: int, patience: float) -> dict[str, Any]:
    """Our bf16 kernel against our f32 kernel of the same product, each with its default config."""
    single = case.problem()
    assert isinstance(single, templates.Gemm)
    calls: dict[str, Call] = {}
    for problem in (replace(single, dtype="bfloat16"), single):
        host = cpu.host_cpu(machine.THREADS)
        template = templates.template_for(problem, host)
        assert template is not None
        own = bench.KernelBench(problem, template)
        config = template.default(problem, host)
        trial = own.trial(own.build(config), config, case.rows)
        assert trial.fault() is None, f"our kernel is wrong: {problem} {config}"
        calls[problem.dtype] = trial.run
    found = race(calls, rounds=rounds, inner=_inner(calls["bfloat16"]), patience=patience)
    ratio = found.ratio("float32")
    print(
        f"bf16       {case.rows:4} x {case.columns:5} x {case.depth:5} f32 over bf16 {ratio.median:.3f}",
        flush=True,
    )
    return {"case": vars(case), "f32_over_bf16": ratio.to_dict(), "race": found.to_dict()}


def _error(entrant: BoundPeer, wanted: Tensor) -> float | str:
    entrant.call()
    try:
        return assert_close(entrant.result(), wanted)
    except NumericsMismatch as mismatch:
        return f"wrong: {mismatch}"


def _inner(call: Call) -> int:
    """Calls in a sample, from the time of one."""
    from time import perf_counter

    for _ in range(3):
        call()
    start = perf_counter()
    call()
    return max(1, math.ceil(_SAMPLE / (perf_counter() - start)))


def summary(points: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Geometric means over the best peers, and the worst point of each group."""

    def of(ratios: Sequence[float]) -> dict[str, Any] | None:
        if not ratios:
            return None
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        return {"points": len(ratios), "geometric_mean": round(mean, 4), "least": min(ratios)}

    def group(is_in: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any] | None:
        return of([p["over_best_peer"]["median"] for p in points if is_in(p["case"])])

    return {
        "plain, 16 rows and more": group(lambda c: c["kind"] == "plain" and c["rows"] >= 16),
        "with an epilogue, 16 rows and more": group(
            lambda c: c["kind"] in ("bias_gelu", "gate", "residual") and c["rows"] >= 16
        ),
        "below 16 rows": group(lambda c: c["kind"] in KINDS and c["rows"] < 16),
        "swiglu": group(lambda c: c["kind"] == "swiglu"),
        "bf16 over our f32, 64 rows and more": of([p["f32_over_bf16"]["median"] for p in pairs]),
    }


def read_call(size: int) -> Call:
    """A read of ``size`` bytes by all threads: the time that streaming so many weights takes at least."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    lanes, vectors, threads = 16, 8, machine.THREADS
    share = size // 4 // threads // (lanes * vectors)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("read")
        T.func_attr({"tirx.noalias": True, "global_symbol": "read"})
        handles = [T.arg(name, T.handle()) for name in ("data", "sums")]
        data = T.match_buffer(handles[0], (threads, share, lanes * vectors), "float32", align=64)
        sums = T.match_buffer(handles[1], (threads, lanes * vectors), "float32", align=64)
        with T.parallel(0, threads) as thread:
            local = T.alloc_buffer((lanes * vectors,), "float32", scope="local")
            places = [T.ramp(vector * lanes, 1, lanes) for vector in range(vectors)]
            for at in places:
                T.buffer_store(local, T.broadcast(T.float32(0), lanes), [at])
            with T.serial(0, share) as step:
                for at in places:
                    T.buffer_store(local, local[at] + data[thread, step, at], [at])
            for at in places:
                T.buffer_store(sums, local[at], [thread, at])
    buffers = torch.ones(threads, share, lanes * vectors), torch.empty(threads, lanes * vectors)
    return bench.compiled(builder.get(), "read")(*buffers)
