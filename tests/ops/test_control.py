"""Regions, sizes as values, constants and checks: types, and runs through the eager back end."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.backends import LowerOptions, backend
from regraft.errors import BackendError, RegraftError
from regraft.ir import (
    OPS,
    AttrSpec,
    Builder,
    Constant,
    Dim,
    DType,
    Function,
    Leaf,
    OpDef,
    Operand,
    OpTable,
    Region,
    Symbol,
    TensorType,
    Trait,
    Value,
    dims,
    input_symbols,
)
from regraft.runtime import Executable

S = dims.symbol("s", 1)
U = dims.symbol("u")
FLAG = TensorType(DType.BOOL, ())
COUNT = TensorType(DType.I64, ())
ROWS = TensorType(DType.F32, (S, 4))

Body = Callable[..., Sequence[Value]]


class Store:
    """Constants are leaves that hold their tensors."""

    def tensor(self, constant: Constant) -> Any:
        assert isinstance(constant, Leaf)
        return constant.storage

    def name(self, constant: Constant) -> str:
        assert isinstance(constant, Leaf)
        return constant.name


def block(types: Sequence[TensorType], body: Body, symbols: Sequence[Symbol] = ()) -> Region:
    """A region whose body gets a builder and the arguments."""
    region = Region(types, symbols)
    b = Builder(TABLE, region)
    b.create("cf.yield", (tuple(body(b, *region.args)),))
    return region


def lowered(types: Sequence[TensorType], body: Body) -> Executable:
    region = block(types, body)
    function = Function("forward", region, input_symbols(region.args))
    return backend("eager").lower(function, Store(), LowerOptions())


def run(types: Sequence[TensorType], body: Body, inputs: Sequence[Tensor], **sizes: int) -> list[Tensor]:
    return lowered(types, body).run(inputs, sizes)


TWICE = OpDef(
    "my.twice",
    (Operand("x"), AttrSpec("times", 2)),
    lambda site: site.type("x"),
    eager=lambda x, times: x * times,
)
TABLE: OpTable = OPS.extended([TWICE])


class Folder:
    """An artefact in memory."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def add_tensor(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor

    def add_file(self, name: str, content: bytes) -> None:
        raise AssertionError("an eager program has no files")

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    def file(self, name: str) -> bytes:
        raise AssertionError("an eager program has no files")


# -- conditions --------------------------------------------------------------------------------


def branching(b: Builder, flag: Value, x: Value) -> Sequence[Value]:
    then = block([ROWS], lambda b, x: [b.aten.relu(x)])
    other = block([ROWS], lambda b, x: [b.aten.mul.Scalar(x, 2.0)])
    return b.create("cf.cond", (flag, (x,)), regions=[then, other]).results


@pytest.mark.parametrize("flag", [True, False])
def test_cond_runs_one_branch(flag: bool) -> None:
    x = torch.randn(3, 4)
    (found,) = run([FLAG, ROWS], branching, [torch.tensor(flag), x], s=3)
    assert torch.equal(found, x.relu() if flag else x * 2)


def test_an_untaken_branch_does_not_run() -> None:
    failing = block([ROWS], lambda b, x: [b.create("rg.check", (b.aten.full((), False),)) and x])
    passing = block([ROWS], lambda b, x: [x])

    def body(b: Builder, flag: Value, x: Value) -> Sequence[Value]:
        return b.create("cf.cond", (flag, (x,)), regions=[failing, passing]).results

    executable = lowered([FLAG, ROWS], body)
    executable.run([torch.tensor(False), torch.zeros(3, 4)], {"s": 3})
    with pytest.raises(RegraftError, match="check of the model failed"):
        executable.run([torch.tensor(True), torch.zeros(3, 4)], {"s": 3})


def test_branches_of_different_sizes_define_a_symbol() -> None:
    (symbol,) = dims.symbols_of(U)
    joined = TensorType(DType.F32, (U, 4))

    def body(b: Builder, flag: Value, x: Value) -> Sequence[Value]:
        then = block([ROWS], lambda b, x: [x])
        other = block([ROWS], lambda b, x: [b.aten.cat((x, x), 0)])
        op = b.create("cf.cond", (flag, (x,)), result_types=[joined], regions=[then, other], symbols=[symbol])
        return [b.aten.view(op.result, (2, 2 * U)), b.rg.dim_value(3 * U)]

    for flag, rows in ((True, 3), (False, 6)):
        wide, size = run([FLAG, ROWS], body, [torch.tensor(flag), torch.zeros(3, 4)], s=3)
        assert wide.shape == (2, 2 * rows)
        assert size.item() == 3 * rows


