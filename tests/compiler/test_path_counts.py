"""Counting which arms and trips run: in compiled models on each back end, and in exported files."""

from __future__ import annotations

import copy
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.compiler import control
from regraft.errors import RewriteError
from regraft.ir import OPS, PassContext, parse_module, verify
from regraft.testing import PathCounts, assert_close, evaluate, randomise

HERE = Path(__file__).name


class Halting(nn.Module):
    """An exit, a loop of as many trips as the data ask for, and a condition in each trip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, trips: Tensor) -> Tensor:
        self.seen.add_(1.0)
        x = self.first(x)
        return control.cond(x.sum() > 0, lambda: (x.tanh(),), lambda: (self.rest(x, trips),))[0]

    def rest(self, x: Tensor, trips: Tensor) -> Tensor:
        def trip(carried: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x, left = carried
            (x,) = control.cond(left % 2 == 0, lambda: (self.second(x).relu(),), lambda: (x * 0.5,))
            return x, left - 1

        return control.loop(lambda carried: carried[1] > 0, trip, (x, trips))[0]


UP, DOWN = torch.full((2, 4), 5.0), torch.full((2, 4), -5.0)


def model() -> Halting:
    made = randomise(Halting().eval())
    with torch.no_grad():
        made.first.weight.copy_(torch.eye(4))
    return made


def trips(count: int) -> Tensor:
    return torch.tensor(count)


def by_place(paths: PathCounts) -> dict[str, int]:
    return {f"{path.what} at {path.place.count('region')}": count for path, count in paths.counts.items()}


@pytest.mark.parametrize("backend", ["ort", "eager"])
def test_counts_of_a_compiled_model(backend: str) -> None:
    own, paths = model(), PathCounts()
    compiled = regraft.compile(own, (UP, trips(3)), backends=(backend,), passes=paths.passes, verify=True)
    assert set(by_place(paths).values()) == {0}, "verification does not count"
    plain = copy.deepcopy(own)
    for x, count in ((UP, 5), (DOWN, 0), (DOWN, 3), (DOWN, 1), (UP, 1)):
        with torch.no_grad():
            expected, own_error = (
                copy.deepcopy(plain).double()(x.double(), trips(count)),
                plain(x, trips(count)),
            )
        assert_close([compiled(x, trips(count))], [expected], [own_error], reassociates=True)
        assert torch.equal(own.seen, plain.seen), "the model's own state is as before"
    assert by_place(paths) == {
        "predicate true at 1": 2,
        "predicate false at 1": 3,
        "trips at 2": 4,
        "predicate true at 3": 1,
        "predicate false at 3": 3,
    }
    paths.assert_all_ran()
    paths.reset()
    compiled(UP, trips(1))
    assert sum(paths.counts.values()) == 1


def test_what_never_ran_is_named_with_its_line() -> None:
    paths = PathCounts()
    compiled = regraft.compile(model(), (UP, trips(3)), passes=paths.passes)
    compiled(UP, trips(3))
    compiled(DOWN, trips(1))
    (missed,) = paths.missed
    assert missed.what == "predicate true"
    with pytest.raises(AssertionError) as caught:
        paths.assert_all_ran()
    lines = str(caught.value).splitlines()
    assert lines[0] == "1 of 5 paths never ran:"
    assert HERE in lines[1]
    assert missed.place in lines[1]


def test_counts_of_a_file(tmp_path: Path) -> None:
    paths, file = PathCounts(), tmp_path / "model.onnx"
    report = regraft.export_onnx(model(), (UP, trips(3)), file, passes=paths.passes)
    assert report.writes["path_counts_out"] == "path_counts"
    session = onnxruntime.InferenceSession(str(file))
    assert [port.name for port in session.get_inputs()] == [*report.inputs]
    for x, count in ((UP, 5), (DOWN, 3)):
        start = {"path_counts": torch.zeros(5, dtype=torch.int64), "seen": torch.zeros(())}
        feed = dict(zip(report.inputs, [x, trips(count)], strict=False)) | start
        found = session.run(list(report.outputs), {name: value.numpy() for name, value in feed.items()})
        paths.add(dict(zip(report.outputs, found, strict=True))["path_counts_out"])
    assert by_place(paths) == {
        "predicate true at 1": 1,
        "predicate false at 1": 1,
        "trips at 2": 3,
        "predicate true at 3": 1,
        "predicate false at 3": 2,
    }
    with pytest.raises(RewriteError, match=r"have the shape \[3\], the model has 5 paths"):
        paths.add([1, 2, 3])


def test_arguments_that_are_returned_stay_last() -> None:
    def writes(x: Tensor) -> tuple[Tensor, Tensor]:
        (y,) = control.cond(x.sum() > 0, lambda: (x.sin(),), lambda: (x.cos(),))
        x.add_(1.0)
        return y, x

    paths = PathCounts()
    compiled = regraft.compile(writes, (UP.clone(),), passes=paths.passes)
    mine, eagers = UP.clone(), UP.clone()
    y, x = compiled(mine)
    torch.testing.assert_close((y, x), writes(eagers))
    assert x is mine
    assert list(paths.counts.values()) == [1, 0]


def test_a_model_without_paths_is_left_alone() -> None:
    paths = PathCounts()
    compiled = regraft.compile(lambda x: x.relu(), (UP,), passes=paths.passes)
    assert paths.paths == ()
    paths.assert_all_ran()
    assert compiled.effects is None


def test_one_object_counts_one_compile() -> None:
    paths = PathCounts()
    with pytest.raises(RewriteError, match="have seen no compile"):
        paths.assert_all_ran()
    regraft.compile(lambda x: x.relu(), (UP,), passes=paths.passes)
    with pytest.raises(RewriteError, match="count another compile"):
        regraft.compile(lambda x: x.relu(), (UP,), passes=paths.passes)


LOOP = """
module {
  func @forward(%n: i64[], %q: bool[]) -> (i64[]) {
    %r, %s = cf.while([%n, %q]) ({
      ^(%i: i64[], %p: bool[])
      %0 = aten.gt.Scalar(%i) {other = 0} : bool[]
      %1 = cf.cond(%0, [%p]) ({
        ^(%a: bool[])
        cf.yield([%a])
      }, {
        ^(%b: bool[])
        %2 = aten.full() {size = (), fill_value = false, dtype = bool} : bool[]
        cf.yield([%2])
      }) : bool[]
      cf.yield([%1])
    }, {
      ^(%j: i64[], %k: bool[])
      %3 = aten.add.Scalar(%j) {other = -1} : i64[]
      cf.yield([%3, %k])
    }) : i64[], bool[]
    cf.yield([%r])
  }
}
"""


@pytest.mark.parametrize(
    ("n", "q", "expected"), [(3, True, [3, 1, 3]), (3, False, [1, 0, 0]), (0, True, [0, 1, 0])]
)
def test_paths_in_the_test_of_a_loop(n: int, q: bool, expected: list[int]) -> None:
    module = parse_module(LOOP)
    paths = PathCounts()
    inputs = [torch.tensor(n), torch.tensor(q)]
    before = evaluate(module.main, inputs)
    assert paths.run(module, PassContext(OPS))
    verify(module, "legalize", table=OPS)
    result, counts = evaluate(module.main, [*inputs, torch.zeros(3, dtype=torch.int64)])
    assert torch.equal(result, before[0])
    assert counts.tolist() == expected
    assert [path.what for path in paths.paths] == ["predicate true", "predicate false", "trips"]


#: ``x`` beside itself, doubled: while fewer than ``n`` are 1 or more; once it is longer, while more are not
#: above 0.
GROWING = """
module {
  func @forward(%n: i64[], %x: f32[s]) where s in [0, inf] -> (f32[t]) {
    %m, %y = cf.while([%n, %x]) defines t in [0, inf] ({
      ^(%i: i64[], %a: f32[u]) where u in [0, inf]
      %0 = aten.ge.Scalar(%a) {other = 1.0} : bool[u]
      %1 = aten.nonzero(%0) defines v in [0, inf] : i64[v, 1]
      %2 = rg.dim_value() {value = v} : i64[]
      %3 = rg.dim_value() {value = u} : i64[]
      %4 = aten.gt.Tensor(%i, %3) : bool[]
      %5 = cf.cond(%4, [%i, %2, %a]) ({
        ^(%b: i64[], %c: i64[], %d: f32[u])
        %6 = aten.gt.Tensor(%b, %c) : bool[]
        cf.yield([%6])
      }, {
        ^(%e: i64[], %f: i64[], %g: f32[u])
        %7 = aten.le.Scalar(%g) {other = 0.0} : bool[u]
        %8 = aten.nonzero(%7) defines w in [0, inf] : i64[w, 1]
        %9 = rg.dim_value() {value = w} : i64[]
        %10 = aten.lt.Tensor(%e, %9) : bool[]
        cf.yield([%10])
      }) : bool[]
      cf.yield([%5])
    }, {
      ^(%j: i64[], %k: f32[u]) where u in [0, inf]
      %11 = aten.cat([%k, %k]) : f32[2*u]
      %12 = aten.mul.Scalar(%11) {other = 2.0} : f32[2*u]
      cf.yield([%j, %12])
    }) : i64[], f32[t]
    cf.yield([%y])
  }
}
"""


@pytest.mark.parametrize(
    ("n", "x", "expected"),
    [(9, [0.25, 1.0], [3, 1, 3]), (2, [0.0, -1.0, 0.5], [0, 1, 0]), (0, [], [0, 1, 0])],
)
def test_paths_in_the_test_of_a_loop_that_changes_sizes(n: int, x: list[float], expected: list[int]) -> None:
    module = parse_module(GROWING)
    verify(module, "legalize", table=OPS)
    paths, inputs, sizes = PathCounts(), [torch.tensor(n), torch.tensor(x)], {"s": len(x)}
    (before,) = evaluate(module.main, inputs, sizes)
    assert paths.run(module, PassContext(OPS))
    verify(module, "legalize", table=OPS)
    result, counts = evaluate(module.main, [*inputs, torch.zeros(3, dtype=torch.int64)], sizes)
    assert torch.equal(result, before)
    assert counts.tolist() == expected


def test_a_size_that_no_carried_value_has_is_refused() -> None:
    text = GROWING.replace("%a: f32[u]", "%a: f32[2*u]").replace("%k: f32[u]", "%k: f32[2*u]")
    with pytest.raises(RewriteError, match="no argument of the region has the size u"):
        PathCounts().run(parse_module(text), PassContext(OPS))
