"""A code object converted: where a tensor may decide, it calls.

The source is read again and compiled whole first, so that it is known to be what runs. The converted code
takes the original's place in the same function: same parameters, same free variables, same lines.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType
from typing import Any

from regraft.compiler.capture.control.emit import Emitter
from regraft.compiler.capture.control.expressions import CALLS, Expressions
from regraft.compiler.capture.control.held import held_together
from regraft.compiler.capture.control.jumps import Lowering, Note
from regraft.compiler.capture.control.liveness import set_live
from regraft.compiler.capture.control.spelling import spelt_out
from regraft.compiler.capture.control.tree import (
    PREFIX,
    RESULT,
    bound,
    captured,
    declared,
    left_behind,
    optional,
    own_nodes,
    walk,
)
from regraft.errors import CaptureError

_Function = ast.FunctionDef | ast.Lambda


@dataclass(frozen=True)
class Original:
    """Found among the constants of converted code: what it was converted from."""

    code: CodeType


@dataclass(frozen=True)
class Converted:
    """Converted code.

    Fields:
        code: takes the place of the original.
        notes: what is as it was, and why.
    """

    code: CodeType
    notes: tuple[Note, ...]


def original(code: CodeType) -> CodeType:
    """What ``code`` was converted from; itself where it was not."""
    for constant in code.co_consts:
        if isinstance(constant, Original):
            return constant.code
    return code


def convert(code: CodeType, calls: Any) -> Converted:
    """``code``, a function's, converted to call ``calls``.

    Raises:
        CaptureError: it has no source, or the source is no longer what runs.
    """
    node = _source(code)
    notes: list[Note] = []
    if code.co_flags & _GENERATORS:
        raise _refusal(code, "a generator cannot be converted", "return a list")
    if isinstance(node, ast.Lambda):
        node.body = Expressions(None, notes).of(node.body)
        holder: ast.stmt = ast.copy_location(ast.Expr(node), node)
    else:
        _convert_function(node, notes)
        node.decorator_list = []
        node.name = f"{PREFIX}converted"  # its own name, by which it may call itself, is somebody else's
        holder = node
    made = _compiled(holder, node, code)
    return Converted(_finished(made, code, calls), tuple(notes))


def has_range(code: CodeType) -> bool:
    """Whether ``code`` is a function's with source that can be read, and a `for` over what names `range`."""
    return "range" in code.co_names and any(
        isinstance(node, ast.For) and _names_range(node.iter) for node in _nodes(code)
    )


def may_count_sizes(code: CodeType) -> bool:
    """As ``has_range``; or there is a list comprehension over such, or a `while` that compares."""
    for node in _nodes(code):
        if isinstance(node, (ast.For, ast.comprehension)) and _names_range(node.iter):
            return True
        if isinstance(node, ast.While) and any(isinstance(n, ast.Compare) for n in ast.walk(node.test)):
            return True
    return False


def _nodes(code: CodeType) -> Iterator[ast.AST]:
    """The parts of the function that ``code`` is; none where its source cannot be read."""
    if code.co_flags & _GENERATORS:
        return
    with suppress(CaptureError):
        yield from ast.walk(_source(code))


def _names_range(node: ast.expr) -> bool:
    return any(isinstance(each, ast.Name) and each.id == "range" for each in ast.walk(node))


_GENERATORS = 0x20 | 0x80 | 0x200


def _convert_function(node: ast.FunctionDef, notes: list[Note]) -> None:
    """Convert ``node``, and the functions in it, in place."""
    for inner in _inner_functions(node.body):
        _convert_function(inner, notes)
    own = _parameters(node)
    node.body = spelt_out(node.body, own)
    parameters = [*node.args.posonlyargs, *node.args.args]
    end = ast.copy_location(ast.Assign([ast.Name(RESULT, ast.Store())], ast.Constant(None)), node)
    lowering = Lowering(notes)
    lowered = lowering.function(node.body, end)
    set_live(lowered, frozenset({RESULT}), own)
    globals_ = declared(node.body, ast.Global)
    elsewhere = globals_ | declared(node.body, ast.Nonlocal) | captured(node.body)
    local = (bound(lowered) | {RESULT}) - globals_ - declared(node.body, ast.Nonlocal)
    binding = ast.parse(f"if False: {' = '.join(sorted(local))} = None").body
    several = optional(node.body, node.args) | (left_behind(lowered) & local)
    expressions = Expressions(parameters[0].arg if parameters else None, notes, several - elsewhere)
    emitted = Emitter(expressions, globals_, local | own, held_together(lowered, own)).body(lowered)
    result = ast.Return(ast.Name(RESULT, ast.Load()))
    leading, rest = _leading(emitted)
    node.body = [*leading, *binding, *rest, result]
    for statement in (*binding, result):
        for each in ast.walk(statement):
            ast.copy_location(each, node)


def _parameters(node: ast.FunctionDef) -> frozenset[str]:
    return frozenset(each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg))


