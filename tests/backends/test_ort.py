"""The ONNX Runtime back end: graphs, memory, threads, control flow, artefacts, files."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from regraft.backends import LowerOptions, backend
from regraft.errors import BackendError, OptionError, RegraftError
from regraft.ir import Expr, Function, dims
from regraft.runtime import Bindable, Executable
from tests.backends import ort_graphs as graphs
from tests.backends.ort_graphs import BF16, BOOL, F32, F64, I64, B, E, S, Store, function, leaf, tensor

ORT: Any = backend("ort")


def lower(made: Function, threads: int = 1) -> Executable:
    assert [ORT.supports(op) for op in made.body.ops] == [None] * len(made.body)
    return ORT.lower(made, Store(), LowerOptions(threads))


def eager(made: Function, inputs: Sequence[Tensor], sizes: dict[str, int]) -> list[Tensor]:
    return backend("eager").lower(made, Store(), LowerOptions()).run(inputs, sizes)


def operators(made: Function, **options: Any) -> Counter[str]:
    """Nodes of the main graph and of its subgraphs."""
    return Counter(node.op_type for node in ORT.emit(made, Store(), **options).graph.all_nodes())


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    scale = expected.double().abs().max() if expected.numel() else 1
    return bool(((found.double() - expected.double()).abs() <= tolerance * scale).all())


# -- graphs ------------------------------------------------------------------------------------


def test_attention_is_one_node_without_transposes() -> None:
    made = graphs.llama_attention(B, S)
    counts = operators(made)
    assert (counts["Attention"], counts["RotaryEmbedding"], counts["Transpose"]) == (1, 2, 0)
    executable = lower(made)
    for batch, length in ((1, 1), (2, 7), (3, 16)):
        inputs = [torch.randn(batch, length, 32), torch.randn(1, length, 4)]
        sizes = {"b": batch, "s": length}
        assert close(executable.run(inputs, sizes)[0], eager(made, inputs, sizes)[0])


@pytest.mark.parametrize("contrib", [True, False])
@pytest.mark.parametrize("opset", [20, 23])
def test_attention_in_other_forms(contrib: bool, opset: int, tmp_path: Path) -> None:
    made = graphs.llama_attention(B, S)
    written = ORT.export_file(made, Store(), tmp_path / "m.onnx", contrib=contrib, opset=opset)
    inputs = [torch.randn(2, 5, 32), torch.randn(1, 5, 4)]
    assert close(run_file(written, inputs)[0], eager(made, inputs, {"b": 2, "s": 5})[0])


def test_a_table_with_other_halves_is_not_a_cache() -> None:
    """RotaryEmbedding takes half a table: only one whose halves are proved equal may be cut."""

    def build(op: Any, x: Any, table: Any) -> Any:
        heads = op.aten.permute(op.aten.view(x, (B, S, 2, 4)), (0, 2, 1, 3))
        return op.rg.rotary(heads, table, table)

    made = function([tensor(B, S, 8), tensor(1, 1, S, 4)], build)
    assert operators(made)["RotaryEmbedding"] == 0
    inputs = [torch.randn(2, 3, 8), torch.randn(1, 1, 3, 4)]
    assert close(lower(made).run(inputs, {"b": 2, "s": 3})[0], eager(made, inputs, {"b": 2, "s": 3})[0])


def masked_attention(mask: Any) -> Function:
    heads = tensor(2, 4, S, 8)
    return function([heads, heads, heads, mask], lambda op, *a: op.aten.scaled_dot_product_attention(*a))


@pytest.mark.parametrize("shape", [(1, 1, S, S), (2, 1, 1, S), (2, 4, S, S), (S, S), (1, S), (2, 1, S, 1)])
@pytest.mark.parametrize("dtype", [BOOL, F32])
def test_masks(shape: tuple[Any, ...], dtype: Any) -> None:
    """A row that attends to nothing gives 0, as in torch."""
    made = masked_attention(tensor(*shape, dtype=dtype))
    sizes = {"s": 6}
    keep = torch.rand([d if isinstance(d, int) else 6 for d in shape]) > 0.4
    keep[..., 0, :] = False
    mask = keep if dtype == BOOL else torch.where(keep, torch.randn(keep.shape), -torch.inf)
    inputs = [*torch.randn(3, 2, 4, 6, 8), mask]
    expected = eager(made, inputs, sizes)[0]
    assert not expected[:, :, 0].any()
    assert close(lower(made).run(inputs, sizes)[0], expected)


def test_sizes_that_are_expressions() -> None:
    sizes_of: list[Expr] = [
        S * 2 + 3,
        S * S - S + 1,
        dims.floordiv(S, 3) + 1,
        dims.floordiv(S - 5, 3) + 4,
        dims.mod(S, 4) + B,
        dims.minimum(S, B * 2),
        dims.maximum(S - 3, 1),
        dims.ceildiv(S, 2),
    ]  # type: ignore[list-item]

    def build(op: Any, x: Any) -> list[Any]:
        return [op.rg.dim_value(d) for d in sizes_of] + [
            op.aten.full((d, 2), 1.0, dtype=F32) for d in sizes_of
        ]

    made = function([tensor(B, S)], build)
    executable = lower(made)
    for batch, length in ((1, 1), (2, 3), (3, 8), (5, 13)):
        values = {"b": batch, "s": length}
        by_symbol = {next(dims.symbols_of(d)): values[n] for d, n in ((B, "b"), (S, "s"))}
        expected = [dims.substitute(d, by_symbol) for d in sizes_of]
        found = executable.run([torch.zeros(batch, length)], values)
        assert [t.item() for t in found[: len(expected)]] == expected
        assert [t.shape[0] for t in found[len(expected) :]] == expected


def test_a_size_that_no_input_has() -> None:
    made = Function("forward", graphs.region([], lambda op: op.aten.arange.start_step(0, S, 1, dtype=I64)))
    made.symbols = tuple(dims.symbols_of(S))
    assert lower(made).run([], {"s": 4})[0].tolist() == [0, 1, 2, 3]
    with pytest.raises(BackendError, match="cannot be read"):
        ORT.export_file(made, Store(), "never.onnx")


def test_results_are_fresh() -> None:
    """An argument returned, one value returned twice, a constant returned: each a tensor of its own."""
    weight = leaf("w", torch.randn(40, 40))
    made = function([tensor(S, 3)], lambda op, x: [x, op.constant(weight), *[op.aten.neg(x)] * 2])
    x = torch.randn(2, 3)
    found = lower(made).run([x], {"s": 2})
    assert [f.tolist() for f in found] == [t.tolist() for t in (x, weight.storage, -x, -x)]
    assert len({t.data_ptr() for t in (x, weight.storage, *found)}) == 6


@pytest.mark.parametrize("empty", [0, 2])
def test_empty_tensors(empty: int) -> None:
    weight = leaf("w", torch.randn(32, 8))

    def build(op: Any, x: Any, index: Any) -> list[Any]:
        y = op.aten.linear(x, op.constant(weight), None)
        heads = op.aten.permute(op.aten.view(y, (2, E, 4, 8)), (0, 2, 1, 3))
        attended = op.aten.scaled_dot_product_attention(heads, heads, heads)
        picked = op.aten.embedding(op.constant(weight), index)
        joined = op.aten.cat((y, op.aten.softmax.int(y, -1)), 1)
        return [attended, picked, joined, op.aten.sum.dim_IntList(y, (1,)), op.aten.layer_norm(y, (32,))]

    made = function([tensor(2, E, 8), tensor(E, dtype=I64)], build)
    inputs = [torch.randn(2, empty, 8), torch.arange(empty)]
    found, expected = (run([*inputs], {"e": empty}) for run in (lower(made).run, lambda *a: eager(made, *a)))
    assert all(close(f, e) for f, e in zip(found, expected, strict=True))


def test_attention_over_nothing() -> None:
    made = graphs.llama_attention(B, E)
    assert operators(made)["If"] == 1
    executable = lower(made)
    for length in (0, 3):
        inputs = [torch.randn(2, length, 32), torch.randn(1, length, 4)]
        sizes = {"b": 2, "e": length}
        assert close(executable.run(inputs, sizes)[0], eager(made, inputs, sizes)[0])


@pytest.mark.parametrize("level", ["DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"])
def test_optimisation_levels_agree(level: str, tmp_path: Path) -> None:
    """Our sessions use no optimiser, those of a file's users do; ONNX Runtime's have been wrong before."""
    made = graphs.llama_attention(B, S)
    inputs = [torch.randn(2, 5, 32), torch.randn(1, 5, 4)]
    written = ORT.export_file(made, Store(), tmp_path / "m.onnx")
    assert close(run_file(written, inputs, level)[0], eager(made, inputs, {"b": 2, "s": 5})[0])


# -- memory ------------------------------------------------------------------------------------


def test_weights_are_shared() -> None:
    """ONNX Runtime reads torch's own memory where it does not pack; small constants are in the model."""
    table, scale, small = (
        leaf(n, torch.randn(*d)) for n, d in (("t", (64, 512)), ("s", (512,)), ("b", (64,)))
    )

    def build(op: Any, index: Any) -> list[Any]:
        rows = op.aten.embedding(op.constant(table), index)
        return [rows, op.aten.mul.Tensor(rows, op.constant(scale)), op.aten.neg(op.constant(small))]

    made = function([tensor(S, dtype=I64)], build)
    executable: Any = lower(made)
    assert set(executable._shared) == {"t", "s"}
    assert len(executable._model) < 2000
    index = torch.tensor([1, 63])
    before = executable.run([index], {"s": 2})
    table.storage.mul_(2)
    scale.storage.mul_(3)
    after = executable.run([index], {"s": 2})
    assert torch.equal(after[0], before[0] * 2)
    assert close(after[1], before[1] * 6)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_uses_the_weight_as_it_is(rank: int, flip: bool, bias: bool) -> None:
    """A transposed weight is its leaf, used the other way round; nothing is copied."""
    base = leaf("w", torch.randn(24, 40) if flip else torch.randn(40, 24))
    added = leaf("b", torch.randn(40))

    def build(op: Any, x: Any) -> Any:
        weight = op.constant(graphs.transposed(base) if flip else base)
        return op.aten.linear(x, weight, op.constant(added) if bias else None)

    made = function([tensor(*(2, S)[: rank - 1], 24)], build)
    executable: Any = lower(made)
    assert executable._shared["w"].data_ptr() == base.storage.data_ptr()
    assert set(executable._shared) == {"w"}
    x = torch.randn(*(2, 5)[: rank - 1], 24)
    assert close(executable.run([x], {"s": 5})[0], eager(made, [x], {"s": 5})[0])


