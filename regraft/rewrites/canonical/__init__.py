"""The normal form: one spelling of each computation, so that a pattern need know only one."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.canonical.atoms import Atom, Groups, Moved, Step, moved_together, price_of, steps_of
from regraft.rewrites.canonical.broadcasts import ImplicitExpand
from regraft.rewrites.canonical.chains import (
    CastOfCast,
    ExpandOfExpand,
    PermuteOfPermute,
    SliceOfSlice,
    ViewOfView,
)
from regraft.rewrites.canonical.identities import (
    AddZero,
    AndTrue,
    CatOfOne,
    FullSlice,
    MulOne,
    NoOpCast,
    NoOpExpand,
    NoOpPermute,
    NoOpView,
)
from regraft.rewrites.canonical.linears import (
    AddBias,
    LinearOfPermute,
    MatmulWithWeight,
    PermuteOfLinear,
    UnfoldedLinear,
    is_folded,
)
from regraft.rewrites.canonical.movement import MovementChain
from regraft.rewrites.canonical.operands import ConstantOnTheRight, NumberAsScalar, ScaledAddend
from regraft.rewrites.canonical.powers import ReciprocalRoot, Root, Square
from regraft.rewrites.canonical.spellings import CanonicalSpellings

__all__ = [
    "CANONICAL",
    "Atom",
    "CanonicalSpellings",
    "Groups",
    "Moved",
    "Step",
    "is_folded",
    "moved_together",
    "price_of",
    "steps_of",
]

CANONICAL: tuple[Rewrite, ...] = (
    AddBias(),
    AddZero(),
    AndTrue(),
    CastOfCast(),
    CatOfOne(),
    ConstantOnTheRight(),
    ExpandOfExpand(),
    FullSlice(),
    ImplicitExpand(),
    LinearOfPermute(),
    MatmulWithWeight(),
    MovementChain(),
    MulOne(),
    NoOpCast(),
    NoOpExpand(),
    NoOpPermute(),
    NoOpView(),
    NumberAsScalar(),
    PermuteOfLinear(),
    PermuteOfPermute(),
    ReciprocalRoot(),
    Root(),
    ScaledAddend(),
    SliceOfSlice(),
    Square(),
    UnfoldedLinear(),
    ViewOfView(),
)
