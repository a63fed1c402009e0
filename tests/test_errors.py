"""The exceptions: what they say, and that they survive pickling."""

import pickle
from collections.abc import Iterable

import pytest

from regraft import errors

EXAMPLES = [
    errors.RegraftError("broken"),
    errors.CaptureError("a list changes in a loop", "model.py:3", "  xs.pop()", hint="keep a tensor"),
    errors.UnsupportedOpError(
        (errors.UnsupportedOp("aten.histc", 2, ("m.py:1", "m.py:9"), {"tvm": "no lowering", "ort": "no op"}),)
    ),
    errors.VerifyError(
        "type differs", after_pass="fold", path="main/3", location="m.py:2", excerpt="%1 = x\n^"
    ),
    errors.RewriteError("no end", rewrites=("merge", "split")),
    errors.ParseError("expected ')'", line=2, column=5, source_line="f(a b"),
    errors.BackendError("build failed", "ort", op="rg.linear"),
    errors.NumericsMismatch(
        "outputs differ", "%7", error=0.5, tolerance=1e-4, suspect="merge", hint="bisect"
    ),
    errors.PluginError("it cannot be imported", "acme", "regraft-acme 1.0", hint="install numpy"),
    errors.ShapeError("wrong shape", "x", expected="f32[n, 4]", actual="f32[2, 3]"),
    errors.GradientError.of("x"),
    errors.RecompileError("'w' and 'v' were one tied weight and are two now. Compile again"),
    errors.NoOriginalError("it was loaded"),
    errors.NoFunctionError("there is no function 'encode'"),
    errors.ArtefactError("checksum differs", "plan.json"),
    errors.OptionError("unknown fallback", "fallback", "'maybe'", expected="'error' or 'eager'"),
    errors.UnknownArgumentError("compile(): there is no argument 'bakends'"),
    errors.FactoryError("make() raised ValueError: no", trace="  model.py:3, in make\n    raise ValueError"),
]


def test_every_exception_has_an_example() -> None:
    defined = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.RegraftError)}
    assert {type(example) for example in EXAMPLES} == defined


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_pickle_keeps_fields_and_notes(error: errors.RegraftError) -> None:
    error.add_note("while compiling")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_unsupported_ops_are_all_listed_with_reasons() -> None:
    error = errors.UnsupportedOpError(
        (
            errors.UnsupportedOp("aten.histc", 2, ("m.py:1",), {"tvm": "no lowering", "ort": "no op"}),
            errors.UnsupportedOp("aten.sort", 1),
        )
    )
    assert str(error) == (
        "no executor for 2 ops (3 uses):\n"
        "  aten.histc x2\n"
        "    at m.py:1\n"
        "    tvm: no lowering\n"
        "    ort: no op\n"
        "  aten.sort x1\n"
        '  hint: compile(..., fallback="eager") runs such ops in torch, and the report counts them; '
        "an ONNX file needs a lowering or a decomposition"
    )


def test_parse_error_points_at_its_column() -> None:
    error = errors.ParseError("expected ')'", line=2, column=4, source_line="\tf(a b")
    assert str(error).splitlines()[-2:] == ["\tf(a b", "\t  ^"]


def test_option_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="fallback: expected"):
        raise errors.OptionError("unknown fallback", "fallback", "'maybe'", expected="'error' or 'eager'")


STAGES = ("canonicalize", "fold", "fuse")


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        (
            "fuze",
            STAGES,
            "there is no stage 'fuze'; did you mean 'fuse'? There are: canonicalize, fold, fuse",
        ),
        ("Fold", STAGES, "there is no stage 'Fold'; did you mean 'fold'?"),
        ("x", STAGES, "there is no stage 'x'; there are: canonicalize, fold, fuse"),
        ("x", (), "there is no stage 'x'; there are: none"),
    ],
)
def test_a_name_that_is_not_known_gets_the_nearest(name: str, known: Iterable[str], message: str) -> None:
    assert errors.no_such("stage", name, known).startswith(message)


def test_many_names_are_listed_only_when_none_is_near() -> None:
    many = [f"Rewrite{i}" for i in range(20)]
    assert "there are" not in errors.no_such("rewrite", "Rewrite", many)
    assert "there are: Rewrite0, " in errors.no_such("rewrite", "xyz", many)
