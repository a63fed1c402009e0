"""Which back end runs which section, by what sections and calls were measured to cost.

The order of the list decides until something was measured. Prices of sections only suggest a mixed plan:
whether it is better than giving all to one back end is measured of the plans as wholes (``placing.py``).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from regraft.backends import Backend
from regraft.compiler.choose.decide import MARGIN, Choice, Times, fastest, layers_of, verdict
from regraft.compiler.choose.model import RooflineModel
from regraft.compiler.choose.sections import Section, rows_of, sections, signature
from regraft.compiler.owners import told
from regraft.compiler.partition import Assignment, claims, groups, refusal
from regraft.ir import Function, Op, Symbol, Trait, symbols_in
from regraft.timing import Measured

#: For each kind of section, the place of its back end in the list.
Picks = tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """Sections that cost the same: what is decided for one holds for all.

    Fields:
        rows: of the result of the op that does most.
        estimated: microseconds of one, by the roofline, which does not tell back ends apart.
    """

    signature: str
    sections: tuple[Section, ...]
    rows: int
    estimated: float


@dataclass(frozen=True)
class Layout:
    """A function of which several back ends take parts.

    Fields:
        preferred: each op with the back end that has it where nothing was measured: who claims it, else the
            first that takes it.
        signature: of the whole function.
    """

    function: Function
    preferred: Assignment
    backends: tuple[Backend, ...]
    kinds: tuple[Kind, ...]
    signature: str

    @staticmethod
    def of(
        function: Function,
        preferred: Assignment,
        backends: Sequence[Backend],
        sizes: Mapping[Symbol, int],
        model: RooflineModel,
    ) -> Layout:
        """The layout of ``function`` at ``sizes``."""
        known = frozenset(function.symbols)

        def is_free(op: Op) -> bool:
            return all(refusal(backend, op) is None for backend in backends) and _stands_alone(op, known)

        def is_claimed(op: Op) -> bool:
            return any(claims(backend, op) for backend in backends)

        ops = [op for op in function.body.ops if op in preferred.backend]
        alike: dict[str, list[Section]] = {}
        for section in sections(function, ops, is_free, sizes, is_claimed):
            if section.is_free:
                alike.setdefault(signature(section.ops, sizes), []).append(section)
        kinds = (
            Kind(key, tuple(found), rows_of(found[0].lead, sizes), _estimate(found[0], model, sizes))
            for key, found in alike.items()
        )
        return Layout(function, preferred, tuple(backends), tuple(kinds), signature(ops, sizes))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the back ends."""
        return tuple(backend.name for backend in self.backends)

    @property
    def in_order(self) -> Picks:
        """Every section to the back end that has it where nothing was measured."""
        backends = (self.preferred.backend[kind.sections[0].lead] for kind in self.kinds)
        return tuple(map(self.backends.index, backends))

    def all_on(self, index: int) -> Picks:
        """Every section to one back end."""
        return (index,) * len(self.kinds)

    def assigned(self, picks: Picks) -> Assignment:
        """The assignment that ``picks`` describe."""
        moved = {
            op: self.backends[pick]
            for kind, pick in zip(self.kinds, picks, strict=True)
            for section in kind.sections
            for op in section.ops
        }
        return replace(self.preferred, backend=self.preferred.backend | moved)

    def calls(self, picks: Picks) -> Counter[str]:
        """How often a call of the plan calls each back end."""
        return Counter(backend.name for backend, _ in groups(self.function, self.assigned(picks)))

    def form(self, picks: Picks) -> str:
        """The name under which a plan is kept in the tuning database, whatever the order of the list."""
        names = tuple(self.names[pick] for pick in picks)
        if len(set(names)) == 1:
            return names[0]
        return f"mixed {hashlib.sha256(repr(names).encode()).hexdigest()[:12]}"


def _stands_alone(op: Op, known: frozenset[Symbol]) -> bool:
    """Whether ``op`` draws nothing, and neither reads nor defines a size that values decide."""
    ops = [op, *(inner for region in op.regions for inner in region.walk())]
    sizes = {symbol for value in (*op.operands, *op.results) for symbol in symbols_in(value.type)}
    return sizes <= known and not any(each.has(Trait.RANDOM) or each.symbols for each in ops)


def _estimate(section: Section, model: RooflineModel, sizes: Mapping[Symbol, int]) -> float:
    return sum(model.estimate(op, "cpu", sizes).us for op in section.ops)


