"""Memory of a compile and of what it made, as far as it can be known from inside the process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from regraft.ir import (
    Constant,
    Leaf,
    Module,
    Op,
    Region,
    Symbol,
    TensorType,
    Trait,
    Value,
    chosen_form,
    dims,
    evaluate,
)

_STATM = Path("/proc/self/statm")


class Resident:
    """Watches this process's resident memory from the moment it is made."""

    def __init__(self) -> None:
        self._start = _resident()
        self._highest = _high_water()

    def growth(self) -> dict[str, int | None]:
        """Bytes by which resident memory has grown since: ``growth`` now and ``peak_growth`` at most.

        Each is None where the system does not tell. So is the peak where the process had used more
        memory at some time before: the system keeps one high-water mark, and only a new one is ours.
        """
        now, highest = _resident(), _high_water()
        if now is None or self._start is None:
            return {"growth": None, "peak_growth": None}
        growth = now - self._start
        is_new = highest is not None and self._highest is not None and highest > self._highest
        # The kernel counts pages late: the mark may lie a little below what is resident now.
        peak = max(growth, highest - self._start) if is_new and highest is not None else None
        return {"growth": growth, "peak_growth": peak}


def _resident() -> int | None:
    """Bytes resident now; Linux alone tells."""
    if not _STATM.exists():
        return None
    import resource

    return int(_STATM.read_text().split()[1]) * resource.getpagesize()


def _high_water() -> int | None:
    """The most bytes ever resident in this process."""
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def bytes_of_constants(module: Module) -> dict[str, int]:
    """Bytes of all the model's ``constants`` that ``module`` depends on, of those among them that ops
    ``read`` as they are, and of what was ``made`` of them and is read.
    """
    read: set[Constant] = set()
    for function in module.functions.values():
        read |= {op.attr("value") for op in function.walk() if op.has(Trait.CONSTANT_LIKE) and op.result.uses}
    return {
        "constants": sum(_size(each) for each in module.constants() if isinstance(each, Leaf)),
        "read": sum(_size(each) for each in read if isinstance(each, Leaf)),
        "made": sum(_size(each) for each in read if not isinstance(each, Leaf)),
    }


def _size(constant: Constant) -> int:
    return evaluate(constant.type.numel, {}) * constant.type.dtype.bits // 8


def peak_intermediates(region: Region, sizes: Mapping[Symbol, int]) -> int:
    """An estimate of the most bytes that values made by ``region`` hold at once.

    Each value lives from its op to its last use, ops in the order of the graph; a view is no memory of
    its own and keeps what it views alive. A back end that fuses or reorders holds other amounts. A symbol
    that ``sizes`` lacks counts as its lower bound.
    """
    ops = [op for op in region.ops if not op.has(Trait.CONSTANT_LIKE)]
    base = _bases(region, ops)
    last: dict[Value, int] = {}
    for index, op in enumerate(ops):
        last |= {base.get(value, value): index for value in (*op.operands, *op.results)}
    for value in region.results:
        last[base.get(value, value)] = len(ops)
    alive = peak = 0
    leaving: dict[int, list[int]] = {}
    for index, op in enumerate(ops):
        peaks = (peak_intermediates(each, sizes) for each in _running(op, sizes))
        inner = max(peaks, default=_hidden(op, sizes))
        for result in op.results:
            if result not in base:
                count = _bytes(result, sizes)
                alive += count
                leaving.setdefault(last[result], []).append(count)
        if op.name == "rg.alt":  # its results are those of the form
            inner -= sum(_bytes(result, sizes) for result in op.results)
        peak = max(peak, alive + inner)
        alive -= sum(leaving.pop(index, ()))
    return peak


def _running(op: Op, sizes: Mapping[Symbol, int]) -> tuple[Region, ...]:
    """The regions of ``op`` of which any may run at ``sizes``: of alternatives one."""
    if op.name != "rg.alt":
        return tuple(op.regions)
    return (op.regions[chosen_form(op, evaluate(op.site.dim_attr("rows"), sizes))],)


def _hidden(op: Op, sizes: Mapping[Symbol, int]) -> int:
    """Bytes of the hidden features of an ``rg.ffn``, before and after the activation; 0 for other ops."""
    if op.name != "rg.ffn":
        return 0
    x, hidden = op.operand("x").tensor, op.operand("up_weight").tensor.shape[0]
    rows = evaluate(dims.product(x.shape[:-1]), sizes)
    rows = min(rows, op.attr("rows_at_once") or rows)
    return 2 * rows * evaluate(hidden, sizes) * x.dtype.bits // 8


def _bases(region: Region, ops: list[Op]) -> dict[Value, Value]:
    """View -> the value whose memory it shows."""
    base: dict[Value, Value] = {}
    for op in ops:
        if op.has(Trait.VIEW) and op.operands:
            viewed = op.operands[0]
            base |= dict.fromkeys(op.results, base.get(viewed, viewed))
    return base


def _bytes(value: Value, sizes: Mapping[Symbol, int]) -> int:
    if not isinstance(value.type, TensorType):
        return 0
    return evaluate(value.type.numel, sizes) * value.type.dtype.bits // 8
