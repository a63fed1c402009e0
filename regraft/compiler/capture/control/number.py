"""A Python number whose value the trace does not know, as arithmetic on a tensor without dims.

It behaves as the number would: f64 and i64 among numbers, and next to a tensor the type that the tensor has
(``torch.result_type`` with a number), which a tensor without dims would not always leave alone.
"""

# torch's function objects are untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._numpy._ndarray import ndarray
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils import _pytree as pytree

from regraft.compiler.capture.control import exact, markers
from regraft.errors import CaptureError

#: An array of NumPy's, as torch has it: of a tensor.
Array = ndarray
Kind = type[bool] | type[int] | type[float]
#: Numbers that a trace knows as expressions of sizes.
SYMBOLIC = (torch.SymInt, torch.SymBool)
_DTYPES: Mapping[Kind, torch.dtype] = {bool: torch.bool, int: torch.int64, float: torch.float64}


def kind_of(dtype: torch.dtype) -> Kind:
    """What ``item()`` of a tensor of ``dtype`` gives."""
    if dtype == torch.bool:
        return bool
    return float if dtype.is_floating_point else int


def number_tensor(value: Any, device: torch.device | None = None) -> Tensor:
    """A tensor without dims that holds a Python number, or one of sizes, exactly."""
    if isinstance(value, torch.SymBool):
        return markers.TRUTH(value)
    if isinstance(value, torch.SymInt):
        return markers.SIZE(value)
    return torch.full((), value, dtype=_DTYPES[type(value)], device=device)


def type_beside(tensor: Tensor, kind: Kind) -> torch.dtype:
    """The type that ``tensor`` has next to a number of ``kind``; a question, which no graph records."""
    with disable_proxy_modes_tracing():
        return torch.result_type(tensor, kind(1))


def is_carried(leaf: Any) -> bool:
    """Whether a part of a value can be the result of a region."""
    return isinstance(leaf, (Tensor, Number, *SYMBOLIC)) or type(leaf) in (bool, int, float)


def as_tensor(leaf: Any) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf
    return leaf.tensor if isinstance(leaf, Number) else number_tensor(leaf)


def dtype_of(leaf: Any) -> torch.dtype:
    """The dtype of ``as_tensor(leaf)``, which is not made: a size of another region has no place here."""
    if isinstance(leaf, torch.SymInt):
        return torch.int64
    if isinstance(leaf, Number):
        return leaf.value.dtype
    return torch.bool if isinstance(leaf, torch.SymBool) else as_tensor(leaf).dtype


@dataclass(eq=False)
class Condition:
    """A condition that has chosen.

    Fields:
        path: the one that it took for certain in what is traced now; 0 where the test was true.
        test: the number that was tested, where that is one that others may tell something about.
    """

    path: int | None = None
    test: Number | None = None


@dataclass(frozen=True)
class Choice:
    """What a number was on each of the two paths of a condition: one of Python's, or a path's ``Number``."""

    condition: Condition
    sides: tuple[Any, Any]


@dataclass(frozen=True)
class Widened:
    """A number has its kind only where ``holds``, else the kind ``narrow``, and its value as that has it."""

    holds: Tensor
    narrow: Kind
    message: str


