"""The cache's folder: files of entries, read and written so that nothing can be half there.

An entry is written to a temporary file, synced and renamed. There is no lock: readers see a whole entry
or none, two writers of one entry write the same, and a process that is killed leaves at most a temporary
file, which the next one to write removes when it is old. The time of an entry's last use is its file's
modification time; the oldest go when the folder grows beyond its limit.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.compiler.cache.entry import DamagedEntry, read_head
from regraft.compiler.choosing import state_folder
from regraft.errors import ArtefactError, OptionError
from regraft.runtime import read_file

DEFAULT_LIMIT = 1 << 30
SUFFIX = ".entry"
MAX_ENTRY = 64 << 20

_TEMPORARY = ".tmp-"
_STALE_SECONDS = 3600.0


@dataclass(frozen=True)
class Stored:
    """An entry as a file.

    Fields:
        path: the file.
        bytes: its size.
        used: when it was last used, in seconds since 1970.
    """

    path: Path
    bytes: int
    used: float

    def head(self) -> dict[str, Any] | None:
        """What the entry says of itself: ``model``, ``created``, ``regraft``, ``torch``, ``key``.

        None when it is damaged.
        """
        try:
            return read_head(read_file(self.path, MAX_ENTRY))
        except (DamagedEntry, ArtefactError):
            return None


def default_folder() -> Path | None:
    """The cache in the folder that regraft keeps for this user, see ``state_folder``.

    None where there is no home for it, or when ``REGRAFT_CACHE_DIR`` is set to nothing, which turns the
    cache off.
    """
    if os.environ.get("REGRAFT_CACHE_DIR") == "":
        return None
    folder = state_folder()
    return None if folder is None else folder / "compiled"


class CacheFolder:
    """A folder of entries. It is made when something is first stored."""

    def __init__(self, path: Path, limit: int = DEFAULT_LIMIT) -> None:
        """``limit`` is in bytes.

        Raises:
            OptionError: ``path`` is a file.
        """
        if path.exists() and not path.is_dir():
            raise OptionError("'cache' cannot be this", "cache", repr(str(path)), "a folder")
        self.path = path
        self.limit = limit

    @property
    def code(self) -> CacheFolder:
        """The folder of machine code that belongs to this one."""
        return CacheFolder(self.path / "code", self.limit)

    def entries(self) -> list[Stored]:
        """All entries, the last used first; none when the folder is not there or cannot be read."""
        found: list[Stored] = []
        for item in self._scan():
            if item.name.endswith(SUFFIX):
                with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                    status = item.stat(follow_symlinks=False)
                    found.append(Stored(Path(item.path), status.st_size, status.st_mtime))
        return sorted(found, key=lambda stored: (-stored.used, stored.path.name))

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(stored.bytes for stored in self.entries())

    def read(self, name: str) -> bytes | None:
        """The content of the entry ``name``; None when there is none.

        Raises:
            ArtefactError: it is not a plain file, is too large or cannot be read.
        """
        path = self.path / f"{name}{SUFFIX}"
        content = self.peek(path)
        if content is not None:
            with contextlib.suppress(OSError):  # a cache that can only be read still serves
                os.utime(path)
        return content

    def peek(self, path: Path) -> bytes | None:
        """The content of the entry in the file ``path``, which does not count as a use of it.

        Raises:
            ArtefactError: as for ``read``.
        """
        return read_file(path, MAX_ENTRY) if os.path.lexists(path) else None

    def write(self, name: str, content: bytes) -> None:
        """Store an entry, in place of one of that name; the oldest make room.

        Raises:
            OSError: the folder cannot be made or written.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=self.path)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            target = self.path / f"{name}{SUFFIX}"
            if target.is_dir() and not target.is_symlink():
                raise IsADirectoryError(f"{target} is a folder")
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        self.prune()

    def prune(self, limit: int | None = None) -> int:
        """Remove the entries used longest ago until the rest fits, and temporary files left by a crash.

        Returns:
            How many entries were removed.
        """
        room = self.limit if limit is None else limit
        removed = 0
        for stored in self.entries():
            room -= stored.bytes
            if room < 0:
                removed += _remove(stored.path)
        for item in self._scan():
            if item.name.startswith(_TEMPORARY):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - item.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS:
                        _remove(Path(item.path))
        return removed

    def clear(self) -> int:
        """Remove all entries; how many there were."""
        removed = sum(_remove(stored.path) for stored in self.entries())
        for item in self._scan():
            if item.name.startswith(_TEMPORARY):
                _remove(Path(item.path))
        return removed

    def _scan(self) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self.path) as found:
                yield from list(found)
        except OSError:
            return  # nothing there, or nothing that we may see


def _remove(path: Path) -> int:
    """Remove a file; how many files that were, as another process may have been faster."""
    try:
        path.unlink()
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        return 0
    return 1
