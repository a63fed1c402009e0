"""Conditions and loops: what decides is known, what is skipped is not computed, what is kept is small."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.dynamic import samples
from regraft.rewrites.dynamic.branch_on_not import BranchOnNot
from regraft.rewrites.dynamic.common_ops import CommonOps
from regraft.rewrites.dynamic.constant_branch import ConstantBranch
from regraft.rewrites.dynamic.flag_as_logic import FlagAsLogic
from regraft.rewrites.dynamic.forwarded_result import ForwardedResult
from regraft.rewrites.dynamic.joined_conditions import JoinedConditions
from regraft.rewrites.dynamic.known_in_arm import KnownInArm
from regraft.rewrites.dynamic.loop_invariant import LoopInvariant
from regraft.rewrites.dynamic.masked_blend import MaskedBlend
from regraft.rewrites.dynamic.plain_predicate import PlainPredicate
from regraft.rewrites.dynamic.selected_side import SelectedSide
from regraft.rewrites.dynamic.short_loop import ShortLoop
from regraft.rewrites.dynamic.sunk_ops import SunkOps
from regraft.rewrites.dynamic.tidy_condition import TidyCondition
from regraft.rewrites.dynamic.tidy_loop import TidyLoop

__all__ = ["DYNAMIC", "samples"]

DYNAMIC: tuple[Rewrite, ...] = (
    BranchOnNot(),
    CommonOps(),
    ConstantBranch(),
    FlagAsLogic(),
    ForwardedResult(),
    JoinedConditions(),
    KnownInArm(),
    LoopInvariant(),
    MaskedBlend(),
    PlainPredicate(),
    SelectedSide(),
    ShortLoop(),
    SunkOps(),
    TidyCondition(),
    TidyLoop(),
)
