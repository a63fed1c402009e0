"""The report of a loaded model: the face of the compiler's, without the compiler."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import regraft
from regraft.errors import ArtefactError

X = torch.randn(5, 8)


class Mlp(nn.Module):
    """An RMS norm, which a rewrite recovers, and more."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.up = nn.Parameter(torch.rand(8)), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        return torch.special.entr(self.up(normed))


REPORT_FIELDS = (
    *("captured", "passes", "rewrites", "executors", "fallbacks", "choices", "notes", "flops", "bytes"),
    *("uncounted", "time", "error", "memory"),
)


def test_a_saved_report_has_the_face_of_the_compilers(tmp_path: Path) -> None:
    compiled = regraft.compile(Mlp().eval(), (X,), backends=("eager",), verify=True)
    compiled.save(tmp_path / "model")
    ours, saved = compiled.report, regraft.load(tmp_path / "model").report
    assert (str(saved), saved.full()) == (str(ours), ours.full())
    for name in REPORT_FIELDS:
        expected = getattr(ours, name)
        if name == "rewrites":
            assert saved.rewrites.keys() == expected.keys()
            assert all(saved.rewrites[each].hits == stats.hits for each, stats in expected.items())
        else:
            assert getattr(saved, name) == expected, name
    assert saved.estimated.seconds == ours.estimated.seconds
    assert (saved.measured.seconds, saved.measured.steps) == (ours.measured.seconds, ours.measured.steps)
    assert saved.measured.executors == ours.measured.executors
    assert (saved.cache.status, str(saved.cache)) == (ours.cache.status, str(ours.cache))
    with pytest.raises(AttributeError, match="a saved report has no 'measure'; it has: captured, "):
        _ = saved.measure


def test_a_forged_report_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    regraft.compile(Mlp().eval(), (X,), backends=("eager",)).save(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["report"] = {"captured": 3, "passes": [4], "cache": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    report = regraft.load(folder).report
    for read in (str, lambda r: r.full(), lambda r: r.passes, lambda r: r.cache):
        with pytest.raises(ArtefactError, match="the artefact's report is malformed"):
            read(report)
    with pytest.raises(AttributeError, match="has no 'rewrites'"):
        _ = report.rewrites


class LowRank(nn.Module):
    """Two layers that are better merged."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(64, 60, bias=False), nn.Linear(60, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.up(self.down(x)))


def test_choices_print_as_the_compilers_also_those_of_earlier_versions(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    compiled = regraft.compile(LowRank().eval(), (torch.ones(64, 64),), cache=False)
    compiled.save(folder)
    saved = regraft.load(folder).report
    assert str(saved) == str(compiled.report)
    assert "layers: down, up" in str(saved)
    assert str(saved.choices[0]) == str(compiled.report.choices[0])
    manifest = json.loads((folder / "manifest.json").read_text())
    (choice,) = manifest["report"]["choices"]
    for name in ("signature", "layers", "based_on", "noise", "why"):
        del choice[name]
    choice["text"] = "up: merged; estimated"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "choice: up: merged; estimated" in str(regraft.load(folder).report)
