"""The compiler: capture, pipeline, choice of back ends, reports."""

from __future__ import annotations

from regraft.compiler import cache, choose, options, steps
from regraft.compiler.api import capture, compile, export_onnx, export_plan
from regraft.compiler.approximate import (
    FactoredLayer,
    KeptLayer,
    LayerChange,
    LowRank,
    WithoutLayers,
    rank_layers,
)
from regraft.compiler.bisect import BisectReport, bisect
from regraft.compiler.capture import Captured, capture_model, control
from regraft.compiler.choosing import state_folder, tuning_path
from regraft.compiler.custom_ops import op_from_torch
from regraft.compiler.dynamo import regraft_backend
from regraft.compiler.explain import Explanation, explain
from regraft.compiler.export import ExportReport
from regraft.compiler.measure import Measurement
from regraft.compiler.pipeline import run_named_passes, run_named_rewrites, run_passes
from regraft.compiler.plan_export import PlanReport
from regraft.compiler.progress import PHASES, Observer, Progress
from regraft.compiler.racing import BenchReport, bench
from regraft.compiler.report import CacheOutcome, Report
from regraft.compiler.tuning import TuneReport, tune
from regraft.compiler.verify_each import EachApplication

__all__ = [
    "PHASES",
    "BenchReport",
    "BisectReport",
    "CacheOutcome",
    "Captured",
    "EachApplication",
    "Explanation",
    "ExportReport",
    "FactoredLayer",
    "KeptLayer",
    "LayerChange",
    "LowRank",
    "Measurement",
    "Observer",
    "PlanReport",
    "Progress",
    "Report",
    "TuneReport",
    "WithoutLayers",
    "bench",
    "bisect",
    "cache",
    "capture",
    "capture_model",
    "choose",
    "compile",
    "control",
    "explain",
    "export_onnx",
    "export_plan",
    "op_from_torch",
    "options",
    "rank_layers",
    "regraft_backend",
    "run_named_passes",
    "run_named_rewrites",
    "run_passes",
    "state_folder",
    "steps",
    "tune",
    "tuning_path",
]
