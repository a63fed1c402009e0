"""Bundles: several functions in one artefact, which has each tensor once."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.errors import ArtefactError, BackendError, NoFunctionError, OptionError, RegraftError
from regraft.runtime import CompiledModel
from regraft.testing import assert_close

X, Y = torch.randn(2, 48), torch.randn(2, 48)


class Coder(nn.Module):
    """Two methods that share ``first``; ``transposed`` is read as a view, ``twins`` have equal values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 48), nn.Linear(48, 48)
        self.register_buffer("twins", torch.ones(48))
        self.register_buffer("twin", torch.ones(48))

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x)) * self.twin

    def decode(self, y: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.second(y) @ self.first.weight + hidden * self.twins, self.first(hidden)


def compiled_of(model: Coder, backend: str = "eager") -> regraft.Bundle:
    return regraft.Bundle(
        {
            "encode": regraft.compile(model.encode, (X,), backends=(backend,)),
            "decode": regraft.compile(model.decode, (Y, X), backends=(backend,)),
        }
    )


@pytest.fixture(scope="module")
def model() -> Coder:
    torch.manual_seed(0)
    return Coder().eval()


@pytest.fixture(scope="module")
def bundle(model: Coder) -> regraft.Bundle:
    return compiled_of(model)


@pytest.fixture
def saved(bundle: regraft.Bundle, tmp_path: Path) -> Path:
    bundle.save(tmp_path / "model")
    return tmp_path / "model"


def check(compiled: CompiledModel, method: Callable[..., Any], *args: Tensor) -> None:
    """``compiled`` gives what the method of a module gives, by the numerics rule."""
    owner, function = method.__self__, method.__func__  # type: ignore[attr-defined]
    with torch.no_grad():
        exact = function(copy.deepcopy(owner).double(), *[a.double() for a in args])
        assert_close(compiled(*args), exact, method(*args))


def assert_same(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Two bundles compute the same bits."""
    assert torch.equal(a["encode"](X), b["encode"](X))
    for ours, theirs in zip(a["decode"](Y, X), b["decode"](Y, X), strict=True):
        assert torch.equal(ours, theirs)


def test_functions_are_items_and_attributes(bundle: regraft.Bundle, model: Coder) -> None:
    assert bundle.encode is bundle["encode"]
    assert list(bundle) == ["encode", "decode"]
    assert {"encode", "decode", "save", "refresh"} <= set(dir(bundle))
    assert repr(bundle) == "<Bundle(encode, decode)>"
    check(bundle.encode, model.encode, X)
    check(bundle.decode, model.decode, Y, X)


def test_a_function_that_is_not_there(bundle: regraft.Bundle) -> None:
    for look in (lambda: bundle["encoder"], lambda: bundle.encoder):
        with pytest.raises(NoFunctionError, match="no function 'encoder'; did you mean 'encode'"):
            look()
    assert "encoder" not in bundle
    assert not hasattr(bundle, "encoder")
    assert bundle.get("encoder") is None


@pytest.mark.parametrize("backend", ["eager", "example", "ort"])
def test_round_trip(model: Coder, backend: str, tmp_path: Path) -> None:
    compiled = compiled_of(model, backend)
    compiled.save(tmp_path / "model")
    loaded = regraft.load(tmp_path / "model")
    assert isinstance(loaded, regraft.Bundle)
    assert list(loaded) == list(compiled)
    assert_same(loaded, compiled)
    for name, function in compiled.items():
        assert loaded[name].ir == function.ir
        assert loaded[name].signature == function.signature
        assert loaded[name].report.to_dict() == json.loads(json.dumps(function.report.to_dict()))
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (
        tmp_path / "model" / "manifest.json"
    ).read_bytes()


def test_one_function_stays_a_bundle(bundle: regraft.Bundle, tmp_path: Path) -> None:
    regraft.Bundle({"encode": bundle.encode}).save(tmp_path / "model")
    assert list(regraft.load(tmp_path / "model")) == ["encode"]


def test_compiled_models_are_loaded_as_such(bundle: regraft.Bundle, tmp_path: Path) -> None:
    bundle.encode.save(tmp_path / "model")
    assert isinstance(regraft.load(tmp_path / "model"), CompiledModel)


# -- each tensor once ----------------------------------------------------------------------------


def weights_size(path: Path) -> int:
    return (path / "weights.safetensors").stat().st_size


def header(path: Path) -> dict[str, Any]:
    content = (path / "weights.safetensors").read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


@pytest.mark.parametrize("backend", ["eager", "example", "ort"])
def test_a_shared_tensor_is_stored_once(model: Coder, backend: str, tmp_path: Path) -> None:
    whole = compiled_of(model, backend)
    whole.save(tmp_path / "both")
    whole.encode.save(tmp_path / "encode")
    whole.decode.save(tmp_path / "decode")
    distinct = {w.detach().numpy().tobytes() for w in model.state_dict().values()}
    assert weights_size(tmp_path / "both") < sum(map(len, distinct)) + 1500
    assert weights_size(tmp_path / "both") < weights_size(tmp_path / "decode") + 1500
    assert weights_size(tmp_path / "both") < 0.7 * sum(
        weights_size(tmp_path / name) for name in ("encode", "decode")
    )


def test_loaded_functions_share_tensors(saved: Path) -> None:
    """What the back ends hold of the shared weights is one tensor."""
    loaded = regraft.load(saved)
    first, second = (
        vars(function.plan.steps[0].executable)["_constants"].values() for function in loaded.values()
    )
    shared = [a for a in first for b in second if a.data_ptr() == b.data_ptr()]
    assert sorted(tuple(t.shape) for t in shared) == [(48,), (48,), (48, 48)]


def test_equal_names_of_different_tensors(tmp_path: Path) -> None:
    """Two models with the same names and shapes, and a third with the same names and other shapes."""
    inputs = {"a": torch.randn(2, 4), "b": torch.randn(2, 4), "c": torch.randn(2, 6)}
    models = {name: nn.Linear(x.shape[1], 3).eval() for name, x in inputs.items()}
    compiled = regraft.Bundle(
        {name: regraft.compile(models[name], (x,), backends=("eager",)) for name, x in inputs.items()}
    )
    compiled.save(tmp_path / "model")
    loaded = regraft.load(tmp_path / "model")
    for name, x in inputs.items():
        check(loaded[name], models[name].forward, x)
    assert len(header(tmp_path / "model").keys() - {"__metadata__"}) == 6


def test_equal_recipes_are_stored_once(tmp_path: Path) -> None:
    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(32, 32)), nn.Parameter(torch.randn(32, 32))

        def plain(self, x: Tensor) -> Tensor:
            return x @ (self.a + self.b)

        def relu(self, x: Tensor) -> Tensor:
            return (x @ (self.a + self.b)).relu()

    model, x = Merged().eval(), torch.randn(2, 32)
    regraft.Bundle(
        {
            "plain": regraft.compile(model.plain, (x,), backends=("eager",)),
            "relu": regraft.compile(model.relu, (x,), backends=("eager",)),
        }
    ).save(tmp_path / "model")
    assert weights_size(tmp_path / "model") < 32 * 32 * 4 + 500
    loaded = regraft.load(tmp_path / "model")
    check(loaded.relu, model.relu, x)
    check(loaded.plain, model.plain, x)


def test_values_that_only_look_equal_stay_apart(tmp_path: Path) -> None:
    """Zeros of both signs, of another shape and of another type."""

    class Table(nn.Module):
        def __init__(self, table: Tensor) -> None:
            super().__init__()
            self.register_buffer("table", table)

        def forward(self, x: Tensor) -> Tensor:
            return x / self.table

    tables = {
        "plus": torch.zeros(2, 2),
        "minus": -torch.zeros(2, 2),
        "flat": torch.zeros(4),
        "double": torch.zeros(2, 2, dtype=torch.float64),
    }
    compiled = regraft.Bundle(
        {
            name: regraft.compile(Table(t).eval(), (torch.ones_like(t),), backends=("eager",))
            for name, t in tables.items()
        }
    )
    compiled.save(tmp_path / "model")
    loaded = regraft.load(tmp_path / "model")
    for name, t in tables.items():
        assert torch.equal(loaded[name](torch.ones_like(t)), torch.ones_like(t) / t)
    assert len(header(tmp_path / "model").keys() - {"__metadata__"}) == len(tables)


# -- refresh -------------------------------------------------------------------------------------


def test_refresh_reaches_every_function(tmp_path: Path) -> None:
    compiled, other = compiled_of(Coder().eval()), Coder().eval()
    compiled.refresh(other)
    check(compiled.encode, other.encode, X)
    check(compiled.decode, other.decode, Y, X)
    compiled.save(tmp_path / "model")
    assert_same(regraft.load(tmp_path / "model"), compiled)


def test_refresh_after_a_change_in_place() -> None:
    model = Coder().eval()
    compiled = compiled_of(model)
    with torch.no_grad():
        model.first.weight.mul_(2)
    for call in (lambda: compiled.encode(X), lambda: compiled.decode(Y, X)):
        with pytest.raises(RegraftError, match=r"call refresh\(model\)"):
            call()
    compiled.refresh(model)
    check(compiled.encode, model.encode, X)
    check(compiled.decode, model.decode, Y, X)


def test_refresh_changes_all_or_nothing() -> None:
    model, other = Coder().eval(), Coder().eval()
    compiled = compiled_of(model)
    other.second = nn.Linear(48, 47)  # only decode reads it, and encode comes first
    with pytest.raises(RegraftError, match="Compile again"):
        compiled.refresh(other)
    check(compiled.encode, model.encode, X)
    check(compiled.decode, model.decode, Y, X)


def test_refresh_by_function() -> None:
    models = {"one": nn.Linear(4, 3).eval(), "two": nn.Linear(4, 2).eval()}
    x = torch.randn(2, 4)
    compiled = regraft.Bundle({n: regraft.compile(m, (x,), backends=("eager",)) for n, m in models.items()})
    fresh = {"one": nn.Linear(4, 3).eval(), "two": nn.Linear(4, 2).eval()}
    compiled.refresh(fresh)
    for name, model in fresh.items():
        check(compiled[name], model.forward, x)
    with pytest.raises(OptionError, match="expected a dict of one, two, got a dict of one"):
        compiled.refresh({"one": models["one"]})


def test_loaded_bundles_are_not_refreshed(saved: Path, model: Coder) -> None:
    with pytest.raises(RegraftError, match="a loaded artefact cannot be refreshed"):
        regraft.load(saved).refresh(model)


# -- state ---------------------------------------------------------------------------------------


class Cached(nn.Module):
    """A cache that ``prefill`` fills and ``decode`` reads and extends."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8, bias=False)
        self.register_buffer("cache", torch.zeros(6, 8))
        self.register_buffer("length", torch.zeros((), dtype=torch.int64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def prefill(self, x: Tensor) -> Tensor:
        self.cache[: x.shape[0]] = self.project(x)
        self.length.fill_(x.shape[0])
        return self.cache.sum(0)

    def decode(self, x: Tensor) -> Tensor:
        self.cache.index_copy_(0, self.length.reshape(1), self.project(x))
        self.length.add_(1)
        self.calls.add_(1)
        return torch.softmax(x @ self.cache.T, -1) @ self.cache


def cached_of(model: Cached) -> regraft.Bundle:
    return regraft.Bundle(
        {
            "prefill": regraft.compile(model.prefill, (torch.zeros(3, 8),), backends=("eager",)),
            "decode": regraft.compile(model.decode, (torch.zeros(1, 8),), backends=("eager",)),
        }
    )


def test_shared_state_is_one_tensor_after_load(tmp_path: Path) -> None:
    model, prompt, token = Cached().eval(), torch.randn(3, 8), torch.randn(1, 8)
    compiled = cached_of(model)
    twin = copy.deepcopy(model)
    check(compiled.prefill, twin.prefill, prompt)
    compiled.save(tmp_path / "model")
    loaded = regraft.load(tmp_path / "model")
    for _ in range(2):  # with the state as it was saved
        check(loaded.decode, twin.decode, token)
    check(loaded.prefill, twin.prefill, prompt + 1)
    check(loaded.decode, twin.decode, token)
    assert int(model.length) == 3  # the original's state is its own
    check(regraft.load(tmp_path / "model").decode, model.decode, token)


def test_states_of_equal_value_stay_apart(tmp_path: Path) -> None:
    """``length`` and ``calls`` are both 0 when this is saved; so are the caches of two models."""
    one, two, token = Cached().eval(), Cached().eval(), torch.randn(1, 8)
    two.load_state_dict(one.state_dict())
    compiled = regraft.Bundle(
        {
            "one": regraft.compile(one.decode, (token,), backends=("eager",)),
            "two": regraft.compile(two.decode, (token,), backends=("eager",)),
        }
    )
    compiled.save(tmp_path / "model")
    loaded = regraft.load(tmp_path / "model")
    for _ in range(3):
        check(loaded.one, one.decode, token)
    check(loaded.two, two.decode, token)


def test_refresh_takes_state_over() -> None:
    compiled, other = cached_of(Cached().eval()), Cached().eval()
    compiled.refresh(other)
    twin, prompt = copy.deepcopy(other), torch.randn(3, 8)
    check(compiled.prefill, twin.prefill, prompt)
    check(compiled.decode, twin.decode, prompt[:1])
    assert int(other.length) == 4


class Counter(nn.Module):
    def __init__(self, count: Tensor) -> None:
        super().__init__()
        self.register_buffer("count", count)

    def step(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x + self.count

    def read(self, x: Tensor) -> Tensor:
        return x + self.count

    def read_doubled(self, x: Tensor) -> Tensor:
        return x + (self.count + self.count)


def counting(method: Callable[..., Any]) -> CompiledModel:
    return regraft.compile(method, (torch.zeros(()),), backends=("eager",))


@pytest.mark.parametrize("read", ["read", "read_doubled"])
def test_a_constant_that_another_function_writes_to(read: str) -> None:
    model = Counter(torch.zeros(4)).eval()
    functions = {"step": counting(model.step), "read": counting(getattr(model, read))}
    expected = "'step' writes to 'self.count', and 'read', which only reads it, was compiled with its value"
    with pytest.raises(OptionError, match=expected):
        regraft.Bundle(functions)
    with pytest.raises(OptionError, match=expected):
        regraft.Bundle(dict(reversed(functions.items())))
    apart = regraft.Bundle({**functions, "read": counting(getattr(Counter(torch.ones(4)).eval(), read))})
    with pytest.raises(OptionError, match=expected):
        apart.refresh(model)
    assert apart.read(torch.zeros(())).max() == (1 if read == "read" else 2)


def test_states_that_overlap() -> None:
    memory = torch.zeros(6)
    functions = {
        name: counting(Counter(count).eval().step)
        for name, count in {"all": memory, "left": memory[:4]}.items()
    }
    with pytest.raises(
        OptionError, match=r"'self\.count', which 'all' writes to, overlaps with state of 'left'"
    ):
        regraft.Bundle(functions)


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("functions", [{}, [], None, 3, "encode"])
def test_no_functions(functions: Any) -> None:
    with pytest.raises(OptionError, match="a bundle holds compiled models, and it is made of at least one"):
        regraft.Bundle(functions)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "is not an identifier"),
        ("en code", "is not an identifier"),
        ("../x", "is not an identifier"),
        ("3d", "is not an identifier"),
        (3, "is not an identifier"),
        (None, "is not an identifier"),
        ("class", "is a keyword"),
        ("_encode", "begins with an underscore"),
        ("__init__", "begins with an underscore"),
        ("save", "is taken by the bundle"),
        ("refresh", "is taken by the bundle"),
        ("items", "is taken by the bundle"),
    ],
)
def test_names_that_cannot_be_attributes(bundle: regraft.Bundle, name: Any, expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        regraft.Bundle({name: bundle.encode})


def test_names_that_differ_in_case_only(bundle: regraft.Bundle) -> None:
    with pytest.raises(OptionError, match="'encode' and 'Encode' differ in case only"):
        regraft.Bundle({"encode": bundle.encode, "Encode": bundle.decode})


@pytest.mark.parametrize("value", [None, nn.Linear(2, 2), lambda x: x, "encode"])
def test_values_that_are_not_compiled(bundle: regraft.Bundle, value: Any) -> None:
    with pytest.raises(OptionError, match="'decode' is none"):
        regraft.Bundle({"encode": bundle.encode, "decode": value})


def test_the_dict_is_copied(bundle: regraft.Bundle) -> None:
    functions = dict(bundle)
    made = regraft.Bundle(functions)
    functions.clear()
    assert list(made) == ["encode", "decode"]
    with pytest.raises(AttributeError):
        made.encode = bundle.decode  # pyright: ignore[reportAttributeAccessIssue]


def test_nothing_is_overwritten(bundle: regraft.Bundle, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ArtefactError, match="there is something at this path already"):
        bundle.save(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"
    assert os.listdir(tmp_path) == ["model"]


def test_a_function_that_cannot_be_saved(bundle: regraft.Bundle, tmp_path: Path) -> None:
    class Stubborn:
        backend = "eager"

        def run(self, inputs: Any, sizes: Any) -> Any:
            raise AssertionError

        def save(self, writer: Any) -> Any:
            raise BackendError("it cannot be saved", "eager")

    good = bundle.encode
    step = good.plan.steps[0]
    bad = CompiledModel(
        good.signature,
        type(good.plan)(1, 2, (type(step)(Stubborn(), (0,), (1,)),), (1,)),
        good.report,
        good.ir,
    )
    with pytest.raises(BackendError, match="it cannot be saved"):
        regraft.Bundle({"good": good, "bad": bad}).save(tmp_path / "model")
    assert os.listdir(tmp_path) == []


# -- the artefact --------------------------------------------------------------------------------


def test_the_folder_holds_what_the_manifest_lists(saved: Path) -> None:
    files = json.loads((saved / "manifest.json").read_text())["files"]
    assert {*files, "manifest.json"} == set(os.listdir(saved))
    for name, expected in files.items():
        assert hashlib.sha256((saved / name).read_bytes()).hexdigest() == expected


def test_artefacts_of_format_1_0_are_read(bundle: regraft.Bundle, tmp_path: Path) -> None:
    """An artefact of one function without adapters has the form that 1.0 had, but for their empty list."""
    bundle.encode.save(tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert manifest["format"] == [1, 3]
    assert manifest.pop("adapters") == []
    assert {"signature", "plan", "report", "files"} <= set(manifest)
    manifest["format"] = [1, 0]
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(manifest))
    assert torch.equal(regraft.load(tmp_path / "model")(X), bundle.encode(X))


Edit = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda f: f.clear(), "holds compiled models, and it is made of at least one"),
        (lambda f: f.update(save=f.pop("encode")), "is taken by the bundle"),
        (lambda f: f.update({"../x": f.pop("encode")}), "is not an identifier"),
        (lambda f: f["encode"].pop("tensors"), "malformed: KeyError"),
        (lambda f: f["encode"].pop("files"), "malformed: KeyError"),
        (lambda f: f["encode"].update(tensors=3), "malformed"),
        (lambda f: f["encode"].update(tensors={}), "malformed: KeyError"),
        (lambda f: f["encode"].update(files={"graph.ir": "manifest.json"}), "does not list 'manifest.json'"),
        (lambda f: f["encode"].update(files={"graph.ir": "../x"}), "does not list"),
        (lambda f: f["encode"].update(files={"graph.ir": []}), "malformed"),
        (lambda f: f["encode"].update(tensors=dict.fromkeys(f["encode"]["tensors"], "x")), "lacks"),
        (lambda f: f["encode"].update(tensors={name: [] for name in f["encode"]["tensors"]}), "malformed"),
        (lambda f: f["encode"].update(functions={}), None),
        (lambda f: f.update(encode=None), "malformed"),
        (lambda f: f["decode"]["plan"].update(slots=1), "the slots are not in use"),
    ],
)
def test_a_hostile_manifest(saved: Path, edit: Edit, expected: str | None) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    edit(manifest["functions"])
    (saved / "manifest.json").write_text(json.dumps(manifest))
    if expected is None:
        regraft.load(saved)
        return
    with pytest.raises(ArtefactError, match=expected):
        regraft.load(saved)


@pytest.mark.parametrize("functions", [None, 3, [], "encode"])
def test_functions_that_are_no_object(saved: Path, functions: Any) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["functions"] = functions
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="malformed"):
        regraft.load(saved)


