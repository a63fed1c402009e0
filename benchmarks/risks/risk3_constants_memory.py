"""Risk 3: can torch weights reach ONNX Runtime and TVM uncopied, and what memory does a whole compile cost?

The limit: from `import` to the tenth call, peak resident memory stays within 1.5 times the weights above the
loaded model (BERT-base, 345 MB), counting the copies that ONNX Runtime prepacks. Each row is a process of its
own; a phase's peak is the kernel's own high-water mark (VmHWM, reset before it), so no spike is missed.

    python benchmarks/risks/risk3_constants_memory.py     # every row, to results/risk_3_constants_memory.json
    python benchmarks/risks/risk3_constants_memory.py --worker bert spelling=fused arena=0    # one row
"""

import ctypes
import gc
import importlib.metadata
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).resolve().parents[1] / "results" / "risk_3_constants_memory.json"
THREADS = 2
SPELLINGS = ("fused", "gemm", "matmul_copy", "transpose_node")
DEVICE_ALLOCATOR = "session.use_device_allocator_for_initializers"
NO_PREPACK = "session.disable_prepacking"


class Memory:
    """Resident megabytes by phase: where each phase ended and how high it went."""

    def __init__(self):
        self.phases, self.before = {}, self._field("VmRSS")
        self._reset()

    @staticmethod
    def _field(name):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) / 1000 * 1.024
        raise KeyError(name)

    @staticmethod
    def _reset():
        Path("/proc/self/clear_refs").write_text("5")

    def mark(self, phase):
        end, peak = self._field("VmRSS"), self._field("VmHWM")
        self.phases[phase] = {
            "end": round(end, 1),
            "peak": round(peak, 1),
            "grew": round(end - self.before, 1),
        }
        self.before = end
        self._reset()

    def peak_above(self, phase):
        names = list(self.phases)
        later = names[names.index(phase) + 1 :]
        return round(max(self.phases[name]["peak"] for name in later) - self.phases[phase]["end"], 1)


class Builder:
    """A flat ONNX graph over torch's weights: EXTERNAL initializers bound to `OrtValue.from_dlpack(weight)`.

    bind="external" uses add_external_initializers, which copies. bind="share" uses add_initializer for the
    matrices; a file of the right size must exist, so a sparse one stands in: an optimizer that reads the
    matrix reads zeros.
    """

    def __init__(self, spelling, bind="share"):
        self.shared, self.bind = {}, bind
        from onnx import TensorProto, helper

        self.helper, self.proto, self.spelling = helper, TensorProto, spelling
        self.nodes, self.initializers, self.bound, self.flat, self.kept = [], [], {}, {}, []

    def op(self, op_type, *inputs, domain="", **attrs):
        name = f"v{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(op_type, list(inputs), [name], domain=domain, **attrs))
        return name

    def weight(self, tensor):
        import onnxruntime

        tensor = tensor.detach()
        name = f"w{len(self.initializers)}"
        proto = self.proto(name=name, dims=tensor.shape, data_location=self.proto.EXTERNAL)
        proto.data_type = {"float32": self.proto.FLOAT, "int64": self.proto.INT64}[str(tensor.dtype)[6:]]
        proto.external_data.add(key="location", value="stand_in")
        self.initializers.append(proto)
        value = onnxruntime.OrtValue.from_dlpack(tensor)
        assert value.data_ptr() == tensor.data_ptr(), "OrtValue copied the weight"
        if self.bind == "share" and tensor.dim() == 2:
            proto.external_data.add(key="length", value=str(tensor.nbytes))
            self.shared[name] = value
        else:
            self.bound[name] = value
        self.kept.append(tensor)
        return name

    def ints(self, *values):
        name = f"c{len(self.initializers)}"
        self.initializers.append(self.helper.make_tensor(name, self.proto.INT64, [len(values)], values))
        return name

    def linear(self, x, module):
        weight, bias = module.weight, module.bias
        if self.spelling == "gemm":
            flat = self.op("Reshape", x, self.ints(-1, weight.shape[1]))
            product = self.op("Gemm", flat, self.weight(weight), self.weight(bias), transB=1)
            return self.op("Reshape", product, self.ints(1, -1, weight.shape[0]))
        if self.spelling == "fused":
            product = self.op("FusedMatMul", x, self.weight(weight), domain="com.microsoft", transB=1)
        elif self.spelling == "matmul_copy":
            product = self.op("MatMul", x, self.weight(weight.detach().t().contiguous()))
        else:
            product = self.op("MatMul", x, self.op("Transpose", self.weight(weight), perm=[1, 0]))
        return self.op("Add", product, self.weight(bias))

    def norm(self, x, module):
        return self.op(
            "LayerNormalization", x, self.weight(module.weight), self.weight(module.bias), epsilon=module.eps
        )

    def session(self, output, input_type, **settings):
        import onnxruntime

        helper = self.helper
        graph = helper.make_graph(
            self.nodes, "risk3", [helper.make_tensor_value_info("x", *input_type)],
            [helper.make_tensor_value_info(output, self.proto.FLOAT, None)], initializer=self.initializers,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        blob = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        chosen = session_options(self.bound, self.shared, **settings)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "model.onnx").write_bytes(blob)
            with open(Path(folder, "stand_in"), "wb") as stand_in:
                stand_in.truncate(max((tensor.nbytes for tensor in self.kept), default=1))
            return onnxruntime.InferenceSession(f"{folder}/model.onnx", chosen)


