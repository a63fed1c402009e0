"""A plain run takes a seeded sample of the tests marked `conformance` and none marked `slow`.

An `-m` expression that names `conformance` takes over: `-m "conformance or not conformance"` is the full run.
"""

import gc
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

# Threads of OpenMP sleep while they wait for one another, in processes that tests start too: two workers of
# two threads each share two cores, and a thread that spins keeps another one from its core. OpenMP reads this
# when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.sampling import commit_hash, is_sampled

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sample")
    group.addoption("--sample-seed", help="seed of the conformance sample (the commit hash)")
    group.addoption("--sample", type=float, default=0.1, help="fraction of conformance tests (0.1)")
    group = parser.getgroup("golden")
    group.addoption("--update", action="store_true", help="write golden files anew instead of comparing")


def pytest_configure(config: pytest.Config) -> None:
    # How long an example takes to draw or to run says more of the machine's load than of a test.
    settings.register_profile("regraft", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("regraft")
    # Tests neither read the user's compile cache nor fill it; those of the cache name a folder.
    os.environ["REGRAFT_CACHE_DIR"] = ""
    if config.option.sample_seed is None:
        config.option.sample_seed = commit_hash(REPOSITORY)

    # A collection of everything goes through a million objects of torch and transformers, which stay.
    gc.set_threshold(5000, 20, 30)

    torch.manual_seed(0)  # for what test files draw while they are imported

    os.fork = os.forkpty = refuse_to_fork  # type: ignore[assignment]


def refuse_to_fork() -> NoReturn:
    raise RuntimeError(
        "a process that runs tests is not forked: an error in the child would come back into pytest, which "
        "would report for both, and pytest-xdist end the run; start a script by subprocess, and fork there"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # A test draws the same weights alone, in any order and on any worker.
    torch.manual_seed(0)


def pytest_report_header(config: pytest.Config) -> str:
    if is_full_run(config):
        return "conformance: all tests"
    fraction, seed = config.option.sample, config.option.sample_seed
    return f"conformance: a sample, repeat it with --sample={fraction} --sample-seed={seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if is_full_run(config):
        return
    kept: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        (kept if belongs_to_plain_run(item, config) else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = kept


def is_full_run(config: pytest.Config) -> bool:
    return "conformance" in config.option.markexpr


@pytest.fixture
def full_run(request: pytest.FixtureRequest) -> bool:
    """Whether this is a run of all tests: large tables within one test are then taken whole."""
    return is_full_run(request.config)


def belongs_to_plain_run(item: pytest.Item, config: pytest.Config) -> bool:
    if item.get_closest_marker("slow") is not None:
        return False
    if item.get_closest_marker("conformance") is None:
        return True
    return is_sampled(item.nodeid, config.option.sample_seed, config.option.sample)


@pytest.fixture(scope="session")
def tvm() -> Any:
    """The TVM back end, one for all tests of a process: each has a worker process, which takes seconds."""
    from tests.backends.instances import instance

    return instance("tvm")


@pytest.fixture
def with_one_tvm(request: pytest.FixtureRequest) -> Callable[[Sequence[str]], tuple[Any, ...]]:
    """Names of back ends, the one of all tests in the place of TVM's."""

    def instances(names: Sequence[str]) -> tuple[Any, ...]:
        if "tvm" in names and find_spec("tvm") is None:
            pytest.skip("TVM is not installed")
        return tuple(request.getfixturevalue("tvm") if name == "tvm" else name for name in names)

    return instances


@pytest.fixture
def check_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file at a path from the repository's root; `--update` writes the file."""

    def check(path: str, text: str) -> None:
        file = REPOSITORY / path
        if request.config.option.update:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        assert file.exists(), f"{path} is missing; run pytest --update"
        assert text == file.read_text(encoding="utf-8"), f"{path} is out of date; run pytest --update"

    return check
