"""Loops over the steps of a sequence: no trip does what can be done for all steps at once."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.sequence import samples
from regraft.rewrites.sequence.batched_steps import BatchedSteps
from regraft.rewrites.sequence.counted_loop import CountedLoop
from regraft.rewrites.sequence.counting import number_of, trips_of
from regraft.rewrites.sequence.needless_check import NeedlessCheck
from regraft.rewrites.sequence.recurrent_cell import RecurrentCell
from regraft.rewrites.sequence.small_factors import SmallFactors
from regraft.rewrites.sequence.stacked_steps import StackedSteps
from regraft.rewrites.sequence.sunk_steps import SunkSteps

__all__ = ["SEQUENCE", "number_of", "samples", "trips_of"]

SEQUENCE: tuple[Rewrite, ...] = (
    BatchedSteps(),
    CountedLoop(),
    NeedlessCheck(),
    RecurrentCell(),
    SmallFactors(),
    StackedSteps(),
    SunkSteps(),
)
