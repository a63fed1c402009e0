"""Constants of conditions and loops: in which graph they stand, and that ONNX Runtime packs them there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.backends import LowerOptions, backend
from regraft.ir import Function
from regraft.testing import randomise
from tests.backends import ort_graphs as graphs
from tests.backends.ort_graphs import BOOL, Store, function, leaf, tensor

ORT: Any = backend("ort")
DEPTH, SIZE = 4, 64
PREDICATE, X = tensor(dtype=BOOL), tensor(3, SIZE)


def nest(numbers: Sequence[int] = range(DEPTH)) -> Function:
    """``x`` through a layer, in the else arm of a condition through the next, and so on.

    ``numbers`` says which weight each layer has.
    """
    weights = {n: leaf(f"w{n}", _weight(n)) for n in numbers}

    def layers(op: Any, pred: Any, x: Any, at: int) -> Any:
        x = op.aten.relu(op.aten.linear(x, op.constant(weights[numbers[at]]), None))
        if at == len(numbers) - 1:
            return x
        stays = graphs.region([PREDICATE, X], lambda op, p, x: x)
        goes = graphs.region([PREDICATE, X], lambda op, p, x: layers(op, p, x, at + 1))
        return op.create("cf.cond", (pred, [pred, x]), regions=[stays, goes]).result

    return function([PREDICATE, X], lambda op, pred, x: layers(op, pred, x, 0))


def _weight(seed: int) -> Tensor:
    return torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * SIZE**-0.5


def homes(made: Function) -> dict[str, int]:
    """For each weight how many conditions its graph stands in."""
    found: dict[str, int] = {}

    def visit(graph: Any, depth: int) -> None:
        found.update({name: depth for name in graph.initializers if name.startswith("w")})
        for node in graph:
            for attr in node.attributes.values():
                if attr.type.name == "GRAPH":
                    visit(attr.as_graph(), depth + 1)

    visit(ORT.emit(made, Store()).graph, 0)
    return found


@pytest.mark.parametrize("pred", [True, False])
def test_each_weight_stands_where_it_is_used(pred: bool) -> None:
    made = nest()
    assert homes(made) == {f"w{i}": i for i in range(DEPTH)}
    inputs = [torch.tensor(pred), torch.randn(3, SIZE)]
    (found,) = ORT.lower(made, Store(), LowerOptions(1)).run(inputs, {})
    (expected,) = backend("eager").lower(made, Store(), LowerOptions()).run(inputs, {})
    torch.testing.assert_close(found, expected)


def test_a_weight_of_several_graphs_stands_around_all_of_them() -> None:
    assert homes(nest((0, 1, 2, 1))) == {"w0": 0, "w1": 1, "w2": 2}
    assert homes(nest((0, 1, 2, 0))) == {"w0": 0, "w1": 1, "w2": 2}


def test_two_arms_share_a_weight() -> None:
    weight = leaf("w", _weight(0))

    def build(op: Any, pred: Any, x: Any) -> Any:
        arms = [
            graphs.region(
                [X],
                lambda op, x, sign=sign: op.aten.mul.Scalar(
                    op.aten.linear(x, op.constant(weight), None), sign
                ),
            )
            for sign in (1.0, -1.0)
        ]
        return op.create("cf.cond", (pred, [x]), regions=arms).result

    assert homes(function([PREDICATE, X], build)) == {"w": 0}


def test_weights_inside_are_torchs_memory() -> None:
    made = nest((0, 1, 2))
    inner = next(op for op in made.walk() if op.name == "rg.const" and op.attr("value").name == "w2")
    weight = inner.attr("value").storage
    session = ORT.lower(made, Store(), LowerOptions(1))
    inputs = [torch.tensor(False), torch.randn(3, SIZE)]
    session.run(inputs, {})
    assert session._shared["w2"].data_ptr() == weight.data_ptr()


class Exits(nn.Module):
    """Layers with an exit after each."""

    def __init__(self, make: Any, count: int = DEPTH) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
            if x.mean() > 10:
                return x
        return x


Ran = list[tuple[str, list[list[int]]]]
"""The ops that sessions have run, and the shapes of what each read."""


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Ran]:
    """What the sessions opened in the test have run until the call."""
    opened: list[Any] = []

    class Profiled(onnxruntime.SessionOptions):
        def __init__(self) -> None:
            super().__init__()
            self.enable_profiling = True
            self.profile_file_prefix = str(tmp_path / "profile")

    class Session(onnxruntime.InferenceSession):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            opened.append(self)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Profiled)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)

    def found() -> Ran:
        events = [event for each in opened for event in json.loads(Path(each.end_profiling()).read_text())]
        args = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
        opened.clear()
        return [
            (a["op_name"], [shape for each in a["input_type_shape"] for shape in each.values()]) for a in args
        ]

    return found


def run_once(model: nn.Module, x: Tensor) -> None:
    compiled = regraft.compile(model.eval(), (x,), cache=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_products_are_packed_however_deep(ran: Callable[[], Ran]) -> None:
    """What the places are for: a packed weight is no input of its product.

    If it fails with a new onnxruntime, see whether the places are still needed.
    """
    run_once(Exits(lambda: nn.Linear(SIZE, SIZE, bias=False)), torch.randn(1, 3, SIZE))
    products = [shapes for op, shapes in ran() if op in ("Gemm", "MatMul", "FusedMatMul")]
    assert len(products) == DEPTH
    assert not [shapes for shapes in products if [SIZE, SIZE] in shapes], products


def test_convolutions_have_the_blocked_layout_however_deep(ran: Callable[[], Ran]) -> None:
    """On CPUs that have one: the layout changes on the way in, and no more."""
    counts: list[int] = []
    for layers in (1, DEPTH):
        model = Exits(lambda: nn.Conv2d(32, 32, 3, padding=1), layers)
        run_once(model, torch.randn(1, 32, 9, 9))
        counts.append(sum(op == "ReorderInput" for op, _ in ran()))
    assert counts in ([1, 1], [0, 0])


class Residuals(nn.Module):
    """Two residual blocks whose norms come first."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(4))
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for first in (0, 2):
            y = x
            for i in (first, first + 1):
                y = self.layers[i](torch.relu(self.norms[i](y)))
            x = x + y
        return x