def test_half_precision_computes_in_f32_and_keeps_one_copy() -> None:
    weight = leaf("w", torch.randn(40, 40).bfloat16())

    def build(op: Any, x: Any) -> Any:
        y = op.aten.linear(x, op.constant(weight), None)
        return op.aten._to_copy(op.aten.add.Scalar(op.aten._to_copy(y, dtype=F32), 1.0), dtype=BF16)

    made = function([tensor(S, 40, dtype=BF16)], build)
    executable: Any = lower(made)
    # What the session packed was widened for it; what an artefact needs is still torch's own.
    assert executable._constants["w"].data_ptr() == weight.storage.data_ptr()
    assert not executable._shared
    x = torch.randn(3, 40).bfloat16()
    (found,) = executable.run([x], {"s": 3})
    exact = x.double() @ weight.storage.double().t() + 1
    assert close(found.double(), exact, 2**-8)


def test_arguments_in_any_layout() -> None:
    made = function([tensor(4, S), tensor()], lambda op, x, y: op.aten.add.Tensor(x, y))
    executable = lower(made)
    x = torch.randn(3, 4).t()
    assert close(executable.run([x, torch.tensor(2.0)], {"s": 3})[0], x + 2)
    assert close(
        executable.run([torch.randn(17)[1:9].view(4, 2), torch.tensor(0.0)], {"s": 2})[0][:0], x[:0, :2]
    )


