"""Comparing two captures of one model in every arm, whatever the data would have taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from regraft.compiler.reference import Reference
from regraft.ir import Function, Op, Region
from regraft.numerics import assert_close

CONTROL = ("cf.cond", "cf.while")


def has_arms(function: Function) -> bool:
    return any(op.name in CONTROL for op in function.walk())


def arms_agree(
    first: Function, second: Function, inputs: Sequence[Tensor], sizes: Sequence[Mapping[str, int]]
) -> bool:
    """Whether the functions, each with its ``sizes``, compute the same in all their regions.

    Nothing is decided: both arms of a condition are computed, and one trip of a loop. What follows goes on
    with the values of the first arm, or of the trip.

    Raises:
        NumericsMismatch: a value differs by more than the numerics rule.
        RegraftError, RuntimeError, IndexError: an arm cannot be computed on these inputs.
    """
    found = [list(_yielded(f, inputs, own)) for f, own in zip((first, second), sizes, strict=True)]
    if len(found[0]) != len(found[1]):
        return False
    assert_close(*found)
    return True


def _yielded(function: Function, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> Iterator[Tensor]:
    """What each region yields, and each condition tests, in order."""
    reference = Reference(function, inputs, sizes)
    yield from _in_region(function.body, reference)


def _in_region(region: Region, reference: Reference) -> Iterator[Tensor]:
    for argument in region.args:
        reference.value(argument)  # a size that the region defines is read from it
    for op in region.ops:
        if op.name in CONTROL:
            yield from _in_arms(op, reference)
        elif op is region.terminator:
            yield from (reference.value(value) for value in op.operands)
        else:
            for result in op.results:
                reference.value(result)


def _in_arms(op: Op, reference: Reference) -> Iterator[Tensor]:
    if op.name == "cf.cond":
        yield reference.value(op.operand("pred"))
    for region in op.regions:
        yield from _in_region(region, reference)
    reference.follow(op, 1 if op.name == "cf.while" else 0)
