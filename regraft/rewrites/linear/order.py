"""The order of products of several matrices.

The matrix chain problem (Godbole 1973) asks for the cheapest order of ``A1 @ A2 @ ... @ An``. Sizes may be
symbolic: an order that is cheaper for every size replaces the present one, and where it depends on one size
the orders become alternatives. A factor of an inner product, one number or one for each row, is a factor of
its first matrix: attention whose weights are divided by their sums is a product of three.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from regraft.ir import (
    Builder,
    Declined,
    Dim,
    Exactness,
    Example,
    Match,
    Op,
    PatternBuilder,
    Region,
    Rewrite,
    Value,
    Var,
    dims,
)
from regraft.rewrites.linear.layers import is_moderate
from regraft.rewrites.support import is_inside_alternatives, same_dims

_MAX_OPERANDS = 6
_SAMPLES = tuple(4**e for e in range(9))
"""Values of a symbolic size at which orders are compared."""

#: An order: the position of an operand, or the two orders that are multiplied last.
Order: TypeAlias = "int | tuple[Order, Order]"


@dataclass(frozen=True)
class Chain:
    """A product of matrices.

    Fields:
        operands: the matrices, each ``[..., rows, columns]``, all with the batch axes of the result.
        order: in which they are multiplied now.
        factors: for each operand, the ops that scale products which begin with it, in order.
    """

    operands: tuple[Value, ...]
    order: Order
    factors: tuple[tuple[Op, ...], ...]

    def cost(self, order: Order) -> Dim:
        """Multiplications of one batch element in ``order``."""
        if isinstance(order, int):
            return 0
        left, right = order
        rows = self.operands[_first(left)].tensor.shape[-2]
        own = rows * self._columns(left) * self._columns(right)
        return own + self.cost(left) + self.cost(right)

    def _columns(self, order: Order) -> Dim:
        return self.operands[_last(order)].tensor.shape[-1]


def _first(order: Order) -> int:
    return order if isinstance(order, int) else _first(order[0])


def _last(order: Order) -> int:
    return order if isinstance(order, int) else _last(order[1])


def orders(first: int, last: int) -> Iterator[Order]:
    """Every order of the operands from ``first`` to ``last``."""
    if first == last:
        yield first
    for split in range(first, last):
        for left in orders(first, split):
            for right in orders(split + 1, last):
                yield left, right


class ProductOrder(Rewrite):
    """(A @ B) * s @ C = A * s @ (B @ C), in the order that multiplies least, for two and more products.

    ``s``, which need not be there, is one number or one for each row. Where one symbolic size decides,
    ``rg.alt`` keeps the orders that are cheapest somewhere. Products with a constant matrix on the right are
    linear layers, which another rewrite merges.
    """

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, a: Var, b: Var) -> Any:
        return op.aten.matmul(a, b)

    def check(self, m: Match) -> Declined | None:
        if is_inside_alternatives(m.root):
            return m.decline("it is a part of alternatives already", m.root.result)
        if _continues(m.root):
            return m.decline("it is a part of a longer product", m.root.result)
        chain = chain_of(m.root)
        if not 2 < len(chain.operands) <= _MAX_OPERANDS:
            return m.decline(f"it is a product of {len(chain.operands)} matrices", m.root.result)
        if best_order(chain) == chain.order and not cheaper_somewhere(chain):
            return m.decline("no other order is cheaper, or several sizes decide", m.root.result)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        chain = chain_of(m.root)
        best = best_order(chain)
        operands = [_scaled(op, v, fs) for v, fs in zip(chain.operands, chain.factors, strict=True)]
        if best != chain.order:
            return _multiplied(op, operands, best)
        found = (chain.order, *cheaper_somewhere(chain))
        attrs = {"rows": _deciding_size(chain), "forms": tuple(map(_name, found))}
        regions = [_region(op, chain, order) for order in found]
        return op.create("rg.alt", (tuple(operands),), attrs, regions=regions).result

    examples = (
        Example(
            lambda op, a, b, c: op.aten.matmul(op.aten.matmul(a, b), c),
            ("f32[2, 9, 3]", "f32[2, 3, 9]", "f32[2, 9, 4]"),
        ),
        Example(
            lambda op, a, b, c: op.aten.matmul(op.aten.matmul(a, b), c),
            ("f32[N, 3]", "f32[3, 9]", "f32[9, 2]"),
        ),
        Example(
            lambda op, a, b, c: op.aten.matmul(op.aten.matmul(a, b), c),
            ("f32[B, N, 4]", "f32[B, 4, N]", "f32[B, N, 4]"),
        ),
        Example(
            lambda op, a, b, c: op.aten.matmul(a, op.aten.matmul(b, c)),
            ("f32[2, 9]", "f32[9, 3]", "f32[3, 9]"),
        ),
        Example(
            lambda op, a, b, c, d: op.aten.matmul(op.aten.matmul(a, b), op.aten.matmul(c, d)),
            ("f32[9, 4]", "f32[4, 4]", "f32[4, 9]", "f32[9, 5]"),
        ),
        Example(
            lambda op, a, b, c: op.aten.matmul(op.aten.mul.Scalar(op.aten.matmul(a, b), 0.25), c),
            ("f32[2, 9, 3]", "f32[2, 3, 9]", "f32[2, 9, 4]"),
        ),
        Example(
            lambda op, a, b, c, s: op.aten.matmul(op.aten.div.Tensor(op.aten.matmul(a, b), _one(op, s)), c),
            ("f32[2, N, 4]", "f32[2, 4, N]", "f32[2, N, 4]", "f32[2, N, 1]"),
        ),
        Example(
            lambda op, a, b, c, s: op.aten.matmul(a, op.aten.mul.Tensor(s, op.aten.matmul(b, c))),
            ("f32[2, 9]", "f32[9, 3]", "f32[3, 9]", "f32[9, 1]"),
        ),
    )
    counterexamples = (
        Example(
            lambda op, a, b, c: op.aten.matmul(op.aten.matmul(a, b), c),
            ("f32[N, 4]", "f32[4, M]", "f32[M, 4]"),
            reason="several sizes decide",
        ),
        Example(
            lambda op, a, b, c: op.aten.matmul(op.aten.relu(op.aten.matmul(a, b)), c),
            ("f32[9, 3]", "f32[3, 9]", "f32[9, 4]"),
            reason="a product of 2 matrices",
        ),
        Example(
            lambda op, a, b, c: _inner_used(op, op.aten.matmul(a, b), c),
            ("f32[9, 3]", "f32[3, 9]", "f32[9, 4]"),
            reason="a product of 2 matrices",
        ),
        Example(
            lambda op, a, b, c: op.aten.matmul(op.aten.matmul(a, b), c),
            ("f32[9, 3]", "f32[3, 9]", "f32[5, 9, 4]"),
            reason="a product of 2 matrices",
        ),
        Example(
            lambda op, a, b, c, s: op.aten.matmul(op.aten.mul.Tensor(op.aten.matmul(a, b), s), c),
            ("f32[9, 3]", "f32[3, 9]", "f32[9, 4]", "f32[9]"),
            reason="a product of 2 matrices",
        ),
        Example(
            lambda op, a, b, c, s: op.aten.matmul(op.aten.div.Tensor(s, op.aten.matmul(a, b)), c),
            ("f32[9, 3]", "f32[3, 9]", "f32[9, 4]", "f32[9, 1]"),
            reason="a product of 2 matrices",
        ),
    )


def _one(op: Builder, s: Value) -> Value:
    """Divisors that are far from zero."""
    return op.aten.add.Scalar(op.aten.abs(s), 0.5)


def _inner_used(op: Builder, inner: Value, c: Value) -> tuple[Value, Value]:
    return op.aten.matmul(inner, c), op.aten.relu(inner)


def chain_of(root: Op) -> Chain:
    """The product that ends in ``root``, through inner products that nothing else uses."""
    operands: list[Value] = []
    factors: list[list[Op]] = []

    def visit(value: Value) -> Order:
        product, scales = _unscaled(value)
        if not _is_inner(product, root):
            operands.append(value)
            factors.append([])
            return len(operands) - 1
        assert product.op is not None
        left = visit(product.op.operand("self"))
        factors[_first(left)] += scales
        return left, visit(product.op.operand("other"))

    order = visit(root.result)
    return Chain(tuple(operands), order, tuple(map(tuple, factors)))


def _unscaled(value: Value) -> tuple[Value, list[Op]]:
    """What ``value`` is but for factors of its rows, and the ops that multiply by them, in order."""
    scales: list[Op] = []
    while value.op is not None and len(value.uses) == 1:
        source = _scaled_by_rows(value.op)
        if source is None:
            break
        scales.append(value.op)
        value = source
    return value, scales[::-1]


def _scaled_by_rows(op: Op) -> Value | None:
    """What ``op`` multiplies or divides by one number, or by one for each row; None for any other op."""
    if op.name in ("aten.mul.Scalar", "aten.div.Scalar"):
        return op.operand("self") if is_moderate(op.attr("other")) else None
    if op.name not in ("aten.mul.Tensor", "aten.div.Tensor"):
        return None
    a, b = op.operands
    for value, factor in ((a, b), (b, a)) if op.name == "aten.mul.Tensor" else ((a, b),):
        by_rows = factor.tensor.rank > 0 and factor.tensor.shape[-1] == 1
        if by_rows and value.type == op.result.type and value.tensor.rank >= 2:
            return value
    return None


def _scaled(op: Builder, value: Value, scales: Sequence[Op]) -> Value:
    """``value`` through ``scales``, which stood behind a product that begins with it."""
    for scale in scales:
        source = _scaled_by_rows(scale)
        arguments = {n: value if a is source else a for n, a in scale.arguments().items()}
        value = op.create(scale.name, (), arguments).result
    return value


def _is_inner(value: Value, root: Op) -> bool:
    op = value.op
    if op is None or op.name != "aten.matmul":
        return False
    batch = root.result.tensor.shape[:-2]
    plain = all(_is_batched(v, batch) for v in (*op.operands, op.result))
    return plain and (op is root or len(value.uses) == 1)


def _is_batched(value: Value, batch: Sequence[Dim]) -> bool:
    """Whether ``value`` is a matrix for each element of ``batch``, so that nothing is broadcast."""
    return value.tensor.rank == len(batch) + 2 and same_dims(value.tensor.shape[:-2], batch)


def _continues(root: Op) -> bool:
    """Whether the one user of ``root`` multiplies on, as a part of the same product."""
    value = root.result
    while len(value.uses) == 1:
        (user,) = value.users
        if user.name == "aten.matmul":
            return _is_inner(root.result, user) and _is_inner(user.result, user)
        if _scaled_by_rows(user) is not value:
            return False
        value = user.result
    return False


def best_order(chain: Chain) -> Order:
    """The cheapest order; the present one unless another is cheaper for every size."""
    best = chain.order
    for order in orders(0, len(chain.operands) - 1):
        if _is_less(chain.cost(order), chain.cost(best)):
            best = order
    return best


def _is_less(a: Dim, b: Dim) -> bool:
    """Whether ``a`` is at most ``b`` for all sizes, and less for some."""
    return dims.le(a, b) is True and dims.eq(a, b) is not True


def cheaper_somewhere(chain: Chain) -> tuple[Order, ...]:
    """Orders that are cheapest at some value of the one symbolic size that decides; empty without one."""
    size = _deciding_size(chain)
    symbol = None if size is None else dims.as_symbol(size)
    if symbol is None:
        return ()
    every = list(orders(0, len(chain.operands) - 1))
    cheapest: dict[Order, None] = {}
    for value in _SAMPLES:
        costs = {order: dims.substitute(chain.cost(order), {symbol: value}) for order in every}
        best = min(every, key=lambda order: (costs[order], order != chain.order))
        cheapest[best] = None
    return tuple(order for order in cheapest if order != chain.order)


def _deciding_size(chain: Chain) -> Dim | None:
    """The one symbol in the costs, as a size."""
    symbols = set(dims.symbols_of(sum((chain.cost(o) for o in orders(0, len(chain.operands) - 1)), 0)))
    return dims.as_expr(symbols.pop()) if len(symbols) == 1 else None


def _name(order: Order) -> str:
    """``((A B) C)``"""
    return chr(ord("A") + order) if isinstance(order, int) else f"({_name(order[0])} {_name(order[1])})"


def _region(op: Builder, chain: Chain, order: Order) -> Region:
    region = Region([v.type for v in chain.operands])
    inner = Builder(op.table, region, loc=op.loc)
    inner.create("cf.yield", ((_multiplied(inner, region.args, order),),))
    return region


def _multiplied(op: Builder, operands: Sequence[Value], order: Order) -> Value:
    if isinstance(order, int):
        return operands[order]
    left, right = order
    return op.aten.matmul(_multiplied(op, operands, left), _multiplied(op, operands, right))
