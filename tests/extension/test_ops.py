"""Ops of the user's own: captured, compiled, exported, saved."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch.export import Dim

import regraft
from regraft import OnnxOp, OpDef, op_from_torch
from regraft.errors import ArtefactError, BackendError, CaptureError, OptionError, UnsupportedOpError
from regraft.ir import REQUIRED, Arity, AttrSpec, CallSite, Operand, TensorType, Trait, define, print_module
from tests.extension.fancy import fancy, lying, model, on_onnx, rows, same_type, twins, two_ops, writes

CUSTOM = OnnxOp("com.mycompany", "Fancy", version=2)


def check(compiled: Any, *inputs: torch.Tensor) -> None:
    torch.testing.assert_close(compiled(*inputs), model(*inputs))


# -- definitions -------------------------------------------------------------------------------


def test_a_definition_follows_the_schema() -> None:
    definition = op_from_torch(twins)
    assert definition.name == "mylib.twins"
    assert definition.params == (
        Operand("x"),
        Operand("ys", Arity.VARIADIC),
        Operand("z", Arity.OPTIONAL),
        AttrSpec("dims", REQUIRED),
    )
    assert definition.traits == Trait.PURE
    assert definition.opaque


@pytest.mark.parametrize("form", [fancy, torch.ops.mylib.fancy, torch.ops.mylib.fancy.default])
def test_every_form_of_a_torch_op(form: Any) -> None:
    assert op_from_torch(form).name == "mylib.fancy"


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (writes, "leaves its arguments as they are"),
        (torch.ops.aten.softmax, "one of its overloads"),
        (torch.relu, "torch.ops.mylib.fancy"),
    ],
)
def test_what_is_no_op_to_define(op: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        op_from_torch(op)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("fancy(Tensor x)", "a name with a dot"),
        ("mylib.fancy(Tensor)", "'Tensor' is not a type and a name"),
        ("mylib.fancy(Tensor x, float a=b)", "is not a value"),
    ],
)
def test_what_is_no_schema(schema: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        define(schema, same_type)


# -- compile -----------------------------------------------------------------------------------


def test_it_runs_as_the_torch_op_and_the_report_says_so() -> None:
    ops = [op_from_torch(fancy)]
    with pytest.raises(UnsupportedOpError, match=r"mylib\.fancy x1"):
        regraft.compile(model, (rows(),), ops=ops)
    compiled = regraft.compile(model, (rows(),), ops=ops, fallback="eager", verify=True)
    assert compiled.report.executors == {"ort": 2, "eager": 1}
    ((name, back_end, reason),) = compiled.report.fallbacks
    assert (name, back_end) == ("mylib.fancy", "ort")
    assert "no lowering" in reason


@pytest.mark.parametrize("infer", [None, same_type], ids=["captured", "rule"])
def test_a_lowering_of_its_own(infer: Any) -> None:
    ops = [op_from_torch(fancy, infer=infer, lowerings={"ort": on_onnx})]
    sizes = ({0: Dim("n", min=2)},)
    compiled = regraft.compile(model, (rows(),), ops=ops, dynamic_shapes=sizes, verify=True)
    assert set(compiled.report.executors) == {"ort"}
    check(compiled, rows(5))


def test_a_decomposition() -> None:
    compiled = regraft.compile(model, (rows(),), ops=[op_from_torch(fancy, decompose=two_ops)], verify=True)
    assert set(compiled.report.executors) == {"ort"}
    check(compiled, rows())


def test_an_operator_of_another_domain_is_decomposed_or_runs_by_eager() -> None:
    parts = [op_from_torch(fancy, onnx=CUSTOM, decompose=two_ops)]
    assert set(regraft.compile(model, (rows(),), ops=parts).report.executors) == {"ort"}
    whole = [op_from_torch(fancy, onnx=CUSTOM)]
    with pytest.raises(UnsupportedOpError, match=r"no kernel for com\.mycompany::Fancy"):
        regraft.compile(model, (rows(),), ops=whole)
    compiled = regraft.compile(model, (rows(),), ops=whole, fallback="eager")
    assert compiled.report.executors["eager"] == 1
    check(compiled, rows())


def test_an_operator_that_onnx_runtime_has() -> None:
    ops = [op_from_torch(fancy, onnx=OnnxOp("com.microsoft", "QuickGelu"))]
    compiled = regraft.compile(lambda x: torch.ops.mylib.fancy(x, 1.702), (rows(),), ops=ops)
    x = rows()
    torch.testing.assert_close(compiled(x), x * torch.sigmoid(1.702 * x))


def test_lists_options_and_two_results() -> None:
    def both(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        total, summed = torch.ops.mylib.twins(x, [y, x], None, [0])
        return total * summed

    ops = [op_from_torch(twins, onnx=OnnxOp("com.mycompany", "Twins"))]
    compiled = regraft.compile(both, (rows(), rows()), ops=ops, fallback="eager", verify=True)
    torch.testing.assert_close(compiled(rows(), rows()), both(rows(), rows()))


def test_an_op_that_only_a_rewrite_writes_and_python_runs() -> None:
    doubled = define("mylib.doubled(Tensor x)", same_type, eager=lambda x: x * 2)

    class Double(regraft.Rewrite):
        def pattern(self, op: Any, x: Any) -> Any:
            return op.aten.mul.Scalar(x, 2)

        def rewrite(self, op: Any, m: Any) -> Any:
            return op.mylib.doubled(m.x)

    compiled = regraft.compile(
        lambda x: x * 2 + 1, (rows(),), ops=[doubled], rewrites=[Double], fallback="eager", verify=True
    )
    assert compiled.report.rewrites["Double"].hits == 1
    assert compiled.report.executors["eager"] == 1


def test_it_stands_in_a_pattern() -> None:
    class Unscaled(regraft.Rewrite):
        def pattern(self, op: Any, x: Any) -> Any:
            return op.mylib.fancy(x, op.attr("alpha"))

        def rewrite(self, op: Any, m: Any) -> Any:
            return op.aten.mul.Scalar(op.aten.relu(m.x), m.attr("alpha"))

    compiled = regraft.compile(model, (rows(),), ops=[op_from_torch(fancy)], rewrites=[Unscaled], verify=True)
    assert compiled.report.rewrites["Unscaled"].hits == 1
    assert set(compiled.report.executors) == {"ort"}


def test_attributes_mean_what_the_op_says() -> None:
    """A ``dim`` of a user's op is not an axis to be counted from the front."""
    wide = define(
        "mylib.wide(Tensor x, int dim)",
        lambda site: site.type("x"),
        eager=lambda x, dim: x + dim,
        decompose=lambda op, wide: (op.aten.add.Scalar(wide.operand("x"), wide.attr("dim")),),
    )

    class Widen(regraft.Rewrite):
        stage = "canonicalize"

        def pattern(self, op: Any, x: Any) -> Any:
            return op.aten.add.Scalar(x, -64)

        def rewrite(self, op: Any, m: Any) -> Any:
            return op.mylib.wide(m.x, -64)

    compiled = regraft.compile(
        lambda x: x + -64, (rows(),), ops=[wide], rewrites=[Widen], backends=("eager",), verify=True
    )
    assert "mylib.wide" in compiled.ir


