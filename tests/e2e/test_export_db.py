"""The examples that torch ships for its exporter (``torch._export.db``): each runs as eager does, or is
refused with an error that names the line and the way out.
"""

from __future__ import annotations

import copy
import linecache
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch._export.db.examples import all_examples
from torch.utils import _pytree as pytree

import regraft
from regraft.errors import CaptureError, RegraftError
from regraft.testing import assert_close

EXAMPLES: Mapping[str, Any] = all_examples()


@dataclass(frozen=True)
class Refusal:
    """What the error says.

    Fields:
        words: in its message.
        line: in the source line that it points at; None where the fault is in an argument of the compile,
            which the message then names.
        way_out: in its hint.
    """

    words: str
    line: str | None
    way_out: str


#: Every example that is not here runs.
REFUSED: Mapping[str, Refusal] = {
    "dynamic_shape_round": Refusal("dynamic_shapes do not fit the model", None, "Dim.AUTO"),
    "model_attr_mutation": Refusal(
        "writes to its attribute 'attr_list'", "self.attr_list = self.recreate_list()", "return the new value"
    ),
    "tensor_setattr": Refusal(
        "nobody uses the random numbers", "setattr(x, attr, torch.randn(3, 2))", "remove the op"
    ),
}


def test_the_table_is_about_the_examples() -> None:
    assert len(EXAMPLES) >= 36
    assert set(REFUSED) <= set(EXAMPLES)


# An example of a predicate that is known at capture says so to whoever exports it.
@pytest.mark.filterwarnings("ignore:Pred is a Python constant")
@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - set(REFUSED)))
def test_runs(name: str) -> None:
    case = EXAMPLES[name]
    model = copy.deepcopy(case.model).eval()
    compiled = regraft.compile(
        copy.deepcopy(model), case.example_args, case.example_kwargs, dynamic_shapes=case.dynamic_shapes
    )
    calls = [(case.example_args, case.example_kwargs)]
    calls += [(case.extra_args, {})] if case.extra_args is not None else []
    for args, kwargs in calls:
        actual = compiled(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        with torch.no_grad():
            eager = copy.deepcopy(model)(*copy.deepcopy(args), **copy.deepcopy(kwargs))
            expected = _double(copy.deepcopy(model).double()(*_double(args), **_double(kwargs)))
        assert pytree.tree_structure(actual) == pytree.tree_structure(eager)
        expected, eager = (pytree.tree_map(_number_as_tensor, each) for each in (expected, eager))
        assert_close(actual, expected, eager, reassociates=True)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    case, refusal = EXAMPLES[name], REFUSED[name]
    with pytest.raises(RegraftError) as caught:
        regraft.compile(
            copy.deepcopy(case.model).eval(),
            case.example_args,
            case.example_kwargs,
            dynamic_shapes=case.dynamic_shapes,
        )
    error = caught.value
    assert type(error) is CaptureError
    assert refusal.words in error.message
    assert error.hint is not None
    assert refusal.way_out in error.hint
    if refusal.line is None:
        assert error.location is None
        return
    assert error.location is not None
    file, _, rest = error.location.rpartition(":")
    assert file.endswith(f"{name}.py")
    assert refusal.line in linecache.getline(file, int(rest.split()[0]))


def _number_as_tensor(leaf: Any) -> Any:
    """A size that a call decides is a tensor among the results."""
    return torch.tensor(leaf) if type(leaf) is int else leaf


def _double(value: Any) -> Any:
    def wide(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(wide, copy.deepcopy(value))
