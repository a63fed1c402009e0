"""Conditions and loops of traced tensors, as functions of closures.

While ``torch.export`` traces, both arms of a condition, and the test and the body of a loop, are traced
once, into one graph between markers (``markers``). Closures may use whatever tensors they can reach, and
arms may hold conditions and loops in turn. On tensors that have values the functions take Python's path.
"""

# The tracer's classes are partly untyped, and its state has no public names.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

import linecache
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.symbolic_shapes import (
    free_unbacked_symbols,
    statically_known_false,
    statically_known_true,
)
from torch.nn.modules import module as nn_module

from regraft.compiler.capture.control import markers
from regraft.compiler.capture.control.facts import Known, text_of
from regraft.compiler.capture.source import innermost, running_line
from regraft.errors import CaptureError

Values = tuple[Tensor, ...]


def undecided(value: object) -> bool:
    """Whether the truth of ``value`` depends on the data of a call, which the trace cannot know.

    True for a traced tensor, and for a ``SymBool`` or a ``SymInt`` over sizes that values decide; False for a
    constant that the trace knows, for real tensors and for every other object.
    """
    if isinstance(value, FakeTensor):
        return _constant(value) is None
    if isinstance(value, torch.SymInt):
        value = value != 0
    if isinstance(value, torch.SymBool) and free_unbacked_symbols(value):
        return not (statically_known_true(value) or statically_known_false(value))
    return False


def cond(
    pred: Tensor | torch.SymBool | torch.SymInt | bool,
    then: Callable[[], Sequence[Tensor]],
    otherwise: Callable[[], Sequence[Tensor]],
) -> Values:
    """What ``then`` returns where ``pred`` is true, else what ``otherwise`` returns.

    ``pred`` has one element of any dtype and is as true as Python finds it. Both return as many tensors, of
    the same dtypes and ranks; a size that differs becomes one that values decide. A tensor that both return
    is returned itself.

    Raises:
        CaptureError: the arms return tensors that no one type covers.
    """
    if not undecided(pred):
        return tuple(then() if pred else otherwise())
    flag = _flag(pred)
    with _parts() as end_of_arm:
        markers.IF_BEGIN(flag, [])
        first = tuple(then())
        _state_assumptions()
        end_of_arm()
        kept = markers.IF_ELSE(list(first))
        second = tuple(otherwise())
        _state_assumptions()
        end_of_arm()
    _ARMS.check(first, second)
    rows = [
        (stands_for, other)
        for one, stands_for, other in zip(first, kept, second, strict=True)
        if one is not other
    ]
    results = iter(markers.IF_END([row[0] for row in rows], [row[1] for row in rows]))
    return tuple(one if one is other else next(results) for one, other in zip(first, second, strict=True))


def loop(
    test: Callable[[Values], Tensor],
    body: Callable[[Values], Sequence[Tensor]],
    carried: Sequence[Tensor],
    limit: int | None = None,
    changing: Sequence[int] | None = None,
) -> Values:
    """``while test(carried): carried = body(carried)``, and what is carried in the end.

    ``body`` is called more than once while it is traced: what it does besides returning values must not add
    up. It returns as many tensors as are carried, of the same dtypes and ranks; a size that changes from trip
    to trip becomes one that values decide. With a ``limit``, a call fails in which the loop takes more trips.
    ``changing`` lists these sizes, as ``markers`` has them, where they are known.

    Raises:
        CaptureError: a trip changes the type of a carried value in more than its sizes.
    """
    carried = tuple(carried)
    if detect_fake_mode() is None:
        return _run_loop(test, body, carried, limit)
    if limit is not None:
        return _bounded(test, body, carried, limit, changing)
    if changing is None:
        changing = _changing(test, body, carried)
    elif proxy_tensor.get_proxy_mode() is None:
        return stand_ins(carried, changing)  # nothing is recorded
    with _parts() as end_of_part:
        inside = tuple(markers.WHILE_BEGIN(list(carried), list(changing), []))
        go_on = _flag(test(inside))
        _state_assumptions()
        markers.WHILE_DO(go_on)
        after = tuple(body(inside))
        _TRIP.check(inside, after)
        assert not _resized(inside, after, changing), "a trip changes a size that was not known to change"
        _state_assumptions()
        end_of_part()
        results = markers.WHILE_END(list(after), list(changing))
    rows = zip(carried, inside, after, results, strict=True)
    # What every trip hands on is the object that was there before.
    return tuple(before if now is same else result for before, same, now, result in rows)


