"""The conformance suite: the built-in back ends pass it, and every way to be wrong fails it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.backends import LowerOptions, backend
from regraft.backends.eager import run as eager_run
from regraft.conformance import BUILT_IN, Case, check_backend, check_case
from regraft.errors import BackendError, NumericsMismatch
from regraft.ir import Function, Op
from tests.backends.sample_cases import sample_cases

SAMPLES = [case for _, case in sample_cases()]
#: In ORT these have no kernel; tests/backends/test_ort_ops.py says which and why.
OFTEN_REFUSED = ("no f64 kernel", "an adaptive pool", "recurrent layers in f32 only")


@pytest.mark.conformance
@pytest.mark.parametrize("case", SAMPLES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["eager", "ort"])
def test_sample(name: str, case: Case) -> None:
    reason = check_case(backend(name), case)
    assert reason is None or (name == "ort" and any(text in reason for text in OFTEN_REFUSED))


@pytest.mark.parametrize("name", ["eager", "ort"])
def test_built_in_cases(name: str) -> None:
    assert check_backend(backend(name)) == {}


# -- back ends that are wrong ------------------------------------------------------------------

Runner = Callable[[Any, Sequence[Tensor], Mapping[str, int]], list[Tensor]]


class Executable:
    """Eager's executable, run by ``runner``."""

    backend = "wrong"

    def __init__(self, inner: Any, runner: Runner) -> None:
        self.inner = inner
        self.runner = runner
        self.memory: Any = None

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        return self.runner(self, inputs, sizes)

    def save(self, writer: Any) -> dict[str, Any]:
        return self.inner.save(writer)


