"""The IR: the data model, dimensions, op tables, the text form, and the way to change a graph.

This is the one face of the package: others take names from here and not from its modules.
"""

from __future__ import annotations

from regraft.ir import dims
from regraft.ir.builder import Builder
from regraft.ir.constants import Leaf, Recipe, leaves
from regraft.ir.core import UNKNOWN, Location, Op, Region, Use, Value, backward_slice, clone_op, clone_region
from regraft.ir.cost import Cost, CostModel, bytes_of, evaluate, flops_of
from regraft.ir.dim_text import parse_dim
from regraft.ir.dims import Dim, Expr, Symbol, symbol
from regraft.ir.dims_sympy import from_sympy, prove_equal, to_sympy
from regraft.ir.dtypes import DType, promote
from regraft.ir.effects import is_dead, is_pure, is_speculatable
from regraft.ir.module import Function, Module, input_symbols, mentioned, symbols_in, unique_name
from regraft.ir.opdef import (
    REQUIRED,
    Arity,
    Attr,
    AttrSpec,
    CallSite,
    Constant,
    OnnxOp,
    OpDef,
    Operand,
    OpTable,
    Trait,
)
from regraft.ir.ops import ACTIVATIONS, BAG_MODES, OPS, PLACEMENT, chosen_form, define, settled_form
from regraft.ir.parser import parse_module
from regraft.ir.passes import (
    STAGES,
    Application,
    Pass,
    PassContext,
    RewritePass,
    Watcher,
    apply,
    decide,
    in_order,
    passes_in_order,
    run_pass,
    run_stage,
)
from regraft.ir.pattern import Declined, Match, Pattern, PatternBuilder, Progress, Var, match_pattern
from regraft.ir.place import excerpt, path_of
from regraft.ir.printer import format_type, outermost, print_function, print_module, print_op, print_region
from regraft.ir.resize import size_names
from regraft.ir.rewrite import Exactness, Example, Rewrite, parse_type
from regraft.ir.rewriter import Fuel, Listener, Rewriter, RewriteStats, decompose, refines
from regraft.ir.scan import Scan
from regraft.ir.stages import STAGE_RULES, stage_problem
from regraft.ir.structural import Difference, same_attr, structurally_equal
from regraft.ir.types import TensorType, TokenType, Type
from regraft.ir.verifier import verify, verify_ops

__all__ = [
    "ACTIVATIONS",
    "BAG_MODES",
    "OPS",
    "PLACEMENT",
    "REQUIRED",
    "STAGES",
    "STAGE_RULES",
    "UNKNOWN",
    "Application",
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
    "Difference",
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
    "OnnxOp",
    "Op",
    "OpDef",
    "OpTable",
    "Operand",
    "Pass",
    "PassContext",
    "Pattern",
    "PatternBuilder",
    "Progress",
    "Recipe",
    "Region",
    "Rewrite",
    "RewritePass",
    "RewriteStats",
    "Rewriter",
    "Scan",
    "Symbol",
    "TensorType",
    "TokenType",
    "Trait",
    "Type",
    "Use",
    "Value",
    "Var",
    "Watcher",
    "apply",
    "backward_slice",
    "bytes_of",
    "chosen_form",
    "clone_op",
    "clone_region",
    "decide",
    "decompose",
    "define",
    "dims",
    "evaluate",
    "excerpt",
    "flops_of",
    "format_type",
    "from_sympy",
    "in_order",
    "input_symbols",
    "is_dead",
    "is_pure",
    "is_speculatable",
    "leaves",
    "match_pattern",
    "mentioned",
    "outermost",
    "parse_dim",
    "parse_module",
    "parse_type",
    "passes_in_order",
    "path_of",
    "print_function",
    "print_module",
    "print_op",
    "print_region",
    "promote",
    "prove_equal",
    "refines",
    "run_pass",
    "run_stage",
    "same_attr",
    "settled_form",
    "size_names",
    "stage_problem",
    "structurally_equal",
    "symbol",
    "symbols_in",
    "to_sympy",
    "unique_name",
    "verify",
    "verify_ops",
]
