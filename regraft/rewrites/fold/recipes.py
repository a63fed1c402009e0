"""Constant folding without values: what depends on constants alone becomes a recipe."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from regraft.ir import (
    Attr,
    Constant,
    Expr,
    Module,
    Op,
    PassContext,
    Recipe,
    Region,
    Rewriter,
    TensorType,
    Trait,
    Value,
    backward_slice,
    clone_op,
)
from regraft.rewrites.fold.keys import op_key

MAX_GROWTH = 4
"""A recipe's result may be this many times as large as the constants it reads ..."""
MAX_FREE_BYTES = 16 << 20
"""... or this large in any case: a table that takes longer to compute than to read."""

_BROADCASTS = ("aten.full", "aten.expand")


@dataclass(frozen=True)
class ConstantRecipes:
    """Turns maximal pure sub-graphs over constants into ``Recipe`` constants.

    A sub-graph starts at constants and at ops without operands (``arange``, ``full``) and ends where an
    op that depends on an input uses it. Sizes must be static. It is not folded when storing the result
    costs more than it saves: a result that only repeats elements (``full``, ``expand``, views of these)
    is free to make at run time, and one that grew past ``MAX_GROWTH`` and ``MAX_FREE_BYTES``, such as an
    outer product, would fill memory and files. Then its operands are tried instead.

    ``generated=False`` leaves alone what reads no constant at all: rewrites that recognise masks want to
    see the index arithmetic.
    """

    name: str = "constant-recipes"
    stage: str = "fold"
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    generated: bool = True

    def run(self, module: Module, context: PassContext) -> bool:
        folder = _Folder(context.rewriter(self.name), self.generated)
        changes = [folder.fold(function.body, is_top=True) for function in module.functions.values()]
        return any(changes)


@dataclass
class _Folder:
    rewriter: Rewriter
    generated: bool
    known: dict[Hashable, Recipe] = field(default_factory=dict[Hashable, Recipe])

    def fold(self, region: Region, is_top: bool) -> bool:
        constant = _constant_ops(region, is_top)
        chosen = [v for v in _chosen(region, constant) if self.generated or _reads(v)]
        for value in chosen:
            self._replace(value)
        inner = [self.fold(nested, is_top=False) for op in region.ops for nested in op.regions]
        return bool(chosen) or any(inner)

    def _replace(self, value: Value) -> None:
        op = value.op
        assert op is not None
        recipe = self._recipe(value)
        const = self.rewriter.before(op).constant(recipe)
        self.rewriter.replace_uses(value, const)
        self.rewriter.erase_if_unused(op)

    def _recipe(self, value: Value) -> Recipe:
        """The recipe of ``value``; values computed alike from the same constants share one."""
        ops = backward_slice([value])
        numbers: dict[Value, Hashable] = {}
        keys: list[Hashable] = []
        for op in ops:
            keys.append(op_key(op, [numbers[v] for v in op.operands]))
            numbers |= {result: (len(keys), result.index) for result in op.results}
        key = (tuple(keys), numbers[value])
        if key not in self.known:
            self.known[key] = Recipe(self._body(ops, value), value.hint)
        return self.known[key]

    def _body(self, ops: Sequence[Op], value: Value) -> Region:
        body, mapping = Region(), dict[Value, Value]()
        for op in ops:
            body.append(clone_op(op, mapping))
        self.rewriter.at_end(body).create("cf.yield", ([mapping[value]],))
        return body


def _constant_ops(region: Region, is_top: bool) -> set[Op]:
    """The ops of ``region`` whose results compile time can know."""
    found: set[Op] = set()
    for op in region.ops:
        if op.name == "rg.const" or (_is_foldable(op, is_top) and all(v.op in found for v in op.operands)):
            found.add(op)
    return found


def _is_foldable(op: Op, is_top: bool) -> bool:
    # Inside a region an op that can raise must wait until it is known to run.
    may_run_early = op.has(Trait.PURE) and (is_top or op.has(Trait.SPECULATABLE))
    plain = not op.regions and not op.symbols and not op.has(Trait.TERMINATOR | Trait.RANDOM)
    static = all(isinstance(r.type, TensorType) and r.type.is_static for r in op.results)
    return may_run_early and plain and static and not any(_has_symbol(a) for a in op.attrs.values())


def _has_symbol(attr: Attr) -> bool:
    if isinstance(attr, tuple):
        return any(_has_symbol(item) for item in attr)
    return isinstance(attr, Expr)


def _chosen(region: Region, constant: set[Op]) -> list[Value]:
    """The values to store, in order: at the border of the constant ops, and worth it."""
    wanted: dict[Value, None] = {}
    pending = [
        value for op in region.ops if op not in constant for value in op.operands if value.op in constant
    ]
    seen: set[Value] = set()
    while pending:
        value = pending.pop()
        if value in seen or value.op is None or value.op.name == "rg.const":
            continue
        seen.add(value)
        if is_worth_storing(value):
            wanted[value] = None
        else:
            pending += value.op.operands
    return [result for op in region.ops for result in op.results if result in wanted]


def is_worth_storing(value: Value) -> bool:
    """Whether a constant ``value`` is better stored than computed in each run."""
    if _only_repeats(value):
        return False
    read = sum(_bytes(constant.type) for constant in _reads(value))
    limit = max(MAX_GROWTH * read, MAX_FREE_BYTES)
    return _bytes(value.tensor) <= limit


def _reads(value: Value) -> set[Constant]:
    """The constants that ``value`` is computed from."""
    return {op.attr("value") for op in backward_slice([value]) if op.name == "rg.const"}


def _only_repeats(value: Value) -> bool:
    """Whether ``value`` is a filled or expanded tensor, or a view of one."""
    op = value.op
    while op is not None and op.name not in _BROADCASTS and op.has(Trait.VIEW):
        op = op.operands[0].op
    return op is not None and op.name in _BROADCASTS


def _bytes(type: TensorType) -> int:
    numel = type.numel
    assert isinstance(numel, int), f"{type} is not static"
    return numel * type.dtype.bits // 8
