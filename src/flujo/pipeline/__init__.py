"""What is declared: steps, the pipelines made of them, and the names and versions they are found by."""

from __future__ import annotations

from flujo.pipeline.composites import MAX_DEPTH
from flujo.pipeline.control import ItemError
from flujo.pipeline.graph import difference, fingerprint, structure
from flujo.pipeline.merge import MISSING, Merge, MergeFunction
from flujo.pipeline.pipeline import Pipeline, Step, shares_context
from flujo.pipeline.registry import LATEST, PipelineRegistry, Registered
from flujo.pipeline.retry import NO_RETRY, Retry
from flujo.pipeline.step import StepDecorator, step

__all__ = [
    "LATEST",
    "MAX_DEPTH",
    "MISSING",
    "NO_RETRY",
    "ItemError",
    "Merge",
    "MergeFunction",
    "Pipeline",
    "PipelineRegistry",
    "Registered",
    "Retry",
    "Step",
    "StepDecorator",
    "difference",
    "fingerprint",
    "shares_context",
    "step",
    "structure",
]
