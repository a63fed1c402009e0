"""The conformance suite of back ends: what every back end, built in or yours, must pass.

``check_backend(MyBackend())`` is all that a back end needs in a test; ``check_case`` takes one case, for
``pytest.mark.parametrize``. A case is a small function. Where the back end supports all of its ops,

- its results are those of eager torch on fp64 copies, by the numerics rule, with symbolic sizes and with
  fixed ones, at 0, 1, primes and the ends of each size's range, whatever the strides of the arguments;
- they are fresh: no memory is shared with arguments, constants, each other or another call;
- calls from four threads at once do not disturb each other;
- what ``save`` writes is JSON, and the ``load`` beside the executable's class makes the same from it.

Where it does not, ``supports`` gives the reason and raises nothing.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regraft.backends import Backend, LowerOptions
from regraft.ir import (
    OPS,
    Builder,
    DType,
    Expr,
    Function,
    Leaf,
    Op,
    OpDef,
    OpTable,
    Recipe,
    Region,
    Symbol,
    TensorType,
    Value,
    dims,
    input_symbols,
    parse_type,
    print_function,
)
from regraft.runtime import Executable
from regraft.testing import GraphConstants, assert_close, evaluate, random_tensor

__all__ = ["BUILT_IN", "Case", "Sizes", "check_backend", "check_case"]

Sizes = Mapping[str, int]
_THREADS = 4


@dataclass(frozen=True)
class Case:
    """A small function to try a back end on.

    Fields:
        name: what a failure is reported under.
        build: ``build(op, *values)`` writes the function with the op builders and returns its results.
        types: types of the values, as text (``f32[B, 8]``; a name is a size from 0 up) or as types.
        constants: the values, by position, that are constants and not arguments.
        draw: ``draw(sizes, generator)`` makes the arguments; by default they are normally distributed
            numbers and integers from 0 to 2.
        sizes: values of the symbols to run at; by default 0, 1, primes and the ends of their ranges.
        table: the ops that ``build`` may use.
    """

    name: str
    build: Callable[..., Value | Sequence[Value]]
    types: tuple[TensorType | str, ...]
    constants: tuple[int, ...] = ()
    draw: Callable[[Sizes, torch.Generator], list[Tensor]] | None = None
    sizes: tuple[Sizes, ...] = ()
    table: OpTable = field(default_factory=lambda: OPS, repr=False)

    def function(self) -> Function:
        """A new function, with random values for its constants."""
        region = Region()
        builder = Builder(self.table, region)
        generator = torch.Generator().manual_seed(0)
        values: list[Value] = []
        for index, each in enumerate(self.types):
            type = parse_type(each) if isinstance(each, str) else each
            if index in self.constants:
                values.append(builder.constant(Leaf(f"w{index}", type, random_tensor(type, {}, generator))))
            else:
                values.append(region.add_arg(type, f"x{index}"))
        built = self.build(builder, *values)
        builder.create("cf.yield", ([built] if isinstance(built, Value) else list(built),))
        return Function("forward", region, input_symbols(region.args))

    def arguments(self, function: Function, sizes: Sizes, seed: int = 0) -> list[Tensor]:
        """Tensors to call ``function`` with."""
        generator = torch.Generator().manual_seed(seed)
        if self.draw is not None:
            return self.draw(sizes, generator)
        return [random_tensor(value.tensor, sizes, generator) for value in function.args]

    def all_sizes(self, function: Function) -> tuple[Sizes, ...]:
        """The values of the symbols to run at."""
        return self.sizes or tuple(_sizes_of(function.symbols))


def check_backend(backend: Backend, cases: Sequence[Case] | None = None) -> dict[str, str]:
    """Run ``cases`` (the built-in ones when None) and return the reasons for those that were refused.

    Raises:
        AssertionError: the back end breaks its contract; a note names the case.
        NumericsMismatch: its results are wrong.
    """
    cases = BUILT_IN if cases is None else cases
    reasons = {case.name: check_case(backend, case) for case in cases}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    assert len(refused) < len(cases), f"'{backend.name}' supports none of the cases: {refused}"
    _check_refuses_unknown(backend)
    return refused


def check_case(backend: Backend, case: Case) -> str | None:
    """Run one case; the back end's reason when it does not support an op of it.

    Raises:
        AssertionError: the back end breaks its contract; a note names the case.
        NumericsMismatch: its results are wrong.
    """
    try:
        function = case.function()
        reason = _reason(backend, function)
        if reason is None:
            _Trial(backend, case, function).check()
        return reason
    except Exception as error:
        error.add_note(f"in the case '{case.name}' on the back end '{backend.name}'")
        raise


# -- supports ----------------------------------------------------------------------------------


def _reason(backend: Backend, function: Function) -> str | None:
    """The back end's first reason against ``function``; asking must not change it."""
    before = print_function(function)
    reasons = [backend.supports(op) for op in function.body.ops]
    assert print_function(function) == before, "`supports` changed the function"
    for reason in reasons:
        assert reason is None or (isinstance(reason, str) and reason), (
            f"`supports` returned {reason!r}; it must return None or say why not"
        )
    return next((reason for reason in reasons if reason is not None), None)


