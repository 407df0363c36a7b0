"""What is declared: steps, the pipelines made of them, and the names and versions they are found by."""

from __future__ import annotations

from flujo.pipeline.graph import difference, fingerprint, structure
from flujo.pipeline.pipeline import Pipeline, Step
from flujo.pipeline.registry import LATEST, PipelineRegistry, Registered
from flujo.pipeline.retry import NO_RETRY, Retry
from flujo.pipeline.step import StepDecorator, step

__all__ = [
    "LATEST",
    "NO_RETRY",
    "Pipeline",
    "PipelineRegistry",
    "Registered",
    "Retry",
    "Step",
    "StepDecorator",
    "difference",
    "fingerprint",
    "step",
    "structure",
]
