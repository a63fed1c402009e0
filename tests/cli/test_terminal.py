"""The command line as a person meets it: a real terminal, keys, colours, completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from pexpect.fdpexpect import fdspawn

from tests.cli.running import GRAPH

REGRAFT = Path(sys.executable).parent / "regraft"
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

SLOW = """
import time
import torch


class Slow(torch.nn.Module):
    def forward(self, x):
        time.sleep(120)
        return x + 1


def slow_to_capture():
    return Slow().eval(), (torch.ones(3),)


def slow_to_make():
    print("making", flush=True)
    time.sleep(120)
"""

#: Takes the terminal for itself and becomes the command. One started in the background, as a test run may be,
#: ignores Ctrl-C, and so do its children, which hear of it again.
BECOME = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal(fdspawn):
    """A command in a terminal. It is no fork of this process: none of pytest ever runs in it."""

    def __init__(self, arguments: list[str], env: dict[str, str], cwd: Path) -> None:
        screen, end = os.openpty()
        termios.tcsetwinsize(end, (40, 100))
        become = [sys.executable, "-ISc", BECOME, *arguments]
        self.process = subprocess.Popen(
            become, stdin=end, stdout=end, stderr=end, env=env, cwd=cwd, start_new_session=True
        )
        os.close(end)
        super().__init__(screen, encoding="utf-8", timeout=120)

    def press(self, control: str) -> None:
        """Press Ctrl and a letter."""
        self.send(chr(ord(control) - ord("a") + 1))

    def ended(self) -> tuple[int, str]:
        """The exit code, and what was on the screen since the last expectation."""
        self.expect(pexpect.EOF)
        return self.process.wait(60), self.before or ""

    def leave(self) -> None:
        self.process.kill()
        self.process.wait()
        self.close()


Spawn = Callable[..., Terminal]


@pytest.fixture
def spawn(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawn]:
    """Start a command in a terminal of 100 columns, in an empty folder."""

    home = tmp_path_factory.mktemp("home")
    started: list[Terminal] = []

    def start(command: str, *arguments: object, **environment: str) -> Terminal:
        hidden = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "CI")
        terminal = {"TERM": "xterm-256color", "HOME": str(home), "OMP_NUM_THREADS": "1"}
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        listed = [command, *(str(a) for a in arguments)]
        started.append(Terminal(listed, {**kept, **terminal, **environment}, tmp_path))
        return started[-1]

    yield start
    for terminal in started:
        terminal.leave()


def test_a_compile_shows_progress_and_then_the_report(spawn: Spawn, factories: Path) -> None:
    terminal = spawn(str(REGRAFT), "compile", f"{factories}:make", "--backends", "eager")
    terminal.expect("compile: export|compile: decompositions")
    terminal.expect("compile: lower|compile: verify")
    code, screen = terminal.ended()
    assert code == 0
    assert "\x1b[?25h" in screen, "the cursor is back"
    text = ANSI.sub("", screen)
    assert "executors" in text
    assert "eager: " in text


def test_an_error_is_red_and_one_message(spawn: Spawn) -> None:
    code, screen = spawn(str(REGRAFT), "compile", "absent.py:make").ended()
    assert code == 1
    assert "\x1b[1;31m" in screen
    text = ANSI.sub("", screen)
    assert text.count("absent.py") == 1
    assert text.endswith("FactoryError: cannot read 'absent.py': No such file or directory\r\n")
    code, screen = spawn(str(REGRAFT), "compile", "absent.py:make", NO_COLOR="1").ended()
    assert (code, "\x1b[1;31m" in screen) == (1, False)


@pytest.mark.parametrize(("factory", "shown"), [("slow_to_make", "making"), ("slow_to_capture", "export")])
def test_ctrl_c_ends_it_and_leaves_nothing(spawn: Spawn, tmp_path: Path, factory: str, shown: str) -> None:
    file = tmp_path / "slow.py"
    file.write_text(SLOW)
    terminal = spawn(str(REGRAFT), "compile", f"slow.py:{factory}", "--out", "saved", "--dump", "dumped")
    terminal.expect(shown)
    terminal.press("c")
    code, screen = terminal.ended()
    assert code == 130
    assert "interrupted" in screen
    assert "Traceback" not in screen
    assert "\x1b[?25h" in screen, "the cursor is back"
    assert {path.name for path in tmp_path.iterdir()} <= {"slow.py", "__pycache__"}


def test_bash_completes_names(spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "graph.ir").write_text(GRAPH)
    path = f"{REGRAFT.parent}:/usr/bin:/bin"
    terminal = spawn("bash", "--norc", "--noprofile", "-i", PS1="ready> ", PATH=path)
    terminal.expect_exact("ready> ")
    terminal.sendline('eval "$(_REGRAFT_COMPLETE=source_bash regraft)"; echo "do""ne"')
    terminal.expect_exact("done")
    for typed, completed in (
        ("regraft comp\t", "regraft compile "),
        ("regraft ir graph.ir --stage canon\t", "--stage canonicalize "),
        ("regraft ir graph.ir --rewrite RMSNormC\t", "--rewrite RMSNormCasts "),
        ("regraft ir graph.ir --pass fold.sw\t", "--pass fold.sweep "),
        ("regraft compile m.py:f --backends ort,ea\t", "--backends ort,eager "),
    ):
        terminal.send(typed)
        terminal.expect_exact(completed)
        terminal.press("u")
    terminal.sendline("exit")
    assert terminal.ended()[0] == 0


LOW_RANK = """
import torch
from torch import nn


def low_rank():
    layers = nn.Sequential(nn.Linear(64, 60, bias=False), nn.Linear(60, 64))
    return layers.eval(), (torch.randn(5, 64),)
"""


def test_measuring_has_the_bar_to_itself(spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(LOW_RANK)
    terminal = spawn(str(REGRAFT), "tune", "model.py:low_rank", "--budget", "10s")
    terminal.expect("tune: measured 1 of 1")
    code, shown = terminal.ended()
    assert code == 0
    assert "rewrites (measured" not in ANSI.sub("", shown)
