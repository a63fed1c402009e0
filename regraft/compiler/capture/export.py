"""Capture through ``torch.export``.

``torch.export`` gives the graph and is the oracle for numerics; ``run_decompositions`` makes it
functional while keeping the composites that fusions want (see ``composites``). What follows here is
about arguments: how the user calls the model, which sizes may vary, and errors that point at the
user's line.
"""

# torch's export and fx classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# The setting of torch.fx for modules whose code is written when it is first run has no public name.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import linecache
import re
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx._lazy_graph_module import _use_lazy_graph_module

from regraft.compiler.capture.assigned import (
    Assigned,
    assignments,
    check_assigned_aliases,
    check_assignments,
)
from regraft.compiler.capture.composites import functional
from regraft.compiler.capture.control.anew import SetAnew
from regraft.compiler.capture.control.find import FrontEnd
from regraft.compiler.capture.control.higher_order import copied, write_out
from regraft.compiler.capture.control.settings import settings_kept
from regraft.compiler.capture.control.writes import settle_writes
from regraft.compiler.capture.effects import (
    WriteWatch,
    check_draws,
    check_effects,
    check_unseeded,
    drop_unused_aliases,
    join_aliases,
)
from regraft.compiler.capture.example import (
    Call,
    CallForm,
    check_dynamic,
    shapes_by_parameter,
    size_names,
    split,
    torch_shapes,
    widened,
)
from regraft.compiler.capture.importer import import_program
from regraft.compiler.capture.kernels import own_kernels
from regraft.compiler.capture.leaves import check_leaves
from regraft.compiler.capture.lengths import any_length
from regraft.compiler.capture.models import as_module, check_ready, owned_tensors
from regraft.compiler.capture.norms import BatchStatistics
from regraft.compiler.capture.products import quick_products
from regraft.compiler.capture.quiet import flat_weights, quiet_export
from regraft.compiler.capture.size_one import with_size_one
from regraft.compiler.capture.source import line_of_assignment, line_of_error
from regraft.compiler.capture.undo import Undo
from regraft.compiler.progress import Phases
from regraft.errors import CaptureError, ShapeError
from regraft.ir import Leaf, Module, OpTable
from regraft.runtime import Signature, place

_EXPORTING = threading.Lock()


@dataclass(frozen=True)
class Captured:
    """A captured model.

    Fields:
        module: its graph, as captured.
        args, kwargs: the example arguments; empty, with ``traced`` false, when
            an exported program came without its example.
        size_names: symbol -> the name of the user's ``Dim``, where there is one.
    """

    module: Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    traced: bool = True
    size_names: Mapping[str, str] = field(default_factory=dict[str, str])


def capture_model(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    table: OpTable,
    phases: Phases | None = None,
    *,
    max_trips: int | None = None,
) -> Captured:
    """Capture ``model`` called with ``args`` and ``kwargs``.

    ``model`` is an ``nn.Module`` in eval mode, an ``ExportedProgram`` or a function of tensors.
    ``dynamic_shapes`` is as in ``torch.export.export``, or keyed by parameter name. ``phases`` times
    export, decompositions and import. ``max_trips`` bounds the loops that tensors end.

    Raises:
        OptionError: the model is in training mode, or an argument has no use.
        CaptureError: the model's Python cannot be turned into a graph.
    """
    phases = phases or Phases()
    if isinstance(model, ExportedProgram):
        return _import_exported(model, table, phases, max_trips)
    call = call_of(model, args, kwargs)
    shapes = shapes_by_parameter(call.form, call.arguments, dynamic_shapes)
    check_leaves(call.arguments, shapes)
    traced = widened(call.arguments, shapes)
    program = _export(call.module, table, traced, shapes, len(args), phases, max_trips)

    def imported(relaxed: frozenset[str]) -> Module:
        return import_program(program, table, traced, call.form, relaxed)

    def fixed(arguments: Mapping[str, Any]) -> Module:
        exact = _export(call.module, table, arguments, {}, len(args), Phases(), max_trips)
        return import_program(exact, table, arguments, call.form, frozenset())

    with phases.phase("import"):
        captured = with_size_one(imported, call.module, traced, shapes, len(args), table, fixed)
        _name_literals(captured, call.module)
        _name_ties(captured, _named_tensors(call.module))
    check_dynamic(captured.main.signature, traced, shapes)
    own_args, own_kwargs = split(call.arguments, len(args))
    _check_example(captured.main.signature, own_args, own_kwargs)
    names = size_names([arg.tensor for arg in captured.main.args], traced, shapes)
    return Captured(captured, own_args, own_kwargs, size_names=names)


