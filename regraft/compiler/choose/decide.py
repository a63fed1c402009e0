"""Choosing among the forms of each ``rg.alt``, for every number of rows it may see.

A choice is a function of the op's signature, the machine and what was measured, so that equal computations
are decided alike. Where sizes are known one form is put in the place of the op. Where they vary, the op
keeps its forms and learns at which numbers of rows to change from one to another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from regraft.compiler.owners import told
from regraft.ir import (
    Constant,
    Dim,
    Function,
    Module,
    Op,
    Recipe,
    Region,
    Rewriter,
    Symbol,
    TensorType,
    Trait,
    dims,
    evaluate,
)
from regraft.runtime import choice_view

#: A form must be this much faster than the reference to replace it: estimates are no better than that.
MARGIN = 0.02
#: Bytes that are always allowed beside the model's own constants, unless the user sets a limit.
SMALL = 16 << 20
#: Most intervals of rows with forms of their own.
MAX_INTERVALS = 8
#: Rows beyond this are taken alike.
MOST_ROWS = 1 << 16


@dataclass(frozen=True)
class Times:
    """Microseconds of each form at some number of rows.

    Fields:
        us: what to decide by.
        at: the numbers of rows that were measured on this machine and that ``us`` comes from: this number
            alone, the two around it, or the nearest one, by which the estimate was corrected. None where
            there is an estimate only.
        noise: of the measurement, relative.
        estimated: what the cost model alone says; nothing where nobody asked it.
    """

    us: tuple[float, ...]
    at: tuple[int, ...] = ()
    noise: float = 0.0
    estimated: tuple[float, ...] = ()


#: The times of the forms of an ``rg.alt`` at a number of rows.
FormTimes = Callable[[Op, int], Times]


@dataclass
class Choice:
    """What was decided for one ``rg.alt``.

    Fields:
        where: the source line of the computation, or the path of its layer where that is not the user's.
        signature: identifies computations that are decided alike.
        rows: the number of rows, as a size or an expression; empty where times are of something whole.
        forms: names of the forms, the reference first.
        cuts, order: form ``order[i]`` runs at rows from ``cuts[i-1]`` up to, not including, ``cuts[i]``.
        times: rows -> microseconds of each form, by which it was decided.
        estimated: rows -> what the cost model says of each form.
        based_on: rows -> the numbers of rows that were measured and that the times come from; see ``Times``.
        noise: rows -> that of the measurement, relative.
        why: rows -> how the forms compare there, in words.
        extra_bytes: of the constants that the chosen forms need beside the reference's. What several
            computations need counts at the first of them. In a file less what it lacks of the reference's.
        reason: why another form was not taken.
        layers: paths of the modules whose ops the forms stand for.
    """

    where: str
    signature: str
    rows: str
    forms: tuple[str, ...]
    cuts: tuple[int, ...]
    order: tuple[int, ...]
    times: dict[int, tuple[float, ...]] = field(default_factory=dict[int, tuple[float, ...]])
    estimated: dict[int, tuple[float, ...]] = field(default_factory=dict[int, tuple[float, ...]])
    based_on: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    noise: dict[int, float] = field(default_factory=dict[int, float])
    why: dict[int, str] = field(default_factory=dict[int, str])
    extra_bytes: int = 0
    reason: str = ""
    layers: tuple[str, ...] = ()

    @property
    def measured_at(self) -> tuple[int, ...]:
        """The rows whose times were measured on this machine, at these rows or on both sides of them."""
        return tuple(n for n in self.times if (at := self.based_on.get(n)) and min(at) <= n <= max(at))

    @property
    def measured(self) -> bool:
        """Whether all the times were measured."""
        return bool(self.times) and set(self.measured_at) == set(self.times)

    def form_at(self, rows: int) -> int:
        """The form that runs at ``rows`` rows."""
        return self.order[sum(cut <= rows for cut in self.cuts)]

    def to_dict(self) -> dict[str, Any]:
        """The choice as JSON values."""
        return {
            "where": self.where,
            "signature": self.signature,
            "layers": list(self.layers),
            "rows": self.rows,
            "forms": list(self.forms),
            "break_even": list(self.cuts),
            "chosen": [self.forms[index] for index in self.order],
            "microseconds": {str(rows): list(each) for rows, each in self.times.items()},
            "estimated_microseconds": {str(rows): list(each) for rows, each in self.estimated.items()},
            "measured": self.measured,
            "measured_at": list(self.measured_at),
            "based_on": {str(rows): list(each) for rows, each in self.based_on.items()},
            "noise": {str(rows): each for rows, each in self.noise.items()},
            "why": {str(rows): each for rows, each in self.why.items()},
            "extra_bytes": self.extra_bytes,
            "reason": self.reason,
        }

    def __str__(self) -> str:
        return "\n".join(choice_view.choice_lines([self.to_dict()]))


class ChooseForms:
    """The pass that decides every ``rg.alt`` of a module.

    ``memory_limit`` bounds the bytes of constants that other forms than the references need; the forms
    that save most time a byte are kept first. None: as much as the model's own constants, or ``SMALL``.
    ``prepare`` is called first with the ops that are to be decided, to measure them. ``rows`` are numbers of
    rows to look at besides those that a decision needs. ``for_file`` says that the result is a file, which
    lacks the constants of forms that are not taken, and not a model beside the original.
    """

    stage = "choose"
    name = "choose.forms"
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def __init__(
        self,
        times: FormTimes,
        memory_limit: int | None = None,
        prepare: Callable[[Module, Sequence[Op]], None] = lambda module, ops: None,
        rows: Sequence[int] = (),
        *,
        for_file: bool = False,
    ) -> None:
        self.times = times
        self.memory_limit = memory_limit
        self.prepare = prepare
        self.rows = tuple(rows)
        self.for_file = for_file
        self.choices: list[Choice] = []

    def run(self, module: Module, context: Any) -> bool:
        rewriter: Rewriter = context.rewriter(self.name)
        ops = [op for function in module.functions.values() for op in _alts(function)]
        self.prepare(module, ops)
        decided = [(op, decide(op, self.times, self.rows)) for op in ops]
        self._keep_to_limit(decided, _constant_bytes(module))
        references = [_constants(op.regions[0]) for op in ops]
        for op, choice in decided:
            self.choices.append(choice)
            settle(op, choice, rewriter)
        if self.for_file:
            self._take_off_what_is_gone(module, references)
        return bool(decided)

    def _take_off_what_is_gone(self, module: Module, references: Sequence[set[Constant]]) -> None:
        """Count for each choice what the file lacks of its reference, a constant at the first choice."""
        kept = {constant for function in module.functions.values() for constant in _constants(function.body)}
        for choice, constants in zip(self.choices, references, strict=True):
            choice.extra_bytes -= sum(map(_size, constants - kept))
            kept |= constants

    def _keep_to_limit(self, decided: Sequence[tuple[Op, Choice]], own: int) -> None:
        left = max(own, SMALL) if self.memory_limit is None else self.memory_limit
        kept: set[Recipe] = set()
        for op, choice in sorted(decided, key=lambda each: -_worth(each[1])):
            needed = _extra_recipes(op, choice.order) - kept
            choice.extra_bytes = sum(map(_size, needed))
            if choice.extra_bytes <= left:
                left -= choice.extra_bytes
                kept |= needed
                continue
            choice.reason = f"{choice.extra_bytes / 1e6:.1f} MB more would pass the memory limit"
            choice.cuts, choice.order, choice.extra_bytes = (), (0,), 0


def settle(op: Op, choice: Choice, rewriter: Rewriter) -> None:
    """Put the one form that ``choice`` takes in the place of ``op``, or write the choice into it."""
    if len(set(choice.order)) == 1:
        region = op.regions[choice.order[0]]
        rewriter.replace(op, rewriter.before(op).copy(region, op.operands))
        return
    op.attrs |= {"cuts": choice.cuts, "order": choice.order}


def decide(op: Op, times: FormTimes, also: Sequence[int] = ()) -> Choice:
    """The fastest form at each number of rows; ``also`` are numbers to look at besides those of the grid."""
    rows, forms = op.site.dim_attr("rows"), tuple(op.attr("forms"))
    counts = sorted({*grid(rows), *within(rows, also)})
    cuts, order = _intervals(counts, lambda count: times(op, count))
    found = {count: times(op, count) for count in sorted({*counts, *cuts})}
    return Choice(
        told(op.loc),
        signature(op),
        str(rows),
        forms,
        cuts,
        order,
        times={count: each.us for count, each in found.items()},
        estimated={count: each.estimated for count, each in found.items() if each.estimated},
        based_on={count: each.at for count, each in found.items() if each.at},
        noise={count: each.noise for count, each in found.items() if each.at},
        why={count: verdict(each, forms) for count, each in found.items()},
        extra_bytes=sum(map(_size, _extra_recipes(op, order))),
        layers=layers_of(op.regions[0].ops),
    )


def layers_of(ops: Iterable[Op]) -> tuple[str, ...]:
    """Paths of the modules that ``ops`` come from, in order; constants are read from anywhere."""
    paths = (op.loc.module for op in ops if not op.has(Trait.CONSTANT_LIKE))
    return tuple(dict.fromkeys(path for path in paths if path))


def grid(rows: Dim) -> list[int]:
    """The numbers of rows to look at: the number itself, or the ends of the range and powers of two."""
    if isinstance(rows, int):
        return [rows]
    low, high = dims.bounds(rows)
    first = max(low or 1, 1)
    last = max(first, min(high or MOST_ROWS, MOST_ROWS))
    powers = [1 << e for e in range(MOST_ROWS.bit_length()) if first < 1 << e < last]
    return list(dict.fromkeys((first, *powers, last)))


def within(rows: Dim, counts: Sequence[int]) -> list[int]:
    """Those of ``counts`` that ``rows`` may be, in order."""
    low, high = (rows, rows) if isinstance(rows, int) else dims.bounds(rows)
    least, most = max(low or 1, 1), MOST_ROWS if high is None else min(high, MOST_ROWS)
    return sorted(count for count in set(counts) if least <= count <= most)


def sizes_at(op: Op, count: int) -> dict[Symbol, int]:
    """The least sizes at which the ``rg.alt`` ``op`` has ``count`` rows or more; only one is varied."""
    rows = op.site.dim_attr("rows")
    symbols = sorted(set(dims.symbols_of(rows)))
    seen = {s for value in op.operands for size in value.tensor.shape for s in dims.symbols_of(size)}
    sizes = {s: max(s.lo, 1) for s in {*symbols, *seen}}
    if not symbols:
        return sizes
    free = symbols[-1]
    low, high = sizes[free], max(count, sizes[free])
    while low < high:
        middle = (low + high) // 2
        if evaluate(rows, sizes | {free: middle}) < count:
            low = middle + 1
        else:
            high = middle
    return sizes | {free: low}


def signature(op: Op) -> str:
    """A hash of what the forms of ``op`` cost: ops and types, but no rows and no values of constants."""
    rows = op.site.dim_attr("rows")
    lines = [f"of {', '.join(_apart_from_rows(v.tensor, rows) for v in op.operands)}"]
    lines += [line for region in op.regions for line in _lines(region)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]


def _apart_from_rows(type: TensorType, rows: Dim) -> str:
    """``type`` without what may differ between computations of equal cost: its rows, and symbols' names."""
    shape = type.shape
    if shape and dims.eq(dims.product(shape[:-1]), rows) is True:
        return f"{type.dtype.value}[rows, {shape[-1]}]"
    return f"{type.dtype.value}[{', '.join(str(d) if isinstance(d, int) else '?' for d in shape)}]"


