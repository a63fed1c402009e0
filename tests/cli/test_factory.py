"""From FILE.py:FACTORY to a model: every form, and every mistake with its own message."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from regraft.cli import factory
from regraft.errors import FactoryError


@pytest.fixture(autouse=True)
def path_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - modules:
        if name in ("factories", "acme_models", "acme_models.small", "beside"):
            del sys.modules[name]


def refusal(reference: str) -> str:
    with pytest.raises(FactoryError) as caught:
        factory.load_example(reference)
    return str(caught.value)


@pytest.mark.parametrize("name", ["make", "positional", "both", "by_name", "by_field"])
def test_every_form_gives_one_tensor(factories: Path, name: str) -> None:
    example = factory.load_example(f"{factories}:{name}")
    assert isinstance(example.model, torch.nn.Module)
    (x,) = (*example.args, *example.kwargs.values())
    assert x.shape == (3, 8)
    assert (example.dynamic_shapes is not None) == (name == "by_name")


def test_a_module_is_found_from_the_current_folder(
    factories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "acme_models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    factories.rename(package / "small.py")
    monkeypatch.chdir(tmp_path)
    assert factory.load_example("acme_models.small:make").kwargs["input"].shape == (3, 8)


def test_a_file_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WIDTH = 5\n")
    file = tmp_path / "factories.py"
    file.write_text("import torch\nfrom beside import WIDTH\ndef f(): return abs, (torch.ones(WIDTH),)\n")
    assert factory.load_example(f"{file}:f").args[0].shape == (5,)


def test_a_file_named_like_a_library_does_not_hide_it(tmp_path: Path) -> None:
    file = tmp_path / "json.py"
    file.write_text("import torch\ndef f(): return abs, (torch.ones(1),)\n")
    factory.load_example(f"{file}:f")
    import json

    assert json.loads("[1]") == [1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "there is no function 'absent'; there are: "),
        ("mak", "there is no function 'mak'; did you mean 'make'"),
        ("number", "'number' is a int, not a function"),
        ("wrong", "wrong() must return (model, args), (model, kwargs), (model, args, kwargs), or a dict"),
        ("wrong", "not int"),
        ("two_models", "args that are a Sequential"),
        ("misspelt", "there is no field 'kwarg'; did you mean 'kwargs'"),
        ("no_model", "returned no 'model'; it has: args"),
        ("number_keys", "kwargs that are a dict"),
        ("exits", "exits() ended the process with sys.exit(3)"),
        ("raises", "raises() raised ValueError: no weights here"),
    ],
)
def test_what_a_factory_does_wrong(factories: Path, name: str, message: str) -> None:
    assert message in refusal(f"{factories}:{name}")


def test_the_traceback_ends_at_the_users_line_and_has_none_of_ours(factories: Path) -> None:
    text = refusal(f"{factories}:raises")
    lines = factories.read_text().splitlines()
    number = next(i for i, line in enumerate(lines, start=1) if line.endswith("# raised"))
    assert f'File "{factories}", line {number}, in raises' in text
    assert 'raise ValueError("no weights here")' in text
    assert "regraft" not in text


def test_a_file_that_cannot_be_imported(tmp_path: Path) -> None:
    file = tmp_path / "factories.py"
    file.write_text("import torch\n\nimport no_such_library\n")
    text = refusal(f"{file}:make")
    assert "ModuleNotFoundError: No module named 'no_such_library'" in text
    assert "line 3, in <module>" in text
    file.write_text("def make(:\n    pass\n")
    text = refusal(f"{file}:make")
    assert "SyntaxError" in text
    assert "def make(:" in text
    file.write_text("import sys; sys.exit()")
    assert "ended the process" in refusal(f"{file}:make")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("missing.py:make", "cannot read 'missing.py': No such file or directory"),
        ("folder.py:make", "'folder.py' is a folder, not a Python file"),
        ("no_such_package.models:make", "No module named 'no_such_package'"),
        ("missing.py", "is not FILE.py:NAME or package.module:NAME"),
        (":make", "is not FILE.py:NAME or package.module:NAME"),
        ("missing.py:", "is not FILE.py:NAME or package.module:NAME"),
        ("bytes.py:make", "bytes.py raised SyntaxError"),
    ],
)
def test_what_is_no_file_or_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe\x00")
    assert message in refusal(reference)


def test_a_rewrite_is_loaded_in_the_same_way(factories: Path) -> None:
    assert factory.load_object(f"{factories}:Branch").__name__ == "Branch"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m.py:make", True),
        ("a/b.py:make", True),
        ("pkg.mod:make", True),
        ("graph.ir", False),
        ("-", False),
        ("a/b.ir:3", False),
        ("C:/graphs/x.ir", False),
    ],
)
def test_which_texts_are_factories(text: str, expected: bool) -> None:
    assert factory.is_reference(text) == expected
