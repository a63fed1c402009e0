"""Checks that a module keeps the rules of the IR.

Each check is a small function that gives the first reason why an op (or region, or function) breaks its
rule; ``STRUCTURE`` and ``MEANING`` list those for ops, each relying on the ones before it. A size
question without an answer is no fault, only a refuted one is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

from regraft.errors import OptionError, VerifyError
from regraft.ir.constants import Leaf, Recipe
from regraft.ir.core import UNKNOWN, Op, Region, Use, Value, infer_types
from regraft.ir.dims import FUNCTIONS, Expr, Symbol, eq
from regraft.ir.dtypes import DType
from regraft.ir.module import Function, Module, input_symbols, symbols_in
from regraft.ir.opdef import Arity, Constant, OpDef, Segment, Trait, segment_length
from regraft.ir.place import excerpt, path_of, position_of
from regraft.ir.stages import STAGE_RULES, StageRules, stage_problem
from regraft.ir.types import TensorType, Type

_SYMBOL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
#: Names that mean something else where a size may stand in the text form.
RESERVED = frozenset(
    {"none", "true", "false", "inf", "nan", "complex", *FUNCTIONS, *(d.value for d in DType)}
)


def verify(
    module: Module,
    stage: str | None = None,
    *,
    after_pass: str | None = None,
    table: Mapping[str, OpDef] | None = None,
) -> None:
    """Check the whole module.

    Args:
        stage: whose rules hold besides the IR's own ("captured" or a pass stage; None: no others).
        after_pass: the pass that ran last, for the message.
        table: the ops that may appear; None allows any.

    Raises:
        VerifyError: a rule is broken; the first fault is given with its surroundings.
        OptionError: there is no such stage.
    """
    check = _Check(_rules(stage), table, after_pass)
    for name, function in module.functions.items():
        check.function(name, function)


def verify_ops(
    ops: Iterable[Op],
    stage: str | None = None,
    *,
    after_pass: str | None = None,
    table: Mapping[str, OpDef] | None = None,
) -> None:
    """Check single ops where they stand, such as those a ``Rewriter`` touched; detached ones are skipped.

    Raises:
        VerifyError: as ``verify``.
        OptionError: there is no such stage.
    """
    check = _Check(_rules(stage), table, after_pass)
    for op in ops:
        if op.parent is not None:
            check.op(op, (*STRUCTURE, *MEANING))


def _rules(stage: str | None) -> StageRules:
    rules = StageRules() if stage is None else STAGE_RULES.get(stage)
    if rules is None:
        raise OptionError("there is no such stage", "stage", repr(stage), f"one of {', '.join(STAGE_RULES)}")
    return rules


# -- symbols -----------------------------------------------------------------------------------


@dataclass
class _Scopes:
    """Which symbols an op may use: its function's, and those of regions and earlier ops around it."""

    roots: dict[Region, tuple[Symbol, ...]] = field(default_factory=dict[Region, "tuple[Symbol, ...]"])
    _defined: dict[Region, dict[str, tuple[Symbol, Op | None]]] = field(
        default_factory=dict[Region, "dict[str, tuple[Symbol, Op | None]]"]
    )

    def find(self, name: str, op: Op) -> Symbol | None:
        """The symbol that ``name`` stands for just before ``op``."""
        anchor: Op | None = op
        while anchor is not None and anchor.parent is not None:
            found = self.find_in(name, anchor.parent, anchor)
            if found is not None:
                return found
            anchor = anchor.parent.parent
        return None

    def find_in(self, name: str, region: Region, before: Op) -> Symbol | None:
        symbol, definer = self._symbols(region).get(name, (None, None))
        return symbol if definer is None or definer.comes_before(before) else None

    def _symbols(self, region: Region) -> dict[str, tuple[Symbol, Op | None]]:
        if region not in self._defined:
            own = region.symbols
            if region.parent is None:
                own += self.roots[region] if region in self.roots else input_symbols(region.args)
            found: dict[str, tuple[Symbol, Op | None]] = {s.name: (s, None) for s in own}
            for op in region.ops:
                for symbol in op.symbols:
                    found.setdefault(symbol.name, (symbol, op))
            self._defined[region] = found
        return self._defined[region]

    def problem(self, symbols: Iterable[Symbol], op: Op, own: tuple[Symbol, ...] = ()) -> str | None:
        """Why one of ``symbols`` is not known before ``op`` (or among ``own``)."""
        for symbol in symbols:
            found = symbol if symbol in own else self.find(symbol.name, op)
            if found is None:
                return f"the symbol '{symbol.name}' is not defined here"
            if found != symbol:
                return f"the symbol '{symbol.name}' is {symbol!r} here, but was defined as {found!r}"
        return None


