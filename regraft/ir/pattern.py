"""Patterns: traced Python over ops, matched read-only.

``pattern(self, op, x, w)`` is called once with placeholder nodes; the ops it writes become a small
DAG whose root is what it returns. Matching walks from a root op towards its operands. An attribute
that the pattern does not write must have its default; ``op.attr("eps")`` binds one instead.
Commutative operands are tried both ways. Matching builds nothing and changes nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

from regraft.errors import RewriteError
from regraft.ir.builder import OpNamespace
from regraft.ir.core import Op, Value
from regraft.ir.opdef import Arity, OpDef, OpTable, Trait

_MAX_STEPS = 10_000


@dataclass(frozen=True, eq=False)
class Var:
    """Matches any value and binds it; the same variable must match the same value."""

    name: str
    optional: bool = False


@dataclass(frozen=True)
class AttrVar:
    """Binds an attribute's value; the same variable must match an equal value."""

    name: str


@dataclass(frozen=True, eq=False)
class OpNode:
    """Matches one op, by definition name, operands and attributes."""

    definition: OpDef
    bound: Mapping[str, Any]
    index: int = 0
    shared: bool = False
    origin: OpNode | None = None

    @property
    def key(self) -> OpNode:
        """The node as it was written: ``shared`` and ``result`` say more of it, and mean the same op."""
        return self.origin or self

    def __iter__(self) -> Iterator[OpNode]:
        raise TypeError("use op.results(node, n) to match an op with several results")


@dataclass(frozen=True, eq=False)
class OneOf:
    """Matches the first alternative that lets the rest of the pattern match."""

    alternatives: tuple[Node, ...]


@dataclass(frozen=True)
class AnyOperands:
    """Matches a list of operands of any length; they are read from ``match.root``."""


Node: TypeAlias = Var | OpNode | OneOf
Bindings: TypeAlias = dict[Any, Any]