def _check_refuses_unknown(backend: Backend) -> None:
    """An op that no back end can know gets a reason, not an exception."""
    unknown = OpDef("conformance.unknown", (), lambda _: TensorType(DType.F32, (2,)))
    region = Region()
    op = Builder(OPS.extended([unknown]), region).create("conformance.unknown")
    reason = backend.supports(op)
    assert reason, f"`supports` returned {reason!r} for an op that does not exist; it must say why not"


# -- what must hold where all ops are supported ------------------------------------------------


@dataclass
class _Trial:
    backend: Backend
    case: Case
    function: Function

    def check(self) -> None:
        executable = self._lower(self.function)
        assert executable.backend == self.backend.name, (
            f"the executable says it is of '{executable.backend}', the back end is '{self.backend.name}'"
        )
        runs = [run for run in map(self._run, self.case.all_sizes(self.function)) if run is not None]
        assert runs, "eager torch runs the case at none of its sizes"
        for run in runs:
            _check_fresh(executable, run)
            run.check(executable)
            if run.sizes:
                run.fixed().check(self._lower(_copy(self.function, sizes=run.sizes)))
        self._check_threads(executable, runs)
        self._check_saved(executable, runs)

    def _lower(self, function: Function) -> Executable:
        return self.backend.lower(function, GraphConstants(), LowerOptions(threads=1))

    def _run(self, sizes: Sizes, seed: int = 0) -> _Run | None:
        """The call at ``sizes`` and what eager torch says; None where torch itself refuses the sizes."""
        inputs = self.case.arguments(self.function, sizes, seed)
        try:
            own = evaluate(self.function, inputs, sizes)
        except (RuntimeError, IndexError):
            return None
        expected = evaluate(_copy(self.function, widen=True), [_wide(x) for x in inputs], sizes)
        return _Run(inputs, sizes, [_wide(y) for y in expected], own)

    def _check_threads(self, executable: Executable, runs: Sequence[_Run]) -> None:
        """Calls at once, each with arguments of its own."""
        drawn = [self._run(runs[i % len(runs)].sizes, seed=i) for i in range(_THREADS)]
        own = [run for run in drawn if run is not None]
        barrier, errors = threading.Barrier(len(own)), list[BaseException]()

        def work(run: _Run) -> None:
            try:
                barrier.wait()
                for _ in range(3):
                    run.compare(executable.run(run.inputs, run.sizes))
            except BaseException as error:  # handed to the caller's thread
                errors.append(error)

        threads = [threading.Thread(target=work, args=(run,)) for run in own]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in errors:
            error.add_note(f"{len(own)} threads called the executable at once")
            raise error

    def _check_saved(self, executable: Executable, runs: Sequence[_Run]) -> None:
        folder = _Folder()
        record = executable.save(folder)
        # Standard JSON, in which infinities and NaNs cannot be written.
        record = json.loads(json.dumps(record, allow_nan=False))
        module = importlib.import_module(type(executable).__module__)
        assert hasattr(module, "load"), f"{module.__name__} has no `load` beside {type(executable).__name__}"
        loaded = module.load(record, folder)
        for run in runs:
            run.compare(loaded.run(run.inputs, run.sizes))
        again = loaded.save(_Folder())
        assert json.loads(json.dumps(again)) == record, "what was loaded saves another record"


