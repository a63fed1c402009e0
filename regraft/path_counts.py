"""Which paths of a model ran: a pass that counts the arms of conditions and the trips of loops.

The counts are state of the compiled function, a vector with an element for each path, which every region
adds to as it runs. So they need nothing of a back end: a compiled model adds them up from call to call, and
an exported file takes them as an input and gives the new ones as an output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regraft.errors import RewriteError
from regraft.ir import (
    Builder,
    DType,
    Function,
    Leaf,
    Module,
    Op,
    OpTable,
    Pass,
    PassContext,
    Recipe,
    Region,
    Rewriter,
    TensorType,
    Value,
    clone_region,
    path_of,
    size_names,
)

#: The name of the counts among the inputs of a file; ``<name>_out`` is the output with the new ones.
INPUT = "path_counts"

#: The counts among the state; the colon tells them from tensors of the model.
_STATE = "paths:counts"

_COUNTED = {"cf.cond": ("predicate true", "predicate false"), "cf.while": ("", "trips")}


@dataclass(frozen=True)
class Path:
    """A region that data may or may not enter.

    Fields:
        place: the region in the graph that was compiled, such as ``forward.body.op[12].region[0]``.
        what: which one it is of its op.
        location: the line of the model that the op comes from.
    """

    place: str
    what: str
    location: str

    def __str__(self) -> str:
        return f"{self.location}: {self.what} ({self.place})"


class PathCounts:
    """Counts which arms of conditions, and how many trips of loops, run in the calls of a compiled model.

    It is a pass; give ``passes`` to ``regraft.compile`` or ``regraft.export_onnx``, an object to each::

        paths = PathCounts()
        compiled = regraft.compile(model, (x,), passes=paths.passes)
        for x in inputs:
            assert_close(compiled(x), ...)
        paths.assert_all_ran()

    Paths are those of the graph that runs, after all rewrites: an arm that the compiler proved away is none.
    A file has the input ``path_counts`` (i64, ``len(paths.paths)`` zeros at first) and the output
    ``path_counts_out``, which ``add`` takes. Counting works with every option of a compile but
    ``verify="each"``.
    """

    name = "path-counts"
    stage = "legalize"
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._paths: tuple[Path, ...] | None = None
        self._counts = torch.zeros(0, dtype=torch.int64)

    @property
    def passes(self) -> tuple[tuple[str, Pass], ...]:
        """What ``compile`` and ``export_onnx`` take as ``passes=``."""
        return ((self.stage, self),)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All paths, in the order of the graph.

        Raises:
            RewriteError: no compile has used this object.
        """
        if self._paths is None:
            raise RewriteError("these PathCounts have seen no compile; give passes=paths.passes to one")
        return self._paths

    @property
    def counts(self) -> dict[Path, int]:
        """How often each path ran."""
        return dict(zip(self.paths, self._counts.tolist(), strict=True))

    @property
    def missed(self) -> tuple[Path, ...]:
        """The paths that never ran."""
        return tuple(path for path, count in self.counts.items() if not count)

    def add(self, counts: Any) -> None:
        """Add the counts that an exported file gave as ``path_counts_out``, from zeros."""
        given = torch.as_tensor(counts, dtype=torch.int64)
        if given.shape != self._counts.shape or not len(self.paths):
            raise RewriteError(
                f"the counts have the shape {list(given.shape)}, the model has {len(self.paths)} paths"
            )
        self._counts += given

    def reset(self) -> None:
        """Count from zero again."""
        self._counts.zero_()

    def assert_all_ran(self) -> None:
        """Fail when a path never ran.

        Raises:
            AssertionError: some did not; each is named with its source line.
        """
        lines = [f"  {path}" for path in self.missed]
        assert not lines, "\n".join([f"{len(lines)} of {len(self.paths)} paths never ran:", *lines])

    def run(self, module: Module, context: PassContext) -> bool:
        """Add the counts to the main function of ``module``; whether there are any.

        Raises:
            RewriteError: the object counts another compile already, or an op holds a condition or a loop in
                a region of its own kind.
        """
        if self._paths is not None:
            raise RewriteError("these PathCounts count another compile; make an object for each")
        function = module.main
        self._paths = tuple(_paths(function.body, function.name))
        self._counts = torch.zeros(len(self._paths), dtype=torch.int64)
        if not self._paths:
            return False
        type = TensorType(DType.I64, (len(self._paths),))
        _Counting(context.rewriter(self.name), context.table, type).function(function, self._counts)
        return True


def _paths(region: Region, function: str) -> Iterator[Path]:
    """The paths of ``region``, in the order of their numbers."""
    for op in region.ops:
        what = _COUNTED.get(op.name, ())
        for number, (inner, each) in enumerate(zip(op.regions, what, strict=False)):
            if each:
                yield Path(f"{path_of(op, function)}.region[{number}]", each, str(op.loc))
            yield from _paths(inner, function)