def _definition_problem(symbol: Symbol) -> str | None:
    if not _SYMBOL_NAME.match(symbol.name) or symbol.name in RESERVED:
        return f"'{symbol.name}' cannot name a symbol"
    if symbol.divisor < 1 or (symbol.hi is not None and symbol.hi < symbol.lo):
        return f"the symbol {symbol!r} has no values"
    return None


# -- checks of one op --------------------------------------------------------------------------

OpCheck: TypeAlias = Callable[[Op, "_Check"], "str | None"]


@dataclass
class _Check:
    """One run of the verifier."""

    rules: StageRules
    table: Mapping[str, OpDef] | None
    after_pass: str | None
    scopes: _Scopes = field(default_factory=_Scopes)
    path: tuple[str, ...] = ()
    recipes: set[Recipe] = field(default_factory=set[Recipe])

    def function(self, name: str, function: Function) -> None:
        self.path = (name,)
        reason = _header_problem(name, function)
        if reason:
            self.fail(reason)
        self.scopes.roots[function.body] = function.symbols
        self.path = (name, "body")
        self.region(function.body)
        reason = _state_problem(function) or _alias_problem(function)
        if reason:
            self.fail(reason, function.body.terminator)

    def region(self, region: Region) -> None:
        reason = _links_problem(region)
        if reason:
            # The list of ops cannot be trusted, so no excerpt.
            self.fail(reason)
        reason, culprit = _shape_problem(region)
        if reason:
            self.fail(reason, culprit)
        for position, op in enumerate(region.ops):
            self.op(op, STRUCTURE)
            # The innermost fault is the one to show: an op's types depend on those in its regions.
            self.inside(op, position)
            self.op(op, MEANING)

    def inside(self, op: Op, position: int) -> None:
        """The regions of an op, and the recipe that a constant refers to."""
        outer, own = self.path, f"op[{position}]"
        for number, inner in enumerate(op.regions):
            self.path = (*outer, own, f"region[{number}]")
            self.region(inner)
        for value in op.attrs.values():
            if isinstance(value, Recipe) and value not in self.recipes:
                self.recipes.add(value)
                self.path = (*outer, own, f"recipe[{value.name}]")
                self.recipe(value)
        self.path = outer

    def recipe(self, recipe: Recipe) -> None:
        """A recipe is a pure region without arguments; its ops keep whatever form they had when folded."""
        kept, self.rules = self.rules, StageRules()
        body = recipe.body
        if body.parent is not None or body.args or body.symbols:
            self.fail("a recipe has neither arguments, nor symbols, nor an op around it")
        self.region(body)
        for op in body.walk():
            if not op.has(Trait.PURE) or op.has(Trait.RANDOM):
                self.fail(f"{op.name} is not pure, and a recipe holds pure ops only", op)
        if body.result_types != (recipe.type,):
            found = ", ".join(str(t) for t in body.result_types)
            self.fail(f"the recipe yields {found}, expected {recipe.type}", body.terminator)
        self.rules = kept

    def op(self, op: Op, checks: Sequence[OpCheck]) -> None:
        for check in checks:
            reason = check(op, self)
            if reason:
                self.fail(reason, op)

    def fail(self, reason: str, op: Op | None = None) -> NoReturn:
        path = ".".join(self.path)
        if op is not None and op.parent is not None:
            # The way to a single op is not known from above.
            path = f"{path}.op[{position_of(op)}]" if path else path_of(op)
        location = None if op is None or op.loc == UNKNOWN else str(op.loc)
        around = None if op is None or op.parent is None else excerpt(op)
        raise VerifyError(reason, self.after_pass, path or None, location, around)


def _owners(op: Op, check: _Check) -> str | None:
    """The records that an op keeps of itself, its operands, results and regions agree."""
    for index, operand in enumerate(op.operands):
        if Use(op, index) not in operand.uses:
            return f"operand {index} does not list this use"
    for index, result in enumerate(op.results):
        if result.owner is not op or result.index != index:
            return f"result {index} does not belong to this op"
        for use in result.uses:
            operands = use.op.operands
            if use.index >= len(operands) or operands[use.index] is not result:
                return f"result {index} lists a use by {use.op.name} that is not there"
            if use.op.parent is None:
                return f"result {index} is used by a detached {use.op.name}"
    if any(region.parent is not op for region in op.regions):
        return "a region does not know this op as its parent"
    return None


def _known(op: Op, check: _Check) -> str | None:
    if check.table is None or op.definition.opaque or op.name in check.table:
        return None
    return f"{op.name} is not in the op table"


