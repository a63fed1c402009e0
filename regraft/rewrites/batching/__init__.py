"""One op for many samples: what an op becomes when its operands get a leading axis."""

from __future__ import annotations

from regraft.rewrites.batching.call import Call, Rule
from regraft.rewrites.batching.regions import Batch, obstacles
from regraft.rewrites.batching.rules import RULES, batched, obstacle

__all__ = ["RULES", "Batch", "Call", "Rule", "batched", "obstacle", "obstacles"]
