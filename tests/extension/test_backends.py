"""Back ends of the user's own: classes and instances, and what is said of those that break the contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import regraft
from regraft.errors import BackendError, OptionError, UnsupportedOpError
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