# -- calls -------------------------------------------------------------------------------------


def test_concurrent_calls() -> None:
    made = graphs.llama_attention(B, S)
    executable = lower(made)
    cases = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        inputs = [
            torch.randn(1 + seed % 3, 4 + seed, 32, generator=generator),
            torch.randn(1, 4 + seed, 4, generator=generator),
        ]
        sizes = {"b": 1 + seed % 3, "s": 4 + seed}
        cases.append((inputs, sizes, eager(made, inputs, sizes)[0]))
    wrong: list[int] = []

    def work(index: int) -> None:
        inputs, sizes, expected = cases[index]
        for _ in range(40):
            if not close(executable.run(inputs, sizes)[0], expected):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_index_out_of_range_is_an_error() -> None:
    weight = leaf("w", torch.randn(4, 3))
    made = function([tensor(S, dtype=I64)], lambda op, i: op.aten.embedding(op.constant(weight), i))
    executable = lower(made)
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        executable.run([torch.tensor([4])], {"s": 1})
    assert executable.run([torch.tensor([3])], {"s": 1})[0].tolist() == weight.storage[3:].tolist()


def test_integer_division_by_zero_does_not_kill() -> None:
    made = function(
        [tensor(S, dtype=I64)] * 2, lambda op, a, b: op.aten.div.Tensor_mode(a, b, rounding_mode="floor")
    )
    found = lower(made).run([torch.tensor([7, -7]), torch.tensor([0, 2])], {"s": 2})
    assert found[0][1] == -4


