"""Risk 2: can `rg_if` and `rg_while` be traced once by make_fx into regions, and leave as one ONNX file?

An early-exit encoder (nested ifs, weights reached through closures), a token-pruning if whose arms differ in
a dim, and a loop that ends on data are traced once under one FakeTensorMode and one ShapeEnv, cut into
regions, written as `If` and `Loop`, and compared with eager on every exit, at lengths unlike the example.

    python benchmarks/risks/risk2_early_exit_if.py
"""

import collections
import importlib.metadata
import json
import operator
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.node import has_side_effect

RESULT = Path(__file__).resolve().parents[1] / "results" / "risk_2_early_exit_if.json"
LAYERS, WIDTH, HEADS = 6, 256, 4


# --- the higher-order ops: markers in one flat graph, so that a branch reaches outer values by itself


@has_side_effect
def if_begin(pred): ...


@has_side_effect
def if_else(*then_results): ...


@has_side_effect
def if_end(*else_results): ...


@has_side_effect
def while_begin(*carried): ...


@has_side_effect
def while_do(pred): ...


@has_side_effect
def while_end(*carried): ...


def record(marker, values, results=()):
    """Put a marker into the graph; `results` are fresh fake tensors that stand for what it defines."""
    tracer = proxy_tensor.get_proxy_mode().tracer
    slots = [
        proxy_tensor.get_proxy_slot(v, tracer).proxy if v in tracer.tensor_tracker else v for v in values
    ]
    proxy = tracer.create_proxy("call_function", marker, tuple(slots), {})
    proxy_tensor.track_tensor_tree(tuple(results), proxy, constant=None, tracer=tracer)


def joined(values, others):
    """Fresh fakes for values that may be either; a dim that differs becomes a symbol of its own."""
    fresh = []
    with proxy_tensor.disable_proxy_modes_tracing():
        for value, other in zip(values, others, strict=True):
            assert value.dtype == other.dtype, "the arms' types differ"
            assert value.dim() == other.dim(), "the arms' ranks differ"
            env = value.fake_mode.shape_env
            same = []
            for mine, theirs in zip(value.shape, other.shape, strict=True):
                same.append(mine if str(mine) == str(theirs) else env.create_unbacked_symint())
                if same[-1] is not mine:
                    torch._check(same[-1] >= 2)  # promised by hand here: no arm returns 0 or 1 tokens
            with value.fake_mode:
                fresh.append(torch.empty(same, dtype=value.dtype))
    return fresh


def rg_if(pred, then, otherwise):
    if isinstance(pred, bool) or not isinstance(pred, FakeTensor):
        return then() if pred else otherwise()
    record(if_begin, [pred])
    yes = then()
    record(if_else, yes)
    no = otherwise()
    results = joined(yes, no)
    record(if_end, no, results)
    return tuple(results)


def rg_while(condition, body, carried):
    if not isinstance(carried[0], FakeTensor):
        while condition(*carried):
            carried = body(*carried)
        return carried
    with proxy_tensor.disable_proxy_modes_tracing():
        once = body(*carried)  # thrown away: which dims does a trip change?
    inside = joined(carried, once)
    record(while_begin, carried, inside)
    record(while_do, [condition(*inside)])
    after = body(*inside)
    for before, now in zip(inside, after, strict=True):
        assert str(before.shape) == str(now.shape), "a carried dim is neither invariant nor a symbol"
    results = joined(inside, after)
    record(while_end, after, results)
    return tuple(results)


