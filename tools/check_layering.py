"""Checks who imports whom, as docs/architecture.md section 1 lays down.

Every import statement counts, wherever it stands: in a function, under TYPE_CHECKING, or as a literal
`import_module("...")`. The only way round is a literal table of names, which is how back ends are found.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = "regraft"
FOLDERS = ("ir", "rewrites", "compiler", "backends", "runtime")

ALLOWED: Mapping[str, frozenset[str]] = {
    "errors": frozenset(),
    "timing": frozenset(),
    "ir": frozenset({"errors"}),
    "plugins": frozenset({"errors"}),
    "runtime": frozenset({"errors", "plugins"}),
    "rewrites": frozenset({"errors", "ir"}),
    # A back end that tunes measures by the noise rule and judges values by the numerics rule.
    "backends": frozenset({"errors", "ir", "runtime", "timing", "numerics"}),
    "backends/run": frozenset({"errors", "runtime"}),
    # The compiler applies the numerics rule that testing shows the public.
    "compiler": frozenset(
        {"errors", "plugins", "ir", "rewrites", "backends", "runtime", "numerics", "graphs", "timing"}
    ),
    "testing": frozenset(
        {"errors", "numerics", "graphs", "op_testing", "path_counts", "ir", "rewrites", "backends", "runtime"}
    ),
    "op_testing": frozenset({"errors", "ir", "backends", "runtime", "numerics", "graphs"}),
    "graphs": frozenset({"errors", "ir", "backends", "runtime"}),
    "path_counts": frozenset({"errors", "ir"}),
    "numerics": frozenset({"errors"}),
    "conformance": frozenset({"errors", "ir", "backends", "runtime", "testing"}),
    "demo": frozenset({"", "errors", "ir", "testing", "timing"}),
    "steps": frozenset({"compiler"}),
    "cli": frozenset({"", "errors", "testing", "demo", *FOLDERS}),
    "__main__": frozenset({"cli"}),
    "": frozenset({"errors", "plugins", *FOLDERS}),
}
"""What each part of the package may import of the others; "" is `regraft/__init__.py`."""

PUBLIC = frozenset({"", "errors", "testing", "timing", "conformance", "ir", "steps"})
"""What every outside user may import. A rewrite, an op or a pass of one's own is written in the terms of
`regraft.ir`: Builder, Match, Example, TensorType, DType, OpDef, Operand, AttrSpec... Its face is public."""

OUTSIDE: Mapping[str, frozenset[str]] = {
    "tests/rewrites": PUBLIC | {"rewrites"},
    "tests/compiler": PUBLIC | {"compiler"},
    "tests/backends": PUBLIC | {"backends", "runtime"},
    "tests/ops": PUBLIC | {"backends", "runtime"},
    # Random programs go through every stage and back end.
    "tests/fuzz": PUBLIC | {"backends", "compiler"},
    "tests/runtime": PUBLIC | {"runtime"},
    "tests/cli": PUBLIC | {"cli"},
    "tests/docs": PUBLIC | {"cli"},
    "tests/examples": PUBLIC | {"demo"},
    # It compiles with and without some families of rewrites, which is nobody's option.
    "benchmarks/zoo.py": PUBLIC | {"rewrites"},
    "benchmarks/kernels.py": PUBLIC | {"backends", "runtime"},
    "tests": PUBLIC,
    "benchmarks": PUBLIC,
    "examples": PUBLIC,
}
"""The same for the code around the package, by path; the first row that holds a file counts."""

RUN = "run"
"""The module of a back end that a saved artefact loads, together with what it imports of its own back end."""

KEPT_OUT: Mapping[str, tuple[str, ...]] = {
    "torch": ("regraft/ir", "regraft/rewrites", "regraft/errors.py", "regraft/__init__.py"),
}
"""Libraries that these paths must not import."""

KEPT_IN: Mapping[str, str] = {"tvm": "regraft/backends/tvm", "onnxruntime": "regraft/backends/ort"}
"""Libraries that the package imports only here."""


@dataclass(frozen=True)
class Import:
    """One imported name: `module`, or `name` taken from `module`."""

    module: str
    name: str | None
    line: int
    is_lazy: bool = False
    """Whether it happens later than the import of the file, or (under TYPE_CHECKING) never."""


@dataclass(frozen=True)
class Source:
    """One Python file of the repository."""

    path: str
    module: str
    imports: tuple[Import, ...]
    exports: frozenset[str]
    """The literal `__all__`."""


class Repository:
    """All files that the rules speak about, by module name."""

    def __init__(self, root: Path) -> None:
        self.sources: dict[str, Source] = {}
        for top in (PACKAGE, "tests", "benchmarks", "examples"):
            for file in sorted((root / top).rglob("*.py")):
                source = read_source(root, file)
                self.sources[source.module] = source
        self.back_ends = {file.name for file in (root / PACKAGE / "backends").glob("*/") if file.is_dir()}
        self.run_time = {module for back_end in self.back_ends for module in self._loaded_with(back_end)}
        packages = {module.rpartition(".")[0] for module in self.run_time}
        self.before_run_time = packages | {f"{PACKAGE}.backends", PACKAGE}

    def target(self, imported: Import) -> str:
        """The module that an import loads: `from a import b` loads `a.b` where that is a module."""
        if imported.name is not None and f"{imported.module}.{imported.name}" in self.sources:
            return f"{imported.module}.{imported.name}"
        return imported.module

    def violations(self) -> list[str]:
        found = [problem for source in self.sources.values() for problem in self._check(source)]
        return [*found, *self._cycles()]

    def _loaded_with(self, back_end: str) -> set[str]:
        """`run` of a back end, and the modules of the same back end that it needs, directly or not."""
        found: set[str] = set()
        pending = [f"{PACKAGE}.backends.{back_end}.{RUN}"]
        while pending:
            module = pending.pop()
            if module in self.sources and module not in found:
                found.add(module)
                targets = map(self.target, self.sources[module].imports)
                pending += [t for t in targets if self._back_end_of(t) == back_end and t.count(".") > 2]
        return found

    def _check(self, source: Source) -> Iterator[str]:
        for imported in source.imports:
            where = f"{source.path}:{imported.line}"
            if imported.module.split(".")[0] == PACKAGE:
                problem = self._check_own(source, imported)
            else:
                problem = check_library(source.path, imported.module.split(".")[0])
            if problem:
                yield f"{where}: {problem}"

    def _check_own(self, source: Source, imported: Import) -> str | None:
        target = self.target(imported)
        if is_within(source.path, PACKAGE):
            back_end = self._back_end_of(target)
            if back_end not in (None, self._back_end_of(source.module)):
                return f"{target} is inside the back end {back_end}"
            layer = self._layer_of(source.module)
            if self._loads_too_much(source, imported, target):
                return f"{source.module} may load {target} only when asked for it: {RUN} works without"
            if layer in (part_of(target), self._layer_of(target)):
                return None
            allowed = ALLOWED.get(layer)
        else:
            layer, allowed = next(
                (row for row in OUTSIDE.items() if is_within(source.path, row[0])), ("", None)
            )
        if allowed is None:
            return f"{source.path} has no row in the layering table"
        if part_of(target) not in allowed:
            return f"{layer or PACKAGE} may not import {target}"
        return self._check_face(imported, target)

    def _back_end_of(self, module: str) -> str | None:
        """The back end that a module belongs to; None for what all back ends share."""
        parts = module.split(".")
        inside = parts[1:2] == ["backends"] and len(parts) > 2 and parts[2] in self.back_ends
        return parts[2] if inside else None

    def _layer_of(self, module: str) -> str:
        """A row of ALLOWED. What `run` loads has its own: it works without the compiler."""
        return "backends/run" if module in self.run_time else part_of(module)

    def _loads_too_much(self, source: Source, imported: Import, target: str) -> bool:
        """Whether a package's `__init__`, imported before its `run`, brings in what `run` may not."""
        if imported.is_lazy or source.module not in self.before_run_time:
            return False
        return target not in self.run_time and part_of(target) not in ALLOWED["backends/run"]

    def _check_face(self, imported: Import, target: str) -> str | None:
        """An outside user takes a package's names from its `__init__`, and only public ones."""
        face = self._face_of(target)
        exports = self.sources[face].exports if face in self.sources else frozenset[str]()
        exported = imported.module == face and imported.name in exports
        if target != face and not exported:
            return f"{target} is not the public face of {face}"
        if imported.name is not None and imported.name.startswith("_") and not imported.name.endswith("__"):
            return f"{imported.name} is private to {imported.module}"
        return None

    def _face_of(self, target: str) -> str:
        """A folder's package; a back end has one of its own, and a second one in `run`."""
        length = 2 if self._back_end_of(target) is None else 4 if target.endswith(f".{RUN}") else 3
        return ".".join(target.split(".")[:length])

    def _cycles(self) -> Iterator[str]:
        graph = {
            source.module: {self.target(i) for i in source.imports} & self.sources.keys()
            for source in self.sources.values()
        }
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            # The sorter lists a cycle from the imported module to its importer.
            yield f"import cycle: {' -> '.join(reversed(error.args[1]))}"