def test_capture_takes_ops() -> None:
    text = print_module(regraft.capture(model, (rows(),), ops=[op_from_torch(fancy, infer=same_type)]))
    assert "mylib.fancy(%mul) {alpha = 3.0} : f32[3, 8]" in text


def test_a_composite_is_whole_where_the_model_or_an_op_says_so() -> None:
    """One that another composite calls is taken apart, unless there is an op for it."""
    wave = torch.ops.mycomposites.wave.default

    def within(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        torch.ops.mycomposites.make_wave(y)
        return y

    def text(model: Any, *ops: OpDef) -> str:
        return print_module(regraft.capture(model, (rows(),), ops=ops))

    assert "mycomposites.wave(%x)" in text(lambda x: wave(x))
    assert "mycomposites.wave(%mul)" in text(within, op_from_torch(wave))
    assert "aten.sin(%mul)" in text(within)
    torch.testing.assert_close(regraft.compile(within, (rows(),))(rows()), within(rows()))


# -- export ------------------------------------------------------------------------------------


def test_a_file_holds_the_operator_and_its_domain(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    report = regraft.export_onnx(model, (rows(),), path, ops=[op_from_torch(fancy, onnx=CUSTOM)])
    assert report.operators["com.mycompany::Fancy"] == 1
    assert any("com.mycompany" in note for note in report.compile.notes)
    written = onnx.load(path)
    assert {each.domain: each.version for each in written.opset_import} == {"": 23, "com.mycompany": 2}
    (node,) = (n for n in written.graph.node if n.domain == "com.mycompany")
    assert [(a.name, a.f) for a in node.attribute] == [("alpha", 3.0)]
    (info,) = (v for v in written.graph.value_info if v.name == node.output[0])
    assert [d.dim_value for d in info.type.tensor_type.shape.dim] == [3, 8]


def test_a_lowering_may_write_the_operator(tmp_path: Path) -> None:
    def emit(emitter: regraft.OnnxEmitter, op: Any) -> Any:
        x = emitter.op("Relu", emitter.operand(op, "x"))
        return emitter.op("Fancy", x, domain="com.mycompany", gain=op.attr("alpha"))

    path = tmp_path / "model.onnx"
    regraft.export_onnx(
        model, (rows(),), path, ops=[op_from_torch(fancy, onnx=CUSTOM, lowerings={"ort": emit})]
    )
    assert [n.op_type for n in onnx.load(path).graph.node] == ["Mul", "Relu", "Fancy", "Add"]
    with pytest.raises(BackendError, match=r"not ONNX Runtime's.*OpDef\(onnx=OnnxOp"):
        regraft.export_onnx(
            model, (rows(),), tmp_path / "b.onnx", ops=[op_from_torch(fancy, lowerings={"ort": emit})]
        )
    assert not (tmp_path / "b.onnx").exists()


def test_values_of_16_bits_reach_the_operator_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    regraft.export_onnx(model, (rows().half(),), path, ops=[op_from_torch(fancy, onnx=CUSTOM)])
    written = onnx.load(path)
    (node,) = (n for n in written.graph.node if n.domain == "com.mycompany")
    (cast,) = (n for n in written.graph.node if n.output[0] == node.input[0])
    assert (cast.op_type, cast.attribute[0].i) == ("Cast", onnx.TensorProto.FLOAT16)


def test_an_exported_lowering_runs_elsewhere(tmp_path: Path) -> None:
    path, x = tmp_path / "model.onnx", rows()
    regraft.export_onnx(model, (x,), path, ops=[op_from_torch(fancy, lowerings={"ort": on_onnx})])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x))


