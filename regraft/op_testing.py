"""Tests derived from a user's op and a few examples of its use; ``regraft.testing`` is their public face."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from regraft.backends import BUILTIN, Backend, LowerOptions, backend
from regraft.errors import BackendError, NumericsMismatch
from regraft.graphs import GraphConstants, build_example, evaluate, random_tensor, region_in_double
from regraft.ir import (
    OPS,
    Arity,
    CallSite,
    Dim,
    DType,
    Example,
    Function,
    Module,
    OpDef,
    OpTable,
    TensorType,
    decompose,
    dims,
)
from regraft.numerics import assert_close
from regraft.runtime import DTYPE_NAMES, TORCH_DTYPES, torch_op

Sizes = Mapping[str, int]
_SIZES = (5, 2, 1, 0)
"""The values of the first symbol of an example, one run each; the next symbols get larger ones."""


@dataclass(frozen=True)
class OpCase:
    """One derived test; ``run()`` raises AssertionError or NumericsMismatch when it fails.

    It returns the reason of a back end that does not take the example, else None.
    """

    id: str
    run: Callable[[], str | None]


def check_op(
    op: OpDef, samples: Sequence[Example], *, ops: Sequence[OpDef] = (), backends: Sequence[Backend] = ()
) -> dict[str, str]:
    """Run every test that ``op_cases`` derives; the reasons for those that a back end refused.

    Raises:
        AssertionError: the definition breaks its contract; a note names the case.
        NumericsMismatch: a decomposition or a lowering computes something else than the op.
    """
    reasons: dict[str, str] = {}
    for case in op_cases(op, samples, ops=ops, backends=backends):
        try:
            reason = case.run()
        except (AssertionError, NumericsMismatch) as error:
            error.add_note(f"in the case {case.id}")
            raise
        if reason is not None:
            reasons[case.id] = reason
    return reasons


def op_cases(
    op: OpDef, samples: Sequence[Example], *, ops: Sequence[OpDef] = (), backends: Sequence[Backend] = ()
) -> list[OpCase]:
    """The tests of an op that follow from ``samples``, which write it: ``lambda op, x: op.mylib.fancy(x)``.

    At several sizes, against what eager torch computes: its type rule, what its fake function says, its
    decomposition, and its lowering for each back end. ``ops`` are further ones that the samples or the
    decomposition write, ``backends`` those of the lowerings that are not regraft's.
    """
    assert samples, f"{op.name} has no samples, so nothing shows what it computes"
    lowered = dict.fromkeys([*op.lowerings, *(["ort"] if op.onnx is not None else [])])
    known = {each.name: each for each in backends}
    cases: list[OpCase] = []
    for index, sample in enumerate(samples):
        trial = _Trial(op, sample, tuple(ops))
        checks: dict[str, Callable[[], str | None]] = {"types": trial.check_types, "pure": trial.check_pure}
        if op.decompose is not None:
            checks["decomposition"] = trial.check_decomposition
        for name in lowered:
            assert name in known or name in BUILTIN, (
                f"{op.name} has a lowering for '{name}', no back end of regraft's; pass that in backends="
            )
            target = known[name] if name in known else backend(name)
            checks[f"lowering-{name}"] = lambda target=target, trial=trial: trial.check_lowering(target)
        cases += [OpCase(f"{op.name}-sample{index}-{name}", check) for name, check in checks.items()]
    return cases


@dataclass(frozen=True)
class _Trial:
    op: OpDef
    sample: Example
    others: tuple[OpDef, ...]

    def check_types(self) -> None:
        """The type rule and the fake function say what eager gives; an op without a rule has the latter."""
        for run in self.runs():
            found = [_described(tensor) for tensor in run.results]
            for source, types in self.promises(run.sizes):
                promised = [_described_type(_at(type, run.sizes)) for type in types]
                assert promised == found, (
                    f"{source} of {self.op.name} promises {promised}, and the op gives {found} at {run.shown}"
                )

    def promises(self, sizes: Sizes) -> Iterator[tuple[str, Sequence[TensorType]]]:
        """Who says what the types of the results are."""
        if not self.op.opaque:
            yield "the type rule", _results(build_example(self.sample, self.table))
            yield "the type rule at fixed sizes", _results(self.module(sizes))
        if torch_op(self.op.name) is not None:
            yield "the fake function", _results(self.module(sizes, by_fake=True))

    def check_pure(self) -> None:
        """The op leaves its arguments alone, and computes the same twice."""
        for run in self.runs():
            again = [x.clone() for x in run.inputs]
            second = evaluate(run.function, again, {})
            for x, before in zip(again, run.inputs, strict=True):
                assert _same(x, before), f"{self.op.name} wrote to its arguments at {run.shown}"
            for a, b in zip(second, run.results, strict=True):
                assert _same(a, b), f"{self.op.name} computes something else the second time at {run.shown}"

    def check_decomposition(self) -> None:
        """The decomposition has the op's types and values."""
        for run in self.runs():
            module = self.module(run.sizes)
            name = f"the decomposition of {self.op.name}"
            written = [op for op in module.main.walk() if op.name == self.op.name]
            assert written, f"the sample does not write {self.op.name}"
            for op in written:
                assert decompose(op, self.table) is not None, f"{name} has nothing for this use of it"
            run.compare(evaluate(module.main, run.inputs, {}), name)
            if run.exact is not None:
                run.compare_exact(evaluate(_in_double(module.main), _wide(run.inputs), {}), name)

    def check_lowering(self, target: Backend) -> str | None:
        """The back end computes what eager does; its reason when it does not take the sample."""
        for run in self.runs():
            for op in run.function.body.ops:
                reason = target.supports(op)
                if reason is not None:
                    return reason
            executable = target.lower(run.function, GraphConstants(), LowerOptions(threads=1))
            run.compare(executable.run(run.inputs, {}), f"the lowering of {self.op.name} for {target.name}")
        return None

    @property
    def table(self) -> OpTable:
        return OPS.extended([self.op, *self.others])

    def runs(self) -> Iterator[_Run]:
        """The sample at several sizes, its arguments drawn, as eager torch computes it."""
        for sizes in _all_sizes(self.sample):
            function = self.module(sizes).main
            generator = torch.Generator().manual_seed(sum(sizes.values()))
            inputs = [random_tensor(arg.tensor, {}, generator) for arg in function.args]
            try:
                results = evaluate(function, [x.clone() for x in inputs], {})
            except BackendError as error:  # its types are not those that it promises
                raise AssertionError(str(error)) from error
            yield _Run(function, inputs, results, _in_fp64(function, inputs), sizes)

    def module(self, sizes: Sizes, *, by_fake: bool = False) -> Module:
        """The sample at fixed sizes; its types are by the rule, or by the fake function."""
        fixed = replace(self.sample, inputs=tuple(_at(type, sizes) for type in self.sample.types))
        by_fake = by_fake or self.op.opaque
        op = replace(self.op, opaque=False, infer=_by_fake(self.op.name)) if by_fake else self.op
        return build_example(fixed, OPS.extended([op, *self.others]))