def session_options(bound, shared, arena=1, device_allocator=0, prepack=1, level="all", pattern=1, spin=1):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    options.enable_cpu_mem_arena, options.enable_mem_pattern = bool(int(arena)), bool(int(pattern))
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}"
    )
    options.add_session_config_entry(DEVICE_ALLOCATOR, str(device_allocator))
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.add_session_config_entry(NO_PREPACK, str(1 - int(prepack)))
    options.add_external_initializers(list(bound), list(bound.values()))
    for name, value in shared.items():
        options.add_initializer(name, value)
    return options


def lower_bert(model, builder):
    """The pooled BERT encoder, by hand; returns the two output names' last."""
    config, op = model.config, builder.op
    heads, width = config.num_attention_heads, config.hidden_size
    embeddings = model.embeddings
    x = op("Gather", builder.weight(embeddings.word_embeddings.weight), "x")
    tokens = op("Shape", "x", start=1)
    position = op(
        "Slice",
        builder.weight(embeddings.position_embeddings.weight),
        builder.ints(0),
        tokens,
        builder.ints(0),
    )
    x = op("Add", op("Add", x, position), builder.weight(embeddings.token_type_embeddings.weight[0]))
    x = builder.norm(x, embeddings.LayerNorm)
    for layer in model.encoder.layer:
        attention = layer.attention
        qkv = [builder.linear(x, getattr(attention.self, name)) for name in ("query", "key", "value")]
        context = op("MultiHeadAttention", *qkv, domain="com.microsoft", num_heads=heads)
        x = builder.norm(
            op("Add", builder.linear(context, attention.output.dense), x), attention.output.LayerNorm
        )
        hidden = op("Gelu", builder.linear(x, layer.intermediate.dense))
        x = builder.norm(op("Add", builder.linear(hidden, layer.output.dense), x), layer.output.LayerNorm)
    assert width == config.hidden_size
    return x


def trim():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def bert(spelling="fused", bind="share", capture=1, release=0, **settings):
    """BERT-base from import to the tenth call."""
    memory = Memory()
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    memory.mark("import torch, transformers")
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401

    memory.mark("import onnx, onnxruntime")
    model = transformers.BertModel(transformers.BertConfig(vocab_size=1000), add_pooling_layer=False).eval()
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
    memory.mark("load model")
    ids = torch.randint(0, 1000, (1, 128))
    with torch.inference_mode():
        expected = model(ids).last_hidden_state.clone()
    memory.mark("eager call")
    if int(capture):
        import torch.export

        start = time.perf_counter()
        program = torch.export.export(model, (ids,), strict=False)
        memory.mark("torch.export")
        program = program.run_decompositions({})
        seconds = time.perf_counter() - start
        leaves = {p.data_ptr() for p in program.state_dict.values()}
        assert leaves <= {p.data_ptr() for p in model.state_dict().values()}, "capture copied a weight"
        memory.mark("run_decompositions")
        del program
        gc.collect()
    memory.mark("drop the capture")
    builder = Builder(spelling, bind)
    session = builder.session(lower_bert(model, builder), (7, [1, None]), **settings)
    memory.mark("session (prepack)")
    if int(release):  # can the raw copy go once ORT holds the prepacked one?
        session._sess_options = None
        builder.bound.clear()
        builder.shared.clear()
        builder.kept.clear()
        trim()
        memory.mark("release")
    feed = {"x": ids.numpy()}
    got = session.run(None, feed)[0]
    memory.mark("call 1")
    for _ in range(9):
        session.run(None, feed)
    memory.mark("calls 2 to 10")
    error = float(abs(torch.from_numpy(got) - expected).max() / expected.abs().max())
    times = []
    for _ in range(15):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
    above = memory.peak_above("eager call")
    return {
        "weights_mb": round(weights, 1), "peak_above_model_mb": above, "ratio": round(above / weights, 3),
        "end_above_model_mb": round(memory._field("VmRSS") - memory.phases["eager call"]["end"], 1),
        "ru_maxrss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024 / 1000, 1),
        "error": error, "run_ms": round(statistics.median(times) * 1e3, 2), "phases": memory.phases,
        "capture_s": round(seconds, 2) if int(capture) else None,
    }  # fmt: skip


