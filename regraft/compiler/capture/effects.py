"""Writes and draws of random numbers in the model's code that a functional graph would not hold.

``torch.export`` records every in-place op with its source line; ``run_decompositions`` then turns writes
into values, and drops, or takes for something else, what has no value: changes of a tensor's shape or
storage, writes through memory that several elements share, draws that nobody looks at. So those are looked
for in between, and refused by name.
"""

# torch's export and fx classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# An overload's schema has no public name.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import linecache
import operator
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.overrides import TorchFunctionMode, resolve_name

from regraft.compiler.capture.arguments import draws, overload_name
from regraft.compiler.capture.control.flat import identity, written_by
from regraft.compiler.capture.source import location_of, running_line
from regraft.errors import CaptureError
from regraft.runtime import overlap, place

_CONSTANT = "tensor"
_KINDS = {
    InputKind.USER_INPUT: "argument",
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: _CONSTANT,
}
#: Inputs that are attributes of a module.
_NAMED = (InputKind.PARAMETER, InputKind.BUFFER)
#: What an assignment to ``tensor.data`` leaves behind.
_DATA_ASSIGNED = "aten._has_compatible_shallow_copy_type"
#: In-place ops on shape or storage.
_METADATA = frozenset(
    f"aten.{name}_"
    for name in (
        "resize",
        "resize_as",
        "set",
        "swapaxes",
        "swapdims",
        "squeeze",
        "unsqueeze",
        "t",
        "transpose",
    )
)
#: Ops that read memory by address, which no value has.
_STRIDED = frozenset(
    {"aten.as_strided", "aten.as_strided_", "aten.as_strided_copy", "aten.as_strided_scatter"}
)


def check_effects(program: ExportedProgram) -> None:
    """Refuse what ``run_decompositions`` would lose or get wrong in ``program``.

    Raises:
        CaptureError: with the line of the model's code.
    """
    names = _input_names(program)
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            continue
        _check_metadata(node, node.target, names)
        _check_generator(node, node.target)
        _check_statistics(node, node.target)
        for written in written_by(node):
            _check_written(node, written)
    _check_shared_memory(program, names)


class WriteWatch(TorchFunctionMode):
    """Refuses writes that make ``torch.export`` fail without saying where, at the line that does them.

    It slows tracing and is for a second run, once the first has failed.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = (resolve_name(func) or "").removeprefix("torch.Tensor.")
        if name in ("data.__get__", "data.__set__"):
            _refuse_here(
                "the model's code goes through .data of a tensor, which cannot be followed",
                "use the tensor itself; copy_() writes new values to it",
            )
        if f"aten.{name}" in _METADATA:
            _refuse_here(
                f"the model changes the shape or the storage of a tensor in place ({name})",
                "use the form that returns a new tensor",
            )
        return func(*args, **(kwargs or {}))


def drop_unused_aliases(program: ExportedProgram) -> None:
    """Remove from ``program`` the inputs nobody uses whose memory another input has: tensors with two names.

    With them ``run_decompositions`` fails once that memory is written to.
    """
    tensors = own_tensors(program)
    kept: list[Any] = []
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        own = tensors.get(spec.arg.name)
        twins = [name for name, tensor in tensors.items() if tensor is own and name != spec.arg.name]
        if own is not None and twins and not nodes[spec.arg.name].users:
            del tensors[spec.arg.name]
            program.graph.erase_node(nodes[spec.arg.name])
        else:
            kept.append(spec)
    _keep_inputs(program, kept)


def join_aliases(program: ExportedProgram) -> None:
    """Make one input of a buffer and of the constant that ``torch.export`` takes it for where code reaches it
    by another way than the module's attribute, such as a cache object that holds it too.
    """
    tensors = own_tensors(program)
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    named = {
        place(tensors[spec.arg.name]): nodes[spec.arg.name]
        for spec in program.graph_signature.input_specs
        if spec.kind in _NAMED and spec.arg.name in tensors and tensors[spec.arg.name].numel()
    }
    kept: list[Any] = []
    for spec in program.graph_signature.input_specs:
        twin = named.get(place(tensors[spec.arg.name])) if spec.kind is InputKind.CONSTANT_TENSOR else None
        if twin is None:
            kept.append(spec)
        else:
            nodes[spec.arg.name].replace_all_uses_with(twin)
            program.graph.erase_node(nodes[spec.arg.name])
    _keep_inputs(program, kept)


def _keep_inputs(program: ExportedProgram, kept: list[Any]) -> None:
    """Make ``kept`` the inputs that the signature of ``program`` has; its graph has no others any more."""
    specs = program.graph_signature.input_specs
    if len(kept) < len(specs):
        specs[:] = kept
        program.graph_module.recompile()


def check_draws(before: ExportedProgram, after: ExportedProgram) -> None:
    """Refuse a program of which decompositions dropped draws: torch's generator would stand elsewhere.

    Raises:
        CaptureError: with the line of a draw whose result nobody uses.
    """
    drawn, kept = list(_draws(before)), list(_draws(after))
    if len(kept) < len(drawn):
        unused = next((node for node in drawn if not node.users), drawn[-1])
        refuse(
            unused,
            f"nobody uses the random numbers of {_name(unused)}, and eager draws them all the same",
            "remove the op, or use its result",
        )


def check_unseeded(program: ExportedProgram) -> None:
    """Refuse draws of random numbers in ``program``, whose code has seeded torch's generator.

    Raises:
        CaptureError: with the line of the first draw.
    """
    drawn = next(_draws(program), None)
    if drawn is not None:
        refuse(
            drawn,
            f"{_name(drawn)} draws random numbers in a model that seeds torch's generator: no graph does",
            "seed it before the model is called, or pass the numbers in",
        )


def _draws(program: ExportedProgram) -> Iterator[Node]:
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            schema = node.target._schema.arguments
            given = {a.name: v for a, v in zip(schema, node.args, strict=False)} | dict(node.kwargs)
            if draws(node.target, given):
                yield node


def _input_names(program: ExportedProgram) -> Mapping[str, str]:
    """The program's inputs as messages call them: ``argument 'x'``, ``buffer 'cache'``."""
    names: dict[str, str] = {}
    for spec in program.graph_signature.input_specs:
        kind = _KINDS.get(spec.kind, "input")
        names[spec.arg.name] = f"{kind} '{spec.target or spec.arg.name}'"
    return names