@pytest.mark.parametrize(
    ("then", "other", "reason"),
    [
        (lambda b, x: [x], lambda b, x: [b.aten.cat((x, x), 0)], "defines no symbol"),
        (lambda b, x: [x], lambda b, x: [x, x], "yield 1 and 2 values"),
        (lambda b, x: [x], lambda b, x: [b.aten.sum.dim_IntList(x, (0,))], "on the other"),
        (lambda b, x: [x], lambda b, x: [b.aten._to_copy(x, dtype=DType.F64)], "on the other"),
    ],
)
def test_branches_that_disagree_are_refused(then: Body, other: Body, reason: str) -> None:
    region = Region([FLAG, ROWS])
    regions = [block([ROWS], then), block([ROWS], other)]
    with pytest.raises(TypeError, match=f"^cf.cond: .*{reason}"):
        Builder(OPS, region).create("cf.cond", (region.args[0], (region.args[1],)), regions=regions)


def test_a_branch_takes_the_operands() -> None:
    region = Region([FLAG, ROWS])
    wrong = block([FLAG], lambda b, x: [x])
    with pytest.raises(TypeError, match=r"^cf.cond: a branch's arguments: number 0 is bool"):
        Builder(OPS, region).create("cf.cond", (region.args[0], (region.args[1],)), regions=[wrong, wrong])


# -- loops -------------------------------------------------------------------------------------


def looping(b: Builder, count: Value, x: Value) -> Sequence[Value]:
    types = [COUNT, ROWS]
    condition = block(types, lambda b, i, x: [b.aten.gt.Scalar(i, 0)])
    step = block(types, lambda b, i, x: [b.aten.add.Scalar(i, -1), b.aten.mul.Scalar(x, 3.0)])
    return b.create("cf.while", ((count, x),), regions=[condition, step]).results


@pytest.mark.parametrize("trips", [0, 1, 5])
def test_while_runs_until_the_condition_fails(trips: int) -> None:
    x = torch.ones(2, 4)
    count, found = run([COUNT, ROWS], looping, [torch.tensor(trips), x], s=2)
    assert count.item() == 0
    assert torch.equal(found, x * 3**trips)


def test_a_loop_that_grows_binds_its_size_every_trip() -> None:
    (carried,) = dims.symbols_of(dims.symbol("c"))
    size = dims.as_expr(carried)
    types = [TensorType(DType.F32, (size, 4))]
    (symbol,) = dims.symbols_of(U)
    joined = TensorType(DType.F32, (U, 4))

    def body(b: Builder, x: Value) -> Sequence[Value]:
        condition = block(types, lambda b, x: [b.aten.lt.Scalar(b.rg.dim_value(size), 10)], [carried])
        grow = block(types, lambda b, x: [b.aten.expand(b.aten.cat((x, x), 0), (2 * size, 4))], [carried])
        op = b.create("cf.while", ((x,),), result_types=[joined], regions=[condition, grow], symbols=[symbol])
        return [op.result, b.rg.dim_value(U)]

    found, rows = run([ROWS], body, [torch.ones(3, 4)], s=3)
    assert found.shape == (12, 4)
    assert rows.item() == 12


def test_a_loop_that_grows_defines_one_symbol_for_its_size() -> None:
    """Before the loop, in a trip and after it the size is another one: one symbol stands for all three."""
    (carried,) = dims.symbols_of(dims.symbol("c"))
    (symbol,) = dims.symbols_of(U)
    types = [TensorType(DType.F32, (dims.as_expr(carried), 4))]

    def loop(symbols: Sequence[Symbol]) -> TensorType:
        region = Region([ROWS])
        condition = block(types, lambda b, x: [b.aten.full((), False, dtype=DType.BOOL)], [carried])
        grow = block(types, lambda b, x: [b.aten.cat((x, x), 0)], [carried])
        b = Builder(OPS, region)
        op = b.create("cf.while", ((region.args[0],),), regions=[condition, grow], symbols=symbols)
        return op.result.tensor

    assert loop([symbol]).shape == (U, 4)
    with pytest.raises(TypeError, match=r"^cf.while: a size is s on one path and c on the other"):
        loop([])