def sharing(case="one", bind="share"):
    """Does a second user of one 64 MB weight pay for a second prepacked copy?"""
    import torch
    from onnx import helper

    weight = torch.randn(4096, 4096)
    builder = Builder("fused", bind)
    name = builder.weight(weight)
    fused = {"domain": "com.microsoft", "transB": 1}
    if case == "if":
        builder.op("ReduceSum", "x", keepdims=0)
        condition = builder.op("Cast", "v0", to=9)
        branches = []
        for branch in ("then", "else"):
            node = helper.make_node("FusedMatMul", ["x", name], [branch], alpha=1.0 + len(branches), **fused)
            value = helper.make_tensor_value_info(branch, 1, None)
            branches.append(helper.make_graph([node], branch, [], [value]))
        output = builder.op("If", condition, then_branch=branches[0], else_branch=branches[1])
    else:
        output = builder.op("FusedMatMul", "x", name, **fused)
        if case == "two nodes":
            output = builder.op("FusedMatMul", output, name, **fused)
        elif case == "two op types":
            output = builder.op("Gemm", output, name, transB=1)
    gc.collect()
    memory = Memory()
    session = builder.session(output, (1, [16, 4096]), arena=0)
    other = builder.session(output, (1, [16, 4096]), arena=0) if case == "two sessions" else None
    memory.mark("session")
    feed, times = {"x": torch.ones(16, 4096).numpy()}, []
    for each in [session] * 10 + ([other] if other else []):
        start = time.perf_counter()
        each.run(None, feed)
        times.append((time.perf_counter() - start) * 1e3)
    memory.mark("calls")
    grew = memory.phases["session"]["grew"] + memory.phases["calls"]["grew"]
    peak = memory.phases["session"]["peak"] - memory.phases["session"]["end"]
    run_ms = round(statistics.median(times), 2)  # twice "one" for two nodes: both read the packed copy
    return {
        "weight_mb": 67.1,
        "grew_mb": round(grew, 1),
        "peak_over_end_mb": round(peak, 1),
        "run_ms": run_ms,
    }


def speed():
    """Milliseconds of one linear by spelling, interleaved; `noprepack` is FusedMatMul with prepacking off."""
    import torch

    table = {}
    for rows, k, n in ((128, 768, 3072), (128, 768, 768), (1, 768, 3072), (16, 1024, 2816)):
        linear = torch.nn.Linear(k, n)
        x = {"x": torch.randn(1, rows, k).numpy()}
        sessions, samples = {}, {}
        for label in ("matmul_copy", "matmul_copy again", "fused", "gemm", "transpose_node", "noprepack"):
            builder = Builder({"noprepack": "fused"}.get(label, label.split(" ")[0]))
            output = builder.linear("x", linear)
            settings = {"arena": 0, "spin": 0, "prepack": int(label != "noprepack")}  # six pools would fight
            sessions[label] = builder.session(output, (1, [1, rows, k]), **settings)
            sessions[label].run(None, x)
        for _ in range(60):
            for label, session in sessions.items():
                for _ in range(2):  # only the second is kept: the first brings this session's weights in
                    start = time.perf_counter()
                    session.run(None, x)
                    elapsed = time.perf_counter() - start
                samples.setdefault(label, []).append(elapsed * 1e3)
        row = {label: round(statistics.median(values), 3) for label, values in samples.items()}
        table[f"{rows}x{k}x{n}"] = row
    return table


TVM_KERNEL = """
import sys, tvm
from tvm.script import tirx as T

@T.prim_func
def product(x: T.Buffer((4096,)), w: T.Buffer((64, 4096, 64)), y: T.Buffer((64, 64))):
    for block in T.parallel(64):
        for lane in T.vectorized(64):
            y[block, lane] = T.float32(0)
        for k in range(4096):
            for lane in T.vectorized(64):
                y[block, lane] = y[block, lane] + x[k] * w[block, k, lane]

def build():
    return tvm.compile(product, target=tvm.target.Target({"kind": "llvm", "mcpu": "znver4", "num-cores": 2}))
"""


