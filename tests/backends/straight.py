"""A back end that knows nothing of control flow: eager torch without it."""

from __future__ import annotations

from regraft.backends.eager import EagerBackend
from regraft.ir import Op


class Straight(EagerBackend):
    """Runs what is straight code."""

    def supports(self, op: Op) -> str | None:
        if op.regions or op.name == "rg.check":
            return "it is control flow"
        return super().supports(op)
