"""Compiling with the cache: the same results, new weights, changed code, damaged entries."""

from __future__ import annotations

import gc
import hashlib
import os
import stat
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import regraft
from regraft.compiler import cache
from regraft.errors import NumericsMismatch, OptionError
from regraft.ir import Leaf, Module, PassContext
from regraft.testing import assert_close


class Mlp(nn.Module):
    """Tied weights, a literal of the code, a constant that only a recipe reads, a fixed argument."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.down.weight = self.up.weight
        self.register_buffer("base", torch.randn(width))
        self.factor = 2.0

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        weight = self.base * 3 + torch.tensor([0.5] * self.base.shape[0])
        y = self.down(torch.relu(self.up(x))) * self.factor * scale + weight
        return {"y": y, "x": x}


X = torch.randn(3, 8)


def compiled(folder: Path | bool, model: nn.Module | None = None, **options: Any) -> Any:
    options = {"backends": ("eager",), **options}
    args = options.pop("args", (X,))
    return regraft.compile((model or Mlp()).eval(), args, cache=folder, **options)


def status(result: Any) -> str:
    return result.report.cache.status


def same(result: Any, model: nn.Module, *args: Any) -> None:
    expected = model(*args)
    assert_close([result(*args)["y"]], [expected["y"].double()])


@pytest.mark.parametrize("backend", ["eager", "ort"])
def test_a_hit_is_what_a_compile_gives(tmp_path: Path, backend: str) -> None:
    model = Mlp().eval()
    first = compiled(tmp_path, model, backends=(backend,))
    second = compiled(tmp_path, model, backends=(backend,))
    assert (status(first), status(second)) == ("miss", "hit")
    assert first.report.cache.reason == f"nothing is stored for {Mlp.__module__}.Mlp"
    assert second.ir == first.ir
    assert second.signature == first.signature
    assert torch.equal(first(X)["y"], second(X)["y"])
    for key in ("captured", "passes", "rewrites", "executors", "flops", "bytes", "estimated"):
        assert first.report.to_dict()[key] == second.report.to_dict()[key], key
    assert "export" not in second.report.time
    assert "cache      hit" in str(second.report)
    assert second.report.to_dict()["cache"]["path"] == first.report.cache.path


def test_new_weights_give_their_own_results(tmp_path: Path) -> None:
    compiled(tmp_path)
    other = Mlp().eval()
    result = compiled(tmp_path, other, verify=True)
    assert status(result) == "hit"
    assert result.report.error is not None
    same(result, other, X)
    with torch.no_grad():
        other.base += 1
    result.refresh(other)
    same(result, other, X)


@pytest.mark.parametrize("times", [1, 2])
def test_the_cache_keeps_no_model_alive(tmp_path: Path, times: int) -> None:
    """Neither a miss nor a hit: whoever compiles one model after another has memory for one."""
    for _ in range(times):
        model = Mlp().eval()
        compiled(tmp_path, model)
        weight = weakref.ref(model.up.weight)
        del model
        gc.collect()
        assert weight() is None


def test_no_weight_is_in_an_entry(tmp_path: Path) -> None:
    model = Mlp()
    nn.init.constant_(model.up.bias, 0.123456789)
    compiled(tmp_path, model)
    (entry,) = cache.CacheFolder(tmp_path).entries()
    content = entry.path.read_bytes()
    for tensor in model.state_dict().values():
        assert tensor.numpy().tobytes() not in content
    assert b'"literal"' not in content
    assert len(content) < 100_000


def test_dynamic_sizes_and_fixed_values(tmp_path: Path) -> None:
    def make(model: nn.Module) -> Any:
        sizes = {"x": {0: Dim.AUTO}, "scale": None}
        return compiled(tmp_path, model, args=(X, 0.5), dynamic_shapes=sizes)

    make(Mlp())
    model = Mlp().eval()
    result = make(model)
    assert status(result) == "hit"
    for rows in (1, 2, 13):
        same(result, model, torch.randn(rows, 8), 0.5)
    with pytest.raises(regraft.errors.ShapeError, match=r"the model was compiled for 0\.5"):
        result(X, 1.0)


class SizeMatters(nn.Module):
    """At one row eager squeezes, which only shows when the weight is not zero."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x + self.weight * (x - x.mean(0) if x.shape[0] > 1 else x)}


def test_what_holds_at_size_one_for_some_weights_only(tmp_path: Path) -> None:
    def make(weight: float) -> Any:
        return compiled(tmp_path, SizeMatters(weight), dynamic_shapes={"x": {0: Dim.AUTO}})

    assert make(0.0)(X[:1])["y"].shape == (1, 8)
    assert status(make(0.0)) == "hit"
    result = make(1.0)
    assert status(result) == "miss"
    assert "the graph differs from eager at sizes of 1" in result.report.cache.reason
    with pytest.raises(regraft.errors.ShapeError):
        result(X[:1])
    same(result, SizeMatters(1.0), X)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m, "factor", 3.0), "module '' (Mlp) changed"),
        (lambda m: setattr(m.up, "bias", None), "parameters changed"),
    ],
)
def test_a_miss_says_what_has_changed(tmp_path: Path, change: Any, reason: str) -> None:
    compiled(tmp_path)
    model = Mlp().eval()
    change(model)
    result = compiled(tmp_path, model)
    assert (status(result), result.report.cache.reason) == ("miss", reason)
    same(result, model, X)


