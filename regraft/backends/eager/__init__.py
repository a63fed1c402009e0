"""The eager back end: every op through torch's own kernels. The last resort, and the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.runtime import lazy_names

if TYPE_CHECKING:
    from regraft.backends.eager.lower import EagerBackend

__all__ = ["EagerBackend"]

# Lowering needs the IR, which a saved artefact runs without.
__getattr__ = lazy_names(__name__, {"EagerBackend": "regraft.backends.eager.lower"})
