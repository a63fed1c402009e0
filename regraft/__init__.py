"""regraft compiles PyTorch models by rewriting their graphs.

The public names are loaded on first use (PEP 562), so that `import regraft` costs nothing and a saved
artefact can be loaded where the compiler's own dependencies are not wanted.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regraft import errors
    from regraft.backends import Backend, OnnxEmitter
    from regraft.compiler import (
        LowRank,
        WithoutLayers,
        bisect,
        capture,
        compile,
        explain,
        export_onnx,
        export_plan,
        op_from_torch,
        rank_layers,
        regraft_backend,
    )
    from regraft.ir import Exactness, Example, OnnxOp, OpDef, Pass, Rewrite
    from regraft.plugins import Plugin
    from regraft.runtime import Bundle, load

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "Bundle",
    "Exactness",
    "Example",
    "LowRank",
    "OnnxEmitter",
    "OnnxOp",
    "OpDef",
    "Pass",
    "Plugin",
    "Rewrite",
    "WithoutLayers",
    "bisect",
    "capture",
    "compile",
    "errors",
    "explain",
    "export_onnx",
    "export_plan",
    "load",
    "op_from_torch",
    "rank_layers",
    "regraft_backend",
]

_MODULE_OF_NAME = {
    "Backend": "regraft.backends",
    "Bundle": "regraft.runtime",
    "Exactness": "regraft.ir",
    "Example": "regraft.ir",
    "LowRank": "regraft.compiler",
    "OnnxEmitter": "regraft.backends",
    "OnnxOp": "regraft.ir",
    "OpDef": "regraft.ir",
    "Pass": "regraft.ir",
    "Plugin": "regraft.plugins",
    "Rewrite": "regraft.ir",
    "WithoutLayers": "regraft.compiler",
    "bisect": "regraft.compiler",
    "capture": "regraft.compiler",
    "compile": "regraft.compiler",
    "explain": "regraft.compiler",
    "export_onnx": "regraft.compiler",
    "export_plan": "regraft.compiler",
    "load": "regraft.runtime",
    "op_from_torch": "regraft.compiler",
    "rank_layers": "regraft.compiler",
    "regraft_backend": "regraft.compiler",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("regraft.errors")
    module = _MODULE_OF_NAME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value  # The next access finds it without coming here.
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
