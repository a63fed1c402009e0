"""Reading files that somebody else may have put there.

A file is opened once, without following a link and without waiting for a device or a pipe; what is
checked is the open file, and its content is read once, so that nothing can change between a check and
its use.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from regraft.errors import ArtefactError


def read_file(path: Path, limit: int) -> bytes:
    """The content of a plain file of at most ``limit`` bytes.

    Raises:
        ArtefactError: it is a link, a device or a pipe, is larger, or cannot be read.
    """
    with open_plain(path) as (file, size):
        if size > limit:
            raise ArtefactError(f"'{path.name}' is too large: {size} bytes of {limit} allowed", str(path))
        content = file.read(size + 1)  # Python makes room for what it is asked for before it reads
    if len(content) > size:
        raise ArtefactError(f"'{path.name}' grew while it was read", str(path))
    return content


@contextmanager
def open_plain(path: Path) -> Generator[tuple[BinaryIO, int]]:
    """A plain file, open for reading, and its size.

    Raises:
        ArtefactError: it is a link, a device or a pipe, or cannot be read.
    """
    if path.is_symlink():
        raise ArtefactError(f"'{path.name}' is a link; only files of its own are read", str(path))
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        handle = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise ArtefactError(f"'{path.name}' cannot be read: {_reason(error)}", str(path)) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise ArtefactError(f"'{path.name}' is not a plain file", str(path))
    with os.fdopen(handle, "rb") as file:
        try:
            yield file, status.st_size
        except OSError as error:
            raise ArtefactError(f"'{path.name}' cannot be read: {_reason(error)}", str(path)) from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
