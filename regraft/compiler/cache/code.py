"""Machine code that back ends built, kept by what it was built of.

It lies in a folder of its own in the cache's. What is read is run: a file counts only if this user alone
could have written it, and if it is whole.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from regraft.compiler.cache.folder import SUFFIX, CacheFolder
from regraft.compiler.cache.key import sources_hash
from regraft.compiler.cache.values import Uncacheable
from regraft.errors import ArtefactError

_DIGEST = 32


@dataclass(frozen=True)
class CodeCache:
    """Code beside the entries of the cache at ``path``; that of another version of regraft is not seen."""

    path: Path

    @cached_property
    def _folder(self) -> CacheFolder:
        return CacheFolder(self.path).code

    @cached_property
    def _version(self) -> str | None:
        """What stands for regraft; None where its files are not those that run."""
        try:
            return sources_hash()
        except Uncacheable:
            return None

    def read(self, key: str) -> bytes | None:
        """What was written under ``key``; None where there is none that is whole and this user's own."""
        if self._version is None:
            return None
        name = self._name(key)
        try:
            content = self._folder.read(name) if self._is_own(self._folder.path / f"{name}{SUFFIX}") else None
        except ArtefactError:
            return None  # a link, or of no size that was written: the next one replaces it
        if content is None or hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            return None
        return content[_DIGEST:]

    def write(self, key: str, content: bytes) -> str | None:
        """Keep ``content`` under ``key``; why it cannot be kept, or None."""
        if self._version is None:
            return "regraft's files have changed since they were imported"
        try:
            self._folder.write(self._name(key), hashlib.sha256(content).digest() + content)
        except OSError as error:
            return f"{self._folder.path} cannot be written: {error.strerror}"
        return None

    def _name(self, key: str) -> str:
        return hashlib.sha256(f"{self._version}\n{key}".encode()).hexdigest()

    def _is_own(self, path: Path) -> bool:
        """Whether this user owns the file and its folder and nobody else may write there."""
        if not hasattr(os, "getuid"):  # Windows: a user's folders are that user's
            return True
        try:
            found = [each.lstat() for each in (path, path.parent)]
        except OSError:  # there is none, or no folder, or a file where one should be
            return False
        shared = stat.S_IWGRP | stat.S_IWOTH
        return all(each.st_uid == os.getuid() and not each.st_mode & shared for each in found)
