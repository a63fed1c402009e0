"""The tuning database: measured times of forms, kept between processes in one SQLite file.

A row says how long one form of a computation took at one number of rows on one machine. Rows of other
machines and versions may stand beside each other: a lookup names its own. The file is shared safely (SQLite's
own locking, write-ahead log); one that is damaged is set aside under another name and never deleted.
"""

from __future__ import annotations

import copy
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regraft.errors import OptionError
from regraft.timing import Measured

_VERSION = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS times (
    machine TEXT NOT NULL, signature TEXT NOT NULL, rows INTEGER NOT NULL, form TEXT NOT NULL,
    us REAL NOT NULL, noise REAL NOT NULL, written REAL NOT NULL,
    PRIMARY KEY (machine, signature, rows, form)
)
"""


class TuningDatabase:
    """Measured times of one machine.

    A time takes the place of the earlier one of the same computation, form and number of rows.

    Fields:
        since: what was measured before is to be measured again, by ``time.time``; see ``recent``.
        notes: what the user should know, such as a damaged file that was set aside.
    """

    def __init__(self, path: Path, machine: str, since: float = 0.0) -> None:
        """Open the database at ``path``, made when it is missing.

        Raises:
            OptionError: it cannot be opened or made, or a newer version wrote it.
        """
        self.path = path
        self.machine = machine
        self.since = since
        self.notes: list[str] = []
        self._earliest = 0.0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._prepare()
        except sqlite3.OperationalError as error:  # locked, or not a place for a file: not damage
            raise OptionError(f"the tuning database {path} cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            path.rename(aside)
            self.notes.append(f"the tuning database was damaged ({error}); it was set aside as {aside.name}")
            self._prepare()
        except OSError as error:
            raise OptionError(f"the tuning database {path} cannot be opened: {error.strerror}") from error

    def of(self, machine: str) -> TuningDatabase:
        """The same file for the times of another machine."""
        other = copy.copy(self)
        other.machine = machine
        return other

    @property
    def recent(self) -> TuningDatabase:
        """The same times without those that are to be measured again."""
        other = copy.copy(self)
        other._earliest = self.since
        return other

    def _prepare(self) -> None:
        with self._open() as connection:
            version = _version(connection)
            if version > _VERSION:
                raise OptionError(
                    f"the tuning database {self.path} is of format {version}, newer than this regraft's "
                    f"{_VERSION}; update regraft or name another folder"
                )
            if version == _VERSION:
                (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if state != "ok":
                    raise sqlite3.DatabaseError(state)
                return
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA user_version={_VERSION}")

    @contextmanager
    def _open(self) -> Generator[sqlite3.Connection]:
        """A connection for one transaction: committed at the end, undone when something is raised."""
        connection = sqlite3.connect(self.path, timeout=30)
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    @contextmanager
    def _used(self) -> Generator[sqlite3.Connection]:
        """A transaction on a database that was found good when it was opened.

        Raises:
            OptionError: it is locked, was damaged since, or cannot be written.
        """
        try:
            with self._open() as connection:
                yield connection
        except sqlite3.Error as error:
            raise OptionError(
                f"the tuning database {self.path} cannot be used: {error}; remove it, or name another folder "
                "by REGRAFT_CACHE_DIR"
            ) from error

    def record(self, signature: str, forms: Sequence[str], measured: Measured) -> None:
        """Store the times of ``forms`` of one computation, measured in turns, in place of earlier ones.

        Where everything is to be measured again, those of other forms at this number of rows go as well: they
        do not compare with the new ones, and whoever measures next finds that they are missing.
        """
        now = time.time()
        rows = [
            (self.machine, signature, measured.rows, form, us, measured.noise, now)
            for form, us in zip(forms, measured.us, strict=True)
        ]
        outdated = "DELETE FROM times WHERE machine = ? AND signature = ? AND rows = ? AND written < ?"
        with self._used() as connection:
            connection.execute(outdated, (self.machine, signature, measured.rows, self.since))
            connection.executemany("INSERT OR REPLACE INTO times VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def lookup(self, signature: str, forms: Sequence[str]) -> list[Measured]:
        """What was measured of the computation on this machine, by increasing rows; whole entries only."""
        found = self.times(signature)
        return [
            Measured(rows, tuple(each[f][0] for f in forms), max(each[f][1] for f in forms))
            for rows, each in sorted(found.items())
            if set(forms) <= set(each)
        ]

    def times(self, signature: str) -> dict[int, dict[str, tuple[float, float]]]:
        """Number of rows -> form -> microseconds and noise, as measured on this machine."""
        query = "SELECT rows, form, us, noise FROM times WHERE machine = ? AND signature = ? AND written >= ?"
        with self._used() as connection:
            return _by_rows(connection.execute(query, (self.machine, signature, self._earliest)))

    def written(self, signature: str) -> dict[int, float]:
        """Number of rows -> when the oldest of its times was measured, by ``time.time``."""
        query = "SELECT rows, MIN(written) FROM times WHERE machine = ? AND signature = ? GROUP BY rows"
        with self._used() as connection:
            return dict(connection.execute(query, (self.machine, signature)))

    def latest(self, signature: str) -> dict[int, dict[str, tuple[float, float]]]:
        """Of ``times`` those that were measured in turns with the newest one of their number of rows.

        Other times come from other runs and do not compare, as on a machine that was in use in one of them.
        """
        query = (
            "SELECT rows, form, us, noise FROM times AS these WHERE machine = ? AND signature = ? "
            "AND written = (SELECT MAX(written) FROM times WHERE machine = these.machine "
            "AND signature = these.signature AND rows = these.rows)"
        )
        with self._used() as connection:
            return _by_rows(connection.execute(query, (self.machine, signature)))

    def others(self, machines: Collection[str]) -> int:
        """How many times there are of machines (and versions, threads, back ends) besides ``machines``."""
        marks = ", ".join("?" * len(machines))
        with self._used() as connection:
            query = f"SELECT COUNT(*) FROM times WHERE machine NOT IN ({marks})"
            (count,) = connection.execute(query, tuple(machines)).fetchone()
        return count

    def clear(self) -> int:
        """Forget all times, those of other machines too; how many there were."""
        with self._used() as connection:
            return connection.execute("DELETE FROM times").rowcount

    def merge(self, other: Path) -> int:
        """Add the rows of the database at ``other``, the newer one of two standing; how many it has.

        Raises:
            OptionError: ``other`` is not a tuning database, or a newer version wrote it.
        """
        if not other.is_file():
            raise OptionError(f"there is no tuning database at {other}")
        rows = _rows_of(other)
        with self._used() as connection:
            connection.executemany(
                "INSERT INTO times VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET us = excluded.us, "
                "noise = excluded.noise, written = excluded.written WHERE excluded.written > times.written",
                rows,
            )
        return len(rows)


def times_by_machine(path: Path) -> dict[str, int]:
    """Machine -> how many times the database at ``path``, which is only read, has of it.

    Raises:
        OptionError: it is not a tuning database, or a newer version wrote it.
    """
    return dict(Counter(machine for machine, *_ in _rows_of(path)))


def _by_rows(found: Iterable[tuple[int, str, float, float]]) -> dict[int, dict[str, tuple[float, float]]]:
    times: dict[int, dict[str, tuple[float, float]]] = {}
    for rows, form, us, noise in found:
        times.setdefault(rows, {})[form] = (us, noise)
    return times


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return version


def _rows_of(path: Path) -> list[Any]:
    """All rows of the database at ``path``, which is only read.

    Raises:
        OptionError: it is not a tuning database, or a newer version wrote it.
    """
    try:
        source = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)
    except sqlite3.Error as error:
        raise OptionError(f"{path} cannot be opened: {error}") from error
    try:
        version = _version(source)
        if version > _VERSION:
            raise OptionError(f"{path} is of format {version}, newer than this regraft's {_VERSION}")
        query = "SELECT machine, signature, rows, form, us, noise, written FROM times"
        rows = source.execute(query).fetchall()
    except sqlite3.Error as error:
        raise OptionError(f"{path} is not a tuning database: {error}") from error
    finally:
        source.close()
    for *_, us, noise, _written in rows:
        if not (isinstance(us, float) and isinstance(noise, float) and us > 0 and noise >= 0):
            raise OptionError(f"{path} is not a tuning database: it has a time of {us!r} and noise {noise!r}")
    return rows
