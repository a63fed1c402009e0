"""The text form, read.

::

    module  = "module" "{" { opaque | leaf | recipe | func } "}"
    opaque  = "opaque" NAME "(" [ param { "," param } ] ")"
              [ "traits" "(" NAME { "," NAME } ")" ] [ "regions" ( INT | "any" ) ]
    param   = %name [ "?" | "*" | "?*" ] | NAME [ "=" attr ]
    leaf    = "leaf" @name ":" type
    recipe  = "recipe" @name ":" type "{" { op } "}"
    func    = "func" @name "(" args ")" [ "where" symbols ] "->" "(" [ types ] ")"
              [ "state" "(" STRING { "," STRING } ")" ] [ "aliases" "{" INT ":" INT { "," ... } "}" ]
              "{" { op } "}"
    op      = [ %name { "," %name } "=" ] NAME ( @name | "(" [ operand { "," operand } ] ")" )
              [ "{" NAME "=" attr { "," NAME "=" attr } "}" ] [ "defines" symbols ]
              [ "(" region { "," region } ")" ] [ ":" types ] [ loc ]
    operand = %name | "_" | "[" [ ( %name | "_" ) { "," ... } ] "]"
    region  = "{" [ "^" "(" args ")" [ "where" symbols ] ] { op } "}"
    args    = [ %name ":" type { "," %name ":" type } ]
    symbols = NAME "in" "[" INT "," ( INT | "inf" ) "]" [ "%" INT ] { "," ... }
    type    = DTYPE "[" [ dim { "," dim } ] "]" [ @device ] | "token"
    attr    = "none" | "true" | "false" | FLOAT | "complex" "(" FLOAT "," FLOAT ")" | STRING | DTYPE
            | dim | @name | "(" [ attr "," [ attr { "," attr } ] ] ")"
    loc     = "loc" "(" [ STRING ":" INT ] [ "in" STRING ] [ "by" NAME { "," NAME } ] ")"

Operands stand in the order of the op's definition, an absent optional one as ``_`` and a list in
brackets; an attribute that is left out has its default. ``//`` begins a comment. A name behind ``@`` may
be a string. Values are known in their region only, symbols in the regions inside too.
"""

from __future__ import annotations

import difflib
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from regraft.ir.atom_text import Atoms, read_list
from regraft.ir.constants import Leaf, Recipe
from regraft.ir.core import UNKNOWN, Op, Region, Value, normalise_attr
from regraft.ir.dim_text import MAX_DEPTH, read_int
from regraft.ir.dims import Symbol
from regraft.ir.lexer import Cursor, Token, name_of, tokenize, unquote
from regraft.ir.module import Function, Module
from regraft.ir.opdef import (
    REQUIRED,
    Arity,
    Attr,
    AttrSpec,
    CallSite,
    Constant,
    OpDef,
    Operand,
    Param,
    Segment,
    Trait,
)
from regraft.ir.ops import OPS
from regraft.ir.types import TensorType, Type

_TRAITS = {str(trait.name).lower(): trait for trait in Trait if trait is not Trait.NONE}


def parse_module(
    text: str, table: Mapping[str, OpDef] = OPS, storages: Mapping[str, Any] | None = None
) -> Module:
    """The module that ``text`` describes. Whether it keeps the rules of the IR is for ``verify`` to say.

    Args:
        table: the definitions that ops refer to by name.
        storages: leaf name -> what holds its values; without it leaves have no storage.

    Raises:
        ParseError: the text is not a module.
    """
    return _Parser(tokenize(text), table, storages).module()


@dataclass
class _Scope:
    """What the ops of one region may refer to."""

    symbols: ChainMap[str, Symbol]
    values: dict[str, Value] = field(default_factory=dict[str, Value])
    outer: _Scope | None = None
    depth: int = 0

    def inside(self) -> _Scope:
        return _Scope(self.symbols.new_child(), {}, self, self.depth + 1)

    def define(self, symbols: Sequence[Symbol]) -> None:
        self.symbols.update({s.name: s for s in symbols})


