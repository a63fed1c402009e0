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
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree as pytree

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


@contextmanager
def assignments(module: torch.nn.Module) -> Generator[set[str]]:
    """The names of the buffers to which ``module`` assigns new tensors when it is called in the block.

    ``torch.export`` sees assignments to the module's own buffers alone: what those within it are at the end
    is written to the tensors that they were. What is returned, or assigned, of a buffer's earlier tensor is
    copied before.

    Raises:
        CaptureError: what is assigned to one of these has another type.
    """
    before: dict[str, Any] = {}
    assigned: set[str] = set()

    def start(*_: Any) -> None:
        before.update(module.named_buffers(remove_duplicate=False))

    def end(_module: Any, _args: Any, output: Any) -> Any:
        after = module.named_buffers(remove_duplicate=False)
        changed = [(name, buffer) for name, buffer in after if before.get(name) is not buffer]
        assigned.update(name for name, _ in changed)
        earlier = {_memory(before[name]) for name, _ in changed if before.get(name) is not None}

        def apart(leaf: Any) -> Any:
            is_earlier = isinstance(leaf, torch.Tensor) and _memory(leaf) in earlier
            return leaf.clone() if is_earlier else leaf

        values: list[torch.Tensor] = []
        for _, buffer in changed:  # torch.export takes one value of two buffers for a result
            is_other = any(_memory(buffer) == _memory(each) for each in values)
            values.append(buffer.clone() if is_other else apart(buffer))
        if any(
            isinstance(leaf, torch.Tensor) and _memory(leaf) in earlier for leaf in pytree.tree_leaves(output)
        ):
            output = pytree.tree_map(apart, output)
        for (name, buffer), value in zip(changed, values, strict=True):
            path, _, own = name.rpartition(".")
            was, owner = before.get(name), module.get_submodule(path)
            if owner._buffers[own] is not buffer:
                continue  # done under another name
            if path and was is not None:
                _check_type(name, was, value)
                was.copy_(value)
                owner._buffers[own] = was
            elif value is not buffer:
                setattr(owner, own, value)
        return output

    hooks = (module.register_forward_pre_hook(start), module.register_forward_hook(end))
    try:
        yield assigned
    finally:
        for hook in hooks:
            hook.remove()


