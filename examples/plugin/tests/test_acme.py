"""The plug-in as its users have it: installed, and named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import regraft_acme
import torch
from torch import Tensor

import regraft
from regraft import Example
from regraft.conformance import check_backend
from regraft.errors import PluginError
from regraft.testing import check_op, check_rewrite

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def model(x: Tensor) -> Tensor:
    return 30.0 * torch.tanh((x @ x.T) / 30.0) + 1.0


def test_the_op() -> None:
    samples = [Example(lambda op, x: op.acme.soft_cap(x, 30.0), ("f32[B, 8]",))]
    (refused,) = check_op(regraft_acme.SOFT_CAP, samples).values()
    assert "no kernel for com.acme::SoftCap" in refused


def test_the_rewrite() -> None:
    check_rewrite(regraft_acme.RecoverSoftCap(), ops=[regraft_acme.SOFT_CAP])


def test_the_back_end() -> None:
    refused = check_backend(regraft_acme.NumpyBackend())
    assert "of rank 0" in refused


def test_by_name(tmp_path: Path) -> None:
    compiled = regraft.compile(model, (X,), plugins=["acme"], backends=("acme-numpy", "ort"), verify=True)
    report = compiled.report.to_dict()
    assert report["rewrites"]["RecoverSoftCap"]["hits"] == 1
    assert report["executors"]["acme-numpy"] == 1
    compiled.save(tmp_path / "model")
    loaded = regraft.load(tmp_path / "model", plugins=["acme"])
    assert torch.equal(loaded(X), compiled(X))
    with pytest.raises(regraft.errors.ArtefactError, match="installed plug-ins: acme"):
        regraft.load(tmp_path / "model")


def test_on_onnx_runtime_alone_it_is_decomposed() -> None:
    compiled = regraft.compile(model, (X,), plugins=["acme"], verify=True)
    assert set(compiled.report.executors) == {"ort"}


def test_a_file_holds_the_operator(tmp_path: Path) -> None:
    report = regraft.export_onnx(model, (X,), tmp_path / "model.onnx", plugins=["acme"])
    assert report.operators["com.acme::SoftCap"] == 1
    written = onnx.load(tmp_path / "model.onnx")
    assert {each.domain: each.version for each in written.opset_import}["com.acme"] == 2


def test_nothing_happens_unless_it_is_named() -> None:
    """Neither is the package imported, nor does its rewrite act."""
    code = (
        "import sys, torch, regraft\n"
        "compiled = regraft.compile(lambda x: 30.0 * torch.tanh(x / 30.0), (torch.ones(3, 8),))\n"
        "assert 'RecoverSoftCap' not in compiled.report.rewrites\n"
        "assert not any(name.startswith('regraft_acme') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_misspelt_name() -> None:
    with pytest.raises(PluginError, match="there is no plug-in 'acne'; did you mean 'acme'"):
        regraft.compile(model, (X,), plugins=["acne"])