class PatternBuilder(OpNamespace):
    """The ``op`` argument of ``pattern``: the op builders, plus a few pattern-only words."""

    def call(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> OpNode:
        definition = self.lookup(name)
        if not definition.canonical:
            raise RewriteError(
                f"a pattern uses {name}, which never occurs after canonicalize; write its normal form "
                "(docs/architecture.md, section 4)"
            )
        return OpNode(definition, definition.bind(args, kwargs))

    def attr(self, name: str) -> AttrVar:
        """Bind whatever value an attribute has, as ``match.attr(name)``."""
        return AttrVar(name)

    def one_of(self, *alternatives: Node) -> OneOf:
        """Any of several spellings."""
        if not alternatives:
            raise RewriteError("op.one_of needs at least one alternative")
        return OneOf(alternatives)

    def optional(self, var: Var) -> Var:
        """An operand that may be absent; the match then holds None for it."""
        return Var(var.name, optional=True)

    def any_operands(self) -> AnyOperands:
        """A list of operands of any length, such as the values that a condition hands to its arms."""
        return AnyOperands()

    def shared(self, node: OpNode) -> OpNode:
        """An inner op that may have users outside the match; it stays in the graph."""
        return replace(node, shared=True, origin=node.key)

    def result(self, node: OpNode, index: int) -> OpNode:
        """The result ``index`` of an op with several."""
        return replace(node, index=index, origin=node.key)


@dataclass(frozen=True)
class Pattern:
    """A traced pattern: its root node and its variables in the order of the function's arguments."""

    root: OpNode
    variables: tuple[str, ...]

    @staticmethod
    def trace(function: Callable[..., Any], table: OpTable) -> tuple[Pattern, ...]:
        """Patterns of ``function(op, *variables)``; several when its root is ``op.one_of``.

        Raises:
            RewriteError: it does not return an op, or a variable has a name that ``Match`` takes.
        """
        names = tuple(inspect.signature(function).parameters)[1:]
        for name in names:
            if name in _TAKEN:
                raise RewriteError(f"{function.__qualname__}: a variable cannot be called '{name}'")
        root = function(PatternBuilder(table), *(Var(name) for name in names))
        roots = root.alternatives if isinstance(root, OneOf) else (root,)
        for each in roots:
            if not isinstance(each, OpNode):
                raise RewriteError(f"{function.__qualname__} must return an op, not {type(each).__name__}")
        return tuple(Pattern(r, names) for r in roots if isinstance(r, OpNode))


class Progress(IntEnum):
    """How far a rewrite came at an op, from nothing to applied."""

    NO_MATCH = 0
    """The pattern starts at another op."""
    PARTIAL = 1
    """Some ops of the pattern are there."""
    OUTSIDE_USE = 2
    """All of it is, but something else uses a value inside."""
    DECLINED = 3
    """``check`` refused."""
    LEFT_OUT = 4
    """Nothing is against it but the options of the compile, or another rewrite that came first."""
    APPLIED = 5


@dataclass(frozen=True)
class Declined:
    """Why a rewrite does not apply here.

    Fields:
        reason: the first thing that is not as it must be.
        culprit: the value that is to blame.
        change: what to write instead, where that is known.
        progress: how far the rewrite came.
        at: the op of the pattern that fails, or whose operand does.
        ops: those of the pattern that were found before it failed.
    """

    reason: str
    culprit: Value | None = None
    change: str = ""
    progress: Progress = field(default=Progress.DECLINED, compare=False)
    at: Op | None = field(default=None, compare=False)
    ops: tuple[Op, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Match:
    """What a pattern matched: values and attributes by variable name, and the ops in between.

    ``bindings`` is what the search found: nodes of the pattern and variables with what they stand for.
    """

    root: Op
    values: Mapping[str, Value | None]
    attrs: Mapping[str, Any]
    ops: tuple[Op, ...]
    shared: frozenset[Op] = frozenset()
    bindings: Mapping[Any, Any] = field(default_factory=dict[Any, Any], repr=False, compare=False)

    def __getattr__(self, name: str) -> Value:
        values = object.__getattribute__(self, "values")
        if name not in values or values[name] is None:
            raise AttributeError(f"the match has no value '{name}'")
        return values[name]

    def optional(self, name: str) -> Value | None:
        """The value bound to ``name``, or None when the operand was absent."""
        return self.values.get(name)

    def attr(self, name: str) -> Any:
        return self.attrs[name]

    def holder(self, name: str) -> Value | None:
        """The result of the op that has the attribute bound as ``name``: the culprit when it is wrong."""
        for node, op in self.bindings.items():
            if isinstance(node, OpNode) and AttrVar(name) in node.bound.values():
                return _first(op)
        raise KeyError(name)

    def decline(self, reason: str, culprit: Value | None = None, change: str = "") -> Declined:
        """The answer of a ``check`` that refuses: why, what is to blame, and what to write instead."""
        return Declined(reason, culprit, change, at=self.root, ops=self.ops)

    def outside_use(self) -> Value | None:
        """An inner value that something outside the match uses and the rewrite would not keep."""
        inside = set(self.ops)
        for op in self.ops:
            if op is self.root or op in self.shared:
                continue
            for result in op.results:
                if any(use.op not in inside for use in result.uses):
                    return result
        return None


#: ``match.values`` is not the variable ``values``: such a name would give something else in silence.
_TAKEN = frozenset({*(f.name for f in fields(Match)), *(n for n in vars(Match) if not n.startswith("_"))})


class _Failure(NamedTuple):
    """A constraint that did not hold; put into words only when somebody reads it."""

    bound: Bindings
    at: Op
    culprit: Value | None
    text: str
    details: tuple[object, ...]

    def declined(self) -> Declined:
        ops = tuple(dict.fromkeys(value for value in self.bound.values() if isinstance(value, Op)))
        reason = self.text.format(*self.details)
        return Declined(reason, self.culprit, "", Progress.PARTIAL, self.at, ops)


@dataclass
class _Search:
    """One attempt at one root: a step budget and the furthest failure."""

    steps: int = 0
    furthest: _Failure | None = None

    def fail(self, bound: Bindings, at: Op, culprit: Value | None, text: str, *details: object) -> None:
        """Note that the attempt that has ``bound`` fails at an operand or attribute of ``at``."""
        if self.furthest is None or len(bound) > len(self.furthest.bound):
            self.furthest = _Failure(bound, at, culprit, text, details)


def match_pattern(pattern: Pattern, root: Op) -> Match | Declined:
    """Match ``pattern`` with ``root`` as its root op.

    Raises:
        RewriteError: the search passed its step limit (a pattern with too many alternatives).
    """
    search = _Search()
    if not _is_use_of(root, pattern.root.definition):
        reason = f"{_called(root)} is not {pattern.root.definition.name}"
        return Declined(reason, _first(root), "", Progress.NO_MATCH, root)
    for found in _match_op(pattern.root, root, {}, search):
        ops = tuple(dict.fromkeys(v for v in found.values() if isinstance(v, Op)))
        shared = frozenset(v for k, v in found.items() if isinstance(k, OpNode) and k.shared)
        values = {n: found.get(n) for n in pattern.variables}
        attrs = {k.name: v for k, v in found.items() if isinstance(k, AttrVar)}
        return Match(root, values, attrs, ops, shared, found)
    assert search.furthest is not None, "a search that finds nothing has failed somewhere"
    return search.furthest.declined()


def _first(op: Op) -> Value | None:
    return op.results[0] if op.results else None


def _match_value(
    node: Node, value: Value | None, at: Op, bound: Bindings, search: _Search
) -> Iterator[Bindings]:
    search.steps += 1
    if search.steps > _MAX_STEPS:
        raise RewriteError("a pattern took too many steps; use fewer alternatives")
    if isinstance(node, Var):
        if value is None and not node.optional:
            search.fail(bound, at, None, "'{}' is absent", node.name)
        elif node.name not in bound or bound[node.name] is value:
            yield {**bound, node.name: value}
        else:
            search.fail(bound, at, value, "'{}' stands for two different values", node.name)
    elif isinstance(node, OneOf):
        for alternative in node.alternatives:
            yield from _match_value(alternative, value, at, bound, search)
    elif value is None:
        search.fail(bound, at, None, "expected {}, found nothing", node.definition.name)
    elif value.op is None or not _is_use_of(value.op, node.definition) or value.index != node.index:
        search.fail(bound, at, value, "expected {}, found {}", _wanted(node), _maker(value))
    elif node.key not in bound:
        yield from _match_op(node, value.op, bound, search)
    elif bound[node.key] is value.op:
        yield {**bound, node: value.op}
    else:
        search.fail(bound, at, value, "two uses of one {} are two ops", value.op.name)


def _is_use_of(op: Op, definition: OpDef) -> bool:
    """Whether ``op`` is what a pattern means by ``definition``.

    A use that the op table does not cover has the name, and neither the types nor the meaning that the
    table gives it.
    """
    return op.name == definition.name and op.definition.opaque == definition.opaque


def _wanted(node: OpNode) -> str:
    return f"result {node.index} of {node.definition.name}" if node.index else node.definition.name


def _maker(value: Value) -> str:
    if value.op is None:
        return "an input"
    if value.is_const:
        return "a constant"
    return f"result {value.index} of {_called(value.op)}" if value.index else _called(value.op)


def _called(op: Op) -> str:
    return f"an opaque {op.name}" if op.definition.opaque else op.name


def _match_op(node: OpNode, op: Op, bound: Bindings, search: _Search) -> Iterator[Bindings]:
    with_attrs = _match_attrs(node, op, {**bound, node.key: op, node: op}, search)
    if with_attrs is None:
        return
    for arguments in _operand_orders(node, op, with_attrs, search):
        yield from _match_all(arguments, 0, op, with_attrs, search)


def _match_attrs(node: OpNode, op: Op, bound: Bindings, search: _Search) -> Bindings | None:
    for spec in node.definition.attrs:
        expected, actual = node.bound[spec.name], op.attrs[spec.name]
        if isinstance(expected, AttrVar):
            if expected in bound and bound[expected] != actual:
                text = "attribute '{}' differs between ops: {!r} and {!r}"
                search.fail(bound, op, _first(op), text, spec.name, actual, bound[expected])
                return None
            bound[expected] = actual
        elif not _attrs_equal(expected, actual):
            text = "attribute '{}' is {!r}, expected {!r}"
            search.fail(bound, op, _first(op), text, spec.name, actual, expected)
            return None
    return bound


def _attrs_equal(expected: Any, actual: Any) -> bool:
    if isinstance(expected, list):
        expected = tuple(expected)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return expected == actual and isinstance(expected, bool) == isinstance(actual, bool)


def _operand_orders(
    node: OpNode, op: Op, bound: Bindings, search: _Search
) -> Iterator[list[tuple[Node, Value | None]]]:
    pairs: list[tuple[Node, Value | None]] = []
    actual = op.arguments()
    for operand in node.definition.operands:
        expected, value = node.bound[operand.name], actual[operand.name]
        if operand.arity in (Arity.SINGLE, Arity.OPTIONAL):
            if expected is None:
                if value is not None:
                    search.fail(bound, op, value, "the operand '{}' is there, expected none", operand.name)
                    return
                continue
            pairs.append((expected, value))
        elif not isinstance(expected, AnyOperands):
            if len(expected) != len(value):
                text = "the operands differ: '{}' holds {}, expected {}"
                search.fail(bound, op, _first(op), text, operand.name, len(value), len(expected))
                return
            pairs += zip(expected, value, strict=True)
    yield pairs
    # x + alpha * y does not commute, whatever the trait says of addition.
    if op.has(Trait.COMMUTATIVE) and op.attrs.get("alpha", 1) == 1 and len(pairs) >= 2:
        (first, a), (second, b) = pairs[:2]
        yield [(first, b), (second, a), *pairs[2:]]


def _match_all(
    pairs: Sequence[tuple[Node, Value | None]], start: int, at: Op, bound: Bindings, search: _Search
) -> Iterator[Bindings]:
    if start == len(pairs):
        yield bound
        return
    node, value = pairs[start]
    for found in _match_value(node, value, at, bound, search):
        yield from _match_all(pairs, start + 1, at, found, search)
