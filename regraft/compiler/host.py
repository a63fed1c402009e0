"""Control flow that no back end takes as a whole: the plan decides, back ends run the regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from regraft.backends import Backend, ConstantStore, LowerOptions
from regraft.compiler.choose import WORTH_A_CUT
from regraft.compiler.partition import (
    Assignment,
    Prefers,
    as_text,
    assign,
    binds_of,
    claims,
    cut,
    is_control_flow,
    make_plan,
    preferred,
    refusal,
)
from regraft.ir import Dim, Function, Op, OpTable, Region, Trait, Value, clone_region, symbols_in
from regraft.runtime import HOST, Block, Executable, HostExecutable


class HostBackend:
    """Runs control flow in the plan, and what its regions hold on ``backends``, the first that takes it."""

    name = HOST

    def __init__(
        self,
        backends: Sequence[Backend],
        constants: Backend,
        table: OpTable,
        price: Callable[[Op], float],
        prefers: Prefers = claims,
    ) -> None:
        """``constants`` gives the results of regions that are constants, ``price`` estimates microseconds;
        ``prefers`` is as in ``assign``.
        """
        self._backends = tuple(backends)
        self._constants = constants
        self._table = table
        self._price = price
        self._prefers = prefers

    def claims(self, op: Op) -> bool:
        """Whether most of the work in ``op`` is that of back ends which are asked before the one that would
        take it as a whole, and enough for calls of its own: the plan then decides, for their order to hold.
        """
        order = preferred(self._backends, op, self._prefers)
        whole = next((number for number, each in enumerate(order) if refusal(each, op) is None), 0)
        if not whole or self.supports(op) is not None:
            return False
        work = self._work(op)
        earlier = sum(work.get(backend.name, 0.0) for backend in order[:whole])
        return earlier >= max(WORTH_A_CUT, sum(work.values()) / 2)

    def _work(self, op: Op) -> dict[str, float]:
        """Estimated microseconds in the region of ``op`` with the most, by the back end that would run it."""
        most: dict[str, float] = {}
        for region in op.regions:
            found: dict[str, float] = {}
            for inner in _computing(region):
                is_flow = is_control_flow(inner)
                own = self._work(inner) if is_flow else {self._taker(inner).name: self._price(inner)}
                for name, us in own.items():
                    found[name] = found.get(name, 0.0) + us
            most = max(most, found, key=lambda work: sum(work.values()))
        return most

    def supports(self, op: Op) -> str | None:
        """None where every op of the regions has a back end, else the reasons of one that has none."""
        for region in op.regions:
            hidden = set(region.symbols).difference(binds_of(region.symbols, region.args))
            if hidden:
                return f"no argument of its region has the size {min(s.name for s in hidden)}"
            for inner in _computing(region):
                reason = self._refusal(inner)
                if reason is not None:
                    return f"in it, {inner.name} at {inner.loc}: {reason}"
        return None

    def executors(self, op: Op) -> Counter[str]:
        """The ops in the regions of ``op``, by the back end that runs them."""
        found: Counter[str] = Counter()
        for inner in (inner for region in op.regions for inner in _computing(region)):
            taker = self._taker(inner)
            found[taker.name] += 1
            if taker is self:
                found += self.executors(inner)
        return found

    def _taker(self, op: Op) -> Backend:
        """Who runs ``op``."""
        if is_control_flow(op) and self.claims(op):
            return self
        order = preferred(self._backends, op, self._prefers)
        return next((backend for backend in order if refusal(backend, op) is None), self)

    def _refusal(self, op: Op) -> str | None:
        reasons = {backend.name: refusal(backend, op) for backend in self._backends}
        if not all(reasons.values()):
            return None
        if is_control_flow(op):
            return self.supports(op)
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())

    def lower(self, function: Function, store: ConstantStore, options: LowerOptions) -> Executable:
        """The executable of ``function``, which is one op of control flow and constants that it reads."""
        *constants, op = [op for op in function.body.ops if not op.has(Trait.TERMINATOR)]
        assert is_control_flow(op), f"{op.name} is no control flow"
        inputs = {value: number for number, value in enumerate(function.args)}
        inputs |= {each.result: len(function.args) + number for number, each in enumerate(constants)}
        return HostExecutable(
            op.name,
            tuple(self._block(region, op, store, options) for region in op.regions),
            tuple(inputs[operand] for operand in op.operands),
            tuple(op.results.index(result) for result in function.results),
            tuple((store.name(c), store.tensor(c)) for c in (each.attr("value") for each in constants)),
            _details(op),
        )

    def _block(self, region: Region, op: Op, store: ConstantStore, options: LowerOptions) -> Block:
        body = clone_region(region)
        symbols = dict.fromkeys(s for value in _values(body) for s in symbols_in(value.type))
        # What the ops here find out is not known before they run.
        found = {
            s for each in body.walk() for s in (*each.symbols, *(s for r in each.regions for s in r.symbols))
        }
        function = Function(op.name.replace(".", "_"), body, tuple(s for s in symbols if s not in found))
        assignment = assign(function, self._backends, None, self._table, host=self, prefers=self._prefers)
        pieces = cut(function, assignment)
        plan = make_plan(function, pieces, self._constants, store, options, function.results)
        return Block(plan, as_text(binds_of(body.symbols, body.args)))


def _computing(region: Region) -> Iterator[Op]:
    return (op for op in region.ops if not op.has(Trait.TERMINATOR) and not op.has(Trait.CONSTANT_LIKE))


def _values(region: Region) -> list[Value]:
    return [*region.args, *(result for op in region.walk() for result in op.results)]


def _details(op: Op) -> Mapping[str, Any]:
    if op.name == "cf.scan":
        carried, scanned = (len(op.variadic(name)) for name in ("carried", "scanned"))
        rows = [(result.tensor.dtype.value, result.tensor.shape[1:]) for result in op.results[carried:]]
        texts = [[dtype, [_text(size) for size in row]] for dtype, row in rows]
        return {"carried": carried, "scanned": scanned, "rows": texts}
    if op.name == "rg.alt":
        rows = op.site.dim_attr("rows")
        return {"rows": str(rows), "cuts": list(op.site.ints("cuts")), "order": list(op.site.ints("order"))}
    return {"message": op.attr("message")} if op.name == "rg.check" else {}


def _text(size: Dim) -> int | str:
    return size if isinstance(size, int) else str(size)


def executor_counts(assignment: Assignment, host: HostBackend) -> dict[str, int]:
    """Ops per back end, those of regions that ``host`` runs as well."""
    counts = Counter(backend.name for backend in assignment.backend.values())
    for op, backend in assignment.backend.items():
        if backend is host:
            counts += host.executors(op)
    return dict(counts)