def _leading(statements: list[ast.stmt]) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Declarations and the docstring, which come first; and the rest."""
    first: list[ast.stmt] = [s for s in statements if isinstance(s, (ast.Global, ast.Nonlocal))]
    return first, [s for s in statements if s not in first]


def _inner_functions(statements: Sequence[ast.stmt]) -> Iterator[ast.FunctionDef]:
    for statement in walk(statements):
        if isinstance(statement, ast.FunctionDef) and not _is_generator(statement):
            yield statement


def _is_generator(node: ast.FunctionDef) -> bool:
    inside = [n for statement in node.body for n in own_nodes(statement)]
    return any(isinstance(n, (ast.Yield, ast.YieldFrom)) for n in inside)


def _source(code: CodeType) -> _Function:
    """The definition that ``code`` was compiled from."""
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename))
    if not text:
        raise _refusal(code, "the function has no source", "define it in a file")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise _changed(code) from error
    span = _span(code)
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.Lambda)) and _first_line(node) == code.co_firstlineno
    ]
    found = [node for node in found if isinstance(node, ast.FunctionDef) or _holds(node, span)]
    compiled = list(_codes(compile(text, code.co_filename, "exec", dont_inherit=True)))
    if not any(_same(each, code) for each in compiled) or not found:
        raise _changed(code)
    kinds = [n for n in found if isinstance(n, ast.Lambda) == (_is_lambda(code, compiled))]
    if not kinds:
        raise _changed(code)
    return kinds[-1]


def _is_lambda(code: CodeType, compiled: Sequence[CodeType]) -> bool:
    """Whether ``code`` is a lambda's; its own name may have been replaced."""
    return any(_same(each, code) and each.co_name == "<lambda>" for each in compiled)


def _same(a: CodeType, b: CodeType) -> bool:
    """Whether two code objects say the same at the same place."""
    return (
        a.co_code == b.co_code
        and a.co_firstlineno == b.co_firstlineno
        and a.co_linetable == b.co_linetable
        and a.co_names == b.co_names
        and a.co_freevars == b.co_freevars
    )


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _first_line(node: _Function) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)])


def _span(code: CodeType) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where the first and the last of what ``code`` evaluates stands."""
    known = [
        (line, column, end, end_column)
        for line, end, column, end_column in code.co_positions()
        if line is not None
        and column is not None
        and end is not None
        and end_column is not None
        and end_column
    ]
    starts = [(line, column) for line, column, _, _ in known]
    ends = [(end, column) for _, _, end, column in known]
    return (min(starts), max(ends)) if known else ((0, 0), (0, 0))


def _holds(node: ast.Lambda, span: tuple[tuple[int, int], tuple[int, int]]) -> bool:
    """Whether the lambda's value is what lies in ``span``."""
    body = node.body
    start, end = (body.lineno, body.col_offset), (body.end_lineno, body.end_col_offset)
    return span == (start, end)


def _compiled(holder: ast.stmt, node: _Function, code: CodeType) -> CodeType:
    """The code of ``node``, compiled amid the names that are free in ``code``."""
    owner = _class_of(code)
    inner: list[ast.stmt] = [holder]
    free = [name for name in code.co_freevars if owner is None or name != "__class__"]
    if owner is not None:
        inner = [ast.ClassDef(owner, [], [], inner, [])]
    if owner is not None and owner not in free:  # methods may name their own class
        inner.insert(0, ast.Global([owner]))
    outer = ast.parse(f"def {PREFIX}outer({', '.join(free)}): pass").body[0]
    assert isinstance(outer, ast.FunctionDef)
    outer.body = inner
    tree = ast.fix_missing_locations(ast.Module([outer], []))
    module = compile(tree, code.co_filename, "exec", flags=_future(code), dont_inherit=True)
    name = "<lambda>" if isinstance(node, ast.Lambda) else node.name
    # The positions of decorators are gone: the first line is that of `def`.
    found = [c for c in _codes(module) if c.co_name == name and c.co_firstlineno == node.lineno]
    assert found, f"{name} compiles to a code object of its own"
    return found[0]


def _class_of(code: CodeType) -> str | None:
    """The class whose private names ``code`` sees."""
    parts = code.co_qualname.split(".")
    return parts[-2] if len(parts) > 1 and parts[-2].isidentifier() else None


def _future(code: CodeType) -> int:
    """The flags of `from __future__ import` that ``code`` was compiled with."""
    return code.co_flags & 0x1FE0000


def _finished(made: CodeType, code: CodeType, calls: Any) -> CodeType:
    """``made`` with ``calls`` in it, and the name of ``code``.

    It begins at its `def`, not at a decorator as ``code`` may: from there Python counts its lines.
    """
    if made.co_freevars != code.co_freevars:
        raise _refusal(
            code,
            f"the function's free variables would change from {code.co_freevars} to {made.co_freevars}",
            "pass what it needs as arguments",
        )
    linked = _linked(made, calls)
    return linked.replace(
        co_name=code.co_name,
        co_qualname=code.co_qualname,
        co_consts=(*linked.co_consts, Original(code)),
    )


def _linked(code: CodeType, calls: Any) -> CodeType:
    def link(constant: Any) -> Any:
        if isinstance(constant, CodeType):
            return _linked(constant, calls)
        return calls if type(constant) is str and constant == CALLS else constant

    # torch records the source lines of no other function.
    name = "forward" if code.co_name.startswith(PREFIX) else code.co_name
    return code.replace(co_name=name, co_consts=tuple(link(constant) for constant in code.co_consts))


def _changed(code: CodeType) -> CaptureError:
    return _refusal(code, "the function's source is not what runs", "load the file again")


def _refusal(code: CodeType, reason: str, hint: str) -> CaptureError:
    line = linecache.getline(code.co_filename, code.co_firstlineno).strip()
    return CaptureError(
        f"a tensor decides in {code.co_qualname}, which cannot be converted: {reason}",
        location=f"{code.co_filename}:{code.co_firstlineno}",
        source_line=line or None,
        hint=hint,
    )
