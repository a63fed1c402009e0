"""The commands, called in this process: what they print and write."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from unittest import mock

import pytest
import torch
from typer.testing import Result

import regraft
from tests.cli.running import GRAPH, Invoke

REWRITE = '''
import torch
import regraft


class DoubleNegation(regraft.Rewrite):
    """``-(-x)  ->  x``"""

    exactness = regraft.Exactness.EXACT

    def pattern(self, op, x):
        return op.aten.neg(op.aten.neg(x))

    def rewrite(self, op, m):
        return m.x


class Negates(torch.nn.Module):
    def forward(self, x):
        return torch.relu(-(-x))


def make():
    return Negates().eval(), (torch.randn(4),)
'''


def test_compile_prints_a_json_report_and_saves(invoke: Invoke, factories: Path, tmp_path: Path) -> None:
    out = tmp_path / "saved"
    result = invoke("compile", f"{factories}:make", "--json", "--out", out, "-q")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["executors"] == {"ort": 2}
    assert report["error"] < 1e-5
    assert report["measured"]["executors"]["ort"] > 0
    assert result.stderr == ""
    x = torch.randn(3, 8)
    assert regraft.load(out)(input=x).shape == (3, 16)


def test_compile_prints_a_report_and_progress(invoke: Invoke, factories: Path) -> None:
    result = invoke("compile", f"{factories}:make", "--dynamic", "input:0=2..64", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert "executors" in result.stdout
    assert "against eager in fp64" in result.stdout
    phases = [line.split()[1] for line in result.stderr.splitlines()]
    assert [phase for phase in phases if phase != "cache"] == [
        *("export", "decompositions", "import", "rewrites", "partition", "lower", "verify")
    ]
    assert "pass " not in result.stdout


def test_verbose_says_all_and_quiet_nothing(invoke: Invoke, factories: Path) -> None:
    options = ("compile", f"{factories}:make", "--no-verify", "--backends", "eager")
    full, silent = invoke(*options, "-v"), invoke(*options, "-q")
    assert "canonicalize.rewrite" in full.stdout
    assert "declined by" in full.stdout
    assert "not verified" in full.stdout
    assert (silent.stdout, silent.stderr) == ("", "")


def test_every_option_of_compile_arrives(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "negates.py"
    file.write_text(REWRITE)
    options = "--exactness exact --backends example,eager --fallback eager --verify-each --dump dumped --json"
    result = invoke("compile", f"{file}:make", "--rewrite", f"{file}:DoubleNegation", *options.split())
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["rewrites"]["DoubleNegation"]["hits"] == 1
    assert report["executors"] == {"example": 1}
    assert any(Path("dumped").glob("*.ir"))


def test_export_writes_one_file_and_replaces_none(invoke: Invoke, factories: Path) -> None:
    arguments = ("export", f"{factories}:make", "model.onnx")
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "opset" in result.stdout
    assert Path("model.onnx").stat().st_size > 0
    Path("model.onnx").write_bytes(b"mine")
    refused = invoke(*arguments)
    assert refused.exit_code == 1
    assert "there is something at this path already" in refused.stderr
    assert Path("model.onnx").read_bytes() == b"mine"
    forced = invoke(*arguments, "--force", "--json", "-q")
    assert forced.exit_code == 0, forced.output
    assert json.loads(forced.stdout)["bytes"] == Path("model.onnx").stat().st_size


def test_ir_prints_what_it_can_read_again(invoke: Invoke, factories: Path) -> None:
    captured = invoke("ir", f"{factories}:make")
    assert captured.exit_code == 0, captured.output
    Path("captured.ir").write_text(captured.stdout)
    assert invoke("ir", "captured.ir").stdout == captured.stdout
    piped = invoke("ir", "-", "--stage", "fuse", given=captured.stdout)
    assert "aten.gelu" in piped.stdout


def ops(result: Result) -> dict[str, int]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["ops"]


def test_ir_runs_one_rewrite_and_one_pass(invoke: Invoke) -> None:
    rewritten = invoke("ir", "-", "--rewrite", "ViewOfView", "--json", given=GRAPH)
    assert ops(rewritten) == {"aten.view": 1, "aten.relu": 1, "cf.yield": 1}
    assert json.loads(rewritten.stdout)["rewrites"]["ViewOfView"]["hits"] == 1
    swept = invoke("ir", "-", "--pass", "fold.sweep", "--json", given=GRAPH)
    assert ops(swept) == {"aten.view": 2, "cf.yield": 1}
    both = invoke("ir", "-", "--pass", "canonicalize.rewrite", "--pass", "fold.sweep", "--json", given=GRAPH)
    assert ops(both) == {"aten.view": 1, "cf.yield": 1}


NEAR = '''
import torch
import regraft
from torch import nn


class Near(nn.Module):
    def forward(self, x):
        scale = torch.rsqrt(x.pow(2).mean(0, keepdim=True) + 1e-6)  # the wrong axis
        return x * scale


def make():
    return Near().eval(), (torch.randn(4, 8),)


class ReluIsExp(regraft.Rewrite):
    """``relu(x) -> exp(x)``, which is wrong."""

    exactness = regraft.Exactness.EXACT

    def pattern(self, op, x):
        return op.aten.relu(x)

    def rewrite(self, op, m):
        return op.aten.exp(m.x)


class Relu(nn.Module):
    def forward(self, x):
        return torch.relu(x) + 1


def relu():
    return Relu().eval(), (torch.randn(4, 8),)


def is_right(compiled):
    return bool((compiled(torch.zeros(4, 8)) == 1).all())


def says_maybe(compiled):
    return "maybe"
'''


@pytest.fixture
def near(tmp_path: Path) -> Path:
    path = tmp_path / "near.py"
    path.write_text(NEAR)
    return path


def test_explain_points_at_the_users_line(invoke: Invoke, near: Path) -> None:
    result = invoke("explain", f"{near}:make", "RMSNorm")
    assert result.exit_code == 0, result.output
    number = next(i for i, line in enumerate(NEAR.splitlines(), start=1) if line.endswith("# the wrong axis"))
    assert "RMSNorm (recover): not applied" in result.stdout
    assert f"{near}:{number}" in result.stdout
    (told,) = json.loads(invoke("explain", f"{near}:make", "RMSNorm", "--json", "-q").stdout)["rewrites"]
    assert told["attempts"][0]["line"] == number


def test_explain_takes_a_rewrite_of_the_users(invoke: Invoke, near: Path) -> None:
    result = invoke("explain", f"{near}:relu", f"{near}:ReluIsExp", "--limit", "1")
    assert result.exit_code == 0, result.output
    assert "ReluIsExp" in result.stdout
    assert "applied 1 time" in result.stdout


@pytest.mark.parametrize("check", [[], ["--check", "{near}:is_right"]])
def test_bisect_names_the_guilty_rewrite(invoke: Invoke, near: Path, check: list[str]) -> None:
    options = [option.replace("{near}", str(near)) for option in check]
    result = invoke("bisect", f"{near}:relu", "--rewrite", f"{near}:ReluIsExp", "--json", *options)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["verdict"], report["rewrite"]) == ("rewrite", "ReluIsExp")
    assert "bisect: " in result.stderr


def test_bisect_says_that_nothing_is_wrong(invoke: Invoke, near: Path) -> None:
    result = invoke("bisect", f"{near}:relu", "-q")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert json.loads(invoke("bisect", f"{near}:relu", "--json").stdout)["verdict"] == "right"


def test_bench_tells_the_noise_and_the_errors(invoke: Invoke, factories: Path) -> None:
    result = invoke(
        "bench", f"{factories}:make", "--json", "-q", "--patience", "0", "--threads", "1", "--rounds", "20"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert set(report["entrants"]) == {"regraft", "the same again", "eager", "torch.onnx on ORT"}
    assert report["entrants"]["the same again"]["ratio"]["median"] > 0
    assert report["errors"]["regraft"] < 1e-5
    assert report["rounds"] == 20
    assert report["machine"]["packages"]["torch"]


def test_bench_leaves_a_peer_out_with_its_reason(invoke: Invoke, factories: Path) -> None:
    with mock.patch("torch.onnx.export", side_effect=ValueError("no such op\nmore")):
        result = invoke("bench", f"{factories}:make", "-q", "--rounds", "20", "--patience", "0", "--json")
    report = json.loads(result.stdout)
    assert "ValueError: no such op" in report["left_out"]["torch.onnx on ORT"]
    assert "torch.onnx on ORT" not in report["entrants"]


def test_doctor_names_what_is_there_and_what_is_missing(invoke: Invoke) -> None:
    version = metadata.version

    def without_transformers(package: str) -> str:
        if package == "transformers":
            raise metadata.PackageNotFoundError
        return version(package)

    with mock.patch("importlib.metadata.version", without_transformers):
        result = invoke("doctor", "-q", "--json")
        text = invoke("doctor").stdout
    findings = json.loads(result.stdout)
    assert findings["backends"]["ort"] == "ready"
    assert findings["packages"]["torch"] == version("torch")
    assert findings["optional"]["transformers"]["version"] is None
    assert "not installed (models of the demo): pip install 'regraft[demo]'" in text
    assert "cpu features" in text
    assert "(default figures; regraft doctor --measure measures them)" in text


def test_doctor_measures_and_keeps_the_machine(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path))
    measured = json.loads(invoke("doctor", "--measure", "--json", "-q").stdout)["profile"]
    assert measured["measured"]
    assert json.loads(invoke("doctor", "--json", "-q").stdout)["profile"] == measured


def test_the_version(invoke: Invoke) -> None:
    assert invoke("--version").stdout == f"regraft {regraft.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compile", "{file}:raises"], "raises() raised ValueError: no weights here"),
        (["compile", "{file}:make", "--dynamic", "input"], "expected ARG:AXIS"),
        (["compile", "{file}:make", "--dynamic", "input:0=9..2"], "the range is empty"),
        (["compile", "{file}:make", "--backends", "otr"], "no back end 'otr'; did you mean 'ort'"),
        (["compile", "{file}:make", "--exactness", "exat"], "no level 'exat'; did you mean 'exact'"),
        (["compile", "{file}:make", "--exactness", "approx:x"], "'x' is not a number"),
        (["compile", "{file}:make", "--exactness", "approx:-1"], "tolerance: expected a number from 0 on"),
        (["compile", "{file}:make", "--rewrite", "{file}:number"], "rewrites"),
        (["compile", "{file}:branch"], "a decision inside `try` cannot be converted"),
        (["compile", "{file}:make", "--out", "{file}"], "there is something at this path already"),
        (["compile", "{file}:make", "--out", "absent/model"], "the folder 'absent' does not exist"),
        (["compile", "{file}:make", "--dump", "{file}"], "dump: cannot make the folder"),
        (["export", "{file}:make", "model.txt"], "path must end in .onnx"),
        (["export", "{file}:make", "."], "'.' is a folder, not a file to write"),
        (["export", "{file}:make", "absent/m.onnx"], "the folder 'absent' does not exist"),
        (["explain", "{file}:make", "RMSNrm"], "no rewrite 'RMSNrm'; did you mean 'RMSNorm'"),
        (["explain", "{file}:make", "{file}:absent"], "no function 'absent'"),
        (["bisect", "{file}:make", "--check", "{file}:number"], "a function of a compiled model"),
        (["bisect", "{file}:make", "--check", "{file}:wrong"], "check"),
        (["ir", "absent.ir"], "cannot read 'absent.ir'"),
        (["ir", "."], "cannot read '.'"),
        (["ir", "{file}"], "at line "),
        (["ir", "{graph}", "--stage", "fuze"], "no stage 'fuze'; did you mean 'fuse'"),
        (["ir", "{graph}", "--pass", "fold.sweap"], "no pass 'fold.sweap'; did you mean 'fold.sweep'"),
        (["ir", "{graph}", "--rewrite", "RMSNrm"], "no rewrite 'RMSNrm'; did you mean 'RMSNorm'"),
        (["ir", "{graph}", "--rewrite", "Root", "--stage", "fold"], "exclude one another"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_1(
    invoke: Invoke, factories: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    graph = tmp_path / "graph.ir"
    graph.write_text(GRAPH)
    filled = [a.replace("{file}", str(factories)).replace("{graph}", str(graph)) for a in arguments]
    result = invoke(*filled, "-q")
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback (most" not in result.stderr
    assert result.stdout == ""
    assert not any(path for path in Path.cwd().iterdir())


def test_verbose_shows_where_an_error_came_from(invoke: Invoke) -> None:
    result = invoke("ir", "absent.ir", "-v")
    assert "Traceback" in result.stderr
    assert "FileNotFoundError" in result.stderr
    assert result.stderr.rstrip().splitlines()[-1].startswith("OptionError: cannot read 'absent.ir'")
