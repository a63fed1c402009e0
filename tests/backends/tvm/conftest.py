"""One worker process for all tests of this folder: starting TVM takes seconds."""

from __future__ import annotations

from typing import Any

import pytest

from regraft.backends import backend


@pytest.fixture(scope="session")
def tvm() -> Any:
    return backend("tvm")
