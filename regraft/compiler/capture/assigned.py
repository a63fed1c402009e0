"""Assignments to buffers: ``self.count = self.count + 1``.

A graph writes the new value to the tensor that the buffer was. In eager the buffer is another tensor from
then on, which the model may have under other names too: what would tell the two apart is refused.
"""

# torch's export and fx classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownLambdaType=false
# Neither a module's buffers, with None among them, nor storages have public names.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import linecache
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils import _pytree as pytree

from regraft.compiler.capture.control.aliases import Aliases
from regraft.compiler.capture.control.flat import FlatGraph, Memory, memories_written_by, memory_of
from regraft.compiler.capture.effects import own_tensors, refuse
from regraft.compiler.capture.source import line_of_assignment
from regraft.errors import CaptureError
from regraft.runtime import overlap, place

_COPY = torch.ops.aten.copy_.default
_OWN_TENSOR = "give each a tensor of its own (clone()), or write to the buffer in place, with copy_()"


@dataclass(frozen=True)
class Assigned:
    """The assignments of one trace.

    Fields:
        names: the buffers that are other tensors after a call than before.
        copies: the memory of each copy that was made of what is assigned, and that of the original.
    """

    names: set[str] = field(default_factory=set[str])
    copies: list[tuple[Memory, Memory]] = field(default_factory=list[tuple[Memory, Memory]])

    def ends(self, program: ExportedProgram) -> dict[str, Node]:
        """The nodes of ``program``, as it was traced, that write what is assigned to what the buffers were.

        Each is the last write there: code that writes to the buffer later on writes to the new tensor.
        """
        inputs = {spec.arg.name: str(spec.target) for spec in program.graph_signature.input_specs}
        nodes = list(program.graph.nodes)
        memories = {
            memory_of(node): inputs[node.name]
            for node in nodes
            if node.op == "placeholder" and inputs.get(node.name) in self.names
        }
        copies = (node for node in nodes if node.target is _COPY)
        return {name: node for node in copies if (name := memories.get(memory_of(node.args[0]))) is not None}


@contextmanager
def assignments(module: torch.nn.Module) -> Generator[Assigned]:
    """The buffers to which ``module`` assigns new tensors when it was last called in the block.

    ``torch.export`` sees assignments to the module's own buffers alone: what those within it are at the end
    is written to the tensors that they were. What is returned of a buffer's earlier tensor, and what is
    assigned of any tensor of the module, is copied before.

    Raises:
        CaptureError: what is assigned to one of these has another type.
    """
    before: dict[str, Any] = {}
    owned: set[Any] = set()
    assigned = Assigned()

    def start(*_: Any) -> None:
        before.clear()
        before.update(module.named_buffers(remove_duplicate=False))
        owned.clear()
        owned.update(_memory(each) for each in (*module.parameters(), *before.values()))
        assigned.copies.clear()

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        assigned.copies.append((_memory(copy), _memory(tensor)))
        return copy

    def end(_module: Any, _args: Any, output: Any) -> Any:
        after = module.named_buffers(remove_duplicate=False)
        changed = [(name, buffer) for name, buffer in after if before.get(name) is not buffer]
        assigned.names.update(name for name, _ in changed)
        earlier = {_memory(before[name]) for name, _ in changed if before.get(name) is not None}
        values: list[torch.Tensor] = []
        for _, buffer in changed:  # torch.export takes one value of two buffers for a result
            is_other = any(_memory(buffer) == _memory(each) for each in values)
            values.append(copied(buffer) if is_other or _memory(buffer) in owned else buffer)

        def is_earlier(leaf: Any) -> bool:
            return isinstance(leaf, torch.Tensor) and _memory(leaf) in earlier

        if any(map(is_earlier, pytree.tree_leaves(output))):
            output = pytree.tree_map(lambda leaf: leaf.clone() if is_earlier(leaf) else leaf, output)
        for (name, buffer), value in zip(changed, values, strict=True):
            path, _, own = name.rpartition(".")
            was, owner = before.get(name), module.get_submodule(path)
            if owner._buffers[own] is not buffer:
                continue  # done under another name
            if path and was is not None:
                _check_type(module, name, was, value)
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


def _check_type(module: torch.nn.Module, name: str, was: torch.Tensor, now: torch.Tensor) -> None:
    same_rank = was.dtype == now.dtype and was.dim() == now.dim()
    if not same_rank or not all(
        statically_known_true(a == b) for a, b in zip(was.shape, now.shape, strict=True)
    ):
        types = [f"{str(each.dtype).removeprefix('torch.')}{list(each.shape)}" for each in (now, was)]
        _refuse_assignment(
            module,
            name,
            f"the model assigns {types[0]} to its buffer '{name}', which is {types[1]}",
            "keep the shape and the dtype of a buffer",
        )


