"""No test forks the process it runs in, by whatever library."""

from __future__ import annotations

import multiprocessing
import os
import pty
from collections.abc import Callable

import pexpect
import pytest


def by_os() -> None:
    if os.fork() == 0:
        os._exit(0)


def by_pty() -> None:
    if pty.fork()[0] == 0:
        os._exit(0)


def by_multiprocessing() -> None:
    multiprocessing.get_context("fork").Process(target=int).start()


def by_pexpect() -> None:
    pexpect.spawn("true")


@pytest.mark.parametrize("fork", [by_os, by_pty, by_multiprocessing, by_pexpect])
def test_a_process_of_tests_is_not_forked(fork: Callable[[], None]) -> None:
    with pytest.raises(RuntimeError, match="is not forked"):
        fork()
