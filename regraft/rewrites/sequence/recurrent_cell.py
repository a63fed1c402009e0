"""Recurrent layers that are written as loops over their steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Dim,
    DType,
    Exactness,
    Example,
    Match,
    Op,
    PatternBuilder,
    Rewrite,
    Scan,
    Value,
)
from regraft.rewrites.sequence.products import Form, form_of
from regraft.rewrites.sequence.samples import scan
from regraft.rewrites.sequence.scans import Outside, may_leave, varying_of
from regraft.rewrites.support import same_dims


class RecurrentCell(Rewrite):
    """scan(h, c, x){sigmoid(f) * c + sigmoid(i) * tanh(g), sigmoid(o) * tanh(c)} = recurrent(x, h, c)

    The gates are sums of products of the step's input and of the state with constant weights, in any order
    and split in any way: by gate, by input and state, or over both joined. So are those of a GRU, whose new
    state is ``(1 - z) * n + z * h`` or ``n + z * (h - n)`` with ``n = tanh(a + r * b)``, and that of an RNN,
    ``tanh`` or ``relu`` of a sum. Both compute the same; the sums are added up in another order.
    """

    exactness = Exactness.REASSOCIATES
    stage = "recover"

    def pattern(self, op: PatternBuilder) -> Any:
        return op.call("cf.scan", (op.any_operands(), op.any_operands(), op.any_operands()), {})

    def check(self, m: Match) -> Declined | None:
        found, culprit = Scan.of(m.root), m.root.operands[0]
        cell = cell_of(found)
        if cell is None:
            return m.decline("a trip is no step of an LSTM, a GRU or an RNN", culprit)
        if any(row not in cell.states for row in found.rows):
            return m.decline("more is stacked than the state", culprit)
        if any(value.tensor.rank != 2 or value.tensor.dtype != DType.F32 for value in found.carried):
            return m.decline("a state is no f32 of a batch of vectors", culprit)
        if not _inputs(cell, found):
            return m.decline("a step takes no input", culprit)
        if cell.memory is not None and cell.memory in found.rows:
            return m.decline("the memory of each step is stacked", culprit)
        return None

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        found = Scan.of(m.root)
        cell = cell_of(found)
        assert cell is not None
        outside = Outside(op, found, {})
        inputs = [outside.stacked(value) for value in _inputs(cell, found)]
        x = inputs[0] if len(inputs) == 1 else op.aten.cat(tuple(inputs), 2)
        weight, recurrence, bias = _weights(op, cell, found)
        starts = [_with_direction(op, found.operand(state)) for state in cell.carried]
        memory = starts[1] if len(starts) == 2 else None
        y, *ends = op.rg.recurrent(x, weight, recurrence, bias, starts[0], memory, cell.kind)
        length, _, batch, width = y.tensor.shape
        rows = op.aten.view(y, (length, batch, width))
        last = {
            state: op.aten.view(end, (batch, width)) for state, end in zip(cell.carried, ends, strict=True)
        }
        return [*(last[state] for state in found.carried), *(rows for _ in found.rows)]


@dataclass(frozen=True)
class Cell:
    """A recurrent cell.

    Fields:
        kind: as ``rg.recurrent`` has it.
        carried: the state, and an LSTM's memory, as the body is given them.
        states: what they are after a step.
        gates: in the order of ``rg.recurrent``: what depends on the input, and what depends on the state.
    """

    kind: str
    carried: tuple[Value, ...]
    states: tuple[Value, ...]
    gates: tuple[tuple[Form, Form], ...]

    @property
    def memory(self) -> Value | None:
        return self.states[1] if len(self.states) == 2 else None


def cell_of(found: Scan) -> Cell | None:
    """The cell that a trip of ``found`` is a step of; its gates may not hold what only the loop knows."""
    if len(found.carried) == 2:
        pairs = ((0, 1), (1, 0))
        cells = [_lstm(found, h, c) for h, c in pairs]
    else:
        cells = [_gru(found), _rnn(found)] if len(found.carried) == 1 else []
    return next((cell for cell in cells if cell is not None), None)


def _lstm(found: Scan, h: int, c: int) -> Cell | None:
    after, memory = found.after[h], found.after[c]
    for output, squashed in _factors(after):
        if _operand(squashed, "aten.tanh") is not memory:
            continue
        for kept, new in _orders(_operands(memory, "aten.add.Tensor")):
            for forget, old in _factors(kept):
                if old is not found.carried[c]:
                    continue
                for enter, candidate in _factors(new):
                    sums = [_operand(each, "aten.sigmoid") for each in (enter, output, forget)]
                    gates = _gates(found, [*sums, _operand(candidate, "aten.tanh")], found.carried[h])
                    if gates is not None:
                        carried = found.carried[h], found.carried[c]
                        return Cell("lstm", carried, (after, memory), gates)
    return None


def _gru(found: Scan) -> Cell | None:
    (state,), (after,) = found.carried, found.after
    for update, new in _updates(after, state):
        for given, reset in _orders(_operands(_operand(new, "aten.tanh"), "aten.add.Tensor")):
            for gate, kept in _factors(reset):
                first = _gates(found, [_operand(each, "aten.sigmoid") for each in (update, gate)], state)
                if first is None:
                    continue
                hidden = _parted(found, given, state), _parted(found, kept, state)
                if hidden[0] is None or hidden[1] is None or hidden[0][1].terms or hidden[1][0].terms:
                    continue
                inner = hidden[1][0].bias + hidden[1][1].bias
                last = hidden[0][0] + Form((), hidden[0][1].bias), Form(hidden[1][1].terms, inner)
                return Cell("gru", (state,), (after,), (*first, last))
    return None


def _updates(after: Value, state: Value) -> list[tuple[Value, Value]]:
    """``(z, n)`` for each way to read ``after`` as ``(1 - z) * n + z * state`` or ``n + z * (state - n)``."""
    found: list[tuple[Value, Value]] = []
    for a, b in _orders(_operands(after, "aten.add.Tensor")):
        for z, old in _factors(b):
            if old is state:
                found += [(z, n) for rest, n in _factors(a) if _is_complement(rest, z)]
            difference = _operands(old, "aten.sub.Tensor")
            if difference is not None and difference[0] is state and difference[1] is a:
                found.append((z, a))
    return found


def _is_complement(value: Value, z: Value) -> bool:
    """Whether ``value`` is ``1 - z``."""
    op = value.op
    if op is None or op.name != "aten.add.Scalar" or op.attr("other") != 1 or op.attr("alpha") != 1:
        return False
    return _operand(op.operands[0], "aten.neg") is z


def _rnn(found: Scan) -> Cell | None:
    (state,), (after,) = found.carried, found.after
    for name in ("tanh", "relu"):
        inner = _operand(after, f"aten.{name}")
        gates = _gates(found, [inner], state)
        if gates is not None:
            return Cell(f"rnn_{name}", (state,), (after,), gates)
    return None


# -- what gates are made of --------------------------------------------------------------------


def _gates(found: Scan, values: Sequence[Value | None], state: Value) -> tuple[tuple[Form, Form], ...] | None:
    forms = [None if value is None else _parted(found, value, state) for value in values]
    gates = [form for form in forms if form is not None]
    return tuple(gates) if len(gates) == len(values) and all(g[1].terms for g in gates) else None


def _parted(found: Scan, value: Value, state: Value) -> tuple[Form, Form] | None:
    """The form of ``value`` without and with ``state``.

    None when it has none as wide as the state, or has anything else that the loop alone knows.
    """
    form = form_of(value) if same_dims(value.tensor.shape, state.tensor.shape) else None
    if form is None:
        return None
    unknown = varying_of(found, found.carried)
    ours = tuple(term for term in form.terms if term[0] is state)
    others = tuple(term for term in form.terms if term[0] is not state)
    if any(value in unknown for value, _ in others):
        return None
    return Form(others, form.bias), Form(ours)


def _inputs(cell: Cell, found: Scan) -> list[Value]:
    """The values of a trip that the gates take, each once; none where one cannot be computed outside."""
    inputs = list(dict.fromkeys(value for given, _ in cell.gates for value, _ in given.terms))
    varying = varying_of(found, found.slices)
    pending, seen = list(inputs), set[Op]()
    while pending:
        op = pending.pop().op
        if op is None or op in seen:
            continue
        seen.add(op)
        if not varying.isdisjoint(op.operands) and not may_leave(op, varying):
            return []
        pending += op.operands
    return inputs


def _weights(op: Builder, cell: Cell, found: Scan) -> tuple[Value, Value, Value]:
    """Weight, recurrence and bias as ``rg.recurrent`` takes them, for one direction."""
    state = cell.carried[0]
    width = state.tensor.shape[1]
    inputs = _inputs(cell, found)
    weights = [_joined(op, [_weight(op, given, x, width) for x in inputs], 1) for given, _ in cell.gates]
    recurrences = [_weight(op, own, state, width) for _, own in cell.gates]
    biases = [_bias(op, part, width) for index in (0, 1) for part in (gate[index] for gate in cell.gates)]
    weight, recurrence, bias = (_joined(op, each, 0) for each in (weights, recurrences, biases))
    return _with_direction(op, weight), _with_direction(op, recurrence), _with_direction(op, bias)


def _weight(op: Builder, form: Form, x: Value, width: Dim) -> Value:
    """The weight of ``x`` in ``form``, whose result is ``width`` wide; zeros where it does not occur."""
    parts = [make(op) for value, make in form.terms if value is x]
    if not parts:
        return op.aten.full((width, x.tensor.shape[-1]), 0.0, dtype=DType.F32)
    return _total(op, parts)


def _bias(op: Builder, form: Form, width: Dim) -> Value:
    numbers = sum(each for each in form.bias if isinstance(each, (int, float)))
    parts = [each(op) for each in form.bias if not isinstance(each, (int, float))]
    if not parts:
        return op.aten.full((width,), float(numbers), dtype=DType.F32)
    total = _total(op, parts)
    return op.aten.add.Scalar(total, float(numbers)) if numbers else total


def _total(op: Builder, parts: Sequence[Value]) -> Value:
    total = parts[0]
    for part in parts[1:]:
        total = op.aten.add.Tensor(total, part)
    return total


def _joined(op: Builder, parts: Sequence[Value], axis: int) -> Value:
    return parts[0] if len(parts) == 1 else op.aten.cat(tuple(parts), axis)


def _with_direction(op: Builder, value: Value) -> Value:
    return op.aten.view(value, (1, *value.tensor.shape))


# -- shapes of formulas ------------------------------------------------------------------------


def _operand(value: Value | None, name: str) -> Value | None:
    """The operand of the op ``name`` that makes ``value``; None when another does."""
    op = None if value is None else value.op
    return op.operands[0] if op is not None and op.name == name else None


def _operands(value: Value | None, name: str) -> tuple[Value, Value] | None:
    op = None if value is None else value.op
    if op is None or op.name != name or op.attrs.get("alpha", 1) != 1:
        return None
    return op.operands[0], op.operands[1]


def _orders(pair: tuple[Value, Value] | None) -> list[tuple[Value, Value]]:
    return [] if pair is None else [pair, (pair[1], pair[0])]


def _factors(value: Value) -> list[tuple[Value, Value]]:
    """The two factors that ``value`` is the product of, in both orders."""
    return _orders(_operands(value, "aten.mul.Tensor"))


# -- examples ----------------------------------------------------------------------------------

Trip = Callable[[Any, Value, Value, Value, Value], Sequence[Value]]


def _lstm_step(op: Builder, gates: Sequence[Value], c: Value) -> tuple[Value, Value]:
    i, f, g, o = gates
    c = op.aten.add.Tensor(
        op.aten.mul.Tensor(op.aten.sigmoid(f), c), op.aten.mul.Tensor(op.aten.sigmoid(i), op.aten.tanh(g))
    )
    return op.aten.mul.Tensor(op.aten.sigmoid(o), op.aten.tanh(c)), c


def _quarters(op: Builder, value: Value, count: int = 4) -> list[Value]:
    size = value.tensor.shape[1] // count
    return [op.aten.slice.Tensor(value, 1, i * size, (i + 1) * size, 1) for i in range(count)]


def _lstm_loop(op: Builder, h: Value, c: Value, x: Value, w: Value, u: Value, b: Value) -> Sequence[Value]:
    """The gates are ``x @ w + b + h @ u``, whose constants the body makes itself."""

    def trip(op: Builder, h: Value, c: Value, x: Value) -> tuple[Value, ...]:
        weight, recurrence, bias = (op.constant(_value(each)) for each in (w, u, b))
        total = op.aten.add.Tensor(op.aten.linear(x, weight, bias), op.aten.linear(h, recurrence))
        h, c = _lstm_step(op, _quarters(op, total), c)
        return h, c, h

    return scan(op, (h, c), (x,), (), trip)


def _joined_loop(op: Builder, h: Value, c: Value, x: Value, w: Value) -> Sequence[Value]:
    """The gates are ``cat(h, relu(x)) @ w``, the forget gate's raised by one; the memory is carried first."""

    def trip(op: Builder, c: Value, h: Value, x: Value) -> tuple[Value, ...]:
        both = op.aten.cat((h, op.aten.relu(x)), 1)
        f, i, o, g = _quarters(op, op.aten.linear(both, op.constant(_value(w))))
        h, c = _lstm_step(op, (i, op.aten.add.Scalar(f, 1.0), g, o), c)
        return c, h, h

    return scan(op, (c, h), (x,), (), trip)


