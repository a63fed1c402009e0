"""The calling convention of a captured program."""

# torch's export and fx classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument

from regraft.ir import TensorType, Value
from regraft.runtime import ParamSpec, Signature, SymbolSpec, TensorSpec, ValueSpec

Leaf = TensorSpec | ValueSpec


def make_signature(
    program: ExportedProgram,
    inputs: Sequence[Value],
    symbols: Sequence[SymbolSpec],
    names: Sequence[str],
    positional: Sequence[str],
    defaults: Mapping[str, Any],
) -> Signature:
    """How ``program``, whose flat tensor inputs are ``inputs``, is called."""
    leaves = _input_leaves(program, inputs)
    in_spec = program.call_spec.in_spec
    assert in_spec is not None, "the program has no calling convention"
    assert program.call_spec.out_spec is not None, "the program has no result structure"
    args_spec, kwargs_spec = in_spec.children()
    params: list[ParamSpec] = []
    for name, spec in zip(names, (*args_spec.children(), *kwargs_spec.children()), strict=True):
        own, leaves = leaves[: spec.num_leaves], leaves[spec.num_leaves :]
        params.append(ParamSpec(name, _named(name, own), None if spec.is_leaf() else spec))
    captured = {p.name for p in params}
    return Signature(
        params=tuple(params),
        positional=tuple(positional),
        defaults={n: v for n, v in defaults.items() if n not in captured},
        symbols=tuple(symbols),
        outputs=_outputs(program),
        out_structure=program.call_spec.out_spec,
    )


def _input_leaves(program: ExportedProgram, inputs: Sequence[Value]) -> list[Leaf]:
    tensors = iter(inputs)
    leaves: list[Leaf] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            continue
        if isinstance(spec.arg, TensorArgument):
            leaves.append(_tensor_spec(next(tensors)))
        else:
            assert isinstance(spec.arg, ConstantArgument)
            leaves.append(ValueSpec(spec.arg.name, spec.arg.value))
    return leaves


def _tensor_spec(value: Value) -> TensorSpec:
    type = value.type
    assert isinstance(type, TensorType)
    shape = tuple(d if isinstance(d, int) else str(d) for d in type.shape)
    return TensorSpec(value.hint, type.dtype.value, shape, type.device)


def _named(name: str, leaves: Sequence[Leaf]) -> tuple[Leaf, ...]:
    """Leaves named as the user knows them: by the parameter, with a position inside a structure."""
    single = len(leaves) == 1
    return tuple(
        TensorSpec(name if single else f"{name}[{i}]", leaf.dtype, leaf.shape, leaf.device)
        if isinstance(leaf, TensorSpec)
        else ValueSpec(name if single else f"{name}[{i}]", leaf.value)
        for i, leaf in enumerate(leaves)
    )


def _outputs(program: ExportedProgram) -> tuple[int | ValueSpec, ...]:
    outputs: list[int | ValueSpec] = []
    count = 0
    for spec in program.graph_signature.output_specs:
        if isinstance(spec.arg, ConstantArgument):
            outputs.append(ValueSpec("result", spec.arg.value))
        else:
            outputs.append(count)
            count += 1
    return tuple(outputs)
