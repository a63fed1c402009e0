"""Plug-ins, installed and given as objects: they act when named, and each thing wrong with one is said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import regraft
from regraft import Plugin, op_from_torch
from regraft.errors import PluginError
from regraft.ir import define
from tests.extension.fancy import fancy, model, on_onnx, rows, same_type

Install = Callable[..., None]

#: A module with a rewrite that makes ``x * 2`` into ``x + x``.
REWRITE = """
import regraft

class Doubled(regraft.Rewrite):
    def pattern(self, op, x):
        return op.aten.mul.Scalar(x, 2)
    def rewrite(self, op, m):
        return op.aten.add.Tensor(m.x, m.x)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a package with a plug-in where Python finds it, as pip leaves one behind."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(package: str, code: str, name: str = "acme", value: str = "plugin") -> None:
        module = package.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[regraft.plugins]\n{name} = {module}:{value}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return put


def refused(*plugins: Any, **options: Any) -> str:
    """What a compile that names ``plugins`` is refused with."""
    with pytest.raises(PluginError) as caught:
        regraft.compile(model, (rows(),), plugins=plugins, fallback="eager", **options)
    return str(caught.value)


def missing(text: str, *words: str) -> list[str]:
    return [word for word in words if word not in text]


# -- what they do ------------------------------------------------------------------------------


def test_an_installed_plugin_acts_when_named(install: Install) -> None:
    install("acme-rewrites", f"{REWRITE}\nplugin = regraft.Plugin('acme', rewrites=[Doubled])")
    compiled = regraft.compile(lambda x: x * 2, (rows(),), plugins=["acme"], verify=True)
    assert compiled.report.rewrites["Doubled"].hits == 1


def test_an_installed_plugin_that_is_not_named_is_not_imported(install: Install, tmp_path: Path) -> None:
    install("acme-broken", "raise SystemExit('imported')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch, regraft\n"
        "regraft.compile(lambda x: x * 2, (torch.ones(3),)).save('model')\n"
        "regraft.load('model')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=tmp_path)


def test_all_its_parts(tmp_path: Path) -> None:
    class Note:
        name = "note"
        seen = 0

        def run(self, module: Any, context: Any) -> bool:
            Note.seen += 1
            return False

    ops = [op_from_torch(fancy, infer=same_type, lowerings={"ort": on_onnx})]
    plugin = Plugin("mine", passes=[("recover", Note)], ops=ops)
    compiled = regraft.compile(model, (rows(),), plugins=[plugin], verify=True)
    assert Note.seen == 1
    assert set(compiled.report.executors) == {"ort"}
    regraft.export_onnx(model, (rows(),), tmp_path / "model.onnx", plugins=[plugin])
    assert "opaque" not in str(regraft.capture(model, (rows(),), plugins=[plugin]))


# -- what is wrong with one that is installed --------------------------------------------------


def test_an_unknown_name(install: Install) -> None:
    install("acme-rewrites", "")
    assert missing(refused("acne"), "there is no plug-in 'acne'", "did you mean 'acme'", "pip install") == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nonsense_of_acme", ["ModuleNotFoundError", "nonsense_of_acme", "`import acme_broken`"]),
        ("1 / 0", ["ZeroDivisionError"]),
        ("other = 3", ["AttributeError", "plugin"]),
        ("plugin = 3", ["'acme_broken:plugin' is a int, not a regraft.Plugin", "authors of acme-broken 1.2"]),
        ("import regraft\nplugin = regraft.Plugin('acne')", ["calls itself 'acne'", "says 'acme'"]),
        ("import regraft\nplugin = regraft.Plugin('acme', ops=3)", ["its 'ops' is 3, not a list"]),
        ("import regraft\nplugin = regraft.Plugin('acme', ops=[3])", ["'ops' cannot be this", "OpDefs"]),
        ("import regraft\nplugin = regraft.Plugin('acme', rewrites=[3])", ["Rewrite classes or instances"]),
        ("import regraft\nplugin = regraft.Plugin('acme', passes=[3])", ["pairs (stage, Pass)"]),
        ("import regraft\nplugin = regraft.Plugin('acme', backends=[3])", ["a Backend with a name"]),
        ("import regraft\nplugin = regraft.Plugin('acme', loaders={'acme': 3})", ["its 'loaders'"]),
        ("import regraft\nplugin = regraft.Plugin('acme', native=['acme'])", ["its 'native'"]),
    ],
)
def test_an_installed_plugin_that_is_broken(install: Install, code: str, words: list[str]) -> None:
    install("acme-broken", code)
    assert missing(refused("acme"), *words, "plug-in: acme", "package: acme-broken 1.2", "hint: ") == []


def test_two_packages_with_one_name(install: Install) -> None:
    install("acme-one", "")
    install("acme-two", "")
    text = refused("acme")
    assert missing(text, "two packages have a plug-in", "acme-one 1.2", "acme-two 1.2", "uninstall one") == []


# -- what is wrong with their parts ------------------------------------------------------------


class Doubled(regraft.Rewrite):
    def pattern(self, op: Any, x: Any) -> Any:
        return op.aten.mul.Scalar(x, 2)

    def rewrite(self, op: Any, m: Any) -> Any:
        return op.aten.add.Tensor(m.x, m.x)


class FullSlice(Doubled):
    """Has the name of one of regraft's."""


