"""The solver of parameter spaces, and the spaces of the templates."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.backends.tvm import cpu, space, templates

ZEN4 = cpu.Cpu("avx512", 16, 32, l1=32 << 10, l2=1 << 20, threads=2, peak=237e9, bandwidth=40e9)
AVX2 = cpu.Cpu("avx2", 8, 16, l1=32 << 10, l2=512 << 10, threads=4, peak=200e9, bandwidth=30e9)
NEON = cpu.Cpu("neon", 4, 32, l1=64 << 10, l2=1 << 20, threads=1, peak=50e9, bandwidth=20e9)
CPUS = (ZEN4, AVX2, NEON)

GEMM = next(t for t in templates.TEMPLATES if t.name == "gemm")
FFN = next(t for t in templates.TEMPLATES if t.name == "ffn")


def test_a_space_has_what_meets_its_constraints() -> None:
    found = space.Space(
        (space.Parameter("a", (1, 2, 3)), space.Parameter("b", (1, 2, 3))),
        (space.Constraint("a is below b", ("a", "b"), lambda a, b: a < b),),
    )
    assert [str(config) for config in found] == ["a=1,b=2", "a=1,b=3", "a=2,b=3"]
    assert found.refusal(space.Config.of(a=1, b=2)) is None
    assert found.refusal(space.Config.of(a=2, b=1)) == "a is below b"
    assert found.refusal(space.Config.of(a=1, b=7)) == "b cannot be 7"
    assert found.refusal(space.Config.of(b=1, a=2)) == "its parameters are not a, b"


def test_what_a_constraint_rules_out_is_not_enumerated() -> None:
    asked: list[int] = []
    found = space.Space(
        (space.Parameter("a", tuple(range(100))), *(space.Parameter(n, tuple(range(50))) for n in "bcd")),
        (
            space.Constraint("a is 7", ("a",), lambda a: bool(asked.append(a)) or a == 7),
            space.Constraint("the others are 0", ("b", "c", "d"), lambda *values: values == (0, 0, 0)),
            space.Constraint("b is 0", ("b",), lambda b: b == 0),
            space.Constraint("c is 0", ("c",), lambda c: c == 0),
        ),
    )
    assert [str(config) for config in found] == ["a=7,b=0,c=0,d=0"]
    assert len(asked) == 100


@given(st.data())
def test_the_solver_is_a_filter_of_all_combinations(data: st.DataObject) -> None:
    names = [f"p{i}" for i in range(data.draw(st.integers(1, 4)))]
    parameters = tuple(
        space.Parameter(
            n, tuple(data.draw(st.lists(st.integers(-3, 3), min_size=1, max_size=4, unique=True)))
        )
        for n in names
    )
    constraints = tuple(
        space.Constraint(
            f"weights {w} of {uses}", uses, lambda *v, w=w: sum(a * b for a, b in zip(v, w, strict=True)) <= 2
        )
        for uses in data.draw(st.lists(st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple)))
        for w in [data.draw(st.tuples(*[st.integers(-2, 2)] * len(uses)))]
    )
    solved = space.Space(parameters, constraints)
    every = [
        space.Config(tuple(zip(names, values, strict=True)))
        for values in itertools.product(*(p.values for p in parameters))
    ]
    assert list(solved) == [config for config in every if solved.refusal(config) is None]


def test_a_config_is_read_back_from_its_text() -> None:
    config = space.Config.of(rows=6, width=64)
    assert space.Config.parse(str(config)) == config
    for text in ("", "rows", "rows=x", "rows=1=2"):
        with pytest.raises(ValueError, match="not a config"):
            space.Config.parse(text)


def products() -> st.SearchStrategy[templates.Gemm]:
    sizes = st.one_of(st.integers(1, 70), st.sampled_from([97, 128, 517, 768, 1024, 2816, 8192]))
    return st.builds(
        templates.Gemm,
        rows=st.one_of(st.none(), st.integers(0, 600)),
        columns=sizes,
        depth=sizes,
        batch=st.integers(1, 3),
        products=st.just(2),
        epilogue=st.just((templates.gate("silu"),)),
        is_constant=st.booleans(),
    ) | st.builds(templates.Gemm, rows=st.one_of(st.none(), st.integers(0, 600)), columns=sizes, depth=sizes)


@given(products(), st.sampled_from(CPUS))
def test_every_config_of_a_product_fits_the_machine(problem: templates.Gemm, machine: cpu.Cpu) -> None:
    found = GEMM.ranked(problem, machine, 50)
    assert found, "no config at all"
    for config in found:
        vectors = config["width"] // machine.lanes
        assert config["width"] % machine.lanes == 0
        assert problem.products * (config["rows"] + 1) * vectors < machine.registers
        assert problem.depth % config["depth"] == 0
        assert config["splits"] <= 2 * machine.threads
        assert GEMM.space(problem, machine).refusal(config) is None
        assert GEMM.estimate(problem, config, machine, 5) > 0


@given(products(), st.sampled_from(CPUS))
def test_the_ranking_is_that_of_the_estimates(problem: templates.Gemm, machine: cpu.Cpu) -> None:
    found = [GEMM.estimate(problem, config, machine) for config in GEMM.ranked(problem, machine, 20)]
    assert found == sorted(found)
    every = [GEMM.estimate(problem, config, machine) for config in GEMM.space(problem, machine)]
    assert found[0] == min(every)
    assert GEMM.default(problem, machine) == GEMM.ranked(problem, machine, 1)[0]


def test_defaults_keep_the_multipliers_busy() -> None:
    many_rows = GEMM.default(templates.Gemm(128, 2816, 1024), ZEN4)
    assert many_rows["rows"] * many_rows["width"] // ZEN4.lanes >= 16
    one_row = GEMM.default(templates.Gemm(1, 2816, 1024), ZEN4)
    assert one_row["rows"] == 1
    assert one_row["width"] >= 64


def test_a_block_too_large_for_the_cache_is_cut() -> None:
    wide = templates.Gemm(128, 1024, 1 << 15)
    for config in GEMM.space(wide, ZEN4):
        assert 4 * config["width"] * config["depth"] <= ZEN4.l2 or config["width"] == ZEN4.lanes


def test_rows_are_shared_when_columns_do_not_occupy_the_cores() -> None:
    narrow = GEMM.default(templates.Gemm(512, 64, 768), ZEN4)
    blocks = -(-64 // narrow["width"])
    assert blocks * narrow["splits"] % ZEN4.threads == 0


def test_a_feed_forward_network_has_the_parameters_of_both_products() -> None:
    up = templates.Gemm(16, 96, 64, products=2, epilogue=(templates.gate("silu"),))
    problem = templates.FeedForward(up, templates.Gemm(16, 64, 96))
    for config in FFN.ranked(problem, ZEN4, 16):
        assert FFN.space(problem, ZEN4).refusal(config) is None
        assert GEMM.space(up, ZEN4).refusal(config.part("first")) is None
        assert GEMM.space(problem.second, ZEN4).refusal(config.part("second")) is None
    wrong = space.Config(tuple((n, 31 if n == "first.rows" else v) for n, v in config.values))
    assert FFN.space(problem, ZEN4).refusal(wrong) == "first.rows cannot be 31"


def test_problems_that_no_template_takes() -> None:
    problem = templates.Gemm(4, 8, 8, dtype="float16")
    assert templates.template_for(problem) is None
    assert GEMM.takes(problem) == "products of float16 have no kernel"
    assert FFN.takes(problem) == "it is not a feed-forward network"
    first = templates.Gemm(4, 8, 8, has_row_squares=True)
    assert "not seen from outside" in str(FFN.takes(templates.FeedForward(first, templates.Gemm(4, 8, 8))))


def test_a_signature_tells_computations_apart_and_not_rows() -> None:
    base = templates.Gemm(4, 8, 16)
    assert base.signature == replace(base, rows=None).signature
    changes = (
        {"columns": 9},
        {"depth": 17},
        {"batch": 2},
        {"is_constant": False},
        {"is_transposed": False},
        {"dtype": "bfloat16"},
        {"out_dtype": "bfloat16"},
        {"epilogue": (templates.bias(),)},
        {"prologue": (templates.activation("relu"),)},
        {"epilogue": (templates.residual("bias"),)},
        {"has_row_squares": True},
        {"batch": 2, "is_block_diagonal": True},
    )
    assert len({base.signature, *(replace(base, **change).signature for change in changes)}) == 13


def test_this_machine_is_described() -> None:
    host = cpu.host_cpu(threads=2)
    assert host.lanes * host.registers >= 64
    assert 8 << 10 <= host.l1 < host.l2
    assert cpu.host_cpu(2, peak=1e9, bandwidth=2e9).peak == 1e9