def test_residual_blocks_of_an_arm_keep_the_blocked_layout(ran: Callable[[], Ran]) -> None:
    """What comes from outside changes its layout at most once; sums and norms are parts of convolutions."""
    counts: list[dict[str, int]] = []
    for layers in (1, 3):
        run_once(randomise(Exits(Residuals, layers)), torch.randn(1, 32, 9, 9))
        found = Counter(op for op, _ in ran())
        counts.append({name: found[name] for name in ("ReorderInput", "BatchNormalization", "Add")})
    first, last = counts
    if first["ReorderInput"]:  # on CPUs that have the layout
        assert last["ReorderInput"] <= first["ReorderInput"] + 2
        assert last["BatchNormalization"] == first["BatchNormalization"]
        assert last["Add"] == first["Add"]


def test_maps_of_no_whole_blocks_enter_as_they_are(ran: Callable[[], Ran]) -> None:
    run_once(randomise(Exits(lambda: Residuals(12), 2)), torch.randn(1, 12, 9, 9))
    assert not [op for op, _ in ran() if op == "AveragePool"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_constants_that_are_copied_are_found(kind: str, dtype: torch.dtype) -> None:
    """ONNX Runtime gets widened constants, and those that it reads itself, in another way."""
    if kind == "linear":
        model, x = Exits(lambda: nn.Linear(SIZE, SIZE)), torch.randn(3, SIZE)
    else:
        model, x = Exits(lambda: nn.Conv2d(8, 8, 3, padding=1)), torch.randn(1, 8, 9, 9)
    regraft.compile(model.eval().to(dtype), (x.to(dtype),), verify=True)


def test_convolutions_inside_are_loaded_from_an_artefact(tmp_path: Path) -> None:
    model, x = Exits(lambda: nn.Conv2d(32, 32, 3, padding=1)).eval(), torch.randn(1, 32, 9, 9)
    compiled = regraft.compile(model, (x,))
    compiled.save(tmp_path / "exits.regraft")
    again = regraft.load(tmp_path / "exits.regraft")
    with torch.no_grad():
        assert torch.equal(again(x), compiled(x))
        torch.testing.assert_close(again(x), model(x))


def test_weights_inside_count_and_are_written_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = "regraft.backends.ort.export._SINGLE_FILE_BYTES"
    monkeypatch.setattr(limit, 2 * SIZE * SIZE * 4)
    file, made = tmp_path / "exits.onnx", nest()
    written = ORT.export_file(made, Store(), file, input_names=["pred", "x"])
    assert {path.name for path in written.files} == {"exits.onnx", "exits.onnx.data"}
    assert file.stat().st_size < SIZE * SIZE * 4
    onnx.checker.check_model(str(file), full_check=True)
    inputs = [torch.tensor(False), torch.randn(3, SIZE)]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pred": inputs[0].numpy(), "x": inputs[1].numpy()})
    (expected,) = backend("eager").lower(made, Store(), LowerOptions()).run(inputs, {})
    torch.testing.assert_close(torch.from_numpy(found), expected)
