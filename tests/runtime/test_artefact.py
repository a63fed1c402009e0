"""Artefacts: what is saved is loaded again, and what is not an artefact is refused."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import types
from collections import defaultdict
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from regraft.errors import ArtefactError, BackendError, RegraftError, ShapeError
from regraft.runtime import CompiledModel, Plan, Step


class Model(nn.Module):
    """Nested arguments, a dynamic size, an output with several leaves, weights that share memory."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(12.0))
        self.register_buffer("rows", self.table.view(3, 4))  # pyright: ignore[reportCallIssue]

    def forward(self, batch: dict[str, torch.Tensor], scale: float = 1.0) -> dict[str, Any]:
        x = self.linear(batch["x"]) * scale + self.rows[0] + self.table[:4]
        return {"y": x, "more": (x.relu(), batch["x"])}


BATCH = {"x": torch.randn(5, 4)}


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    sizes = {"batch": {"x": {0: torch.export.Dim("n", min=1, max=64)}}, "scale": None}
    model = Model().eval()
    return regraft.compile(model, (BATCH, 0.5), dynamic_shapes=sizes, backends=("eager",))


@pytest.fixture
def saved(compiled: CompiledModel, tmp_path: Path) -> Path:
    compiled.save(tmp_path / "model")
    return tmp_path / "model"


def test_round_trip(compiled: CompiledModel, saved: Path) -> None:
    loaded = regraft.load(saved)
    for rows in (1, 5, 64):
        batch = {"x": torch.randn(rows, 4)}
        ours, theirs = loaded(batch, 0.5), compiled(batch, scale=0.5)
        assert torch.equal(ours["y"], theirs["y"])
        assert torch.equal(ours["more"][0], theirs["more"][0])
        assert torch.equal(ours["more"][1], batch["x"])
        assert ours["more"][1].data_ptr() != batch["x"].data_ptr()
    assert loaded.ir == compiled.ir
    assert loaded.report.to_dict() == json.loads(json.dumps(compiled.report.to_dict()))
    assert loaded.signature == compiled.signature
    with pytest.raises(ShapeError, match=r"the model was compiled for .* in \[1, 64\]"):
        loaded({"x": torch.randn(65, 4)}, 0.5)
    with pytest.raises(ShapeError, match=r"the model was compiled for 0\.5"):
        loaded(BATCH, 1.0)


def test_what_was_loaded_can_be_saved(saved: Path, tmp_path: Path) -> None:
    regraft.load(saved).save(tmp_path / "again")
    assert sorted(os.listdir(tmp_path / "again")) == sorted(os.listdir(saved))
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (saved / "manifest.json").read_bytes()
    loaded = regraft.load(tmp_path / "again")
    with pytest.raises(RegraftError, match="a loaded artefact cannot be refreshed"):
        loaded.refresh(Model())


def test_the_folder_holds_what_the_manifest_lists(saved: Path) -> None:
    files = json.loads((saved / "manifest.json").read_text())["files"]
    assert {*files, "manifest.json"} == set(os.listdir(saved))
    for name, expected in files.items():
        assert hashlib.sha256((saved / name).read_bytes()).hexdigest() == expected


# -- saving ------------------------------------------------------------------------------------


def test_nothing_is_overwritten(compiled: CompiledModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder"):
        with pytest.raises(ArtefactError, match="there is something at this path already"):
            compiled.save(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert os.listdir(tmp_path / "folder") == []


def test_a_path_that_cannot_be_written(compiled: CompiledModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "none" / "model", tmp_path / "file" / "model"):
        with pytest.raises(ArtefactError):
            compiled.save(path)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("a bug")])
def test_a_save_that_fails_leaves_nothing(
    compiled: CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("regraft.runtime.artefact.save_file", fail)
    with pytest.raises(ArtefactError if isinstance(error, OSError) else RuntimeError):
        compiled.save(tmp_path / "model")
    assert os.listdir(tmp_path) == []


class Color(Enum):
    RED = 1


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (lambda x: defaultdict(list, y=x), "is a defaultdict"),
        (lambda x: {Color.RED: x}, "an enum"),
    ],
)
def test_structures_that_would_import_modules(
    tmp_path: Path, result: Callable[[Any], Any], expected: str
) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return result(x + 1)

    compiled = regraft.compile(Odd().eval(), (torch.ones(3),), backends=("eager",))
    assert next(iter(compiled(torch.ones(3)).values())).tolist() == [2, 2, 2]
    with pytest.raises(ArtefactError, match=expected):
        compiled.save(tmp_path / "model")
    assert os.listdir(tmp_path) == []


# -- loading what is not an artefact -----------------------------------------------------------


def refused(path: Path, expected: str = ".") -> None:
    with pytest.raises(ArtefactError, match=expected):
        regraft.load(path)