def test_an_attribute_that_onnx_cannot_hold(tmp_path: Path) -> None:
    def both(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mylib.twins(x, [x], None, [])[0]

    with pytest.raises(UnsupportedOpError, match=r"no form for the attribute dims = \(\)"):
        regraft.export_onnx(both, (rows(),), tmp_path / "a.onnx", ops=[op_from_torch(twins, onnx=CUSTOM)])


# -- artefacts ---------------------------------------------------------------------------------


def test_a_saved_torch_op_is_found_by_name(tmp_path: Path) -> None:
    compiled = regraft.compile(model, (rows(),), ops=[op_from_torch(fancy)], fallback="eager")
    compiled.save(tmp_path / "model")
    assert torch.equal(regraft.load(tmp_path / "model")(rows()), compiled(rows()))
    code = f"import regraft; regraft.load({str(tmp_path / 'model')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (
        "ArtefactError: torch has no such op here; import the package that registers 'mylib.fancy'"
        in done.stderr
    )


def test_a_python_function_cannot_be_saved(tmp_path: Path) -> None:
    ops = [replace(op_from_torch(fancy), eager=lambda x, alpha: torch.relu(x) * alpha)]
    compiled = regraft.compile(model, (rows(),), ops=ops, fallback="eager", verify=True)
    with pytest.raises(BackendError, match=r"'mylib\.fancy' runs as a Python function"):
        compiled.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_kernels_come_from_a_library_never_from_the_artefact(tmp_path: Path) -> None:
    """Without one at hand: what is said when it cannot be loaded, or is not named."""
    missing = op_from_torch(fancy, onnx=replace(CUSTOM, library="/nowhere/fancy.so"))
    with pytest.raises(BackendError, match=r"'/nowhere/fancy\.so' \(OnnxOp\.library of com\.mycompany\)"):
        regraft.compile(model, (rows(),), ops=[missing])
    ops = [op_from_torch(fancy, lowerings={"ort": on_onnx})]
    regraft.compile(model, (rows(),), ops=ops).save(tmp_path / "model")
    manifest = tmp_path / "model" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"domains": []', '"domains": ["com.mycompany"]'))
    with pytest.raises(ArtefactError, match=r"kernels of the domain 'com\.mycompany'; name the plug-in"):
        regraft.load(tmp_path / "model")
    plugin = regraft.Plugin("mine", ops=[missing])
    with pytest.raises(ArtefactError, match="cannot be loaded"):
        regraft.load(tmp_path / "model", plugins=[plugin])


# -- what is wrong -----------------------------------------------------------------------------


