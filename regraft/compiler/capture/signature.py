"""The calling convention of a captured program."""

# torch's export and fx classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# Guards have no public name.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument

from regraft.compiler.capture.example import CallForm
from regraft.compiler.capture.guards import guard_specs, leaf_sources
from regraft.compiler.capture.results import Results
from regraft.ir import Symbol, TensorType, Value
from regraft.runtime import ParamSpec, Signature, SymbolSpec, TensorSpec, ValueSpec, autocast_dtype

Leaf = TensorSpec | ValueSpec


def make_signature(
    program: ExportedProgram,
    inputs: Sequence[Value],
    specs: Sequence[SymbolSpec],
    symbols: Sequence[Symbol],
    arguments: Mapping[str, Any],
    form: CallForm,
    results: Results,
) -> Signature:
    """How ``program``, whose flat tensor inputs are ``inputs``, is called."""
    leaves = all_leaves = _input_leaves(program, inputs)
    in_spec = program.call_spec.in_spec
    assert in_spec is not None, "the program has no calling convention"
    assert program.call_spec.out_spec is not None, "the program has no result structure"
    args_spec, kwargs_spec = in_spec.children()
    params: list[ParamSpec] = []
    for name, spec in zip(arguments, (*args_spec.children(), *kwargs_spec.children()), strict=True):
        own, leaves = leaves[: spec.num_leaves], leaves[spec.num_leaves :]
        params.append(ParamSpec(name, _named(name, own), None if spec.is_leaf() else spec))
    by_name = {p.name: p for p in params}
    sources = leaf_sources(arguments, all_leaves) if program._guards_code else {}
    devices = [leaf.device for leaf in all_leaves if isinstance(leaf, TensorSpec)]
    return Signature(
        params=tuple(params),
        positional=tuple(form.positional),
        defaults={n: v for n, v in form.defaults.items() if _stands_for(v, by_name.get(n))},
        symbols=tuple(specs),
        outputs=results.outputs,
        out_structure=program.call_spec.out_spec,
        guards=guard_specs(program._guards_code, sources, symbols),
        autocast=autocast_dtype(devices[0] if devices else "cpu"),
        returned=_positions(program, results.returned),
    )


def _stands_for(default: Any, param: ParamSpec | None) -> bool:
    """Whether leaving the parameter out means what was captured."""
    if param is None:
        return True
    leaf = param.leaves[0] if len(param.leaves) == 1 else None
    return isinstance(leaf, ValueSpec) and type(leaf.value) is type(default) and leaf.value == default


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


def _positions(program: ExportedProgram, names: Sequence[str]) -> tuple[int, ...]:
    """The places of input nodes among the flat tensor arguments."""
    specs = [s for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    tensors = [s.arg.name for s in specs if isinstance(s.arg, TensorArgument)]
    return tuple(tensors.index(name) for name in names)
