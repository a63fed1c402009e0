"""Checks that files and functions stay small enough to be read in one go."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOTS = ("regraft", "tests", "tools", "benchmarks", "examples")
EVIDENCE = "benchmarks/risks/"
"""Scripts kept as they were when their findings were written down; their functions are not split now."""
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60

EXEMPT_FUNCTIONS: Mapping[str, str] = {}
"""Longer functions that stay, as `path::qualified.name`, each with its reason."""


def python_files(repository: Path) -> Iterator[Path]:
    for root in ROOTS:
        yield from sorted((repository / root).rglob("*.py"))


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """Every function under `tree`: qualified name, first line, number of lines without the docstring."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr):  # nothing is defined in an expression
            continue
        name = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{node.name}."
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1 - docstring_lines(node)
            yield name[:-1], node.lineno, length
        yield from functions(node, name)


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of the docstring: a well documented function is no harder to read."""
    if ast.get_docstring(node, clean=False) is None:
        return 0
    first = node.body[0]
    assert first.end_lineno is not None
    return first.end_lineno - first.lineno + 1


def oversized(repository: Path, exempt: Mapping[str, str] = EXEMPT_FUNCTIONS) -> list[str]:
    """One line for each file or function over its limit, and for each exemption that is not needed."""
    problems: list[str] = []
    unused = dict(exempt)
    for file in python_files(repository):
        path = file.relative_to(repository).as_posix()
        source = file.read_text(encoding="utf-8")
        length = len(source.splitlines())
        if length > MAX_FILE_LINES:
            problems.append(f"{path}: {length} lines, at most {MAX_FILE_LINES}")
        for name, line, size in functions(ast.parse(source, path)):
            if path.startswith(EVIDENCE):
                continue
            if size > MAX_FUNCTION_LINES and unused.pop(f"{path}::{name}", None) is None:
                problems.append(f"{path}:{line}: {name} has {size} lines, at most {MAX_FUNCTION_LINES}")
    problems += [f"{function}: its exemption is not needed" for function in unused]
    return problems


def main() -> int:
    problems = oversized(Path(__file__).resolve().parent.parent)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
