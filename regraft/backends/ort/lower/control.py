"""Conditions and loops as ``If``, ``Loop`` and ``Scan``."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from regraft.backends.ort.dtypes import ONNX_TYPES, carrier
from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower import blocks
from regraft.backends.ort.lower.empty import empty, unless_empty
from regraft.ir import DType, Op, Region, Value, settled_form


def _cond(e: Emitter, op: Op) -> list[ir.Value]:
    """The branches take nothing: what they use they see from outside, without a copy."""
    operands = _operands(e, op)
    counts = [_checks_in(e, region) for region in op.regions]
    branches: list[ir.Graph] = []
    messages: list[str] = []
    for number, name in enumerate(("then_branch", "else_branch")):
        known = len(e.checks)
        with e.nested():
            given = blocks.entered(e, op.regions[number], operands)
            results = [e.get(v) for v in e.run_region(op.regions[number], given)]
            own = _take_checks(e, known, counts[number])
            passed = [e.scalar(True, DType.BOOL) for _ in range(counts[1 - number])]
            checks = [value for value, _ in own]
            results += [*passed, *checks] if number else [*checks, *passed]
            branches.append(e.graph(name, results))
        messages += [message for _, message in own]
    if not op.results and not messages:
        return []
    then, other = branches
    pred = e.operand(op, "pred")
    found = e.ops("If", len(op.results) + len(messages), pred, then_branch=then, else_branch=other)
    e.checks += zip(found[len(op.results) :], messages, strict=True)
    return found[: len(op.results)]


def _checks_in(e: Emitter, region: Region) -> int:
    return sum(op.name == "rg.check" for op in region.walk()) if e.target.shared else 0


def _take_checks(e: Emitter, known: int, count: int) -> list[tuple[ir.Value, str]]:
    """The ``count`` checks emitted after the first ``known``: results of the node that is in the making."""
    taken = e.checks[known:]
    del e.checks[known:]
    assert len(taken) == count, f"{len(taken)} checks were emitted, {count} counted"
    return taken


def _alt(e: Emitter, op: Op) -> list[ir.Value]:
    """The form that the sizes settle; else an ``If`` for each cut, the constants staying outside."""
    settled = settled_form(op)
    if settled is not None:
        return [e.get(v) for v in e.run_region(op.regions[settled], _operands(e, op))]
    return _switch(e, op, op.attr("cuts"), op.attr("order"))


def _operands(e: Emitter, op: Op) -> list[ir.Value]:
    return [e.get(v) for v in op.variadic("operands")]


def _switch(e: Emitter, op: Op, cuts: Sequence[int], order: Sequence[int]) -> list[ir.Value]:
    """Region ``order[i]`` behind the first ``i`` of ``cuts``."""
    if not cuts:
        region = op.regions[order[0]]
        values = [e.get(v) for v in e.run_region(region, _operands(e, op))]
        e.forget(region)  # another interval may take the same form
        return values
    middle = len(cuts) // 2
    rows = e.size_scalar(op.site.dim_attr("rows"))
    below = e.op("Less", rows, e.scalar(cuts[middle], DType.I64))
    branches: list[ir.Graph] = []
    for name, part in (("then_branch", slice(0, middle)), ("else_branch", slice(middle + 1, None))):
        intervals = order[: middle + 1] if part.start == 0 else order[middle + 1 :]
        with e.nested():
            branches.append(e.graph(name, _switch(e, op, cuts[part], intervals)))
    then, other = branches
    return e.ops("If", len(op.results), below, then_branch=then, else_branch=other)


def _while(e: Emitter, op: Op) -> list[ir.Value]:
    """``Loop`` tests at the end of a trip, so the condition is emitted twice: before it and in it."""
    condition, body = op.regions
    start = [e.get(v) for v in op.operands]
    carried = [i for i, (arg, out) in enumerate(zip(body.args, body.results, strict=True)) if arg is not out]
    (first,) = e.run_region(condition, start)
    enter = e.get(first)
    known, count = len(e.checks), sum(_checks_in(e, region) for region in op.regions)
    with e.nested():
        inputs = [e.value("trip", DType.I64, ()), e.value("go", DType.BOOL, ())]
        inner = list(start)  # values that no trip changes stay outside: a carried one is copied
        for i in carried:
            inner[i] = _argument(e, body.args[i])
            inputs.append(inner[i])
        passed = [e.value("passed", DType.BOOL, ()) for _ in range(count)]
        after = [e.get(v) for v in e.run_region(body, inner)]
        e.forget(condition)
        e.redefine(condition.symbols)
        (again,) = e.run_region(condition, after)
        own = _take_checks(e, known, count)
        checks = [e.op("And", before, now) for before, (now, _) in zip(passed, own, strict=True)]
        results = [e.get(again), *(after[i] for i in carried), *checks]
        graph = e.graph("body", results, [*inputs, *passed])
    e.forget(condition)
    if not carried and not count:
        return start
    initial = [*(start[i] for i in carried), *(e.scalar(True, DType.BOOL) for _ in range(count))]
    final = e.ops("Loop", len(initial), None, enter, *initial, body=graph)
    e.checks += zip(final[len(carried) :], (message for _, message in own), strict=True)
    by_index = dict(zip(carried, final[: len(carried)], strict=True))
    return [by_index.get(i, start[i]) for i in range(len(start))]


def _scan(e: Emitter, op: Op) -> Sequence[ir.Value]:
    """``Scan`` reads slices and writes rows in place; it refuses to make no trip."""
    count = op.variadic("scanned")[0].tensor.shape[0]

    def nothing() -> list[ir.Value]:
        starts = [e.get(value) for value in op.variadic("carried")]
        return [*starts, *(empty(e, result.tensor) for result in op.results[len(starts) :])]

    return unless_empty(e, count, lambda: _trips(e, op), nothing)


def _trips(e: Emitter, op: Op) -> list[ir.Value]:
    """What is fixed the body of the ``Scan`` sees from outside."""
    (body,) = op.regions
    carried, scanned = op.variadic("carried"), op.variadic("scanned")
    moving = len(carried) + len(scanned)
    with e.nested():
        inputs = [_argument(e, arg) for arg in body.args[:moving]]
        fixed = [e.get(value) for value in op.variadic("fixed")]
        results = [e.get(value) for value in e.run_region(body, [*inputs, *fixed])]
        graph = e.graph("body", results, inputs)
    given = [e.get(value) for value in (*carried, *scanned)]
    return e.ops("Scan", len(op.results), *given, body=graph, num_scan_inputs=len(scanned))


def _scan_fits(op: Op) -> str | None:
    checks = any(inner.name == "rg.check" for region in op.regions for inner in region.walk())
    return "a trip of it checks values" if checks else None


def _argument(e: Emitter, arg: Value) -> ir.Value:
    """An input of a loop's body. Its sizes are left open: they may change from trip to trip."""
    dtype = carrier(arg.tensor.dtype)
    value = e.value("carried", dtype, None)
    value.type = ir.TensorType(ONNX_TYPES[dtype])
    value.shape = ir.Shape([d if isinstance(d, int) else None for d in arg.tensor.shape])
    return value


def _check_op(e: Emitter, op: Op) -> list[ir.Value]:
    if e.target.shared:  # A file for others has nowhere to raise from.
        e.checks.append((e.operand(op, "pred"), str(op.attr("message"))))
    return []


LOWERINGS: dict[str, Lowering] = {
    "cf.cond": Lowering(_cond),
    "cf.while": Lowering(_while),
    "cf.scan": Lowering(_scan, check=_scan_fits),
    "rg.alt": Lowering(_alt),
    "rg.check": Lowering(_check_op),
}