@dataclass(frozen=True)
class Prices:
    """What was measured, in microseconds for each back end of the list.

    Fields:
        sections: by the signature of a kind; with them one call.
        call: of a call that does next to nothing.
    """

    sections: Mapping[str, Measured]
    call: tuple[float, ...]

    def know(self, layout: Layout, picks: Picks) -> bool:
        """Whether totals of ``picks`` compare with those of others: what was not measured is as in these."""
        trios = zip(layout.kinds, picks, layout.in_order, strict=True)
        return all(pick == first or kind.signature in self.sections for kind, pick, first in trios)

    def total(self, layout: Layout, picks: Picks) -> float:
        """What a call costs besides the sections that were not measured."""
        inside = sum(
            len(kind.sections) * (self.sections[kind.signature].us[pick] - self.call[pick])
            for kind, pick in zip(layout.kinds, picks, strict=True)
            if kind.signature in self.sections
        )
        per_call = dict(zip(layout.names, self.call, strict=True))
        return inside + sum(count * per_call.get(name, 0.0) for name, count in layout.calls(picks).items())


def cheapest(layout: Layout, prices: Prices) -> Picks:
    """The picks of least total price that one change of a kind after another leads to.

    A kind that was not measured stays where the order of the list has it.
    """
    starts = [
        tuple(
            index if kind.signature in prices.sections else first
            for kind, first in zip(layout.kinds, layout.in_order, strict=True)
        )
        for index in range(len(layout.backends))
    ]
    found = [_descended(layout, prices, start) for start in starts]
    return min(found, key=lambda picks: prices.total(layout, picks))


def _descended(layout: Layout, prices: Prices, picks: Picks) -> Picks:
    best, total = picks, prices.total(layout, picks)
    changed = True
    while changed:
        changed = False
        for place, kind in enumerate(layout.kinds):
            for index in range(len(layout.backends)) if kind.signature in prices.sections else ():
                tried = (*best[:place], index, *best[place + 1 :])
                price = prices.total(layout, tried)
                if price < total:
                    best, total, changed = tried, price, True
    return best


def alternatives(layout: Layout, prices: Prices | None) -> list[Picks]:
    """The plans to choose from: that of the list's order, all to each back end, and the cheapest mixed one.

    A mixed plan is there only if it should be cheaper, by the margin of a choice, than each other one whose
    price is known.
    """
    found = [layout.in_order, *(layout.all_on(index) for index in range(len(layout.backends)))]
    if prices is not None:
        mixed = cheapest(layout, prices)
        least = min(prices.total(layout, picks) for picks in found if prices.know(layout, picks))
        if prices.total(layout, mixed) < least * (1 - MARGIN):
            found.append(mixed)
    return list(dict.fromkeys(found))


# -- what the report says ------------------------------------------------------------------------


def choice_of_whole(layout: Layout, plans: Sequence[Picks], measured: Measured) -> tuple[Picks, Choice]:
    """The best of ``plans`` as measured in turns: the first unless another one is faster beyond the noise."""
    times = Times(measured.us, (measured.rows,), measured.noise)
    best = fastest(times)
    forms = tuple(layout.form(picks) for picks in plans)
    return plans[best], Choice(
        "back ends of the whole",
        layout.signature,
        "",
        forms,
        (),
        (best,),
        {measured.rows: measured.us},
        based_on={measured.rows: times.at},
        noise={measured.rows: measured.noise},
        why={measured.rows: verdict(times, forms)},
    )


def choices_of_kinds(layout: Layout, picks: Picks, prices: Prices | None) -> list[Choice]:
    """One choice for each kind of section, in the order of the function."""
    return [_choice(layout, kind, pick, prices) for kind, pick in zip(layout.kinds, picks, strict=True)]


def _choice(layout: Layout, kind: Kind, pick: int, prices: Prices | None) -> Choice:
    lead, more = kind.sections[0].lead, len(kind.sections[0].ops) - 1
    found = None if prices is None else prices.sections.get(kind.signature)
    what = f"{lead.name} and {more} more ops" if more else lead.name
    return Choice(
        told(lead.loc),
        kind.signature,
        str(kind.rows),
        layout.names,
        (),
        (pick,),
        {} if found is None else {kind.rows: found.us},
        {kind.rows: (kind.estimated,) * len(layout.names)},
        {} if found is None else {kind.rows: (kind.rows,)},
        {} if found is None else {kind.rows: found.noise},
        reason=f"{what}, {len(kind.sections)} times",
        layers=layers_of(op for section in kind.sections for op in section.ops),
    )
