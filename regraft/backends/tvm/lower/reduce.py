"""Reductions, positions of extrema, running sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.backends.tvm.lower.elementwise import larger, smaller
from regraft.backends.tvm.lower.kinds import Check, Expr, Loops, accept, highest, lowest
from regraft.ir import Dim, DType, Op, TensorType, dims


@dataclass(frozen=True)
class Axes:
    """Which axes of ``tensor`` are reduced, and how its places and those of the result go together."""

    tensor: TensorType
    reduced: tuple[int, ...]
    keepdim: bool

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(self.tensor.rank) if axis not in self.reduced)

    def sizes(self, axes: Sequence[int]) -> tuple[Dim, ...]:
        return tuple(self.tensor.shape[axis] for axis in axes)

    @property
    def count(self) -> Dim:
        """How many elements are reduced to one."""
        return dims.product(self.sizes(self.reduced))

    def place(self, kept: Sequence[Expr], reduced: Sequence[Expr]) -> list[Expr]:
        """The place in the operand."""
        found: list[Expr] = [0] * self.tensor.rank
        for axis, place in zip((*self.kept, *self.reduced), (*kept, *reduced), strict=True):
            found[axis] = place
        return found

    def kept_place(self, result: Sequence[Expr]) -> list[Expr]:
        """The kept place of what is at ``result`` in the result."""
        return [result[axis] for axis in self.kept] if self.keepdim else list(result)

    def result(self, kept: Sequence[Expr]) -> list[Expr]:
        """The place in the result."""
        if not self.keepdim:
            return list(kept)
        return self.place(kept, [0] * len(self.reduced))


def axes_of(op: Op) -> Axes:
    """The axes that ``op`` reduces: those of its attribute ``dim``; all without one."""
    tensor = op.operands[0].tensor
    given: Any = op.attrs.get("dim")
    listed = (given,) if isinstance(given, int) else given or range(tensor.rank)
    reduced = tuple(sorted({axis % tensor.rank for axis in listed})) if tensor.rank else ()
    return Axes(tensor, reduced, bool(op.attrs.get("keepdim", False)))


@dataclass(frozen=True)
class Fold:
    """Combining elements: ``start`` is what combining nothing gives, in the type ``dtype``."""

    dtype: DType
    start: Any
    combine: Callable[[Any, Expr, Expr], Expr]


def fold(k: Any, axes: Axes, how: Fold, term: Callable[[Any, list[Expr]], Expr], finish: Any) -> None:
    """``finish(kept place, folded)`` for each kept place, where ``term(kernel, place)`` are folded."""
    if axes.reduced and axes.reduced[-1] == axes.tensor.rank - 1:
        _along_rows(k, axes, how, term, finish)
    else:
        _across_rows(k, axes, how, term, finish)


def _along_rows(k: Any, axes: Axes, how: Fold, term: Any, finish: Any) -> None:
    """Neighbours are folded into one another: lanes first, at the end the lanes themselves."""

    def row(kept: list[Expr]) -> None:
        folded = k.fold(how, axes.sizes(axes.reduced), lambda inner: term(k, axes.place(kept, inner)))
        finish(kept, folded)

    k.rows(axes.sizes(axes.kept), row, axes.count)


def _across_rows(k: Any, axes: Axes, how: Fold, term: Any, finish: Any) -> None:
    """Neighbours belong to different results: each lane folds its own."""
    *outer, last = axes.sizes(axes.kept) if axes.kept else (1,)

    def row(kept: list[Expr]) -> None:
        def block(column: Any, lanes: int) -> None:
            total = k.accumulators(how, lanes)
            with k.loops(axes.sizes(axes.reduced)) as inner:
                for lane in k.each_lane(lanes):
                    own = [*kept, column + lane] if axes.kept else []
                    total.add(lane, term(k, axes.place(own, inner)))
            for lane in k.each_lane(lanes):
                finish([*kept, column + lane] if axes.kept else [], total[lane])

        k.blocks(last, block)

    k.rows(tuple(outer), row, dims.product((last, axes.count)))


# -- the ops -----------------------------------------------------------------------------------


def _plus(k: Any, a: Expr, b: Expr) -> Expr:
    return k.math.plus(a, b)


def _times(k: Any, a: Expr, b: Expr) -> Expr:
    return k.math.times(a, b)


def element(k: Any, op: Op, place: list[Expr], dtype: DType) -> Expr:
    """The element of the first operand as ``dtype``."""
    x = op.operands[0]
    return k.cast(k.at(x, place), x.tensor.dtype, dtype)


def _in_result_type(k: Any, op: Op, place: list[Expr]) -> Expr:
    return element(k, op, place, op.result.tensor.dtype)


@dataclass(frozen=True)
class Reduction:
    """An op that makes one element of those along some axes.

    Fields:
        how: ``how(dtype)`` combines them, for a result of ``dtype``.
        check: why this use of the op cannot be lowered, or None.
        term: ``term(kernel, op, place)``, what of the operand's element is combined.
        last: ``last(kernel, op, combined)`` gives the element of the result.
    """

    how: Callable[[DType], Fold]
    check: Check = accept
    term: Callable[[Any, Op, list[Expr]], Expr] = _in_result_type
    last: Callable[[Any, Op, Expr], Expr] = lambda k, op, combined: combined

    def emit(self, k: Any, op: Op) -> None:
        axes = axes_of(op)
        fold(
            k,
            axes,
            self.how(op.result.tensor.dtype),
            lambda k, place: self.term(k, op, place),
            lambda kept, x: k.finish(axes.result(kept), self.last(k, op, x)),
        )


def sum_of(dtype: DType) -> Fold:
    return Fold(dtype, 0, _plus)


def _mean(k: Any, op: Op, total: Expr) -> Expr:
    return k.math.over(total, k.number(axes_of(op).count, op.result.tensor.dtype))


def _no_bools(op: Op) -> str | None:
    return "an extremum of bools" if op.operands[0].tensor.dtype == DType.BOOL else None


def _truth(every: bool) -> Reduction:
    """Whether one element is not zero, or every one."""
    combine = smaller if every else larger
    return Reduction(
        lambda dtype: Fold(DType.I32, int(every), combine),
        term=lambda k, op, place: k.cast(element(k, op, place, DType.BOOL), DType.BOOL, DType.I32),
        last=lambda k, op, found: k.cast(found, DType.I32, op.result.tensor.dtype),
    )


def _variance(k: Any, op: Op) -> None:
    """Two passes: the mean, then the squares of what differs from it."""
    axes, dtype = axes_of(op), op.result.tensor.dtype
    correction = op.attr("correction")
    free = k.number(axes.count, dtype) - k.number(1 if correction is None else correction, dtype)

    def row(kept: list[Expr]) -> None:
        def x(inner: list[Expr]) -> Expr:
            return k.at(op.operands[0], axes.place(kept, inner))

        def square(inner: list[Expr]) -> Expr:
            apart = k.bind(x(inner) - mean)
            return apart * apart

        sizes, sum_up = axes.sizes(axes.reduced), Fold(dtype, 0.0, _plus)
        mean = k.bind(k.math.over(k.fold(sum_up, sizes, x), k.number(axes.count, dtype)))
        total = k.fold(sum_up, sizes, square)
        # No degrees of freedom, or less: torch divides by zero.
        none = k.zero(free)
        divisor = k.math.select(free > none, free, k.math.unfolded(none))
        k.finish(axes.result(kept), k.math.over(total, divisor))

    k.rows(axes.sizes(axes.kept), row, axes.count)


def _float_operand(op: Op) -> str | None:
    dtype = op.operands[0].tensor.dtype
    return None if dtype.is_float else f"of {dtype} tensors"


def _position(is_max: bool) -> Callable[[Any, Op], None]:
    """The first place of the extremum; a nan is more extreme than all, as in torch."""

    def emit(k: Any, op: Op) -> None:
        x = op.operands[0]
        axes = axes_of(op)
        dtype = x.tensor.dtype

        def row(kept: list[Expr]) -> None:
            best = k.variable(dtype, lowest(dtype) if is_max else highest(dtype))
            where, count = k.variable(DType.I64, 0), k.variable(DType.I64, 0)
            with k.loops(axes.sizes(axes.reduced)) as inner:
                found = k.bind(k.at(x, axes.place(kept, inner)))
                m = k.math
                beats = found > best.value if is_max else found < best.value
                beats = m.either(beats, m.both(m.isnan(found), m.negation(m.isnan(best.value))))
                better = k.bind(m.either(beats, m.equal(count.value, k.zero(count.value))))
                where.set(m.select(better, count.value, where.value))
                best.set(m.select(better, found, best.value))
                count.set(count.value + 1)
            k.finish(axes.result(kept), where.value)

        k.rows(axes.sizes(axes.kept), row, axes.count)

    return emit


def _cumulative(k: Any, op: Op) -> None:
    """Floats are summed in f64, as torch does."""
    x, dtype = op.operand("self"), op.result.tensor.dtype
    wide = DType.F64 if dtype.is_float else dtype
    if not x.tensor.rank:
        k.finish([], element(k, op, [], dtype))
        return
    axes = Axes(x.tensor, (op.attr("dim") % x.tensor.rank,), False)

    def row(kept: list[Expr]) -> None:
        total = k.variable(wide, 0)
        with k.loops(axes.sizes(axes.reduced)) as inner:
            place = axes.place(kept, inner)
            total.set(k.math.plus(total.value, element(k, op, place, wide)))
            k.finish(place, k.cast(total.value, wide, dtype))

    k.rows(axes.sizes(axes.kept), row, axes.count)


REDUCTIONS: dict[str, Reduction] = {
    "aten.sum.dim_IntList": Reduction(sum_of),
    "aten.mean.dim": Reduction(sum_of, _float_operand, last=_mean),
    "aten.prod.dim_int": Reduction(lambda dtype: Fold(dtype, 1, _times)),
    "aten.amax": Reduction(lambda dtype: Fold(dtype, lowest(dtype), larger), _no_bools),
    "aten.amin": Reduction(lambda dtype: Fold(dtype, highest(dtype), smaller), _no_bools),
    **{f"aten.any{kind}": _truth(False) for kind in ("", ".dim", ".dims")},
    **{f"aten.all{kind}": _truth(True) for kind in ("", ".dim", ".dims")},
}

LOWERINGS: dict[str, Loops] = {
    **{name: Loops(reduction.emit, reduction.check) for name, reduction in REDUCTIONS.items()},
    "aten.var.correction": Loops(_variance, _float_operand),
    "aten.argmax": Loops(_position(is_max=True), _no_bools),
    "aten.argmin": Loops(_position(is_max=False), _no_bools),
    "aten.cumsum": Loops(_cumulative),
}
