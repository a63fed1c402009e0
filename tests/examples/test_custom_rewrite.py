"""The example of a user's rewrite does what its page says."""

import copy

import pytest
import torch

import regraft
from examples.custom_rewrite import Adapted, SiblingSum, main
from regraft.demo import ParallelSum
from regraft.testing import RewriteCase, assert_close, randomise, rewrite_cases


@pytest.mark.parametrize(
    "case", [*rewrite_cases(SiblingSum()), *rewrite_cases(ParallelSum())], ids=lambda case: case.id
)
def test_derived(case: RewriteCase) -> None:
    case.run()


def test_one_product_is_left() -> None:
    model, x = randomise(Adapted(32)).eval(), torch.randn(4, 32)
    compiled = regraft.compile(model, (x,), rewrites=[SiblingSum()])
    assert compiled.report.rewrites["SiblingSum"].hits == 1
    assert compiled.report.flops["after"] < 0.6 * compiled.report.flops["before"]
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        assert_close(compiled(x), expected, model(x), reassociates=True)


def test_new_weights_reach_the_recipe() -> None:
    model, x = randomise(Adapted(32)).eval(), torch.randn(4, 32)
    compiled = regraft.compile(model, (x,), rewrites=[SiblingSum()])
    compiled.refresh(randomise(model, seed=7))
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        assert_close(compiled(x), expected, model(x), reassociates=True)


def test_the_script_runs(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    assert "applied 1 time" in capsys.readouterr().out