def call_of(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Call:
    """``model`` called with ``args`` and ``kwargs``.

    Raises:
        OptionError: the model is of no kind that can be captured, or they are no arguments of its own.
    """
    module = as_module(model)
    check_ready(module)
    return Call.of(module, args, kwargs)


def _name_literals(captured: Module, model: torch.nn.Module) -> None:
    """Give constants that torch.export took for literals of the code the names they have in ``model``.

    What it holds of them shares their memory, but not the count of their changes.
    """
    owned = owned_tensors(model)
    for constant in captured.constants():
        if isinstance(constant, Leaf) and place(constant.storage) in owned:
            name, tensor = owned[place(constant.storage)]
            constant.storage = tensor.detach()
            if constant.is_literal:
                constant.name, constant.names = name, (name,)


def _named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters and buffers of ``model`` under each of their names: also where modules are shared."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _name_ties(captured: Module, named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Give the constants all the names that ``named`` has for their tensors: an export keeps some of them."""
    names: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in named:
        names.setdefault(place(tensor), []).append(name)
    for constant in captured.constants():
        if isinstance(constant, Leaf) and not constant.is_literal and constant.storage.numel():
            more = names.get(place(constant.storage), ())
            constant.names = tuple(dict.fromkeys((*constant.names, *more)))


def _export(
    module: torch.nn.Module,
    table: OpTable,
    arguments: Mapping[str, Any],
    shapes: Mapping[str, Any],
    n_args: int,
    phases: Phases,
    max_trips: int | None,
) -> ExportedProgram:
    """The functional program."""
    args, kwargs = split(arguments, n_args)
    front_end, anew = FrontEnd(max_trips, has_open_sizes=bool(shapes)), SetAnew(module)

    def once() -> ExportedProgram:
        dynamic = torch_shapes(shapes, arguments) if shapes else None

        def trace() -> ExportedProgram:
            with settings_kept() as settings, Undo(), BatchStatistics():
                program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic, strict=False)
                if settings.is_seeded:
                    check_unseeded(program)
                return program

        return anew.traced(trace)

    def export() -> ExportedProgram:
        return front_end.run(module, once)

    # torch's tracers are process-wide: a second one in another thread fails. Of the graphs that they make on
    # the way, most are never run as Python.
    with _EXPORTING, quiet_export(module), _types_said(), torch.no_grad(), _use_lazy_graph_module(True):
        with phases.phase("export"), _pointing_at_user_code(module):
            try:
                with assignments(module) as assigned:
                    program = export()
            except Exception as error:
                if line_of_error(error) is None:  # found out after the trace
                    with WriteWatch():
                        export()
                raise
        with phases.phase("decompositions"), _pointing_at_user_code(module):
            check_assigned_aliases(assigned, module, program)
            join_aliases(program)
            drop_unused_aliases(program)
            found = _functional(program, table, max_trips, assigned)
            check_assignments(assigned, module, found)
            return found


@contextmanager
def _types_said() -> Generator[None]:
    """In the block, types are said that torch's tracers would find by more than they need to."""
    with any_length(), quick_products(), own_kernels():
        yield


def _functional(
    program: ExportedProgram, table: OpTable, max_trips: int | None, assigned: Assigned | None = None
) -> ExportedProgram:
    """The program with its writes turned into results."""
    write_out(program, max_trips)
    check_effects(program)
    settle_writes(program, [] if assigned is None else assigned.ends(program).values())
    found = functional(program, table)
    check_draws(program, found)
    return found


