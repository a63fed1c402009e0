"""``torch.compile(model, backend="regraft")``."""

from __future__ import annotations

from regraft.compiler.dynamo.backend import regraft_backend

__all__ = ["regraft_backend"]
