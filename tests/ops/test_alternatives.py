"""``rg.alt``: types, text, and the form that runs at each number of rows on every back end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from regraft.backends import LowerOptions, backend
from regraft.ir import (
    OPS,
    Builder,
    DType,
    Function,
    Module,
    Op,
    Region,
    Rewriter,
    TensorType,
    Value,
    chosen_form,
    dims,
    parse_module,
    print_module,
    settled_form,
    structurally_equal,
    symbol,
    verify,
)
from tests.ops.harness import NoConstants

S = symbol("s", 1, 100)
ROWS = TensorType(DType.F32, (S, 4))
FORMS = ("plus one", "plus two", "plus three")


def form(number: int) -> Region:
    """Adds ``number``, so that the result tells which form ran."""
    region = Region([ROWS])
    b = Builder(OPS, region)
    b.create("cf.yield", ((b.aten.add.Scalar(region.args[0], number),),))
    return region


def alternatives(
    cuts: Sequence[int] = (), order: Sequence[int] = (0,), count: int = 3, rows: Any = S
) -> tuple[Module, Op]:
    body = Region([ROWS])
    b = Builder(OPS, body)
    attrs = {"rows": rows, "cuts": tuple(cuts), "order": tuple(order), "forms": FORMS[:count]}
    op = b.create("rg.alt", (body.args,), attrs, regions=[form(i + 1) for i in range(count)])
    b.create("cf.yield", ((op.result,),))
    (size,) = dims.symbols_of(S)
    return Module({"forward": Function("forward", body, (size,))}), op


@pytest.mark.parametrize("name", ["eager", "ort"])
@pytest.mark.parametrize(
    ("cuts", "order", "expected"),
    [
        ((), (1,), {1: 2, 7: 2}),
        ((4,), (1, 0), {1: 2, 3: 2, 4: 1, 100: 1}),
        ((4, 8), (2, 0, 1), {1: 3, 3: 3, 4: 1, 7: 1, 8: 2, 9: 2}),
        ((4, 8, 16), (0, 1, 0, 2), {1: 1, 4: 2, 7: 2, 8: 1, 15: 1, 16: 3, 99: 3}),
    ],
)
def test_the_form_of_the_interval_runs(name: str, cuts: Any, order: Any, expected: dict[int, int]) -> None:
    module, op = alternatives(cuts, order)
    verify(module, "captured")
    assert backend(name).supports(op) is None
    executable = backend(name).lower(module.main, NoConstants(), LowerOptions())
    for rows, number in expected.items():
        assert chosen_form(op, rows) == number - 1
        (result,) = executable.run([torch.zeros(rows, 4)], {"s": rows})
        assert torch.equal(result, torch.full((rows, 4), float(number)))


def test_round_trip() -> None:
    module, _ = alternatives((4, 8), (2, 0, 1))
    assert structurally_equal(parse_module(print_module(module)), module)


def test_decomposition_is_the_reference() -> None:
    module, op = alternatives((4,), (1, 2))
    assert op.definition.decompose is not None
    rewriter = Rewriter(OPS, "test")
    rewriter.replace(op, op.definition.decompose(rewriter.before(op), op))
    verify(module, "captured")
    executable = backend("eager").lower(module.main, NoConstants(), LowerOptions())
    assert torch.equal(executable.run([torch.zeros(2, 4)], {"s": 2})[0], torch.ones(2, 4))


@pytest.mark.parametrize(
    ("cuts", "order", "rows", "expected"),
    [
        ((), (1,), S, 1),
        ((4,), (1, 1), S, 1),
        ((4,), (0, 1), S, None),
        ((4,), (0, 1), 3, 0),
        ((4,), (0, 1), 4, 1),
        ((200,), (0, 1), S, 0),
        ((4, 8), (0, 1, 0), S, None),
    ],
)
def test_what_sizes_settle(cuts: Any, order: Any, rows: Any, expected: int | None) -> None:
    _, op = alternatives(cuts, order, rows=rows)
    assert settled_form(op) == expected


def _other_result() -> Region:
    region = Region([ROWS])
    b = Builder(OPS, region)
    b.create("cf.yield", ((b.aten._to_copy(region.args[0], dtype=DType.F64),),))
    return region


def _other_argument() -> Region:
    region = Region([ROWS.with_dtype(DType.F64)])
    b = Builder(OPS, region)
    b.create("cf.yield", ((b.aten._to_copy(region.args[0], dtype=DType.F32),),))
    return region


@pytest.mark.parametrize(
    ("regions", "attrs", "message"),
    [
        ((), {"forms": ()}, "no region"),
        ((form, form), {"forms": ("one",)}, "2 regions and 1 names"),
        ((form, form), {"forms": ("a", "b"), "cuts": (4,)}, "1 cuts make 2 intervals"),
        ((form, form), {"forms": ("a", "b"), "cuts": (4, 4), "order": (0, 1, 0)}, "do not increase"),
        ((form, form), {"forms": ("a", "b"), "order": (2,)}, "names no region"),
        ((form, lambda _: _other_result()), {"forms": ("a", "b")}, "results of region 1"),
        ((form, lambda _: _other_argument()), {"forms": ("a", "b")}, "arguments of region 1"),
    ],
)
def test_refusals(regions: Sequence[Callable[[int], Region]], attrs: dict[str, Any], message: str) -> None:
    body = Region([ROWS])
    operands: list[Value] = list(body.args)
    with pytest.raises(TypeError, match=message):
        Builder(OPS, body).create("rg.alt", (operands,), attrs, regions=[make(1) for make in regions])