@dataclass(frozen=True)
class _Run:
    """A call: its arguments, the results in fp64, and those of eager torch."""

    inputs: list[Tensor]
    sizes: Sizes
    expected: list[Tensor]
    own: list[Tensor]

    def fixed(self) -> _Run:
        return _Run(self.inputs, {}, self.expected, self.own)

    def compare(self, results: Sequence[Tensor]) -> None:
        shown = dict(self.sizes) or "fixed sizes"
        try:
            assert_close(results, self.expected, self.own, reassociates=True)
        except Exception as error:
            error.add_note(f"at {shown}")
            raise

    def check(self, executable: Executable) -> None:
        """Arguments of any strides, with gradients asked for or not, give the results."""
        self.compare(executable.run(self.inputs, self.sizes))
        strided = [_strided(x) for x in self.inputs]
        self.compare(executable.run(strided, self.sizes))
        tracked = [x.detach().requires_grad_(x.is_floating_point()) for x in self.inputs]
        with torch.no_grad():  # as compiled models do
            self.compare(executable.run(tracked, self.sizes))


def _check_fresh(executable: Executable, run: _Run) -> None:
    inputs = [x.clone() for x in run.inputs]
    first = executable.run(inputs, run.sizes)
    run.compare(first)
    second = executable.run(inputs, run.sizes)
    named = [(f"argument {i}", x) for i, x in enumerate(inputs)]
    named += [(f"result {i}", y) for i, y in enumerate(first)]
    named += [(f"result {i} of the next call", y) for i, y in enumerate(second)]
    for index, (name, tensor) in enumerate(named[len(inputs) :], len(inputs)):
        for other, earlier in named[:index]:
            assert not _overlap(tensor, earlier), f"{name} shares its memory with {other}"
    for x, before in zip(inputs, run.inputs, strict=True):
        assert torch.equal(x.nan_to_num(), before.nan_to_num()), "a call wrote to its arguments"
    for result in (*first, *second):
        result.fill_(1)  # whoever looks at this memory again will compute something else
    try:
        run.compare(executable.run(inputs, run.sizes))
    except Exception as error:
        error.add_note("earlier results, written to by the caller, share memory with a constant or a cache")
        raise


def _overlap(a: Tensor, b: Tensor) -> bool:
    if not a.numel() or not b.numel():
        return False
    (start, end), (other, other_end) = _extent(a), _extent(b)
    return start < other_end and other < end


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The addresses of the first element and past the last one."""
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()


def _strided(tensor: Tensor) -> Tensor:
    """The same values with the axes stored in the opposite order, and gaps between elements."""
    axes = tuple(reversed(range(tensor.dim())))
    stored = torch.stack([tensor.permute(axes)] * 2, dim=-1)
    return stored[..., 0].permute(axes)


# -- the reference -----------------------------------------------------------------------------


class _Folder:
    """The files of an artefact, in memory."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.files: dict[str, bytes] = {}

    def add_tensor(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)

    def add_file(self, name: str, content: bytes) -> None:
        self.files[name] = content

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name].clone()

    def file(self, name: str) -> bytes:
        return self.files[name]

    def library(self, domain: str) -> str:
        raise AssertionError(f"no case has operators of the domain {domain}")


def _copy(function: Function, *, sizes: Sizes | None = None, widen: bool = False) -> Function:
    """A copy with symbols replaced by ``sizes``, or with f64 for every float type."""
    region = _Copier(sizes or {}, widen).region(function.body)
    return Function(function.name, region, () if sizes else function.symbols)