class Misspelt(Doubled):
    def pattern(self, op: Any, x: Any) -> Any:
        return op.aten.mull.Scalar(x, 2)


class Lost(Doubled):
    after = ("FullSlize",)


class TextForTuple(Doubled):
    after = "FullSlice"  # type: ignore[assignment]


class Demanding(Doubled):
    def __init__(self, number: int) -> None:
        self.number = number


class Ort:
    name = "ort"

    def supports(self, op: Any) -> str | None:
        return "never"

    def lower(self, *_: Any) -> Any: ...


class Mine(Ort):
    name = "mine"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"rewrites": [FullSlice]}, ["two rewrites are called 'FullSlice', or regraft has one"]),
        ({"rewrites": [Doubled, Doubled()]}, ["two rewrites are called 'Doubled'"]),
        ({"rewrites": [Misspelt]}, ["'Misspelt'.pattern", "no op 'aten.mull.Scalar'", "test_plugins.py:"]),
        ({"rewrites": [Lost]}, ["'Lost'.after", "did you mean 'FullSlice'"]),
        ({"rewrites": [TextForTuple]}, ["TextForTuple.after", "a tuple of names"]),
        ({"rewrites": [Demanding]}, ["the class Demanding", "give an instance"]),
        ({"rewrites": Doubled}, ["its 'rewrites' is", "not a list"]),
        ({"ops": [define("aten.relu(Tensor x)", same_type)]}, ["'aten.relu'", "rename yours"]),
        ({"backends": [Ort]}, ["Ort.name", "a name that no back end of regraft's has"]),
        ({"backends": [Mine, Mine]}, ["two back ends are called 'mine'"]),
        ({"backends": [object]}, ["a Backend with a name"]),
    ],
)
def test_a_part_that_cannot_be(parts: dict[str, Any], words: list[str]) -> None:
    assert missing(refused(Plugin("mine", **parts)), *words, "plug-in: mine", "hint: mend the Plugin") == []


def test_names_that_two_plugins_have() -> None:
    first, second = Plugin("first", rewrites=[Doubled]), Plugin("second", rewrites=[Doubled])
    assert missing(refused(first, second), "two rewrites are called 'Doubled'", "plug-in: second") == []
    assert missing(refused(first, first), "two plug-ins are called 'first'") == []
    with pytest.raises(PluginError, match="two rewrites are called 'Doubled'"):
        regraft.compile(model, (rows(),), plugins=[first], rewrites=[Doubled])


@pytest.mark.parametrize(
    ("plugins", "words"),
    [
        ("acme", ["not a list", "plugins=['acme']"]),
        ([3], ["a name or a regraft.Plugin, not 3"]),
        ([Plugin("a.b")], ["'a.b' is not a name"]),
        ([Plugin("")], ["'' is not a name"]),
    ],
)
def test_what_is_no_plugin(plugins: Any, words: list[str]) -> None:
    for call in (regraft.compile, regraft.capture):
        with pytest.raises(PluginError) as caught:
            call(model, (rows(),), plugins=plugins)
        assert missing(str(caught.value), *words) == []


def test_a_type_rule_that_lies_is_blamed_on_its_plugin() -> None:
    lie = op_from_torch(fancy, infer=lambda site: site.type("x").with_shape((3,)))
    with pytest.raises(regraft.errors.CaptureError, match=r"its rule gives f32\[3\].*of the plug-in 'mine'"):
        regraft.compile(model, (rows(),), plugins=[Plugin("mine", ops=[lie])])


# -- loading -----------------------------------------------------------------------------------


def saved(path: Path, backend: str) -> Path:
    """A saved model whose manifest names the back end ``backend``."""
    regraft.compile(lambda x: torch.relu(x), (rows(),), backends=("eager",)).save(path)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"backend": "eager"', f'"backend": "{backend}"'))
    return path


class Shout:
    backend = "mine"

    def run(self, inputs: Any, sizes: Any) -> list[torch.Tensor]:
        return [inputs[0] + 100]


def test_a_back_end_of_a_plugin_is_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", "mine")
    loaded = regraft.load(path, plugins=[Plugin("mine", loaders={"mine": lambda record, reader: Shout()})])
    assert torch.equal(loaded(rows()), rows() + 100)


@pytest.mark.parametrize(
    ("loaders", "words"),
    [
        ({}, ["needs the back end 'mine'", "plugins=[...]"]),
        ({"mine": lambda record, reader: record["oh"]}, ["loader of the back end 'mine' failed", "'oh'"]),
        ({"mine": lambda record, reader: 3}, ["gave 3, which is no executable of it"]),
    ],
)
def test_an_artefact_that_cannot_be_loaded(tmp_path: Path, loaders: Any, words: list[str]) -> None:
    path = saved(tmp_path / "model", "mine")
    with pytest.raises(regraft.errors.ArtefactError) as caught:
        regraft.load(path, plugins=[Plugin("mine", loaders=loaders)])
    assert missing(str(caught.value), *words) == []


def test_a_loader_for_what_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", "mine")
    one = Plugin("one", loaders={"mine": lambda record, reader: Shout()})
    for plugins in ([one, Plugin("two", loaders=one.loaders)], [Plugin("two", loaders={"ort": print})]):
        with pytest.raises(PluginError, match="which has a loader already"):
            regraft.load(path, plugins=plugins)