def _check_metadata(node: Node, target: OpOverload, names: Mapping[str, str]) -> None:
    name = overload_name(target)
    if name == _DATA_ASSIGNED:
        refuse(node, "the model assigns to .data of a tensor", "use copy_() to write new values to it")
    if name in _STRIDED:
        refuse(
            node,
            "the model reads memory by strides (as_strided), which depend on how a tensor happens to lie",
            "use slicing, reshape or unfold",
        )
    # An overload's name has the op's before its own.
    if ".".join(name.split(".")[:2]) in _METADATA or torch.Tag.inplace_view in target.tags:
        changed = identity(node)
        if changed.op == "placeholder":
            refuse(
                node,
                f"the model changes the shape or the storage of its {names[changed.name]} in place "
                f"({_name(node)})",
                "use the form that returns a new tensor",
            )


def _check_generator(node: Node, target: OpOverload) -> None:
    if node.kwargs.get("generator") is not None:
        refuse(
            node,
            f"{overload_name(target)} draws from a generator of its own, whose state a graph does not hold",
            "leave out generator=; the compiled model draws from torch's own, as torch.manual_seed sets it",
        )


def _check_statistics(node: Node, target: OpOverload) -> None:
    if overload_name(target) != "aten.instance_norm":
        return
    _, _, _, mean, var, by_input, *_ = node.args
    if by_input and not (mean is None and var is None):
        refuse(
            node,
            "an instance norm writes to its running statistics, which an exported program does not say",
            "compile the model itself",
        )


def _check_written(node: Node, written: Node) -> None:
    tensor = written.meta.get("val")
    if isinstance(tensor, torch.Tensor) and any(
        type(stride) is int and stride == 0 and not (type(size) is int and size < 2)
        for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    ):
        refuse(
            node,
            f"the model writes to an expanded tensor ({_name(node)}): several elements are one in memory",
            "write to the tensor before it is expanded, or to a clone",
        )


def _check_shared_memory(program: ExportedProgram, names: Mapping[str, str]) -> None:
    """What is written to is an argument, or a tensor of the model that shares memory with no other in use."""
    tensors = own_tensors(program)
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            continue
        for base in {_base(written).name for written in written_by(node)} & set(tensors):
            if names[base].startswith(_CONSTANT):
                refuse(
                    node,
                    f"the model writes to a tensor that is neither an argument nor a buffer ({names[base]})",
                    "register it as a buffer: self.register_buffer(name, tensor)",
                )
            for other in used & set(tensors) - {base}:
                if overlap(tensors[base], tensors[other]):
                    refuse(
                        node,
                        f"the model writes to its {names[base]}, which shares memory with its {names[other]}",
                        "keep one of them and make the other from it in forward",
                    )


def own_tensors(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """The model's parameters, buffers and constants by the names of their nodes."""
    found: dict[str, torch.Tensor] = {}
    for spec in program.graph_signature.input_specs:
        target = str(spec.target)
        stored = program.state_dict.get(target, program.constants.get(target))
        if spec.kind is not InputKind.USER_INPUT and isinstance(stored, torch.Tensor):
            found[spec.arg.name] = stored
    return found


def _base(node: Node) -> Node:
    """The node that made the memory of ``node``: a placeholder, or an op that makes a new tensor."""
    while True:
        source = node.args[0] if node.args else None
        if node.target is operator.getitem and isinstance(source, Node):
            node = source
        elif isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
            node = next(written_by(node))
        elif isinstance(source, Node) and isinstance(node.target, OpOverload) and _is_view(node.target):
            node = source
        else:
            return node


def _is_view(target: OpOverload) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in target._schema.returns)


def _name(node: Node) -> str:
    assert isinstance(node.target, OpOverload)
    return overload_name(node.target)


def _refuse_here(message: str, hint: str) -> NoReturn:
    line = running_line()
    where = f"{line[0]}:{line[1]}" if line else None
    source = linecache.getline(*line).strip() if line else None
    raise CaptureError(message, location=where, source_line=source, hint=hint)


def refuse(node: Node, message: str, hint: str) -> NoReturn:
    """Raise a ``CaptureError`` at the line that made ``node``."""
    where = location_of(node)
    line = linecache.getline(where.file, where.line).strip() if where.file else None
    raise CaptureError(message, location=str(where), source_line=line, hint=hint)