@dataclass
class _Copier:
    sizes: Sizes
    widen: bool

    def region(self, old: Region) -> Region:
        new = Region([self._attr(arg.type) for arg in old.args], old.symbols)
        values: dict[Value, Value] = dict(zip(old.args, new.args, strict=True))
        for op in old.ops:
            copy = new.append(self._op(op, values))
            values |= dict(zip(op.results, copy.results, strict=True))
        return new

    def _op(self, op: Op, values: Mapping[Value, Value]) -> Op:
        return Op(
            op.definition,
            [values[v] for v in op.operands],
            op.segments,
            {name: self._attr(value) for name, value in op.attrs.items()},
            [self._attr(result.type) for result in op.results],
            regions=[self.region(region) for region in op.regions],
            symbols=op.symbols,
            loc=op.loc,
        )

    def _attr(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._attr(each) for each in value)
        if isinstance(value, TensorType):
            return TensorType(self._attr(value.dtype), self._attr(value.shape), value.device)
        if isinstance(value, Expr):
            # A symbol that an op defines is not among the sizes and stays.
            known = {s: self.sizes[s.name] for s in dims.symbols_of(value) if s.name in self.sizes}
            return dims.substitute(value, known)
        if isinstance(value, DType):
            return DType.F64 if self.widen and value.is_float else value
        if isinstance(value, (Leaf, Recipe)) and self.widen and value.type.dtype.is_float:
            return Leaf(value.name, value.type.with_dtype(DType.F64), GraphConstants().tensor(value).double())
        return value


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _sizes_of(symbols: Sequence[Symbol]) -> Iterator[dict[str, int]]:
    """0, 1, primes and the ends of the ranges (short ones, to keep tests small), as the ranges allow."""
    if not symbols:
        yield {}
        return
    seen = list[dict[str, int]]()
    for row in ((0, 0), (1, 1), (7, 2), (13, 5), (0, 3), (None, None)):
        values = {s.name: _allowed(s, row[i % 2]) for i, s in enumerate(symbols)}
        if values not in seen:
            seen.append(values)
            yield values