def test_no_artefact(tmp_path: Path) -> None:
    refused(tmp_path / "none", "not an artefact: there is no 'manifest.json'")
    refused(tmp_path, "not an artefact")
    (tmp_path / "manifest.json").mkdir()
    refused(tmp_path, "'manifest.json' is not a plain file")
    refused(tmp_path / "manifest.json" / "deeper", "not an artefact")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '"format"',
        '{"format": 1}',
        '{"format": [1]}',
        '{"format": [1, 0]}',
        '{"format": [1, 0], "files": []}',
        '{"format": [1, 0], "files": 3}',
        '{"format": [1, 0], "files": {}}',
        "[" * 100_000,
        "1" * 5000,
        "\0",
        "\ufeff{}",
    ],
    ids=lambda text: text[:20].replace("\0", "nul"),
)
def test_a_foreign_manifest(saved: Path, text: str) -> None:
    (saved / "manifest.json").write_text(text)
    refused(saved)


def test_a_manifest_that_is_not_text(saved: Path) -> None:
    (saved / "manifest.json").write_bytes(b"\xff\xfe\x80\x81" * 9)
    refused(saved, "the manifest is malformed")


def test_a_manifest_that_is_too_large(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regraft.runtime.artefact._MAX_MANIFEST", 100)
    refused(saved, "too large")


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors", "graph.ir"])
def test_a_truncated_file(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    for size in (0, len(content) // 2, len(content) - 1):
        (saved / name).write_bytes(content[:size])
        refused(saved, "malformed" if name == "manifest.json" else "is damaged")


def test_a_changed_weight(saved: Path) -> None:
    content = bytearray((saved / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "weights.safetensors").write_bytes(content)
    refused(saved, "'weights.safetensors' is damaged: its SHA-256 is not the manifest's")


def test_a_missing_file(saved: Path) -> None:
    (saved / "graph.ir").unlink()
    refused(saved, "the artefact lacks 'graph.ir'")


def test_a_link_to_a_file_elsewhere(saved: Path, tmp_path: Path) -> None:
    (saved / "graph.ir").rename(tmp_path / "elsewhere")
    (saved / "graph.ir").symlink_to(tmp_path / "elsewhere")
    refused(saved, "'graph.ir' is a link")


# -- hostile manifests -------------------------------------------------------------------------

Edit = Callable[[dict[str, Any]], None]


def edited(saved: Path, edit: Edit) -> Path:
    manifest = json.loads((saved / "manifest.json").read_text())
    edit(manifest)
    (saved / "manifest.json").write_text(json.dumps(manifest))
    return saved


def put(*keys: Any) -> Edit:
    """Sets what the leading ``keys`` lead to, to the last one."""
    *path, last, value = keys

    def edit(manifest: Any) -> None:
        for key in path:
            manifest = manifest[key]
        manifest[last] = value

    return edit


STEP = ("plan", "steps", 0)
PROGRAM = (*STEP, "record", "program")
X = ("signature", "params", 0, "leaves", 0)
OUT = ("signature", "out_structure")
SYMBOL = ("signature", "symbols", 0)


def structure(type: Any, context: Any, children: Any = ()) -> str:
    return json.dumps([1, {"type": type, "context": context, "children_spec": list(children)}])


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (put("format", [2, 0]), r"format 2\.0 cannot be read; this is format 1\.x"),
        (put("format", ["1", "0"]), "cannot be read"),
        (put(*STEP, "backend", "cuda"), "it needs the back end 'cuda', which this version does not know"),
        (put(*STEP, "backend", "os"), "it needs the back end 'os'"),
        (put(*STEP, "backend", []), "malformed"),
        (put(*STEP, "inputs", [-1]), "reads what no step has made"),
        (put(*STEP, "inputs", [7]), "reads what no step has made"),
        (put(*STEP, "inputs", [0.0]), "are not whole numbers"),
        (put(*STEP, "inputs", [True]), "are not whole numbers"),
        (put(*STEP, "inputs", "0"), "are not whole numbers"),
        (put(*STEP, "outputs", [0]), "two steps fill one slot"),
        (put(*STEP, "dead", [9]), "frees what no step has made"),
        (put("plan", "inputs", 2), "differ in the number of inputs"),
        (put("plan", "slots", 10**15), "the slots are not in use"),
        (put("plan", "inputs", 10**15), "differ in the number of inputs"),
        (put(*PROGRAM, "slots", 10**15), "has other slots than it fills"),
        (put(*PROGRAM, "inputs", 10**15), "has other slots than it fills"),
        (put("plan", "slots", 1), "the slots are not in use"),
        (put("plan", "results", [3]), "a result is what no step has made"),
        (put("plan", "steps", None), "malformed"),
        (put(*PROGRAM, "steps", 0, "op", "aten.nonsense"), "torch has no such op"),
        (put(*PROGRAM, "steps", 0, "op", "aten.from_file"), "torch has no such op"),
        (put(*PROGRAM, "steps", 0, "op", "os.system"), "torch has no such op"),
        (put(*PROGRAM, "steps", 0, "op", "aten.add_.Tensor"), "torch has no such op"),
        (put(*PROGRAM, "steps", 0, "args", {"x": {"dim": "__import__('os')"}}), "is not a size"),
        (put(*PROGRAM, "steps", 0, "args", {"x": {"call": "os.system"}}), "malformed"),
        (put(*PROGRAM, "steps", 0, "args", 3), "malformed"),
        (put(*STEP, "record", "constants", ["../weights"]), "the artefact lacks the constant '../weights'"),
        (put(*STEP, "record", None), "malformed"),
        (put(*X, "dtype", "f99"), "malformed"),
        (put(*X, "device", "nowhere"), "malformed"),
        (put(*X, "shape", ["open('x')", 4]), "is not a size expression"),
        (put(*X, "shape", ["zz", 4]), "malformed"),
        (put(*X, "shape", ["zz + 1", 4]), "malformed"),
        (put(*X, "shape", ["min + 1", 4]), "malformed"),
        (put(*X, "shape", [[], 4]), "malformed"),
        (put(*SYMBOL, "input", 4), "is of no input"),
        (put(*SYMBOL, "input", -1), "is of no input"),
        (put(*SYMBOL, "axis", 2), "is of no axis"),
        (put(*SYMBOL, "scale", 0), "divides by nothing"),
        (put(*SYMBOL, "divisor", 0), "divides by nothing"),
        (put(*SYMBOL, "lo", "a"), "are not whole numbers"),
        (put(*SYMBOL, "extra", 1), "malformed"),
        (put("signature", "outputs", [0, 1, 9]), "an output is of no result"),
        (put("signature", "outputs", [0]), "the outputs do not fit"),
        (
            put("signature", "params", 0, "structure", structure("builtins.list", "null")),
            "the leaves of 'batch' do not fit",
        ),
        (put("signature", "defaults", 3), "malformed"),
        (put("report", 3), "malformed"),
        (put(*OUT, "x"), "malformed"),
        (put(*OUT, "[9, {}]"), "malformed"),
        (put(*OUT, structure("subprocess.Popen", "[]")), "the result's type is not known here"),
        (put(*OUT, structure("collections.namedtuple", "nobody.Knows")), "the result's type is not known"),
        (put(*OUT, structure("transformers.convert.Here", "[]")), "the result's type is not known here"),
        (
            put(*OUT, structure("transformers.models.nothing.modeling_nothing.Here", "[]")),
            "install transformers to load this",
        ),
        (put(*OUT, structure("builtins.dict", '[{"\\u005f_enum__": 1, "fqn": "antigravity:x"}]')), "an enum"),
        (
            put(
                *OUT,
                structure(
                    "collections.defaultdict",
                    {
                        "default_factory_module": "antigravity",
                        "default_factory_name": "geohash",
                        "dict_context": [],
                    },
                ),
            ),
            "a defaultdict",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_manifest(saved: Path, edit: Edit, expected: str) -> None:
    refused(edited(saved, edit), expected)


def test_a_program_whose_results_nobody_makes(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    last = len(manifest["plan"]["steps"][0]["record"]["program"]["steps"]) - 1
    loaded = regraft.load(edited(saved, put(*PROGRAM, "steps", last, "outputs", [0])))
    with pytest.raises(BackendError, match="the program gives what is no tensor"):
        loaded(BATCH, 0.5)


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b", "C:x", "weights.safetensors/../x"],
)
def test_names_that_leave_the_folder(saved: Path, name: str) -> None:
    (saved.parent / "secret").write_text("secret")
    digest = hashlib.sha256(b"secret").hexdigest()
    refused(edited(saved, put("files", name, digest)), "is not a file name")


def weights(saved: Path, content: bytes) -> Path:
    """An artefact whose weights are ``content``, by the manifest's own word."""
    (saved / "weights.safetensors").write_bytes(content)
    return edited(saved, put("files", "weights.safetensors", hashlib.sha256(content).hexdigest()))


def header(text: str, data: bytes = b"") -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode() + data


HUGE = 10**12


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        b'\x08\0\0\0\0\0\0\0{"a":1}',
        header("[]"),
        header("[" * 100_000),
        header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
        header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(8)),
        header('{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        header('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', bytes(4)),
        header('{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', bytes(4)),
        header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', bytes(4)),
        header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', bytes(4)),
        header(f'{{"a":{{"dtype":"F32","shape":[{HUGE}],"data_offsets":[0,{4 * HUGE}]}}}}', bytes(4)),
        header(f'{{"a":{{"dtype":"F32","shape":[{HUGE},{HUGE},0],"data_offsets":[0,0]}}}}', bytes(4)),
        header(
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        header(
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            '"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        (1 << 62).to_bytes(8, "little") + b"{}",
    ],
    ids=range(17),
)
def test_weights_that_are_not_safetensors(saved: Path, content: bytes) -> None:
    refused(weights(saved, content), "the weights cannot be read")


def test_a_file_that_is_no_file(saved: Path) -> None:
    for name in ("graph.ir", "weights.safetensors"):
        content = (saved / name).read_bytes()
        (saved / name).unlink()
        os.mkfifo(saved / name)
        refused(saved, f"'{name}' is not a plain file")
        (saved / name).unlink()
        (saved / name).symlink_to("/dev/zero")
        refused(saved, f"'{name}' is a link")
        (saved / name).unlink()
        (saved / name).write_bytes(content)
    regraft.load(saved)


def test_a_name_that_is_there_twice(saved: Path) -> None:
    text = (saved / "manifest.json").read_text()
    (saved / "manifest.json").write_text(text.replace('"files": {', '"files": {"graph.ir": "0",', 1))
    refused(saved, "a name is there twice")


def test_a_file_that_changes_after_its_check(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was hashed is what is used: nothing is read a second time."""
    expected = regraft.load(saved)(BATCH, 0.5)["y"]
    plan_from = sys.modules["regraft.runtime.artefact"]._plan_from

    def swap(*arguments: Any) -> Any:
        for name in ("graph.ir", "weights.safetensors"):
            (saved / name).write_bytes(b"something else")
        return plan_from(*arguments)

    monkeypatch.setattr("regraft.runtime.artefact._plan_from", swap)
    assert torch.equal(regraft.load(saved)(BATCH, 0.5)["y"], expected)


def test_a_newer_minor_version_is_read(saved: Path) -> None:
    regraft.load(edited(saved, put("format", [1, 7])))


def test_a_newer_major_version_says_what_to_do(saved: Path) -> None:
    refused(
        edited(saved, put("format", [2, 0])), r"cannot be read; .* Update regraft \(it was written by regraft"
    )
    refused(edited(saved, put("format", [0, 9])), "Compile and save the model again")


def test_native_code_needs_permission(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regraft.runtime.artefact.NATIVE", frozenset({"eager"}))
    refused(saved, "it holds native code")
    regraft.load(saved, allow_native=True)


def test_what_a_killed_save_left_is_removed_in_time(compiled: CompiledModel, tmp_path: Path) -> None:
    for name, age in (
        (".model.old.partial", 7200),
        (".model.young.partial", 0),
        (".other.old.partial", 7200),
    ):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    compiled.save(tmp_path / "model")
    assert sorted(os.listdir(tmp_path)) == [".model.young.partial", ".other.old.partial", "model"]


@pytest.mark.parametrize("bundled", [False, True])
def test_libraries_of_kernels_come_from_named_plugins(
    compiled: CompiledModel, tmp_path: Path, bundled: bool
) -> None:
    """A loader asks for the library of a domain; of a plug-in's own back end, alone and in a bundle."""

    class Kernels:
        backend = "kernels"

        def run(self, inputs: Any, sizes: Any) -> list[torch.Tensor]:
            raise AssertionError

        def save(self, writer: Any) -> dict[str, Any]:
            writer.add_file("kernels.txt", b"mine")
            return {"domain": "com.acme"}

    def load(record: Any, reader: Any) -> Kernels:
        assert reader.file("kernels.txt") == b"mine"
        asked.append(reader.library(record["domain"]))
        return Kernels()

    asked: list[str] = []
    op = types.SimpleNamespace(
        name="acme.op", onnx=types.SimpleNamespace(domain="com.acme", library="/acme.so")
    )
    step = compiled.plan.steps[0]
    steps = (Step(Kernels(), step.inputs, step.outputs, step.dead),)
    plan = Plan(compiled.plan.inputs, compiled.plan.slots, steps, compiled.plan.results)
    model = CompiledModel(compiled.signature, plan, compiled.report, compiled.ir)
    (regraft.Bundle({"run": model}) if bundled else model).save(tmp_path / "model")
    with pytest.raises(ArtefactError, match=r"needs the ONNX Runtime kernels of the domain 'com\.acme'"):
        regraft.load(tmp_path / "model", plugins=[regraft.Plugin("acme", loaders={"kernels": load})])
    plugin = regraft.Plugin("acme", loaders={"kernels": load}, ops=(op,))
    regraft.load(tmp_path / "model", plugins=[plugin])
    assert asked == ["/acme.so"]