# -- control flow ------------------------------------------------------------------------------


def branching() -> Function:
    """``linear(x)`` or ``x``, then ``n`` trips of ``x = tanh(x @ w) + s``."""
    weight = leaf("w", torch.randn(40, 40, generator=torch.Generator().manual_seed(0)) / 6)
    x_type, i_type = tensor(E, 40), tensor(dtype=I64)
    then = graphs.region([x_type], lambda op, x: op.aten.linear(x, op.constant(weight), None))
    other = graphs.region([x_type], lambda op, x: x)
    carried = [i_type, x_type, i_type]
    condition = graphs.region(carried, lambda op, i, x, n: op.aten.lt.Tensor(i, n))

    def trip(op: Any, i: Any, x: Any, n: Any) -> list[Any]:
        y = op.aten.tanh(op.aten.linear(x, op.constant(weight), None))
        size = op.aten.expand(op.aten._to_copy(op.rg.dim_value(E), dtype=F32), (E, 40))
        return [op.aten.add.Scalar(i, 1), op.aten.add.Tensor(y, size), n]

    def build(op: Any, pred: Any, x: Any, n: Any) -> Any:
        start = op.create("cf.cond", (pred, [x]), regions=[then, other]).result
        zero = op.aten.full((), 0, dtype=I64)
        return op.create(
            "cf.while", ([zero, start, n],), regions=[condition, graphs.region(carried, trip)]
        ).results

    return function([tensor(dtype=BOOL), x_type, i_type], build)


@pytest.mark.parametrize("pred", [True, False])
@pytest.mark.parametrize("trips", [0, 1, 3])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_branches_and_loops(pred: bool, trips: int, rows: int) -> None:
    made = branching()
    inputs = [torch.tensor(pred), torch.randn(rows, 40), torch.tensor(trips)]
    found, expected = lower(made).run(inputs, {"e": rows}), eager(made, inputs, {"e": rows})
    assert [f.tolist() for f in found[::2]] == [e.tolist() for e in expected[::2]]
    assert close(found[1], expected[1])