class _Parser:
    def __init__(
        self, cursor: Cursor, table: Mapping[str, OpDef], storages: Mapping[str, Any] | None
    ) -> None:
        self.cursor = cursor
        self.table = table
        self.storages = storages
        self.atoms = Atoms(cursor)
        self.opaque: dict[str, OpDef] = {}

    # -- the module ----------------------------------------------------------------------------

    def module(self) -> Module:
        cursor = self.cursor
        functions: dict[str, Function] = {}
        cursor.expect("module", "at the beginning")
        cursor.expect("{")
        while not cursor.accept("}"):
            if cursor.accept("leaf"):
                self._leaf()
            elif cursor.accept("recipe"):
                self._recipe()
            elif cursor.accept("opaque"):
                self._opaque()
            elif cursor.accept("func"):
                token = cursor.token
                function = self._function()
                if function.name in functions:
                    cursor.fail(f"there are two functions @{function.name}", token)
                functions[function.name] = function
            else:
                cursor.fail(f"expected 'leaf', 'recipe', 'opaque', 'func' or '}}', found {cursor.token}")
        if cursor.token.kind != "end":
            cursor.fail(f"expected the end of the text after the module, found {cursor.token}")
        return Module(functions)

    def _constant_name(self) -> tuple[str, Token]:
        token = self.cursor.expect_kind("at", "a name such as @weight")
        name = name_of(self.cursor, token)
        if name in self.atoms.constants:
            self.cursor.fail(f"there are two constants @{name}", token)
        self.cursor.expect(":", "and the type")
        return name, token

    def _constant_type(self) -> TensorType:
        token = self.cursor.token
        found = self.atoms.type({})
        if not isinstance(found, TensorType):
            self.cursor.fail("a constant is a tensor", token)
        return found

    def _leaf(self) -> None:
        name, token = self._constant_name()
        found = self._constant_type()
        if self.storages is not None and name not in self.storages:
            self.cursor.fail(f"no storage was given for the leaf '{name}'", token)
        storage = self.storages[name] if self.storages is not None else None
        self.atoms.constants[name] = Leaf(name, found, storage)

    def _recipe(self) -> None:
        name, token = self._constant_name()
        declared = self._constant_type()
        self.cursor.expect("{", "before the ops of the recipe")
        body = Region()
        self._ops(body, _Scope(ChainMap()))
        if body.result_types != (declared,):
            found = ", ".join(str(t) for t in body.result_types)
            self.cursor.fail(f"the recipe is declared as {declared} and yields ({found})", token)
        self.atoms.constants[name] = Recipe(body, name)

    def _opaque(self) -> None:
        cursor, token = self.cursor, self.cursor.expect_kind("name", "the name of an op")
        known = self.table.get(token.text)
        if token.text.startswith(("rg.", "cf.")) or (known is not None and not known.opaque):
            cursor.fail(f"the op '{token.text}' is not opaque: the op table has it", token)
        cursor.expect("(")
        params = read_list(cursor, ")", self._param)
        if len({p.name for p in params}) != len(params):
            cursor.fail("two parameters have the same name", token)
        traits = Trait.NONE
        if cursor.accept("traits"):
            cursor.expect("(")
            for trait in read_list(cursor, ")", self._trait):
                traits |= trait
        regions: int | None = 0
        if cursor.accept("regions"):
            regions = None if cursor.accept("any") else read_int(cursor)
        self.opaque[token.text] = OpDef(
            token.text, tuple(params), _not_inferred, traits, regions=regions, opaque=True
        )

    def _param(self) -> Param:
        cursor = self.cursor
        if cursor.token.kind == "value":
            name = cursor.take().text[1:]
            optional, many = cursor.accept("?"), cursor.accept("*")
            if many:
                return Operand(name, Arity.OPTIONAL_LIST if optional else Arity.VARIADIC)
            return Operand(name, Arity.OPTIONAL if optional else Arity.SINGLE)
        name = cursor.expect_kind("name", "a parameter").text
        return AttrSpec(name, self.atoms.attr({}) if cursor.accept("=") else REQUIRED)

    def _trait(self) -> Trait:
        token = self.cursor.expect_kind("name", "a trait")
        if token.text not in _TRAITS:
            self.cursor.fail(f"unknown trait '{token.text[:40]}'; there are {', '.join(_TRAITS)}", token)
        return _TRAITS[token.text]

    # -- functions and regions -----------------------------------------------------------------

    def _function(self) -> Function:
        cursor = self.cursor
        token = cursor.expect_kind("at", "the function's name, such as @forward")
        scope, body = _Scope(ChainMap()), Region()
        symbols = self._arguments(body, scope)
        cursor.expect("->", "and the types of the results")
        head = cursor.position
        cursor.expect("(")
        self._skip_to_close()
        state = self._state(body) if cursor.accept("state") else ()
        aliases = self._aliases() if cursor.accept("aliases") else {}
        cursor.expect("{", "before the ops of the function")
        self._ops(body, scope)
        self._check_head(head, body, scope)
        return Function(name_of(cursor, token), body, tuple(symbols), aliases, state=state)

    def _check_head(self, head: int, body: Region, scope: _Scope) -> None:
        """The result types in the head are those of the body, whose ops define symbols that they may have."""
        cursor = self.cursor
        end, cursor.position = cursor.position, head
        token = cursor.take()
        declared = read_list(cursor, ")", lambda: self.atoms.type(scope.symbols))
        if tuple(declared) != body.result_types:
            found = ", ".join(str(t) for t in body.result_types)
            cursor.fail(f"the function yields ({found}), which is not what its head says", token)
        cursor.position = end

    def _state(self, body: Region) -> tuple[Leaf, ...]:
        """The leaves that the last arguments stand for; their values stay with torch."""
        cursor = self.cursor
        opening = cursor.expect("(")
        names = read_list(
            cursor, ")", lambda: unquote(cursor, cursor.expect_kind("string", "the name of a buffer"))
        )
        if len(names) > len(body.args):
            cursor.fail(f"{len(names)} names of state for {len(body.args)} arguments", opening)
        leaves: list[Leaf] = []
        for name, arg in zip(names, body.args[len(body.args) - len(names) :], strict=True):
            if not isinstance(arg.type, TensorType):
                cursor.fail(f"the state '{name}' is a {arg.type}; it must be a tensor", opening)
            leaves.append(Leaf(name, arg.type))
        return tuple(leaves)

    def _aliases(self) -> dict[int, int]:
        cursor = self.cursor

        def pair() -> tuple[int, int]:
            index = read_int(cursor)
            cursor.expect(":")
            return index, read_int(cursor)

        opening = cursor.expect("{")
        pairs = read_list(cursor, "}", pair)
        if len(dict(pairs)) != len(pairs):
            cursor.fail("two aliases are for the same result", opening)
        return dict(pairs)

    def _arguments(self, region: Region, scope: _Scope) -> list[Symbol]:
        """Read ``(args) where symbols``; the types speak of symbols that come after them."""
        cursor = self.cursor
        opening = cursor.position
        cursor.expect("(")
        self._skip_to_close()
        symbols = self.atoms.symbols(scope.symbols) if cursor.accept("where") else []
        scope.define(symbols)
        end, cursor.position = cursor.position, opening + 1
        read_list(cursor, ")", lambda: self._argument(region, scope))
        cursor.position = end
        return symbols

    def _skip_to_close(self) -> None:
        depth = 1
        while depth:
            token = self.cursor.take()
            if token.kind == "end":
                self.cursor.fail("expected ')' after the arguments, found the end of the text")
            if token.kind == "punctuation" and token.text in "([{":
                depth += 1
            elif token.kind == "punctuation" and token.text in ")]}":
                depth -= 1

    def _argument(self, region: Region, scope: _Scope) -> None:
        token = self.cursor.expect_kind("value", "an argument such as %x")
        self.cursor.expect(":", "and the argument's type")
        value = region.add_arg(self.atoms.type(scope.symbols), _hint(token))
        self._name_value(token, value, scope)

    def _name_value(self, token: Token, value: Value, scope: _Scope) -> None:
        if token.text in scope.values:
            self.cursor.fail(f"{token.text} is defined already", token)
        scope.values[token.text] = value

    def _ops(self, region: Region, scope: _Scope) -> None:
        """Read ops up to and with the closing brace; the last is a terminator."""
        cursor, last = self.cursor, None
        while not cursor.at("}"):
            start = cursor.token
            if last is not None and last.has(Trait.TERMINATOR):
                cursor.fail(f"expected '}}' after {last.name}, which ends the region, found {start}")
            last = region.append(self._op(scope))
        if last is None or not last.has(Trait.TERMINATOR):
            cursor.fail("expected a terminator such as cf.yield(...) before the end of the region")
        cursor.take()

    def _region(self, outer: _Scope) -> Region:
        cursor = self.cursor
        opening = cursor.expect("{", "before a region")
        scope, region = outer.inside(), Region()
        if scope.depth > MAX_DEPTH:
            cursor.fail(f"regions nest deeper than {MAX_DEPTH}", opening)
        if cursor.accept("^"):
            region.symbols = tuple(self._arguments(region, scope))
        self._ops(region, scope)
        return region

    # -- ops -----------------------------------------------------------------------------------

    def _op(self, scope: _Scope) -> Op:
        cursor = self.cursor
        targets = self._targets()
        name = cursor.expect_kind("name", "an op such as aten.relu" if targets else "an op, a value or '}'")
        definition = self._definition(name)
        operands: list[Value] = []
        segments: list[Segment] = []
        attrs: dict[str, Attr] = {}
        if definition.name == "rg.const" and cursor.token.kind == "at":
            attrs["value"] = self.atoms.constant(cursor.take())
        else:
            self._operands(definition, operands, segments, scope)
            attrs = self._attrs(definition, name, scope) if cursor.accept("{") else {}
        self._complete(definition, attrs, name)
        symbols = self.atoms.symbols(scope.symbols) if cursor.accept("defines") else []
        regions = self._regions(definition, scope)
        scope.define(symbols)
        types = self._types(targets, scope)
        location = self.atoms.location() if cursor.accept("loc") else UNKNOWN
        op = Op(
            definition,
            operands,
            tuple(segments),
            attrs,
            types,
            regions=regions,
            symbols=symbols,
            loc=location,
        )
        for token, result in zip(targets, op.results, strict=True):
            result.hint = _hint(token)
            self._name_value(token, result, scope)
        return op

    def _targets(self) -> list[Token]:
        cursor = self.cursor
        if cursor.token.kind != "value":
            return []
        targets = [cursor.take()]
        while cursor.accept(","):
            targets.append(cursor.expect_kind("value", "a result such as %x"))
        cursor.expect("=", "after the results")
        return targets

    def _definition(self, token: Token) -> OpDef:
        found = self.opaque.get(token.text) or self.table.get(token.text)
        if found is None:
            near = difflib.get_close_matches(token.text[:80], self.table, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            self.cursor.fail(f"unknown op '{token.text[:80]}'{hint}", token)
        return found

    def _operands(
        self, definition: OpDef, operands: list[Value], segments: list[Segment], scope: _Scope
    ) -> None:
        cursor = self.cursor
        cursor.expect("(", "before the operands")
        for number, operand in enumerate(definition.operands):
            if number:
                cursor.expect(",", f"before the operand '{operand.name}' of {definition.name}")
            segments.append(self._operand(definition, operand, operands, scope))
        names = ", ".join(o.name for o in definition.operands) or "none"
        cursor.expect(")", f"after the operands of {definition.name} ({names})")

    def _operand(self, definition: OpDef, operand: Operand, operands: list[Value], scope: _Scope) -> Segment:
        """Read one operand; its values are added to ``operands``."""
        cursor = self.cursor
        if operand.arity in (Arity.VARIADIC, Arity.OPTIONAL_LIST):
            cursor.expect("[", f"since the operand '{operand.name}' of {definition.name} is a list")
            optional = operand.arity is Arity.OPTIONAL_LIST
            found = read_list(cursor, "]", lambda: self._value(operand, scope, optional))
            operands += [v for v in found if v is not None]
            return tuple(v is not None for v in found) if optional else len(found)
        value = self._value(operand, scope, operand.arity is Arity.OPTIONAL)
        operands += [] if value is None else [value]
        return 0 if value is None else 1

    def _value(self, operand: Operand, scope: _Scope, optional: bool) -> Value | None:
        cursor = self.cursor
        if optional and cursor.accept("_"):
            return None
        token = cursor.token
        if token.kind != "value":
            absent = " or '_'" if optional else ""
            cursor.fail(f"expected a value such as %x{absent} for '{operand.name}', found {token}")
        cursor.take()
        value = scope.values.get(token.text)
        if value is None:
            self._unknown_value(token, scope)
        return value

    def _unknown_value(self, token: Token, scope: _Scope) -> NoReturn:
        outer = scope.outer
        while outer is not None:
            if token.text in outer.values:
                self.cursor.fail(
                    f"{token.text} is a value of an outer region; hand it over as an operand and an argument",
                    token,
                )
            outer = outer.outer
        self.cursor.fail(f"{token.text} is not defined", token)

    def _attrs(self, definition: OpDef, name: Token, scope: _Scope) -> dict[str, Attr]:
        cursor = self.cursor
        known = {spec.name for spec in definition.attrs}
        attrs: dict[str, Attr] = {}

        def pair() -> None:
            token = cursor.expect_kind("name", "the name of an attribute")
            if token.text not in known:
                there = f"; it has {', '.join(known)}" if known else "; it has none"
                cursor.fail(f"{name.text} has no attribute '{token.text[:40]}'{there}", token)
            if token.text in attrs:
                cursor.fail(f"the attribute '{token.text}' is given twice", token)
            cursor.expect("=", f"and the value of '{token.text}'")
            attrs[token.text] = self.atoms.attr(scope.symbols)

        read_list(cursor, "}", pair)
        return attrs

    def _complete(self, definition: OpDef, attrs: dict[str, Attr], name: Token) -> None:
        """Add the defaults of the attributes that the text leaves out."""
        for spec in definition.attrs:
            if spec.name not in attrs:
                if spec.default is REQUIRED:
                    self.cursor.fail(f"{name.text} needs the attribute '{spec.name}'", name)
                attrs[spec.name] = normalise_attr(spec.default)
        if definition.name == "rg.const" and not isinstance(attrs.get("value"), Constant):
            self.cursor.fail("the value of rg.const is a constant such as @weight", name)

    def _regions(self, definition: OpDef, scope: _Scope) -> list[Region]:
        cursor, start = self.cursor, self.cursor.token
        found = read_list(cursor, ")", lambda: self._region(scope)) if cursor.accept("(") else []
        if definition.regions not in (None, len(found)):
            cursor.fail(f"{definition.name} has {definition.regions} regions, found {len(found)}", start)
        return found

    def _types(self, targets: Sequence[Token], scope: _Scope) -> list[Type]:
        cursor = self.cursor
        if not targets:
            return []
        cursor.expect(":", "and the types of the results")
        types = [self.atoms.type(scope.symbols)]
        while cursor.accept(","):
            types.append(self.atoms.type(scope.symbols))
        if len(types) != len(targets):
            cursor.fail(f"there are {len(types)} types for {len(targets)} results", targets[0])
        return types


def _hint(token: Token) -> str:
    """The hint that a printed name came from: a number came from none."""
    name = token.text[1:]
    return "" if name.isdigit() else name


def _not_inferred(site: CallSite) -> Sequence[Type]:
    raise TypeError(f"{site.definition.name} is opaque: its result types come from capture")
