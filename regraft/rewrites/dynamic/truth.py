"""What compile time knows of a bool: from constants, from sizes, and from the branch that it is in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from regraft.ir import Constant, DType, Leaf, Op, Recipe, TensorType, Value
from regraft.rewrites.fold import fact_about, uniform_value

Truths: TypeAlias = Mapping[Value, bool]
"""Values of bool[] that are known where they are asked for."""


def is_flag(value: Value) -> bool:
    """Whether ``value`` is a single bool."""
    return value.type == TensorType(DType.BOOL, ())


def truth(value: Value, assumed: Truths | None = None) -> bool | None:
    """What the bool ``value`` is wherever ``assumed`` holds; None when that is not known."""
    if assumed is not None and value in assumed:
        return assumed[value]
    op = value.op
    if op is None or not is_flag(value):
        return None
    if op.name == "rg.const":
        return _of_constant(op.attr("value"))
    rule = _RULES.get(op.name)
    found = None if rule is None else rule(op, assumed)
    return _as_bool(uniform_value(fact_about(value))) if found is None else found


def implied(value: Value, holds: bool) -> dict[Value, bool]:
    """What is known of ``value``, and of what it is made of by logic, where it is ``holds``."""
    known = {value: holds}
    op = value.op
    if op is None or not is_flag(value):
        return known
    if op.name == "aten.bitwise_not":
        known |= implied(op.operands[0], not holds)
    if (op.name, holds) in (("aten.bitwise_and.Tensor", True), ("aten.bitwise_or.Tensor", False)):
        for operand in op.operands:
            known |= implied(operand, holds)
    return known


def in_arm(cond: Op, arm: int) -> dict[Value, bool]:
    """What is known in an arm of the ``cf.cond``: of values around it, and of the arm's arguments."""
    known = implied(cond.operand("pred"), arm == 0)
    for argument, operand in zip(cond.regions[arm].args, cond.variadic("operands"), strict=True):
        found = truth(operand, known)
        if found is not None:
            known[argument] = found
    return known


def logic_of(value: Value) -> list[Value]:
    """``value`` and the bools that logic makes it of."""
    found = [value]
    for each in found:
        if each.op is not None and is_logic(each.op):
            found += [operand for operand in each.op.operands if operand not in found]
    return found


def is_logic(op: Op) -> bool:
    """Whether ``op`` is logic over single bools."""
    return op.name in _LOGIC and is_flag(op.result)


def _of_constant(constant: Constant) -> bool | None:
    if isinstance(constant, Recipe):
        return truth(constant.body.results[0])
    # A literal of the code is no weight: its value cannot change.
    if not isinstance(constant, Leaf) or not constant.is_literal:
        return None
    storage = constant.storage
    return None if storage is None else bool(storage)


def _as_bool(value: int | bool | None) -> bool | None:
    return value if isinstance(value, bool) else None


def _not(op: Op, assumed: Truths | None) -> bool | None:
    inner = truth(op.operands[0], assumed)
    return None if inner is None else not inner


def _and(op: Op, assumed: Truths | None) -> bool | None:
    found = [truth(operand, assumed) for operand in op.operands]
    return False if False in found else (True if None not in found else None)


def _or(op: Op, assumed: Truths | None) -> bool | None:
    found = [truth(operand, assumed) for operand in op.operands]
    return True if True in found else (False if None not in found else None)


def _all(op: Op, _: Truths | None) -> bool | None:
    # True of no elements as well; that an empty tensor is all False says nothing.
    return True if uniform_value(fact_about(op.operands[0])) is True else None


def _any(op: Op, _: Truths | None) -> bool | None:
    return False if uniform_value(fact_about(op.operands[0])) is False else None


_LOGIC: Mapping[str, Callable[[Op, Truths | None], bool | None]] = {
    "aten.bitwise_not": _not,
    "aten.bitwise_and.Tensor": _and,
    "aten.bitwise_or.Tensor": _or,
}
_RULES = {**_LOGIC, "aten.all": _all, "aten.any": _any}
