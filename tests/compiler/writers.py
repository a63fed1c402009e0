"""Two processes that write to one tuning database at once: writers.py DATABASE.

They are forks of this process and not of a test's: what went wrong in one would come back into pytest there.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

from regraft.compiler import choose
from tests.compiler.forms import FORMS


def write(path: Path, start: int) -> None:
    database = choose.TuningDatabase(path, "m")
    for rows in range(start, start + 20):
        database.record("key", FORMS, choose.Measured(rows, (1.0, 2.0), 0.0))


def main(path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write, args=(path, start)) for start in (1, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
