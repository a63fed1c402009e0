"""Every shipped rewrite passes the tests that its examples and counterexamples define."""

import pytest

from regraft.rewrites import FAMILIES
from regraft.testing import RewriteCase, rewrite_cases

REWRITES = [rewrite for family in FAMILIES.values() for rewrite in family]
CASES = [case for rewrite in REWRITES for case in rewrite_cases(rewrite)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_derived(case: RewriteCase) -> None:
    case.run()


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda rewrite: rewrite.name)
def test_states_its_equation_and_its_limits(rewrite) -> None:
    assert "=" in rewrite.__doc__
    assert rewrite.examples
    assert rewrite.counterexamples or rewrite.name in UNCONDITIONAL


UNCONDITIONAL = ("ExpandOfExpand", "PermuteOfPermute", "ViewOfView")
"""Rewrites that always apply where their pattern matches."""


def test_names_are_unique() -> None:
    names = [rewrite.name for rewrite in REWRITES]
    assert len(set(names)) == len(names)
