"""Writing an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.backends import FileExporter, backend
from regraft.compiler.materialise import Store
from regraft.compiler.partition import assign
from regraft.compiler.pipeline import Compilation
from regraft.compiler.report import Report
from regraft.ir import Exactness, Function, unique_name
from regraft.rewrites import FAMILIES


@dataclass(frozen=True)
class ExportReport:
    """What ``export_onnx`` wrote.

    Fields:
        path: the file.
        opset: version of the default domain.
        operators: ``domain::op`` -> nodes (the default domain has no prefix).
        inputs, outputs: names in the order of the flat arguments and results: the path to each, as
            ``batch_ids`` of an argument ``batch`` and ``states_last`` of a result, else ``output_N``. The
            model's state follows the arguments, under the names of its buffers.
        writes: output -> the input that it is the new value of: feed it back there at the next run. Called
            ``<input>_out``, these outputs follow the results.
        checks: what the model checks of values and the file does not, each with its line: a run of the file
            goes on where a call of the model would raise.
        bytes: size of the file and of the weights beside it.
        compile: the report of the rewrites.
        adapters: names of the adapters between which the input ``active_adapter`` chooses, the first of
            them being 1; empty where there is no such input.
        approximated_by: names of the passes and rewrites that changed values beyond the order of operations.
        metadata: what the file says of itself, under keys that begin with ``regraft.``.
    """

    path: Path
    opset: int
    operators: dict[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    writes: dict[str, str]
    checks: tuple[str, ...]
    bytes: int
    compile: Report
    adapters: tuple[str, ...] = ()
    approximated_by: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "path": str(self.path),
            "opset": self.opset,
            "operators": dict(self.operators),
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "writes": dict(self.writes),
            "checks": list(self.checks),
            "adapters": list(self.adapters),
            "approximated_by": list(self.approximated_by),
            "metadata": dict(self.metadata),
            "bytes": self.bytes,
            "compile": self.compile.to_dict(),
        }

    def __str__(self) -> str:
        operators = ", ".join(f"{name} {count}" for name, count in sorted(self.operators.items()))
        lines = [f"{self.path}: opset {self.opset}, {self.bytes / 1e6:.1f} MB", operators]
        if self.adapters:
            numbered = ", ".join(f"{number} {name}" for number, name in enumerate(("none", *self.adapters)))
            lines.append(f"active_adapter: {numbered}")
        lines += told_of_approximations(self.approximated_by, self.compile)
        if self.checks:
            lines += ["checks that are not in the file:", *(f"  {check}" for check in self.checks)]
        return "\n".join([*lines, *self.compile.remarks()])


def told_of_approximations(by: Sequence[str], report: Report) -> list[str]:
    """A line for what was approximated, if anything was."""
    if not by:
        return []
    error = "not measured" if report.approximation is None else f"error {report.approximation:.2e}"
    return [f"approximated by {', '.join(by)}: {error} on the example"]


def approximating(compilation: Compilation) -> tuple[str, ...]:
    """Names of the passes and rewrites that changed values beyond the order of operations."""
    options, stats = compilation.options, compilation.report.rewrites
    told = ((each.name, getattr(each, "approximates", None)) for each in options.passes)
    passes = [name for name, approximates in told if callable(approximates) and approximates()]
    rewrites = (*(each for family in FAMILIES.values() for each in family), *options.rewrites)
    loose = [each.name for each in rewrites if each.exactness.rank > Exactness.REASSOCIATES.rank]
    return (*passes, *(name for name in loose if name in stats and stats[name].hits))


def metadata_of(compilation: Compilation, adapters: Sequence[str]) -> dict[str, str]:
    """What a file says of itself; ``adapters`` are those between which its input chooses.

    Values of more than one part are JSON.
    """
    options, by = compilation.options, approximating(compilation)
    found: dict[str, str] = {}
    if adapters:
        found["regraft.adapters"] = json.dumps(list(adapters))
    elif options.adapters.names:
        (found["regraft.merged_adapter"],) = options.adapters.names
    if by:
        told = {"by": by, "tolerance": options.exactness.tolerance, "error": compilation.report.approximation}
        found["regraft.approximation"] = json.dumps(told)
    return found


class Writer:
    """An exporter that takes what it can write, even where it could not run it."""

    def __init__(self, exporter: FileExporter) -> None:
        self.name = exporter.name
        self.supports = exporter.can_write
        self.lower = exporter.lower


def write_onnx(
    compilation: Compilation,
    store: Store,
    path: Path,
    opset: int | None,
    contrib: bool,
    sizes: Mapping[str, str],
    adapters: tuple[str, ...] = (),
) -> ExportReport:
    """Lower the whole module to one ONNX graph and write it to ``path``, whole or not at all.

    ``sizes`` has the user's names of symbols.

    Raises:
        UnsupportedOpError: an op has no ONNX form; all of them are listed.
        OptionError: ``path`` cannot be written, or the opset is not one that can be emitted.
    """
    function = compilation.module.main
    exporter = backend("ort")
    assert isinstance(exporter, FileExporter), "the ort back end writes files"
    assign(function, (Writer(exporter),), None, compilation.options.table)
    inputs, checks = exporter.argument_names(function), checks_in(function)
    metadata = metadata_of(compilation, adapters)
    written = exporter.export_file(
        function,
        store,
        path,
        opset=opset,
        contrib=contrib,
        input_names=inputs,
        output_names=output_names(function, inputs),
        size_names=size_names(function, sizes),
        metadata=metadata,
    )
    for domain in written.untried:
        compilation.report.notes.append(
            f"the file was checked and not loaded: there is no kernel for the operators of '{domain}' here"
        )
    return ExportReport(
        path,
        written.opset,
        written.operators,
        written.inputs,
        written.outputs,
        {written.outputs[result]: written.inputs[target] for result, target in function.aliases.items()},
        checks,
        written.bytes,
        compilation.report,
        adapters,
        approximating(compilation),
        metadata,
    )


def checks_in(function: Function) -> tuple[str, ...]:
    """The checks in ``function``, each once, as the report names them."""
    found = [op for op in function.walk() if op.name == "rg.check"]
    return tuple(dict.fromkeys(f"{op.loc}: {op.attr('message')}" for op in found))


def output_names(function: Function, inputs: Sequence[str]) -> tuple[str, ...]:
    """A name for each flat result, none of them among ``inputs``.

    It is the path to the result through dicts and output classes, with ``output`` before it where it starts
    in a tuple, else ``output_N``. What is written back to an input is called ``<input>_out``.
    """
    signature = function.signature
    computed = len(function.results) - len(function.aliases) - len(signature.returned)
    paths = _paths(signature.out_structure)
    leaves = [(path, out) for path, out in zip(paths, signature.outputs, strict=True) if isinstance(out, int)]
    names: dict[int, str] = {}
    taken = set(inputs)
    for position, (path, out) in enumerate(leaves):
        # Arguments that are returned come after what is written back.
        result = out if out < computed else out + len(function.aliases)
        names[result] = unique_name(_joined(path) or f"output_{position}", taken)
    for result, target in function.aliases.items():
        names[result] = unique_name(f"{inputs[target]}_out", taken)
    return tuple(names[result] for result in range(len(function.results)))


def _joined(path: Sequence[str | int]) -> str:
    """The name that ``path`` gives; empty where it has no key."""
    if not any(isinstance(part, str) for part in path):
        return ""
    start = ("output",) if isinstance(path[0], int) else ()
    return "_".join(str(part) for part in (*start, *path))


def _paths(structure: Any) -> list[tuple[str | int, ...]]:
    """The way to each leaf: keys of dicts and output classes, names of fields, positions elsewhere."""
    if structure.is_leaf():
        return [()]
    children = structure.children()
    fields: Any = getattr(structure.context, "_fields", structure.context)
    own: list[Any] = list(fields) if isinstance(fields, (list, tuple)) else []  # pyright: ignore[reportUnknownArgumentType]
    keys: Sequence[Any] = [str(key) for key in own] if len(own) == len(children) else range(len(children))
    return [(key, *path) for key, child in zip(keys, children, strict=True) for path in _paths(child)]


def size_names(function: Function, given: Mapping[str, str]) -> dict[str, str]:
    """Symbol -> its name in a file: the user's of ``given``, and others' own, told apart from these."""
    inner = (s for op in function.walk() for s in (*op.symbols, *(s for r in op.regions for s in r.symbols)))
    symbols = dict.fromkeys(symbol.name for symbol in (*function.symbols, *inner))
    taken: set[str] = set()
    names = {name: unique_name(given[name], taken) for name in symbols if name in given}
    return {name: names.get(name) or unique_name(name, taken) for name in symbols}