def _shape(op: Op, check: _Check) -> str | None:
    """Operands, attributes and regions are those of the definition."""
    operands = op.definition.operands
    if len(operands) != len(op.segments):
        return f"there are {len(op.segments)} operand segments for {len(operands)} parameters"
    for operand, segment in zip(operands, op.segments, strict=True):
        if not _fits(operand.arity, segment):
            return f"the operand '{operand.name}' is {operand.arity.value}, its segment is {segment}"
    total = sum(segment_length(s) for s in op.segments)
    if total != len(op.operands):
        return f"there are {len(op.operands)} operands, the segments hold {total}"
    if op.definition.regions not in (None, len(op.regions)):
        return f"there are {len(op.regions)} regions, expected {op.definition.regions}"
    return None


def _fits(arity: Arity, segment: Segment) -> bool:
    if isinstance(segment, tuple):
        return arity is Arity.OPTIONAL_LIST
    limit = {Arity.SINGLE: (1, 1), Arity.OPTIONAL: (0, 1)}.get(arity)
    return segment >= 0 if limit is None else limit[0] <= segment <= limit[1]


def _attributes(op: Op, check: _Check) -> str | None:
    specs = {spec.name: spec for spec in op.definition.attrs}
    for name in specs:
        if name not in op.attrs:
            return f"attribute '{name}' is missing"
    for name, value in op.attrs.items():
        if name not in specs:
            return f"{op.name} has no attribute '{name}'"
        if not _is_attr(value):
            return f"attribute '{name}' holds a {type(value).__name__}: {value!r}"
        if not _is_kind_of(value, specs[name].default):
            return f"attribute '{name}' is {value!r}, expected a value like {specs[name].default!r}"
        if isinstance(value, Constant) != (op.has(Trait.CONSTANT_LIKE) and name == "value"):
            return f"attribute '{name}' is {value!r}; constants stand in rg.const and nowhere else"
    return None


def _is_attr(value: Any) -> bool:
    if isinstance(value, tuple):
        # A constant in a tuple would be found by nobody.
        return all(_is_attr(v) and not isinstance(v, Constant) for v in value)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, Constant):
        return True
    return (
        value is None or type(value) in (bool, int, float, complex, str) or isinstance(value, (DType, Expr))
    )


def _is_kind_of(value: Any, default: Any) -> bool:
    """Whether ``value`` may stand where ``default`` stands; a default of None says nothing."""
    if isinstance(default, (bool, str)):
        return isinstance(value, type(default))
    if isinstance(default, (int, float)):
        return isinstance(value, (int, float, complex, Expr))
    return True


def _dominance(op: Op, check: _Check) -> str | None:
    """Every operand is an argument of the op's region or the result of an earlier op there."""
    assert op.parent is not None
    for index, operand in enumerate(op.operands):
        owner = operand.owner
        home = owner.parent if isinstance(owner, Op) else owner
        if home is None:
            return f"operand {index} is made by an op that is in no region"
        if home is not op.parent:
            return f"operand {index} comes from {_distance(home, op.parent)}"
        if isinstance(owner, Op) and not owner.comes_before(op):
            return f"operand {index} is defined by {owner.name} later in the region"
    return None


def _distance(home: Region, region: Region) -> str:
    above: Region | None = region
    while above is not None:
        above = above.parent.parent if above.parent else None
        if above is home:
            return "an outer region; hand it over as an operand and a region argument"
    return "a region that is not around this op"


def _regions_know_symbols(op: Op, check: _Check) -> str | None:
    for number, region in enumerate(op.regions):
        for symbol in region.symbols:
            reason = _definition_problem(symbol)
            if reason:
                return reason
            if check.scopes.find(symbol.name, op):
                return f"region {number} defines the symbol '{symbol.name}' again"
        for argument in region.args:
            reason = check.scopes.problem(symbols_in(argument.type), op, region.symbols)
            if reason:
                return f"region {number}, argument {argument.index}: {reason}"
    return None


def _symbols(op: Op, check: _Check) -> str | None:
    names: set[str] = set()
    for symbol in op.symbols:
        reason = _definition_problem(symbol)
        if reason:
            return reason
        if symbol.name in names or check.scopes.find(symbol.name, op):
            return f"the symbol '{symbol.name}' is defined again"
        names.add(symbol.name)
    for name, value in op.attrs.items():
        reason = check.scopes.problem(symbols_in(value), op)
        if reason:
            return f"attribute '{name}': {reason}"
    for result in op.results:
        reason = check.scopes.problem(symbols_in(result.type), op, op.symbols)
        if reason:
            return f"result {result.index}: {reason}"
    return None


def _constants(op: Op, check: _Check) -> str | None:
    for value in op.attrs.values():
        if isinstance(value, Leaf) and not value.type.is_static:
            return f"the leaf {value.name} has the symbolic type {value.type}"
    return None


def _types(op: Op, check: _Check) -> str | None:
    """The result types are those that the definition infers, or refine them."""
    if op.definition.opaque:
        return None
    try:
        inferred = infer_types(op.site)
    except Exception as error:
        return f"the op has no result type: {error}"
    if len(inferred) != len(op.results):
        return f"there are {len(op.results)} results, expected {len(inferred)}"
    for result, expected in zip(op.results, inferred, strict=True):
        if not may_equal(result.type, expected):
            return f"result {result.index} is {result.type}, expected {expected}"
    return None