def read_source(root: Path, file: Path) -> Source:
    path = file.relative_to(root)
    parts = path.with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    package = module if is_package else ".".join(parts[:-1])
    tree = ast.parse(file.read_text(encoding="utf-8"), str(path))
    return Source(path.as_posix(), module, tuple(imports_of(tree, package)), exports_of(tree))


def imports_of(tree: ast.AST, package: str) -> Iterator[Import]:
    """Every import under `tree`, with the relative ones made absolute."""
    for node, is_lazy in walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, node.lineno, is_lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(module, alias.name, node.lineno, is_lazy) for alias in node.names)
        elif isinstance(node, ast.Call) and (name := literal_import(node)):
            yield Import(name, None, node.lineno, is_lazy)


def walk(node: ast.AST, is_lazy: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node under `node`, and whether it stands in a function or under TYPE_CHECKING."""
    yield node, is_lazy
    inside = is_lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    inside = inside or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
    for child in ast.iter_child_nodes(node):
        yield from walk(child, inside)


def literal_import(call: ast.Call) -> str | None:
    """The module in `import_module("module")` or `__import__("module")`."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    if function not in ("import_module", "__import__") or not call.args:
        return None
    argument = call.args[0]
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else None


def exports_of(tree: ast.Module) -> frozenset[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", None) == "__all__" for t in node.targets):
            return frozenset(ast.literal_eval(node.value))
    return frozenset()


def part_of(module: str) -> str:
    """The part of the package that a module belongs to: `ir` for `regraft.ir.core`, "" for `regraft`."""
    return (*module.split("."), "")[1]


def is_within(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")


def check_library(path: str, library: str) -> str | None:
    if any(is_within(path, kept_out) for kept_out in KEPT_OUT.get(library, ())):
        return f"{library} must not be imported here"
    home = KEPT_IN.get(library)
    if home is not None and is_within(path, PACKAGE) and not is_within(path, home):
        return f"{library} is imported only in {home}"
    return None


def main() -> int:
    problems = Repository(Path(__file__).resolve().parent.parent).violations()
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