class Number:
    """The number in ``tensor``, which has no dims and the dtype of ``kind``; ``choice`` may have made it.

    Where ``widened`` says so, it is a narrower one in some calls, which fail where that would show.
    """

    def __init__(self, tensor: Tensor, choice: Choice | None = None, widened: Widened | None = None) -> None:
        self.kind = kind_of(tensor.dtype)
        self.value = tensor.to(_DTYPES[self.kind])
        self.choice = choice
        self.widened = widened

    @property
    def tensor(self) -> Tensor:
        """The number as its kind has it."""
        if self.widened is not None:
            exact.check(self.widened.holds, self.widened.message)
        return self.value

    @property
    def __class__(self) -> type[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What ``isinstance`` looks at beside the type: to all code the number is one of its kind."""
        return self.kind

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """torch functions take a number as a tensor of the type that their tensors have."""
        if func in _FILLS:
            return _filled(func, args, kwargs or {})
        leaves, spec = pytree.tree_flatten((args, kwargs or {}))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if getattr(func, "__name__", "").rstrip("_") in _BOUNDED:
            leaves = [Number(number_tensor(x)) if type(x) in _DTYPES else x for x in leaves]
        is_checked = func in _WRITES
        plain = [
            leaf.as_operand(tensors, is_checked=is_checked) if isinstance(leaf, Number) else leaf
            for leaf in leaves
        ]
        args, kwargs = pytree.tree_unflatten(plain, spec)
        try:
            return func(*args, **kwargs)
        except TypeError:  # no overload takes a tensor there: it is a size
            args, kwargs = pytree.tree_unflatten(map(_as_size, leaves), spec)
            return func(*args, **kwargs)

    def as_size(self) -> Any:
        """The number as torch has sizes that values decide; a call fails in which it is negative."""
        if self.kind is not int:
            self._refuse("a size, which a float cannot be" if self.kind is float else "a size")
        return self.tensor.item()

    def as_operand(self, tensors: list[Tensor], *, is_checked: bool = False) -> Tensor:
        """The number next to ``tensors``: of the type that it has as an operand of theirs.

        A call fails, where that ``is_checked``, in which the type does not hold it; else it wraps.
        """
        if not tensors:
            return self.tensor
        counted = [tensor for tensor in tensors if tensor.dtype != torch.bool]  # the others are masks
        kinds = (self.kind, self.kind if self.widened is None else self.widened.narrow)
        dtypes, others = ([type_beside(tensor, kind) for tensor in counted or tensors] for kind in kinds)
        number = self.value if dtypes == others else self.tensor
        found = dtypes[0]
        for dtype in dtypes[1:]:
            found = torch.promote_types(found, dtype)
        return exact.converted(number, found, is_filling=True) if is_checked else number.to(found)

    def _with(self, other: Any, function: Callable[[Any, Any], Any], *, swapped: bool = False) -> Any:
        if isinstance(other, Tensor):
            own: Any = self.as_operand([other])
            return function(other, own) if swapped else function(own, other)
        if not isinstance(other, (bool, int, float, Number, *SYMBOLIC)):
            return NotImplemented
        kept = self._stays(other, function)
        own = self.value if kept else self.tensor
        right = other.tensor if isinstance(other, Number) else number_tensor(other, own.device)
        left, right = (self._counted(t, function) for t in (own, right))
        if swapped:
            left, right = right, left
        if function in _DIVISIONS and _may_be_zero(self if swapped else other):
            exact.check(right != 0, "ZeroDivisionError: division by zero")
        return Number(function(left, right))

    def _stays(self, other: Any, function: Callable[[Any, Any], Any]) -> bool:
        """Whether ``function`` of the number and ``other``, another one, has one type for all kinds."""
        return function is operator.truediv or function in _COMPARISONS or isinstance(other, float)

    @staticmethod
    def _counted(tensor: Tensor, function: Callable[[Any, Any], Any]) -> Tensor:
        """Truth values count as integers in arithmetic, and integers divide as floats."""
        if function is operator.truediv:
            return tensor.to(torch.float64)
        return tensor.to(torch.int64) if tensor.dtype == torch.bool and function not in _LOGIC else tensor

    def __add__(self, other: Any) -> Any:
        return self._with(other, operator.add)

    def __radd__(self, other: Any) -> Any:
        return self._with(other, operator.add, swapped=True)

    def __sub__(self, other: Any) -> Any:
        return self._with(other, operator.sub)

    def __rsub__(self, other: Any) -> Any:
        return self._with(other, operator.sub, swapped=True)

    def __mul__(self, other: Any) -> Any:
        return self._with(other, operator.mul)

    def __rmul__(self, other: Any) -> Any:
        return self._with(other, operator.mul, swapped=True)

    def __truediv__(self, other: Any) -> Any:
        return self._with(other, operator.truediv)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with(other, operator.truediv, swapped=True)

    def __floordiv__(self, other: Any) -> Any:
        return self._with(other, operator.floordiv)

    def __rfloordiv__(self, other: Any) -> Any:
        return self._with(other, operator.floordiv, swapped=True)

    def __mod__(self, other: Any) -> Any:
        return self._with(other, operator.mod)

    def __rmod__(self, other: Any) -> Any:
        return self._with(other, operator.mod, swapped=True)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        if modulus is not None:
            self._refuse("a base of a power with a modulus")
        if isinstance(other, Tensor):
            return self._with(other, operator.pow)
        if self.kind is not float and type(other) is int and other >= 0:
            return Number(torch.pow(self._counted(self.tensor, operator.pow), other))
        return self._power(self, other)

    def __rpow__(self, other: Any) -> Any:
        if isinstance(other, Tensor):
            return self._with(other, operator.pow, swapped=True)
        return self._power(other, self)

    def _power(self, base: Any, exponent: Any) -> Any:
        """``base ** exponent``, of which one is a float."""
        pair = base, exponent
        if not all(isinstance(each, (bool, int, float, Number, *SYMBOLIC)) for each in pair):
            return NotImplemented
        # An integer to a negative power is a float in Python, which only the exponent's value tells.
        if not any(isinstance(each, float) for each in pair):
            self._refuse("a base or an exponent of integers")
        return Number(exact.power(*map(_as_float, pair)))

    def __lshift__(self, other: Any) -> Any:
        return self._shifted(self, other, is_left=True)

    def __rlshift__(self, other: Any) -> Any:
        return self._shifted(other, self, is_left=True)

    def __rshift__(self, other: Any) -> Any:
        return self._shifted(self, other, is_left=False)

    def __rrshift__(self, other: Any) -> Any:
        return self._shifted(other, self, is_left=False)

    @staticmethod
    def _shifted(number: Any, count: Any, *, is_left: bool) -> Any:
        pair = number, count
        if not all(isinstance(each, (int, *SYMBOLIC)) for each in pair):
            return NotImplemented
        integers = (as_tensor(each).to(torch.int64) for each in pair)
        return Number(exact.shifted(*integers, is_left=is_left))

    def __invert__(self) -> Any:
        if self.kind is float:
            raise TypeError("bad operand type for unary ~: 'float'")
        return Number(~self._counted(self.tensor, operator.sub))

    def __round__(self, digits: Any = None) -> Number:
        if digits is not None and type(digits) is not int:
            self._refuse("a number of digits")
        if self.kind is not float:
            if digits is not None and digits < 0:
                self._refuse("an integer that is rounded to tens")
            return +self
        if digits is None:
            return Number(exact.as_integer(self.tensor.round()))
        if not 0 <= digits <= exact.DIGITS:
            self._refuse(f"a float that is rounded to {digits} digits, not from 0 to {exact.DIGITS}")
        return Number(exact.rounded(self.tensor, digits))

    def __trunc__(self) -> Number:
        return as_kind(+self, int)

    def __floor__(self) -> Number:
        return as_kind(Number(self.tensor.floor()), int) if self.kind is float else +self

    def __ceil__(self) -> Number:
        return as_kind(Number(self.tensor.ceil()), int) if self.kind is float else +self

    def is_integer(self) -> Any:
        """``float.is_integer``, which integers have too from Python 3.12 on."""
        tensor = self.tensor
        return Number(tensor.isfinite() & (tensor == tensor.trunc())) if self.kind is float else True

    def __lt__(self, other: Any) -> Any:
        return self._with(other, operator.lt)

    def __le__(self, other: Any) -> Any:
        return self._with(other, operator.le)

    def __gt__(self, other: Any) -> Any:
        return self._with(other, operator.gt)

    def __ge__(self, other: Any) -> Any:
        return self._with(other, operator.ge)

    def __eq__(self, other: object) -> Any:
        return self._with(other, operator.eq)

    def __ne__(self, other: object) -> Any:
        return self._with(other, operator.ne)

    def __and__(self, other: Any) -> Any:
        return self._with(other, operator.and_)

    def __or__(self, other: Any) -> Any:
        return self._with(other, operator.or_)

    def __xor__(self, other: Any) -> Any:
        return self._with(other, operator.xor)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __neg__(self) -> Number:
        return Number(-self._counted(self.tensor, operator.sub))

    def __pos__(self) -> Number:
        return Number(self._counted(self.tensor, operator.sub))

    def __abs__(self) -> Number:
        return Number(self._counted(self.tensor, operator.sub).abs())

    def item(self) -> Number:
        """What NumPy's scalars have: the number itself."""
        return self

    def __hash__(self) -> int:
        self._refuse("a key of a dict or a set")

    def __bool__(self) -> bool:
        self._refuse("a condition in code that is not converted")

    def __index__(self) -> int:
        self._refuse("a size, or an index of Python's own sequences")

    def __int__(self) -> int:
        self._refuse("an int in code that is not converted")

    def __float__(self) -> float:
        self._refuse("a float in code that is not converted")

    def __str__(self) -> str:
        self._refuse("text")

    def __format__(self, form: str) -> str:
        self._refuse("text")

    __repr__ = __str__

    def __getattr__(self, name: str) -> Any:
        kind = vars(self).get("kind", object)
        if name.startswith("_") or not hasattr(kind, name):
            raise AttributeError(f"'{kind.__name__}' object has no attribute '{name}'")
        self._refuse(f"what has '{name}'")

    def _refuse(self, use: str) -> NoReturn:
        raise UnknownNumber(
            f"a number that is known only when the model runs is used as {use}",
            hint="use it in arithmetic, in comparisons and in what docs/control_flow.md lists",
        )


def _as_float(value: Any) -> Any:
    """A number as f64 where only a call knows it, as a float else."""
    if isinstance(value, (Number, *SYMBOLIC)):
        return as_tensor(value).to(torch.float64)
    return float(value)


def _filled(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """``torch.full`` or one of its like: of the type that the number's kind gives."""
    others = {name: value for name, value in kwargs.items() if name != "fill_value"}
    first, value = (args, kwargs["fill_value"]) if "fill_value" in kwargs else (args[:-1], args[-1])
    if not isinstance(value, Number):  # a size is one
        args, kwargs = pytree.tree_map(_as_size, (args, kwargs))
        return func(*args, **kwargs)
    made = func(*first, value.kind(), **others)
    return made.fill_(exact.converted(value.tensor, made.dtype, is_filling=True))


def _as_size(leaf: Any) -> Any:
    return leaf.as_size() if isinstance(leaf, Number) else leaf


def _may_be_zero(number: Any) -> bool:
    """Whether a divisor may be 0 in a call."""
    if isinstance(number, Number):
        return number.choice is None or any(map(_may_be_zero, number.choice.sides))
    return not statically_known_true(number != 0)


class UnknownNumber(CaptureError):
    """A number that only a run knows was asked for its value."""


#: Functions that take two bounds: both tensors, or both numbers.
_BOUNDED = frozenset(["clamp", "clip"])
#: Functions that put a number into a tensor as it is.
_WRITES = frozenset(
    [
        Tensor.fill_,
        Tensor.masked_fill,
        Tensor.masked_fill_,
        Tensor.__setitem__,
        torch.masked_fill,
        torch.where,
    ]
)
_FILLS = frozenset([torch.full, torch.full_like, Tensor.new_full])
_DIVISIONS = frozenset({operator.truediv, operator.floordiv, operator.mod})
_COMPARISONS = frozenset({operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge})
_LOGIC = frozenset({operator.and_, operator.or_, operator.xor, operator.eq, operator.ne})


def as_kind(value: Number, kind: Kind) -> Number:
    """``bool``, ``int`` or ``float`` of a number: truth, or truncation towards zero."""
    if kind is bool:
        return Number(value.tensor != 0)
    tensor = value.tensor
    if kind is int and value.kind is float:
        return Number(exact.as_integer(tensor))
    return Number(tensor.to(_DTYPES[kind]))


def unwrapped(value: Any) -> Any:
    """The tensor of a number or an array, and every other value itself."""
    return value.tensor if isinstance(value, (Number, Array)) else value


def as_truth(value: Any) -> Tensor:
    """The truth of ``value`` as ``bool[]``."""
    if type(value) in _DTYPES:
        return torch.full((), bool(value))
    if isinstance(value, SYMBOLIC):
        held = number_tensor(value)
        return held if held.dtype == torch.bool else held != 0
    tensor = unwrapped(value)
    if not isinstance(tensor, Tensor):
        return torch.full((), bool(value))
    elements: Any = tensor.numel()  # a SymInt where sizes are open
    if isinstance(elements, int) and elements != 1:
        raise UnknownNumber(
            f"the truth of a tensor with {elements} elements is ambiguous", hint="use any() or all()"
        )
    scalar = tensor.reshape(()) if tensor.dim() else tensor
    return scalar if scalar.dtype == torch.bool else scalar != 0
