"""Which files of a stack trace are the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import regraft
from regraft.errors import CaptureError


def location_of_branch(file: str) -> str | None:
    """Where the error says that a function in ``file`` branches on data."""
    namespace: dict[str, Any] = {}
    exec(compile("def branch(x):\n    return x * 2 if x.sum() > 0 else x\n", file, "exec"), namespace)
    with pytest.raises(CaptureError) as caught:
        regraft.capture(lambda x: namespace["branch"](x), (torch.randn(3),))
    return caught.value.location


def test_a_library_whose_name_begins_like_torchs_is_not_torchs() -> None:
    file = f"{Path(torch.__file__).parent}vision/net.py"
    assert location_of_branch(file) == f"{file}:2"


def test_a_line_of_torchs_own_is_not_the_users() -> None:
    found = location_of_branch(f"{Path(torch.__file__).parent}/net.py")
    assert found is not None
    assert found.startswith(f"{__file__}:")
