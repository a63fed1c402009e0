"""``verify="each"``: every application of every rewrite, compared with what it replaces as it happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from regraft.compiler.reference import BUDGET, Reference, narrow
from regraft.errors import NumericsMismatch
from regraft.ir import (
    Application,
    Exactness,
    Function,
    Op,
    OpTable,
    Rewriter,
    TensorType,
    Value,
    Watcher,
    backward_slice,
    verify_ops,
)
from regraft.numerics import assert_close, relative_error, same_bits


class EachApplication(Watcher):
    """Checks each change of a graph, when it is made, on the values of the example arguments.

    Old and new value are compared in fp64: bit for bit under an EXACT rewrite, within its tolerance under
    an APPROX one, else by the numerics rule, with the error that the old ops have in their own dtype for
    eager's. Of alternatives each form is compared. Changes of passes that are no rewrites are held to the
    same rule, as reassociating. What stands in a branch or loop body that the example does not enter is
    not compared; ``skipped`` counts it.

    Fields:
        told: called after each comparison with the name of what changed the graph, for progress.
        budget: bytes of values to keep between comparisons; others are computed again.
    """

    def __init__(
        self,
        function: Function,
        inputs: Sequence[Tensor],
        sizes: Mapping[str, int],
        table: OpTable,
        told: Callable[[str], object] = lambda name: None,
        budget: int = BUDGET,
    ) -> None:
        self.compared = 0
        self.skipped = 0
        self._function = function
        self._reference = Reference(function, inputs, sizes, budget)
        self._results = [self._reference.value(result) for result in function.results]
        self._table = table
        self._told = told
        self._now: Application | None = None

    def before(self, application: Application) -> None:
        self._now = application

    def after(self, application: Application, rewriter: Rewriter) -> None:
        """Check the ops that the application touched, and let go of values.

        Raises:
            VerifyError: one breaks a rule of the IR.
        """
        name = f"{application.rewrite.name}, application {application.nth}"
        verify_ops(rewriter.touched, after_pass=name, table=self._table)
        self._now = None
        self._reference.trim()

    def erased(self, op: Op) -> None:
        self._reference.forget(op)

    def redirecting(self, old: Value, new: Value) -> None:
        """Compare the values.

        Raises:
            NumericsMismatch: they differ by more than the rule allows.
        """
        if not isinstance(old.type, TensorType) or old.op is None:
            return
        if not self._reference.runs(old.op):
            self.skipped += 1
            return
        try:
            for form in _forms(new):
                self._compare(old, form)
        except NumericsMismatch as error:
            raise self._named(error, old, old.op) from None
        self._reference.stands_for(new, old)
        self.compared += 1
        self._told(self._suspect(new))

    @property
    def note(self) -> str:
        """What was compared, and what was not, in a line for the report."""
        parts = [f"{self.compared} changes compared"]
        if self.skipped:
            parts.append(f"{self.skipped} in branches or loops that the example does not enter were not")
        if self._reference.native:
            parts.append(f"not in fp64, which torch lacks: {', '.join(self._reference.native)}")
        return f"verify='each': {'; '.join(parts)}"

    def compare_results(self, name: str) -> None:
        """Compare the function's results, computed anew, with those of the captured graph.

        For a pass of a user's, which may change a graph in ways that no listener hears.

        Raises:
            NumericsMismatch: they differ by more than the tolerance of their dtypes; ``name`` is named.
        """
        self._reference.restart()
        for value, expected in zip(self._function.results, self._results, strict=True):
            actual = narrow(self._reference.value(value), value.type)
            assert_close(actual, expected, suspect=name)
        self._reference.trim()

    def _suspect(self, new: Value) -> str:
        if self._now is not None:
            return self._now.rewrite.name
        made_by = new.op.loc.made_by if new.op is not None else ()
        return made_by[-1] if made_by else "a pass"

    def _compare(self, old: Value, new: Value) -> None:
        expected, actual = self._reference.value(old), self._reference.value(new)
        exactness = self._now.rewrite.exactness if self._now else Exactness.REASSOCIATES
        if same_bits(actual, expected):
            return
        if exactness == Exactness.EXACT:
            raise NumericsMismatch("bits differ", "", relative_error(actual, expected), 0.0)
        if exactness.rank > Exactness.REASSOCIATES.rank:
            error = relative_error(actual, expected)
            if error > exactness.tolerance:
                raise NumericsMismatch("a result is wrong", "", error, exactness.tolerance)
            return
        assert old.op is not None
        replaced = self._replaced(old.op)
        if any(op.name in self._reference.native for op in replaced):
            # The reference itself is rounded to the op's own dtype.
            assert_close(narrow(actual, old.type), expected)
            return
        own = self._reference.in_own_dtype(replaced, old)
        assert_close(actual, expected, own, reassociates=True)

    def _replaced(self, op: Op) -> Sequence[Op]:
        """The ops whose work is replaced, in order."""
        ops = (op,) if self._now is None else self._now.match.ops
        return [each for each in backward_slice(op.results) if each in ops]

    def _named(self, error: NumericsMismatch, old: Value, op: Op) -> NumericsMismatch:
        name = self._now.rewrite.name if self._now else None
        return NumericsMismatch(
            f"'{name}' changes what the model computes" if name else "a pass changes what the model computes",
            f"result {old.index} of {op.name}",
            error.error,
            error.tolerance,
            suspect=name,
            application=self._now.nth if self._now else None,
            op=op.name,
            location=str(op.loc),
        )


def _forms(value: Value) -> list[Value]:
    """The values that may be computed for ``value``: of alternatives, that of each."""
    if value.op is None or value.op.name != "rg.alt":
        return [value]
    return [region.results[value.index] for region in value.op.regions]