def _memory(tensor: torch.Tensor) -> Any:
    """What tensors have in common of which one is a view of the other."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def _check_type(name: str, was: torch.Tensor, now: torch.Tensor) -> None:
    same_rank = was.dtype == now.dtype and was.dim() == now.dim()
    if not same_rank or not all(
        statically_known_true(a == b) for a, b in zip(was.shape, now.shape, strict=True)
    ):
        types = [f"{str(each.dtype).removeprefix('torch.')}{list(each.shape)}" for each in (now, was)]
        raise CaptureError(
            f"the model assigns {types[0]} to its buffer '{name}', which is {types[1]}",
            hint="keep the shape and the dtype of a buffer",
        )


def check_assignments(assigned: set[str], module: torch.nn.Module, program: ExportedProgram) -> None:
    """Refuse assignments to buffers that did not become results of the functional ``program``.

    ``torch.export`` loses those of a module that has two names.

    Raises:
        CaptureError: it names the buffer.
    """
    written = {str(spec.target) for spec in program.graph_signature.output_specs if spec.target is not None}
    names = list(module.named_buffers(remove_duplicate=False))
    for name in assigned:
        same = {other for other, buffer in names if buffer is dict(names).get(name)}
        if not same & written:
            raise CaptureError(
                f"the model assigns to its buffer '{name}', and torch.export loses the assignment",
                hint="write to the buffer in place, with copy_()",
            )


def check_assigned_aliases(assigned: set[str], module: torch.nn.Module, program: ExportedProgram) -> None:
    """Refuse assignments to buffers of ``module`` whose earlier tensor is seen by another way.

    The new value is written to that tensor, which in eager stays as it was. So no other parameter or buffer
    may lie there, nor a constant of ``program``, as it was traced.

    Raises:
        CaptureError: it names the buffer, and what else has its memory.
    """
    own: dict[tuple[int, str], tuple[str, torch.Tensor]] = {}
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        own.setdefault(_slot(module, name), (name, tensor))
    constants = list(_constants(program))
    for name in sorted(assigned):
        slot = _slot(module, name)
        if slot not in own:
            continue
        message = f"the model assigns to its buffer '{name}', whose tensor "
        hint = "give each a tensor of its own (clone()), or write to the buffer in place, with copy_()"
        for other_slot, (other, tensor) in own.items():
            if other_slot != slot and overlap(own[slot][1], tensor):
                raise CaptureError(f"{message}'{other}' is too: it would have the new values", hint=hint)
        for node, tensor in constants:
            if overlap(own[slot][1], tensor):
                other = _attribute(module, tensor)
                how = f"as its attribute '{other}'" if other else "in a container or an object"
                _refuse(
                    next(iter(node.users)),
                    f"{message}it also holds {how}: new values would be seen there",
                    hint,
                )


def _constants(program: ExportedProgram) -> Iterator[tuple[Node, torch.Tensor]]:
    """The tensors in use that are neither parameters nor buffers, with the nodes that stand for them."""
    tensors = _own_tensors(program)
    kinds = {spec.arg.name: spec.kind for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        is_constant = node.op == "placeholder" and kinds[node.name] is InputKind.CONSTANT_TENSOR
        if is_constant and node.users and node.name in tensors:
            yield node, tensors[node.name]


def _attribute(module: torch.nn.Module, tensor: torch.Tensor) -> str | None:
    """The attribute of ``module``, or of a module in it, that is ``tensor`` and no parameter or buffer."""
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor) and place(value) == place(tensor):
                return f"{path}.{name}".lstrip(".")
    return None


def _slot(module: torch.nn.Module, name: str) -> tuple[int, str]:
    """Where ``name`` is kept: equal for the names of a module that has several."""
    path, _, own = name.rpartition(".")
    return id(module.get_submodule(path)), own


def drop_unused_aliases(program: ExportedProgram) -> None:
    """Remove from ``program`` the inputs nobody uses whose memory another input has: tensors with two names.

    With them ``run_decompositions`` fails once that memory is written to.
    """
    tensors = _own_tensors(program)
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
    tensors = _own_tensors(program)
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
        _refuse(
            unused,
            f"nobody uses the random numbers of {_name(unused)}, and eager draws them all the same",
            "remove the op, or use its result",
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
        _refuse(node, "the model assigns to .data of a tensor", "use copy_() to write new values to it")
    if name in _STRIDED:
        _refuse(
            node,
            "the model reads memory by strides (as_strided), which depend on how a tensor happens to lie",
            "use slicing, reshape or unfold",
        )
    # An overload's name has the op's before its own.
    if ".".join(name.split(".")[:2]) in _METADATA or torch.Tag.inplace_view in target.tags:
        changed = identity(node)
        if changed.op == "placeholder":
            _refuse(
                node,
                f"the model changes the shape or the storage of its {names[changed.name]} in place "
                f"({_name(node)})",
                "use the form that returns a new tensor",
            )


def _check_generator(node: Node, target: OpOverload) -> None:
    if node.kwargs.get("generator") is not None:
        _refuse(
            node,
            f"{overload_name(target)} draws from a generator of its own, whose state a graph does not hold",
            "leave out generator=; the compiled model draws from torch's own, as torch.manual_seed sets it",
        )


def _check_statistics(node: Node, target: OpOverload) -> None:
    if overload_name(target) != "aten.instance_norm":
        return
    _, _, _, mean, var, by_input, *_ = node.args
    if by_input and not (mean is None and var is None):
        _refuse(
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
        _refuse(
            node,
            f"the model writes to an expanded tensor ({_name(node)}): several elements are one in memory",
            "write to the tensor before it is expanded, or to a clone",
        )


def _check_shared_memory(program: ExportedProgram, names: Mapping[str, str]) -> None:
    """What is written to is an argument, or a tensor of the model that shares memory with no other in use."""
    tensors = _own_tensors(program)
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            continue
        for base in {_base(written).name for written in written_by(node)} & set(tensors):
            if names[base].startswith(_CONSTANT):
                _refuse(
                    node,
                    f"the model writes to a tensor that is neither an argument nor a buffer ({names[base]})",
                    "register it as a buffer: self.register_buffer(name, tensor)",
                )
            for other in used & set(tensors) - {base}:
                if overlap(tensors[base], tensors[other]):
                    _refuse(
                        node,
                        f"the model writes to its {names[base]}, which shares memory with its {names[other]}",
                        "keep one of them and make the other from it in forward",
                    )


def _own_tensors(program: ExportedProgram) -> dict[str, torch.Tensor]:
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


def _refuse(node: Node, message: str, hint: str) -> NoReturn:
    where = location_of(node)
    line = linecache.getline(where.file, where.line).strip() if where.file else None
    raise CaptureError(message, location=str(where), source_line=line, hint=hint)
