"""The text form, written. ``parser`` reads it back and documents the grammar.

Names are made here: the hint of a value where it has one, else a number, unique in its function. The
printer must also work for a graph that breaks rules, since the verifier shows what it found with it.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from regraft.ir.constants import Leaf, Recipe
from regraft.ir.core import UNKNOWN, Location, Op, Region, Value, normalise_attr
from regraft.ir.dims import Expr, Symbol
from regraft.ir.dtypes import DType
from regraft.ir.module import Function, Module
from regraft.ir.opdef import REQUIRED, Arity, AttrSpec, Constant, OpDef, Segment, Trait, segment_length
from regraft.ir.structural import same_attr
from regraft.ir.types import TensorType, Type

_BARE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.$]*\Z")
_BARE_DEVICE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(:[0-9]+)?\Z")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.$]")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_QUIET_NAN = 0x7FF8000000000000

ARITY_MARKS = {Arity.SINGLE: "", Arity.OPTIONAL: "?", Arity.VARIADIC: "*", Arity.OPTIONAL_LIST: "?*"}


# -- atoms -------------------------------------------------------------------------------------


def quote(text: str) -> str:
    """``text`` as a string literal on one line."""
    return f'"{"".join(_escaped(c) for c in text)}"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return character if character.isprintable() else f"\\u{{{ord(character):x}}}"


def format_name(name: str) -> str:
    """A name as it stands behind ``@``."""
    return name if _BARE_NAME.match(name) else quote(name)


def format_type(type: Type) -> str:
    if not isinstance(type, TensorType):
        return str(type)
    text = f"{type.dtype.value}[{', '.join(str(d) for d in type.shape)}]"
    if type.device == "cpu":
        return text
    return f"{text}@{type.device if _BARE_DEVICE.match(type.device) else quote(type.device)}"


def format_symbol(symbol: Symbol) -> str:
    """The declaration of a symbol, such as ``s0 in [2, 512] % 8``."""
    high = "inf" if symbol.hi is None else symbol.hi
    divisor = f" % {symbol.divisor}" if symbol.divisor != 1 else ""
    return f"{symbol.name} in [{symbol.lo}, {high}]{divisor}"


def _symbols(keyword: str, symbols: Sequence[Symbol]) -> str:
    return f" {keyword} {', '.join(format_symbol(s) for s in symbols)}" if symbols else ""


def format_float(value: float) -> str:
    if math.isnan(value):
        (bits,) = struct.unpack("<Q", struct.pack("<d", value))
        return "nan" if bits == _QUIET_NAN else f'nan("{bits:016x}")'
    return repr(value)


def format_attr(value: Any, constants: Mapping[Constant, str]) -> str:
    """An attribute's value. One that no attribute may hold is shown in ``<...>``."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return format_float(value)
    if isinstance(value, complex):
        return f"complex({format_float(value.real)}, {format_float(value.imag)})"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, DType):
        return value.value
    if isinstance(value, (int, Expr)):
        return str(value)
    if isinstance(value, Constant):
        return f"@{format_name(constants.get(value) or getattr(value, 'name', '') or 'unnamed')}"
    if isinstance(value, tuple):
        parts: list[str] = [format_attr(v, constants) for v in value]  # pyright: ignore[reportUnknownVariableType]
        return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
    return f"<{value!r}>"


def format_location(location: Location) -> str:
    parts: list[str] = []
    if location.file or location.line:
        parts.append(f"{quote(location.file)}:{location.line}")
    if location.module:
        parts.append(f"in {quote(location.module)}")
    if location.made_by:
        parts.append(f"by {', '.join(format_name(name) for name in location.made_by)}")
    return f"loc({' '.join(parts)})"


def format_definition(definition: OpDef) -> str:
    """The declaration of an opaque op: its text is all that a reader has."""
    params: list[str] = []
    for param in definition.params:
        if not isinstance(param, AttrSpec):
            params.append(f"%{param.name}{ARITY_MARKS[param.arity]}")
        elif param.default is REQUIRED:
            params.append(param.name)
        else:
            params.append(f"{param.name} = {format_attr(normalise_attr(param.default), {})}")
    names = [str(t.name).lower() for t in Trait if t is not Trait.NONE and t in definition.traits]
    traits = f" traits ({', '.join(names)})" if names else ""
    regions = f" regions {'any' if definition.regions is None else definition.regions}"
    return (
        f"opaque {definition.name}({', '.join(params)}){traits}{regions if definition.regions != 0 else ''}"
    )


# -- names of values ---------------------------------------------------------------------------


