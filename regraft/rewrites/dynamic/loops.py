"""How the rewrites of loops build one anew, and what they ask of one.

A ``cf.while`` carries all that its regions read: a value that no trip changes is one that the body yields as
it was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regraft.ir import Builder, Op, Region, Value, clone_op, refines, symbols_in
from regraft.rewrites.dynamic.regions import is_repeatable, kept_results, live_args, live_ops

_NONE: Mapping[Value, Value] = {}


def unchanged(loop: Op) -> set[int]:
    """The carried values that no trip changes: results that are the operands."""
    body = loop.regions[1]
    return {
        i
        for i, (operand, result) in enumerate(zip(loop.operands, loop.results, strict=True))
        if body.results[i] is body.args[i] and refines(operand.type, result.type)
    }


def live_carried(loop: Op) -> list[int]:
    """The carried values that a result in use, the test or an effect depends on, trip after trip."""
    test, body = loop.regions
    still = unchanged(loop)
    live = {index for index in kept_results(loop) if index not in still}
    live |= live_args(test, test.results) | live_args(body, ())
    live |= {a.index for r in loop.regions for a in r.args if any(s in r.symbols for s in symbols_in(a.type))}
    pending = list(live)
    while pending:
        needed = live_args(body, [body.results[pending.pop()]]) - live
        live |= needed
        pending += needed
    return sorted(live)


def loop_over(
    op: Builder,
    loop: Op,
    operands: Sequence[Value],
    carried: Sequence[int],
    given: Mapping[Value, Value] = _NONE,
) -> list[Value | None]:
    """``loop`` over ``operands`` with the ``carried`` values alone; its results, None for the others.

    ``given`` says which values around the loop stand for values of its regions. A carried value that no trip
    changes and that costs nothing to make again is made inside.
    """
    still = unchanged(loop)
    inside = [i for i in carried if i in still and is_repeatable(operands[i])]
    kept = [i for i in carried if i not in inside]
    outer = list(dict.fromkeys(given.values()))
    regions: list[Region] = []
    for number, source in enumerate(loop.regions):
        region = Region([source.args[i].type for i in kept] + [v.type for v in outer], source.symbols)
        mapping = {source.args[i]: argument for i, argument in zip(kept, region.args, strict=False)}
        mapping |= {value: region.args[len(kept) + outer.index(v)] for value, v in given.items()}
        builder = Builder(op.table, region, loc=op.loc)
        for i in inside:
            maker = operands[i].op
            assert maker is not None
            mapping[source.args[i]] = builder.insert(clone_op(maker, {})).result
        wanted = source.results if number == 0 else [source.results[i] for i in kept]
        for each in live_ops(source, wanted, given):
            builder.insert(clone_op(each, mapping))
        yielded = [mapping[v] for v in wanted] + (region.args[len(kept) :] if number else [])
        builder.create("cf.yield", (yielded,))
        regions.append(region)
    types = [loop.results[i].type for i in kept] + [v.type for v in outer]
    starts = (*(operands[i] for i in kept), *outer)
    made = op.create("cf.while", (starts,), result_types=types, regions=regions, symbols=loop.symbols)
    results = dict(zip(kept, made.results, strict=False)) | {i: operands[i] for i in inside}
    return [results.get(i) for i in range(len(loop.results))]
