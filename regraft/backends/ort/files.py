"""Sessions of ONNX files as anybody would open them, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from regraft.errors import BackendError


@dataclass(frozen=True)
class OpenFile:
    """A session with ONNX Runtime's own optimisations.

    Fields:
        session: its workers sleep between calls, as those of our own sessions do.
        inputs: names in order.
    """

    session: onnxruntime.InferenceSession
    inputs: tuple[str, ...]

    def bind(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """A call on these inputs, given in order; what ONNX Runtime raises in it is a ``BackendError``.

        Raises:
            BackendError: an input is of a type that numpy lacks, such as bf16.
        """
        try:
            feed = {name: t.detach().numpy() for name, t in zip(self.inputs, tensors, strict=True)}
        except TypeError as error:
            raise BackendError(f"the file cannot be given its inputs: {error}", backend="ort") from error

        def call() -> list[Tensor]:
            try:
                return [torch.as_tensor(result) for result in self.session.run(None, feed)]
            except Exception as error:
                raise BackendError(f"ONNX Runtime failed: {error}", backend="ort") from error

        return call


def open_file(path: Path, threads: int | None) -> OpenFile:
    """The file at ``path``, ready to run.

    Raises:
        BackendError: ONNX Runtime refuses it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what it logs as an error it raises as well
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BackendError(f"ONNX Runtime refuses the file: {error}", backend="ort") from error
    return OpenFile(session, tuple(port.name for port in session.get_inputs()))
