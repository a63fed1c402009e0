"""The compiled model: what ``regraft.compile`` and ``regraft.load`` return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from regraft.errors import RegraftError
from regraft.runtime import artefact
from regraft.runtime.entry import EntryPoint
from regraft.runtime.plan import Plan
from regraft.runtime.signature import Signature

Refresher = Callable[[Any], "CompiledModel"]


@dataclass(repr=False)
class CompiledModel:
    """A model ready to run.

    Call it as the original: it takes the same arguments and returns the same kind of result.

    Fields:
        signature: how it is called.
        plan: what a call does.
        report: what the compile did; ``report.to_dict()`` is JSON.
        ir: the final graph in text form.
    """

    signature: Signature
    plan: Plan
    report: Any
    ir: str
    training: bool = field(default=False, init=False)
    _refresher: Refresher | None = None
    _weights: Sequence[torch.Tensor] = ()
    """The model's tensors that a call reads or was compiled from."""
    _versions: list[int] = field(default_factory=list[int], init=False)
    _entry: EntryPoint = field(init=False)

    def __post_init__(self) -> None:
        self._weights = [w for w in self._weights if not w.is_inference()]
        self._versions = [w._version for w in self._weights]
        self._entry = EntryPoint(self.signature, self.plan)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model. Safe to call from several threads at once.

        Raises:
            ShapeError: an argument differs from what the model was compiled for.
            GradientError: an argument requires grad while grad mode is on.
            RegraftError: a weight of the original was written to since the compile.
        """
        if [w._version for w in self._weights] != self._versions:
            raise RegraftError(
                "a weight of the model was changed in place after the compile; call refresh(model)"
            )
        return self._entry.call(args, kwargs)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{t.name}: {t.dtype}{list(t.shape)}" for t in self.signature.tensors)
        steps = ", ".join(step.executable.backend for step in self.plan.steps)
        return f"<CompiledModel({inputs}) on {steps or 'nothing'}>"

    def refresh(self, model: Any) -> None:
        """Take over the weights that ``model`` has now, without capturing it again.

        Raises:
            RegraftError: this artefact was loaded from disk, or ``model`` has other parameters.
        """
        if self._refresher is None:
            raise RegraftError("a loaded artefact cannot be refreshed; compile the model again")
        fresh = self._refresher(model)
        self.plan, self._weights, self._versions = fresh.plan, fresh._weights, fresh._versions
        self._entry = fresh._entry

    def save(self, path: str | Path) -> None:
        """Write an artefact folder that ``regraft.load`` reads, whole or not at all.

        Raises:
            ArtefactError: ``path`` exists or cannot be written.
            BackendError: a part of the model cannot be saved.
        """
        artefact.save(
            artefact.Contents(self.signature, self.plan, self.report.to_dict(), self.ir), Path(path)
        )

    def eval(self) -> CompiledModel:
        """Itself: a compiled model is always in inference mode."""
        return self


@dataclass(frozen=True)
class SavedReport:
    """The report of a model that was loaded: what the compile wrote down."""

    content: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.content)


def load(path: str | Path, *, allow_native: bool = False) -> CompiledModel:
    """A compiled model from the folder that ``CompiledModel.save`` wrote.

    Args:
        path: the folder.
        allow_native: load machine code from the artefact. Only for artefacts you trust.

    Raises:
        ArtefactError: it is not an artefact, is damaged or of a newer format, or holds native code
            that was not allowed.
    """
    found = artefact.read(Path(path), allow_native=allow_native)
    return CompiledModel(found.signature, found.plan, SavedReport(found.report), found.ir)