def _allowed(symbol: Symbol, wanted: int | None) -> int:
    """The value of ``symbol`` nearest to ``wanted``; None asks for the end of a short range."""
    high = symbol.hi if symbol.hi is not None and symbol.hi <= 64 else max(symbol.lo, 17)
    value = high if wanted is None else min(max(wanted, symbol.lo), high)
    return max(value // symbol.divisor * symbol.divisor, -(-symbol.lo // symbol.divisor) * symbol.divisor)


# -- the built-in cases ------------------------------------------------------------------------

_N = dims.symbol("n", 2, 9)
_M = dims.symbol("m", 0, 32, 4)
_ANY, _AT_LEAST_2, _FOURS = (TensorType(DType.F32, (n, 8)) for n in (dims.symbol("b", 0), _N, _M))


def _attention(op: Any, q: Value, k: Value, v: Value) -> Value:
    return op.aten.scaled_dot_product_attention(q, k, v, is_causal=True)


def _heads(op: Any, x: Value, weight: Value) -> Value:
    """A projection split into heads and put together again."""
    flat = op.aten.linear(x, weight, None)
    batch, length, width = flat.tensor.shape
    heads = op.aten.permute(op.aten.view(flat, (batch, length, 2, width // 2)), (0, 2, 1, 3))
    return op.aten.view(op.aten.permute(heads, (0, 2, 1, 3)), (batch * length, width))


def _mlp(op: Any, x: Value, norm: Value, bias: Value, up: Value, down: Value) -> Value:
    hidden = op.aten.relu(op.aten.linear(op.aten.layer_norm(x, (8,), norm, bias), up, None))
    return op.aten.add.Tensor(x, op.aten.linear(hidden, down, None))


def _branch(op: Any, pred: Value, x: Value) -> Value:
    def arm(name: str) -> Region:
        region = Region([x.type])
        builder = Builder(op.table, region)
        builder.create("cf.yield", ([builder.call(name, (region.args[0],), {})],))
        return region

    return op.create("cf.cond", (pred, [x]), regions=[arm("aten.relu"), arm("aten.neg")]).result


#: Small functions over common ops, for back ends that have no cases of their own.
BUILT_IN: tuple[Case, ...] = (
    Case("add", lambda op, x, y: op.aten.add.Tensor(x, y), ("f32[B, 8]", "f32[8]")),
    Case("add bf16", lambda op, x, y: op.aten.add.Tensor(x, y), ("bf16[B, 8]", "bf16[8]")),
    Case("add i64", lambda op, x: op.aten.add.Tensor(x, x), ("i64[B, 3]",)),
    Case("scale f64", lambda op, x: op.aten.mul.Scalar(x, 1.5), ("f64[B, T]",)),
    Case("scale by infinity", lambda op, x: op.aten.mul.Scalar(x, float("-inf")), ("f32[B]",)),
    Case("of rank 0", lambda op, x: op.aten.exp(x), ("f32[]",)),
    Case("mask", lambda op, m, x, y: op.aten.where.self(m, x, y), ("bool[B, 1]", "f32[B, 4]", "f32[4]")),
    Case("cast", lambda op, x: op.aten._to_copy(x, dtype=DType.F32), ("i64[B, 3]",)),
    Case("sum", lambda op, x: op.aten.sum.dim_IntList(x, (1,), True), ("f32[B, T, 4]",)),
    Case("softmax", lambda op, x: op.aten.softmax.int(x, 1), ("f32[B, 5]",)),
    Case("linear", lambda op, *xs: op.aten.linear(*xs), ("f32[B, T, 4]", "f32[3, 4]", "f32[3]"), (1, 2)),
    Case("matmul", lambda op, x, y: op.aten.matmul(x, y), ("f32[B, 3, T]", "f32[B, T, 5]")),
    Case("mlp", _mlp, ("f32[B, 8]", "f32[8]", "f32[8]", "f32[16, 8]", "f32[8, 16]"), (1, 2, 3, 4)),
    Case("heads", _heads, ("f32[B, T, 4]", "f32[6, 4]"), (1,)),
    Case("attention", _attention, ("f32[2, 3, 7, 8]",) * 3),
    Case("embedding", lambda op, w, i: op.aten.embedding(w, i), ("f32[3, 8]", "i64[B, T]"), (0,)),
    Case("a range of sizes", lambda op, x: op.aten.slice.Tensor(x, 0, 1, _N), (_AT_LEAST_2,)),
    Case("multiples of 4", lambda op, x: op.aten.view(x, (dims.floordiv(_M, 4), 4, 8)), (_FOURS,)),
    Case("expand", lambda op, x: op.aten.expand(x, (3, 5)), ("f32[1, 5]",)),
    Case("cat", lambda op, x, y: op.aten.cat((x, y), 0), ("f32[B, 2]", "f32[T, 2]")),
    Case("branch", _branch, ("bool[]", "f32[B, 4]")),
    # Results that an executable might return without making them.
    Case("its argument", lambda op, x: x, ("f32[B, 8]",)),
    Case("a view of its argument", lambda op, x: op.aten.permute(x, (1, 0)), (_ANY,)),
    Case("a constant", lambda op, x, w: (op.aten.neg(x), w), ("f32[B]", "f32[3]"), (1,)),
    Case("a view of a constant", lambda op, w: op.aten.permute(w, (1, 0)), ("f32[3, 4]",), (0,)),
    Case("one value twice", lambda op, x: (op.aten.neg(x),) * 2, ("f32[B]",)),
    Case("a value and its view", lambda op, x: _with_view(op, op.aten.neg(x)), ("f32[B, 2]",)),
)


def _with_view(op: Any, value: Value) -> tuple[Value, Value]:
    return value, op.aten.permute(value, (1, 0))
