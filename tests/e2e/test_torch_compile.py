"""``torch.compile(model, backend="regraft")``: Dynamo's graphs, compiled by regraft."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import tomllib
import weakref
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.utils import _pytree as pytree

import regraft
from regraft.testing import assert_close, randomise

_ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """No graphs of other tests; gradients are for the tests that ask for them."""
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


class Counting:
    """The back end, counting graphs and compiles."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.graphs: list[Any] = []
        self.compiles = 0
        backend = sys.modules[regraft.regraft_backend.__module__]
        original = backend.compile

        def compile(*args: Any, **kwargs: Any) -> Any:
            self.compiles += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(backend, "compile", functools.wraps(original)(compile))

    def __call__(self, graph: Any, inputs: Any, **kwargs: Any) -> Any:
        self.graphs.append(graph)
        return regraft.regraft_backend(graph, inputs, **kwargs)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


class Small(nn.Module):
    """Weights of every kind: a parameter, a buffer, a tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.register_buffer("scale", torch.ones(6))
        self.plain = torch.full((6,), 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x)) * self.scale + self.plain


@pytest.fixture
def small() -> Small:
    return randomise(Small().eval())


def compiled_by(model: Any, **kwargs: Any) -> Any:
    return torch.compile(model, **{"backend": regraft.regraft_backend, **kwargs})


def check(actual: Any, expected: Any) -> None:
    """Judge tensors by the numerics rule, against those of eager torch."""
    wide = pytree.tree_map(lambda t: t.double() if t.is_floating_point() else t, expected)
    assert_close(actual, wide, eager=expected)


def rows(n: int, width: int = 4) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n))


# -- the entry point ---------------------------------------------------------------------------


def test_the_entry_point_names_the_back_end() -> None:
    declared = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    points = declared["torch_dynamo_backends"]
    assert list(points) == ["regraft"]
    assert EntryPoint("regraft", points["regraft"], "torch_dynamo_backends").load() is regraft.regraft_backend


def test_by_name_in_a_process_that_imports_only_torch(tmp_path: Path) -> None:
    declared = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    metadata = tmp_path / "regraft_entry-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: regraft-entry\nVersion: 0\n")
    points = "\n".join(f"{name} = {value}" for name, value in declared["torch_dynamo_backends"].items())
    (metadata / "entry_points.txt").write_text(f"[torch_dynamo_backends]\n{points}\n")
    code = (
        f"import sys; sys.path[:0] = [{str(_ROOT)!r}, {str(tmp_path)!r}]\n"
        "import torch\n"
        "model = torch.nn.Linear(4, 4).eval()\n"
        "x = torch.randn(2, 4)\n"
        "with torch.no_grad():\n"
        "    got = torch.compile(model, backend='regraft')(x)\n"
        "    assert torch.allclose(got, model(x), atol=1e-6)\n"
        "assert 'regraft' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)


# -- static, dynamic, graph breaks --------------------------------------------------------------


def test_static(small: Small, counting: Counting) -> None:
    compiled = compiled_by(small, backend=counting)
    check(compiled(rows(3)), small(rows(3)))
    check(compiled(rows(3) + 1), small(rows(3) + 1))
    assert counting.compiles == 1


def test_weights_are_constants(small: Small) -> None:
    held: list[Any] = []

    def keeping(graph: Any, inputs: Any) -> Any:
        held.append(regraft.regraft_backend(graph, inputs))
        return held[-1]

    compiled_by(small, backend=keeping)(rows(3))
    model = held[0].prepare([small.linear.weight, small.linear.bias, rows(3), small.scale, small.plain])
    assert len(model.signature.tensors) == 1


def test_dynamic_sizes_are_one_graph(small: Small, counting: Counting) -> None:
    compiled = compiled_by(small, backend=counting, dynamic=True)
    for n in (3, 5, 11, 64):
        check(compiled(rows(n)), small(rows(n)))
    assert counting.compiles == 1
    for n in (1, 0):
        check(compiled(rows(n)), small(rows(n)))


def test_sizes_become_dynamic_on_their_own(small: Small, counting: Counting) -> None:
    compiled = compiled_by(small, backend=counting)
    for n in (3, 5, 11, 64):
        check(compiled(rows(n)), small(rows(n)))
    assert counting.compiles == 2


def test_sizes_inside_the_graph() -> None:
    def model(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] * 2, -1) / x.shape[0]

    compiled = compiled_by(model, dynamic=True)
    for n in (3, 6):
        check(compiled(rows(n)), model(rows(n)))


class Broken(nn.Module):
    """Two graphs; sizes and views go from one to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        hidden = torch.tanh(self.before(x))
        half = x.shape[0] // 2
        torch._dynamo.graph_break()
        return self.after(hidden[:half]), half