def test_a_miss_names_the_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(tmp_path)
    monkeypatch.setattr(Mlp, "forward", lambda self, x: {"y": self.up(x)})
    result = compiled(tmp_path)
    assert status(result) == "miss"
    assert result.report.cache.reason.endswith(".Mlp.forward changed")
    monkeypatch.setattr(torch, "__version__", "9.9")
    reason = compiled(tmp_path).report.cache.reason
    assert reason.startswith("torch: 2.")
    assert " -> 9.9" in reason


def test_what_is_not_cached_says_why(tmp_path: Path) -> None:
    def draws(x: torch.Tensor) -> torch.Tensor:
        return x * float(os.environ.get("FACTOR", "1"))

    for model, reason in (
        (draws, "it uses the module os"),
        (torch.export.export(Mlp().eval(), (X,)), "an ExportedProgram"),
    ):
        result = regraft.compile(model, (X,), backends=("eager",), cache=tmp_path)
        assert status(result) == "not cached"
        assert reason in result.report.cache.reason
    for options in ({"dump": tmp_path / "dump"}, {"verify": "each"}):
        assert status(compiled(tmp_path, **options)) == "not cached"
    assert cache.CacheFolder(tmp_path).entries() == []


def test_a_literal_that_is_too_large(tmp_path: Path) -> None:
    numbers = [0.5] * 300_000
    result = regraft.compile(
        lambda x: x + torch.tensor(numbers)[:8], (X,), backends=("eager",), cache=tmp_path
    )
    assert status(result) == "not cached"
    assert "its code holds more than" in result.report.cache.reason


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1  # pyright: ignore[reportOperatorIssue]
        return {"y": x * self.calls}


def test_a_model_with_state(tmp_path: Path) -> None:
    for _ in range(2):
        result = compiled(tmp_path, Counts())
        assert result.report.cache.status == "not cached"
        assert "it writes to its state" in result.report.cache.reason
        assert torch.equal(result(X)["y"], X)


class Peeks:
    """A user's pass that looks at a weight's values."""

    name, stage, after, before = "Peeks", "fold", (), ()

    def run(self, module: Module, context: PassContext) -> bool:
        for constant in module.constants():
            if isinstance(constant, Leaf) and constant.name == "base":
                assert constant.storage.sum() > -1e9
        return False


def test_a_value_that_a_pass_has_read(tmp_path: Path) -> None:
    def make(model: nn.Module) -> Any:
        return compiled(tmp_path, model, passes=[("fold", Peeks())])

    model = Mlp().eval()
    assert status(make(model)) == "miss"
    assert status(make(model)) == "hit"
    with torch.no_grad():
        model.up.weight += 1
    assert status(make(model)) == "hit"  # nobody has read that one
    with torch.no_grad():
        model.base += 1
    result = make(model)
    assert result.report.cache.reason == "the value of 'base', which a pass has read, changed"
    same(result, model, X)


# -- the folder ----------------------------------------------------------------------------------


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.default_folder() is None  # tests do not touch the user's
    assert status(compiled(True)) == status(compiled(False)) == "off"
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path / "there"))
    assert cache.default_folder() == tmp_path / "there" / "compiled"
    assert status(compiled(True)) == "miss"
    assert status(compiled(True)) == "hit"
    assert stat.S_IMODE((tmp_path / "there" / "compiled").stat().st_mode) == 0o700
    monkeypatch.delenv("REGRAFT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.default_folder() == tmp_path / "xdg" / "regraft" / "compiled"


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OptionError, match="'cache' cannot be this"):
        compiled(tmp_path / "file")
    monkeypatch.setenv("REGRAFT_CACHE_DIR", "/proc/nowhere/regraft")
    model = Mlp().eval()
    result = compiled(True, model)
    assert status(result) == "not cached"
    assert "/proc/nowhere/regraft/compiled cannot be written" in result.report.cache.reason
    same(result, model, X)


@pytest.mark.parametrize("value", [3, "", None, b"x"])
def test_options_that_are_none(value: Any) -> None:
    with pytest.raises(OptionError, match="'cache' cannot be this"):
        compiled(value)


DAMAGE = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "a byte changed": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "of a newer format": lambda content: content.replace(b"regraft-cache 1", b"regraft-cache 2", 1),
    "foreign": lambda content: os.urandom(1000),
    "a pickle": lambda content: b"\x80\x04cos\nsystem\n(S'false'\ntR.",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_replaced(tmp_path: Path, damage: str) -> None:
    compiled(tmp_path)
    (entry,) = cache.CacheFolder(tmp_path).entries()
    entry.path.write_bytes(DAMAGE[damage](entry.path.read_bytes()))
    model = Mlp().eval()
    result = compiled(tmp_path, model)
    assert status(result) == "miss"
    assert result.report.cache.reason.startswith("the entry cannot be used, it")
    same(result, model, X)
    assert status(compiled(tmp_path)) == "hit"


