"""The ONNX Runtime back end, and ONNX export.

``lower/`` says how each op becomes ONNX nodes, ``emit`` and the modules under it build the graph,
``run`` runs it and knows nothing of the compiler, ``export`` writes files for others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.backends.ort.run import OrtExecutable
from regraft.runtime import lazy_names

if TYPE_CHECKING:
    from regraft.backends.ort.backend import OrtBackend, to_onnx
    from regraft.backends.ort.emit import Emitter, Lowering, Target
    from regraft.backends.ort.export import WrittenFile, export_model, export_onnx_file, write_model
    from regraft.backends.ort.lower import LOWERINGS

__all__ = [
    "LOWERINGS",
    "Emitter",
    "Lowering",
    "OrtBackend",
    "OrtExecutable",
    "Target",
    "WrittenFile",
    "export_model",
    "export_onnx_file",
    "to_onnx",
    "write_model",
]

#: Name -> where it is. All of these need the IR, which a saved artefact runs without.
_LAZY = {
    "LOWERINGS": "regraft.backends.ort.lower",
    "Emitter": "regraft.backends.ort.emit",
    "Lowering": "regraft.backends.ort.emit",
    "OrtBackend": "regraft.backends.ort.backend",
    "Target": "regraft.backends.ort.emit",
    "WrittenFile": "regraft.backends.ort.export",
    "export_model": "regraft.backends.ort.export",
    "export_onnx_file": "regraft.backends.ort.export",
    "to_onnx": "regraft.backends.ort.backend",
    "write_model": "regraft.backends.ort.export",
}

__getattr__ = lazy_names(__name__, _LAZY)