def test_a_condition_yields_one_bool() -> None:
    region = Region([COUNT])
    wrong = block([COUNT], lambda b, i: [i])
    with pytest.raises(TypeError, match=r"^cf.while: the condition is i64\[\], expected bool"):
        Builder(OPS, region).create("cf.while", ((region.args[0],),), regions=[wrong, wrong])


# -- constants, sizes and checks ---------------------------------------------------------------


def test_constants_reach_every_region() -> None:
    weight = Leaf("w", TensorType(DType.F32, (4, 4)), torch.eye(4) * 5)

    def body(b: Builder, flag: Value, x: Value) -> Sequence[Value]:
        def product(b: Builder, x: Value) -> Sequence[Value]:
            return [b.aten.linear(x, b.constant(weight))]

        op = b.create("cf.cond", (flag, (x,)), regions=[block([ROWS], product), block([ROWS], product)])
        return [op.result, b.constant(weight)]

    executable = lowered([FLAG, ROWS], body)
    found, constant = executable.run([torch.tensor(True), torch.ones(2, 4)], {"s": 2})
    assert torch.equal(found, torch.full((2, 4), 5.0))
    assert torch.equal(constant, weight.storage)


def test_a_value_becomes_a_size() -> None:
    (symbol,) = dims.symbols_of(U)

    def body(b: Builder, count: Value) -> Sequence[Value]:
        b.create("rg.bind_dim", (count,), symbols=[symbol])
        return [b.aten.full((U, 2), 1.0), b.aten.arange.start_step(0, 2 * U, 1)]

    ones, numbers = run([COUNT], body, [torch.tensor(3)])
    assert ones.shape == (3, 2)
    assert numbers.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_check_says_its_message() -> None:
    def body(b: Builder, flag: Value) -> Sequence[Value]:
        b.create("rg.check", (flag, "the mask is empty"))
        return [flag]

    assert run([FLAG], body, [torch.tensor(True)])[0].item() is True
    with pytest.raises(RegraftError, match="the mask is empty"):
        run([FLAG], body, [torch.tensor(False)])


def test_effects_are_not_pure() -> None:
    for name in ("cf.cond", "cf.while", "rg.bind_dim", "rg.check"):
        assert not OPS[name].traits & Trait.PURE
    assert OPS["rg.const"].traits & Trait.CONSTANT_LIKE
    assert OPS["cf.yield"].traits & Trait.TERMINATOR


# -- results, memory, artefacts ----------------------------------------------------------------


def test_results_share_no_memory() -> None:
    weight = Leaf("w", ROWS.with_shape((2, 4)), torch.randn(2, 4))

    def body(b: Builder, x: Value) -> Sequence[Value]:
        doubled = b.aten.mul.Scalar(x, 2.0)
        views = [b.aten.permute(doubled, (1, 0)), b.aten.slice.Tensor(doubled, 0, 0, 1)]
        return [x, b.aten.view(x, (4, S)), b.constant(weight), doubled, doubled, *views]

    x = torch.randn(2, 4)
    results = run([ROWS], body, [x], s=2)
    storages = [t.untyped_storage().data_ptr() for t in (*results, x, weight.storage)]
    assert len(set(storages)) == len(storages)
    assert all(t.is_contiguous() for t in results)
    assert results[-1].untyped_storage().nbytes() == 4 * 4
    assert torch.equal(results[5], (x * 2).t())


def test_values_are_dropped_after_their_last_use() -> None:
    live: list[int] = []
    alive: set[int] = set()

    def tracked(x: torch.Tensor) -> torch.Tensor:
        made = x.clone()
        alive.add(id(made))
        weakref.finalize(made, alive.discard, id(made))
        live.append(len(alive))
        return made

    track = OpDef("my.track", (Operand("x"),), lambda site: site.type("x"), eager=tracked)
    region = Region([FLAG])
    b = Builder(OPS.extended([track]), region)
    value = region.args[0]
    for _ in range(10):
        value = b.create("my.track", (value,)).result
    b.create("cf.yield", ((region.args[0],),))
    function = Function("forward", region)
    backend("eager").lower(function, Store(), LowerOptions()).run([torch.tensor(True)], {})
    assert max(live) == 2
    assert alive == set()


