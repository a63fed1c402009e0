"""Recurrent layers. Every kind and depth is a chain of ``rg.recurrent``, one layer each.

The gates of a layer's weights are in ONNX's order: an LSTM's input, output, forget, cell (torch's
0, 3, 1, 2), a GRU's update, reset, hidden (torch's 1, 0, 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir.builder import Builder
from regraft.ir.core import Region
from regraft.ir.dims import Dim
from regraft.ir.opdef import SAFE, CallSite, OpDef
from regraft.ir.ops.rules import define, refuse, require, require_equal, require_rank, same_dtype, spelling
from regraft.ir.ops.views import take, view
from regraft.ir.types import TensorType

#: Cell -> the place of each of its gates in torch's weights.
CELLS: dict[str, tuple[int, ...]] = {
    "lstm": (0, 3, 1, 2),
    "gru": (1, 0, 2),
    "rnn_tanh": (0,),
    "rnn_relu": (0,),
}

# -- one layer ---------------------------------------------------------------------------------


def _layer(site: CallSite) -> Sequence[TensorType]:
    """``x[T, N, I]``, ``weight[D, G*H, I]``, ``recurrence[D, G*H, H]``, ``bias[D, 2*G*H]``.

    The states are ``[D, N, H]``, the results ``[T, D, N, H]`` and the last states.
    """
    cell = site.attr("cell")
    if cell not in CELLS:
        refuse(site, f"the cell is {cell!r}, expected one of {', '.join(CELLS)}")
    x, hidden = require_rank(site, "x", 3), require_rank(site, "hidden", 3)
    weight, recurrence = require_rank(site, "weight", 3), require_rank(site, "recurrence", 3)
    memory = site.optional("memory")
    require((memory is not None) == (cell == "lstm"), site, "an LSTM, and nothing else, has a memory")
    bias = site.optional("bias")
    same_dtype(site, (x, hidden, weight, recurrence, bias, memory))
    directions, rows, width = recurrence.shape
    require(rows == len(CELLS[cell]) * width, site, f"the recurrence is {recurrence}")
    require(weight.shape == (directions, rows, x.shape[2]), site, f"the weight is {weight}, the input {x}")
    require(bias is None or bias.shape == (directions, 2 * rows), site, f"the bias is {bias}")
    for state in (hidden, memory):
        if state is not None:
            require(state.shape[0] == directions and state.shape[2] == width, site, f"a state is {state}")
            require_equal(site, state.shape[1], x.shape[1], "the batch sizes of input and state")
    last = x.with_shape((directions, x.shape[1], width))
    return (x.with_shape((x.shape[0], directions, x.shape[1], width)), last, last)[: 3 if memory else 2]


def _layer_flops(site: CallSite) -> Dim:
    x, weight, recurrence = site.type("x"), site.type("weight"), site.type("recurrence")
    return 2 * x.shape[0] * x.shape[1] * (weight.numel + recurrence.numel)


# -- one layer as a loop -----------------------------------------------------------------------


def _as_scans(b: Any, op: Any) -> list[Any]:
    """A scan for each direction; the products of all steps' inputs are one."""
    outputs: list[Any] = []
    lasts: list[list[Any]] = []
    length, batch, _ = op.operand("x").tensor.shape
    for d in range(op.operand("weight").tensor.shape[0]):
        x = b.aten.flip(op.operand("x"), (0,)) if d else op.operand("x")
        weight, recurrence = (_of_direction(b, op.operand(name), d) for name in ("weight", "recurrence"))
        rows, width = recurrence.tensor.shape
        bias = op.optional("bias")
        both = None if bias is None else _of_direction(b, bias, d)
        biases = [None if both is None else take(b, both, 0, i * rows, rows) for i in (0, 1)]
        given = b.aten.linear(x, weight, biases[0])
        states = [op.operand("hidden"), op.optional("memory")]
        starts = [_of_direction(b, state, d) for state in states if state is not None]
        fixed = [recurrence] if biases[1] is None else [recurrence, biases[1]]
        body = _step(b, op.attr("cell"), starts, given, fixed)
        *last, steps = b.create("cf.scan", (starts, (given,), fixed), regions=(body,)).results
        steps = b.aten.flip(steps, (0,)) if d else steps
        outputs.append(view(b, steps, (length, 1, batch, width)))
        lasts.append([view(b, state, (1, batch, width)) for state in last])
    if len(outputs) == 1:
        return [outputs[0], *lasts[0]]
    ends = [b.aten.cat(states, 0) for states in zip(*lasts, strict=True)]
    return [b.aten.cat(tuple(outputs), 1), *ends]


def _of_direction(b: Any, value: Any, d: int) -> Any:
    return view(b, take(b, value, 0, d, 1), value.tensor.shape[1:])


def _step(b: Any, cell: str, starts: Sequence[Any], given: Any, fixed: Sequence[Any]) -> Region:
    """A trip over the states, the gates' share of the input, the recurrence and perhaps its bias."""
    step = given.tensor.with_shape(given.tensor.shape[1:])
    region = Region([*(s.tensor for s in starts), step, *(value.tensor for value in fixed)])
    inner: Any = Builder(b.table, region, loc=b.loc)
    states, (x, recurrence, *bias) = region.args[: len(starts)], region.args[len(starts) :]
    own = inner.aten.linear(states[0], recurrence, *bias)
    width, gates = states[0].tensor.shape[1], len(CELLS[cell])
    xs, hs = ([take(inner, value, 1, i * width, width) for i in range(gates)] for value in (x, own))
    after = _after(inner, cell, xs, hs, states)
    inner.create("cf.yield", ((*after, after[0]),))
    return region


