"""The one way to change a graph.

A :class:`Rewriter` inserts, replaces and erases ops, tells its listeners, tags new ops with the
rewrite that made them, spends fuel and counts. It refuses what would lose a value that is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from regraft.errors import RewriteError
from regraft.ir.builder import Builder
from regraft.ir.core import UNKNOWN, Location, Op, Region, Use, Value
from regraft.ir.dims import Dim, eq
from regraft.ir.effects import is_dead
from regraft.ir.opdef import OpTable
from regraft.ir.types import TensorType, Type


@dataclass
class Fuel:
    """How many applications are still allowed (None: any number), to bisect a miscompile."""

    left: int | None = None
    spent: int = 0

    def take(self) -> bool:
        """Spend one unit; False when there is none left."""
        if self.left is not None and self.spent >= self.left:
            return False
        self.spent += 1
        return True


@dataclass
class RewriteStats:
    """What one rewrite did in one compile. ``seconds`` is time spent matching and applying."""

    hits: int = 0
    declined: dict[str, int] = field(default_factory=dict[str, int])
    seconds: float = 0.0


class Listener:
    """Hears of every change, in order. Subclasses override what they want to hear."""

    def visiting(self, op: Op) -> None:
        """Ops are about to be inserted before ``op``."""

    def inserted(self, op: Op) -> None: ...

    def redirecting(self, old: Value, new: Value) -> None:
        """Uses of ``old`` are about to become uses of ``new``; both can still be computed."""

    def replaced(self, op: Op, values: Sequence[Value]) -> None:
        """The results of ``op`` that had users are ``values`` now."""

    def modified(self, op: Op) -> None: ...

    def erased(self, op: Op) -> None: ...


class Rewriter:
    """Mutates the graph around one op on behalf of ``made_by`` (a rewrite's or pass's name)."""

    def __init__(self, table: OpTable, made_by: str, listeners: Iterable[Listener] = ()) -> None:
        self.table = table
        self.made_by = made_by
        self.listeners = tuple(listeners)
        self.touched: dict[Op, None] = {}

    def before(self, op: Op) -> Builder:
        """A builder that inserts before ``op``; new ops carry its location and this rewrite's name."""
        assert op.parent is not None, f"{op.name} is not in a region"
        for listener in self.listeners:
            listener.visiting(op)
        return _ListeningBuilder(self, op.parent, op, op.loc.tagged(self.made_by))

    def at_end(self, region: Region, loc: Location = UNKNOWN) -> Builder:
        return _ListeningBuilder(self, region, None, loc.tagged(self.made_by))

    def replace(self, op: Op, values: Sequence[Value | None]) -> None:
        """Use ``values`` in place of the results of ``op``, and erase it.

        A replacement's type must equal the old one or refine it (static inside dynamic). None stands for a
        result that nobody uses.

        Raises:
            RewriteError: the number or the types of the values differ, or a result in use has no value.
        """
        if len(values) != len(op.results):
            raise RewriteError(
                f"'{self.made_by}' replaces {op.name} ({len(op.results)} results) by {len(values)} values",
                (self.made_by,),
            )
        for old, new in zip(op.results, values, strict=True):
            if new is None:
                continue
            if old is new:
                message = f"'{self.made_by}' replaces {op.name} by its own result"
                raise RewriteError(message, (self.made_by,))
            if not refines(new.type, old.type):
                raise RewriteError(
                    f"'{self.made_by}' replaces {op.name}: {old.type} by a {new.type}; "
                    "insert a cast or a view when the types should differ",
                    (self.made_by,),
                )
            self.replace_uses(old, new)
        for listener in self.listeners:
            listener.replaced(op, [value for value in values if value is not None])
        self.erase(op)

    def replace_uses(self, old: Value, new: Value, where: Callable[[Use], bool] = lambda use: True) -> None:
        """Point the uses of ``old`` that ``where`` accepts at ``new``."""
        for listener in self.listeners:
            listener.redirecting(old, new)
        for use in [use for use in old.uses if where(use)]:
            self.set_operand(use.op, use.index, new)
        new.hint = new.hint or old.hint

    def set_operand(self, op: Op, index: int, value: Value) -> None:
        op.set_operand(index, value)
        self.touched[op] = None
        for listener in self.listeners:
            listener.modified(op)

    def erase(self, op: Op) -> None:
        """Remove an op none of whose results are used.

        Raises:
            RewriteError: a result still has users.
        """
        for result in op.results:
            if result.uses:
                user = next(iter(result.uses)).op
                message = f"'{self.made_by}' erases {op.name}, but {user.name} still uses it"
                raise RewriteError(message, (self.made_by,))
        for region in op.regions:
            for inner in list(region.reversed_ops):
                self.erase(inner)
        op.drop_operands()
        if op.parent is not None:
            op.parent.remove(op)
        self.touched.pop(op, None)
        for listener in self.listeners:
            listener.erased(op)

    def erase_if_unused(self, op: Op) -> bool:
        """Erase a pure op without users, and then the producers this leaves unused."""
        pending, erased = [op], False
        while pending:
            candidate = pending.pop()
            # A producer may be listed twice.
            if candidate.parent is None or not is_dead(candidate):
                continue
            producers = [v.op for v in candidate.operands if v.op is not None]
            self.erase(candidate)
            erased = True
            pending += dict.fromkeys(producers)
        return erased

    def notify_inserted(self, op: Op) -> None:
        self.touched[op] = None
        for listener in self.listeners:
            listener.inserted(op)


class _ListeningBuilder(Builder):
    """A builder that reports what it inserts to its rewriter."""

    def __init__(self, rewriter: Rewriter, region: Region, anchor: Op | None, loc: Location) -> None:
        super().__init__(rewriter.table, region, anchor, loc)
        self._rewriter = rewriter

    def insert(self, op: Op) -> Op:
        super().insert(op)
        self._rewriter.notify_inserted(op)
        return op


def decompose(op: Op, table: OpTable) -> list[Op] | None:
    """Put the decomposition of ``op`` in its place; the ops that stand for it now.

    None, with nothing changed, when it has none, or none for this use of it.
    """
    if op.definition.decompose is None:
        return None
    rewriter = Rewriter(table, f"decompose {op.name}")
    builder = rewriter.before(op)
    values = op.definition.decompose(builder, op)
    if values is None:
        return None
    rewriter.replace(op, values)
    return [made for made in builder.made if made.parent is not None]


def refines(new: Type, old: Type) -> bool:
    """Whether a value of type ``new`` may stand where one of type ``old`` stood."""
    if not isinstance(new, TensorType) or not isinstance(old, TensorType):
        return new == old
    same_kind = new.dtype == old.dtype and new.device == old.device and new.rank == old.rank
    return same_kind and all(_refines_dim(n, o) for n, o in zip(new.shape, old.shape, strict=True))


def _refines_dim(new: Dim, old: Dim) -> bool:
    equal = eq(new, old)
    return equal is True or (equal is None and isinstance(new, int))
