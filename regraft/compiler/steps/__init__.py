"""Denoisers whose blocks need not run in every step."""

from __future__ import annotations

from regraft.compiler.steps.caching import Every, Feedback, Probe, StepCache, Steps, Taylor
from regraft.compiler.steps.model import CompiledSteps, StepErrors, StepReport, compile_steps

__all__ = [
    "CompiledSteps",
    "Every",
    "Feedback",
    "Probe",
    "StepCache",
    "StepErrors",
    "StepReport",
    "Steps",
    "Taylor",
    "compile_steps",
]
