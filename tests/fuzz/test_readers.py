"""Whatever somebody writes into a text, a manifest or a cache entry: an error of ours, or a sound result.

The plain run takes seconds; ``-m "slow or not slow"`` two minutes for each reader.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import regraft
from regraft.compiler import Report, cache, options
from regraft.errors import ParseError, RegraftError
from regraft.ir import OPS, Module, parse_module, print_module, verify
from tests.compiler.cache import killed
from tests.compiler.cache.killed import X, compiled
from tests.fuzz.limits import ROOM, LimitedProcess

#: Fragments that a reader might take for something.
FRAGMENTS = [
    "",
    "\0",
    "-1",
    "1e999",
    "9" * 30,
    "null",
    "true",
    '"',
    "{",
    "[" * 200,
    "}",
    "../x",
    "/etc/passwd",
    "s0",
    "%x",
    "@w",
    "f32[2, 3]",
    "f32[s0 * 1000000000000]",
    "loc(",
    "cf.yield([%x])",
    "// c\n",
    "\ufeff",
    "\u2028",
    "inf",
    "NaN",
    "(((((",
    "aten.from_file",
    "rg.const",
]


def plain(function: Callable[..., None]) -> Callable[..., None]:
    return settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))(function)


def long(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A slow test of so many examples, which take about two minutes."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        chosen = settings(
            max_examples=examples,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),
        )
        return pytest.mark.slow(chosen(function))

    return decorate


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[int, int, str]]:
    """Places (in thousandths of the text), how much to drop there, and what to put instead."""
    place, size = st.integers(0, 999), st.integers(0, 20)
    text = st.sampled_from(FRAGMENTS) | st.text(max_size=6)
    return draw(st.lists(st.tuples(place, size, text), min_size=1, max_size=4))


def edited(text: str, changes: list[tuple[int, int, str]]) -> str:
    for place, size, new in changes:
        at = len(text) * place // 1000
        text = text[:at] + new + text[at + size :]
    return text


# -- the text form -------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.linear(x), -1).reshape(-1) * torch.tensor([2.0])


@pytest.fixture(scope="module")
def text() -> str:
    sizes = {"x": {0: torch.export.Dim.AUTO}}
    return print_module(regraft.capture(Block().eval(), (torch.ones(3, 4),), dynamic_shapes=sizes))


def parsed(text: str) -> None:
    try:
        module = parse_module(text, OPS)
        verify(module, "captured")
    except RegraftError:
        return
    print_module(module)


def arbitrary_text(text: str) -> None:
    try:
        parse_module(text, OPS)
    except ParseError:
        return


test_any_text = plain(given(st.text())(arbitrary_text))
test_any_text_for_long = long(25_000)(given(st.text())(arbitrary_text))


def edited_text(text: str, changes: list[tuple[int, int, str]]) -> None:
    parsed(edited(text, changes))


@plain
@given(changes=edits())
def test_an_edited_text(text: str, changes: list[tuple[int, int, str]]) -> None:
    edited_text(text, changes)


@long(25_000)
@given(changes=edits())
def test_an_edited_text_for_long(text: str, changes: list[tuple[int, int, str]]) -> None:
    edited_text(text, changes)


# -- artefacts -----------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(FRAGMENTS)
    | st.integers(10**9, 10**15),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FRAGMENTS), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact")
    sizes = {"x": {0: torch.export.Dim.AUTO}}
    result = regraft.compile(
        Block().eval(), (torch.ones(3, 4),), dynamic_shapes=sizes, backends=("eager",), cache=False
    )
    result.save(folder / "model")
    return folder / "model"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


@pytest.fixture(scope="module")
def limited() -> Iterator[LimitedProcess]:
    process = LimitedProcess()
    yield process
    process.close()


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs Linux's /proc")
def test_memory_is_limited_while_a_forged_program_runs(limited: LimitedProcess) -> None:
    """Four times the room; outside of the limit there is as much as before."""
    assert "can't allocate memory" in (limited.take(ROOM) or "")
    assert limited.take_unlimited(ROOM) is None


def test_a_limited_process_that_ends_fails_the_test_and_is_replaced(limited: LimitedProcess) -> None:
    assert limited.take(1) is None
    assert limited.process is not None
    limited.process.kill()
    limited.process.wait()
    with pytest.raises(AssertionError, match="ended with status -9"):
        limited.take(1)
    assert limited.take(1) is None


def loads_or_refuses(folder: Path, limited: LimitedProcess) -> None:
    """Reading takes no memory by what a file claims; what a program takes, its process limits."""
    around = sorted(os.listdir(folder.parent))
    limited.load(folder)
    assert sorted(os.listdir(folder.parent)) == around


def edited_manifest(saved: Path, limited: LimitedProcess, place: int, value: Any) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    found = places(manifest)
    *path, last = found[1:][place % (len(found) - 1)]
    inner = manifest
    for key in path:
        inner = inner[key]
    inner[last] = value
    copy = saved.parent / "edited"
    shutil.copytree(saved, copy)
    try:
        (copy / "manifest.json").write_text(json.dumps(manifest))
        loads_or_refuses(copy, limited)
    finally:
        shutil.rmtree(copy)


@plain
@given(place=st.integers(0, 10**6), value=JSON)
def test_an_edited_manifest(saved: Path, limited: LimitedProcess, place: int, value: Any) -> None:
    edited_manifest(saved, limited, place, value)


@long(10_000)
@given(place=st.integers(0, 10**6), value=JSON)
def test_an_edited_manifest_for_long(saved: Path, limited: LimitedProcess, place: int, value: Any) -> None:
    edited_manifest(saved, limited, place, value)


# -- cache entries -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    compiled(folder)
    (stored,) = cache.CacheFolder(folder).entries()
    (folder / "original").write_bytes(stored.path.read_bytes())
    return stored.path


def sealed(head: bytes, body: bytes) -> bytes:
    rest = head + b"\n" + body
    return b"regraft-cache 1\n" + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest


def found_by(entry: Path) -> tuple[cache.Session, Module | None]:
    """What a compile finds in the folder of ``entry``."""
    model = killed.Model().eval()
    model.factor = 1.0  # type: ignore[assignment]
    chosen = options.Options.checked(
        backends=("eager",),
        fallback="error",
        rewrites=(),
        passes=(),
        ops=(),
        exactness=regraft.Exactness.REASSOCIATES,
        verify=False,
        dump=None,
        threads=None,
        cache=entry.parent,
    )
    session = cache.Session.begin(model, (X,), None, None, chosen)
    return session, session.find({}, chosen, Report())


def edited_entry(entry: Path, place: int, value: Any) -> None:
    original = (entry.parent / "original").read_bytes()
    _, _, head, body = original.split(b"\n", 3)
    record = json.loads(body)
    found = [p for p in places(record) if p and p[0] != "components"]
    *path, last = found[place % len(found)]
    inner = record
    for key in path:
        inner = inner[key]
    inner[last] = value
    entry.write_bytes(sealed(head, json.dumps(record).encode()))
    session, module = found_by(entry)
    if module is None:
        assert session.outcome.reason.startswith(("the entry cannot be used", "'", "the value of"))
    else:
        verify(module, "legalize")
    assert sorted(os.listdir(entry.parent)) == sorted(["original", entry.name])


@plain
@given(place=st.integers(0, 10**6), value=JSON)
def test_an_edited_entry(entry: Path, place: int, value: Any) -> None:
    edited_entry(entry, place, value)


@long(5_000)
@given(place=st.integers(0, 10**6), value=JSON)
def test_an_edited_entry_for_long(entry: Path, place: int, value: Any) -> None:
    edited_entry(entry, place, value)


def test_entries_are_as_they_were(entry: Path) -> None:
    entry.write_bytes((entry.parent / "original").read_bytes())
    assert found_by(entry)[1] is not None
    assert compiled(entry.parent)(X).shape == (2, 64)