class EarlyExit(nn.Module):
    def __init__(self):
        super().__init__()
        arguments = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, 1024, **arguments) for _ in range(LAYERS)
        )
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 4) for _ in range(LAYERS))
        self.thresholds = nn.Buffer(torch.full((LAYERS,), 0.5))
        self.refine = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, limit):
        settle = lambda h, step: (0.9 * h + 0.1 * torch.tanh(self.refine(h)), step + 1)  # noqa: E731
        far = lambda h, step: (h.abs().mean() > limit) & (step < 50)  # noqa: E731
        x, steps = rg_while(far, settle, (x, torch.zeros((), dtype=torch.int64, device=x.device)))
        (x,) = rg_if(x.mean() > 0, lambda: (x[:, ::2] * 1.0,), lambda: (x * 1.0,))
        return *self.rest(x, 0), steps

    def rest(self, x, index):
        x = self.layers[index](x)
        logits = self.heads[index](x[:, 0])
        left = torch.full((), index + 1, dtype=torch.int64)
        if index == LAYERS - 1:
            return logits, left
        confidence = logits.softmax(-1).amax()
        return rg_if(
            confidence > self.thresholds[index], lambda: (logits, left), lambda: self.rest(x, index + 1)
        )


# --- a minimal IR: one block a region, captures found from the uses


def value(node):
    """A marker's i-th result is (marker, i); every other value is its node."""
    return node.args if node.target is operator.getitem else node


def reads(node):
    """Symbolic sizes are expressions of the result's type, not values: they are not read."""
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    return [value(n) for n in tensors]


@dataclass
class Op:
    name: str
    operands: list
    node: fx.Node
    regions: list = field(default_factory=list)


@dataclass
class Region:
    arguments: list = field(default_factory=list)
    ops: list = field(default_factory=list)
    results: list = field(default_factory=list)

    def captures(self):
        inner = [v for op in self.ops for region in op.regions for v in region.captures()]
        used = inner + [v for op in self.ops for v in op.operands] + self.results
        own = {op.node for op in self.ops} | set(self.arguments)
        return [
            v
            for v in dict.fromkeys(used)
            if v not in own and (v[0] if isinstance(v, tuple) else v) not in own
        ]


def to_regions(graph):
    root, open_ops = Region(), []
    region = root
    for node in graph.nodes:
        if node.op == "placeholder":
            region.arguments.append(node)
        elif node.op == "output":
            region.results = [value(n) for n in node.args[0]]
        elif node.target in (if_begin, while_begin):
            carried = [(node, i) for i in range(len(node.args))] if node.target is while_begin else []
            open_ops.append(
                (region, Op(node.target.__name__[:-6], [value(n) for n in node.args], node), carried)
            )
            region = Region(carried)
            open_ops[-1][1].regions.append(region)
        elif node.target in (if_else, while_do):
            region.results, region = [value(n) for n in node.args], Region(open_ops[-1][2])
            open_ops[-1][1].regions.append(region)
        elif node.target in (if_end, while_end):
            region.results = [value(n) for n in node.args]
            region, op, _ = open_ops.pop()
            op.node = node  # the end marker defines the results
            region.ops.append(op)
        elif node.target is not operator.getitem and isinstance(node.meta["val"], torch.Tensor):
            region.ops.append(Op(str(node.target), reads(node), node))
    assert not open_ops
    return root


# --- regions to one ONNX graph: `If` and `Loop` capture outer names, so captures need no lifting

UNARY = {"abs": "Abs", "tanh": "Tanh", "gelu": "Gelu"}
BINARY = {"add": "Add", "mul": "Mul", "gt": "Greater", "lt": "Less", "__and__": "And"}
RESHAPES = ("view", "reshape", "unflatten", "unsqueeze", "squeeze", "contiguous", "dropout")


