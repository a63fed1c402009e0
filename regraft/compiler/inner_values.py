"""A value of a function's body, known in the regions within it: these are isolated from above."""

from __future__ import annotations

from regraft.ir import Builder, Op, OpTable, Region, Value

#: Ops that have a result for each value that they take.
_CARRYING = ("cf.while",)


class InnerValue:
    """``value``, handed down through conditions and loops as far as it is asked for.

    These are built anew, with an operand more that their regions take as their last argument.
    """

    def __init__(self, value: Value, table: OpTable) -> None:
        self._table = table
        home = value.owner if isinstance(value.owner, Region) else value.owner.parent
        assert home is not None, f"{value} is in no region"
        self._known = {home: value}

    def at(self, region: Region) -> Value:
        """What stands for the value in ``region``, which is its own one or lies in it."""
        if region not in self._known:
            op = region.parent
            assert op is not None, "the value is in no region around this one"
            assert op.parent is not None, f"{op} is in no region"
            made = self._taking(op, self.at(op.parent))
            self._known.update((each, each.args[-1]) for each in made.regions)
        return self._known[region]

    def _taking(self, op: Op, value: Value) -> Op:
        """``op`` with ``value`` as one operand more, which its regions get."""
        assert op.parent is not None, f"{op} is in no region"
        arguments = op.arguments()
        last = op.definition.operands[-1].name
        arguments[last] = (*arguments[last], value)
        added = [region.add_arg(value.type, value.hint) for region in op.regions]
        types = [result.type for result in op.results]
        if op.name in _CARRYING:
            types.append(value.type)
            old = op.regions[-1].terminator
            op.regions[-1].remove(old)
            yielded = (*old.operands, added[-1])
            old.drop_operands()
            Builder(self._table, op.regions[-1], loc=old.loc).create(old.name, (yielded,))
        made = Builder(self._table, op.parent, op, op.loc).create(
            op.name, (), arguments, result_types=types, regions=op.regions, symbols=op.symbols
        )
        for result, new in zip(op.results, made.results, strict=False):
            new.hint = result.hint
            for use in list(result.uses):
                use.op.set_operand(use.index, new)
        op.drop_operands()
        op.parent.remove(op)
        return made
