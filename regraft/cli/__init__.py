"""The command line: ``app`` is the typer application, ``main`` the entry point of ``regraft``.

Nothing here imports torch before a command runs: help and completion are quick.
"""

from __future__ import annotations

from regraft.cli import factory, names
from regraft.cli.app import app, main

__all__ = ["app", "factory", "main", "names"]
