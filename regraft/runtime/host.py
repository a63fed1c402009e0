"""Conditions, loops, choices and checks that a plan makes itself, over plans of their regions.

They are executables like those of back ends, of the name ``host``: whoever runs what is inside needs to know
nothing of control flow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from regraft.errors import RegraftError
from regraft.runtime.dims import compile_dim
from regraft.runtime.dtypes import TORCH_DTYPES
from regraft.runtime.executable import HOST, ArtefactReader, ArtefactWriter, Bound, Executable
from regraft.runtime.memory import byte_of
from regraft.runtime.plan import Bind, Frame, Plan, fresh, with_bound
from regraft.runtime.plan_record import binds_from, plan_record
from regraft.runtime.records import ints

Sizes = Mapping[str, int]
Values = Sequence[Tensor]
_Call = Callable[[Values, Sizes], list[Tensor]]
_Test = Callable[[Tensor], Any]


class _Region(Protocol):
    """What runs a region."""

    def run(self, values: Values, sizes: Sizes) -> list[Tensor]: ...


@dataclass(frozen=True)
class Block:
    """A region as a plan.

    Fields:
        binds: the symbols that the region's arguments define.
    """

    plan: Plan
    binds: tuple[Bind, ...] = ()

    def run(self, values: Values, sizes: Sizes) -> list[Tensor]:
        """What the region yields; some of it may be ``values`` themselves."""
        return self.plan.values(values, with_bound(sizes, self.binds, values))


@dataclass(frozen=True)
class HostExecutable:
    """An op over ``blocks``, the plans of its regions.

    Fields:
        operands: numbers of the op's operands among the inputs and, behind them, the constants.
        keeps: which of the op's results somebody reads.
        constants: names and values.
        details: what else there is to say of the op, as JSON values.
    """

    op: str
    blocks: tuple[Block, ...]
    operands: tuple[int, ...]
    keeps: tuple[int, ...]
    constants: tuple[tuple[str, Tensor], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    _call: _Call = field(init=False, repr=False, compare=False)

    backend = HOST

    def __post_init__(self) -> None:
        object.__setattr__(self, "_call", _KINDS[self.op](self.blocks, self.details, _holds))

    def run(self, inputs: Values, sizes: Sizes) -> list[Tensor]:
        """The results that are kept.

        Raises:
            RegraftError: a check of the model failed.
        """
        given = [*inputs, *(tensor for _, tensor in self.constants)]
        values = [given[number] for number in self.operands]
        with torch.no_grad():
            made = self._call(values, sizes)
            return fresh([made[number] for number in self.keeps], values)

    def bind(self, inputs: Sequence[Tensor | None], keep: Sequence[bool], sizes: Sizes) -> Bound:
        """A call with memory of its own for each region; what an arm gives has no place of its own."""
        return _BoundHost(self, inputs, sizes)

    def save(self, writer: ArtefactWriter) -> dict[str, Any]:
        """The plans of the regions; what their executables need goes to ``writer``."""
        for name, tensor in self.constants:
            writer.add_tensor(name, tensor)
        blocks = [
            {"plan": plan_record(b.plan, writer), "binds": list(map(list, b.binds))} for b in self.blocks
        ]
        return {
            "op": self.op,
            "blocks": blocks,
            "operands": list(self.operands),
            "keeps": list(self.keeps),
            "constants": [name for name, _ in self.constants],
            "details": dict(self.details),
        }


def executables_of(plan: Plan) -> Iterator[Executable]:
    """All executables of ``plan``, in the order of its steps, those inside control flow too."""
    for step in plan.steps:
        yield step.executable
        if isinstance(step.executable, HostExecutable):
            for block in step.executable.blocks:
                yield from executables_of(block.plan)


def load(
    record: Mapping[str, Any],
    inputs: int,
    reader: ArtefactReader,
    plan_from: Callable[[Mapping[str, Any], int], Plan],
) -> HostExecutable:
    """The executable that ``save`` wrote, which is called with ``inputs`` tensors.

    ``plan_from`` makes the plan of a record, for so many inputs.

    Raises:
        LookupError, TypeError, ValueError, ArtefactError: it is not a record of ours.
    """
    constants = tuple((str(name), reader.tensor(str(name))) for name in record["constants"])
    operands, keeps = ints(record["operands"]), ints(record["keeps"])
    arguments = len(operands) - (record["op"] == "cf.cond")  # the predicate is for the plan alone
    blocks = tuple(Block(plan_from(b["plan"], arguments), binds_from(b["binds"])) for b in record["blocks"])
    executable = HostExecutable(record["op"], blocks, operands, keeps, constants, dict(record["details"]))
    if not set(operands) <= set(range(inputs + len(constants))):
        raise ValueError(f"an operand of {executable.op} is no input")
    _check_blocks(executable)
    return executable


def _check_blocks(executable: HostExecutable) -> None:
    """What a call takes for granted of the regions' plans: a file may say anything.

    Raises:
        ValueError: they do not fit together.
    """
    plans = [block.plan for block in executable.blocks]
    for block in executable.blocks:
        fits = all(0 <= number < block.plan.inputs for _, number, _ in block.binds)
        if block.plan.inputs != plans[0].inputs or not fits:
            raise ValueError(f"the regions of {executable.op} take other arguments")
    details = executable.details
    if executable.op == "rg.alt":
        cuts, order = ints(details["cuts"]), ints(details["order"])
        if len(order) != len(cuts) + 1 or not set(order) <= set(range(len(plans))):
            raise ValueError(f"the order {order} names no form")
    if executable.op == "cf.scan":
        carried, scanned = ints((details["carried"], details["scanned"]))
        if carried < 0 or scanned < 1 or carried + scanned > len(executable.operands):
            raise ValueError("a scan has other operands")
    if executable.op == "cf.while":
        expected = [1, plans[0].inputs]
    elif executable.op == "cf.scan":
        expected = [int(details["carried"]) + len(details["rows"])]
    else:
        expected = [len(plan.results) for plan in plans[:1]] * len(plans)
    last = len(plans[-1].results) if plans else 0
    if [len(plan.results) for plan in plans] != expected or not set(executable.keeps) <= set(range(last)):
        raise ValueError(f"the regions of {executable.op} give other results")


# -- what each op does ---------------------------------------------------------------------------


def _holds(pred: Tensor) -> Any:
    return pred.item()


def _condition(blocks: Sequence[_Region], details: Mapping[str, Any], holds: _Test) -> _Call:
    then, other = blocks

    def call(values: Values, sizes: Sizes) -> list[Tensor]:
        pred, *operands = values
        return (then if holds(pred) else other).run(operands, sizes)

    return call


def _loop(blocks: Sequence[_Region], details: Mapping[str, Any], holds: _Test) -> _Call:
    condition, body = blocks

    def call(values: Values, sizes: Sizes) -> list[Tensor]:
        carried = list(values)
        while condition.run(carried, sizes)[0].item():
            carried = body.run(carried, sizes)
        return carried

    return call


def _scan(blocks: Sequence[_Region], details: Mapping[str, Any], holds: _Test) -> _Call:
    (body,), count, end = blocks, int(details["carried"]), int(details["carried"]) + int(details["scanned"])
    stacked = [(TORCH_DTYPES[dtype], [compile_dim(size) for size in row]) for dtype, row in details["rows"]]

    def call(values: Values, sizes: Sizes) -> list[Tensor]:
        carried, scanned, fixed = list(values[:count]), values[count:end], values[end:]
        rows: list[list[Tensor]] = []
        for slices in zip(*(tensor.unbind(0) for tensor in scanned), strict=True):
            trip = body.run([*carried, *slices, *fixed], sizes)
            carried = trip[:count]
            rows.append(trip[count:])
        carried = _apart(carried, scanned)
        if rows:
            return [*carried, *map(torch.stack, zip(*rows, strict=True))]
        none = (torch.empty((0, *(size(sizes) for size in row)), dtype=dtype) for dtype, row in stacked)
        return [*carried, *none]

    return call


def _apart(carried: Values, scanned: Values) -> list[Tensor]:
    """``carried``, none of them a slice of one of ``scanned``."""
    places = {tensor.untyped_storage().data_ptr() for tensor in scanned}
    return [t.detach().clone() if t.untyped_storage().data_ptr() in places else t for t in carried]


def _alternatives(blocks: Sequence[_Region], details: Mapping[str, Any], holds: _Test) -> _Call:
    rows, cuts, order = compile_dim(details["rows"]), ints(details["cuts"]), ints(details["order"])

    def call(values: Values, sizes: Sizes) -> list[Tensor]:
        count = rows(sizes)
        return blocks[order[sum(cut <= count for cut in cuts)]].run(values, sizes)

    return call


def _check(blocks: Sequence[_Region], details: Mapping[str, Any], holds: _Test) -> _Call:
    message = str(details["message"]) or "a check of the model failed"

    def call(values: Values, sizes: Sizes) -> list[Tensor]:
        if not holds(values[0]):
            raise RegraftError(message)
        return []

    return call


_KINDS: Mapping[str, Callable[[Sequence[_Region], Mapping[str, Any], _Test], _Call]] = {
    "cf.cond": _condition,
    "cf.while": _loop,
    "cf.scan": _scan,
    "rg.alt": _alternatives,
    "rg.check": _check,
}
"""From an op's regions, its details, and how a predicate among its operands is read, to its call."""

