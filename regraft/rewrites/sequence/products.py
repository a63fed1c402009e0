"""Sums of products with constant weights: what a gate of a recurrent layer is, however it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from regraft.ir import Builder, Dim, Op, Value, clone_op
from regraft.rewrites.sequence.scans import is_constant
from regraft.rewrites.support import broadcasts_to

#: Builds a constant where the builder inserts.
Make = Callable[[Builder], Value]


@dataclass(frozen=True)
class Form:
    """``sum(x @ weight.T for x, weight in terms) + sum(bias)``.

    Weights are ``[width, in]``, biases ``[width]`` or numbers.
    """

    terms: tuple[tuple[Value, Make], ...]
    bias: tuple[Make | float, ...] = ()

    def __add__(self, other: Form) -> Form:
        return Form((*self.terms, *other.terms), (*self.bias, *other.bias))


def form_of(value: Value) -> Form | None:
    """``value`` as a sum of products with constants over its last axis; None when it is none."""
    op = value.op
    rule = None if op is None or op.definition.opaque else _RULES.get(op.name)
    return None if rule is None or op is None else rule(op)


def made(value: Value) -> Make:
    """Makes the constant ``value`` again where it is asked for."""

    def make(op: Builder) -> Value:
        return _copied(op, value, {})

    return make


def _copied(op: Builder, value: Value, known: dict[Value, Value]) -> Value:
    maker = value.op
    assert maker is not None, "a constant is made by an op"
    if value not in known:
        for operand in maker.operands:
            _copied(op, operand, known)
        op.insert(clone_op(maker, known))
    return known[value]


def _linear(op: Op) -> Form | None:
    weight, bias = op.operand("weight"), op.optional("bias")
    if not is_constant(weight) or (bias is not None and not is_constant(bias)):
        return None
    terms: list[tuple[Value, Make]] = []
    start: Dim = 0
    for part in _parts(op.operand("input")):
        size = part.tensor.shape[-1]
        whole = size == weight.tensor.shape[1]
        terms.append((part, made(weight) if whole else _sliced(made(weight), 1, start, start + size)))
        start = start + size
    return Form(tuple(terms), () if bias is None else (made(bias),))


def _parts(value: Value) -> Sequence[Value]:
    """What ``value`` joins along its last axis."""
    op = value.op
    if op is not None and op.name == "aten.cat" and op.attr("dim") == value.tensor.rank - 1:
        return op.variadic("tensors")
    return (value,)


def _sliced(make: Make, axis: int, start: Dim, end: Dim) -> Make:
    def sliced(op: Builder) -> Value:
        return op.aten.slice.Tensor(make(op), axis, start, end, 1)

    return sliced


def _sum(op: Op) -> Form | None:
    if op.attr("alpha") != 1:
        return None
    forms: list[Form] = []
    for operand in op.operands:
        form = _addend(operand, op.result) or form_of(operand)
        # A product that is broadcast would be another one for each row.
        if form is None or (form.terms and operand.tensor.shape != op.result.tensor.shape):
            return None
        forms.append(form)
    return forms[0] + forms[1]


def _addend(operand: Value, total: Value) -> Form | None:
    """The constant ``operand`` of the sum ``total``, where it is the same in every row."""
    rows, width = operand.tensor.shape[:-1], total.tensor.shape[-1:]
    alike = all(size == 1 for size in rows) and broadcasts_to(operand.tensor.shape, total.tensor.shape)
    return Form((), (_widened(operand, width),)) if alike and is_constant(operand) else None


def _widened(constant: Value, shape: tuple[Dim, ...]) -> Make:
    """Makes ``constant``, which may have one number for all places, in ``shape``."""
    size = constant.tensor.shape[-1:] or (1,)

    def widened(op: Builder) -> Value:
        value = made(constant)(op)
        value = value if constant.tensor.shape == size else op.aten.view(value, size)
        return value if size == shape else op.aten.expand(value, shape)

    return widened


def _raised(op: Op) -> Form | None:
    form, number = form_of(op.operands[0]), op.attr("other")
    if form is None or op.attr("alpha") != 1 or not isinstance(number, (int, float)):
        return None
    return form + Form((), (float(number),))


def _part(op: Op) -> Form | None:
    form, axis = form_of(op.operands[0]), op.attr("dim")
    if form is None or axis != op.result.tensor.rank - 1 or op.attr("step") != 1:
        return None
    start, end = op.site.dim_attr("start"), op.site.dim_attr("end")
    terms = tuple((value, _sliced(make, 0, start, end)) for value, make in form.terms)
    bias = tuple(
        each if isinstance(each, (int, float)) else _sliced(each, 0, start, end) for each in form.bias
    )
    return Form(terms, bias)


_RULES: dict[str, Callable[[Op], Form | None]] = {
    "aten.linear": _linear,
    "aten.add.Tensor": _sum,
    "aten.add.Scalar": _raised,
    "aten.slice.Tensor": _part,
}
