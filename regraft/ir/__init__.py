"""The IR: the data model, dimensions, op tables, the text form, and the way to change a graph."""

from __future__ import annotations

from regraft.ir import dims
from regraft.ir.builder import Builder
from regraft.ir.constants import Leaf, Recipe, leaves
from regraft.ir.core import UNKNOWN, Location, Op, Region, Use, Value, backward_slice, clone_op, clone_region
from regraft.ir.cost import Cost, CostModel
from regraft.ir.dims import Dim, Expr, Symbol, symbol
from regraft.ir.dtypes import DType, promote
from regraft.ir.module import Function, Module, input_symbols
from regraft.ir.opdef import Arity, Attr, AttrSpec, CallSite, Constant, OpDef, Operand, OpTable, Trait
from regraft.ir.ops import OPS, PLACEMENT
from regraft.ir.passes import (
    STAGES,
    Pass,
    PassContext,
    RewritePass,
    apply,
    decide,
    in_order,
    run_stage,
)
from regraft.ir.pattern import Declined, Match, Pattern, PatternBuilder, Var, match_pattern
from regraft.ir.rewrite import Exactness, Example, Rewrite, parse_type
from regraft.ir.rewriter import Fuel, Listener, Rewriter, RewriteStats, is_dead, refines
from regraft.ir.types import TensorType, TokenType, Type

__all__ = [
    "OPS",
    "PLACEMENT",
    "STAGES",
    "UNKNOWN",
    "Arity",
    "Attr",
    "AttrSpec",
    "Builder",
    "CallSite",
    "Constant",
    "Cost",
    "CostModel",
    "DType",
    "Declined",
    "Dim",
    "Exactness",
    "Example",
    "Expr",
    "Fuel",
    "Function",
    "Leaf",
    "Listener",
    "Location",
    "Match",
    "Module",
    "Op",
    "OpDef",
    "OpTable",
    "Operand",
    "Pass",
    "PassContext",
    "Pattern",
    "PatternBuilder",
    "Recipe",
    "Region",
    "Rewrite",
    "RewritePass",
    "RewriteStats",
    "Rewriter",
    "Symbol",
    "TensorType",
    "TokenType",
    "Trait",
    "Type",
    "Use",
    "Value",
    "Var",
    "apply",
    "backward_slice",
    "clone_op",
    "clone_region",
    "decide",
    "dims",
    "in_order",
    "input_symbols",
    "is_dead",
    "leaves",
    "match_pattern",
    "parse_type",
    "promote",
    "refines",
    "run_stage",
    "symbol",
]