def _lines(region: Region) -> Iterator[str]:
    yield "form"
    for op in region.ops:
        if not op.has(Trait.CONSTANT_LIKE):
            yield f"{op.name} {[str(v.type) for v in op.operands if v.is_const]} {op.attrs.get('dims', '')}"


def _intervals(
    counts: Sequence[int], times: Callable[[int], Times]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the fastest form changes, and the forms between."""
    best = [fastest(times(count)) for count in counts]
    cuts: list[int] = []
    order = [best[0]]
    for (low, a), (high, b) in pairwise(zip(counts, best, strict=True)):
        if a != b and len(order) < MAX_INTERVALS:
            cuts.append(_change(low, high, lambda rows, now=a: fastest(times(rows)) != now))
            order.append(b)
    starts = (counts[0], *cuts)
    inside = [
        [low, *(count for count in counts if low < count < high)]
        for low, high in pairwise((*starts, counts[-1] + 1))
    ]
    settled = _without_ties(order, [[times(count) for count in each] for each in inside])
    kept = [i for i, form in enumerate(settled) if i == 0 or form != settled[i - 1]]
    return tuple(starts[i] for i in kept[1:]), tuple(settled[i] for i in kept)


def _without_ties(order: Sequence[int], found: Sequence[Sequence[Times]]) -> list[int]:
    """``order`` with a neighbour's form in the place of the reference, where that is faster nowhere.

    ``found`` has times of each interval. What the other form gains there is too little to change to it, and
    nothing is gained by changing back.
    """
    settled = list(order)
    for i, form in enumerate(order):
        around = [settled[j] for j in (i - 1, i + 1) if form == 0 and 0 <= j < len(order)]
        fast = (other for other in around if all(_as_fast(other, each) for each in found[i]))
        settled[i] = next(fast, form)
    return settled


def _as_fast(form: int, each: Times) -> bool:
    """Whether ``form`` takes no longer than the reference, by measurement and by estimate."""
    return all(us[form] <= us[0] for us in (each.us, each.estimated) if us)


def fastest(each: Times) -> int:
    """The form to take: the reference, unless another one is faster by more than margin and noise.

    Where the noise hides which one is faster, the form is taken that is by estimate and by measurement.
    """
    index = _least(each.us)
    if each.us[index] < each.us[0] * (1 - max(MARGIN, each.noise)):
        return index
    index = _least(each.estimated)
    agreed = all(us[index] < us[0] * (1 - MARGIN) for us in (each.us, each.estimated) if us)
    return index if each.estimated and agreed else 0


def verdict(each: Times, forms: Sequence[str]) -> str:
    """How the forms compare by ``each``, in the words of the rule of ``fastest``."""
    taken, least = fastest(each), _least(each.us)
    if taken:
        gain = f"{forms[taken]} is {each.us[0] / each.us[taken]:.2f} times as fast"
        if each.us[taken] < each.us[0] * (1 - max(MARGIN, each.noise)):
            return gain
        return f"{gain}, which the noise would hide and the estimate confirms"
    if least:
        gain = f"{forms[least]} is {each.us[0] / each.us[least]:.2f} times as fast"
        if each.us[least] < each.us[0] * (1 - MARGIN):
            return f"{gain}, which is within the noise"
        return f"{gain}, too little to change"
    others = [(us, form) for us, form in zip(each.us[1:], forms[1:], strict=True)]
    if not others:
        return "there is no other"
    us, form = min(others)
    return f"{form} takes {us / each.us[0]:.2f} times as long"


def _least(us: Sequence[float]) -> int:
    return min(range(len(us)), key=lambda i: us[i], default=0)


def _change(low: int, high: int, changed: Callable[[int], bool]) -> int:
    """The first number of rows up to ``high``, where ``changed`` holds, for which it does."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if changed(middle) else (middle, high)
    return high


def _worth(choice: Choice) -> float:
    """Microseconds saved a byte, at the numbers of rows where it saves most."""
    saved = max(each[0] - min(each) for each in choice.times.values())
    return saved / max(choice.extra_bytes, 1)


def _extra_recipes(op: Op, order: Sequence[int]) -> set[Recipe]:
    """The recipes that the forms in ``order`` read and the reference does not."""
    taken = {recipe for index in set(order) for recipe in _recipes(op.regions[index])}
    return taken - _recipes(op.regions[0])


def _constants(region: Region) -> set[Constant]:
    return {op.attr("value") for op in region.walk() if op.has(Trait.CONSTANT_LIKE)}


def _recipes(region: Region) -> set[Recipe]:
    return {constant for constant in _constants(region) if isinstance(constant, Recipe)}


def _size(constant: Any) -> int:
    return evaluate(constant.type.numel, {}) * constant.type.dtype.bits // 8


def _constant_bytes(module: Module) -> int:
    return sum(_size(c) for c in module.constants() if not isinstance(c, Recipe))


def _alts(function: Function) -> list[Op]:
    return [op for op in function.walk() if op.name == "rg.alt"]