def _after(b: Any, cell: str, xs: Sequence[Any], hs: Sequence[Any], states: Sequence[Any]) -> list[Any]:
    """The states after a step, of what input and state give to each gate."""
    add, mul = b.aten.add.Tensor, b.aten.mul.Tensor
    if cell == "gru":
        update, reset = (b.aten.sigmoid(add(x, h)) for x, h in zip(xs[:2], hs[:2], strict=True))
        new = b.aten.tanh(add(xs[2], mul(reset, hs[2])))
        return [add(new, mul(update, b.aten.sub.Tensor(states[0], new)))]
    sums = [add(x, h) for x, h in zip(xs, hs, strict=True)]
    if cell != "lstm":
        return [b.aten.tanh(sums[0]) if cell == "rnn_tanh" else b.aten.relu(sums[0])]
    enters, leaves, kept = map(b.aten.sigmoid, sums[:3])
    memory = add(mul(kept, states[1]), mul(enters, b.aten.tanh(sums[3])))
    return [mul(leaves, b.aten.tanh(memory)), memory]


# -- torch's layers ----------------------------------------------------------------------------


def _states(site: CallSite) -> tuple[TensorType, ...]:
    many = any(o.name == "hx" and o.arity.value == "variadic" for o in site.definition.operands)
    return site.variadic("hx") if many else (site.type("hx"),)


def _recurrent(site: CallSite) -> Sequence[TensorType]:
    """``[T, N, I]`` (``[N, T, I]`` with ``batch_first``) -> ``[T, N, D*H]`` and the last states.

    States are ``[L*D, N, H]``.
    """
    x, states, params = require_rank(site, "input", 3), _states(site), site.variadic("params")
    require(
        site.attr("train") is not True or site.attr("dropout") == 0,
        site,
        "regraft compiles models in eval mode",
    )
    same_dtype(site, (x, *states, *params))
    directions = 2 if site.attr("bidirectional") else 1
    each = 4 if site.attr("has_biases") else 2
    if len(params) != each * directions * site.int("num_layers"):
        refuse(site, f"{len(params)} parameters: layers that project their output are not typed")
    batch = x.shape[0 if site.attr("batch_first") else 1]
    width = params[1].shape[1]
    for state in states:
        require(
            state.rank == 3 and state.shape[0] == directions * site.int("num_layers"),
            site,
            f"a state is {state}",
        )
        require_equal(site, state.shape[1], batch, "the batch sizes of input and state")
    return x.with_shape((*x.shape[:2], width * directions)), *states


def _by_layers(b: Any, op: Any) -> Sequence[Any]:
    args, cell = op.arguments(), op.name.removeprefix("aten.").split(".")[0]
    states = args["hx"] if cell == "lstm" else (args["hx"],)
    layers, directions = args["num_layers"], 2 if args["bidirectional"] else 1
    each = 4 if args["has_biases"] else 2
    x = args["input"]
    x = b.aten.permute(x, (1, 0, 2)) if args["batch_first"] else x
    lasts: list[Sequence[Any]] = []
    for layer in range(layers):
        own = args["params"][layer * each * directions : (layer + 1) * each * directions]
        per_direction = [own[i * each : (i + 1) * each] for i in range(directions)]
        start = [take(b, s, 0, layer * directions, directions) for s in states] if layers > 1 else states
        y, *last = _one_layer(b, cell, x, per_direction, start)
        lasts.append(last)
        length, _, batch, width = y.tensor.shape
        x = view(b, b.aten.permute(y, (0, 2, 1, 3)), (length, batch, directions * width))
    x = b.aten.permute(x, (1, 0, 2)) if args["batch_first"] else x
    ends = list(zip(*lasts, strict=True))
    return x, *(e[0] if layers == 1 else b.aten.cat(tuple(e), 0) for e in ends)


def _one_layer(b: Any, cell: str, x: Any, params: Sequence[Sequence[Any]], states: Sequence[Any]) -> Any:
    weight, recurrence = (_stacked(b, [_reordered(b, cell, p[i]) for p in params]) for i in (0, 1))
    bias = None
    if len(params[0]) == 4:
        rows = [b.aten.cat(tuple(_reordered(b, cell, v) for v in p[2:]), 0) for p in params]
        bias = _stacked(b, rows)
    memory = states[1] if cell == "lstm" else None
    return b.rg.recurrent(x, weight, recurrence, bias, states[0], memory, cell)


def _reordered(b: Any, cell: str, weight: Any) -> Any:
    """The gates, one block of rows each, in ONNX's order."""
    order = CELLS[cell]
    if len(order) == 1:
        return weight
    size = weight.tensor.shape[0] // len(order)
    return b.aten.cat(tuple(take(b, weight, 0, i * size, size) for i in order), 0)


def _stacked(b: Any, parts: Sequence[Any]) -> Any:
    rows = [view(b, p, (1, *p.tensor.shape)) for p in parts]
    return rows[0] if len(rows) == 1 else b.aten.cat(tuple(rows), 0)


# -- the table ---------------------------------------------------------------------------------


def _torch_layer(name: str, states: str) -> OpDef:
    schema = (
        f"aten.{name}.input(Tensor input, {states} hx, Tensor[] params, bool has_biases, int num_layers, "
        "float dropout, bool train, bool bidirectional, bool batch_first)"
    )
    return spelling(schema, _recurrent, _by_layers)


OPS = (
    define(
        "rg.recurrent(Tensor x, Tensor weight, Tensor recurrence, Tensor? bias, Tensor hidden, "
        "Tensor? memory, str cell)",
        _layer,
        SAFE,
        _layer_flops,
        decompose=_as_scans,
    ),
    _torch_layer("lstm", "Tensor[]"),
    _torch_layer("gru", "Tensor"),
    _torch_layer("rnn_tanh", "Tensor"),
    _torch_layer("rnn_relu", "Tensor"),
)