_TAKEN: Mapping[str, int] = {"cf.cond": 1, "rg.alt": 0}
"""Ops whose regions take the operands as they are, and from which operand on."""


# -- bound ---------------------------------------------------------------------------------------


class _BoundHost:
    """An op whose regions run in frames, where their sizes are known before the call."""

    def __init__(self, host: HostExecutable, inputs: Sequence[Tensor | None], sizes: Sizes) -> None:
        self._host = host
        self._sizes = sizes
        self._constants = [tensor for _, tensor in host.constants]
        given = [*inputs, *[None] * len(self._constants)]
        operands = [given[number] for number in host.operands]
        first = _TAKEN.get(host.op)
        regions = [
            block
            if block.binds or not block.plan.is_steady
            else _Framed(block.plan, [None] * block.plan.inputs if first is None else operands[first:], sizes)
            for block in host.blocks
        ]
        holds = _reader(operands[0]) if operands else _holds
        self._call = _KINDS[host.op](regions, host.details, holds)
        self.kept = (None,) * len(host.keeps)

    def run(self, inputs: Values) -> list[Tensor]:
        """As ``HostExecutable.run``, gradients being off."""
        given = [*inputs, *self._constants]
        values = [given[number] for number in self._host.operands]
        made = self._call(values, self._sizes)
        return fresh([made[number] for number in self._host.keeps], values)


class _Framed:
    """A region in memory of its own, which it gets when it is first entered."""

    def __init__(self, plan: Plan, inputs: Sequence[Tensor | None], sizes: Sizes) -> None:
        self._made = plan, inputs, sizes
        self._frame: Frame | None = None

    def run(self, values: Values, sizes: Sizes) -> list[Tensor]:
        if self._frame is None:
            self._frame = Frame(*self._made)
        return self._frame.run(values)


def _reader(pred: Tensor | None) -> _Test:
    """How to read a predicate, which is at the same place in each call or not."""
    if pred is None or pred.dtype is not torch.bool or pred.numel() != 1:
        return _holds
    byte = byte_of(pred)
    return lambda _: byte[0]
