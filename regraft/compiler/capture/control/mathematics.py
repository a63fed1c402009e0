"""Python's ``math`` of numbers that only a call knows."""

# torch's tensors are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any

import torch
from torch import Tensor

from regraft.compiler.capture.control.exact import check
from regraft.compiler.capture.control.number import Number, as_tensor, unwrapped

_DOMAIN = "ValueError: math domain error"
_RANGE = "OverflowError: math range error"


@dataclass(frozen=True)
class Form:
    """How torch has a function of floats.

    Fields:
        function: of f64.
        undefined: whether it may be nan of what is not.
        infinite: what Python says where it is infinite of what is not; None where that cannot be.
    """

    function: Callable[..., Tensor]
    undefined: bool = False
    infinite: str | None = None

    def __call__(self, *args: Any) -> Number:
        given = [_as_float(each) for each in args]
        found = self.function(*given)
        if self.undefined:
            known = reduce(and_, (each == each for each in given))
            check(~((found != found) & known), _DOMAIN)
        if self.infinite is not None:
            are_finite = reduce(and_, (each.isfinite() for each in given))
            check(~(found.isinf() & are_finite), self.infinite)
        return Number(found)


def form_of(function: Any) -> Callable[..., Any] | None:
    """What stands for ``function``, one of ``math``, where an argument is not known, if anything does."""
    # While it traces, torch.export has its own in place of this one.
    return _power if function is math.pow else _FORMS.get(id(function))


def _as_float(value: Any) -> Tensor:
    tensor = as_tensor(unwrapped(value))
    return (tensor.reshape(()) if tensor.dim() else tensor).to(torch.float64)


def _whole(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``math.floor`` and its like, of numbers and of tensors of one element."""

    def form(value: Any) -> Any:
        tensor = as_tensor(unwrapped(value))
        return function(Number(tensor.reshape(()) if tensor.dim() else tensor))

    return form


def _tested(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Number]:
    return lambda value: Number(function(_as_float(value)))


def _log(value: Any, *base: Any) -> Any:
    found = _LOG(value)
    return found / _LOG(*base) if base else found


def _power(base: Any, exponent: Any) -> Number:
    one, other = _as_float(base), _as_float(exponent)
    check(~((one == 0) & (other < 0)), _DOMAIN)
    return Form(torch.pow, undefined=True, infinite=_RANGE)(Number(one), Number(other))


_LOG = Form(torch.log, undefined=True, infinite=_DOMAIN)
_NAMED: Mapping[str, Callable[..., Any]] = {
    **{name: Form(getattr(torch, name)) for name in ("atan", "tanh", "asinh", "erf", "erfc")},
    **{name: Form(getattr(torch, name), undefined=True) for name in ("sqrt", "sin", "cos", "asin", "acos")},
    **{name: Form(getattr(torch, name), undefined=True) for name in ("acosh", "fmod", "tan")},
    **{
        name: Form(getattr(torch, name), infinite=_RANGE) for name in ("exp", "exp2", "expm1", "sinh", "cosh")
    },
    **{name: Form(getattr(torch, name), True, _DOMAIN) for name in ("log2", "log10", "log1p", "atanh")},
    "fabs": Form(torch.abs),
    "degrees": Form(torch.rad2deg),
    "radians": Form(torch.deg2rad),
    "atan2": Form(torch.atan2),
    "copysign": Form(torch.copysign),
    "hypot": Form(lambda *sides: reduce(torch.hypot, sides[1:], sides[0].abs()), infinite=_RANGE),
    "log": _log,
    "pow": _power,
    "floor": _whole(math.floor),
    "ceil": _whole(math.ceil),
    "trunc": _whole(math.trunc),
    "isnan": _tested(torch.isnan),
    "isinf": _tested(torch.isinf),
    "isfinite": _tested(torch.isfinite),
}
_FORMS: Mapping[int, Callable[..., Any]] = {id(getattr(math, name)): form for name, form in _NAMED.items()}
