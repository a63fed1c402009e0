"""What an arm assumes about sizes that values decide, which must not hold but where the arm runs.

While it traces, torch takes what the code needs of a size (``tok[0]`` needs a ``tok`` that is not empty) for
a fact from there on, and has it checked where the size is found: before the condition that may have ruled it
out. So what an arm has come to assume of sizes from outside is written down in the arm (``HOLDS``), and
forgotten where the arm ends.
"""

# torch's symbolic shapes and sympy are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportPrivateUsage=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any

import sympy
from torch.utils._sympy import functions
from torch.utils._sympy.symbol import SymT, symbol_is_type

_UNBACKED = (SymT.UNBACKED_INT, SymT.UNBACKED_FLOAT)


class Known:
    """What a ``ShapeEnv`` knew of sizes that values decide when a part of the graph began."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._ranges = {s: each for s, each in env.var_to_range.items() if symbol_is_type(s, _UNBACKED)}
        self._replacements = dict(env.replacements)
        self._axioms = dict(env.axioms)
        self._asserts = {id(each) for each in _all_asserts(env)}

    def learnt(self) -> list[Any]:
        """torch's runtime asserts since then that are about sizes from before."""
        new = (each for each in _all_asserts(self._env) if id(each) not in self._asserts)
        return [each for each in new if self._is_outer(each.expr)]

    def forget(self, facts: set[str]) -> None:
        """Forget what was learnt since then, if it is all among ``facts``."""
        learnt = self.learnt()
        if not learnt or not {text_of(each.expr) for each in learnt} <= facts:
            return
        env = self._env
        gone = {id(each) for each in learnt}
        for symbol, asserts in env.deferred_runtime_asserts.items():
            env.deferred_runtime_asserts[symbol] = [each for each in asserts if id(each) not in gone]
        env.axioms = {
            key: value for key, value in env.axioms.items() if key in self._axioms or not self._is_outer(key)
        }
        self._set_back_sizes()

    def forget_all(self) -> None:
        """Forget all that was learnt since then, about new sizes as well."""
        env = self._env
        for symbol, asserts in env.deferred_runtime_asserts.items():
            env.deferred_runtime_asserts[symbol] = [each for each in asserts if id(each) in self._asserts]
        env.axioms = dict(self._axioms)
        self._set_back_sizes()

    def _set_back_sizes(self) -> None:
        env = self._env
        env.var_to_range.update(self._ranges)
        for symbol in self._ranges:
            env.replacements.pop(symbol, None)
            if symbol in self._replacements:
                env.replacements[symbol] = self._replacements[symbol]
        # torch keeps what it has derived for as long as nothing new is known.
        env._prev_cache_key = env._get_key()
        env._version_counter += 1
        env._replacements_version_counter += 1
        env._resimplify_floor_div_axioms = True
        # What was asked or asserted before torch answers at once, and asserts nothing.
        for answers in (env._inner_evaluate_expr, env.guard_or_defer_runtime_assert, env._maybe_guard_rel):
            answers.cache_clear()

    def _is_outer(self, expression: Any) -> bool:
        """Whether a condition is about sizes that were known, and no others of those that values decide."""
        symbols = {s for s in expression.free_symbols if symbol_is_type(s, _UNBACKED)}
        return bool(symbols) and symbols <= self._ranges.keys()


def _all_asserts(env: Any) -> list[Any]:
    return [each for asserts in env.deferred_runtime_asserts.values() for each in asserts]


def text_of(condition: Any) -> str:
    """A condition of torch's as text that ``condition_of`` reads."""
    return sympy.srepr(condition)


def condition_of(text: str) -> Any:
    own = {name: each for name, each in vars(functions).items() if isinstance(each, type)}
    return sympy.sympify(text, locals=own)  # pyright: ignore[reportCallIssue]
