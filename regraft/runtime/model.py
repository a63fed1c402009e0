"""The compiled model: what ``regraft.compile`` returns."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from regraft.errors import RegraftError
from regraft.runtime import artefact
from regraft.runtime.adapters import active_of, set_active
from regraft.runtime.effects import Effects
from regraft.runtime.entry import EntryPoint
from regraft.runtime.plan import Plan
from regraft.runtime.report import SavedReport
from regraft.runtime.signature import Signature
from regraft.runtime.standin import StandIn

Refresher = Callable[[Any], "CompiledModel"]

#: Without a step of the interpreter for each weight, of which there are hundreds in a small model's call.
_version_of = operator.attrgetter("_version")


class CompiledModel(StandIn):
    """A model ready to run.

    Call it as the original: it takes the same arguments and returns the same kind of result. It is an
    ``nn.Module``, so it can stand where the original stood; see ``StandIn`` for what it passes through.

    Fields:
        signature: how it is called.
        plan: what a call does.
        report: what the compile did; ``report.to_dict()`` is JSON.
        ir: the final graph in text form.
        effects: what a call changes; None when it changes nothing.
        adapter_names: the adapters that it was compiled with.
    """

    signature: Signature
    plan: Plan
    report: Any
    ir: str
    effects: Effects | None
    adapter_names: tuple[str, ...]

    def __init__(
        self,
        signature: Signature,
        plan: Plan,
        report: Any,
        ir: str,
        refresher: Refresher | None = None,
        weights: Sequence[Tensor] = (),
        original: Any = None,
        effects: Effects | None = None,
        adapter_names: tuple[str, ...] = (),
    ) -> None:
        """``weights`` are the tensors of ``original`` that a call reads or was compiled from."""
        super().__init__(original, signature.kinds)
        vars(self).update(
            signature=signature,
            plan=plan,
            report=report,
            ir=ir,
            effects=effects,
            adapter_names=adapter_names,
            _refresher=refresher,
            _weights=[w for w in weights if not w.is_inference()],
            _entry=EntryPoint(signature, plan, effects),
        )
        vars(self)["_versions"] = list(map(_version_of, self._weights))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``forward``. The machinery of ``nn.Module`` takes a microsecond, and is there for hooks alone."""
        if self._forward_hooks or self._forward_pre_hooks or _has_any_global_hook():
            return super().__call__(*args, **kwargs)
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model. Safe to call from several threads at once; those of a model with state take turns.

        Raises:
            ShapeError: an argument differs from what the model was compiled for.
            GradientError: an argument requires grad while grad mode is on.
            RegraftError: a weight of the original was written to since the compile, or the call runs under
                another autocast than the model was compiled under.
        """
        if list(map(_version_of, self._weights)) != self._versions:
            raise RegraftError(
                "a weight of the model was changed in place after the compile; call refresh(model)"
            )
        return self._entry.call(args, kwargs)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{t.name}: {t.dtype}{list(t.shape)}" for t in self.signature.tensors)
        steps = ", ".join(step.executable.backend for step in self.plan.steps)
        return f"<CompiledModel({inputs}) on {steps or 'nothing'}>"

    def refresh(self, model: Any) -> None:
        """Take over the weights that ``model`` has now, without capturing it again; its state too.

        Raises:
            RegraftError: this artefact was loaded from disk, or ``model`` has other parameters.
        """
        take_over(self, refreshed(self, model))

    def _refresh(self) -> None:
        self.refresh(self._original)

    @property
    def active_adapter(self) -> str | None:
        """The adapter that applies; None for the model as it is."""
        return active_of(self.adapter_names, self.effects)

    def set_adapter(self, name: str | None) -> None:
        """Let another adapter of ``adapter_names`` apply from the next call on; None for none.

        Nothing is compiled. Calls from other threads see one adapter or the other, whole.

        Raises:
            OptionError: there is no such adapter.
        """
        set_active(self.adapter_names, self.effects, name)

    def save(self, path: str | Path) -> None:
        """Write an artefact folder that ``regraft.load`` reads, whole or not at all.

        State is written as it is now; what is loaded goes on from there with a copy of its own.

        Raises:
            ArtefactError: ``path`` exists or cannot be written.
            BackendError: a part of the model cannot be saved.
        """
        artefact.save(contents_of(self), Path(path))


def refreshed(compiled: CompiledModel, model: Any) -> CompiledModel:
    """``compiled`` with the weights that ``model`` has now; see ``CompiledModel.refresh``."""
    if compiled._refresher is None:
        raise RegraftError("a loaded artefact cannot be refreshed; compile the model again")
    return compiled._refresher(model)


def take_over(compiled: CompiledModel, fresh: CompiledModel) -> None:
    """Make ``compiled`` what ``refreshed`` gave."""
    names = ("plan", "effects", "_weights", "_versions", "_entry", "_original")
    vars(compiled).update({name: vars(fresh)[name] for name in names})


def contents_of(compiled: CompiledModel) -> artefact.Contents:
    """What is saved of a compiled model."""
    return artefact.Contents(
        compiled.signature,
        compiled.plan,
        compiled.report.to_dict(),
        compiled.ir,
        compiled.effects,
        compiled.adapter_names,
    )


def model_of(found: artefact.Contents) -> CompiledModel:
    """The compiled model that was saved as ``found``."""
    return CompiledModel(
        found.signature,
        found.plan,
        SavedReport(found.report),
        found.ir,
        effects=found.effects,
        adapter_names=found.adapter_names,
    )
