"""docs/support.md lists every op of the table, what it becomes, and what each back end does not take."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from regraft.backends import backend
from regraft.ir import OPS, Builder, DType, OpDef
from tests.backends.test_ort_ops import LIMITS
from tests.ops import harness
from tests.ops.samples import F32, SAMPLES, Sample
from tests.ops.test_selection import CALLS, selecting

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = "docs/support.md"
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

ORT: Any = backend("ort")
TVM: Any = backend("tvm")
FLOATS = (DType.F32, DType.F64, DType.F16, DType.BF16)


def canonical() -> Iterator[tuple[str, ...]]:
    """Op, element types on ONNX Runtime and of kernels by TVM, and the limits of each on the former."""
    for name, definition in sorted(OPS.items()):
        if definition.canonical and definition.dialect in ("aten", "rg") and name != "rg.const":
            yield f"`{name}`", dtypes(ORT, name), dtypes(TVM, name), "; ".join(limits(name))


def dtypes(executor: Any, name: str) -> str:
    """The float types for which samples are lowered, and the other types of those that are."""
    if name in {s.name for s in CALLS}:
        return "f32, i64, bool" if executor is ORT else ""
    samples = [s for s in SAMPLES if s.name == name]
    found = [
        dtype.value
        for dtype in FLOATS
        if any(s.is_float and executor.supports(harness.op_of(s.at_dtype(dtype))) is None for s in samples)
    ]
    lowered = [s for s in samples if executor is ORT or executor.supports(harness.op_of(s)) is None]
    others = {o.dtype for s in lowered for o in s.operands if o.dtype != F32}
    return ", ".join([*found, *sorted(t.value for t in others if t not in FLOATS)])


def limits(name: str) -> Iterator[str]:
    for (op, dtype), reason in LIMITS.items():
        if op == name:
            yield f"{dtype.value}: {reason}"


def spellings() -> Iterator[tuple[str, ...]]:
    """Op, and the canonical ops that its samples become."""
    for name, definition in sorted(OPS.items()):
        if not definition.canonical:
            yield f"`{name}`", ", ".join(f"`{n}`" for n in made_of(definition))


def made_of(definition: OpDef) -> list[str]:
    samples = [s for s in SAMPLES if s.name == definition.name]
    found = {op.name for s in samples for op in harness.decomposed(s).walk() if op.name != "cf.yield"}
    return sorted(found | {name for s in CALLS if s.name == definition.name for name in selected_by(s)})


def selected_by(sample: Sample) -> Iterator[str]:
    """The ops that one which defines its own length becomes."""
    op = selecting(sample)
    assert op.parent is not None
    assert op.definition.decompose is not None
    op.definition.decompose(Builder(OPS, op.parent, op), op)
    yield from (each.name for each in op.parent.ops if each is not op)


HEADERS = {
    "canonical": ("op", "element types on `ort`", "element types on `tvm`", "limits on `ort`"),
    "spellings": ("op", "becomes"),
}
ROWS: dict[str, Callable[[], Iterator[tuple[str, ...]]]] = {"canonical": canonical, "spellings": spellings}


def table(kind: str) -> str:
    header = HEADERS[kind]
    rows = [header, ("---",) * len(header), *ROWS[kind]()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_the_tables_are_up_to_date(check_golden: Callable[[str, str], None]) -> None:
    text = (REPOSITORY / PAGE).read_text(encoding="utf-8")
    assert [m[2] for m in TABLE.finditer(text)] == list(ROWS)
    check_golden(PAGE, TABLE.sub(lambda m: f"{m[1]}{table(m[2])}{m[3]}", text))


def test_every_op_is_listed() -> None:
    text = (REPOSITORY / PAGE).read_text(encoding="utf-8")
    inside = {name for name, d in OPS.items() if d.dialect == "cf"} | {"rg.const"}
    assert set(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)) | inside == set(OPS)