@dataclass(frozen=True)
class _Run:
    """A sample at fixed sizes, and what eager torch makes of it.

    Fields:
        exact: the results in fp64; None for an op that has no kernel for that.
    """

    function: Function
    inputs: list[Tensor]
    results: list[Tensor]
    exact: list[Tensor] | None
    sizes: Sizes

    @property
    def shown(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.sizes.items()) or "its sizes"

    def compare(self, results: Sequence[Tensor], what: str) -> None:
        assert list(map(_described, results)) == list(map(_described, self.results)), (
            f"{what} gives {list(map(_described, results))}, the op {list(map(_described, self.results))}"
        )
        expected = _wide(self.results) if self.exact is None else self.exact
        with _noted(f"{what} at {self.shown}"):
            assert_close(results, expected, self.results, reassociates=True)

    def compare_exact(self, results: Sequence[Tensor], what: str) -> None:
        """``results`` are the same computation in fp64."""
        with _noted(f"{what} in fp64 at {self.shown}"):
            assert_close(results, self.exact)


@contextmanager
def _noted(note: str) -> Iterator[None]:
    try:
        yield
    except NumericsMismatch as error:
        error.add_note(note)
        raise


def _in_fp64(function: Function, inputs: Sequence[Tensor]) -> list[Tensor] | None:
    """What eager torch makes of ``inputs`` in fp64; None where the op has no kernel for that.

    Only the op that is tested, a user's, can be without one, or give another type than it was asked for.
    """
    try:
        return evaluate(_in_double(function), _wide([x.clone() for x in inputs]), {})
    except (RuntimeError, BackendError):
        return None


def _in_double(function: Function) -> Function:
    return Function(function.name, region_in_double(function.body), function.symbols)


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.double() if x.is_floating_point() else x for x in tensors]


def _results(module: Module) -> list[TensorType]:
    return [result.tensor for result in module.main.results]


def _all_sizes(sample: Example) -> Iterator[Sizes]:
    """Values of the sample's symbols, several of them."""
    names = sorted({s.name for type in sample.types for d in type.shape for s in dims.symbols_of(d)})
    for base in _SIZES if names else (0,):
        yield {name: min(base + 2 * i, 1) if base < 2 else base + 2 * i for i, name in enumerate(names)}


def _at(type: TensorType, sizes: Sizes) -> TensorType:
    return type.with_shape(tuple(_size(dim, sizes) for dim in type.shape))


def _size(dim: Dim, sizes: Sizes) -> Dim:
    return dims.substitute(dim, {s: sizes[s.name] for s in dims.symbols_of(dim) if s.name in sizes})


def _described(tensor: Tensor) -> str:
    return f"{DTYPE_NAMES[tensor.dtype]}{list(tensor.shape)}"


def _described_type(type: TensorType) -> str:
    return f"{type.dtype.value}[{', '.join(map(str, type.shape))}]"


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def _by_fake(name: str) -> Callable[[CallSite], Sequence[TensorType]]:
    """A type rule for fixed sizes: what torch's fake function of the op says."""

    def infer(site: CallSite) -> Sequence[TensorType]:
        overload = torch_op(name)
        if overload is None:
            raise TypeError(f"{name} has no type rule, and torch has no op of this name: give OpDef.infer")
        with FakeTensorMode():
            found = overload(**_fake_arguments(site))
        tensors = found if isinstance(found, (tuple, list)) else (found,)
        return [TensorType(DType(DTYPE_NAMES[t.dtype]), tuple(t.shape)) for t in tensors]

    return infer


def _fake_arguments(site: CallSite) -> dict[str, Any]:
    readers: Mapping[Arity, Callable[[str], Any]] = {
        Arity.SINGLE: site.type,
        Arity.OPTIONAL: site.optional,
        Arity.VARIADIC: site.variadic,
        Arity.OPTIONAL_LIST: site.optional_list,
    }
    operands = {o.name: _fake(readers[o.arity](o.name)) for o in site.definition.operands}
    return operands | {name: _fake(value) for name, value in site.attrs.items()}


def _fake(value: Any) -> Any:
    """A torch value for a type or an attribute, to be made under a fake mode."""
    if isinstance(value, tuple):
        return [_fake(each) for each in value]
    if isinstance(value, TensorType):
        return torch.empty([int(str(d)) for d in value.shape], dtype=TORCH_DTYPES[value.dtype.value])
    return TORCH_DTYPES[value.value] if isinstance(value, DType) else value
