"""Writing a model as a folder of networks without branches, and a plan that joins them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.backends import FileExporter, backend
from regraft.compiler.export import (
    Writer,
    approximating,
    checks_in,
    metadata_of,
    output_names,
    size_names,
    told_of_approximations,
)
from regraft.compiler.materialise import Store
from regraft.compiler.partition import assign
from regraft.compiler.pipeline import Compilation
from regraft.compiler.report import Report
from regraft.errors import BackendError, OptionError
from regraft.ir import Function, Op, Region, Symbol, Trait, Value, clone_op, dims, symbols_in

_FORMAT = 1
_BRANCHING = ("cf.cond", "cf.while")
_PLAN, _RUNNER = "plan.json", "run_plan.py"

Record = dict[str, Any]


@dataclass(frozen=True)
class PlanReport:
    """What ``export_plan`` wrote.

    Fields:
        folder: where.
        files: the networks, in the order in which the plan names them first.
        inputs, outputs: names in the order of the flat arguments and results.
        writes: output -> the input that it is the new value of, as in ``ExportReport``.
        checks: what the model checks of values and the folder does not, as in ``ExportReport``.
        conditions, loops: how many the plan holds.
        bytes: size of all files.
        compile: the report of the rewrites.
        approximated_by: as in ``ExportReport``; the networks' metadata has it.
    """

    folder: Path
    files: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    writes: dict[str, str]
    checks: tuple[str, ...]
    conditions: int
    loops: int
    bytes: int
    compile: Report
    approximated_by: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        names = ("files", "inputs", "outputs", "writes", "checks", "conditions", "loops", "bytes")
        values = {name: getattr(self, name) for name in names}
        values["approximated_by"] = list(self.approximated_by)
        return {"folder": str(self.folder), **values, "compile": self.compile.to_dict()}

    def __str__(self) -> str:
        parts = f"{len(self.files)} networks, {self.conditions} conditions, {self.loops} loops"
        lines = [f"{self.folder}: {parts}, {self.bytes / 1e6:.1f} MB"]
        lines += told_of_approximations(self.approximated_by, self.compile)
        if self.checks:
            lines += ["checks that are not in the folder:", *(f"  {check}" for check in self.checks)]
        return "\n".join([*lines, *self.compile.remarks()])


def write_plan(
    compilation: Compilation,
    store: Store,
    folder: Path,
    opset: int | None,
    contrib: bool,
    sizes: Mapping[str, str],
) -> PlanReport:
    """Write the module as networks, a plan and the script that runs them; whole or not at all.

    ``sizes`` has the user's names of symbols.

    Raises:
        UnsupportedOpError: an op has no ONNX form; all of them are listed.
        OptionError: ``folder`` is there already or cannot be written.
        BackendError: a network reads a size that no tensor in its reach has.
    """
    function, exporter = compilation.module.main, backend("ort")
    assert isinstance(exporter, FileExporter), "the ort back end writes files"
    assign(function, (Writer(exporter),), None, compilation.options.table)
    if folder.exists():
        raise OptionError(f"'{folder}' is there already; a plan is a folder of its own")
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise OptionError(f"cannot write to '{folder.parent}': {error.strerror}") from error
    try:
        names, metadata = size_names(function, sizes), metadata_of(compilation, ())
        plan = _Plan(exporter, store, temporary, opset, contrib, names, metadata)
        record = plan.of(function)
        (temporary / _PLAN).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (temporary / _RUNNER).write_text(exporter.plan_runner(), encoding="utf-8")
        size = sum(file.stat().st_size for file in temporary.iterdir())
        temporary.chmod(folder.parent.stat().st_mode & 0o777)  # mkdtemp's is for the owner alone
        os.replace(temporary, folder)
    except OSError as error:
        raise OptionError(f"cannot write '{folder}': {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    inputs, outputs = tuple(record["inputs"]), tuple(record["outputs"])
    writes = {outputs[result]: inputs[target] for result, target in function.aliases.items()}
    found = [op.name for op in function.walk()]
    return PlanReport(
        folder,
        tuple(plan.files),
        inputs,
        outputs,
        writes,
        checks_in(function),
        found.count("cf.cond"),
        found.count("cf.while"),
        size,
        compilation.report,
        approximating(compilation),
    )


@dataclass
class _Plan:
    """The plan in the making.

    Fields:
        sizes: names of symbols in the networks.
        slots: values that the plan knows -> their names in it.
        files: names of the networks that are written.
    """

    exporter: FileExporter
    store: Store
    folder: Path
    opset: int | None
    contrib: bool
    sizes: Mapping[str, str]
    metadata: Mapping[str, str]
    slots: dict[Value, str] = field(default_factory=dict[Value, str])
    files: list[str] = field(default_factory=list[str])
    _names: set[str] = field(default_factory=set[str])

    def of(self, function: Function) -> Record:
        inputs = self.exporter.argument_names(function)
        for name, argument in zip(inputs, function.args, strict=True):
            self._name(argument, name)
        block = self._block(function.body)
        outputs = dict(zip(output_names(function, inputs), block["results"], strict=True))
        return {
            "format": _FORMAT,
            "inputs": list(inputs),
            "outputs": outputs,
            "files": self.files,
            "steps": block["steps"],
        }

    def _block(self, region: Region) -> Record:
        """The steps of ``region``, whose arguments have their names, and the names of what it yields."""
        steps: list[Record] = []
        waiting: list[Op] = []
        results = dict.fromkeys(region.results)
        for op in region.ops:
            if op.has(Trait.TERMINATOR) or op.has(Trait.CONSTANT_LIKE):
                continue
            if op.name not in _BRANCHING:
                waiting.append(op)
                continue
            steps += self._network(region, waiting, results)
            waiting = []
            self._bring_constants(op.operands, steps)
            steps.append(self._condition(op) if op.name == "cf.cond" else self._loop(op))
        steps += self._network(region, waiting, results)
        self._bring_constants(region.results, steps)
        return {"steps": steps, "results": [self.slots[value] for value in region.results]}

    def _condition(self, op: Op) -> Record:
        names = [self.slots[operand] for operand in op.variadic("operands")]
        arms = [self._inner(region, names) for region in op.regions]
        results = [self._name(result) for result in op.results]
        pred = self.slots[op.operand("pred")]
        return {"if": pred, "then": arms[0], "else": arms[1], "results": results}

    def _loop(self, op: Op) -> Record:
        starts = [self.slots[operand] for operand in op.operands]
        carried = [self._name(result) for result in op.results]
        test, body = (self._inner(region, carried) for region in op.regions)
        return {"while": {"starts": starts, "carried": carried, "test": test, "body": body}}

    def _inner(self, region: Region, names: Sequence[str]) -> Record:
        """The block of a region whose arguments are called ``names``; what it makes is known in it alone."""
        outside = dict(self.slots)
        self.slots |= dict(zip(region.args, names, strict=True))
        block = self._block(region)
        self.slots = outside
        return block

    # -- networks ------------------------------------------------------------------------------

    def _network(self, region: Region, ops: Sequence[Op], results: Iterable[Value]) -> list[Record]:
        """The step that runs ``ops``; none where nothing reads what they give, as with checks."""
        inside, wanted = set(ops), set(results)
        outputs = [
            result
            for op in ops
            for result in op.results
            if result in wanted or any(use.op not in inside for use in result.uses)
        ]
        return [self._written(region, ops, outputs)] if outputs else []

    def _bring_constants(self, values: Iterable[Value], steps: list[Record]) -> None:
        """Networks that give the constants among ``values``, which no other network computes."""
        for value in dict.fromkeys(values):
            if value not in self.slots and value.op is not None and value.op.has(Trait.CONSTANT_LIKE):
                steps.append(self._written(value.op.parent, (), [value]))

    def _written(self, region: Region | None, ops: Sequence[Op], outputs: Sequence[Value]) -> Record:
        assert region is not None, "a value of the plan is in a region"
        made = {result for op in ops for result in op.results}
        read = dict.fromkeys(v for op in ops for v in op.operands if v not in made)
        constants = [v.op for v in (*read, *outputs) if v.op is not None and v.op.has(Trait.CONSTANT_LIKE)]
        inputs = [v for v in read if v.op is None or not v.op.has(Trait.CONSTANT_LIKE)]
        inputs += self._sizes(ops, inputs)
        body = Region([value.type for value in inputs])
        mapping: dict[Value, Value] = dict(zip(inputs, body.args, strict=True))
        for op in (*dict.fromkeys(constants), *ops):
            body.append(clone_op(op, mapping))
        body.append(Op.create(region.terminator.definition, ([mapping[value] for value in outputs],)))
        name = f"network_{len(self.files)}.onnx"
        symbols = tuple(dict.fromkeys(s for value in inputs for s in symbols_in(value.type)))
        names = [self.slots[value] for value in inputs], [self._name(value) for value in outputs]
        self.exporter.export_file(
            Function(name.removesuffix(".onnx"), body, symbols),
            self.store,
            self.folder / name,
            opset=self.opset,
            contrib=self.contrib,
            input_names=[f"in_{i}" for i in range(len(inputs))],
            output_names=[f"out_{i}" for i in range(len(outputs))],
            size_names=self.sizes,
            metadata=self.metadata,
        )
        self.files.append(name)
        given = {f"in_{i}": slot for i, slot in enumerate(names[0])}
        got = {f"out_{i}": slot for i, slot in enumerate(names[1])}
        return {"file": name, "inputs": given, "outputs": got}

    def _sizes(self, ops: Sequence[Op], inputs: Sequence[Value]) -> list[Value]:
        """More inputs, for sizes that the ops mention and that no shape of ``inputs`` tells.

        Raises:
            BackendError: nothing that the plan knows has such a size.
        """
        all_ops = [inner for op in ops for inner in (op, *(i for r in op.regions for i in r.walk()))]
        own = {s for op in all_ops for s in (*op.symbols, *(s for r in op.regions for s in r.symbols))}
        mentioned = dict.fromkeys(
            s
            for op in all_ops
            for part in (*(v.type for v in (*op.operands, *op.results)), *op.attrs.values())
            for s in symbols_in(part)
        )
        told, more = _told(inputs), list[Value]()
        for symbol in mentioned:
            if symbol in own or symbol in told:
                continue
            value = next((v for v in self.slots if symbol in _told([v])), None)
            if value is None:
                raise BackendError(
                    f"the size {symbol} is known by no tensor between two networks of the plan; "
                    "export_onnx writes one file, in which it is known",
                    "ort",
                )
            more.append(value)
            told |= _told([value])
        return more

    def _name(self, value: Value, name: str = "") -> str:
        """A name of its own for ``value``."""
        hint = name or value.hint or "value"
        count, found = 1, hint
        while found in self._names:
            count += 1
            found = f"{hint}_{count}"
        self._names.add(found)
        self.slots[value] = found
        return found


def _told(values: Iterable[Value]) -> set[Symbol]:
    """The symbols that are a size of one of ``values``."""
    found = (dims.as_symbol(size) for value in values for size in value.tensor.shape)
    return {symbol for symbol in found if symbol is not None}