def _run_loop(
    test: Callable[[Values], Tensor],
    body: Callable[[Values], Sequence[Tensor]],
    carried: Values,
    limit: int | None,
) -> Values:
    trips = 0
    while test(carried):
        carried, trips = tuple(body(carried)), trips + 1
        if limit is not None and trips > limit:
            raise RuntimeError(too_many(limit))
    return carried


def _bounded(
    test: Callable[[Values], Tensor],
    body: Callable[[Values], Sequence[Tensor]],
    carried: Values,
    limit: int,
    changing: Sequence[int] | None,
) -> Values:
    """The loop with a count of its trips: one more than ``limit`` ends it, and then the call fails."""
    if changing is not None:  # the count is the first
        changing = [each + 1 if i % 2 == 0 else each for i, each in enumerate(changing)]
    start = torch.zeros((), dtype=torch.int64, device=carried[0].device)
    trips, *results = loop(
        lambda now: _flag(test(now[1:])) & (now[0] <= limit),
        lambda now: (now[0] + 1, *body(now[1:])),
        (start, *carried),
        changing=changing,
    )
    torch.ops.aten._assert_async.msg(trips <= limit, too_many(limit))
    return tuple(results)


def too_many(limit: int, place: object = None) -> str:
    """What a call says in which the loop at ``place``, or at the running line, does not end in time."""
    line = running_line()
    place = place or (f"{line[0]}:{line[1]}" if line else None)
    where = f" at {place}" if place else ""
    return f"the loop{where} takes more than {limit} trips (max_trips)"


def _flag(pred: Any) -> Tensor:
    """The truth of ``pred`` as ``bool[]``."""
    if not isinstance(pred, Tensor):
        return markers.TRUTH(pred != 0 if isinstance(pred, torch.SymInt) else pred)
    elements: Any = pred.numel()  # a SymInt where sizes are open
    if isinstance(elements, int) and elements != 1:
        _refuse(f"the truth of a tensor with {elements} elements is ambiguous", "use any() or all()")
    scalar = pred.reshape(()) if pred.dim() else pred
    return scalar if scalar.dtype == torch.bool else scalar != 0


# -- what a first trip shows ---------------------------------------------------------------------


def _changing(
    test: Callable[[Values], Tensor], body: Callable[[Values], Sequence[Tensor]], carried: Values
) -> list[int]:
    """The sizes that trips change, as ``markers.WHILE_BEGIN`` takes them.

    They are found by trips that are thrown away. A size that changes may make others change: the trip is
    repeated until no size is new.
    """
    changing: list[int] = []
    while True:
        with thrown_away():
            inside = tuple(markers.WHILE_BEGIN(list(carried), changing, []))
            markers.WHILE_DO(_flag(test(inside)))
            after = tuple(body(inside))
            _TRIP.check(inside, after)
            markers.WHILE_END(list(after), changing)
        found = _resized(inside, after, changing)
        if not found:
            return changing
        changing += found


def _resized(inside: Values, after: Values, changing: Sequence[int]) -> list[int]:
    """The sizes that a trip has changed beside those that are ``changing``."""
    known = set(zip(changing[::2], changing[1::2], strict=True))
    return [
        each
        for number, (before, now) in enumerate(zip(inside, after, strict=True))
        for axis, sizes in enumerate(zip(before.shape, now.shape, strict=True))
        if (number, axis) not in known and markers.differ(*sizes)
        for each in (number, axis)
    ]


def stand_ins(carried: Sequence[Tensor], changing: Sequence[int]) -> Values:
    """Tensors of the types that a loop carries, the sizes that are ``changing`` being any; not recorded."""
    inside = markers.WHILE_BEGIN(list(carried), list(changing), [])
    markers.WHILE_DO(torch.ones((), dtype=torch.bool))
    return tuple(markers.WHILE_END(list(inside), list(changing)))


@contextmanager
def thrown_away() -> Generator[None]:
    """Nothing that happens in the block is recorded, or remembered about sizes."""
    mode = detect_fake_mode()
    assert mode is not None, "the loop is not traced"
    env = mode.shape_env
    assert env is not None, "export traces with symbolic sizes"
    known, epoch = Known(env), mode.epoch
    try:
        with _parts() as end_of_arm:
            with proxy_tensor.disable_proxy_modes_tracing(), env.ignore_fresh_unbacked_symbols():
                yield
            end_of_arm()
    finally:
        mode.epoch = epoch  # an exception leaves the parts that had begun open
        known.forget_all()