def value_names(root: Region) -> dict[Value, str]:
    """A name for each value in ``root`` and the regions inside, without the ``%``."""
    names: dict[Value, str] = {}
    values = list(_values(root))
    taken: set[str] = set()
    counts: dict[str, int] = {}
    for value in values:
        hint = _clean(value.hint)
        if hint:
            names[value] = _unique(hint, taken, counts)
    number = 0
    # A number can only clash with a number, since a clean hint does not begin with a digit.
    for value in values:
        if value not in names:
            names[value] = str(number)
            number += 1
    return names


def _clean(hint: str) -> str:
    """``hint`` as a name. One that was a number is forgotten, so that a second print renumbers."""
    if not hint or (hint.isascii() and hint.isdigit()):
        return ""
    text = _NOT_IN_NAMES.sub("_", hint)
    return f"_{text}" if text[0] in "0123456789.$" else text


def _unique(hint: str, taken: set[str], counts: dict[str, int]) -> str:
    name = hint
    while name in taken:
        counts[hint] = counts.get(hint, 1) + 1
        name = f"{hint}_{counts[hint]}"
    taken.add(name)
    return name


def _values(region: Region) -> Iterator[Value]:
    yield from region.args
    for op in region.ops:
        yield from op.results
        for inner in op.regions:
            yield from _values(inner)


# -- graphs ------------------------------------------------------------------------------------


class Printer:
    """Writes ops with one set of names."""

    def __init__(
        self, names: Mapping[Value, str], constants: Mapping[Constant, str], *, locations: bool = True
    ) -> None:
        self.names = names
        self.constants = constants
        self.locations = locations

    def value(self, value: Value) -> str:
        return f"%{self.names[value]}" if value in self.names else f"%<{_clean(value.hint) or 'unknown'}>"

    def typed(self, values: Iterable[Value]) -> str:
        return ", ".join(f"{self.value(v)}: {format_type(v.type)}" for v in values)

    def region(self, region: Region, indent: str) -> Iterator[str]:
        """The lines of a region's body."""
        for op in region.ops:
            yield from self.op(op, indent)

    def op(self, op: Op, indent: str) -> Iterator[str]:
        """The lines of one op with its regions."""
        head, tail = self._head(op), self._tail(op)
        if not op.regions:
            yield f"{indent}{head}{tail}"
            return
        yield f"{indent}{head} ({{"
        for number, region in enumerate(op.regions):
            if number:
                yield f"{indent}}}, {{"
            yield from self._block(region, f"{indent}  ")
        yield f"{indent}}}){tail}"

    def line(self, op: Op) -> str:
        """The op on one line, its regions by their size only."""
        inner = ", ".join(f"{{ {len(region)} ops }}" for region in op.regions)
        return f"{self._head(op)}{f' ({inner})' if inner else ''}{self._tail(op)}"

    def _block(self, region: Region, indent: str) -> Iterator[str]:
        if region.args or region.symbols:
            yield f"{indent}^({self.typed(region.args)}){_symbols('where', region.symbols)}"
        yield from self.region(region, indent)

    def _head(self, op: Op) -> str:
        results = ", ".join(self.value(r) for r in op.results)
        prefix = f"{results} = " if results else ""
        if _is_plain_const(op):
            return f"{prefix}rg.const {format_attr(op.attrs['value'], self.constants)}"
        attrs = self._attrs(op)
        return f"{prefix}{op.name}({self._operands(op)}){attrs}{_symbols('defines', op.symbols)}"

    def _tail(self, op: Op) -> str:
        types = f" : {', '.join(format_type(r.type) for r in op.results)}" if op.results else ""
        shown = self.locations and op.loc != UNKNOWN
        return f"{types} {format_location(op.loc)}" if shown else types

    def _operands(self, op: Op) -> str:
        values = [self.value(v) for v in op.operands]
        if not _segments_fit(op):
            return f"{', '.join(values)} <segments {op.segments}>"
        parts: list[str] = []
        remaining = iter(values)
        for operand, segment in zip(op.definition.operands, op.segments, strict=True):
            if operand.arity in (Arity.SINGLE, Arity.OPTIONAL):
                parts.append(next(remaining) if segment else "_")
            else:
                flags = segment if isinstance(segment, tuple) else (True,) * segment
                parts.append(f"[{', '.join(next(remaining) if flag else '_' for flag in flags)}]")
        return ", ".join(parts)

    def _attrs(self, op: Op) -> str:
        defaults = {a.name: a for a in op.definition.attrs}
        # In the order of the definition, then what does not belong here.
        names = [*(n for n in defaults if n in op.attrs), *(n for n in op.attrs if n not in defaults)]
        shown = [n for n in names if not _is_default(defaults.get(n), op.attrs[n])]
        parts = [f"{name} = {format_attr(op.attrs[name], self.constants)}" for name in shown]
        return f" {{{', '.join(parts)}}}" if parts else ""


