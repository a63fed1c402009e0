"""The packed matrix product: its parameters, what they may be, and what a config should cost.

The weight is packed in blocks of ``width`` columns ([blocks][depth][width], padded with zeros). A task takes
a block and a share of the rows; a tile of ``rows`` x ``width`` sums stays in vector registers while k runs,
each element of ``x`` broadcast against the vectors of a row of the block. With few rows the same kernel
streams the weight once: it is the matrix-vector product too.

After Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008, without packing x: a
tile reads so few rows that they come from the first cache anyhow.
"""

from __future__ import annotations

from heapq import nsmallest
from typing import Any

from regraft.backends.tvm.cpu import Cpu
from regraft.backends.tvm.packing import Packing
from regraft.backends.tvm.space import Config, Constraint, Parameter, Space
from regraft.backends.tvm.templates.problem import Argument, Gemm, Problem, Role
from regraft.backends.tvm.templates.tile import Tile

#: Rows for which a kernel of any number of rows should be good.
TYPICAL_ROWS = (1, 16, 128)
#: More rows push each other out of a set of the first cache where k is a multiple of 1024, and were nowhere
#: faster; and each number of rows that may be left over has its own tile, which takes time to build.
_MOST_ROWS = 8
#: Slots of a fused multiply-add, measured on a Zen 4: a tile beside its sums, a step for one vector, one k
#: beside its sums and loads, an element of x that is broadcast.
_TILE_SLOTS, _STEP_SLOTS, _TURN_SLOTS, _BROADCAST_SLOTS = 30, 6, 1.3, 1.7
#: The same for a sum that waits in memory until the next part of k.
_WAITING_SLOTS = 10
#: Slots until a sum can be added to again.
_LATENCY = 4
_LAUNCH_US = 3.0