def _check_example(signature: Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """The user's own example must be a call of the result, even where it was widened."""
    try:
        signature.sizes(signature.flatten(args, kwargs))
    except ShapeError as error:
        raise CaptureError(
            f"the model computes something else for the example's own sizes: {error}",
            hint="make a size of 1 static, or give an example with larger sizes",
        ) from error


def _import_exported(
    program: ExportedProgram, table: OpTable, phases: Phases, max_trips: int | None
) -> Captured:
    with _EXPORTING, quiet_export(None), _types_said(), phases.phase("decompositions"):
        program = _functional(copied(program), table, max_trips)
    entry = program.module_call_graph[0].signature
    names = tuple(entry.forward_arg_names or ()) if entry is not None else ()
    example = program.example_inputs
    args, kwargs = example or ((), {})
    names = names or tuple([f"arg{i}" for i in range(len(args))] + list(kwargs))
    arguments = dict(zip(names, (*args, *kwargs.values()), strict=True)) if example else dict.fromkeys(names)
    form = CallForm(names[: len(args)], {})
    with phases.phase("import"):
        module = import_program(program, table, arguments, form, frozenset())
        held: dict[str, Any] = {**program.state_dict, **program.constants}
        _name_ties(module, ((name, each) for name, each in held.items() if isinstance(each, torch.Tensor)))
    return Captured(module, tuple(args), dict(kwargs), traced=example is not None)


@contextmanager
def _pointing_at_user_code(module: torch.nn.Module) -> Generator[None]:
    """Turn what torch.export raises into a ``CaptureError`` at the user's own line."""
    try:
        yield
    except CaptureError:
        raise
    except Exception as error:
        attribute = _assigned_attribute(error, module)
        line = line_of_assignment(module, attribute) if attribute else line_of_error(error)
        location = f"{line[0]}:{line[1]}" if line else None
        source = linecache.getline(*line).strip() if line else None
        message, hint = _explain(error, attribute)
        raise CaptureError(message, location=location, source_line=source, hint=hint) from error


def _assigned_attribute(error: Exception, module: torch.nn.Module) -> str | None:
    """The attribute that torch.export says was assigned to, as a path from the model."""
    named = re.match(r"The tensor attributes? (.*) w\w+ assigned during export", str(error))
    if named is None:
        return None
    paths = {path.partition("[")[0].removeprefix("self.") for path in named.group(1).split(", ")}
    return min(paths - set(flat_weights(module)))


def _explain(error: Exception, attribute: str | None) -> tuple[str, str | None]:
    name = type(error).__name__
    text = str(error).strip().split("\n")[0]
    if name in ("GuardOnDataDependentSymNode", "UserError") and "data-dependent" in str(error).lower():
        return (
            "the model branches on the value of a tensor, which one graph cannot follow",
            "compute both sides and select with torch.where",
        )
    if attribute is not None:
        return (
            f"the model writes to its attribute '{attribute}'",
            "return the new value instead of keeping it in the model",
        )
    if "not a known type" in str(error) and "Cache" in str(error):
        return "the model returns a cache object", "pass use_cache=False"
    if "functorch" in text or "Tensor that doesn't have storage" in text:
        return (
            f"the model uses a torch.func transform that torch.export cannot follow: {text}",
            "compile the function without the transform, or write out what it computes",
        )
    if "Constraints violated" in str(error):
        return (
            f"dynamic_shapes do not fit the model: {_constraint(str(error))}",
            "use Dim.AUTO, or give the Dim a range; loop over an open size with `for i in range(x.shape[0])`",
        )
    return f"torch.export cannot capture the model: {name}: {text}", None


def _constraint(text: str) -> str:
    lines = [line.strip(" -") for line in text.splitlines() if line.strip().startswith("-")]
    return "; ".join(lines[:3]) or text.splitlines()[0]