def may_equal(a: Type, b: Type) -> bool:
    """Whether two types are equal but for sizes that nothing proves different."""
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        return a == b
    same = (a.dtype, a.device, a.rank) == (b.dtype, b.device, b.rank)
    return same and all(eq(x, y) is not False for x, y in zip(a.shape, b.shape, strict=True))


def _stage(op: Op, check: _Check) -> str | None:
    return stage_problem(op, check.rules)


STRUCTURE: tuple[OpCheck, ...] = (
    _owners,
    _known,
    _shape,
    _attributes,
    _dominance,
    _constants,
    _symbols,
    _regions_know_symbols,
)
MEANING: tuple[OpCheck, ...] = (_types, _stage)


# -- checks of regions and functions -----------------------------------------------------------


def _links_problem(region: Region) -> str | None:
    """The list of ops is whole: every link has its counterpart, and order indices increase."""
    previous: Op | None = None
    count = 0
    for op in region.ops:
        count += 1
        if count > len(region):
            return f"the region holds more than the {len(region)} ops it counts"
        if op.parent is not region:
            return f"{op.name} does not know its region as its parent"
        if previous is not None and not previous.comes_before(op):
            return f"{op.name} follows {previous.name} but its order index does not"
        previous = op
    if count != len(region) or next(region.reversed_ops, None) is not previous:
        return f"the region counts {len(region)} ops and holds {count}"
    return None


def _shape_problem(region: Region) -> tuple[str | None, Op | None]:
    """One terminator, at the end; arguments that know their place."""
    for index, argument in enumerate(region.args):
        if argument.owner is not region or argument.index != index:
            return f"argument {index} does not belong to its region", next(region.ops, None)
        reason = _stray_use(argument)
        if reason:
            return f"argument {index} {reason}", next(region.ops, None)
    last = next(region.reversed_ops, None)
    if last is None:
        return "the region is empty; it must end in a terminator", None
    if not last.has(Trait.TERMINATOR):
        return f"the region ends in {last.name}, which is no terminator", last
    for op in region.ops:
        if op is not last and op.has(Trait.TERMINATOR):
            return "a terminator is not the last op of its region", op
    return None, None


def _stray_use(value: Value) -> str | None:
    for use in value.uses:
        operands = use.op.operands
        if use.index >= len(operands) or operands[use.index] is not value:
            return f"lists a use by {use.op.name} that is not there"
        if use.op.parent is None:
            return f"is used by a detached {use.op.name}"
    return None


def _header_problem(key: str, function: Function) -> str | None:
    if key != function.name:
        return f"the function is called '{function.name}', its key is '{key}'"
    if function.body.parent is not None:
        return "the body is a region of an op"
    if function.body.symbols:
        return "the body defines symbols; those of a function stand in Function.symbols"
    names: set[str] = set()
    for symbol in function.symbols:
        reason = _definition_problem(symbol)
        if reason:
            return reason
        if symbol.name in names:
            return f"the symbol '{symbol.name}' is defined twice"
        names.add(symbol.name)
    used = input_symbols(function.args)
    for symbol in used:
        if symbol not in function.symbols:
            return f"an argument's type has the symbol {symbol!r}, which the function does not define"
    for symbol in function.symbols:
        if symbol not in used:
            return f"the symbol '{symbol.name}' is in no argument's type: nothing would give its value"
    return None


def _state_problem(function: Function) -> str | None:
    """Each leaf of the state has an argument of its own type, at the end, and a name of its own."""
    first = len(function.args) - len(function.state)
    if first < 0:
        return f"there are {len(function.state)} leaves of state and {len(function.args)} arguments"
    if len({leaf.name for leaf in function.state}) != len(function.state):
        return "two leaves of the state have one name"
    for leaf, arg in zip(function.state, function.args[first:], strict=True):
        if arg.type != leaf.type:
            return (
                f"the argument {arg.index} is {arg.type}, the state '{leaf.name}' it stands for {leaf.type}"
            )
    return None


def _alias_problem(function: Function) -> str | None:
    """Results that are written back have a target each, of their own type."""
    targets: set[int] = set()
    for index, target in function.aliases.items():
        if not 0 <= index < len(function.results):
            return f"aliases name result {index} of {len(function.results)}"
        if target in targets:
            return f"two results are written back to argument {target}"
        targets.add(target)
        if not 0 <= target < len(function.args):
            return f"result {index} is written back to argument {target} of {len(function.args)}"
        found, expected = function.results[index].type, function.args[target].type
        if not may_equal(found, expected):
            return f"result {index} is {found}, the argument {target} it is written back to {expected}"
    return None
