"""Instances of back ends for tests of other packages, which know back ends by name."""

from __future__ import annotations

from typing import Any

from regraft.backends import backend


def instance(name: str) -> Any:
    return backend(name)
