"""The default passes together, on a decoder that spells everything out."""

import copy
import functools
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim

import regraft
from regraft.errors import RewriteError
from regraft.ir import (
    OPS,
    STAGES,
    Exactness,
    Fuel,
    Function,
    Module,
    Pass,
    PassContext,
    Rewrite,
    print_module,
    print_region,
    run_stage,
    verify,
)
from regraft.rewrites import FAMILIES, default_passes
from regraft.testing import assert_close, evaluate, randomise
from tests.rewrites.decoder import Decoder
from tests.rewrites.graphs import graph, names
from tests.rewrites.programs import SYMBOLS, index_programs, program_input, run_program


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(length))


def decoder(eager_attention: bool = False, dtype: torch.dtype = torch.float32) -> Decoder:
    return randomise(Decoder(eager_attention)).eval().to(dtype)


@functools.cache
def captured(eager_attention: bool, static: bool, dtype: torch.dtype) -> Module:
    """The decoder as captured; clone it before changing it."""
    shapes = None if static else {"ids": {0: Dim.AUTO, 1: Dim.AUTO}}
    return regraft.capture(decoder(eager_attention, dtype), (ids(2, 5),), dynamic_shapes=shapes)


def rewritten(
    eager_attention: bool = False, static: bool = False, dtype: torch.dtype = torch.float32, **options
) -> tuple[Module, PassContext]:
    module, context = captured(eager_attention, static, dtype).clone(), PassContext(OPS, **options)
    for stage in STAGES:
        run_stage(default_passes(), stage, module, context)
        # Without fuel there is no normal form.
        verify(module, stage if context.fuel.left is None else None, table=OPS)
    return module, context


RECOVERED = {
    "aten.rms_norm": 2,
    "rg.rotary": 2,
    "aten.scaled_dot_product_attention": 1,
    "rg.ffn": 1,
    "aten.linear": 4,
    "aten.embedding": 1,
    "aten.add.Tensor": 2,
}


@pytest.mark.parametrize(
    ("eager_attention", "static", "dtype"),
    [
        (False, False, torch.float32),
        (False, True, torch.bfloat16),
        (True, False, torch.float32),
        (True, True, torch.float32),
    ],
)
def test_every_idiom_is_recovered(eager_attention: bool, static: bool, dtype: torch.dtype) -> None:
    module, _ = rewritten(eager_attention, static, dtype)
    found = Counter(names(module))
    assert {name: found[name] for name in RECOVERED} == RECOVERED
    (attention,) = [op for op in module.main.body.ops if op.name == "aten.scaled_dot_product_attention"]
    assert attention.attr("is_causal")
    assert attention.attr("enable_gqa")
    assert attention.optional("attn_mask") is None
    assert not any(op.result.tensor.dtype.value == "bool" for op in module.main.body.ops if op.results)


@pytest.mark.parametrize("eager_attention", [False, True], ids=["sdpa", "eager"])
def test_results_stay_at_sizes_unlike_the_example(eager_attention: bool) -> None:
    model = decoder(eager_attention)
    module, _ = rewritten(eager_attention)
    symbols = [symbol.name for symbol in module.main.symbols]
    for batch, length in ((1, 1), (2, 5), (3, 7), (1, 31)):
        x = ids(batch, length)
        with torch.no_grad():
            expected, own = copy.deepcopy(model).double()(x), model(x)
        actual = evaluate(module.main, [x], dict(zip(symbols, (batch, length), strict=True)))
        assert_close(actual, expected, own, reassociates=True)


@pytest.mark.parametrize(
    ("name", "static", "dtype"),
    [("decoder_dynamic", False, torch.float32), ("decoder_static_bf16", True, torch.bfloat16)],
)
def test_golden(name: str, static: bool, dtype: torch.dtype, check_golden) -> None:
    module, _ = rewritten(static=static, dtype=dtype)
    check_golden(f"tests/rewrites/golden/{name}.ir", print_module(module, locations=False))


@settings(max_examples=150)
@given(index_programs(), st.sampled_from([(1, 0), (1, 1), (2, 5), (3, 2)]))
def test_results_of_random_programs_stay(program: Function, lengths: tuple[int, int]) -> None:
    sizes = dict(zip((symbol.name for symbol in SYMBOLS), lengths, strict=True))
    expected = run_program(program, sizes)
    module = Module({"program": program.clone()})
    for stage in STAGES:
        run_stage(default_passes(), stage, module, PassContext(OPS))
        verify(module, stage, table=OPS)
    for a, b in zip(evaluate(module.main, [program_input(sizes)], sizes), expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), print_region(program.body)


def test_exact_compiles_apply_exact_rewrites_only() -> None:
    module, context = rewritten(exactness=Exactness.EXACT)
    rewrites = {r.name: r for family in FAMILIES.values() for r in family}
    applied = [name for name, stats in context.stats.items() if stats.hits]
    assert "Rotary" in applied
    assert "CausalMask" in applied
    assert all(rewrites[name].exactness == Exactness.EXACT for name in applied)
    assert "aten.rms_norm" not in names(module)


def test_fuel_stops_rewrites_one_by_one() -> None:
    _, full = rewritten()
    total = full.fuel.spent
    assert total == sum(stats.hits for stats in full.stats.values()) > 20
    for left in (0, 1, total - 1):
        _, context = rewritten(fuel=Fuel(left))
        assert context.fuel.spent == left


class NegAsMul(Rewrite):
    stage = "algebra"

    def pattern(self, op, x):
        return op.aten.neg(x)

    def rewrite(self, op, m):
        return op.aten.mul.Scalar(m.x, -1)


class MulAsNeg(Rewrite):
    stage = "algebra"

    def pattern(self, op, x):
        return op.aten.mul.Scalar(x, -1)

    def rewrite(self, op, m):
        return op.aten.neg(m.x)


def test_rewrites_that_undo_each_other_are_named() -> None:
    module = graph(lambda op, x: op.aten.neg(x), "f32[3]")
    with pytest.raises(RewriteError, match=r"MulAsNeg.*NegAsMul|NegAsMul.*MulAsNeg"):
        run_stage(default_passes((NegAsMul(), MulAsNeg())), "algebra", module, PassContext(OPS))


class Spells(Rewrite):
    """A user's rewrite may write any spelling; the stage ends in the normal form."""

    stage = "algebra"

    def pattern(self, op, x):
        return op.aten.exp(op.aten.neg(x))

    def rewrite(self, op, m):
        return op.aten.squeeze.dim(op.aten.reciprocal(op.aten.exp(op.aten.unsqueeze(m.x, -1))), -1)


def test_passes_are_made_once_but_for_those_of_others() -> None:
    def names_of(passes: Sequence[Pass]) -> set[str]:
        return {rewrite.name for each in passes for rewrite in getattr(each, "rewrites", ())}

    shipped, own, fewer = default_passes(), default_passes((Spells(),)), default_passes((), {"RMSNorm"})
    assert default_passes() is shipped
    assert names_of(own) - names_of(shipped) == {"Spells"}
    assert names_of(shipped) - names_of(fewer) == {"RMSNorm"}


def test_any_spelling_is_brought_into_the_normal_form() -> None:
    module = graph(lambda op, x: op.aten.exp(op.aten.neg(x)), "f32[S]")
    run_stage(default_passes((Spells(),)), "algebra", module, PassContext(OPS))
    verify(module, "algebra", table=OPS)
    assert names(module) == ["aten.view", "aten.exp", "aten.reciprocal", "aten.view"]
