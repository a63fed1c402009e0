"""What an operation is: its parameters, traits and rules, as one frozen record.

Parameters are listed in the order of the op's schema, tensors and attributes interleaved as torch
interleaves them, so a call reads the same here, in a pattern and in ATen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, Flag, auto
from typing import Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from regraft.errors import OptionError
from regraft.ir.dims import Dim, Expr
from regraft.ir.dtypes import DType
from regraft.ir.types import TensorType, Type


class Constant:
    """A tensor known at compile time; see ``Leaf`` and ``Recipe``."""

    type: TensorType


Attr: TypeAlias = "bool | int | float | complex | str | DType | Expr | Constant | tuple[Attr, ...] | None"


class Trait(Flag):
    """Facts about an op that passes and the matcher may use."""

    NONE = 0
    PURE = auto()
    """No effect and no aliasing: may be removed when unused, or shared when equal."""
    SPECULATABLE = auto()
    """May run where it would not have run: it cannot raise and it terminates."""
    COMMUTATIVE = auto()
    """Its first two operands may change places."""
    ELEMENTWISE = auto()
    """Result element i depends on the operands' elements i only (after broadcasting)."""
    VIEW = auto()
    """Rearranges elements; moves no arithmetic."""
    RANDOM = auto()
    """Draws from torch's generator: ordered, never shared."""
    TERMINATOR = auto()
    """Ends a region; its operands are the region's results."""
    CONSTANT_LIKE = auto()
    """May be cloned into any region."""
    RECURSIVE = auto()
    """Has no effect of its own: as pure as the ops of its regions, see ``is_pure``. With SPECULATABLE it may
    run early where all of these may."""


SAFE = Trait.PURE | Trait.SPECULATABLE


class Arity(Enum):
    """How many values an operand segment holds."""

    SINGLE = "single"
    OPTIONAL = "optional"
    VARIADIC = "variadic"
    OPTIONAL_LIST = "optional_list"


@dataclass(frozen=True)
class Operand:
    """A tensor parameter."""

    name: str
    arity: Arity = Arity.SINGLE


class _Required:
    def __repr__(self) -> str:
        return "<required>"


REQUIRED: Any = _Required()


@dataclass(frozen=True)
class AttrSpec:
    """A non-tensor parameter. ``default`` is ``REQUIRED`` when a call must give it."""

    name: str
    default: Any = REQUIRED


Param: TypeAlias = Operand | AttrSpec


class HasType(Protocol):
    @property
    def type(self) -> Type: ...


class RegionTypes(Protocol):
    """What a type rule may ask of a region."""

    @property
    def arg_types(self) -> tuple[Type, ...]: ...
    @property
    def result_types(self) -> tuple[Type, ...]: ...


Segment: TypeAlias = "int | tuple[bool, ...]"


