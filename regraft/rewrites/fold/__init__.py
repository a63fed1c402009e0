"""What compile time can know: dead code, repeated code, constants, and facts about index arithmetic."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.fold.affine import ALWAYS, NEVER, Affine, Fact, Magnitude, Where
from regraft.rewrites.fold.common_subexpressions import CommonSubexpressions
from regraft.rewrites.fold.dead_code import DeadCode
from regraft.rewrites.fold.index_analysis import IndexAnalysis, complement, fact_about, sizes_of_elements
from regraft.rewrites.fold.indices import ConstantIndices, IotaIndex, uniform_value
from regraft.rewrites.fold.keys import op_key
from regraft.rewrites.fold.masked_writes import MaskedWrite
from regraft.rewrites.fold.recipes import ConstantRecipes

__all__ = [
    "ALWAYS",
    "FOLD",
    "NEVER",
    "Affine",
    "CommonSubexpressions",
    "ConstantIndices",
    "ConstantRecipes",
    "DeadCode",
    "Fact",
    "IndexAnalysis",
    "Magnitude",
    "Where",
    "complement",
    "fact_about",
    "op_key",
    "sizes_of_elements",
    "uniform_value",
]

FOLD: tuple[Rewrite, ...] = (IotaIndex(), MaskedWrite())