class Lowering:
    def __init__(self):
        self.names, self.nodes, self.count = {}, [], 0

    def emit(self, op_type, *inputs, results=1, domain="", **attributes):
        outputs = [f"v{self.count + i}" for i in range(results)]
        self.count += results
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, domain=domain, **attributes))
        return outputs[0] if results == 1 else outputs

    def constant(self, values, dtype="int64"):
        return self.emit("Constant", value=numpy_helper.from_array(numpy.asarray(values, dtype)))

    def subgraph(self, name, inputs, body):
        outer, self.nodes = self.nodes, []
        outputs = [self.emit("Identity", result) for result in body()]
        outputs = [helper.make_empty_tensor_value_info(n) for n in outputs]
        graph = helper.make_graph(self.nodes, name, inputs, outputs)
        self.nodes = outer
        return graph

    def region(self, region, arguments=()):
        self.names.update(zip(region.arguments, arguments, strict=True))
        for op in region.ops:
            self.lower(op)
        return [self.names[v] for v in region.results]

    def lower(self, op):
        inputs, count = [self.names[v] for v in op.operands], len(op.node.args)
        if op.name == "if":
            arms = [
                self.subgraph(name, [], lambda r=r: self.region(r))
                for name, r in zip(("yes", "no"), op.regions, strict=True)
            ]
            out = self.emit("If", *inputs, results=count, then_branch=arms[0], else_branch=arms[1])
        elif op.name == "while":
            test, body = op.regions
            inner = [f"c{self.count}_{i}" for i in range(count)]

            def trip():
                after = self.region(body, inner)
                return [*self.region(test, after), *after]  # the condition region, emitted a second time

            start = self.region(test, inputs)[0]
            typed = helper.make_tensor_value_info  # Loop refuses a body whose counter has no declared shape
            first = [
                typed(f"{inner[0]}_trip", TensorProto.INT64, []),
                typed(f"{inner[0]}_on", TensorProto.BOOL, []),
            ]
            loop = self.subgraph(
                "body", first + [helper.make_empty_tensor_value_info(n) for n in inner], trip
            )
            out = self.emit("Loop", "", start, *inputs, results=count, body=loop)
        else:
            self.names[op.node] = self.kernel(op.node, op.name.split(".")[1], inputs)
            return
        self.names.update({(op.node, i): n for i, n in enumerate([out] if count == 1 else out)})

    def kernel(self, node, kind, inputs):
        result, emit = node.meta["val"], self.emit
        if kind in RESHAPES:  # one view op, read off the result's type; one unknown dim at most
            assert kind != "dropout" or not node.args[2]
            sizes = [d if isinstance(d, int) else -1 for d in result.shape]
            assert sizes.count(-1) <= 1
            return emit("Reshape", inputs[0], self.constant(sizes))
        if kind in ("zeros", "full"):
            return self.constant(0 if kind == "zeros" else node.args[1])
        if kind == "linear":
            product = emit("FusedMatMul", *inputs[:2], domain="com.microsoft", transB=1)
            return emit("Add", product, inputs[2])
        if kind == "layer_norm":
            return emit("LayerNormalization", *inputs, epsilon=node.args[4] if len(node.args) > 4 else 1e-5)
        if kind == "scaled_dot_product_attention":
            query, key, attended = inputs
            scores = emit(
                "FusedMatMul", query, key, domain="com.microsoft", transB=1, alpha=result.shape[-1] ** -0.5
            )
            return emit("MatMul", emit("Softmax", scores), attended)
        if kind in ("transpose", "permute"):
            order = list(range(result.dim()))
            if kind == "permute":
                order = list(node.args[1])
            else:
                a, b = (d % result.dim() for d in node.args[1:])
                order[a], order[b] = b, a
            return emit("Transpose", inputs[0], perm=order)
        if kind == "select":
            return emit("Gather", inputs[0], self.constant(node.args[2]), axis=node.args[1])
        if kind == "slice":
            _, dim, start, end, step = node.args
            return emit(
                "Slice", inputs[0], *(self.constant([v]) for v in (start, min(end, 2**62), dim, step))
            )
        if kind in ("mean", "amax"):
            return emit({"mean": "ReduceMean", "amax": "ReduceMax"}[kind], inputs[0], keepdims=0)
        if kind == "softmax":
            return emit("Softmax", inputs[0], axis=node.args[1])
        if kind in BINARY:
            if len(inputs) == 1:
                dtype = str(node.args[0].meta["val"].dtype)[6:]
                inputs = [*inputs, self.constant(node.args[1], dtype)]
            return emit(BINARY[kind], *inputs)
        return emit(UNARY[kind], *inputs)


