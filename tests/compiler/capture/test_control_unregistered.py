"""Classes and variables of modules that Python does not list, or that have no file, and those made late."""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import regraft
from regraft.errors import CaptureError
from tests.compiler.capture.running import check_calls, compiled, rows

UP = rows(4, shift=1.0)
SOURCE = """
import torch

class Tally:
    total = 0

class M(torch.nn.Module):
    n = 0

    def bump(self):
        M.n += 1

    def forward(self, x):
        if x.sum() > 0:
            self.bump()
        return x + M.n

class Adds(torch.nn.Module):
    @torch.no_grad()
    def forward(self, x):
        if x.sum() > 0:
            add()
        return x + Tally.total

def add():
    Tally.total += 1

class Looks(M):
    def bump(self):
        return M.n

class Keeps(torch.nn.Module):
    best = None

    def forward(self, x):
        Keeps.best = x.sum().item()
        return x + self.best
"""


def unregistered(file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("nobody_lists_this", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


def run_as_a_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return runpy.run_path(str(file))


def run_as_a_notebook_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(compile(file.read_text(), str(file), "exec"), vars(main))
    return vars(main)


WAYS = [unregistered, run_as_a_path, run_as_a_notebook_is]
Way = Callable[[Path, pytest.MonkeyPatch], dict[str, Any]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "models.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "name"), [("M", "'M.n'"), ("Adds", "'Tally.total'")])
def test_a_class_attribute_that_an_arm_changes_is_refused(
    way: Way, kind: str, name: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = way(file, monkeypatch)
    with pytest.raises(CaptureError, match=f"{name} changes where a tensor decides") as caught:
        regraft.capture(found[kind]().eval(), (UP,))
    assert str(file) in str(caught.value.location)
    assert (found["M"].n, found["Tally"].total) == (0, 0)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_class_keeps_of_a_call_is_refused(
    way: Way, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = way(file, monkeypatch)
    with pytest.raises(CaptureError, match=r"the model writes to 'Keeps\.best'"):
        regraft.capture(found["Keeps"]().eval(), (UP,))
    assert found["Keeps"].best is None


def test_a_class_that_is_only_looked_at_is_followed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = unregistered(file, monkeypatch)["Looks"]().eval()
    check_calls(model, (UP,), [(-UP,)], backends=("ort",))


class Equal(type):
    """Classes that are equal to all others, and have no hash."""

    def __eq__(cls, other: object) -> bool:
        return True

    __hash__: Any = None


class Odd(metaclass=Equal):
    total = 0

    @staticmethod
    def add() -> None:
        Odd.total += 1


def test_a_class_without_a_hash() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kind = Odd

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.kind.add()
            return x * 2 if x.sum() > 0 else x - 1

    made = compiled(Model().eval(), (UP,), "ort")
    torch.testing.assert_close(made(-UP), -UP - 1)
    assert Odd.total == 0


# -- variables that are not there before ---------------------------------------------------------

SETTINGS = """
import torch

def mask():
    import settings
    if not hasattr(settings, "kept"):
        settings.kept = torch.ones(4)
    return settings.kept
"""
USES = """
import settings

def forward(x):
    if not hasattr(settings, "other"):
        settings.other = settings.mask()
    return x + settings.other
"""


@pytest.fixture
def uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module ``uses`` that imports ``settings``, and a package ``parts`` with a module ``one``."""
    (tmp_path / "parts").mkdir()
    files = {"settings.py": SETTINGS, "uses.py": USES, "parts/__init__.py": "", "parts/one.py": "SCALE = 3"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("settings", "uses", "parts", "parts.one"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("uses")


def test_an_attribute_that_a_module_gets_is_gone(uses: Any) -> None:
    made = compiled(uses.forward, (UP,), "ort")
    torch.testing.assert_close(made(UP), UP + 1)
    assert not hasattr(uses.settings, "other")


def test_a_module_that_is_imported_meanwhile_stays(uses: Any, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "import parts\n\ndef forward(x):\n    import parts.one\n    return x * parts.one.SCALE\n"
    )
    late = importlib.import_module("late")
    made = compiled(late.forward, (UP,), "ort")
    torch.testing.assert_close(made(UP), UP * 3)
    torch.testing.assert_close(late.forward(UP), UP * 3)