@pytest.mark.parametrize("dynamic", [False, True])
def test_graph_break(dynamic: bool, counting: Counting) -> None:
    model = randomise(Broken().eval())
    compiled = compiled_by(model, backend=counting, dynamic=dynamic)
    for n in (6, 8, 6):
        got, half = compiled(rows(n))
        check(got, model(rows(n))[0])
        assert half == n // 2
    assert len(counting.graphs) == (2 if dynamic else 4)


def test_numbers_that_are_no_sizes_have_graphs_of_their_own(counting: Counting) -> None:
    def model(x: Tensor, n: int, factor: float) -> Tensor:
        return x[:, :n] * factor

    compiled = compiled_by(model, backend=counting, dynamic=True)
    for n, factor in ((2, 1.5), (3, 1.5), (3, -2.5), (2, 1.5)):
        check(compiled(rows(5), n, factor), model(rows(5), n, factor))
    assert (len(counting.graphs), counting.compiles) == (1, 3)


def test_oldest_number_makes_room(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[regraft.regraft_backend.__module__], "_REMEMBERED", 2)

    def model(x: Tensor, n: int) -> Tensor:
        return x[:n] + 1

    compiled = compiled_by(model, backend=counting, dynamic=True)
    for n, compiles in ((2, 1), (3, 2), (4, 3), (4, 3), (3, 3), (2, 4)):
        check(compiled(rows(8), n), model(rows(8), n))
        assert counting.compiles == compiles


# -- results -----------------------------------------------------------------------------------


def _views_of_an_argument(x: Tensor) -> tuple[Tensor, ...]:
    return x[1:].t(), x * 2


def _views_of_one_another(x: Tensor) -> tuple[Tensor, ...]:
    return (x * 2).chunk(2, -1)


def _views_of_a_transposed(x: Tensor) -> tuple[Tensor, ...]:
    y = x.t() * 2
    return y[1:], y


def _only_views(x: Tensor) -> tuple[Tensor, ...]:
    return x.view(-1), x.t()


@pytest.mark.parametrize(
    "function", [_views_of_an_argument, _views_of_one_another, _views_of_a_transposed, _only_views]
)
def test_a_write_to_a_view_is_seen_by_what_it_views(
    function: Callable[[Tensor], tuple[Tensor, ...]],
) -> None:
    compiled = compiled_by(function, dynamic=True)
    for n in (4, 6):
        seen: list[tuple[Tensor, ...]] = []
        for run in (compiled, function):
            x = rows(n + 1)[1:]
            results = run(x)
            results[0].add_(1)
            seen.append((x, *results))
        check(seen[0], seen[1])


def test_results_that_are_no_tensors() -> None:
    def model(x: Tensor) -> dict[str, Any]:
        return {"sum": x.sum(0), "rows": x.shape[0] + 1, "none": None, "same": x}

    x = rows(5)
    got = compiled_by(model, dynamic=True)(x)
    check(got["sum"], x.sum(0))
    assert (got["rows"], got["none"]) == (6, None)
    assert got["same"] is x


# -- weights that change ------------------------------------------------------------------------


def test_a_write_to_a_weight_is_seen(small: Small, counting: Counting) -> None:
    compiled = compiled_by(small, backend=counting)
    compiled(rows(3))
    for weight in (small.linear.weight, small.linear.bias, small.scale, small.plain):
        weight.mul_(2.0)
        check(compiled(rows(3)), small(rows(3)))
    assert counting.compiles == 1


def test_other_memory_and_another_parameter_are_seen(small: Small) -> None:
    compiled = compiled_by(small)
    compiled(rows(3))
    small.linear.weight.data = torch.randn(6, 4)
    check(compiled(rows(3)), small(rows(3)))
    small.linear.weight = nn.Parameter(torch.randn(6, 4))
    check(compiled(rows(3)), small(rows(3)))
    small.load_state_dict({k: v + 1 for k, v in small.state_dict().items()})
    check(compiled(rows(3)), small(rows(3)))