def to_onnx(root, weights, inputs, outputs):
    lowering = Lowering()
    for node, name in zip(root.arguments, weights, strict=False):
        lowering.names[node] = name
    lowering.names.update(zip(root.arguments[len(weights) :], (name for name, _, _ in inputs), strict=True))
    lowering.region(Region(ops=root.ops))
    results = [lowering.names[v] for v in root.results]
    graph = helper.make_graph(
        lowering.nodes,
        "early_exit",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [
            helper.make_tensor_value_info(name, kind, None)
            for name, kind in zip(results, outputs, strict=True)
        ],
        initializer=[numpy_helper.from_array(t.numpy(), name) for name, t in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def capture(model, x, limit, weights, batch=DimDynamic.STATIC):
    mode = FakeTensorMode(shape_env=ShapeEnv(specialize_zero_one=False))
    sizes = StatelessSymbolicContext(dynamic_sizes=[batch, DimDynamic.DYNAMIC, DimDynamic.STATIC])
    fakes = {name: mode.from_tensor(tensor, static_shapes=True) for name, tensor in weights.items()}
    arguments = fakes, mode.from_tensor(x, symbolic_context=sizes), mode.from_tensor(limit)
    call = lambda weights, x, limit: torch.func.functional_call(model, weights, (x, limit))  # noqa: E731
    with mode:  # pre_dispatch keeps linear, layer_norm and sdpa whole
        graph = proxy_tensor.make_fx(call, pre_dispatch=True)(*arguments).graph
    return graph, [str(guard.expr) for guard in mode.shape_env.guards]


def main():
    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)
    model, x, limit = EarlyExit().eval(), torch.randn(1, 64, WIDTH), torch.tensor(0.6)
    weights = {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}
    start = time.perf_counter()
    with torch.no_grad():
        graph, guards = capture(model, x, limit, weights)
        seconds = time.perf_counter() - start
        _, batch_guards = capture(model, x, limit, weights, batch=DimDynamic.DYNAMIC)
    root = to_regions(graph)
    rows, errors, left = [], [], collections.Counter()
    inputs = [("x", TensorProto.FLOAT, [1, None, WIDTH]), ("limit", TensorProto.FLOAT, [])]
    for leave in range(
        1, LAYERS + 1
    ):  # thresholds are buffers: one file per forced exit, from the same regions
        model.thresholds.copy_(torch.tensor([0.0 if i + 1 == leave else 2.0 for i in range(LAYERS)]))
        blob = to_onnx(root, weights, inputs, (TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT64))
        for level in ("DISABLE_ALL", "ENABLE_ALL"):
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
            session = onnxruntime.InferenceSession(blob, options)
            for length, sign, stop in (
                (64, 1, 0.6),
                (64, -1, 0.0),
                (7, 1, 0.3),
                (131, -1, 9.0),
                (2, 1, 9.0),
                (1, -1, 0.3),
            ):
                given = torch.randn(1, length, WIDTH) + 0.2 * sign
                with torch.no_grad():
                    want = model(given, torch.tensor(stop))
                got = session.run(None, {"x": given.numpy(), "limit": numpy.asarray(stop, "float32")})
                assert int(got[1]) == int(want[1]) == leave
                assert int(got[2]) == int(want[2])
                left[leave] += 1
                errors.append(float(abs(got[0] - want[0].numpy()).max() / want[0].abs().max()))
                rows.append(
                    {
                        "exit": leave,
                        "level": level,
                        "length": length,
                        "pruned": sign > 0,
                        "steps": int(want[2]),
                    }
                )
    depth = lambda region: max((1 + depth(r) for op in region.ops for r in op.regions), default=0)  # noqa: E731
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime")}
    cpu = next(
        line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    )
    outcome = {
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "versions": versions},
        "capture_s": round(seconds, 2), "graph_nodes": len(graph.nodes), "root_ops": len(root.ops),
        "region_depth": depth(root),
        "max_captures": max(len(r.captures()) for op in root.ops for r in op.regions),
        "checked": len(rows), "per_exit": dict(left), "trips": sorted({row["steps"] for row in rows}),
        "max_error": max(errors), "guards": guards, "guards_if_batch_is_dynamic": batch_guards, "rows": rows,
    }  # fmt: skip
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(outcome, indent=1) + "\n")
    for key in list(outcome)[1:-1]:
        print(f"{key:28}{outcome[key]}")


if __name__ == "__main__":
    main()