def test_a_saved_program_runs() -> None:
    weight = Leaf("w", TensorType(DType.F32, (4, 4)), torch.randn(4, 4))

    def body(b: Builder, flag: Value, x: Value) -> Sequence[Value]:
        (y,) = branching(b, flag, b.aten.linear(x, b.constant(weight)))
        masked = b.aten.where.self(flag, y, b.aten.full((), float("-inf"), dtype=DType.F32))
        return [masked, b.aten._to_copy(y, dtype=DType.BF16), b.aten.full((2 * S,), 1j)]

    executable = lowered([FLAG, ROWS], body)
    folder = Folder()
    record = json.loads(json.dumps(executable.save(folder), allow_nan=False))
    loaded = sys.modules[type(executable).__module__].load(record, folder)
    for flag in (True, False):
        inputs = [torch.tensor(flag), torch.randn(3, 4)]
        pairs = zip(executable.run(inputs, {"s": 3}), loaded.run(inputs, {"s": 3}), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_running_needs_no_ir() -> None:
    check = "import sys, regraft.backends.eager.run; print(*[m for m in sys.modules if 'regraft.ir' in m])"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_a_users_op_runs_and_is_not_saved() -> None:
    executable = lowered([ROWS], lambda b, x: [b.my.twice(x), b.my.twice(x, times=5)])
    twice, five = executable.run([torch.ones(2, 4)], {"s": 2})
    assert twice[0, 0] == 2
    assert five[0, 0] == 5
    with pytest.raises(BackendError, match=r"'my.twice' runs as a Python function"):
        executable.save(Folder())


def test_an_opaque_op_runs() -> None:
    opaque = OpDef(
        "aten.argwhere", (Operand("self"),), lambda site: TensorType(DType.I64, (U, 2)), opaque=True
    )
    (symbol,) = dims.symbols_of(U)
    region = Region([ROWS])
    b = Builder(OPS.extended([opaque]), region)
    op = b.create("aten.argwhere", (region.args[0],), symbols=[symbol])
    b.create("cf.yield", ((op.result, b.rg.dim_value(U)),))
    eager = backend("eager")
    assert eager.supports(op) is None
    function = Function("forward", region, input_symbols(region.args))
    found, count = eager.lower(function, Store(), LowerOptions()).run([torch.eye(4)], {"s": 4})
    assert found.tolist() == [[i, i] for i in range(4)]
    assert count.item() == 4


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("aten.no_such_op", "torch has no op"),
        ("aten.add_.Tensor", "changes its arguments"),
        ("aten.from_file", "torch has no op"),
        ("rg.unknown", "has no eager meaning"),
    ],
)
def test_what_cannot_run_says_why(name: str, reason: str) -> None:
    unknown = OpDef(name, (Operand("self"),), lambda site: site.type("self"))
    region = Region([ROWS])
    b = Builder(OPS.extended([unknown]), region)
    op = b.create(name, (region.args[0],))
    b.create("cf.yield", ((op.result,),))
    eager = backend("eager")
    assert reason in str(eager.supports(op))
    with pytest.raises(BackendError, match=name):
        eager.lower(Function("forward", region), Store(), LowerOptions())


def test_a_region_answers_for_its_ops() -> None:
    unknown = OpDef("rg.unknown", (Operand("self"),), lambda site: site.type("self"))
    table = OPS.extended([unknown])
    inner = Region([ROWS])
    b = Builder(table, inner)
    b.create("cf.yield", ((b.create("rg.unknown", (inner.args[0],)).result,),))
    region = Region([FLAG, ROWS])
    op = Builder(table, region).create(
        "cf.cond", (region.args[0], (region.args[1],)), regions=[inner, block([ROWS], lambda b, x: [x])]
    )
    assert "rg.unknown" in str(backend("eager").supports(op))


# -- scans -------------------------------------------------------------------------------------


