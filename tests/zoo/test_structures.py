"""Calling conventions: what people pass in and get out, weights that are tied, and buffers.

Tied embeddings: Press and Wolf, arXiv:1608.05859.
"""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, register_dataclass
from transformers.utils import ModelOutput

from tests.zoo.checking import check, normal

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Scores:
    """A result class of the user's own."""

    logits: Tensor
    probabilities: Tensor


register_dataclass(Scores)


class TwoTowers(nn.Module):
    """A dict in, a nested tuple out, as retrieval models have it (CLIP, arXiv:2103.00020)."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 4), nn.Linear(6, 4)

    def forward(self, batch: dict[str, Tensor], scale: float = 2.0) -> tuple[Tensor, dict[str, list[Tensor]]]:
        a, b = self.left(batch["left"]), self.right(batch["right"])
        return a @ b.T * scale, {"features": [a, b]}


def two_towers(rows: int) -> tuple[dict[str, Tensor]]:
    return ({"left": normal(rows, 8), "right": normal(rows, 6, seed=1)},)


def test_dict_in_and_nested_out() -> None:
    shapes = ({"left": {0: Dim.AUTO}, "right": {0: Dim.AUTO}},)
    compiled = check(TwoTowers(), two_towers(4), two_towers(1), two_towers(7), dynamic_shapes=shapes)
    similarity, rest = compiled(*two_towers(3))
    assert similarity.shape == (3, 3)
    assert list(rest) == ["features"]
    assert isinstance(rest["features"], list)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Scores:
        logits = self.linear(x)
        return Scores(logits, logits.softmax(-1))


def test_dataclass_out() -> None:
    compiled = check(Classifier(), (normal(3, 8),))
    assert type(compiled(normal(3, 8))) is Scores


def test_named_tuple_in_and_out() -> None:
    class Swap(nn.Module):
        def forward(self, pair: Pair) -> Pair:
            return Pair(pair.right + 1, pair.left * 2)

    compiled = check(Swap(), (Pair(normal(3), normal(4)),))
    assert type(compiled(Pair(normal(3), normal(4)))) is Pair


def test_several_and_constant_results() -> None:
    """An argument handed through, a result given twice, None, a number and a constant."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(4.0))

        def forward(self, x: Tensor, flag: bool = True, other: Tensor | None = None) -> tuple[object, ...]:
            y = x.relu() if flag else x
            return x, y, y, None, 3, self.table

    compiled = check(Mixed(), (normal(4),))
    x = normal(4)
    first = compiled(x)
    table = first[5].clone()
    first[0].zero_()
    first[1].zero_()
    first[5].zero_()
    assert torch.equal(x, normal(4)), "a result shares memory with an argument"
    assert torch.equal(compiled(x)[5], table), "a result shares memory with a constant"


class LanguageModel(nn.Module):
    """The output projection is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.body = nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embedding(ids))))


def test_tied_weights_stay_one_constant() -> None:
    ids = torch.randint(0, 50, (2, 5), generator=torch.Generator().manual_seed(0))
    compiled = check(LanguageModel(), (ids,), (ids[:1],), dynamic_shapes=({0: Dim.AUTO},))
    size = 4 * (50 * 16 + 16 * 16 + 16)
    assert compiled.report.to_dict()["memory"]["constants"] == size


@dataclass
class TokenOutput(ModelOutput):
    """A result class as transformers' users derive it."""

    logits: Tensor | None = None
    hidden: tuple[Tensor, ...] | None = None


def test_model_output_of_the_users_own() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> TokenOutput:
            return TokenOutput(logits=self.linear(x), hidden=(x * 2, x + 1))

    compiled = check(Tokens(), (normal(3, 8),))
    result = compiled(normal(3, 8))
    assert type(result) is TokenOutput
    assert result.logits.shape == (3, 4)
    assert len(result.hidden) == 2
