"""Keeping torch's tracers quiet: what they have to say is in the exceptions they raise."""

# torch.export's modules are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

#: Loggers that report as errors what is raised as well, or advice that we give ourselves.
_LOGGERS = (
    "torch.export",
    "torch._export",
    "torch.fx.experimental.symbolic_shapes",
    "torch._subclasses.fake_tensor",
)


@contextmanager
def quiet_export(module: torch.nn.Module | None) -> Generator[None]:
    """Run ``torch.export`` on ``module`` without its logs, warnings about itself and printed graphs.

    The caller holds the lock of the tracers: loggers and warnings are the process's.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), _no_graphs_printed():
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
            # torch.export would undo the assignment and go on: the state would be lost in silence.
            warnings.filterwarnings("error", r"The tensor attribute", UserWarning)
            flat = [f"self.{path}" for path in flat_weights(module)]
            if flat:
                # While it traces, torch.export puts fake weights in place of the model's, and an LSTM keeps
                # its weights in a list too.
                several = rf"({'|'.join(map(re.escape, flat))})\[\d+\]"
                warnings.filterwarnings("ignore", rf"The tensor attributes? ({several}(, )?)+ w\w+ assigned")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _no_graphs_printed() -> Generator[None]:
    """Of a trace that fails, torch.export prints the graph so far; it has no setting for that."""
    tracer: Any = importlib.import_module("torch.export._trace")
    tracer.print = lambda *_args, **_options: None  # pyright: ignore[reportUnknownLambdaType]
    try:
        yield
    finally:
        del tracer.print


def flat_weights(module: torch.nn.Module | None) -> list[str]:
    """The paths of the lists of weights that torch's RNNs among the submodules keep."""
    modules = module.named_modules() if module is not None else ()
    rnns = [name for name, each in modules if isinstance(each, torch.nn.RNNBase)]
    return [f"{name}._flat_weights".removeprefix(".") for name in rnns]
