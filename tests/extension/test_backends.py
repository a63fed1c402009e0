"""Back ends of the user's own: classes and instances, and what is said of those that break the contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import regraft
from regraft.errors import BackendError, OptionError, RegraftError, UnsupportedOpError
from tests.extension.fancy import rows


class Relus:
    """Runs ``relu``, and nothing else."""

    name = "relus"
    reason: Any = "it is no relu"

    def supports(self, op: Any) -> Any:
        return None if op.name in ("aten.relu", "cf.yield") else self.reason

    def lower(self, function: Any, store: Any, options: Any) -> Any:
        return Executable()


class Executable:
    backend = "relus"

    def run(self, inputs: Any, sizes: Any) -> list[torch.Tensor]:
        return [torch.relu(inputs[0])]


def model(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) + 1


@pytest.mark.parametrize("form", [Relus, Relus()], ids=["class", "instance"])
def test_a_back_end_in_front(form: Any) -> None:
    compiled = regraft.compile(model, (rows(),), backends=(form, "ort"), verify=True)
    assert compiled.report.executors == {"relus": 1, "ort": 1}


def test_its_reasons_are_reported() -> None:
    with pytest.raises(UnsupportedOpError, match=r"relus: it is no relu"):
        regraft.compile(model, (rows(),), backends=(Relus,))


def test_a_back_end_of_a_plugin_runs_when_named() -> None:
    plugin = regraft.Plugin("mine", backends=[Relus])
    assert "relus" not in regraft.compile(model, (rows(),), plugins=[plugin]).report.executors
    compiled = regraft.compile(model, (rows(),), plugins=[plugin], backends=("relus", "ort"))
    assert compiled.report.executors == {"relus": 1, "ort": 1}
    with pytest.raises(OptionError, match="did you mean 'relus'"):
        regraft.compile(model, (rows(),), plugins=[plugin], backends=("relu", "ort"))


class Nameless(Relus):
    name = ""


class NoLower:
    name = "relus"

    def supports(self, op: Any) -> None: ...


class Demanding(Relus):
    def __init__(self, number: int) -> None: ...


@pytest.mark.parametrize(
    ("backends", "words"),
    [
        ((Nameless,), "a Backend with a name"),
        ((NoLower,), "a Backend with a method 'lower'"),
        ((Demanding,), "cannot be made without arguments"),
        ((Relus, Relus()), "'relus' is there twice"),
        (("ort", "ort"), "'ort' is there twice"),
        ((3,), "a Backend with a name"),
    ],
)
def test_what_is_no_back_end(backends: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        regraft.compile(model, (rows(),), backends=backends)


class Raising(Relus):
    def supports(self, op: Any) -> Any:
        raise KeyError("oh")


class Bool(Relus):
    reason = False


class RaisingLower(Relus):
    def lower(self, *_: Any) -> Any:
        raise KeyError("oh")


class NoExecutable(Relus):
    def lower(self, *_: Any) -> Any:
        return 3


@pytest.mark.parametrize(
    ("back_end", "words"),
    [
        (Raising, ["supports failed: KeyError: 'oh'", "op: aten.relu"]),
        (Bool, ["supports returned False", "op: aten.add.Scalar"]),
        (RaisingLower, ["lower failed: KeyError: 'oh'"]),
        (NoExecutable, ["lower returned 3", "no executable"]),
    ],
)
def test_a_back_end_that_breaks_its_contract(back_end: Any, words: list[str]) -> None:
    with pytest.raises(BackendError) as caught:
        regraft.compile(model, (rows(),), backends=(back_end, "ort"))
    assert [w for w in (*words, "back end: relus") if w not in str(caught.value)] == []


# -- what an executable does at a call ---------------------------------------------------------


def running(run: Any) -> Any:
    """A back end whose executable does ``run``."""

    class Running(Executable):
        def run(self, inputs: Any, sizes: Any) -> Any:
            return run(inputs[0])

    class Back(Relus):
        def lower(self, *_: Any) -> Any:
            return Running()

    return Back


def failing(x: torch.Tensor) -> Any:
    raise KeyError("oh")


LIES: list[tuple[Any, str]] = [
    (failing, "run failed: KeyError: 'oh'"),
    (lambda x: None, "run returned a NoneType, no list of tensors"),
    (lambda x: x, "run returned a Tensor, no list of tensors"),
    (lambda x: [x.numpy()], "run returned a list, no list of tensors"),
    (lambda x: [x, x], "run returned 2 tensors, expected 1"),
    (lambda x: [], "run returned 0 tensors, expected 1"),
    (lambda x: [x.double()], r"as result 0 f64\[3, 8\] on cpu, expected f32\[3, 8\] on cpu"),
    (lambda x: [x[:, :4]], r"as result 0 f32\[3, 4\] on cpu, expected f32\[3, 8\] on cpu"),
    (lambda x: [x[0]], r"as result 0 f32\[8\] on cpu, expected f32\[3, 8\] on cpu"),
    (lambda x: [x.to("meta")], r"as result 0 f32\[3, 8\] on meta, expected f32\[3, 8\] on cpu"),
]


@pytest.mark.parametrize(("run", "words"), LIES)
@pytest.mark.parametrize("sizes", [None, ({0: Dim("n", min=2)},)], ids=["static", "dynamic"])
def test_an_executable_that_raises_or_lies(run: Any, words: str, sizes: Any) -> None:
    compiled = regraft.compile(model, (rows(),), backends=(running(run), "ort"), dynamic_shapes=sizes)
    with pytest.raises(BackendError, match=words) as caught:
        compiled(rows())
    assert caught.value.backend == "relus"


def test_an_error_of_regrafts_own_is_left_as_it_is() -> None:
    def checked(x: torch.Tensor) -> Any:
        raise RegraftError("a check of the model failed")

    compiled = regraft.compile(model, (rows(),), backends=(running(checked), "ort"))
    with pytest.raises(RegraftError, match=r"^a check of the model failed$"):
        compiled(rows())


def test_a_result_as_long_as_its_values_say() -> None:
    """Only the run tells its size; the rest of its type is checked."""

    class Nonzero(Relus):
        def supports(self, op: Any) -> Any:
            return None if op.name in ("aten.nonzero", "cf.yield") else self.reason

    def places(x: torch.Tensor) -> torch.Tensor:
        return torch.nonzero(x)

    def compiled(run: Any) -> Any:
        back_end = type("Back", (running(run),), {"supports": Nonzero.supports})
        return regraft.compile(places, (rows(),), backends=(back_end, "ort"))

    assert torch.equal(compiled(lambda x: [torch.nonzero(x)])(rows()), torch.nonzero(rows()))
    with pytest.raises(BackendError, match=r"i64\[24, 1\] on cpu, expected i64\[\?, 2\] on cpu"):
        compiled(lambda x: [torch.nonzero(x)[:, :1]])(rows())


def test_a_wrong_one_leaves_the_model_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    before = {name: (t, t._version, t.clone()) for name, t in module.state_dict().items()}
    for back_end in (Raising, Bool, RaisingLower, NoExecutable):
        with pytest.raises(BackendError):
            regraft.compile(module, (rows(),), backends=(back_end, "ort"))
    compiled = regraft.compile(module, (rows(),), backends=(running(failing), "ort"))
    with pytest.raises(BackendError):
        compiled(rows())
    for name, tensor in module.state_dict().items():
        held, version, value = before[name]
        assert (tensor.data_ptr(), tensor._version) == (held.data_ptr(), version)
        assert torch.equal(tensor, value)
    assert not module.training
    with torch.no_grad():
        torch.testing.assert_close(regraft.compile(module, (rows(),))(rows()), module(rows()))
