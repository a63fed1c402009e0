"""What a module may hold at the end of each stage: the table that the verifier reads.

``NORMAL_FORM`` is the normal form of ``docs/architecture.md``, a small function an op: it gives the
reason why an op is not in that form, or None. A question about a symbolic size that has no answer is
no reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from regraft.ir.core import Op
from regraft.ir.dims import Dim, eq, le, power_of_two_ratio
from regraft.ir.ops.matmul import has_normal_form

Rule: TypeAlias = Callable[[Op], "str | None"]


@dataclass(frozen=True)
class StageRules:
    """What holds after a stage.

    Fields:
        normal_form: only canonical ops, in the normal form.
        recipes: no op that ``fold`` moves into a recipe is left over a constant.
    """

    normal_form: bool = False
    recipes: bool = False


#: Stage -> its rules. ``captured`` is what the front end hands over, the others are pass stages.
STAGE_RULES: Mapping[str, StageRules] = {
    "captured": StageRules(),
    "canonicalize": StageRules(normal_form=True),
    "fold": StageRules(normal_form=True, recipes=True),
    "recover": StageRules(normal_form=True, recipes=True),
    "algebra": StageRules(normal_form=True, recipes=True),
    "choose": StageRules(normal_form=True, recipes=True),
    "fuse": StageRules(normal_form=True, recipes=True),
    # A back end may ask for spellings of its own.
    "legalize": StageRules(),
}


def stage_problem(op: Op, rules: StageRules) -> str | None:
    """Why ``op`` may not appear under ``rules``; None when it may."""
    if not rules.normal_form or op.definition.opaque:
        return None
    if not op.definition.canonical:
        return f"{op.name} is not a canonical op: canonicalize replaces it by its decomposition"
    if rules.recipes and op.name == "aten.permute" and _made_by(op, "self") == "rg.const":
        return "the permute of a constant belongs in a recipe"
    rule = NORMAL_FORM.get(op.name)
    return _negative_axes(op) or (rule(op) if rule else None)


def _made_by(op: Op, operand: str) -> str:
    maker = op.operand(operand).op
    return maker.name if maker else ""


def _negative_axes(op: Op) -> str | None:
    # In an op of a user's, an attribute of such a name may mean anything.
    if not op.operands or op.definition.dialect != "aten":
        return None
    for name in ("dim", "dims"):
        value = op.attrs.get(name)
        axes = value if isinstance(value, tuple) else (value,)
        if any(isinstance(axis, int) and axis < 0 for axis in axes):
            return f"attribute '{name}' is {value}; axes are counted from the front"
    return None


def _same_shape(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    return len(a) == len(b) and all(eq(x, y) is True for x, y in zip(a, b, strict=True))


def _keeps_shape(op: Op) -> str | None:
    if _same_shape(op.operand("self").tensor.shape, op.result.tensor.shape):
        return f"{op.name} does nothing: its operand has the shape of its result"
    return None


def _sizes(op: Op) -> str | None:
    sizes = op.attr("size")
    if isinstance(sizes, tuple) and -1 in sizes:
        return "a size is -1; sizes are explicit"
    return _keeps_shape(op)


def _expand(op: Op) -> str | None:
    return "attribute 'implicit' is set" if op.attr("implicit") is True else _sizes(op)


def _permute(op: Op) -> str | None:
    dims = op.attr("dims")
    return "the permutation moves no axis" if dims == tuple(range(len(dims))) else None


def _cast(op: Op) -> str | None:
    operand, result = op.operand("self").type, op.result.type
    return f"the cast does nothing: its operand is {operand} already" if operand == result else None


def _slice(op: Op) -> str | None:
    site = op.site
    if op.attr("start") is None or op.attr("end") is None:
        return "the bounds of the slice are not explicit"
    start, end = site.dim_attr("start"), site.dim_attr("end")
    size = site.type("self").shape[site.int("dim")]
    for low, high in ((0, start), (start, end), (end, size)):
        if le(low, high) is False:
            return f"the bounds {start} and {end} are not resolved for size {size}"
    if start == 0 and eq(end, size) is True and op.attr("step") == 1:
        return "the slice takes every element"
    return None


def _axes_listed(op: Op) -> str | None:
    if isinstance(op.attr("dim"), tuple):
        return _own_dtype(op)
    return "attribute 'dim' does not list the axes"


def _own_dtype(op: Op) -> str | None:
    dtype, own = op.attrs.get("dtype"), op.operand("self").tensor.dtype
    if dtype is not None and dtype == own and own.is_float:
        return f"attribute 'dtype' repeats the operand's own dtype {own.value}"
    return None


def _linear(op: Op) -> str | None:
    weight, bias = op.operand("weight").tensor, op.optional("bias")
    if has_normal_form(weight, None if bias is None else bias.tensor):
        return None
    return "the weight is a vector" if weight.rank == 1 else "the bias is not one number an output"


def _layer_norm(op: Op) -> str | None:
    return None if op.attr("cudnn_enable") is True else "attribute 'cudnn_enable' is not True"


def _rms_norm(op: Op) -> str | None:
    return "attribute 'eps' is None; it is a number" if op.attr("eps") is None else None


def _cat(op: Op) -> str | None:
    if len(op.operands) == 1:
        return "the cat has one operand"
    ranks = {part.tensor.rank for part in op.operands}
    return "a part is empty, and of another rank" if len(ranks) > 1 else None


def _pixels_repeated(op: Op) -> str | None:
    if op.attr("scales_h") is not None or op.attr("scales_w") is not None:
        return "it has scales; its sizes say as much"
    shapes = (op.result.tensor.shape[2:], op.operand("self").tensor.shape[2:])
    ratios = [power_of_two_ratio(new, old) for new, old in zip(*shapes, strict=True)]
    if None in ratios or ratios == [1, 1]:
        return "the sizes are not twice, four times... those of the operand"
    return None


NORMAL_FORM: Mapping[str, Rule] = {
    "aten.view": _sizes,
    "aten.expand": _expand,
    "aten.permute": _permute,
    "aten._to_copy": _cast,
    "aten.slice.Tensor": _slice,
    "aten.cat": _cat,
    "aten.sum.dim_IntList": _axes_listed,
    "aten.mean.dim": _axes_listed,
    "aten.amax": _axes_listed,
    "aten.amin": _axes_listed,
    "aten.var.correction": _axes_listed,
    "aten.softmax.int": _own_dtype,
    "aten.log_softmax.int": _own_dtype,
    "aten.cumsum": _own_dtype,
    "aten.linear": _linear,
    "aten.upsample_nearest2d": _pixels_repeated,
    "aten.layer_norm": _layer_norm,
    "aten.rms_norm": _rms_norm,
}