def _is_plain_const(op: Op) -> bool:
    shape = (len(op.operands), len(op.results), len(op.regions), len(op.symbols))
    value = op.attrs.get("value")
    return (
        op.name == "rg.const" and shape == (0, 1, 0, 0) and isinstance(value, Constant) and len(op.attrs) == 1
    )


def _is_default(spec: AttrSpec | None, value: Any) -> bool:
    return (
        spec is not None and spec.default is not REQUIRED and same_attr(normalise_attr(spec.default), value)
    )


def _segments_fit(op: Op) -> bool:
    operands = op.definition.operands
    if len(operands) != len(op.segments):
        return False
    fit = all(_segment_fits(o.arity, s) for o, s in zip(operands, op.segments, strict=True))
    return fit and sum(segment_length(s) for s in op.segments) == len(op.operands)


def _segment_fits(arity: Arity, segment: Segment) -> bool:
    if isinstance(segment, tuple):
        return arity is Arity.OPTIONAL_LIST
    return segment == 1 if arity is Arity.SINGLE else arity is not Arity.OPTIONAL or segment in (0, 1)


def print_module(module: Module, *, locations: bool = True) -> str:
    """The complete text of ``module``; signatures are opaque to the IR and left out.

    ``locations=False`` leaves out where ops come from, for texts that people compare.
    """
    constants = module.constants()
    lines = ["module {"]
    for definition in _opaque_definitions(module, constants):
        lines.append(f"  {format_definition(definition)}")
    for constant, name in constants.items():
        lines += _constant_lines(constant, name, constants, locations)
    for name, function in module.functions.items():
        lines += _function_lines(function, name, constants, "  ", locations)
    return "\n".join([*lines, "}"]) + "\n"


def print_function(function: Function, *, locations: bool = True) -> str:
    """The text of one function; constants are named but not declared."""
    constants = Module({function.name: function}).constants()
    return "\n".join(_function_lines(function, function.name, constants, "", locations)) + "\n"


def print_region(region: Region, *, locations: bool = True) -> str:
    """The ops of a region, a line each."""
    printer = printer_of(region, locations=locations)
    return "".join(f"{line}\n" for line in printer.region(region, ""))


def print_op(op: Op, *, locations: bool = True) -> str:
    """One op, with the names it has in the text of its outermost region."""
    printer = printer_of(outermost(op), locations=locations)
    return "\n".join(printer.op(op, ""))


def outermost(op: Op) -> Region | None:
    """The region of the function or recipe that holds ``op``; None when it is detached."""
    region = op.parent
    while region is not None and region.parent is not None and region.parent.parent is not None:
        region = region.parent.parent
    return region


def printer_of(region: Region | None, *, locations: bool = True) -> Printer:
    """A printer for the ops in ``region``."""
    if region is None:
        return Printer({}, {}, locations=locations)
    constants = Module({"": Function("", region)}).constants()
    return Printer(value_names(region), constants, locations=locations)


def _opaque_definitions(module: Module, constants: Iterable[Constant]) -> Iterable[OpDef]:
    bodies = [f.body for f in module.functions.values()]
    bodies += [c.body for c in constants if isinstance(c, Recipe)]
    found = {op.name: op.definition for body in bodies for op in body.walk() if op.definition.opaque}
    return found.values()


def _constant_lines(
    constant: Constant, name: str, constants: Mapping[Constant, str], locations: bool
) -> Iterator[str]:
    kind = "leaf" if isinstance(constant, Leaf) else "recipe"
    head = f"  {kind} @{format_name(name)} : {format_type(constant.type)}"
    if not isinstance(constant, Recipe):
        yield head
        return
    yield f"{head} {{"
    printer = Printer(value_names(constant.body), constants, locations=locations)
    yield from printer.region(constant.body, "    ")
    yield "  }"


def _function_lines(
    function: Function, name: str, constants: Mapping[Constant, str], indent: str, locations: bool
) -> Iterator[str]:
    body = function.body
    printer = Printer(value_names(body), constants, locations=locations)
    last = next(body.reversed_ops, None)
    results = last.operands if last is not None and last.has(Trait.TERMINATOR) else ()
    head = f"func @{format_name(name)}({printer.typed(body.args)}){_symbols('where', function.symbols)}"
    head += f" -> ({', '.join(format_type(v.type) for v in results)})"
    if function.state:
        head += f" state({', '.join(quote(leaf.name) for leaf in function.state)})"
    if function.aliases:
        pairs = (f"{result}: {target}" for result, target in function.aliases.items())
        head += f" aliases {{{', '.join(pairs)}}}"
    yield f"{indent}{head} {{"
    yield from printer.region(body, f"{indent}  ")
    yield f"{indent}}}"
