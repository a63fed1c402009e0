"""What a call changes: arguments that the model writes to, and the model's own state.

A plan computes values and never writes to what it was given. When it is through, its last results are
copied to the tensors they stand for, so a call that raises changes nothing.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from regraft.errors import RegraftError, ShapeError
from regraft.runtime.signature import Signature

#: Work that telling two interleaved tensors apart may take; beyond it they count as overlapping.
_MAX_WORK: Any = 100_000


class Runs(Protocol):
    """A plan."""

    def run(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]: ...


@dataclass(frozen=True)
class Effects:
    """The writes of a function, and the state that its calls share.

    One call at a time reads and writes the state: calls from several threads take turns. Whoever else
    writes to it, such as the original model or another compiled one, has to wait for them himself.

    Fields:
        names: of the plan's inputs, for messages: the flat arguments and then the state.
        writes: plan result -> the plan input that it is written back to; these are the last results.
        returned: arguments that are written to and are results themselves, in the order of the results.
        state: the model's own tensors, inputs of the plan after the arguments.
        weights: tensors that the plan reads as they were before a call: no argument may be written into them.
    """

    names: tuple[str, ...]
    writes: Mapping[int, int] = field(default_factory=dict[int, int])
    returned: tuple[int, ...] = ()
    state: tuple[Tensor, ...] = ()
    weights: tuple[Tensor, ...] = ()
    _fixed: list[tuple[int, int]] = field(init=False, repr=False, compare=False)
    """Where the weights are, in order and joined where they touch."""
    _shapes: tuple[torch.Size, ...] = field(init=False, repr=False)
    _turn: AbstractContextManager[Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_fixed", _joined(_span(w) for w in self.weights if w.numel()))
        object.__setattr__(self, "_shapes", tuple(t.shape for t in self.state))
        object.__setattr__(self, "_turn", threading.Lock() if self.state else nullcontext())

    @staticmethod
    def of(
        signature: Signature,
        writes: Mapping[int, int],
        state: Mapping[str, Tensor],
        weights: Sequence[Tensor] = (),
    ) -> Effects | None:
        """The effects of a function that is called as ``signature`` says; None when it has none."""
        if not writes and not state and not signature.returned:
            return None
        names = (*(spec.name for spec in signature.tensors), *state)
        return Effects(names, writes, signature.returned, tuple(state.values()), tuple(weights))

    @property
    def state_names(self) -> tuple[str, ...]:
        return self.names[len(self.names) - len(self.state) :]

    def run(self, plan: Runs, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        """The results of ``plan`` and the returned arguments; arguments and state hold the new values.

        Raises:
            ShapeError: an argument that is written to cannot be, or shares memory with another input.
            RegraftError: the state has another shape than when the model was compiled.
        """
        with self._turn, torch.no_grad():
            inputs = [*tensors, *self.state]
            self._check(inputs)
            results = plan.run(inputs, sizes)
            for result, target in self.writes.items():
                inputs[target].copy_(results[result])
        computed = len(results) - len(self.writes)
        return [*results[:computed], *(tensors[i] for i in self.returned)]

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the state as it is between two calls."""
        with self._turn:
            return {name: t.clone() for name, t in zip(self.state_names, self.state, strict=True)}

    def fill(self, name: str, number: int) -> None:
        """Write ``number`` into the state ``name``, between two calls."""
        with self._turn, torch.no_grad():
            self.state[self.state_names.index(name)].fill_(number)

    def apart(self) -> Effects:
        """The same effects on a copy of the state, which nobody else sees."""
        return replace(self, state=tuple(self.snapshot().values()))

    def _check(self, inputs: Sequence[Tensor]) -> None:
        for tensor, shape, name in zip(self.state, self._shapes, self.state_names, strict=True):
            if tensor.shape != shape:
                raise RegraftError(
                    f"the model's '{name}' has the shape {list(tensor.shape)}; it was compiled with "
                    f"{list(shape)}. Compile again"
                )
        for target in self.writes.values():
            _check_writable(inputs[target], self.names[target])
            if target < len(inputs) - len(self.state):
                self._check_weights(inputs[target], self.names[target])
        self._check_apart(inputs)

    def _check_weights(self, tensor: Tensor, name: str) -> None:
        """The argument, which is written to, does not lie where a weight is."""
        start, end = _span(tensor)
        index = bisect.bisect_left(self._fixed, (end, end))
        if index and self._fixed[index - 1][1] > start < end:
            raise ShapeError(
                f"'{name}', which the model writes to, lies in the memory of a weight; pass a clone"
            )

    def _check_apart(self, inputs: Sequence[Tensor]) -> None:
        """No input that is written to has memory in common with another; one sweep over the addresses."""
        written = set(self.writes.values())
        spans = sorted((*_span(tensor), index) for index, tensor in enumerate(inputs) if tensor.numel())
        near: list[tuple[int, int]] = []
        for start, end, index in spans:
            near = [(last, other) for last, other in near if last > start]
            for _, other in near:
                if not written.isdisjoint((index, other)) and overlap(inputs[index], inputs[other]):
                    first, second = sorted((index, other), key=lambda i: i not in written)
                    raise ShapeError(
                        f"'{self.names[first]}', which the model writes to, shares memory with "
                        f"'{self.names[second]}'; pass a clone of one of them"
                    )
            near.append((end, index))


def _check_writable(tensor: Tensor, name: str) -> None:
    """Refuse what eager would refuse to write to."""
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise ShapeError(
            f"'{name}' is an inference tensor, and the model writes to it in place; "
            "use a clone, or call under torch.inference_mode()"
        )
    if _overlaps_itself(tensor):
        raise ShapeError(
            f"'{name}' is expanded: several of its elements are one in memory, and the model writes "
            "to it in place; use a clone"
        )


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements may lie at one address."""
    if tensor.is_contiguous() or not tensor.numel():
        return False
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the two tensors have memory in common."""
    if a.device != b.device:
        return False
    first, second = _span(a), _span(b)
    if first[0] >= second[1] or second[0] >= first[1]:
        return False
    if a is b or not a.is_cpu or any(t.is_conj() or t.is_neg() for t in (a, b)):
        return True
    try:
        return np.shares_memory(_numpy(a), _numpy(b), max_work=_MAX_WORK)
    except np.exceptions.TooHardError:
        return True


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses from the first element to behind the last; an empty span where there are none."""
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    last = sum(stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return start, start + (last + 1) * tensor.element_size()


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of ``spans`` as spans apart from each other, in order."""
    union: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return union


def _numpy(tensor: Tensor) -> Any:
    plain = tensor.detach()
    # numpy has no bf16; what counts is where the elements are.
    return (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy()