def wrong_rank(site: CallSite) -> TensorType:
    return site.type("x").with_shape((3,))


def no_rule(site: CallSite) -> TensorType:
    raise KeyError("oh")


@pytest.mark.parametrize(
    ("infer", "words"),
    [
        (wrong_rank, [r"with the type f32[3, 8], but its rule gives f32[3]", "given as ops="]),
        (lambda site: (site.type("x"),) * 2, ["1 results", "2 results", "OpDef.infer"]),
        (lambda site: 3, ["its rule gives 3"]),
        (no_rule, ["type rule of mylib.fancy refuses", "'oh'", "OpDef.infer (given as ops=)"]),
    ],
)
def test_a_rule_that_is_wrong(infer: Any, words: list[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        regraft.compile(model, (rows(),), ops=[op_from_torch(fancy, infer=infer)])
    assert [word for word in (*words, "fancy.py:") if word not in str(caught.value)] == []


def test_a_fake_function_that_is_wrong_is_found_at_the_call() -> None:
    compiled = regraft.compile(
        lambda x: torch.ops.mylib.lying(x) + 1, (rows(),), ops=[op_from_torch(lying)], fallback="eager"
    )
    with pytest.raises(BackendError, match=r"'mylib\.lying' gave torch\.float32 \[6, 8\] where .*\[3, 8\]"):
        compiled(rows())


@pytest.mark.parametrize(
    ("lowering", "words"),
    [
        (lambda e, op: 3, "which is no ONNX value"),
        (lambda e, op: 1 // 0, "by zero"),
        (lambda e, op: e.op("Relu", e.operand(op, "y")), "no operand 'y'"),
    ],
)
def test_a_lowering_that_is_wrong(lowering: Any, words: str) -> None:
    with pytest.raises(BackendError, match=words) as caught:
        regraft.compile(model, (rows(),), ops=[op_from_torch(fancy, lowerings={"ort": lowering})])
    assert "op: mylib.fancy" in str(caught.value)


@pytest.mark.parametrize(
    ("ops", "words"),
    [
        ([3], ["OpDefs", "op_from_torch"]),
        (op_from_torch(fancy), ["a list"]),
        ([replace(op_from_torch(fancy), name="rg.fancy")], ["outside rg.* and cf.*"]),
        ([replace(op_from_torch(fancy), name="aten.relu")], ["'aten.relu'", "rename yours"]),
        ([op_from_torch(fancy)] * 2, ["'mylib.fancy'", "rename yours"]),
        ([replace(op_from_torch(fancy), decompose=3)], ["mylib.fancy.decompose", "a function"]),
        ([replace(op_from_torch(fancy), onnx="Fancy")], ["mylib.fancy.onnx", "an OnnxOp"]),
        ([replace(op_from_torch(fancy), lowerings={"ort": 3})], ["mylib.fancy.lowerings", "functions"]),
        ([replace(op_from_torch(fancy), canonical=False)], ["with 'decompose'"]),
    ],
)
def test_ops_that_cannot_be(ops: Any, words: list[str]) -> None:
    for call in (regraft.compile, regraft.capture):
        with pytest.raises(OptionError) as caught:
            call(model, (rows(),), ops=ops)
        assert [word for word in words if word not in str(caught.value)] == []


def test_a_lowering_for_nobody_is_noted() -> None:
    ops = [op_from_torch(fancy, lowerings={"otr": on_onnx}, decompose=two_ops)]
    compiled = regraft.compile(model, (rows(),), ops=ops)
    assert "mylib.fancy has a lowering for 'otr', which is no back end here" in compiled.report.notes


def test_a_rewrite_cannot_write_an_op_without_a_rule() -> None:
    class Write(regraft.Rewrite):
        def pattern(self, op: Any, x: Any) -> Any:
            return op.aten.relu(x)

        def rewrite(self, op: Any, m: Any) -> Any:
            return op.mylib.fancy(m.x)

    with pytest.raises(
        regraft.errors.RewriteError, match=r"mylib\.fancy has no type rule: give OpDef\.infer"
    ):
        regraft.compile(lambda x: torch.relu(x), (rows(),), ops=[op_from_torch(fancy)], rewrites=[Write])


def test_a_definition_by_hand() -> None:
    definition = OpDef(
        "mylib.fancy", (Operand("x"), AttrSpec("alpha", 1.0)), same_type, lowerings={"ort": on_onnx}
    )
    check(regraft.compile(model, (rows(),), ops=[definition], verify=True), rows())