def _size(region: Region) -> int:
    """The number of paths in ``region``."""
    counted = [op for op in region.walk() if op.name in _COUNTED]
    return sum(len(list(filter(None, _COUNTED[op.name]))) for op in counted)


class _Counting:
    """Builds conditions and loops anew, so that the counts go in and come out."""

    def __init__(self, rewriter: Rewriter, table: OpTable, type: TensorType) -> None:
        self.rewriter = rewriter
        self.table = table
        self.type = type
        self.taken: set[str] = set()

    def function(self, function: Function, counts: torch.Tensor) -> None:
        """Make ``counts`` state of ``function``, and the new counts the last result that it computes."""
        body = function.body
        self.taken = size_names(body)
        argument = body.add_arg(self.type, INPUT)
        final = self.region(body, argument, 0)
        # Arguments that are returned as they are come behind what is computed.
        returned = 0 if function.signature is None else len(function.signature.returned)
        position = len(body.results) - returned
        self.end(body, [*body.results[:position], final, *body.results[position:]])
        function.state = (*function.state, Leaf(_STATE, self.type, counts, is_added=True))
        function.aliases = {**function.aliases, position: argument.index}

    def region(self, region: Region, counts: Value, number: int) -> Value:
        """The counts after the ops of ``region``, whose first path has the ``number``."""
        for op in list(region.ops):
            size = sum(map(_size, op.regions)) + len(list(filter(None, _COUNTED.get(op.name, ()))))
            if size and op.name not in _COUNTED:
                raise RewriteError(f"the paths in a region of {op.name} cannot be counted")
            if size:
                counts = (
                    self.cond(op, counts, number) if op.name == "cf.cond" else self.loop(op, counts, number)
                )
            number += size
        return counts

    def cond(self, op: Op, counts: Value, number: int) -> Value:
        arms: list[Region] = []
        for region in op.regions:
            arms.append(self.entered(region, number))
            number += 1 + _size(region)
        return self.replaced(op, (op.operand("pred"), (*op.variadic("operands"), counts)), arms)

    def loop(self, op: Op, counts: Value, number: int) -> Value:
        test, body = op.regions
        trip = self.entered(body, number + _size(test))
        if _size(test):
            return self.rotated(op, counts, number, trip)
        still = clone_region(test)
        still.add_arg(self.type, INPUT)
        return self.replaced(op, ((*op.operands, counts),), [still, trip])

    def rotated(self, op: Op, counts: Value, number: int, trip: Region) -> Value:
        """A loop whose test holds paths: a test yields its bool alone, so it moves before and into the trip.

        Raises:
            RewriteError: no carried value has a size that the test has a name for.
        """
        tested = clone_region(op.regions[0])
        found = self.region(tested, tested.add_arg(self.type, INPUT), number)
        self.end(tested, [*tested.results, found])
        go, counts = self.rewriter.before(op).copy(tested, (*op.operands, counts), self.taken)
        trip.add_arg(go.type, "go")
        again, found = Builder(self.table, trip, trip.terminator).copy(tested, trip.results, self.taken)
        self.end(trip, [*trip.results[:-1], found, again])
        still = Region(trip.arg_types, trip.symbols)
        self.rewriter.at_end(still).create("cf.yield", ((still.args[-1],),))
        return self.replaced(op, ((*op.operands, counts, go),), [still, trip])

    def entered(self, region: Region, number: int) -> Region:
        """A copy of ``region`` that takes the counts last, adds to ``number``, and yields them last."""
        copy = clone_region(region)
        argument = copy.add_arg(self.type, INPUT)
        builder = Builder(self.table, copy, next(copy.ops))
        one = builder.constant(_one(self.table, self.type, number))
        counts = self.region(copy, builder.aten.add.Tensor(argument, one), number + 1)
        self.end(copy, [*copy.results, counts])
        return copy

    def end(self, region: Region, values: Sequence[Value]) -> None:
        """Make ``values`` what ``region`` yields."""
        old = region.terminator
        self.rewriter.at_end(region, old.loc).create("cf.yield", (tuple(values),))
        self.rewriter.erase(old)

    def replaced(self, op: Op, args: Sequence[Any], regions: Sequence[Region]) -> Value:
        """Put ``op`` over other arguments and regions in its place; the counts, its first added result."""
        added = regions[-1].result_types[len(op.results) :]
        types = [*(result.type for result in op.results), *added]
        made = self.rewriter.before(op).create(
            op.name, args, result_types=types, regions=regions, symbols=op.symbols
        )
        own = len(op.results)
        self.rewriter.replace(op, made.results[:own])
        return made.results[own]


def _one(table: OpTable, type: TensorType, number: int) -> Recipe:
    """The vector that is 1 at ``number`` and 0 elsewhere."""
    body = Region()
    builder = Builder(table, body)
    places = builder.aten.arange.start_step(0, type.shape[0], 1, dtype=DType.I64)
    found = builder.aten._to_copy(builder.aten.eq.Scalar(places, number), dtype=DType.I64)
    builder.create("cf.yield", ((found,),))
    return Recipe(body)
