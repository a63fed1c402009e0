"""The sample of the conformance tables is repeatable, of the right size, and moves with the seed."""

from pathlib import Path

from tests.sampling import commit_hash, is_sampled

TESTS = [f"tests/ops/test_table.py::test_op[{i}]" for i in range(2000)]


def sample(seed: str, fraction: float) -> set[str]:
    return {test for test in TESTS if is_sampled(test, seed, fraction)}


def test_same_seed_gives_same_sample() -> None:
    assert sample("abc", 0.1) == sample("abc", 0.1)
    assert sample("abc", 0.1) != sample("abd", 0.1)


def test_fraction_is_kept() -> None:
    assert not sample("abc", 0.0)
    assert len(sample("abc", 1.0)) == len(TESTS)
    assert 150 <= len(sample("abc", 0.1)) <= 250


def test_no_repository_has_no_commit(tmp_path: Path) -> None:
    assert commit_hash(tmp_path) == "no-commit"
