"""The text after each pass, for reading and for diff."""

from __future__ import annotations

from pathlib import Path

from regraft.errors import OptionError
from regraft.ir import Module, print_module


class Dumper:
    """Writes ``NN-pass.ir`` files into a folder; does nothing without one."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._count = 0
        self._last = ""
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(f"dump: cannot make the folder {folder}: {error.strerror}") from error

    def write(self, name: str, module: Module) -> None:
        """Write the module after the pass ``name``, unless nothing changed."""
        if self._folder is None:
            return
        text = print_module(module)
        if text != self._last:
            (self._folder / f"{self._count:02d}-{name}.ir").write_text(text)
        self._last = text
        self._count += 1