def _gru_loop(
    op: Builder, h: Value, x: Value, w: Value, u: Value, b: Value, *, short: bool = False, resets: bool = True
) -> Sequence[Value]:
    def trip(op: Builder, h: Value, x: Value) -> tuple[Value, Value]:
        given = op.aten.linear(x, op.constant(_value(w)), op.constant(_value(b)))
        own = op.aten.linear(h, op.constant(_value(u)), op.constant(_value(b)))
        (gr, gz, gn), (hr, hz, hn) = _quarters(op, given, 3), _quarters(op, own, 3)
        r, z = op.aten.sigmoid(op.aten.add.Tensor(gr, hr)), op.aten.sigmoid(op.aten.add.Tensor(hz, gz))
        n = op.aten.tanh(op.aten.add.Tensor(gn, op.aten.mul.Tensor(r, hn if resets else gn)))
        if short:
            h = op.aten.add.Tensor(n, op.aten.mul.Tensor(z, op.aten.sub.Tensor(h, n)))
        else:
            rest = op.aten.add.Scalar(op.aten.neg(z), 1)
            h = op.aten.add.Tensor(op.aten.mul.Tensor(rest, n), op.aten.mul.Tensor(z, h))
        return h, h

    return scan(op, (h,), (x,), (), trip)


def _narrow_loop(op: Builder, h: Value, x: Value, w: Value, u: Value, v: Value) -> Sequence[Value]:
    """A GRU whose update gate is one number for the whole state."""

    def trip(op: Builder, h: Value, x: Value) -> tuple[Value, Value]:
        own, narrow = (op.aten.linear(h, op.constant(_value(each))) for each in (u, v))
        given = op.aten.linear(x, op.constant(_value(w)))
        z, r = op.aten.sigmoid(narrow), op.aten.sigmoid(own)
        n = op.aten.tanh(op.aten.add.Tensor(given, op.aten.mul.Tensor(r, own)))
        h = op.aten.add.Tensor(n, op.aten.mul.Tensor(z, op.aten.sub.Tensor(h, n)))
        return h, h

    return scan(op, (h,), (x,), (), trip)