#: Loads the artefact argv[1], runs both functions on argv[2] and writes the results to argv[3].
LOADER = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("regraft.ir", "regraft.compiler", "regraft.rewrites", "sympy", "onnx_ir")):
            raise ImportError(f"{name} must not be imported here")

sys.meta_path.insert(0, Blocked())

import torch
import regraft

bundle = regraft.load(sys.argv[1])
x, y = torch.load(sys.argv[2])
torch.save([bundle.encode(x), *bundle["decode"](y, x)], sys.argv[3])
bundle.save(sys.argv[1] + ".again")

for name in ("regraft.ir", "regraft.compiler", "regraft.rewrites"):
    assert name not in sys.modules, name
"""


def test_loads_and_runs_without_the_compiler(model: Coder, tmp_path: Path) -> None:
    compiled = compiled_of(model, "ort")
    compiled.save(tmp_path / "model")
    torch.save([X, Y], tmp_path / "x.pt")
    files = [str(tmp_path / file) for file in ("model", "x.pt", "y.pt")]
    run = subprocess.run([sys.executable, "-c", LOADER, *files], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    results = torch.load(tmp_path / "y.pt")
    expected = [compiled.encode(X), *compiled.decode(Y, X)]
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    assert isinstance(regraft.load(tmp_path / "model.again"), regraft.Bundle)