def scanned(b: Builder, h: Value, x: Value, w: Value, trip: Body) -> Sequence[Value]:
    types = [h.tensor, x.tensor.with_shape(x.tensor.shape[1:]), w.tensor]
    return b.create("cf.scan", ((h,), (x,), (w,)), regions=[block(types, trip)]).results


def decayed(b: Builder, h: Value, x: Value, w: Value) -> Sequence[Value]:
    """``h = h * w + x``; the rows are -h."""
    h = b.aten.add.Tensor(b.aten.mul.Tensor(h, w), x)
    return h, b.aten.neg(h)


@pytest.mark.parametrize(
    ("name", "length", "trips"),
    [("eager", U, 0), ("eager", S, 5), ("ort", S, 1), ("ort", S, 5), ("ort", U, 0), ("ort", U, 5)],
)
def test_a_scan_stacks_a_row_for_each_trip(name: str, length: Dim, trips: int) -> None:
    state, rows = TensorType(DType.F32, (3,)), TensorType(DType.F32, (length, 3))
    region = Region([state, rows, state])
    b = Builder(OPS, region)
    results = scanned(b, *region.args, decayed)
    assert [r.type for r in results] == [state, rows]
    b.create("cf.yield", (results,))
    function = Function("forward", region, input_symbols(region.args))
    h, x, w = torch.randn(3), torch.randn(trips, 3), torch.rand(3)
    executable = backend(name).lower(function, Store(), LowerOptions())
    last, stacked = executable.run([h, x, w], {str(length): trips})
    expected = []
    for each in x:
        h = h * w + each
        expected.append(-h)
    torch.testing.assert_close(last, h)
    torch.testing.assert_close(stacked, torch.stack(expected) if expected else x)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda b, h, x, w: (b.aten.view(h, (1, 3)), h), r"a value is f32\[3\] on one path and f32\[1, 3\]"),
        (lambda b, h, x, w: (), "yields fewer values than are carried"),
    ],
)
def test_a_scan_refuses(change: Body, reason: str) -> None:
    state, rows = TensorType(DType.F32, (3,)), TensorType(DType.F32, (S, 3))
    region = Region([state, rows, state])
    with pytest.raises(TypeError, match=f"^cf.scan: .*{reason}"):
        scanned(Builder(OPS, region), *region.args, change)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("name", ["eager", "ort"])
def test_a_recurrent_layer_may_have_no_step(name: str, cell: str) -> None:
    """ONNX Runtime's kernels give arbitrary states then, or end the process."""
    gates = {"lstm": 4, "gru": 3}.get(cell, 1)
    shapes = [(U, 2, 5), (2, gates * 3, 5), (2, gates * 3, 3), (2, gates * 6), (2, 2, 3), (2, 2, 3)]
    region = Region([TensorType(DType.F32, shape) for shape in shapes[: 6 if cell == "lstm" else 5]])
    b = Builder(OPS, region)
    x, weight, recurrence, bias, *states = region.args
    memory = states[1] if cell == "lstm" else None
    b.create("cf.yield", (b.rg.recurrent(x, weight, recurrence, bias, states[0], memory, cell),))
    function = Function("forward", region, input_symbols(region.args))
    executable = backend(name).lower(function, Store(), LowerOptions())
    _, *given = (torch.randn(tuple(int(str(size)) if size != U else 0 for size in shape)) for shape in shapes)
    others = given[: len(region.args) - 1]
    rows, *last = executable.run([torch.randn(0, 2, 5), *others], {"u": 0})
    assert rows.shape == (0, 2, 2, 3)
    torch.testing.assert_close(last, others[3:])
    rows, *_ = executable.run([torch.randn(4, 2, 5), *others], {"u": 4})
    assert rows.shape == (4, 2, 2, 3)


def test_a_scan_needs_something_to_scan() -> None:
    state = TensorType(DType.F32, (3,))
    region = Region([state])
    trip = block([state], lambda b, h: (h,))
    with pytest.raises(TypeError, match="nothing is scanned"):
        Builder(OPS, region).create("cf.scan", ((region.args[0],), (), ()), regions=[trip])
    single = Region([state, FLAG])
    trip = block([state, FLAG], lambda b, h, x: (h,))
    with pytest.raises(TypeError, match="without an axis"):
        Builder(OPS, single).create("cf.scan", ((single.args[0],), (single.args[1],), ()), regions=[trip])