def test_a_weight_in_two_regions_is_one_initializer() -> None:
    model = ORT.emit(branching(), Store())
    assert [name for name in model.graph.initializers if name.startswith("w")] == ["w"]


def test_a_branch_defines_a_size() -> None:
    """The branches' results differ in length: the op defines a symbol, which later ops read."""
    x_type = tensor(S, 3)
    fresh = dims.symbol("u", 0)
    symbol = next(dims.symbols_of(fresh))
    then = graphs.region([x_type], lambda op, x: x)
    other = graphs.region([x_type], lambda op, x: op.aten.cat((x, x), 0))

    def build(op: Any, pred: Any, x: Any) -> list[Any]:
        picked = op.create(
            "cf.cond", (pred, [x]), regions=[then, other], symbols=[symbol], result_types=[tensor(fresh, 3)]
        ).result
        return [op.aten.view(picked, (fresh * 3,)), op.rg.dim_value(fresh)]

    executable = lower(function([tensor(dtype=BOOL), x_type], build))
    x = torch.randn(2, 3)
    for pred, rows in ((True, 2), (False, 4)):
        flat, count = executable.run([torch.tensor(pred), x], {"s": 2})
        assert (flat.shape, count.item()) == ((3 * rows,), rows)
        assert torch.equal(flat[:6], x.flatten())


def test_checks_raise() -> None:
    def build(op: Any, x: Any) -> Any:
        op.rg.check(op.aten.all(op.aten.gt.Scalar(x, 0)), "x must be positive")
        return op.aten.neg(x)

    executable = lower(function([tensor(S)], build))
    assert executable.run([torch.ones(2)], {"s": 2})[0].tolist() == [-1, -1]
    with pytest.raises(RegraftError, match="x must be positive"):
        executable.run([torch.tensor([1.0, -1.0])], {"s": 2})


def test_a_check_is_read_where_a_kernel_fails_behind_it() -> None:
    """It says what is wrong, the kernel that no such value was expected."""

    def build(op: Any, x: Any, index: Any) -> Any:
        op.rg.check(op.aten.all(op.aten.lt.Scalar(index, 3)), "an index is too large")
        return op.aten.index.Tensor(x, (index,))

    executable = lower(function([tensor(3), tensor(2, dtype=I64)], build))
    x = torch.tensor([1.0, 2.0, 3.0])
    assert isinstance(executable, Bindable)
    bound = executable.bind([None, None], [False], {})
    for run in (lambda index: executable.run([x, index], {}), lambda index: bound.run([x, index])):
        for _ in range(2):
            with pytest.raises(RegraftError, match="an index is too large"):
                run(torch.tensor([0, 9]))
            with pytest.raises(BackendError, match="out of data bounds"):
                run(torch.tensor([0, -9]))
            assert run(torch.tensor([2, 0]))[0].tolist() == [3, 1]


def test_what_a_region_cannot_hold_refuses_the_op() -> None:
    def in_double(op: Any, x: Any) -> Any:
        return op.aten._to_copy(op.aten.erf(op.aten._to_copy(x, dtype=F64)), dtype=F32)

    then = graphs.region([tensor(S)], in_double)
    other = graphs.region(
        [tensor(S)], lambda op, x: op.aten._to_copy(op.aten._to_copy(x, dtype=F64), dtype=F32)
    )
    made = function(
        [tensor(dtype=BOOL), tensor(S)],
        lambda op, p, x: op.create("cf.cond", (p, [x]), regions=[then, other]).results,
    )
    (reason,) = (ORT.supports(op) for op in made.body.ops if op.name == "cf.cond")
    assert "aten.erf in its region" in reason


# -- artefacts and files -----------------------------------------------------------------------


