"""The results of a captured program: what it computes, what it writes back, what it returns as it was given.

``run_decompositions`` turns writes into results of their own. A function has them in three groups: values
that are computed, values that are written back to an argument or to the model's state when the call ends,
and arguments that the model writes to and returns: for these the caller gets his own tensor, as in eager.
"""

# torch's export classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

from regraft.compiler.capture.source import line_in
from regraft.errors import CaptureError
from regraft.runtime import ValueSpec

_TO_STATE = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)


@dataclass(frozen=True)
class Results:
    """The results of a program, by the names of its nodes.

    Fields:
        computed: results that are new tensors, in the user's order.
        written: input -> the result that is written back to it.
        returned: inputs that are written to and are results themselves.
        outputs: for each leaf of the user's result its index in ``computed + returned``, or a fixed value.
        state: names of the model's tensors that are written to.
    """

    computed: tuple[str, ...]
    written: Mapping[str, str]
    returned: tuple[str, ...]
    outputs: tuple[int | ValueSpec, ...]
    state: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        """All results, in the order of the function's."""
        return (*self.computed, *self.written.values(), *(self.written[name] for name in self.returned))


def results_of(program: ExportedProgram) -> Results:
    """The results of ``program``, which is functional.

    Raises:
        CaptureError: it returns what is neither a tensor nor fixed.
    """
    signature = program.graph_signature
    inputs = {str(spec.target): spec.arg.name for spec in signature.input_specs if spec.target is not None}
    written: dict[str, str] = {}
    state: set[str] = set()
    for spec in signature.output_specs:
        if spec.kind in _TO_STATE:
            state.add(str(spec.target))
            written[inputs[str(spec.target)]] = spec.arg.name
        elif spec.kind is OutputKind.USER_INPUT_MUTATION:
            written[str(spec.target)] = spec.arg.name
    arguments = {s.arg.name for s in signature.input_specs if s.kind is InputKind.USER_INPUT}
    # An in-place op returns the argument itself; what stands for it at the end is what is written back.
    givers = {result: name for name, result in written.items() if name in arguments}
    outputs = [s for s in signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    _check_tensors(program, outputs)
    return _grouped(outputs, givers, written, frozenset(state))


def _grouped(
    specs: list[OutputSpec], givers: Mapping[str, str], written: Mapping[str, str], state: frozenset[str]
) -> Results:
    tensors = [s.arg.name for s in specs if not isinstance(s.arg, ConstantArgument)]
    computed = [name for name in tensors if name not in givers]
    returned = [givers[name] for name in tensors if name in givers]
    fresh, given = iter(range(len(computed))), iter(range(len(computed), len(tensors)))
    outputs = tuple(
        ValueSpec("result", s.arg.value)
        if isinstance(s.arg, ConstantArgument)
        else next(given if s.arg.name in givers else fresh)
        for s in specs
    )
    return Results(tuple(computed), written, tuple(returned), outputs, state)


def _check_tensors(program: ExportedProgram, specs: list[OutputSpec]) -> None:
    nodes = {node.name: node for node in program.graph.nodes}
    for spec in specs:
        if not isinstance(spec.arg, (ConstantArgument, TensorArgument)):
            file, line = line_in(nodes[spec.arg.name].meta.get("stack_trace") or "")
            raise CaptureError(
                f"the model returns '{spec.arg.name}', a size",
                location=f"{file}:{line}",
                hint="return tensors; a caller can read a size from a tensor's shape",
            )
