"""Which of the adapters that a model was compiled with applies: a number among its state.

The graph holds the factors of all of them and picks by this number, so that switching costs one write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.errors import OptionError, no_such, shown
from regraft.runtime.effects import Effects

#: The state that holds the number, an i64 of shape [1]: 0 for none, n for the n-th adapter.
ACTIVE = "adapters:active"


def own_state(names: Sequence[str]) -> tuple[str, ...]:
    """Those of the state's ``names`` that are tensors of the model: what a compile adds has a colon."""
    return tuple(name for name in names if ":" not in name)


def active_of(names: Sequence[str], effects: Effects | None) -> str | None:
    """The adapter of ``names`` that applies, or None."""
    if not names or effects is None:
        return None
    number = int(effects.snapshot()[ACTIVE])
    return names[number - 1] if number else None


def set_active(names: Sequence[str], effects: Effects | None, name: Any) -> None:
    """Let the adapter ``name`` apply from the next call on; None for none of them.

    Raises:
        OptionError: there is no such adapter.
    """
    if not names or effects is None:
        raise OptionError(
            "the model was compiled without adapters; pass compile(..., adapters={name: state dict, ...})"
        )
    if name is not None and name not in names:
        raise OptionError(no_such("adapter", name if isinstance(name, str) else shown(name), names))
    effects.fill(ACTIVE, 0 if name is None else names.index(name) + 1)