def _raised_loop(op: Builder, h: Value, x: Value, w: Value, u: Value, b: Value) -> Sequence[Value]:
    """An RNN whose summand need not have a number for each feature."""

    def trip(op: Builder, h: Value, x: Value) -> tuple[Value, Value]:
        own = op.aten.add.Tensor(op.aten.linear(h, op.constant(_value(u))), op.constant(_value(b)))
        after = op.aten.tanh(op.aten.add.Tensor(op.aten.linear(x, op.constant(_value(w))), own))
        return after, after

    return scan(op, (h,), (x,), (), trip)


def _rnn_loop(op: Builder, h: Value, x: Value, w: Value, u: Value, *, twice: bool = False) -> Sequence[Value]:
    def trip(op: Builder, h: Value, x: Value) -> tuple[Value, Value]:
        own = op.aten.linear(h, op.constant(_value(u)))
        total = op.aten.add.Tensor(op.aten.linear(x, op.constant(_value(w))), own)
        after = op.aten.tanh(total)
        return after, op.aten.relu(own) if twice else after

    return scan(op, (h,), (x,), (), trip)


def _value(weight: Value) -> Any:
    assert weight.op is not None
    return weight.op.attr("value")


_STATE: Mapping[str, str] = {"one": "f32[2, 3]", "open": "f32[B, 3]"}
_GRU = (_STATE["one"], "f32[5, 2, 4]", "f32[9, 4]", "f32[9, 3]", "f32[9]")
_RNN = (_STATE["one"], "f32[5, 2, 4]", "f32[3, 4]", "f32[3, 3]")

