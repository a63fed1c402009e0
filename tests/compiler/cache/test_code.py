"""Machine code in the cache: whole, this user's own, or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from regraft.compiler import cache
from regraft.errors import OptionError


def only_file(path: Path) -> Path:
    (file,) = (path / "code").iterdir()
    return file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    code = cache.CodeCache(tmp_path / "cache")
    assert code.read("a") is None
    assert code.write("a", b"machine code") is None
    assert cache.CodeCache(tmp_path / "cache").read("a") == b"machine code"
    assert code.read("b") is None
    assert cache.CacheFolder(tmp_path / "cache").entries() == [], "it is no entry"


@pytest.mark.parametrize("content", [b"", b"short", bytes(100)])
def test_a_damaged_file_is_a_miss_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    code = cache.CodeCache(tmp_path)
    code.write("a", b"machine code")
    only_file(tmp_path).write_bytes(content)
    assert code.read("a") is None
    code.write("a", b"machine code")
    assert code.read("a") == b"machine code"


def test_a_flipped_bit_is_a_miss(tmp_path: Path) -> None:
    code = cache.CodeCache(tmp_path)
    code.write("a", b"machine code")
    file = only_file(tmp_path)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert code.read("a") is None


def test_a_link_is_a_miss(tmp_path: Path) -> None:
    code = cache.CodeCache(tmp_path / "cache")
    code.write("a", b"machine code")
    file = only_file(tmp_path / "cache")
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert code.read("a") is None


def test_a_file_where_the_folder_should_be_is_a_miss(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = cache.CodeCache(tmp_path / "file" / "cache")
    assert code.read("a") is None
    reason = code.write("a", b"machine code")
    assert reason is not None
    assert "cannot be written" in reason


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no modes here")
def test_what_others_could_have_written_is_a_miss(tmp_path: Path) -> None:
    code = cache.CodeCache(tmp_path)
    code.write("a", b"machine code")
    for path in (only_file(tmp_path), tmp_path / "code"):
        before = path.stat().st_mode
        path.chmod(before | 0o020)
        assert code.read("a") is None
        path.chmod(before)
        assert code.read("a") == b"machine code"


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "code").write_bytes(b"a file in its place")
    with pytest.raises(OptionError, match="expected a folder"):
        cache.CodeCache(tmp_path).write("a", b"machine code")