def _state_assumptions() -> None:
    """Write down what the part that ends here has assumed of sizes from outside."""
    for each in markers.assumed(detect_fake_mode()):
        line = innermost(each.stack.summary())
        where = f" at {line[0]}:{line[1]}" if line else ""
        message = f"a size that values decide is not what the code{where} needs: {each.expr}"
        markers.HOLDS(text_of(each.expr), message)


# -- constants -----------------------------------------------------------------------------------


def _constant(value: Tensor) -> Tensor | None:
    """The value that the trace knows a fake tensor to have, or None."""
    if isinstance(value, FakeTensor) and value.constant is not None:
        return value.constant
    return getattr(_slot(value), "constant", None)


def depends_on_a_call(value: FakeTensor) -> bool:
    """Whether ``value`` is made of arguments, weights or state, and not of constants alone."""
    pending: list[Node] = [slot.proxy.node] if (slot := _slot(value)) is not None else []
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node.op == "placeholder":
            return True
        new = set(node.all_input_nodes) - seen
        seen |= new
        pending += new
    return not seen


def _slot(value: Tensor) -> Any:
    """What the tracer knows of a tensor, or None."""
    mode = proxy_tensor.get_proxy_mode()
    return proxy_tensor.get_proxy_slot(value, mode.tracer, None) if mode is not None else None


@contextmanager
def _parts() -> Generator[Callable[[], None]]:
    """Gives a function to call where an arm ends: tensors that it wrote to are no constants from there on.

    What the arms assign to buffers is for whoever puts them back, and makes one value of both, to see to.

    The trace follows writes to constants as they come, in an arm that a call may not take.
    """
    mode = proxy_tensor.get_proxy_mode()
    tracked: list[Tensor] = list(mode.tracer.tensor_tracker) if mode is not None else []
    versions = [(tensor, tensor._version) for tensor in tracked if _constant(tensor) is not None]

    def end_of_arm() -> None:
        for tensor, version in versions:
            if tensor._version != version:
                _forget_constant(tensor)

    with _buffers_unwatched():
        yield end_of_arm


@contextmanager
def _buffers_unwatched() -> Generator[None]:
    """In the block torch does not note which node of the graph a buffer of the model is assigned.

    What counts is what the buffer is where arms have met and the last trip is over.
    """
    hooks = nn_module._global_buffer_registration_hooks
    before = dict(hooks)
    for number, hook in before.items():
        if getattr(hook, "__module__", "").startswith("torch."):
            del hooks[number]
    try:
        yield
    finally:
        hooks.clear()
        hooks.update(before)


def _forget_constant(tensor: Tensor) -> None:
    if isinstance(tensor, FakeTensor):
        tensor.constant = None
    slot = _slot(tensor)
    if slot is not None:
        slot.constant = None


# -- types ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sides:
    """Two rows of tensors that one row of types must cover, as messages have them."""

    counts: str
    as_many: str
    types: str
    convert: str

    def check(self, one: Values, other: Values) -> None:
        if len(one) != len(other):
            _refuse(self.counts.format(len(one), len(other)), self.as_many)
        for first, second in zip(one, other, strict=True):
            if not _same_kind(first, second):
                _refuse(self.types.format(_described(first), _described(second)), self.convert)


_ARMS = _Sides(
    "one arm of the condition gives {} tensors and the other {}",
    "give as many on both paths",
    "a value is {} in one arm of the condition and {} in the other: one type must cover both, so they may "
    "differ in sizes only",
    "convert one of them, such as with .to(dtype) or reshape",
)
_TRIP = _Sides(
    "the loop carries {} tensors and a trip gives {}",
    "give as many as it takes",
    "a value that the loop carries is {} before a trip and {} after it: one type must cover all trips, so "
    "only sizes may change",
    "convert it before the loop, such as with .to(dtype) or reshape",
)


def _same_kind(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.dim(), one.device) == (other.dtype, other.dim(), other.device)


def _described(tensor: Tensor) -> str:
    sizes = ", ".join(str(size) for size in tensor.shape)
    return f"{str(tensor.dtype).removeprefix('torch.')}[{sizes}]"


def _refuse(message: str, hint: str) -> NoReturn:
    line = running_line()
    where = f"{line[0]}:{line[1]}" if line else None
    source = linecache.getline(*line).strip() if line else None
    raise CaptureError(message, location=where, source_line=source, hint=hint)
