"""The five families: compiled for one shape and for all, equal to eager, and no eager op between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import regraft
from regraft.testing import assert_close
from tests.models import FAMILIES, Family, in_double

#: What a family is recognised by: rewrites that must fire, and how often in the small form.
RECOVERED = {
    "bert": {"TrueMask": 2},
    "gpt2": {"CausalMask": 2, "GeluTanh": 2},
    "llama": {
        "RMSNorm": 5,
        "RMSNormWeight": 5,
        "Rotary": 4,
        "GroupedHeads": 2,
        "CausalMask": 2,
        "GatedFFN": 2,
    },
    "vit": {"TrueMask": 2},
    "modernbert": {"Rotary": 4, "TrueMask": 1},
}
#: Unlike the example, which is [2, 24]: one of everything, primes, more of both.
SIZES = [(1, 1), (3, 13), (1, 24), (5, 7), (2, 131)]


def compare(model: nn.Module, compiled: Any, inputs: dict[str, Any]) -> None:
    result = compiled(**inputs)
    with torch.no_grad():
        eager = model(**inputs)
    assert type(result) is type(eager)
    assert list(result.keys()) == list(eager.keys())
    assert_close(result, in_double(model, **inputs), eager, reassociates=True)


def only_ort(compiled: Any) -> None:
    report = compiled.report.to_dict()
    assert list(report["executors"]) == ["ort"]
    assert report["fallbacks"] == []


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_dynamic(family: Family) -> None:
    model = family.make()
    compiled = regraft.compile(model, kwargs=family.inputs(), dynamic_shapes=family.dynamic())
    only_ort(compiled)
    hits = {name: entry["hits"] for name, entry in compiled.report.to_dict()["rewrites"].items()}
    assert {name: hits[name] for name in RECOVERED[family.name]} == RECOVERED[family.name]
    for seed, (batch, length) in enumerate(SIZES):
        compare(model, compiled, family.inputs(batch, length, seed))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_static(family: Family) -> None:
    model = family.make()
    compiled = regraft.compile(model, kwargs=family.inputs(1, 17))
    only_ort(compiled)
    compare(model, compiled, family.inputs(1, 17, seed=1))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert"])
def test_with_an_attention_mask(name: str) -> None:
    """Padding on the right, a different length in each row; called by position and by keyword."""
    family = FAMILIES[name]
    model = family.make()

    def inputs(batch: int, length: int) -> dict[str, torch.Tensor]:
        lengths = torch.arange(batch)[:, None] % length + 1
        mask = (torch.arange(length)[None] < lengths).long()
        return {**family.inputs(batch, length), "attention_mask": mask}

    axes = {0: Dim.AUTO, 1: Dim.AUTO}
    shapes = {"input_ids": axes, "attention_mask": axes}
    compiled = regraft.compile(model, kwargs=inputs(3, 9), dynamic_shapes=shapes)
    only_ort(compiled)
    for batch, length in [(1, 1), (4, 13), (2, 40)]:
        compare(model, compiled, inputs(batch, length))
    ids, mask = inputs(2, 11).values()
    by_position = compiled(ids, attention_mask=mask)
    assert torch.equal(by_position[0], compiled(input_ids=ids, attention_mask=mask)[0])


@pytest.mark.conformance
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("batch", [1, 2])
def test_full_size(family: Family, batch: int) -> None:
    """The workloads themselves, at the sizes of docs/workloads.md."""
    model = family.make("full")
    length = 2048 if family.name == "modernbert" and batch == 1 else 128
    compiled = regraft.compile(model, kwargs=family.inputs(batch, length), threads=2)
    only_ort(compiled)
    compare(model, compiled, family.inputs(batch, length, seed=3))


@pytest.mark.conformance
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_spelled_out_attention(family: Family) -> None:
    """transformers' own eager attention, which the model spells out."""
    model = family.make()
    model.set_attn_implementation("eager")
    compiled = regraft.compile(model, kwargs=family.inputs(), dynamic_shapes=family.dynamic())
    only_ort(compiled)
    assert compiled.report.to_dict()["rewrites"]["SpelledOutAttention"]["hits"] == 2
    for batch, length in SIZES[:2]:
        compare(model, compiled, family.inputs(batch, length))
