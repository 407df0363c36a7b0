"""What is declared: steps, the pipelines made of them, and the names and versions they are found by."""

from __future__ import annotations

from flujo.pipeline.answers import check_answer_value
from flujo.pipeline.composites import MAX_DEPTH
from flujo.pipeline.control import UNSET, WAITS, AskPerson, AwaitSignal, ItemError, Sleep
from flujo.pipeline.declared import shares_context
from flujo.pipeline.graph import (
    Comparison,
    StepChange,
    compare,
    difference,
    entries,
    fingerprint,
    kind_and_name,
    structure,
)
from flujo.pipeline.merge import MISSING, Merge, MergeFunction
from flujo.pipeline.migrations import MigratingState, Migration
from flujo.pipeline.pipeline import Pipeline, Step
from flujo.pipeline.reconciled import Reconciled
from flujo.pipeline.registry import LATEST, PipelineRegistry, Registered
from flujo.pipeline.retry import NO_RETRY, Retry
from flujo.pipeline.step import StepDecorator, step

__all__ = [
    "LATEST",
    "MAX_DEPTH",
    "MISSING",
    "NO_RETRY",
    "UNSET",
    "WAITS",
    "AskPerson",
    "AwaitSignal",
    "Comparison",
    "ItemError",
    "Merge",
    "MergeFunction",
    "MigratingState",
    "Migration",
    "Pipeline",
    "PipelineRegistry",
    "Reconciled",
    "Registered",
    "Retry",
    "Sleep",
    "Step",
    "StepChange",
    "StepDecorator",
    "check_answer_value",
    "compare",
    "difference",
    "entries",
    "fingerprint",
    "kind_and_name",
    "shares_context",
    "step",
    "structure",
]