RecurrentCell.examples = (
    Example(
        _lstm_loop,
        (_STATE["one"], _STATE["one"], "f32[5, 2, 4]", "f32[12, 4]", "f32[12, 3]", "f32[12]"),
        constants=(3, 4, 5),
    ),
    Example(
        _lstm_loop,
        (_STATE["open"], _STATE["open"], "f32[T, B, 4]", "f32[12, 4]", "f32[12, 3]", "f32[12]"),
        constants=(3, 4, 5),
    ),
    Example(_joined_loop, (_STATE["one"], _STATE["one"], "f32[5, 2, 4]", "f32[12, 7]"), constants=(3,)),
    Example(_gru_loop, _GRU, constants=(2, 3, 4)),
    Example(lambda op, h, x, w, u, b: _gru_loop(op, h, x, w, u, b, short=True), _GRU, constants=(2, 3, 4)),
    Example(_rnn_loop, _RNN, constants=(2, 3)),
    Example(_raised_loop, (*_RNN, "f32[1]"), constants=(2, 3, 4)),
    Example(_raised_loop, (*_RNN, "f32[1, 3]"), constants=(2, 3, 4)),
)
RecurrentCell.counterexamples = (
    Example(
        lambda op, h, x, w, u, b: _gru_loop(op, h, x, w, u, b, resets=False),
        _GRU,
        constants=(2, 3, 4),
        reason="no step of an LSTM",
    ),
    Example(_narrow_loop, (*_RNN, "f32[1, 3]"), constants=(2, 3, 4), reason="no step of an LSTM"),
    Example(_raised_loop, (*_RNN, "f32[2, 3]"), constants=(2, 3, 4), reason="no step of an LSTM"),
    Example(
        lambda op, h, x, w, u: _rnn_loop(op, h, x, w, u, twice=True),
        _RNN,
        constants=(2, 3),
        reason="more is stacked",
    ),
    Example(
        _rnn_loop,
        ("f64[2, 3]", "f64[5, 2, 4]", "f64[3, 4]", "f64[3, 3]"),
        constants=(2, 3),
        reason="no f32",
    ),
)
