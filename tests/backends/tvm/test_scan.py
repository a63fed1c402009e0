"""Scans as one kernel: which are, and what they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan as torch_scan
from torch.export import Dim

import regraft
from regraft.backends import LowerOptions, backend
from regraft.conformance import Case, check_case
from regraft.ir import DType, Region, Value
from regraft.testing import GraphConstants, assert_close
from tests.models import in_double
from tests.zoo.dynamic.networks import DYNAMIC

Trip = Callable[..., Value | Sequence[Value]]


def scan(
    op: Any, carried: Sequence[Value], scanned: Sequence[Value], fixed: Sequence[Value], trip: Trip
) -> tuple[Value, ...]:
    """``trip(op, *carried, *slices, *fixed)`` over the slices of ``scanned``: the results."""
    slices = [value.tensor.with_shape(value.tensor.shape[1:]) for value in scanned]
    body = Region([*(v.type for v in carried), *slices, *(v.type for v in fixed)])
    inner = type(op)(op.table, body)
    made = trip(inner, *body.args)
    inner.create("cf.yield", ([made] if isinstance(made, Value) else list(made),))
    return op.create("cf.scan", (tuple(carried), tuple(scanned), tuple(fixed)), regions=(body,)).results


# -- what has a kernel ---------------------------------------------------------------------------


def decayed(op: Any, h: Value, a: Value, x: Value) -> Sequence[Value]:
    """``h = a * h + x``, all states."""

    def trip(op: Any, h: Value, a: Value, x: Value) -> Sequence[Value]:
        after = op.aten.add.Tensor(op.aten.mul.Tensor(a, h), x)
        return after, after

    return scan(op, (h,), (a, x), (), trip)


def selective(op: Any, h: Value, delta: Value, u: Value, b: Value, c: Value, a: Value) -> Sequence[Value]:
    """Mamba: ``h = exp(-|delta| * |a|) * h + |delta| * u * b``, ``y = h @ c``."""

    def trip(op: Any, h: Value, delta: Value, u: Value, b: Value, c: Value, a: Value) -> Sequence[Value]:
        batch, width, states = h.tensor.shape
        steps, states_of = (batch, width, 1), (batch, 1, states)
        delta = op.aten.view(op.aten.abs(delta), steps)
        entering = op.aten.mul.Tensor(delta, op.aten.view(u, steps))
        enters = op.aten.mul.Tensor(entering, op.aten.view(b, states_of))
        decay = op.aten.exp(op.aten.mul.Tensor(delta, op.aten.neg(op.aten.abs(a))))
        after = op.aten.add.Tensor(op.aten.mul.Tensor(decay, h), enters)
        y = op.aten.matmul(after, op.aten.view(c, (batch, states, 1)))
        return after, op.aten.view(y, (batch, width))

    return scan(op, (h,), (delta, u, b, c), (a,), trip)


def attention(
    op: Any, total: Value, weight: Value, top: Value, score: Value, value: Value
) -> Sequence[Value]:
    """A running softmax: one number carried beside a row."""

    def trip(op: Any, total: Value, weight: Value, top: Value, score: Value, value: Value) -> Sequence[Value]:
        above = op.aten.maximum(top, score)
        kept, new = (op.aten.exp(op.aten.sub.Tensor(x, above)) for x in (top, score))
        wide = (*top.tensor.shape, 1)
        new_wide, kept_wide = op.aten.view(new, wide), op.aten.view(kept, wide)
        total = op.aten.add.Tensor(op.aten.mul.Tensor(total, kept_wide), op.aten.mul.Tensor(value, new_wide))
        weight = op.aten.add.Tensor(op.aten.mul.Tensor(weight, kept), new)
        return total, weight, above, op.aten.div.Tensor(total, op.aten.view(weight, wide))

    return scan(op, (total, weight, top), (score, value), (), trip)


def delta_rule(op: Any, state: Value, k: Value, v: Value) -> Sequence[Value]:
    """``S = S + k (v - k^T S)``: what a product gives is carried on."""

    def trip(op: Any, state: Value, k: Value, v: Value) -> Sequence[Value]:
        batch, keys, values = state.tensor.shape
        row = op.aten.view(op.aten.mul.Scalar(k, 0.3), (batch, 1, keys))
        apart = op.aten.sub.Tensor(op.aten.view(v, (batch, 1, values)), op.aten.matmul(row, state))
        after = op.aten.add.Tensor(state, op.aten.mul.Tensor(op.aten.view(k, (batch, keys, 1)), apart))
        after = op.aten.mul.Scalar(after, 0.5)
        return after, op.aten.sum.dim_IntList(after, (1,))

    return scan(op, (state,), (k, v), (), trip)


def swapped(op: Any, a: Value, b: Value, x: Value) -> Sequence[Value]:
    """``a, b = b, a + x``; the rows are what was carried before, and the slices."""

    def trip(op: Any, a: Value, b: Value, x: Value) -> Sequence[Value]:
        return b, op.aten.add.Tensor(a, x), a, x, b

    return scan(op, (a, b), (x,), (), trip)


def crossed(op: Any, a: Value, b: Value, x: Value) -> Sequence[Value]:
    """Each reads the other as it was; one stays as it is, one becomes the slice."""

    def trip(op: Any, a: Value, b: Value, same: Value, last: Value, x: Value) -> Sequence[Value]:
        new_a = op.aten.tanh(op.aten.add.Tensor(b, x))
        new_b = op.aten.mul.Tensor(a, op.aten.add.Tensor(new_a, op.aten.mul.Tensor(last, same)))
        return new_a, new_b, same, x, op.aten.sub.Tensor(new_b, last)

    return scan(op, (a, b, b, a), (x,), (), trip)


def gates(op: Any, h: Value, x: Value) -> Sequence[Value]:
    """Parts of a slice, as joint projections have them."""

    def trip(op: Any, h: Value, x: Value) -> Sequence[Value]:
        width = h.tensor.shape[-1]
        f, i = (op.aten.slice.Tensor(x, 1, n * width, (n + 1) * width, 1) for n in range(2))
        after = op.aten.add.Tensor(op.aten.mul.Tensor(op.aten.sigmoid(f), h), op.aten.silu(i))
        return after, op.aten.mul.Tensor(after, op.aten.softplus(i))

    return scan(op, (h,), (x,), (), trip)


def turned(op: Any, h: Value, x: Value) -> Sequence[Value]:
    """Places along the last axis change theirs; sums, extrema and truths over them."""

    def trip(op: Any, h: Value, x: Value) -> Sequence[Value]:
        after = op.aten.add.Tensor(op.aten.flip(h, (1,)), x)
        top = op.aten.amax(after, (1,), True)
        is_large = op.aten.any.dim(op.aten.gt.Scalar(after, 2.0), 1, True)
        after = op.aten.where.self(is_large, op.aten.div.Tensor(after, top), after)
        mean = op.aten.mean.dim(after, (1,))
        return after, mean, is_large, op.aten.slice.Tensor(after, 1, 1, 3, 1)

    return scan(op, (h,), (x,), (), trip)


def counting(op: Any, n: Value, seen: Value, total: Value, x: Value) -> Sequence[Value]:
    """Integers, truths, and a number without axes."""

    def trip(op: Any, n: Value, seen: Value, total: Value, x: Value) -> Sequence[Value]:
        n = op.aten.add.Tensor(n, x)
        seen = op.aten.bitwise_or.Tensor(seen, op.aten.gt.Scalar(n, 3))
        total = op.aten.add.Tensor(total, op.aten.full((), 1, dtype=DType.I64))
        return n, seen, total, op.aten.mul.Tensor(n, total)

    return scan(op, (n, seen, total), (x,), (), trip)


def masked(op: Any, h: Value, done: Value, x: Value) -> Sequence[Value]:
    """A truth that is carried, one that is read twice, and one that turns."""

    def trip(op: Any, h: Value, done: Value, x: Value) -> Sequence[Value]:
        is_large = op.aten.gt.Scalar(h, 0.5)
        after = op.aten.add.Tensor(op.aten.tanh(op.aten.where.self(is_large, h, x)), x)
        after = op.aten.where.self(done, h, after)
        turned = op.aten.bitwise_xor.Tensor(done, is_large)
        return after, turned, is_large, op.aten.any.dim(turned, (turned.tensor.rank - 1), True)

    return scan(op, (h, done), (x,), (), trip)


def beside(op: Any, h: Value, n: Value, x: Value) -> Sequence[Value]:
    """A few numbers that each strand counts for itself; the first one stores them."""

    def trip(op: Any, h: Value, n: Value, x: Value) -> Sequence[Value]:
        n = op.aten.add.Scalar(op.aten.mul.Scalar(n, 0.5), 1.0)
        return op.aten.tanh(op.aten.add.Tensor(h, x)), n, n

    return scan(op, (h, n), (x,), (), trip)


def viewed(op: Any, h: Value, w: Value) -> Sequence[Value]:
    """What is fixed is read at its own places, and by views at others."""

    def trip(op: Any, h: Value, x: Value, w: Value) -> Value:
        total = op.aten.sum.dim_IntList(h, (1,), True)
        after = op.aten.add.Tensor(op.aten.mul.Tensor(h, w), op.aten.mul.Tensor(total, op.aten.flip(w, (0,))))
        return op.aten.tanh(op.aten.add.Tensor(after, x))

    return scan(op, (h,), (op.aten.full((3, *h.tensor.shape), 0.25, dtype=h.tensor.dtype),), (w,), trip)


def placed(op: Any, h: Value, x: Value) -> Sequence[Value]:
    """The number of a place, and constants of the trip."""

    def trip(op: Any, h: Value, x: Value) -> Value:
        places = op.aten.arange.start_step(0, h.tensor.shape[-1], 1, dtype=h.tensor.dtype)
        after = op.aten.add.Tensor(op.aten.mul.Scalar(h, 0.5), x)
        return op.aten.add.Tensor(after, op.aten.mul.Scalar(places, 0.01))

    return scan(op, (h,), (x,), (), trip)


def single(op: Any, h: Value, x: Value) -> Sequence[Value]:
    """Nothing has an axis."""

    def trip(op: Any, h: Value, x: Value) -> Sequence[Value]:
        after = op.aten.add.Tensor(op.aten.mul.Scalar(h, 0.5), x)
        return after, op.aten.exp(after)

    return scan(op, (h,), (x,), (), trip)


def twice(op: Any, h: Value, a: Value, x: Value) -> Sequence[Value]:
    """One scan after another, of what the first one gives and of a view of it."""
    last, states = decayed(op, h, a, x)
    again = decayed(op, last, op.aten.sigmoid(states), op.aten.flip(states, (0,)))
    return last, *again


SMALL = (
    {"T": 5, "B": 3, "D": 7},
    {"T": 0, "B": 2, "D": 3},
    {"T": 1, "B": 0, "D": 4},
    {"T": 3, "B": 2, "D": 150},
)
MAMBA = ("[B, D, 4]", "[T, B, D]", "[T, B, D]", "[T, B, 4]", "[T, B, 4]", "[D, 4]")


def typed(dtype: str, *shapes: str) -> tuple[str, ...]:
    return tuple(f"{dtype}{shape}" for shape in shapes)


CASES = [
    Case("decayed", decayed, typed("f32", "[B, D]", "[T, B, D]", "[T, B, D]"), sizes=SMALL),
    Case("decayed, fixed sizes", decayed, typed("f32", "[3, 100]", "[6, 3, 1]", "[6, 100]")),
    Case("decayed in f64", decayed, typed("f64", "[2, 40]", "[6, 2, 40]", "[6, 2, 40]")),
    Case("decayed in bf16", decayed, typed("bf16", "[2, 40]", "[6, 2, 40]", "[6, 2, 40]")),
    Case("Mamba", selective, typed("f32", *MAMBA), sizes=SMALL[:3]),
    Case(
        "Mamba, fixed sizes",
        selective,
        typed("f32", "[1, 80, 16]", "[9, 1, 80]", "[9, 1, 80]", "[9, 1, 16]", "[9, 1, 16]", "[80, 16]"),
        constants=(5,),
    ),
    Case(
        "attention", attention, typed("f32", "[B, 9]", "[B]", "[B]", "[T, B]", "[T, B, 9]"), sizes=SMALL[:3]
    ),
    Case("delta rule", delta_rule, typed("f32", "[2, 6, 35]", "[5, 2, 6]", "[5, 2, 35]")),
    Case("swapped", swapped, typed("f32", "[3, 20]", "[3, 20]", "[4, 3, 20]")),
    Case("crossed", crossed, typed("f32", "[33]", "[33]", "[4, 33]")),
    Case("gates", gates, typed("f32", "[2, 20]", "[5, 2, 40]")),
    Case("turned", turned, typed("f32", "[18, 4]", "[5, 18, 4]")),
    Case("counting", counting, ("i64[20]", "bool[20]", "i64[]", "i64[4, 20]")),
    Case("masked", masked, ("f32[3, 20]", "bool[3, 20]", "f32[5, 3, 20]")),
    Case("masked, of any size", masked, ("f32[B, 6]", "bool[B, 6]", "f32[T, B, 6]"), sizes=SMALL[:3]),
    Case("beside", beside, typed("f32", "[2, 20]", "[3]", "[5, 2, 20]")),
    Case("viewed", viewed, typed("f32", "[20, 4]", "[20, 4]"), constants=(1,)),
    Case("placed", placed, typed("f32", "[2, 37]", "[5, 2, 37]")),
    Case("single", single, typed("f32", "[]", "[T]"), sizes=({"T": 7}, {"T": 0})),
    Case("twice", twice, typed("f32", "[2, 19]", "[4, 2, 19]", "[4, 2, 19]")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_kernel(tvm: Any, case: Case) -> None:
    assert check_case(tvm, case) is None


def test_equal_scans_share_a_kernel(tvm: Any) -> None:
    def build(op: Any, h: Value, a: Value, x: Value) -> Sequence[Value]:
        last, states = decayed(op, h, a, x)
        return decayed(op, last, a, states)

    types = typed("f32", "[2, 19]", "[4, 2, 19]", "[4, 2, 19]")
    executable = tvm.lower(Case("", build, types).function(), GraphConstants(), LowerOptions())
    calls = executable.save(_Nowhere())["program"]["calls"]
    assert [call["kernel"] for call in calls] == ["kernel_0", "kernel_0"]


class _Nowhere:
    """Takes what an executable saves, and forgets it."""

    def add_tensor(self, name: str, tensor: Tensor) -> None:
        pass

    def add_file(self, name: str, content: bytes) -> None:
        pass


def test_long_scans_on_all_threads(tvm: Any) -> None:
    """Blocks of strands on both threads, with a part of a block at the end."""
    shapes = ("[2, 200, 8]", "[300, 2, 200]", "[300, 2, 200]", "[300, 2, 8]", "[300, 2, 8]", "[200, 8]")
    case, wide = (Case("", selective, typed(dtype, *shapes)) for dtype in ("f32", "f64"))
    inputs = case.arguments(case.function(), {})
    found = tvm.lower(case.function(), GraphConstants(), LowerOptions(threads=2)).run(inputs, {})
    eager = backend("eager").lower(wide.function(), GraphConstants(), LowerOptions())
    assert_close(found, eager.run([x.double() for x in inputs], {}))


# -- what has none -------------------------------------------------------------------------------


def reason(tvm: Any, trip: Trip, *types: str, scanned: int = 1, carried: int = 1) -> str | None:
    """Why a scan has no kernel; of ``types`` the first are carried, the next ones scanned, the rest fixed."""

    def build(op: Any, *values: Value) -> Sequence[Value]:
        parts = values[:carried], values[carried : carried + scanned], values[carried + scanned :]
        return scan(op, *parts, trip)

    function = Case("", build, types).function()
    (op,) = (op for op in function.body.ops if op.name == "cf.scan")
    assert tvm.claims(op) == (tvm.supports(op) is None)
    return tvm.supports(op)


def _recurrent(op: Any, h: Value, x: Value, w: Value) -> Value:
    return op.aten.tanh(op.aten.add.Tensor(op.aten.matmul(h, w), x))


def _summed(op: Any, h: Value, x: Value) -> Value:
    total = op.aten.sum.dim_IntList(h, (1,), True)
    return op.aten.add.Tensor(op.aten.mul.Tensor(h, total), x)


def _transposed(op: Any, h: Value, x: Value) -> Value:
    return op.aten.add.Tensor(op.aten.permute(h, (1, 0)), x)


def _joined(op: Any, h: Value, x: Value) -> Value:
    """The strands of ``[2, 8]`` do not go on as those of ``[16]``."""
    rows = op.aten.flip(op.aten.view(h, (16,)), (0,))
    return op.aten.add.Tensor(op.aten.view(rows, (2, 8)), x)


def _shifted(op: Any, h: Value, x: Value) -> Value:
    """A part of what is carried at the front, whose places are not its own."""
    first = op.aten.slice.Tensor(h, 0, 0, 1, 1)
    return op.aten.add.Tensor(op.aten.mul.Tensor(op.aten.slice.Tensor(h, 0, 1, 2, 1), first), x)


def _halved(op: Any, h: Value, half: Value, x: Value) -> Sequence[Value]:
    """The first half of one is as long as the other, and its places would be beyond that."""
    first = op.aten.mul.Tensor(op.aten.slice.Tensor(h, 0, 0, 10, 1), half)
    return op.aten.add.Tensor(h, x), op.aten.tanh(first)


def _two(op: Any, h: Value, g: Value, x: Value) -> Sequence[Value]:
    """Two values that have no axis in common."""
    return op.aten.tanh(op.aten.add.Tensor(h, x)), op.aten.mul.Scalar(g, 0.5)


def _running(op: Any, h: Value, x: Value) -> Value:
    return op.aten.add.Tensor(h, op.aten.cumsum(x, 1))


def _picked(op: Any, h: Value, i: Value, table: Value) -> Value:
    return op.aten.add.Tensor(h, op.aten.embedding(table, i))


def _added(op: Any, h: Value, x: Value) -> Value:
    return op.aten.add.Tensor(h, x)


NO_STRANDS = "each place of what it carries reads others in a trip"


@pytest.mark.parametrize(
    ("trip", "types", "expected"),
    [
        (_recurrent, ("f32[1, 32]", "f32[5, 1, 32]", "f32[32, 32]"), NO_STRANDS),
        (
            _recurrent,
            ("f32[4, 96]", "f32[5, 4, 96]", "f32[96, 96]"),
            "a product in a trip has 9216 multiplications",
        ),
        (_recurrent, ("f32[4, 32]", "f32[5, 4, 32]", "f32[32, 32]"), "has 1024 multiplications"),
        (_summed, ("f32[1, 8]", "f32[5, 1, 8]"), NO_STRANDS),
        (_summed, ("f32[9, 2000]", "f32[5, 9, 2000]"), "a strand of it has 8004 bytes, more than 4096"),
        (
            _summed,
            ("f32[9, N]", "f32[5, 9, N]"),
            "a strand has all places of f32[9, N], whose number is open",
        ),
        (_transposed, ("f32[6, 6]", "f32[5, 6, 6]"), NO_STRANDS),
        (_joined, ("f32[2, 8]", "f32[5, 2, 8]"), NO_STRANDS),
        (_shifted, ("f32[2]", "f32[5, 2]"), NO_STRANDS),
        (_running, ("f32[2, 6]", "f32[5, 2, 6]"), "there is no lowering inside a kernel"),
        (_picked, ("f32[3, 6]", "i64[5, 3]", "f32[9, 6]"), "there is no lowering inside a kernel"),
        (_added, ("f16[3]", "f16[5, 3]"), "no kernels for f16 tensors"),
    ],
)
def test_refused(tvm: Any, trip: Trip, types: tuple[str, ...], expected: str) -> None:
    found = reason(tvm, trip, *types)
    assert found is not None
    assert expected in found


def test_a_batch_is_strands(tvm: Any) -> None:
    """What each place of a row reads of the others, no row reads of another one."""
    types = ("f32[20, 8]", "f32[5, 20, 8]", "f32[8, 8]")

    def build(op: Any, h: Value, x: Value, w: Value) -> Sequence[Value]:
        return scan(op, (h,), (x,), (w,), _recurrent)

    assert check_case(tvm, Case("recurrent", build, types)) is None


def test_halves_are_inner_places(tvm: Any) -> None:
    """A part of an axis is not the axis, though each of its places reads its own."""

    def build(op: Any, h: Value, half: Value, x: Value) -> Sequence[Value]:
        return scan(op, (h, half), (x,), (), _halved)

    types = ("f32[20]", "f32[10]", "f32[5, 20]")
    assert reason(tvm, _halved, *types, carried=2) == NO_STRANDS


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (("f32[1024]", "f32[1000]", "f32[5, 1024]"), "each would compute all of it"),
        (("f32[4, 64]", "f32[4, 32]", "f32[5, 4, 64]"), "each would compute all of it"),
        (("f32[B, 6]", "f32[3]", "f32[5, B, 6]"), "of which there may be none"),
        (("f32[0, 6]", "f32[3]", "f32[5, 0, 6]"), "of which there may be none"),
    ],
)
def test_what_lies_along_no_strand(tvm: Any, types: tuple[str, ...], expected: str) -> None:
    found = reason(tvm, _two, *types, carried=2)
    assert found is not None
    assert expected in found


def test_a_scan_that_carries_nothing(tvm: Any) -> None:
    found = reason(tvm, lambda op, x: op.aten.exp(x), "f32[5, 3]", carried=0)
    assert found == "it carries nothing from trip to trip"


# -- whole models --------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("tvm", "ort"), ("ort", "tvm")])
@pytest.mark.parametrize("name", ["mamba_loop", "aaren_loop", "gla_loop"])
def test_loops_of_models(name: str, order: tuple[str, ...], tvm: Any, tmp_path: Path) -> None:
    """Wherever TVM is in the list it gets the loop; saved, loaded, and without machine code."""
    network = DYNAMIC[name]
    model, (x,) = network.make(), network.inputs(0)
    backends = [tvm if each == "tvm" else each for each in order]
    compiled = regraft.compile(model, (x,), backends=backends)
    assert "cf.scan" in str(compiled.ir)
    assert set(compiled.report.to_dict()["executors"]) <= {"ort", "tvm"}
    assert _scans(compiled) == 1
    with torch.no_grad():
        expected, own = in_double(model, x), model(x)
        assert_close([compiled(x)], [expected], [own], reassociates=True)
        compiled.save(tmp_path / "model")
        for allowed in (True, False):
            loaded = regraft.load(tmp_path / "model", allow_native=allowed)
            assert_close([loaded(x)], [expected], [own], reassociates=True)


def _scans(compiled: regraft.CompiledModel) -> int:
    """How many kernels of TVM are scans."""
    programs = (step.executable for step in compiled.plan.steps if step.executable.backend == "tvm")
    calls = [call for each in programs for call in each.save(_Nowhere())["program"]["calls"]]
    return sum(call["ops"] == ["cf.scan"] for call in calls)


class Steps(nn.Module):
    """A loop over steps, of a batch of any size."""

    def forward(self, x: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        h, rows = x.new_zeros(x.shape[0], x.shape[2]), []
        for t in range(x.shape[1]):
            h = h * torch.sigmoid(decay) + x[:, t] * torch.exp(-h * h)
            rows.append(h.sum(-1))
        return torch.stack(rows, 1), h


def test_a_batch_of_any_size(tvm: Any) -> None:
    model, x, decay = Steps().eval(), torch.randn(3, 40, 6), torch.randn(6)
    sizes = ({0: Dim("batch", min=0, max=64)}, None)
    compiled = regraft.compile(model, (x, decay), dynamic_shapes=sizes, backends=("ort", tvm))
    assert _scans(compiled) == 1
    for batch in (3, 0, 1, 37):
        x = torch.randn(batch, 40, 6)
        expected, own = in_double(model, x, decay), model(x, decay)
        assert_close(list(compiled(x, decay)), list(expected), list(own), reassociates=True)


class Sums(nn.Module):
    """Running sums over ``x``, whose number of rows is the number of steps."""

    def forward(self, x: Tensor) -> Tensor:
        def step(total: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            total = torch.sigmoid(total) + row
            return total, total.clone()

        return torch_scan(step, x.new_zeros(8), x)[1]


@pytest.mark.parametrize(("steps", "kernels"), [(4, 0), (400, 1)])
def test_a_scan_of_few_steps_stays_with_what_is_around_it(tvm: Any, steps: int, kernels: int) -> None:
    """Where TVM stands behind another back end; as the first it gets what it takes."""
    model, x = Sums().eval(), torch.randn(steps, 8)
    compiled = regraft.compile(model, (x,), backends=("ort", tvm), cache=False)
    assert _scans(compiled) == kernels
    first = regraft.compile(model, (x,), backends=(tvm, "ort"), cache=False)
    assert _scans(first) == 1
    for each in (compiled, first):
        assert_close([each(x)], [in_double(model, x)], [model(x)], reassociates=True)


def test_a_scan_without_a_kernel_goes_on_as_before(tvm: Any) -> None:
    """The plan, or ONNX Runtime, runs a loop that TVM has no kernel for."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            h, rows = x.new_zeros(x.shape[0], 6), []
            for t in range(x.shape[1]):
                h = torch.sin(self.inner(h)) * h + x[:, t]
                rows.append(h)
            return torch.stack(rows, 1)

    model, x = Cell().eval(), torch.randn(2, 40, 6)
    expected, own = in_double(model, x), model(x)
    for backends, executors in ((("ort", tvm), {"ort"}), ((tvm,), {"tvm", "host"})):
        compiled = regraft.compile(model, (x,), backends=backends)
        assert "cf.scan" in str(compiled.ir)
        assert set(compiled.report.to_dict()["executors"]) == executors
        assert _scans(compiled) == 0
        assert_close([compiled(x)], [expected], [own], reassociates=True)
