"""Where in the user's own source something happened."""

# The frames of a stack trace in fx metadata are text, and a model's class may have no source.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import traceback

import torch
from torch.fx import Node

from regraft.compiler.owners import Owner, is_torchs, owner_of
from regraft.ir import Location

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def is_users(file: str) -> bool:
    """Whether ``file`` is the user's or an installed library's: not torch's, ours, Python's, or generated.

    The examples that torch ships to be exported count as a user's.
    """
    if is_torchs(file, "_export/db/examples"):
        return True
    return owner_of(file) in (Owner.USER, Owner.LIBRARY)


def line_in(stack_trace: str) -> tuple[str, int]:
    """File and line of the innermost frame that is the user's; of the innermost one where none is.

    Without a frame: ``("", 0)``.
    """
    frames = [(file, int(line)) for file, line in _FRAME.findall(stack_trace)]
    written = [frame for frame in frames if not frame[0].startswith("<")]
    own = [frame for frame in written if is_users(frame[0])]
    return (own or written or [("", 0)])[-1]


def location_of(node: Node) -> Location:
    """The user's source line and module path that made ``node``."""
    file, line = line_in(node.meta.get("stack_trace") or "")
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return Location(file, line, path.removeprefix("L['self']").lstrip("."))


def line_of_error(error: BaseException) -> tuple[str, int] | None:
    """File and line of the innermost frame of ``error`` that is the user's."""
    return innermost(traceback.extract_tb(error.__traceback__))


def running_line() -> tuple[str, int] | None:
    """File and line of the innermost frame that is running and is the user's."""
    return innermost(traceback.extract_stack())


def innermost(frames: traceback.StackSummary) -> tuple[str, int] | None:
    """File and line of the innermost of ``frames`` that is the user's."""
    own = [(f.filename, f.lineno or 0) for f in frames if is_users(f.filename)]
    return own[-1] if own else None


def line_of_assignment(module: torch.nn.Module, path: str) -> tuple[str, int] | None:
    """File and line where the class of a submodule assigns to ``self.<attribute>``, or else first reads it.

    ``path`` is the submodule's path and the attribute, such as ``encoder.cache``. None where the class has no
    source or names it nowhere but in ``__init__``.
    """
    owner, _, attribute = path.rpartition(".")
    kind = type(module.get_submodule(owner))
    try:
        file = inspect.getsourcefile(kind)
        lines, start = inspect.getsourcelines(kind)
    except (OSError, TypeError, KeyError):  # of an interactive session, built in, or of a module not listed
        return None
    (definition,) = ast.parse(textwrap.dedent("".join(lines))).body
    uses = [
        node
        for method in ast.iter_child_nodes(definition)
        if getattr(method, "name", "__init__") != "__init__"
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute) and node.attr == attribute
    ]
    found = [node for node in uses if isinstance(node.ctx, ast.Store)] or uses
    return (file, start + found[0].lineno - 1) if file and found else None