class Counter(nn.Module):
    """It writes to a buffer, to its argument, and returns no tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        x.mul_(self.calls)
        return x[1:]


def test_what_a_graph_writes_to(counting: Counting) -> None:
    model, reference = Counter().eval(), Counter().eval()
    held: list[Any] = []

    def keeping(graph: Any, inputs: Any) -> Any:
        held.append(counting(graph, inputs))
        return held[-1]

    compiled = compiled_by(model, backend=keeping)
    used: list[Any] = []
    for _ in range(3):
        ours, theirs = rows(3), rows(3)
        check([compiled(ours), ours, model.calls], [reference(theirs), theirs, reference.calls])
        used.append(held[0].prepare([model.calls, ours]))
    assert len(held) == 1
    assert len({id(each) for each in used}) == 1  # its own writes are no change of a weight
    for each in (model, reference):
        each.calls.zero_()
    check(compiled(rows(3)), reference(rows(3)))


def test_weights_of_inference_mode(counting: Counting) -> None:
    with torch.inference_mode():
        model = randomise(Small().eval())
        compiled = compiled_by(model, backend=counting)
        for _ in range(2):
            check(compiled(rows(3)), model(rows(3)))
            model.linear.weight.mul_(2.0)
        check(compiled(rows(3)), model(rows(3)))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.linear(x))


def test_layers_compiled_one_by_one_share_a_graph(counting: Counting) -> None:
    layers = nn.Sequential(*[randomise(Layer()) for _ in range(3)]).eval()
    expected = layers(rows(3))
    for layer in layers:
        layer.compile(backend=counting)
    for _ in range(2):
        check(layers(rows(3)), expected)
    assert counting.compiles == 1


def test_a_model_that_goes_is_not_kept(small: Small) -> None:
    def run(x: Tensor, model: nn.Module) -> Tensor:
        return model(x)

    compiled = compiled_by(run)
    compiled(rows(3), small)
    other = randomise(Small().eval())
    compiled(rows(3), other)
    gone = weakref.ref(other.linear.weight)
    del other
    gc.collect()
    assert gone() is None
    check(compiled(rows(3), small), small(rows(3)))


# -- gradients ---------------------------------------------------------------------------------


def test_gradients_are_refused(small: Small) -> None:
    with torch.enable_grad(), pytest.raises(BackendCompilerFailed, match=r"torch.no_grad\(\)") as caught:
        compiled_by(small)(rows(3))
    assert isinstance(caught.value.inner_exception, regraft.errors.GradientError)
    assert "'self.linear.weight' requires grad" in str(caught.value)


def test_compiled_without_grad_and_called_with_it(small: Small) -> None:
    compiled = compiled_by(small)
    compiled(rows(3))
    with torch.enable_grad(), pytest.raises(BackendCompilerFailed, match="computes no gradients"):
        compiled(rows(3))


def test_graphs_that_lose_no_gradient(small: Small) -> None:
    @torch.no_grad()
    def quiet(x: Tensor) -> Tensor:
        return small(x)

    with torch.enable_grad():
        x = rows(3).requires_grad_()
        check(compiled_by(quiet)(x), quiet(x))
        check(compiled_by(lambda y: y * 2)(rows(3)), rows(3) * 2)
        frozen = randomise(Small().eval()).requires_grad_(False)
        check(compiled_by(frozen)(rows(3)), frozen(rows(3)))


# -- options and errors ------------------------------------------------------------------------


def test_options_reach_the_compile(small: Small, tmp_path: Path) -> None:
    options = {"fallback": "eager", "verify": True, "backends": ["eager"], "dump": tmp_path}
    model = randomise(Broken().eval())
    check(compiled_by(model, options=options)(rows(4))[0], model(rows(4))[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["graph_0", "graph_1"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"options": {"fallbak": "eager"}}, "no option 'fallbak'; did you mean 'fallback'"),
        ({"options": {"dynamic_shapes": None}}, "no option 'dynamic_shapes'"),
        ({"options": {"fallback": "torch"}}, "fallback: expected 'error' or 'eager'"),
        ({"mode": "max-autotune"}, "has no modes"),
    ],
)
def test_bad_options(small: Small, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendCompilerFailed, match=message) as caught:
        compiled_by(small, **kwargs)(rows(3))
    assert isinstance(caught.value.inner_exception, regraft.errors.OptionError)


def test_an_op_that_nobody_takes_is_named() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x @ x.t())

    with pytest.raises(BackendCompilerFailed, match=r"UnsupportedOpError: no executor for 1 op") as caught:
        compiled_by(model)(rows(3))
    assert 'fallback="eager"' in str(caught.value)
    torch._dynamo.reset()
    check(compiled_by(model, options={"fallback": "eager"})(rows(3)), model(rows(3)))


# -- a transformers model ----------------------------------------------------------------------


def test_bert() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    model = randomise(BertModel(config).eval())
    compiled = compiled_by(model, dynamic=True)
    for batch, length in ((2, 8), (3, 11)):
        ids = torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        got, expected = compiled(ids, attention_mask=mask), model(ids, attention_mask=mask)
        assert type(got) is type(expected)
        check(list(got.values()), list(expected.values()))
