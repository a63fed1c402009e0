"""The graph: values, operations and regions.

Identity is the object; names are hints and the printer makes them unique. A region is one block of
operations that ends in a terminator, so "dominates" means "comes earlier in the same region" and an
order index answers it. Regions are isolated from above: what an op inside needs from outside comes
in as an operand of the region's op and an argument of the region.

Only ``Rewriter`` and the importer may change a graph; everything here that mutates is a building
block for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from regraft.ir.dims import Symbol, as_expr
from regraft.ir.opdef import Attr, CallSite, OpDef, Segment, Trait, flatten_operands, segment_length
from regraft.ir.types import TensorType, Type

_ORDER_GAP = 1 << 20


@dataclass(frozen=True)
class Location:
    """Where an op comes from: source line, module path, and the rewrites that made it, oldest first."""

    file: str = ""
    line: int = 0
    module: str = ""
    made_by: tuple[str, ...] = ()

    def tagged(self, rewrite: str) -> Location:
        return replace(self, made_by=(*self.made_by, rewrite))

    def __str__(self) -> str:
        source = f"{self.file}:{self.line}" if self.file else "unknown source"
        return f"{source} in {self.module}" if self.module else source


UNKNOWN = Location()


class Use(NamedTuple):
    op: Op
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]


class Value:
    """The result of an op or the argument of a region, in value semantics."""

    __slots__ = ("hint", "index", "owner", "type", "uses")

    def __init__(self, type: Type, owner: Op | Region, index: int, hint: str = "") -> None:
        self.type = type
        self.owner = owner
        self.index = index
        self.hint = hint
        self.uses: dict[Use, None] = {}

    @property
    def op(self) -> Op | None:
        """The op that makes this value; None for a region argument."""
        return self.owner if isinstance(self.owner, Op) else None

    @property
    def tensor(self) -> TensorType:
        """The type, which must be a tensor type."""
        assert isinstance(self.type, TensorType), f"{self} is a {self.type}"
        return self.type

    @property
    def is_const(self) -> bool:
        """Whether this is a constant of the module."""
        return isinstance(self.owner, Op) and self.owner.name == "rg.const"

    @property
    def users(self) -> list[Op]:
        """The ops that use this value, each once, in order of first use."""
        return list(dict.fromkeys(use.op for use in self.uses))

    def __repr__(self) -> str:
        maker = self.owner.name if isinstance(self.owner, Op) else "argument"
        return f"<{self.hint or 'value'}: {self.type} from {maker}>"


class Op:
    """An operation. Operands are flat; ``segments`` says which belong to which parameter."""

    __slots__ = (
        "_next",
        "_operands",
        "_order",
        "_prev",
        "attrs",
        "definition",
        "loc",
        "parent",
        "regions",
        "results",
        "segments",
        "symbols",
    )

    def __init__(
        self,
        definition: OpDef,
        operands: Sequence[Value],
        segments: tuple[Segment, ...],
        attrs: Mapping[str, Attr],
        result_types: Sequence[Type],
        *,
        regions: Sequence[Region] = (),
        symbols: Sequence[Symbol] = (),
        loc: Location = UNKNOWN,
    ) -> None:
        self.definition = definition
        self.segments = segments
        self.attrs = dict(attrs)
        self.loc = loc
        self.regions = tuple(regions)
        self.symbols = tuple(symbols)
        self.parent: Region | None = None
        self._prev: Op | None = None
        self._next: Op | None = None
        self._order = 0
        self._operands = list(operands)
        for index, operand in enumerate(operands):
            operand.uses[Use(self, index)] = None
        self.results = tuple(Value(t, self, i) for i, t in enumerate(result_types))
        for region in self.regions:
            region.parent = self

    @staticmethod
    def create(
        definition: OpDef,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        result_types: Sequence[Type] | None = None,
        regions: Sequence[Region] = (),
        symbols: Sequence[Symbol] = (),
        loc: Location = UNKNOWN,
    ) -> Op:
        """A detached op from call arguments, its result types inferred unless given.

        Raises:
            OptionError: the arguments do not fit the op's parameters.
            TypeError: the op has no result type for these operands.
        """
        bound = definition.bind(args, kwargs or {})
        operands, segments = flatten_operands(definition, bound)
        attrs = {spec.name: normalise_attr(bound[spec.name]) for spec in definition.attrs}
        if result_types is None:
            types = tuple(v.type for v in operands)
            defined = tuple(as_expr(s) for s in symbols)
            site = CallSite(definition, types, segments, attrs, tuple(regions), defined)
            result_types = infer_types(site)
        return Op(
            definition, operands, segments, attrs, result_types, regions=regions, symbols=symbols, loc=loc
        )

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def operands(self) -> tuple[Value, ...]:
        return tuple(self._operands)

    @property
    def result(self) -> Value:
        """The only result."""
        assert len(self.results) == 1, f"{self.name} has {len(self.results)} results"
        return self.results[0]

    @property
    def site(self) -> CallSite:
        types = tuple(v.type for v in self._operands)
        defined = tuple(as_expr(s) for s in self.symbols)
        return CallSite(self.definition, types, self.segments, self.attrs, self.regions, defined)

    def has(self, trait: Trait) -> bool:
        return trait in self.definition.traits

    def operand(self, name: str) -> Value:
        """The single operand ``name``."""
        start, _ = self.definition.locate(name, self.segments)
        return self._operands[start]

    def optional(self, name: str) -> Value | None:
        start, segment = self.definition.locate(name, self.segments)
        return self._operands[start] if segment else None

    def variadic(self, name: str) -> tuple[Value, ...]:
        start, segment = self.definition.locate(name, self.segments)
        return tuple(self._operands[start : start + segment_length(segment)])

    def optional_list(self, name: str) -> tuple[Value | None, ...]:
        start, segment = self.definition.locate(name, self.segments)
        flags = segment if isinstance(segment, tuple) else (True,) * segment
        present = iter(self._operands[start : start + segment_length(segment)])
        return tuple(next(present) if flag else None for flag in flags)

    def attr(self, name: str) -> Any:
        return self.attrs[name]

    def arguments(self) -> dict[str, Any]:
        """Operands and attributes by parameter name, as ``create`` takes them."""
        from_operand = {
            "single": self.operand,
            "optional": self.optional,
            "variadic": self.variadic,
            "optional_list": self.optional_list,
        }
        found: dict[str, Any] = {
            o.name: from_operand[o.arity.value](o.name) for o in self.definition.operands
        }
        return found | self.attrs

    def set_operand(self, index: int, value: Value) -> None:
        del self._operands[index].uses[Use(self, index)]
        self._operands[index] = value
        value.uses[Use(self, index)] = None

    def drop_operands(self) -> None:
        for index, operand in enumerate(self._operands):
            del operand.uses[Use(self, index)]
        self._operands.clear()

    def comes_before(self, other: Op) -> bool:
        """Whether this op runs before ``other``; both are in the same region."""
        assert self.parent is other.parent, f"{self.name} and {other.name} are in different regions"
        return self._order < other._order

    def __repr__(self) -> str:
        return f"<{self.name} at {self.loc}>"


def infer_types(site: CallSite) -> tuple[Type, ...]:
    inferred = site.definition.infer(site)
    return tuple(inferred) if isinstance(inferred, Sequence) else (inferred,)


def normalise_attr(value: Any) -> Attr:
    if isinstance(value, (list, tuple)):
        return tuple(normalise_attr(v) for v in value)  # pyright: ignore[reportUnknownVariableType]
    return value


class Region:
    """One block: arguments, symbol arguments and a list of ops that ends in a terminator."""

    __slots__ = ("_first", "_last", "_length", "args", "parent", "symbols")

    def __init__(self, arg_types: Sequence[Type] = (), symbols: Sequence[Symbol] = ()) -> None:
        self.args = [Value(t, self, i) for i, t in enumerate(arg_types)]
        self.symbols = tuple(symbols)
        self.parent: Op | None = None
        self._first: Op | None = None
        self._last: Op | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def ops(self) -> Iterator[Op]:
        """The ops in order; the current one may be erased while iterating."""
        op = self._first
        while op is not None:
            following = op._next  # pyright: ignore[reportPrivateUsage]
            yield op
            op = following

    @property
    def reversed_ops(self) -> Iterator[Op]:
        op = self._last
        while op is not None:
            preceding = op._prev  # pyright: ignore[reportPrivateUsage]
            yield op
            op = preceding

    @property
    def terminator(self) -> Op:
        last = self._last
        if last is None or not last.has(Trait.TERMINATOR):
            raise AssertionError("the region has no terminator")
        return last

    @property
    def results(self) -> tuple[Value, ...]:
        return self.terminator.operands

    @property
    def arg_types(self) -> tuple[Type, ...]:
        return tuple(a.type for a in self.args)

    @property
    def result_types(self) -> tuple[Type, ...]:
        return tuple(v.type for v in self.results)

    def add_arg(self, type: Type, hint: str = "") -> Value:
        value = Value(type, self, len(self.args), hint)
        self.args.append(value)
        return value

    def append(self, op: Op) -> Op:
        return self.insert_before(None, op)

    def insert_before(self, anchor: Op | None, op: Op) -> Op:
        """Insert ``op`` before ``anchor``, or at the end when that is None."""
        assert op.parent is None, f"{op.name} is in a region already"
        before = self._last if anchor is None else anchor._prev  # pyright: ignore[reportPrivateUsage]
        _link(before, op)
        _link(op, anchor)
        if before is None:
            self._first = op
        if anchor is None:
            self._last = op
        op.parent = self
        self._length += 1
        self._number(before, op, anchor)
        return op

    def remove(self, op: Op) -> None:
        assert op.parent is self, f"{op.name} is not in this region"
        before, after = op._prev, op._next  # pyright: ignore[reportPrivateUsage]
        _link(before, after)
        if before is None:
            self._first = after
        if after is None:
            self._last = before
        op.parent = op._prev = op._next = None  # pyright: ignore[reportPrivateUsage]
        self._length -= 1

    def _number(self, before: Op | None, op: Op, after: Op | None) -> None:
        """Keep order indices increasing; renumber only when a gap is used up."""
        low = before._order if before else 0  # pyright: ignore[reportPrivateUsage]
        high = after._order if after else low + 2 * _ORDER_GAP  # pyright: ignore[reportPrivateUsage]
        op._order = (low + high) // 2  # pyright: ignore[reportPrivateUsage]
        if not low < op._order < high:  # pyright: ignore[reportPrivateUsage]
            for position, each in enumerate(self.ops, start=1):
                each._order = position * _ORDER_GAP  # pyright: ignore[reportPrivateUsage]

    def walk(self) -> Iterator[Op]:
        """Every op here and in nested regions, an op before the ops of its regions."""
        for op in self.ops:
            yield op
            for region in op.regions:
                yield from region.walk()


def _link(before: Op | None, after: Op | None) -> None:
    if before is not None:
        before._next = after  # pyright: ignore[reportPrivateUsage]
    if after is not None:
        after._prev = before  # pyright: ignore[reportPrivateUsage]


def clone_region(region: Region, mapping: dict[Value, Value] | None = None) -> Region:
    """A deep copy. ``mapping`` receives old value -> new value and may be seeded by the caller."""
    values = {} if mapping is None else mapping
    copy = Region(region.arg_types, region.symbols)
    for old, new in zip(region.args, copy.args, strict=True):
        new.hint = old.hint
        values[old] = new
    for op in region.ops:
        copy.append(clone_op(op, values))
    return copy


def clone_op(op: Op, mapping: dict[Value, Value]) -> Op:
    """A detached copy of ``op`` over the mapped operands; results are added to ``mapping``."""
    copy = Op(
        op.definition,
        [mapping.get(v, v) for v in op.operands],
        op.segments,
        op.attrs,
        [r.type for r in op.results],
        regions=[clone_region(r) for r in op.regions],
        symbols=op.symbols,
        loc=op.loc,
    )
    for old, new in zip(op.results, copy.results, strict=True):
        new.hint = old.hint
        mapping[old] = new
    return copy


def backward_slice(values: Iterable[Value]) -> list[Op]:
    """The ops that ``values`` depend on within their region, in order of execution."""
    found: dict[Op, None] = {}
    pending = [v.op for v in values if v.op is not None]
    while pending:
        op = pending.pop()
        if op in found:
            continue
        found[op] = None
        pending += [v.op for v in op.operands if v.op is not None]
    return sorted(found, key=lambda op: op._order)  # pyright: ignore[reportPrivateUsage]
