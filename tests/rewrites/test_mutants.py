"""A mistake in a shipped rewrite: derived tests catch it, `verify="each"` and `bisect` name it."""

from __future__ import annotations

import pytest

import regraft
from regraft.errors import NumericsMismatch, RewriteError
from regraft.testing import rewrite_cases
from tests.rewrites.mutants import MUTANTS, SHIPPED, Mutant
from tests.rewrites.mutants_around_layers import AROUND_LAYERS

ALL = (*MUTANTS, *AROUND_LAYERS)
EACH = pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.id)


@pytest.mark.conformance
@EACH
def test_derived_tests_catch_it(mutant: Mutant) -> None:
    failed: list[str] = []
    for case in rewrite_cases(mutant.make()):
        try:
            case.run()
        except (AssertionError, NumericsMismatch, RewriteError):
            failed.append(case.id)
    assert failed, f"nothing shows that {mutant.rewrite} is wrong with: {mutant.mistake}"


@pytest.mark.conformance
@EACH
def test_verify_each_names_it(mutant: Mutant) -> None:
    with pytest.raises((NumericsMismatch, RewriteError)) as caught:
        regraft.compile(mutant.model, mutant.inputs, rewrites=[mutant.make()], verify="each")
    error = caught.value
    names = error.rewrites if isinstance(error, RewriteError) else (error.suspect,)
    assert names == (mutant.name,)
    assert error.location is not None


@pytest.mark.conformance
@EACH
def test_bisect_names_it(mutant: Mutant) -> None:
    report = regraft.bisect(mutant.model, mutant.inputs, rewrites=[mutant.make()])
    assert (report.verdict, report.rewrite) == ("rewrite", mutant.name)
    assert report.location.line


def test_there_are_enough() -> None:
    assert len({mutant.id for mutant in ALL}) == len(ALL) >= 30
    assert {mutant.rewrite for mutant in ALL} <= SHIPPED.keys()