class Folder:
    """An artefact in memory."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.files: dict[str, bytes] = {}

    def add_tensor(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor

    def add_file(self, name: str, content: bytes) -> None:
        self.files[name] = content

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name].clone()

    def file(self, name: str) -> bytes:
        return self.files[name]


@pytest.mark.parametrize("made", [branching(), graphs.llama_attention(B, E)], ids=["branching", "attention"])
def test_saved_and_loaded(made: Function) -> None:
    folder = Folder()
    executable = lower(made)
    record = json.loads(json.dumps(executable.save(folder)))
    loaded = import_module(type(executable).__module__).load(record, folder)
    if len(made.args) == 3:
        inputs = [torch.tensor(True), torch.randn(2, 40), torch.tensor(2)]
    else:
        inputs = [torch.randn(3, 2, 32), torch.randn(1, 2, 4)]
    sizes = {"e": 2, "b": 3}
    pairs = zip(loaded.run(inputs, sizes), executable.run(inputs, sizes), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def run_file(written: Any, inputs: Sequence[Tensor], level: str = "ENABLE_ALL") -> list[Tensor]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    session = onnxruntime.InferenceSession(written.files[0], options, providers=["CPUExecutionProvider"])
    feed = {name: t.numpy() for name, t in zip(written.inputs, inputs, strict=True)}
    return [torch.from_numpy(a) for a in session.run(list(written.outputs), feed)]


@pytest.mark.parametrize("external", [None, True])
def test_a_file_runs_without_torch(external: bool | None, tmp_path: Path) -> None:
    made = branching()
    for arg, name in zip(made.args, ("pred", "x", "x"), strict=True):
        arg.hint = name
    path = tmp_path / "model.onnx"
    written = ORT.export_file(
        made, Store(), path, contrib=False, external=external, output_names=["count", "y", "trips"]
    )
    assert written.inputs == ("pred", "x", "x_2")
    assert written.outputs == ("count", "y", "trips")
    assert (
        sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"][: 1 + bool(external)]
    )
    model = onnx.load(path)
    onnx.checker.check_model(path)
    assert (model.producer_name, model.ir_version, model.opset_import[0].version) == ("regraft", 10, 23)
    assert [d.dim_param or d.dim_value for d in model.graph.input[1].type.tensor_type.shape.dim] == ["e", 40]
    script = (
        "import sys, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1])\n"
        "feed = {'pred': numpy.array(True), 'x': numpy.ones((3, 40), 'f'), 'x_2': numpy.array(2)}\n"
        "print(session.run(['y'], feed)[0].sum())\n"
        "assert not {'torch', 'regraft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    expected = eager(made, [torch.tensor(True), torch.ones(3, 40), torch.tensor(2)], {"e": 3})[1].sum().item()
    assert float(done.stdout) == pytest.approx(expected, rel=1e-4)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    with pytest.raises(BackendError, match="does not load"):
        ORT.export_file(branching(), Store(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"old"


def test_bad_options_of_a_file(tmp_path: Path) -> None:
    made = branching()
    for options in ({"opset": 12}, {"output_names": ["a", "b"]}, {"output_names": ["a", "a", "b"]}):
        with pytest.raises(OptionError):
            ORT.export_file(made, Store(), tmp_path / "m.onnx", **options)
    with pytest.raises(OptionError):
        ORT.export_file(made, Store(), tmp_path / "missing" / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    weight = leaf("w", torch.randn(50, 16))

    def build(op: Any, index: Any) -> Any:
        return op.aten.linear(op.aten.embedding(op.constant(weight), index), op.constant(weight), None)

    made = function([tensor(S, dtype=I64)], build)
    written = ORT.export_file(made, Store(), tmp_path / "m.onnx", contrib=False)
    assert written.bytes < 1.5 * weight.storage.nbytes
    index = torch.tensor([3, 49])
    assert close(run_file(written, [index])[0], eager(made, [index], {"s": 2})[0])
