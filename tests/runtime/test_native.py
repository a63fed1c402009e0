"""Native code in artefacts: who may load it, what runs where it may not."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from regraft.errors import ArtefactError
from regraft.runtime import CompiledModel, NativeCode, Plan, Step, cpu_features

X = torch.randn(5, 4)


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    return regraft.compile(nn.Linear(4, 4).eval(), (X,), backends=("eager",))


class Native:
    """Machine code for which another executable stands."""

    backend = "fake-native"

    def __init__(self, inner: Any, features: set[str]) -> None:
        self.inner = inner
        self.native = NativeCode(frozenset(features), inner)

    def run(self, inputs: Any, sizes: Any) -> Any:
        return self.inner.run(inputs, sizes)

    def save(self, writer: Any) -> dict[str, Any]:
        writer.add_file("kernel.so", b"machine code")
        return {"file": "kernel.so"}


@pytest.fixture
def native(compiled: CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Saves ``compiled`` as if it were native code that needs ``features``."""
    module = types.ModuleType("fake_native_run")
    step = compiled.plan.steps[0]

    def load(record: Any, reader: Any) -> Native:
        assert reader.file(record["file"]) == b"machine code"
        return Native(step.executable, set())

    module.load = load  # type: ignore[attr-defined]
    module.refusal = lambda record: record.get("refused")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_native_run", module)
    loaders = sys.modules["regraft.runtime.artefact"].LOADERS
    monkeypatch.setitem(loaders, "fake-native", "fake_native_run")
    monkeypatch.setattr("regraft.runtime.artefact.NATIVE", frozenset({"fake-native"}))

    def make(*features: str) -> Path:
        plan = compiled.plan
        steps = (Step(Native(step.executable, set(features)), step.inputs, step.outputs, step.dead),)
        fake = Plan(plan.inputs, plan.slots, steps, plan.results)
        executors = {"fake-native": compiled.report.executors["eager"]}
        report = replace(compiled.report, executors=executors)
        CompiledModel(compiled.signature, fake, report, compiled.ir).save(tmp_path / "native")
        return tmp_path / "native"

    return make


def test_native_code_and_its_portable_form(native: Callable[..., Path], compiled: CompiledModel) -> None:
    folder = native(next(iter(cpu_features())))
    trusted = regraft.load(folder, allow_native=True)
    assert [s.executable.backend for s in trusted.plan.steps] == ["fake-native"]
    untrusted = regraft.load(folder)
    assert [s.executable.backend for s in untrusted.plan.steps] == ["eager"]
    (note,) = untrusted.report.to_dict()["notes"]
    assert "pass allow_native=True if you trust it; its portable form runs on 'eager'" in note
    ops = compiled.report.executors["eager"]
    assert trusted.report.executors == {"fake-native": ops}
    assert untrusted.report.executors == {"eager": ops}
    assert untrusted.report.measured is None, "what was measured is the native code"
    assert f"eager: {ops} ops" in str(untrusted.report)
    for loaded in (trusted, untrusted):
        assert torch.equal(loaded(X), compiled(X))


def test_native_code_for_another_cpu(native: Callable[..., Path], compiled: CompiledModel) -> None:
    folder = native("avx9000", "sse2")
    loaded = regraft.load(folder, allow_native=True)
    assert [s.executable.backend for s in loaded.plan.steps] == ["eager"]
    assert "needs avx9000" in loaded.report.to_dict()["notes"][-1]
    assert torch.equal(loaded(X), compiled(X))
    manifest = json.loads((folder / "manifest.json").read_text())
    portable = manifest["plan"]["steps"][0].pop("portable")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match=r"needs avx9000.*, which this CPU lacks\. It has no"):
        regraft.load(folder, allow_native=True)
    manifest["plan"]["steps"][0]["portable"] = {**portable, "backend": "fake-native"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="the portable form of native code is native code"):
        regraft.load(folder, allow_native=True)


def test_native_code_of_another_version(native: Callable[..., Path], compiled: CompiledModel) -> None:
    folder = native()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["plan"]["steps"][0]["record"]["refused"] = "native code ('fake-native') is old"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    loaded = regraft.load(folder, allow_native=True)
    assert [s.executable.backend for s in loaded.plan.steps] == ["eager"]
    assert "is old; its portable form runs on 'eager'" in loaded.report.to_dict()["notes"][-1]
    assert torch.equal(loaded(X), compiled(X))


def test_native_code_of_a_plugin(native: Callable[..., Path], compiled: CompiledModel) -> None:
    """Who loads says whether it is machine code; a file that keeps quiet of it is gated all the same."""
    folder = native()
    loaded: list[Any] = []

    def load(record: Any, reader: Any) -> Any:
        loaded.append(reader.file(record["file"]))
        made = Native(compiled.plan.steps[0].executable, set())
        made.backend = "acme"
        return made

    manifest = json.loads((folder / "manifest.json").read_text())
    step = manifest["plan"]["steps"][0]
    step["backend"] = "acme"

    def opened(native: tuple[str, ...] = (), **options: Any) -> Any:
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return regraft.load(
            folder, plugins=[regraft.Plugin("acme", loaders={"acme": load}, native=native)], **options
        )

    for declared in ((), ("acme",)):
        untrusted = opened(declared)
        assert [s.executable.backend for s in untrusted.plan.steps] == ["eager"]
        assert torch.equal(untrusted(X), compiled(X))
    assert loaded == []
    assert opened(allow_native=True).plan.steps[0].executable.backend == "acme"
    assert loaded == [b"machine code"]
    del step["portable"], step["requires"]
    with pytest.raises(ArtefactError, match=r"holds native code \('acme'\); pass allow_native=True"):
        opened(("acme",))
    assert loaded == [b"machine code"]
    assert opened(("acme",), allow_native=True).plan.steps[0].executable.backend == "acme"