def right(executable: Any, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
    return executable.inner.run(inputs, sizes)


def load(record: Any, reader: Any) -> Executable:
    return Executable(eager_run.load(record, reader), right)


class Wrong:
    """A back end whose executables run by ``runner``."""

    name = "wrong"

    def __init__(self, runner: Runner = right) -> None:
        self.runner = runner

    def supports(self, op: Op) -> Any:
        return backend("eager").supports(op)

    def lower(self, function: Function, store: Any, options: LowerOptions) -> Any:
        return Executable(backend("eager").lower(function, store, options), self.runner)


EXP = Case("exp", lambda op, x: op.aten.exp(x), ("f32[B, 4]",))
SAME = Case("same", lambda op, x: x, ("f32[B, 4]",))
SCALED = Case("scaled", lambda op, x, w: op.aten.mul.Tensor(x, w), ("f32[B, 4]", "f32[4]"), (1,))
CONSTANT = Case("constant", lambda op, x, w: (op.aten.neg(x), w), ("f32[B]", "f32[4]"), (1,))
TWICE = Case("twice", lambda op, x: (op.aten.neg(x),) * 2, ("f32[B]",))


def test_the_wrapper_is_right() -> None:
    for case in (EXP, SAME, SCALED, CONSTANT, TWICE):
        assert check_case(Wrong(), case) is None


def inaccurate(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    return [y * 1.001 for y in right(executable, inputs, sizes)]


def wrong_at_seven(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    return [y + (len(y) == 7) for y in right(executable, inputs, sizes)]


def wrong_dtype(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    return [y.double() for y in right(executable, inputs, sizes)]


def wrong_shape(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    return [y.t() for y in right(executable, inputs, sizes)]


def drops_a_result(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    return right(executable, inputs, sizes)[:-1]


def reads_row_major(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    rows = [x.as_strided(x.shape, torch.empty(x.shape).stride()) for x in inputs]
    return right(executable, rows, sizes)


def needs_no_gradients(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    return right(executable, [torch.from_dlpack(x) for x in inputs], sizes)


def needs_sizes(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    return [y[: sizes["B"]] for y in right(executable, inputs, sizes)]


@pytest.mark.parametrize(
    ("runner", "error", "expected"),
    [
        (inaccurate, NumericsMismatch, "a result is wrong"),
        (wrong_at_seven, NumericsMismatch, "at {'B': 7}"),
        (wrong_dtype, NumericsMismatch, "the dtype is torch.float64, eager's is torch.float32"),
        (wrong_shape, NumericsMismatch, "the shape is [4, 0], expected [0, 4]"),
        (drops_a_result, NumericsMismatch, "the numbers of outputs differ"),
        (reads_row_major, NumericsMismatch, "a result is wrong"),
        (needs_no_gradients, BufferError, "require gradient"),
        (needs_sizes, KeyError, "in the case 'exp' on the back end 'wrong'"),
    ],
)
def test_wrong_results(runner: Runner, error: type[Exception], expected: str) -> None:
    with pytest.raises(error) as raised:
        check_case(Wrong(runner), EXP)
    assert expected in "\n".join([str(raised.value), *raised.value.__notes__])


def returns_its_argument(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    return [inputs[0]]


def returns_a_view(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    return [inputs[0].flatten().view(inputs[0].shape)]


def returns_one_twice(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    return right(executable, inputs, sizes)[:1] * 2


def reuses_memory(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    results = right(executable, inputs, sizes)
    if executable.memory is None:
        executable.memory = {}
    kept = executable.memory.setdefault(len(inputs[0]), results)
    return [old.copy_(new) for old, new in zip(kept, results, strict=True)]


def returns_its_constant(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    first, constant = right(executable, inputs, sizes)
    executable.memory = constant if executable.memory is None else executable.memory
    return [first, executable.memory]


def writes_to_arguments(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    results = right(executable, inputs, sizes)
    for x in inputs:
        x.detach().zero_()
    return results


@pytest.mark.parametrize(
    ("runner", "case", "expected"),
    [
        (returns_its_argument, SAME, "result 0 shares its memory with argument 0"),
        (returns_a_view, SAME, "result 0 shares its memory with argument 0"),
        (returns_one_twice, TWICE, "result 1 shares its memory with result 0"),
        (reuses_memory, EXP, "result 0 of the next call shares its memory with result 0"),
        (returns_its_constant, CONSTANT, "result 1 of the next call shares its memory with result 1"),
        (writes_to_arguments, EXP, "a call wrote to its arguments"),
    ],
)
def test_results_that_are_not_fresh(runner: Runner, case: Case, expected: str) -> None:
    with pytest.raises((AssertionError, NumericsMismatch)) as raised:
        check_case(Wrong(runner), case)
    assert expected in str(raised.value)


def caches_by_value(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    """Hands out new memory each time, copied from memory that the caller of the first call has."""
    found = executable.memory
    if found is not None and torch.equal(found[0], inputs[0]):
        return [found[1].clone()]
    executable.memory = found = (inputs[0].clone(), right(executable, inputs, sizes)[0])
    return [found[1]]


def test_a_result_that_is_kept() -> None:
    with pytest.raises(NumericsMismatch) as raised:
        check_case(Wrong(caches_by_value), Case("exp", EXP.build, ("f32[3, 4]",)))
    assert "share memory with a constant or a cache" in "\n".join(raised.value.__notes__)


def keeps_arguments_in_self(executable: Any, inputs: Any, sizes: Any) -> list[Tensor]:
    executable.memory = inputs
    time.sleep(0.002)
    return right(executable, executable.memory, sizes)


def test_threads_that_meet() -> None:
    with pytest.raises(NumericsMismatch) as raised:
        check_case(Wrong(keeps_arguments_in_self), EXP)
    assert "4 threads called the executable at once" in raised.value.__notes__


# -- saving ------------------------------------------------------------------------------------


class WrongSave(Executable):
    """An executable that saves what ``spoil`` makes of the record."""

    def __init__(self, inner: Any, spoil: Callable[[Any], Any]) -> None:
        super().__init__(inner, right)
        self.spoil = spoil

    def save(self, writer: Any) -> Any:
        return self.spoil(super().save(writer))


class Unsaved(Wrong):
    def __init__(self, spoil: Callable[[Any], Any]) -> None:
        super().__init__()
        self.spoil = spoil

    def lower(self, function: Function, store: Any, options: LowerOptions) -> Any:
        return WrongSave(backend("eager").lower(function, store, options), self.spoil)


def refuses(record: Any) -> Any:
    raise BackendError("cannot be saved")


def other_op(record: Any) -> Any:
    (step,) = record["program"]["steps"]
    return record | {"program": record["program"] | {"steps": [step | {"op": "aten.maximum"}]}}


@pytest.mark.parametrize(
    ("spoil", "error", "expected"),
    [
        (refuses, BackendError, "cannot be saved"),
        (lambda record: record | {"limit": float("inf")}, ValueError, "not JSON compliant"),
        (lambda record: record | {"op": EXP}, TypeError, "not JSON serializable"),
        (lambda record: record | {"constants": []}, KeyError, "constant_0"),
        (lambda record: record | {"extra": 1}, AssertionError, "saves another record"),
        (other_op, NumericsMismatch, "a result is wrong"),
    ],
)
def test_what_is_saved_wrongly(spoil: Callable[[Any], Any], error: type[Exception], expected: str) -> None:
    with pytest.raises(error) as raised:
        check_case(Unsaved(spoil), SCALED)
    assert expected in str(raised.value)


# -- supports and lower ------------------------------------------------------------------------


class Answers(Wrong):
    """A back end whose ``supports`` is ``answer``."""

    def __init__(self, answer: Callable[[Op], Any]) -> None:
        super().__init__()
        self.supports = answer  # type: ignore[method-assign]


def raises(op: Op) -> Any:
    raise KeyError(op.name)


def changes(op: Op) -> Any:
    for result in op.results:
        result.type = result.tensor.with_shape((3,))


@pytest.mark.parametrize(
    ("answer", "error", "expected"),
    [
        (raises, KeyError, "aten.exp"),
        (changes, AssertionError, "`supports` changed the function"),
        (lambda op: "", AssertionError, "it must return None or say why not"),
        (lambda op: True, AssertionError, "it must return None or say why not"),
        (lambda op: f"no {op.name} today", AssertionError, "'wrong' supports none of the cases"),
        (lambda op: None, AssertionError, "for an op that does not exist"),
    ],
)
def test_wrong_answers(answer: Callable[[Op], Any], error: type[Exception], expected: str) -> None:
    with pytest.raises(error) as raised:
        check_backend(Answers(answer), [EXP])
    assert expected in str(raised.value)


def test_what_is_supported_must_be_lowered() -> None:
    class Refuses(Wrong):
        def lower(self, function: Function, store: Any, options: LowerOptions) -> Any:
            raise BackendError("no kernel")

    with pytest.raises(BackendError, match="no kernel") as raised:
        check_case(Refuses(), EXP)
    assert raised.value.__notes__ == ["in the case 'exp' on the back end 'wrong'"]


def test_reasons_are_returned() -> None:
    def answer(op: Op) -> Any:
        known = op.name in ("aten.exp", "cf.yield")
        return None if known else f"no {op.name}"

    refused = check_backend(Answers(answer), [EXP, TWICE])
    assert refused == {"twice": "no aten.neg"}


def test_a_case_that_torch_refuses_tests_nothing() -> None:
    case = Case("max of none", lambda op, x: op.aten.amax(x, (0,)), ("f32[0]",))
    with pytest.raises(AssertionError, match="eager torch runs the case at none of its sizes"):
        check_case(Wrong(), case)


def test_the_sizes_of_built_in_cases() -> None:
    sizes = {case.name: case.all_sizes(case.function()) for case in BUILT_IN}
    assert sizes["add"] == ({"B": 0}, {"B": 1}, {"B": 7}, {"B": 13}, {"B": 17})
    assert {"B": 0, "T": 3} in sizes["heads"]
    assert sizes["a range of sizes"] == ({"n": 2}, {"n": 7}, {"n": 9})
    assert sizes["multiples of 4"] == ({"m": 0}, {"m": 4}, {"m": 12}, {"m": 32})
    assert sizes["of rank 0"] == ({},)