@dataclass(frozen=True)
class CallSite:
    """An op's inputs seen through its definition: what ``infer``, ``flops`` and lowerings read."""

    definition: OpDef
    operand_types: tuple[Type, ...]
    segments: tuple[Segment, ...]
    attrs: Mapping[str, Attr]
    regions: tuple[RegionTypes, ...] = ()
    symbols: tuple[Dim, ...] = ()

    def type(self, name: str) -> TensorType:
        """Type of the single operand ``name``."""
        found = self.optional(name)
        if found is None:
            raise TypeError(f"{self.definition.name}: operand '{name}' is missing")
        return found

    def optional(self, name: str) -> TensorType | None:
        """Type of the optional operand ``name``, or None when it is absent."""
        start, segment = self.definition.locate(name, self.segments)
        return self._tensor(start) if segment else None

    def variadic(self, name: str) -> tuple[TensorType, ...]:
        """Types of the operands of the list ``name``."""
        start, segment = self.definition.locate(name, self.segments)
        return tuple(self._tensor(start + i) for i in range(segment_length(segment)))

    def optional_list(self, name: str) -> tuple[TensorType | None, ...]:
        """Types of the list ``name``, with None where an entry is absent."""
        start, segment = self.definition.locate(name, self.segments)
        present = iter(range(start, start + segment_length(segment)))
        flags = segment if isinstance(segment, tuple) else (True,) * segment
        return tuple(self._tensor(next(present)) if flag else None for flag in flags)

    def _tensor(self, index: int) -> TensorType:
        found = self.operand_types[index]
        if not isinstance(found, TensorType):
            raise TypeError(f"{self.definition.name}: operand {index} is a {found}, expected a tensor")
        return found

    def attr(self, name: str) -> Any:
        return self.attrs[name]

    def int(self, name: str) -> int:
        value = self.attrs[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{self.definition.name}: attribute '{name}' is {value!r}, expected an int")
        return value

    def ints(self, name: str) -> tuple[int, ...]:
        values = self.dims(name)
        if not all(isinstance(v, int) for v in values):
            raise TypeError(f"{self.definition.name}: attribute '{name}' must be static, got {values}")
        return tuple(v for v in values if isinstance(v, int))

    def dims(self, name: str) -> tuple[Dim, ...]:
        """The attribute ``name`` as a tuple of sizes (a single size counts as a tuple of one)."""
        value = self.attrs[name]
        values = value if isinstance(value, tuple) else (value,)
        result = tuple(v for v in values if isinstance(v, (int, Expr)))
        if len(result) != len(values):
            raise TypeError(f"{self.definition.name}: attribute '{name}' is {value!r}, expected sizes")
        return result

    def dim_attr(self, name: str) -> Dim:
        return self.dims(name)[0]


InferRule: TypeAlias = Callable[[CallSite], "Type | Sequence[Type]"]
CountRule: TypeAlias = Callable[[CallSite], Dim]
#: ``decompose(builder, op)`` returns the values that replace the results of ``op``, or None, having built
#: nothing, where this use of the op has no other form.
DecomposeRule: TypeAlias = Callable[[Any, Any], Sequence[Any] | None]


def segment_length(segment: Segment) -> int:
    return segment if isinstance(segment, int) else sum(segment)


def no_flops(_: CallSite) -> Dim:
    return 0


@dataclass(frozen=True)
class OnnxOp:
    """The ONNX operator that a user's op is.

    Fields:
        domain: the operator's domain, such as ``com.mycompany``.
        name: its type in that domain.
        version: the version of the domain.
        library: a shared library with its kernel for ONNX Runtime (``register_custom_ops_library``).
            Without one a file can hold the operator, and a session cannot run it.
    """

    domain: str
    name: str
    version: int = 1
    library: str | None = None

    def __str__(self) -> str:
        return f"{self.domain}::{self.name}"


@dataclass(frozen=True)
class OpDef:
    """The definition of an op.

    Fields:
        name: ``dialect.name`` or ``aten.name.Overload``.
        params: operands and attributes in schema order.
        infer: result types from a :class:`CallSite`; raises ``TypeError`` for a call that has none.
        flops: floating-point operations of one call (a multiply-add counts 2).
        decompose: an equal graph of simpler ops: for ``rg.*`` ops one that every back end can take,
            for a spelling that is not canonical, and for a use of a canonical op that is not in the
            normal form, the canonical one.
        canonical: whether the op may appear after ``canonicalize``; one that may not has ``decompose``.
        eager: for a user's op, its reference meaning over torch tensors, called with the arguments in the
            order of ``params``. Not needed where torch has the op under this name.
        lowerings: for a user's op, back end name -> lowering in that back end's own terms; for ``ort`` a
            function ``(emitter, op)``, see ``regraft.OnnxEmitter``.
        onnx: for a user's op, the ONNX operator that it is. Without a lowering of its own it becomes that
            operator, its attributes under their own names.
        regions: number of regions, or None for any number.
        opaque: the result types come from capture, not from ``infer``.
        refusal: why the table has no types for this use of an op that it knows; such a use is opaque.
        origin: who gave the definition, for messages; empty for regraft's own.
    """

    name: str
    params: tuple[Param, ...]
    infer: InferRule
    traits: Trait = SAFE
    flops: CountRule = no_flops
    decompose: DecomposeRule | None = None
    eager: Callable[..., Any] | None = field(default=None, compare=False)
    lowerings: Mapping[str, Callable[..., Any]] = field(default_factory=dict[str, Any], compare=False)
    onnx: OnnxOp | None = field(default=None, compare=False)
    regions: int | None = 0
    canonical: bool = True
    opaque: bool = False
    refusal: str = field(default="", compare=False)
    origin: str = field(default="", compare=False)

    @property
    def dialect(self) -> str:
        return self.name.split(".", 1)[0]

    @property
    def operands(self) -> tuple[Operand, ...]:
        return tuple(p for p in self.params if isinstance(p, Operand))

    @property
    def attrs(self) -> tuple[AttrSpec, ...]:
        return tuple(p for p in self.params if isinstance(p, AttrSpec))

    @property
    def uncovered(self) -> str:
        """Why nobody can lower an opaque use of an op of this name."""
        return "the op table does not cover this use of it" + (f": {self.refusal}" if self.refusal else "")

    def locate(self, name: str, segments: Sequence[Segment]) -> tuple[int, Segment]:
        """Start index and segment of the operand ``name`` in the flat operand list."""
        start = 0
        for operand, segment in zip(self.operands, segments, strict=True):
            if operand.name == name:
                return start, segment
            start += segment_length(segment)
        raise KeyError(f"{self.name} has no operand '{name}'")

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by parameter name, defaults filled in.

        Raises:
            OptionError: too many arguments, an unknown or a missing one.
        """
        if len(args) > len(self.params):
            raise OptionError(f"{self.name} takes at most {len(self.params)} arguments, got {len(args)}")
        bound = {p.name: a for p, a in zip(self.params, args, strict=False)}
        for name, value in kwargs.items():
            if name in bound or name not in {p.name for p in self.params}:
                raise OptionError(f"{self.name}: unexpected argument '{name}'")
            bound[name] = value
        for param in self.params:
            if param.name not in bound:
                bound[param.name] = self._default(param)
        return bound

    def _default(self, param: Param) -> Any:
        if isinstance(param, AttrSpec):
            if param.default is REQUIRED:
                raise OptionError(f"{self.name}: missing attribute '{param.name}'")
            return param.default
        if param.arity is Arity.SINGLE:
            raise OptionError(f"{self.name}: missing operand '{param.name}'")
        return None if param.arity is Arity.OPTIONAL else ()


def flatten_operands(definition: OpDef, bound: Mapping[str, Any]) -> tuple[list[Any], tuple[Segment, ...]]:
    """The flat operand list and its segments for arguments bound by name."""
    flat: list[Any] = []
    segments: list[Segment] = []
    for operand in definition.operands:
        given = bound[operand.name]
        if operand.arity is Arity.SINGLE:
            values, segment = [given], 1
        elif operand.arity is Arity.OPTIONAL:
            values = [] if given is None else [given]
            segment = len(values)
        else:
            values = [v for v in given if v is not None]
            optional = operand.arity is Arity.OPTIONAL_LIST
            segment = tuple(v is not None for v in given) if optional else len(values)
        flat += values
        segments.append(segment)
    return flat, tuple(segments)


class OpTable(Mapping[str, OpDef]):
    """An immutable set of definitions by name.

    Fields:
        traced: the patterns of rewrites over these ops, kept as long as both live.
    """

    def __init__(self, definitions: Sequence[OpDef]) -> None:
        self.traced: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._by_name: dict[str, OpDef] = {}
        for definition in definitions:
            if definition.name in self._by_name:
                raise OptionError(f"the op '{definition.name}' is defined twice")
            self._by_name[definition.name] = definition

    def __getitem__(self, name: str) -> OpDef:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def extended(self, definitions: Sequence[OpDef]) -> OpTable:
        """A table with ``definitions`` added; a name that exists already is an error."""
        return OpTable([*self._by_name.values(), *definitions])
