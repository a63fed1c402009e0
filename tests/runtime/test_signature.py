"""From a user's call to flat tensors and sizes, and back."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from regraft.errors import ArtefactError, ShapeError
from regraft.runtime import ParamSpec, Signature, SymbolSpec, TensorSpec, ValueSpec

LEAF = pytree.tree_structure(0)


def tensor(name: str, *shape: int | str, dtype: str = "f32") -> ParamSpec:
    return ParamSpec(name, (TensorSpec(name, dtype, shape),))


def signature(*params: ParamSpec, symbols: tuple[SymbolSpec, ...] = (), **options: Any) -> Signature:
    """A signature with one result."""
    fields: dict[str, Any] = {
        "positional": tuple(p.name for p in params),
        "defaults": {},
        "outputs": (0,),
        "out_structure": LEAF,
    }
    return Signature(params, symbols=symbols, **(fields | options))


def refused(made: Signature, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ShapeError) as raised:
        made.sizes(made.flatten(args, kwargs))
    return str(raised.value)


TWO = signature(tensor("x", 2, 3), tensor("mask", 2, dtype="bool"))
X, MASK = torch.ones(2, 3), torch.ones(2, dtype=torch.bool)


# -- flatten -----------------------------------------------------------------------------------


def test_arguments_by_position_and_by_name() -> None:
    for flat in (TWO.flatten((X, MASK), {}), TWO.flatten((X,), {"mask": MASK})):
        assert flat[0] is X
        assert flat[1] is MASK
    flat = TWO.flatten((), {"mask": MASK, "x": X})
    assert flat[0] is X


def test_only_captured_parameters_are_flattened() -> None:
    """A parameter between the captured ones keeps its position."""
    made = signature(tensor("x", 2, 3), tensor("z", 2), positional=("x", "y", "z"), defaults={"y": None})
    z = torch.ones(2)
    assert made.flatten((X, None, z), {})[1] is z
    assert "argument 'y' was not in the example" in refused(made, X, torch.ones(1), z)


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((X,), {}, "missing argument 'mask'; the model was compiled with it"),
        ((X, MASK, X), {}, "expected at most 2 positional arguments, got 3"),
        ((X, MASK), {"mask": MASK}, "argument 'mask' is given twice"),
        ((X, MASK), {"labels": X}, "unexpected argument 'labels'; the model was compiled with: x, mask"),
        (
            ([X], MASK),
            {},
            "'x' is of type list; the model was compiled for a tensor: pass torch.as_tensor(x)",
        ),
        (
            (X.numpy(), MASK),
            {},
            "'x' is of type ndarray; the model was compiled for a tensor: pass torch.as_tensor(x)",
        ),
        ((X, None), {}, "'mask' is None; the model was compiled for a tensor: compile with None"),
        ((3, MASK), {}, "'x' is of type int; the model was compiled for a tensor: pass torch.as_tensor(x)"),
    ],
)
def test_wrong_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], expected: str) -> None:
    assert expected in refused(TWO, *args, **kwargs)


def test_defaults_may_be_passed() -> None:
    made = signature(tensor("x", 2, 3), positional=("x", "scale"), defaults={"scale": 1.0, "mode": "fast"})
    assert len(made.flatten((X, 1.0), {"mode": "fast"})) == 1
    assert refused(made, X, 2.0) == (
        "argument 'scale' was not in the example, so the model was compiled for its default, 1.0; "
        "compile with 'scale' in the example"
    )
    assert "compile with 'scale'" in refused(made, X, 1)  # another type is another program
    assert "for its default, 'fast'" in refused(made, X, mode="slow")
    assert "compile with 'mode'" in refused(made, X, mode=torch.ones(3))


def test_fixed_values() -> None:
    made = signature(tensor("x", 2, 3), ParamSpec("causal", (ValueSpec("causal", True),)))
    assert len(made.flatten((X, True), {})) == 1
    for value in (False, 1, None, torch.tensor(True)):
        message = refused(made, X, value)
        assert message.startswith("argument 'causal' is ")
        assert "the model was compiled for True. Compile again for another value" in message
    assert "argument 'causal' is a Tensor of torch.float32 [64, 64]; the model" in refused(
        made, X, torch.ones(64, 64)
    )


def nested() -> Signature:
    value = {"ids": (0, 0), "more": [0, 5]}
    leaves = (
        TensorSpec("batch[0]", "i64", (2,)),
        TensorSpec("batch[1]", "f32", ("n",)),
        TensorSpec("batch[2]", "f32", ("n", 2)),
        ValueSpec("batch[3]", 5),
    )
    param = ParamSpec("batch", leaves, pytree.tree_structure(value))
    return signature(param, symbols=(SymbolSpec("n", 1, 0),))


def test_nested_arguments() -> None:
    made = nested()
    ids, a, b = torch.zeros(2, dtype=torch.int64), torch.ones(3), torch.ones(3, 2)
    flat = made.flatten(({"ids": (ids, a), "more": [b, 5]},), {})
    assert flat[0] is ids
    assert flat[2] is b
    assert made.sizes(flat) == {"n": 3}
    message = refused(made, {"ids": (ids, a), "more": [torch.ones(4, 2), 5]})
    assert message == (
        "argument 'batch[2]' has shape [4, 2]; dimension 0 must be 3, as dimension 0 of 'batch[1]' is "
        "(the model was compiled for [n, 2])"
    )
    assert "argument 'batch[3]' is 6" in refused(made, {"ids": (ids, a), "more": [b, 6]})


@pytest.mark.parametrize(
    "value",
    [
        {"ids": (X, X)},
        {"ids": [X, X], "more": [X, 5]},
        {"ids": (X, X), "more": [X, 5, 6]},
        {"ids": (X, X), "others": [X, 5]},
        X,
        None,
    ],
    ids=["a key less", "a list for a tuple", "one more", "another key", "a tensor", "nothing"],
)
def test_another_structure(value: Any) -> None:
    assert "argument 'batch' has the structure" in refused(nested(), value)


# -- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "mask", "expected"),
    [
        (
            X.double(),
            MASK,
            "argument 'x' has dtype f64; the model was compiled for f32. Pass x.to(torch.float32), or",
        ),
        (X.to(torch.float8_e5m2), MASK, "argument 'x' has dtype torch.float8_e5m2"),
        (X, MASK.int(), "argument 'mask' has dtype i32; the model was compiled for bool"),
        (torch.ones(2), MASK, "argument 'x' has shape [2]; the model was compiled for [2, 3]"),
        (torch.ones(1, 2, 3), MASK, "argument 'x' has shape [1, 2, 3]; the model was compiled for [2, 3]"),
        (
            torch.ones(2, 4),
            MASK,
            "dimension 1 must be 3 (the model was compiled for [2, 3]). Compile with dyn",
        ),
        (X, torch.ones(3, dtype=torch.bool), "argument 'mask' has shape [3]; dimension 0 must be 2"),
        (X.to("meta"), MASK, "argument 'x' is on meta; the model runs on cpu"),
    ],
)
def test_wrong_tensors(x: torch.Tensor, mask: torch.Tensor, expected: str) -> None:
    assert expected in refused(TWO, x, mask)


def test_a_size_that_others_determine() -> None:
    symbols = SymbolSpec("n", 0, 0), SymbolSpec("m", 1, 0)
    made = signature(tensor("x", "n", "2*n + m", 3), tensor("y", "m"), symbols=symbols)
    assert made.sizes([torch.ones(4, 13, 3), torch.ones(5)]) == {"n": 4, "m": 5}
    message = refused(made, torch.ones(4, 12, 3), torch.ones(5))
    assert "dimension 1 must be 13, which is 2*n + m with n = 4 by dimension 0 of 'x', m = 5 by" in message
    fixed = refused(made, torch.ones(4, 13, 2), torch.ones(5))
    assert "dimension 2 must be 3 (the model was compiled for [n, 2*n + m, 3]). That size is fixed" in fixed
    assert "Compile with dynamic_shapes" not in fixed + message


def test_sizes_are_solved_and_compared() -> None:
    symbols = (
        SymbolSpec("n", 0, 0, lo=2, hi=8),
        SymbolSpec("t", 1, 1, divisor=4),
        SymbolSpec("k", 1, 2, scale=3, offset=1),
    )
    made = signature(tensor("x", "n"), tensor("y", "2*n", "t", "3*k + 1", "t*n"), symbols=symbols)
    y = torch.empty(6, 8, 7, 24)
    assert made.sizes([torch.empty(3), y]) == {"n": 3, "t": 8, "k": 2}
    for shape, expected in (
        ((6, 8, 7, 25), "dimension 3 must be 24, which is t*n with n = 3 by dimension 0 of 'x', t = 8 by"),
        ((7, 8, 7, 24), "dimension 0 must be 6"),
        ((6, 6, 7, 18), "dimension 1 of 'y' is 6; t must be a multiple of 4"),
        ((6, 8, 6, 24), "dimension 2 of 'y' is 6; it must be 3*k + 1"),
        ((6, 8, 0, 24), "dimension 2 of 'y' is 0; it must be 3*k + 1"),
    ):
        assert expected in refused(made, torch.empty(3), torch.empty(shape))
    for n in (0, 1, 9):
        expected = f"dimension 0 of 'x' is {n}; the model was compiled for n in [2, 8]"
        assert expected in refused(made, torch.empty(n), y)


def test_a_range_without_an_end() -> None:
    made = signature(tensor("x", "n"), symbols=(SymbolSpec("n", 0, 0, lo=1),))
    assert made.sizes([torch.empty(4096)]) == {"n": 4096}
    assert "n in [1, inf]" in refused(made, torch.empty(0))


def test_a_symbol_may_be_any_axis_of_its_input() -> None:
    """Other axes with the symbol are compared with the one that defines it."""
    made = signature(tensor("x", "n", "n"), symbols=(SymbolSpec("n", 0, 1),))
    assert made.sizes([torch.empty(3, 3)]) == {"n": 3}
    assert "dimension 0 must be 4" in refused(made, torch.empty(3, 4))


# -- construction and results ------------------------------------------------------------------


def test_a_shape_is_a_size_expression() -> None:
    with pytest.raises(ArtefactError, match="is not a size expression"):
        signature(tensor("x", "open('/etc/passwd')"))
    with pytest.raises(KeyError):
        signature(tensor("x", 2, dtype="f99"))


def test_results_get_their_structure_back() -> None:
    structure = pytree.tree_structure(OrderedDict(logits=0, past=[(0, 0), None], step=0))
    outputs = (1, 0, 1, ValueSpec("result", None), ValueSpec("result", 7))
    a, b = torch.zeros(1), torch.ones(2)
    result = signature(out_structure=structure, outputs=outputs).unflatten([a, b])
    assert type(result) is OrderedDict
    assert result["logits"] is b
    assert result["past"] == [(a, b), None]
    assert result["step"] == 7


def test_specs_are_plain_data() -> None:
    assert [spec.name for spec in nested().tensors] == ["batch[0]", "batch[1]", "batch[2]"]
    assert nested() == nested()