class GemmTemplate:
    """Products of ``Gemm``, in f32 and in bf16."""

    name = "gemm"

    def takes(self, problem: Problem, cpu: Cpu | None = None) -> str | None:
        """None when the template has kernels for ``problem``, on ``cpu`` if one is given, else why not."""
        if not isinstance(problem, Gemm):
            return "it is not one product"
        for dtype in (problem.dtype, problem.out_dtype):
            if dtype not in ("float32", "bfloat16"):
                return f"products of {dtype} have no kernel"
        return _bf16_refusal(problem, cpu) if problem.dtype == "bfloat16" else None

    def space(self, problem: Gemm, cpu: Cpu) -> Space:
        """The configs for ``problem`` on ``cpu``."""
        columns = round_up(problem.columns, cpu.lanes)
        most = _MOST_ROWS if problem.rows is None else min(_MOST_ROWS, max(1, problem.rows))
        parameters = (
            Parameter("lanes", (cpu.lanes,)),
            Parameter("rows", tuple(range(most, 0, -1))),
            Parameter("width", tuple(cpu.lanes * vectors for vectors in (4, 2, 6, 8, 3, 1))),
            Parameter("depth", _depths(problem.turns)),
            Parameter("splits", (1, *(2 * cpu.threads // shares for shares in (2, 1) if cpu.threads > 1))),
        )
        return Space(parameters, _constraints(problem, cpu, columns))

    def estimate(self, problem: Gemm, config: Config, cpu: Cpu, rows: int | None = None) -> float:
        """Microseconds that ``config`` should take at ``rows`` rows, by default those of the problem.

        Without either: the sum over typical numbers of rows of the times over the least times possible.
        """
        rows = problem.rows if rows is None else rows
        if rows is None:
            times = {r: self.estimate(problem, config, cpu, r) for r in TYPICAL_ROWS}
            return sum(us / _least(problem, cpu, r) for r, us in times.items())
        return _microseconds(problem, Tile.of(config), cpu, rows)

    def ranked(self, problem: Gemm, cpu: Cpu, count: int) -> list[Config]:
        """The ``count`` configs of the least estimates, the best one first."""
        return nsmallest(count, self.space(problem, cpu), lambda c: self.estimate(problem, c, cpu))

    def default(self, problem: Gemm, cpu: Cpu) -> Config:
        """The config to use where nothing was measured."""
        return self.ranked(problem, cpu, 1)[0]

    def packing(self, problem: Gemm, config: Config) -> dict[str, Packing]:
        """How weights are packed at load, by their names in ``arguments``; empty if they come with calls."""
        if not problem.is_constant:
            return {}
        width, group = config["width"], problem.group
        blocks = -(-problem.columns // width)
        extra = blocks * width - problem.columns
        if problem.is_transposed:
            pad, shape, order = (extra, 0), (blocks, width, problem.turns, group), (0, 2, 1, 3)
        else:
            pad, shape, order = (0, extra), (problem.turns, group, blocks, width), (2, 0, 3, 1)
        if problem.batch > 1:
            pad, shape, order = (0, *pad), (problem.batch, *shape), (0, *(axis + 1 for axis in order))
        viewed_as = "int32" if group == 2 else problem.dtype
        return dict.fromkeys(problem.weight_names, Packing(pad, shape, order, viewed_as))

    def arguments(self, problem: Gemm, config: Config) -> tuple[Argument, ...]:
        """The parameters of the kernel: x, the weights (as packed), the extras, out and row squares."""
        packing = self.packing(problem, config)
        seen, viewed_from = (problem.dtype, None) if problem.group == 1 else ("int32", problem.dtype)
        weights = (
            Argument(
                name,
                packing[name].packed_shape if packing else problem.weight_shape(),
                seen,
                "weight",
                viewed_from,
            )
            for name in problem.weight_names
        )
        extras = (
            Argument(e.name, problem.shape(e.axes) or (1,), *_in_memory(e.dtype, "extra"))
            for e in problem.extras
        )
        *outer, _ = problem.shape(problem.x_axes())
        return (
            Argument("x", (*outer, problem.turns), seen, "input", viewed_from),
            *weights,
            *extras,
            Argument("out", problem.shape(problem.out_axes()), *_in_memory(problem.out_dtype, "output")),
            *_row_squares(problem, config),
        )

    def build(self, problem: Gemm, config: Config, symbol: str) -> Any:
        """The kernel as a TIR function called ``symbol``. Imports TVM.

        ``out`` must not share memory with anything else.
        """
        from regraft.backends.tvm.templates.tir import gemm_function

        return gemm_function(problem, Tile.of(config), self.arguments(problem, config), symbol)


def _bf16_refusal(problem: Gemm, cpu: Cpu | None) -> str | None:
    if cpu is not None and not cpu.has_bf16_dot:
        return "this CPU has no dot product of bf16 pairs"
    if problem.depth % 2:
        return "bf16 is multiplied in pairs, and k is odd"
    if problem.prologue:
        return "products of bf16 have no prologue"
    return None if problem.is_constant else "weights of bf16 that come with the call are not packed"


def _in_memory(dtype: str, role: Role) -> tuple[str, Role, str | None]:
    """What a kernel sees the elements of an argument as, and what they are: of bf16 it sees the bits."""
    return ("uint16", role, dtype) if dtype == "bfloat16" else (dtype, role, None)


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _row_squares(problem: Gemm, config: Config) -> tuple[Argument, ...]:
    if not problem.has_row_squares:
        return ()
    blocks = -(-problem.columns // config["width"])
    shape = (*problem.shape(("batch", "rows")), blocks)
    return (Argument("row_squares", shape, "float32", "output"),)


def _depths(depth: int) -> tuple[int, ...]:
    """All of k, and its larger parts: a pass over less does not pay for keeping the sums."""
    return tuple(
        depth // parts for parts in range(1, 17) if depth % parts == 0 and depth // parts >= 256
    ) or (depth,)


def _constraints(problem: Gemm, cpu: Cpu, columns: int) -> tuple[Constraint, ...]:
    products = problem.products

    def fits_registers(rows: int, width: int) -> bool:
        vectors = width // cpu.lanes
        # The sums, a row of the weights, and one element of x.
        return products * vectors * (rows + 1) + 1 <= cpu.registers

    def fits_cache(rows: int, width: int, depth: int) -> bool:
        is_read_once = problem.rows is not None and problem.rows <= rows
        return is_read_once or 4 * products * width * depth <= cpu.l2 or width == cpu.lanes

    def splits_pay(rows: int, width: int, splits: int) -> bool:
        tasks = problem.batch * -(-problem.columns // width)
        if splits == 1:
            return True
        return tasks % cpu.threads != 0 and (problem.rows is None or problem.rows >= splits * rows)

    return (
        Constraint("the sums and what is added to them fit the registers", ("rows", "width"), fits_registers),
        Constraint("a block is not wider than the matrix", ("width",), lambda width: width <= columns),
        Constraint("a block of the weight stays in the second cache", ("rows", "width", "depth"), fits_cache),
        Constraint(
            "sums that wait in 'out' are those of one product in f32",
            ("depth",),
            lambda depth: depth == problem.turns or (products == 1 and problem.out_dtype == "float32"),
        ),
        Constraint(
            "rows are split only where blocks do not occupy the cores",
            ("rows", "width", "splits"),
            splits_pay,
        ),
    )


def _microseconds(problem: Gemm, tile: Tile, cpu: Cpu, rows: int) -> float:
    """Time by slots of a fused multiply-add, or by the weight's traffic where that takes longer."""
    blocks = -(-problem.columns // tile.width)
    full, rest = divmod(rows, tile.rows)
    slots = full * _tile_slots(problem, tile, cpu, tile.rows)
    slots += _tile_slots(problem, tile, cpu, rest) if rest else 0
    if not problem.is_constant:  # each task packs its block
        slots += (
            2 * problem.products * problem.turns * (tile.width if problem.is_transposed else tile.vectors)
        )
    # The rows left over all go to the last share.
    share = -(-full // tile.splits) / max(full, 1)
    tasks = -(-problem.batch * blocks * tile.splits // cpu.threads)
    rate = cpu.peak / (2 * cpu.lanes * cpu.threads)
    weights = 4 * problem.products * problem.batch * blocks * tile.width * problem.turns
    return 1e6 * max(tasks * share * slots / rate, weights / cpu.bandwidth) + _LAUNCH_US


def _tile_slots(problem: Gemm, tile: Tile, cpu: Cpu, rows: int) -> float:
    """Slots of one tile of ``rows`` rows over all of k."""
    products, vectors = problem.products, tile.vectors
    sums = products * rows * vectors
    is_near = 4 * products * tile.width * tile.depth <= cpu.l1 // 2
    loads = products * vectors * (1 if is_near else 2) + _BROADCAST_SLOTS * rows
    turn = max(sums, loads, _LATENCY) + _TURN_SLOTS
    waits = problem.turns // tile.depth - 1
    steps = 2 + _STEP_SLOTS * len(problem.epilogue)
    ends = (waits + 1) * _TILE_SLOTS + waits * _WAITING_SLOTS * sums + rows * vectors * steps
    return problem.turns * turn + ends


def _least(problem: Gemm, cpu: Cpu, rows: int) -> float:
    """Microseconds below which no kernel gets."""
    elements = problem.products * problem.batch * problem.columns * problem.turns
    return 1e6 * max(2 * rows * elements / cpu.peak, 4 * elements / cpu.bandwidth)
