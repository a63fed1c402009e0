"""Activations that a model spells out, raised to one op each."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.activation.gelu import GeluErf, GeluTanh
from regraft.rewrites.activation.silu import SiLU

__all__ = ["ACTIVATION"]

ACTIVATION: tuple[Rewrite, ...] = (GeluErf(), GeluTanh(), SiLU())