def forged(path: Path, old: bytes, new: bytes) -> None:
    """Change the graph of an entry so that nothing but its results tells."""
    magic, _, content = path.read_bytes().split(b"\n", 2)
    assert old in content
    changed = content.replace(old, new)
    path.write_bytes(b"\n".join([magic, hashlib.sha256(changed).hexdigest().encode(), changed]))


def test_an_entry_whose_results_are_wrong_is_replaced(tmp_path: Path) -> None:
    """A hit ends no worse than a miss: what verification finds, another compile may not have."""
    model = Mlp().eval()
    compiled(tmp_path, model)
    (entry,) = cache.CacheFolder(tmp_path).entries()
    forged(entry.path, rb"activation = \"relu\"", rb"activation = \"tanh\"")
    result = compiled(tmp_path, model, verify=True)
    assert status(result) == "miss"
    assert "what the entry gives was found to be wrong" in result.report.cache.reason
    assert result.report.error < 1e-6
    same(result, model, X)
    again = compiled(tmp_path, model, verify=True)
    assert status(again) == "hit"
    same(again, model, X)


class ReluIsTanh(regraft.Rewrite):
    """Wrong."""

    exactness = regraft.Exactness.EXACT

    def pattern(self, op: Any, x: Any) -> Any:
        return op.aten.relu(x)

    def rewrite(self, op: Any, m: Any) -> Any:
        return op.aten.tanh(m.x)


def test_a_compile_that_is_wrong_is_so_with_and_without_an_entry(tmp_path: Path) -> None:
    compiled(tmp_path, rewrites=[ReluIsTanh])
    assert status(compiled(tmp_path, rewrites=[ReluIsTanh])) == "hit"
    for _ in range(2):
        with pytest.raises(NumericsMismatch):
            compiled(tmp_path, rewrites=[ReluIsTanh], verify=True)


def test_an_entry_that_is_no_file(tmp_path: Path) -> None:
    compiled(tmp_path)
    (entry,) = cache.CacheFolder(tmp_path).entries()
    entry.path.rename(tmp_path / "elsewhere")
    entry.path.symlink_to(tmp_path / "elsewhere")
    result = compiled(tmp_path)
    assert "is a link" in result.report.cache.reason
    assert not entry.path.is_symlink()  # it was replaced, and what it led to is as it was
    entry.path.unlink()
    os.mkfifo(entry.path)
    assert "is not a plain file" in compiled(tmp_path).report.cache.reason
    assert status(compiled(tmp_path)) == "hit"
    entry.path.unlink()
    entry.path.mkdir()
    result = compiled(tmp_path)
    assert status(result) == "not cached"
    assert "cannot be written" in result.report.cache.reason


def test_the_folder_stays_within_its_limit(tmp_path: Path) -> None:
    folder = cache.CacheFolder(tmp_path, limit=100)
    for number in range(5):
        folder.write(f"e{number}", bytes(30))
        os.utime(tmp_path / f"e{number}.entry", (number, number))
    assert [e.path.name for e in folder.entries()] == ["e4.entry", "e3.entry", "e2.entry"]
    assert folder.size() == 90
    assert folder.read("e2") == bytes(30)  # a use, so that another one goes next
    folder.write("e5", bytes(30))
    assert {e.path.name for e in folder.entries()} == {"e5.entry", "e2.entry", "e4.entry"}
    assert folder.read("e3") is None
    assert folder.prune(30) == 2
    assert folder.clear() == 1
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_removed_in_time(tmp_path: Path) -> None:
    folder = cache.CacheFolder(tmp_path)
    (tmp_path / ".tmp-old").write_bytes(b"x")
    os.utime(tmp_path / ".tmp-old", (0, 0))
    (tmp_path / ".tmp-young").write_bytes(b"x")
    (tmp_path / "of-somebody-else").write_bytes(b"x")
    folder.write("e", b"content")
    assert sorted(os.listdir(tmp_path)) == [".tmp-young", "e.entry", "of-somebody-else"]
    assert folder.clear() == 1
    assert os.listdir(tmp_path) == ["of-somebody-else"]


def test_entries_say_what_they_are(tmp_path: Path) -> None:
    compiled(tmp_path)
    (entry,) = cache.CacheFolder(tmp_path).entries()
    head = entry.head()
    assert head is not None
    assert head["model"] == f"{Mlp.__module__}.Mlp"
    assert head["torch"] == torch.__version__
    entry.path.write_bytes(b"regraft-cache 1\n")
    assert entry.head() is None
    assert cache.CacheFolder(tmp_path / "none").entries() == []
