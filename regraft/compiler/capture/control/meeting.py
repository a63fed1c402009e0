"""Two arms of a condition, and the variables where they meet."""

# torch's pytrees are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regraft.compiler.capture.control.context import Context, refuse, shown_name
from regraft.compiler.capture.control.number import Number
from regraft.compiler.capture.control.state import (
    UNBOUND,
    Lost,
    Outcome,
    Part,
    Saved,
    Variables,
    as_tensor,
    fill,
    forms,
    in_place_of,
    is_carried,
    met,
    shown,
)
from regraft.compiler.capture.control.structure import unflatten
from regraft.compiler.capture.control.tree import RESULT
from regraft.compiler.capture.control.watch import Watch

_Arm = Callable[[], object]


def meet(
    context: Context, pred: Any, then: _Arm, otherwise: _Arm, variables: Variables, live: Sequence[str]
) -> None:
    """Run both arms, of which a call takes one, and give ``variables`` the values that go on from there.

    They are what the arms may change; only the ``live`` ones are read later.
    """
    every, variables = variables, variables.only(live)
    saved = Saved.of(variables)
    before = Saved.of(every)
    outcomes: list[Outcome] = []
    joined: list[_Joined] = []

    def first() -> Sequence[Tensor]:
        outcomes.append(run_arm(context, then, variables, before))
        return outcomes[0].tensors()

    def second() -> Sequence[Tensor]:
        outcomes.append(run_arm(context, otherwise, variables, before))
        joined.extend(_join(name, i, *outcomes) for i, name in enumerate(variables.names))
        return [tensor for each in joined for tensor in each.yielded]

    results = iter(context.tracer.cond(pred, first, second))
    values = [
        each.finished(context, name, results) for name, each in zip(variables.names, joined, strict=True)
    ]
    kept = [
        _in_place(name, value, saved.values[i], [o.values[i] for o in outcomes])
        for i, (name, value) in enumerate(zip(variables.names, values, strict=True))
    ]
    variables.write(kept)


def run_arm(
    context: Context, arm: _Arm, variables: Variables, saved: Saved, watch: Watch | None = None
) -> Outcome:
    """The variables after ``arm``; afterwards everything is as ``saved``, when ``watch`` was set."""
    watch = watch or Watch.of(context)
    with context.arm():
        arm()
    outcome = Outcome.of(variables)
    saved.restore()
    changed = watch.changed()
    if changed is not None:
        refuse(
            f"'{changed}' changes where a tensor decides, in a function that is called from there",
            "return the new value instead, or change it in the function where the tensor decides",
        )
    return outcome


@dataclass(frozen=True)
class _Joined:
    """A variable where two paths meet: what the second arm yields, and what becomes of it."""

    yielded: list[Tensor]
    lost: Lost | None = None
    parts: Sequence[Part] = ()
    spec: Any = None

    def finished(self, context: Context, name: str, results: Iterator[Tensor]) -> Any:
        """The variable's value, its tensors being the next of ``results``."""
        if self.lost is not None:
            for _ in self.yielded:
                next(results)
            context.lose(name, self.lost)
            return UNBOUND
        if self.spec is None:
            return UNBOUND
        leaves = [part.merge([next(results) for _ in part.yielded]) for part in self.parts]
        return unflatten(leaves, self.spec)


def _join(name: str, i: int, one: Outcome, other: Outcome) -> _Joined:
    places = [in_place_of(form) for leaf in one.leaves[i] for form in forms(leaf)]
    if one.specs[i] is None and other.specs[i] is None:
        return _Joined([])
    if other.specs[i] is None and name == RESULT:
        # Whoever takes the second path returns later on, and sets it then.
        return _Joined(places, None, [_alone(leaf) for leaf in one.leaves[i]], one.specs[i])
    if one.specs[i] is None or other.specs[i] is None:
        return _Joined(places, Lost("is set in one branch only", "give it a value before the `if`"))
    if one.specs[i] != other.specs[i]:
        values = [outcome.values[i] for outcome in (one, other)]
        return _Joined(places, Lost(_structures(*values), "give it the same structure on both paths"))
    parts = [met(a, b) for a, b in zip(one.leaves[i], other.leaves[i], strict=True)]
    lost = next((part for part in parts if isinstance(part, Lost)), None)
    if lost is not None:
        return _Joined(places, lost)
    found = [part for part in parts if isinstance(part, Part)]
    return _Joined([tensor for part in found for tensor in part.yielded], None, found, other.specs[i])


def _alone(leaf: Any) -> Part:
    """A part that only the first path has."""
    if not is_carried(leaf):
        return Part([], lambda _: leaf)
    return Part.only(
        leaf, 0, in_place_of(as_tensor(leaf)), (lambda t: t) if isinstance(leaf, Tensor) else Number
    )


def _structures(one: Any, other: Any) -> str:
    sizes = [
        f"{shown(v)} of {len(v)}" if isinstance(v, (list, tuple, dict)) else shown(v) for v in (one, other)
    ]
    return f"is {sizes[0]} on one path and {sizes[1]} on the other"


def _in_place(name: str, value: Any, before: Any, after: Sequence[Any]) -> Any:
    """``value``, put into the container that the variable held all along, where it did."""
    if not isinstance(before, (list, dict, set)) or any(each is not before for each in after):
        return value
    if value is UNBOUND:
        refuse(
            f"{shown_name(name)} holds more on one path than on the other where a tensor decides",
            "add to it on both paths, or on none",
        )
    fill(before, value)
    return before
