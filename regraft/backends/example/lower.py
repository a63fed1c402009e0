"""From a function of the IR to an example program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from regraft.backends.example.functions import DTYPES, FUNCTIONS
from regraft.backends.example.run import ExampleExecutable
from regraft.backends.protocol import ConstantStore, LowerOptions
from regraft.errors import BackendError
from regraft.ir import DType, Expr, Function, Op, TensorType, Trait, Value


def _gelu(op: Op) -> str | None:
    return None if op.attr("approximate") == "tanh" else "NumPy has no erf; only approximate='tanh' runs"


#: Op -> what its attributes must not be, for ops that are supported in part.
LIMITS: Mapping[str, Callable[[Op], str | None]] = {"aten.gelu": _gelu}


class ExampleBackend:
    """Runs each op as one call of NumPy."""

    name = "example"
    #: Op name -> its NumPy function; what the support matrix is made from.
    lowerings = FUNCTIONS

    def supports(self, op: Op) -> str | None:
        """None when ``op`` can be lowered, else the reason why not.

        Users read the reasons in errors and reports, so that each says what exactly is missing.
        """
        for value in (*op.operands, *op.results):
            reason = _type_reason(value)
            if reason is not None:
                return reason
        if op.has(Trait.TERMINATOR) or op.has(Trait.CONSTANT_LIKE):
            return None
        if op.name not in FUNCTIONS:
            return f"no NumPy function for '{op.name}'; add one to example/functions.py"
        return LIMITS[op.name](op) if op.name in LIMITS else None

    def lower(self, function: Function, store: ConstantStore, options: LowerOptions) -> ExampleExecutable:
        """The program of ``function``. NumPy takes no number of threads, so ``options`` go unread.

        Raises:
            BackendError: an op is not supported.
        """
        constants: dict[str, Any] = {}
        slots: dict[Value, int] = {}
        for value in (*function.args, *(r for op in function.body.ops for r in op.results)):
            slots[value] = len(slots)
        filled: list[list[Any]] = []
        steps: list[dict[str, Any]] = []
        for op in function.body.ops:
            if op.has(Trait.CONSTANT_LIKE):
                constant = op.attr("value")
                name = store.name(constant)
                constants.setdefault(name, store.tensor(constant))
                filled.append([slots[op.result], name])
            elif not op.has(Trait.TERMINATOR):
                steps.append(self._step(op, slots))
        program = {
            "slots": len(slots),
            "constants": filled,
            "steps": steps,
            "results": [slots[value] for value in function.results],
        }
        return ExampleExecutable(program, constants)

    def _step(self, op: Op, slots: Mapping[Value, int]) -> dict[str, Any]:
        reason = self.supports(op)
        if reason is not None:
            raise BackendError(reason, backend=self.name, op=op.name)
        arguments = op.arguments()
        return {
            "op": op.name,
            "args": [_template(arguments[param.name], slots) for param in op.definition.params],
            "output": slots[op.result],
            "dtype": op.result.tensor.dtype.value,
        }


def _type_reason(value: Value) -> str | None:
    if not isinstance(value.type, TensorType):
        return f"a {value.type} is not an array"
    if value.type.device != "cpu":
        return f"NumPy does not run on {value.type.device}"
    return None if value.type.dtype.value in DTYPES else f"{value.type.dtype} arrays are not supported"


def _template(value: Any, slots: Mapping[Value, int]) -> Any:
    """``value`` in the terms of ``run.py``: JSON, for it is what ``save`` writes."""
    if isinstance(value, Value):
        return {"slot": slots[value]}
    if isinstance(value, Expr):
        return {"dim": str(value)}  # compiled at run time, since the IR is not there to evaluate it
    if isinstance(value, DType):
        return {"dtype": value.value}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_template(each, slots) for each in value]
    return value
