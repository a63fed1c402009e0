"""What a run of a model in eager torch decides, where, and how narrowly.

A function mode sees each value that Python asks of a tensor (``bool(t)``, ``t.item()``), each comparison of
numbers and each selection (``argmax``, ``topk``...); numbers read by ``item`` are followed further.
"""

from __future__ import annotations

import inspect
import itertools
import linecache
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FOLDER = Path(__file__).parent
_COMPARISONS = frozenset(("gt", "ge", "lt", "le", "__gt__", "__ge__", "__lt__", "__le__"))

Site = tuple[str, int, int]
"""A file, a line and a column of it: a ``while`` has its test twice in the code, and once in the source."""


@dataclass(frozen=True)
class Margin:
    """How far values were from deciding otherwise, relative to the largest of those compared.

    ``left`` is the left side of a comparison of numbers, by which thresholds are chosen.
    """

    value: float
    line: str
    left: float | None = None


@dataclass
class Observation:
    """A watched run: its result, what each site decided, the margins of what it compared."""

    result: Any = None
    sites: dict[Site, set[bool]] = field(default_factory=dict)
    margins: list[Margin] = field(default_factory=list)

    def narrowest(self, idle: Sequence[str] = ()) -> Margin:
        """The smallest margin, but for those at the lines ``idle``."""
        counted = [margin for margin in self.margins if margin.line.partition(": ")[2] not in idle]
        return min(counted, key=lambda margin: margin.value, default=Margin(1.0, "nothing compared"))

    def decided(self, value: bool) -> None:
        self.sites.setdefault(_site(), set()).add(value)

    def compared(self, a: Any, b: Any) -> None:
        left = float(a) if not isinstance(a, Tensor) or a.numel() == 1 else None
        self.margins.append(Margin(_distance(a, b), _line(_site()), left))

    def selected(self, values: Tensor, count: int, dim: int | None) -> None:
        """The ``count`` largest along ``dim`` were told apart, and from the next one."""
        ordered = (values.flatten() if dim is None else values.movedim(dim, -1)).sort(-1, descending=True)[0]
        gaps = -ordered[..., : count + 1].diff(dim=-1)
        if gaps.numel() and values.is_floating_point():
            finite = gaps[gaps.isfinite()]
            scale = ordered[ordered.isfinite()].abs().max()
            self.margins.append(Margin(float(finite.min() / scale), _line(_site())))


def watch(model: nn.Module, arguments: tuple[Any, ...]) -> Observation:
    """Run ``model`` in eager torch and report what it decides."""
    observation = Observation()
    with torch.no_grad(), _Watcher(observation):
        observation.result = model(*arguments)
    return observation


def undecided(observations: Iterable[Observation]) -> list[str]:
    """The lines that decided only one way in all runs, but for the checks among them."""
    seen: dict[Site, set[bool]] = {}
    for observation in observations:
        for site, values in observation.sites.items():
            seen.setdefault(site, set()).update(values)
    lines = {_line(site) for site, values in seen.items() if len(values) < 2}
    return sorted(line for line in lines if not line.split(": ", 1)[1].startswith("assert "))


class _Watcher(TorchFunctionMode):
    def __init__(self, observation: Observation) -> None:
        super().__init__()
        self.seen = observation

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        with torch._C.DisableTorchFunction():
            if name == "__bool__":
                self.seen.decided(result)
            elif name == "item" and isinstance(result, float):
                return _Followed(result, self.seen)
            elif name in _COMPARISONS:
                self.seen.compared(*args)
            elif name in ("argmax", "max", "topk", "sort"):
                _note_selection(self.seen, name, args, kwargs)
        return result


def _note_selection(seen: Observation, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """``max`` selects only when it is given a dimension: else it is a number, or of two tensors."""
    call = inspect.Signature(
        [inspect.Parameter(each, inspect.Parameter.POSITIONAL_OR_KEYWORD) for each in _PARAMETERS[name]]
    ).bind_partial(*args, **kwargs)
    values, dim = args[0], call.arguments.get("dim", None if name in ("argmax", "max") else -1)
    if name == "max" and not isinstance(dim, int):
        return
    if name == "sort":
        seen.selected(values, values.size(dim), dim)
    else:
        seen.selected(values, call.arguments.get("k", 1), dim)


_PARAMETERS = {
    "argmax": ("input", "dim", "keepdim"),
    "max": ("input", "dim", "keepdim"),
    "topk": ("input", "k", "dim", "largest", "sorted"),
    "sort": ("input", "dim", "descending", "stable"),
}


class _Followed(float):
    """A number read from a tensor: what it is compared with is noted, and what is computed from it too."""

    seen: Observation

    def __new__(cls, value: float, seen: Observation) -> _Followed:
        self = super().__new__(cls, value)
        self.seen = seen
        return self


def _arithmetic(name: str) -> Callable[[_Followed, Any], Any]:
    def operation(self: _Followed, other: Any) -> Any:
        result = getattr(float, name)(self, other)
        return _Followed(result, self.seen) if isinstance(result, float) else result

    return operation


def _comparison(name: str) -> Callable[[_Followed, Any], bool]:
    def operation(self: _Followed, other: Any) -> bool:
        result = getattr(float, name)(self, other)
        self.seen.compared(float(self), float(other))
        self.seen.decided(result)
        return result

    return operation


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv"):
    setattr(_Followed, f"__{_name}__", _arithmetic(f"__{_name}__"))
for _name in ("gt", "ge", "lt", "le"):
    setattr(_Followed, f"__{_name}__", _comparison(f"__{_name}__"))


def _distance(a: Any, b: Any) -> float:
    """The least distance of ``a`` and ``b`` over the largest magnitude among them; integers are exact.

    What is compared with the number 0 is a sum that cancels: its own magnitude says nothing if it is below 1.
    """
    cancels = isinstance(b, int | float) and b == 0
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if not (a.is_floating_point() or b.is_floating_point()) or not a.numel():
        return 1.0
    largest = max(float(a.abs().max()), float(b.abs().max()), 1.0 if cancels else 0.0)
    return float((a - b).abs().min()) / largest if largest else 0.0


def _site() -> Site:
    """The innermost instruction of a model of this folder."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ or Path(frame.f_code.co_filename).parent != FOLDER:
        assert frame.f_back is not None
        frame = frame.f_back
    place = next(itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    return (frame.f_code.co_filename, frame.f_lineno, place[2] or 0)


def _line(site: Site) -> str:
    file, number, _ = site
    return f"{Path(file).name}:{number}: {linecache.getline(file, number).strip()}"
