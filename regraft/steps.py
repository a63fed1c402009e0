"""Denoisers whose blocks need not run in every step of a generation (docs/steps.md)."""

from __future__ import annotations

from regraft.compiler import steps

CompiledSteps = steps.CompiledSteps
Every = steps.Every
Feedback = steps.Feedback
Probe = steps.Probe
StepCache = steps.StepCache
StepErrors = steps.StepErrors
StepReport = steps.StepReport
Steps = steps.Steps
Taylor = steps.Taylor
compile_steps = steps.compile_steps

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
