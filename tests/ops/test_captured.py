"""Every op that a capture of a reference model holds is typed."""

import json
from pathlib import Path

import pytest

from regraft.ir import OPS
from tools.list_captured_ops import FILE, MODELS, generate

CAPTURED: dict[str, list[str]] = json.loads(Path(FILE).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CAPTURED)
def test_typed(name: str) -> None:
    assert name in OPS


def test_every_model_is_in_the_list() -> None:
    tags = {tag for captures in CAPTURED.values() for tag in captures}
    assert {tag.split("-")[0] for tag in tags} == set(MODELS)
    assert len(tags) == 14


@pytest.mark.conformance
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_list_is_current() -> None:
    assert generate() == CAPTURED