def check_assignments(assigned: Assigned, module: torch.nn.Module, program: ExportedProgram) -> None:
    """Refuse assignments to buffers that did not become results of the functional ``program``.

    ``torch.export`` loses those of a module that has two names.

    Raises:
        CaptureError: it names the buffer.
    """
    written = {str(spec.target) for spec in program.graph_signature.output_specs if spec.target is not None}
    names = list(module.named_buffers(remove_duplicate=False))
    for name in sorted(assigned.names):
        same = {other for other, buffer in names if buffer is dict(names).get(name)}
        if not same & written:
            _refuse_assignment(
                module,
                name,
                f"the model assigns to its buffer '{name}', and torch.export loses the assignment",
                "write to the buffer in place, with copy_()",
            )


def check_assigned_aliases(assigned: Assigned, module: torch.nn.Module, program: ExportedProgram) -> None:
    """Refuse assignments to buffers of ``module`` that eager would show by another way, or would not.

    The new value is written to the buffer's earlier tensor, which in eager stays as it was. So no other
    parameter or buffer may lie there, nor a constant of ``program``, as it was traced. And where the new one
    is another buffer's too, in eager a write to one is seen in the other, in this call and later ones.

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
    for name in sorted(assigned.names):
        slot = _slot(module, name)
        if slot not in own:
            continue
        message = f"the model assigns to its buffer '{name}', whose tensor "
        for other_slot, (other, tensor) in own.items():
            if other_slot != slot and overlap(own[slot][1], tensor):
                text = f"{message}'{other}' is too: it would have the new values"
                _refuse_assignment(module, name, text, _OWN_TENSOR)
        for node, tensor in constants:
            if overlap(own[slot][1], tensor):
                other = _attribute(module, tensor)
                how = f"as its attribute '{other}'" if other else "in a container or an object"
                refuse(
                    next(iter(node.users)),
                    f"{message}it also holds {how}: new values would be seen there",
                    _OWN_TENSOR,
                )
    if assigned.names:
        _check_shared(assigned, program)


def _check_shared(assigned: Assigned, program: ExportedProgram) -> None:
    """Refuse writes in place to buffers that an assignment makes one tensor."""
    ends = assigned.ends(program)
    inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    own = {
        str(inputs[node.name].target): memory
        for node in program.graph.nodes
        if node.op == "placeholder" and inputs[node.name].kind is not InputKind.USER_INPUT
        if (memory := memory_of(node)) is not None
    }
    aliases = Aliases(program, FlatGraph(program), assigned.copies)
    last = own | {name: _memory_given(node) for name, node in ends.items()}
    for name, node in ends.items():
        may_be = aliases.may_be(_memory_given(node))
        for other, memory in last.items():
            if other != name and memory in may_be:
                _check_unwritten((name, other), {own[name], own[other]}, program, aliases, ends.values())


def _memory_given(end: Node) -> Memory:
    value = end.args[1]
    assert isinstance(value, Node), end
    memory = memory_of(value)
    assert memory is not None, "a buffer is a tensor"
    return memory


def _check_unwritten(
    names: tuple[str, str],
    memories: set[Memory],
    program: ExportedProgram,
    aliases: Aliases,
    ends: Collection[Node],
) -> None:
    for node in program.graph.nodes:
        written = [] if node in ends else memories_written_by(node)
        if any(memories & aliases.may_be(memory) for memory in written):
            refuse(
                node,
                f"the model makes one tensor of its buffers '{names[0]}' and '{names[1]}' by an assignment, "
                "and writes to it in place: each would see what is written to the other, in later calls too",
                f"assign a copy: self.{names[0]} = self.{names[1]}.clone()",
            )


def _constants(program: ExportedProgram) -> Iterator[tuple[Node, torch.Tensor]]:
    """The tensors in use that are neither parameters nor buffers, with the nodes that stand for them."""
    tensors = own_tensors(program)
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


def _refuse_assignment(module: torch.nn.Module, name: str, message: str, hint: str) -> NoReturn:
    line = line_of_assignment(module, name)
    raise CaptureError(
        message,
        location=f"{line[0]}:{line[1]}" if line else None,
        source_line=linecache.getline(*line).strip() if line else None,
        hint=hint,
    )