def tvm_side(process="same"):
    """A packed weight is one torch tensor, evaluated once, handed to two compiled kernels by address."""
    import torch

    memory = Memory()
    import tvm_ffi

    memory.mark("import tvm_ffi")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.py").write_text(TVM_KERNEL)
        paths = [f"{folder}/first.so", f"{folder}/second.so"]
        export = f"import kernel\nfor path in {paths}: kernel.build().export_library(path)"
        start = time.perf_counter()
        if process == "same":
            sys.path.insert(0, folder)
            exec(export)
        else:
            subprocess.run([sys.executable, "-c", export], cwd=folder, check=True)
        seconds = time.perf_counter() - start
        memory.mark("two kernels compiled, exported")
        if process == "child":
            library = Path(importlib.util.find_spec("tvm").origin).parent / "lib" / "libtvm_runtime.so"
            ctypes.CDLL(
                str(library), mode=ctypes.RTLD_GLOBAL
            )  # the parallel launch symbol is weak without it
        kernels = [tvm_ffi.load_module(path)["product"] for path in paths]
        memory.mark("two kernels loaded")
    weight = torch.randn(4096, 4096)
    memory.mark("weight")
    packed = weight.view(64, 64, 4096).permute(0, 2, 1).contiguous()  # the recipe: [N/64][K][64]
    memory.mark("recipe evaluated")
    x, y = torch.randn(4096), torch.empty(64, 64)
    shared = tvm_ffi.from_dlpack(packed, require_alignment=64)
    assert shared.data_ptr() == packed.data_ptr()
    for kernel in kernels:
        kernel(tvm_ffi.from_dlpack(x), shared, tvm_ffi.from_dlpack(y))
    memory.mark("two kernels called")
    error = float((y.flatten() - weight @ x).abs().max() / y.abs().max())
    try:
        tvm_ffi.from_dlpack(torch.ones(80)[1:], require_alignment=64)
        refused = False
    except Exception:
        refused = True
    peak = max(phase["peak"] for phase in memory.phases.values()) - memory.phases["import tvm_ffi"]["end"]
    return {
        "peak_over_torch_mb": round(peak, 1), "of_which_weight_and_packed_mb": 134.2,
        "compile_s": round(seconds, 1),
        "unaligned_refused_when_asked": refused, "error": error, "phases": memory.phases,
    }  # fmt: skip


WORKERS = {"bert": bert, "sharing": sharing, "speed": speed, "tvm": tvm_side}
ROWS = [
    ("bert", {"arena": "0"}),
    ("bert", {}),
    ("bert", {"device_allocator": "1"}),
    ("bert", {"arena": "0", "bind": "external"}),
    ("bert", {"arena": "0", "capture": "0"}),
    ("bert", {"arena": "0", "level": "basic"}),
    ("bert", {"arena": "0", "pattern": "0"}),
    ("bert", {"arena": "0", "prepack": "0"}),
    ("bert", {"arena": "0", "prepack": "0", "bind": "external"}),
    ("bert", {"arena": "0", "spelling": "gemm"}),
    ("bert", {"arena": "0", "spelling": "matmul_copy"}),
    ("bert", {"arena": "0", "spelling": "matmul_copy", "release": "1"}),
    ("bert", {"arena": "0", "spelling": "transpose_node", "bind": "external"}),
    ("bert", {"arena": "0", "spelling": "transpose_node"}),
    *(("sharing", {"case": case}) for case in ("one", "two nodes", "if", "two op types", "two sessions")),
    ("sharing", {"case": "one", "bind": "external"}),
    ("speed", {}),
    ("tvm", {"process": "same"}),
    ("tvm", {"process": "child"}),
]


def machine():
    names = ("torch", "onnxruntime", "onnx", "transformers", "apache-tvm", "apache-tvm-ffi")
    cpu = dict(
        line.replace("\t", "").split(": ", 1)
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if ": " in line
    )
    return {"cpu": f"{cpu['model name']} family {cpu['cpu family']} model {cpu['model']}",
            "cores": os.cpu_count(), "threads": THREADS,
            "versions": {name: importlib.metadata.version(name) for name in names}}  # fmt: skip


def main():
    if "--worker" in sys.argv:
        kind, *pairs = sys.argv[sys.argv.index("--worker") + 1 :]
        print("RESULT " + json.dumps(WORKERS[kind](**dict(pair.split("=") for pair in pairs))))
        return
    rows = []
    for kind, arguments in ROWS:
        command = [
            sys.executable,
            __file__,
            "--worker",
            kind,
            *(f"{key}={value}" for key, value in arguments.items()),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "TVM_NUM_THREADS": "2"}
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        outcome = json.loads(lines[0][7:]) if lines else {"failed": done.stderr.strip().splitlines()[-1:]}
        rows.append({"row": kind, **arguments, "result": outcome})
        label = " ".join(f"{key}={value}" for key, value in arguments.items())
        brief = {key: value for key, value in outcome.items() if key != "phases"}
        print(f"{kind:8}{label:44}{json.dumps(brief)}", flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
