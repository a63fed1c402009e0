"""In which order features stand between two products: constant weights name them, so any order will do.

A product with a constant weight makes its features in the order of the weight's rows, and reads them in that
of its columns. Between two such products, moves and elementwise ops may see the features in another order,
if the weights, and constants between, have it too. ``find_route`` looks for the order in which the moves
cost least.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from regraft.ir import Declined, Dim, Op, Trait, Value, dims
from regraft.rewrites.canonical import Atom, Groups, Moved, Step, moved_together, price_of, steps_of
from regraft.rewrites.linear.layers import is_shared
from regraft.rewrites.support import is_computed_at_compile_time, same_dims

MOVES = ("aten.view", "aten.permute")

#: Elements, as many as a line of a cache holds. Smaller pieces cost as much to move as single elements.
_PIECE = 16
_LONGEST = 16


@dataclass(frozen=True)
class Side:
    """A product with a constant weight, seen from the value that holds its features.

    Fields:
        op: ``aten.linear`` or ``aten.matmul``.
        weight: name of the operand that is the weight.
        along: the axis of the weight that names the features.
        axis: the axis of the value that holds them.
    """

    op: Op
    weight: str
    along: int
    axis: int

    @property
    def other(self) -> str:
        """Name of the operand that is not the weight."""
        return {"weight": "input", "other": "self", "self": "other"}[self.weight]


@dataclass(frozen=True)
class Route:
    """The way of features from where they are made to where they are read.

    Fields:
        source: the value that the way begins with.
        ops: what is on the way: moves, and elementwise ops of which one operand is not constant.
        maker, reader: the products at its ends, where they may have the features in another order.
        layouts: the atoms along each axis of the source, of the result of each elementwise op, and of what
            is read.
    """

    source: Value
    ops: tuple[Op, ...]
    maker: Side | None
    reader: Side | None
    layouts: tuple[Groups, ...]

    @property
    def maps(self) -> list[Op]:
        """The elementwise ops."""
        return [op for op in self.ops if op.name not in MOVES]

    @property
    def made(self) -> Sequence[Atom]:
        """The features of the maker, in order."""
        return [] if self.maker is None else self.layouts[0][self.maker.axis]

    @property
    def read(self) -> Sequence[Atom]:
        """The features of the reader, in order."""
        return [] if self.reader is None else self.layouts[-1][self.reader.axis]

    def pieces(self) -> list[list[Step]]:
        """The moves up to each elementwise op, and behind the last one."""
        return [
            list(steps_of(Moved([list(g) for g in a], [list(g) for g in b]), shape_of(a), shape_of(b)))
            for a, b in pairwise(self.layouts)
        ]


def find_route(root: Op) -> tuple[Route, Route] | Declined:
    """The way that ends in ``root``, a product or a move, as it is and as it costs less."""
    route = route_to(root)
    if isinstance(route, Declined):
        return route
    going = [Step(op.name, op.attrs, op.operands[0].tensor.shape) for op in route.ops if op.name in MOVES]
    found = min(_others(route), key=lambda other: _cost(_all_steps(other)), default=route)
    if found is route or not _cost(_all_steps(found)) < min(_cost(going), _cost(_all_steps(route))):
        return Declined("in no other order of its features less is moved", route.source)
    return route, found


def shape_of(groups: Groups) -> tuple[Dim, ...]:
    return tuple(dims.product(atom.size for atom in group) for group in groups)


def along_which(constant: Value, groups: Groups) -> list[Atom]:
    """The atoms of ``groups`` along which ``constant``, broadcast to them, varies."""
    shape = constant.tensor.shape
    tail = groups[len(groups) - len(shape) :]
    return [atom for size, group in zip(shape, tail, strict=True) if size != 1 for atom in group]


def shape_along(atoms: Sequence[Atom], groups: Groups) -> tuple[Dim, ...] | None:
    """The shape of a constant that varies along ``atoms`` of ``groups``, None if a group has others too."""
    shape: list[Dim] = []
    for group in groups:
        inside = [atom in atoms for atom in group]
        if any(inside) and not all(inside):
            return None
        shape.append(dims.product(atom.size for atom in group) if any(inside) else 1)
    return tuple(shape)


# -- the way as it is --------------------------------------------------------------------------


def route_to(root: Op) -> Route | Declined:
    """The way that ends in ``root``, a product or a move."""
    reader = _reader(root)
    if reader is None and root.name not in MOVES:
        return Declined("no constant weight reads its features", root.result)
    if reader is None and end_of_way(root.result) is not root:
        return Declined("it is a part of a longer way", root.result)
    end = root.result if reader is None else root.operand(reader.other)
    if reader is not None and len(end.uses) > 1:
        return Declined("the features are read elsewhere too", end)
    ops = _way_to(end)
    if not any(op.name == "aten.permute" for op in ops):
        return Declined("nothing moves before it", end)
    source = _carried(ops[0])
    assert source is not None
    maker = _maker(source) if len(source.uses) == 1 else None
    if maker is None and reader is None:
        return Declined("no constant weight makes its features", source)
    layouts = _layouts(source, ops)
    if layouts is None:
        return Declined("a view takes axes apart in another way than they were put together", source)
    return Route(source, tuple(ops), maker, reader, layouts)


def _way_to(end: Value) -> list[Op]:
    """The moves and elementwise ops that make ``end``, none of whose operands is used elsewhere."""
    ops: list[Op] = []
    value = end
    while value.op is not None and len(ops) < _LONGEST and (not ops or len(value.uses) == 1):
        source = _carried(value.op)
        if source is None:
            break
        ops.insert(0, value.op)
        value = source
    return ops


def _carried(op: Op) -> Value | None:
    """The operand of ``op`` of which it moves each element, or maps each to one at its place."""
    if op.definition.opaque or op.regions or len(op.results) != 1:
        return None
    if op.name in MOVES:
        return op.operand("self")
    if not op.has(Trait.ELEMENTWISE) or not op.has(Trait.PURE):
        return None
    varying = [value for value in op.operands if not is_computed_at_compile_time(value)]
    if len(varying) != 1 or not same_dims(varying[0].tensor.shape, op.result.tensor.shape):
        return None
    return varying[0]


def end_of_way(value: Value) -> Op | None:
    """The op in which a way that leads over ``value`` ends: what reads its features, or moves them last."""
    end: Op | None = value.op if value.op is not None and value.op.name in MOVES else None
    while len(value.uses) == 1:
        (user,) = value.users
        reader = _reader(user)
        if reader is not None:
            return user if user.operand(reader.other) is value else end
        if _carried(user) is not value:
            break
        value = user.result
        end = user if user.name in MOVES else end
    return end


def _layouts(source: Value, ops: Sequence[Op]) -> tuple[Groups, ...] | None:
    """Atoms of the source, of each elementwise op and of the end; None where they cannot be followed."""
    moves = [op for op in ops if op.name in MOVES]
    first = Moved.of(source.tensor.shape)
    if not all(first.apply(op) for op in moves):
        return None
    # Once more, over atoms that are not split any further.
    moved = Moved([list(atoms) for atoms in first.within], [list(atoms) for atoms in first.within])
    layouts: list[Groups] = [moved.groups]
    for op in ops:
        if op.name not in MOVES:
            layouts.append(moved.groups)
        elif not moved.apply(op):
            return None
    return (*layouts, moved.groups)


def _maker(value: Value) -> Side | None:
    """The product that makes ``value``, where its features may come in another order."""
    op = value.op
    if op is None or op.definition.opaque:
        return None
    last = value.tensor.rank - 1
    if op.name == "aten.linear":
        bias = op.optional("bias")
        known = op.operand("weight").tensor.rank == 2 and (bias is None or is_computed_at_compile_time(bias))
        return Side(op, "weight", 0, last) if known and _is_free(op.operand("weight")) else None
    if op.name != "aten.matmul" or min(v.tensor.rank for v in op.operands) < 2:
        return None
    left, right = (v.tensor.rank for v in op.operands)
    if _is_free(op.operand("other")):
        return Side(op, "other", right - 1, last)
    return Side(op, "self", left - 2, last - 1) if _is_free(op.operand("self")) else None


def _reader(op: Op) -> Side | None:
    """The product ``op`` as a reader of features, where these may come in another order."""
    if op.definition.opaque:
        return None
    if op.name == "aten.linear":
        weight = op.operand("weight")
        free = weight.tensor.rank == 2 and _is_free(weight)
        return Side(op, "weight", 1, op.operand("input").tensor.rank - 1) if free else None
    if op.name != "aten.matmul" or min(v.tensor.rank for v in op.operands) < 2:
        return None
    left, right = (v.tensor.rank for v in op.operands)
    if _is_free(op.operand("other")):
        return Side(op, "other", right - 2, left - 1)
    return Side(op, "self", left - 1, right - 2) if _is_free(op.operand("self")) else None


def _is_free(weight: Value) -> bool:
    """Whether another constant may stand in the place of ``weight``: nothing else needs this one."""
    return is_computed_at_compile_time(weight) and not is_shared(weight)


# -- other ways --------------------------------------------------------------------------------


def _others(route: Route) -> Iterator[Route]:
    """``route`` with its features made as they are read, read as they are made, or both."""
    source = {atom: place for place, atom in enumerate(_flat(route.layouts[0]))}
    end = {atom: place for place, atom in enumerate(_flat(route.layouts[-1]))}
    made = sorted(route.made, key=end.__getitem__)
    read = sorted(route.read, key=source.__getitem__)
    remade, reread = made != list(route.made), read != list(route.read)
    if remade:
        yield _with_made(route, made)
    if reread:
        yield from _if_constants_follow(route, _with_read(route, read))
    if remade and reread:
        yield from _if_constants_follow(route, _with_made(_with_read(route, read), made))


def _with_made(route: Route, order: Sequence[Atom]) -> Route:
    return replace(route, layouts=(_refilled(route.layouts[0], order), *route.layouts[1:]))


def _with_read(route: Route, order: Sequence[Atom]) -> Route:
    """All behind the source has the features in ``order``, at the places where some of them are."""
    first, *others = route.layouts
    return replace(route, layouts=(first, *(_refilled(groups, order) for groups in others)))


def _refilled(groups: Groups, order: Sequence[Atom]) -> Groups:
    atoms = iter(order)
    return [[next(atoms) if atom in order else atom for atom in group] for group in groups]


def _if_constants_follow(route: Route, other: Route) -> Iterator[Route]:
    """``other``, if the constants of its elementwise ops can have its order."""
    for op, old, new in zip(route.maps, route.layouts[1:-1], other.layouts[1:-1], strict=True):
        constants = [value for value in op.operands if is_computed_at_compile_time(value)]
        if any(shape_along(along_which(each, old), new) is None for each in constants):
            return
    yield other


def _all_steps(route: Route) -> list[Step]:
    return [step for piece in route.pieces() for step in piece]


def _cost(steps: Iterable[Step]) -> tuple[int, ...]:
    """Permutations of small pieces, scattered ones, and copies."""
    moves = [step for step in steps if step.name == "aten.permute"]
    small = sum(dims.le(_PIECE, moved_together(step)) is not True for step in moves)
    scattered, copies, *_ = price_of(moves)
    return small, scattered, copies


def _flat(groups: Groups) -> list[Atom]:
    return [atom for group in groups for atom in group]
