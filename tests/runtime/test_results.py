"""Results of transformers' classes are made without their constructor, and are what it would have made."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils.generic import ModelOutput

import regraft
from regraft.runtime import Signature, ValueSpec

A, B, C = (torch.full((2,), float(n)) for n in range(3))


def builder(value: Any, outputs: tuple[Any, ...] | None = None) -> Signature:
    """The signature of a function without arguments that returns a value like ``value``."""
    structure = pytree.tree_structure(value)
    return Signature((), (), {}, (), outputs or tuple(range(structure.num_leaves)), structure)


def assert_same(made: Any, expected: Any) -> None:
    assert type(made) is type(expected)
    assert list(vars(made)) == list(vars(expected))
    for (name, value), (other, theirs) in zip(made.items(), expected.items(), strict=True):
        assert name == other
        assert value is theirs
        assert getattr(made, name) is value
    assert [id(v) for v in made.to_tuple()] == [id(v) for v in expected.to_tuple()]


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: BaseModelOutputWithPooling(last_hidden_state=a, pooler_output=b),
        lambda a, b: BaseModelOutputWithPooling(pooler_output=b, attentions=a),
        lambda a, b: CausalLMOutputWithPast(loss=a, logits=b),
    ],
)
def test_later_results_are_as_constructed(make: Any) -> None:
    signature = builder(make(A, B))
    for a, b in ((A, B), (B, C), (C, A)):
        expected = make(a, b)
        made = signature.unflatten(list(expected.values()))
        assert_same(made, expected)
        made.hidden_states = B
        assert_same(signature.unflatten(list(expected.values())), expected)


def test_a_fixed_value_among_the_results() -> None:
    expected = BaseModelOutputWithPooling(last_hidden_state=A, pooler_output=7)
    signature = builder(expected, (0, ValueSpec("pooler_output", 7)))
    for _ in range(2):
        assert_same(signature.unflatten([A]), expected)


@dataclass
class Checked(ModelOutput):
    """Not one of transformers' own: its constructor looks at the values."""

    value: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value is not None and self.value.sum() < 0:
            raise ValueError("negative")


def test_constructors_of_others_are_called_each_time() -> None:
    signature = builder(Checked(A))
    assert_same(signature.unflatten([B]), Checked(B))
    with pytest.raises(ValueError, match="negative"):
        signature.unflatten([-C])


def test_a_constructor_that_changes_values_is_called_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def adds_one(self: Any) -> None:
        for name in ("last_hidden_state", "pooler_output"):
            value = self.__dict__[name]
            if value is not None:
                self.__dict__[name] = value + 1
                OrderedDict.__setitem__(self, name, value + 1)

    example = BaseModelOutputWithPooling(last_hidden_state=A, pooler_output=B)
    signature = builder(example)
    monkeypatch.setattr(BaseModelOutputWithPooling, "__post_init__", adds_one)
    for _ in range(2):
        assert torch.equal(signature.unflatten([A, B]).last_hidden_state, A + 1)


def test_results_of_two_calls_have_nothing_in_common() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> BaseModelOutputWithPooling:
            return BaseModelOutputWithPooling(last_hidden_state=x + 1, pooler_output=x * 2)

    compiled = regraft.compile(Model().eval(), (A,))
    results = [compiled(x) for x in (A, B, C)]
    for x, result in zip((A, B, C), results, strict=True):
        assert torch.equal(result.last_hidden_state, x + 1)
        assert torch.equal(result["pooler_output"], x * 2)
        assert result.attentions is None
