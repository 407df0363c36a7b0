"""flujo: durable, resumable workflows for Python.

A pipeline of typed steps saves its state after every successful step. When the process dies, a run with the same
`run_id` goes on exactly where it was, in any process, and no finished step runs again.
"""

from __future__ import annotations

from flujo import errors
from flujo.engine.foresight import Plan
from flujo.engine.reasons import Why
from flujo.errors import FlujoError, NonRetryableError, RunFailedError
from flujo.execution.current import CurrentStep, current_step
from flujo.execution.once import once
from flujo.pipeline import (
    ItemError,
    Merge,
    MigratingState,
    Pipeline,
    PipelineRegistry,
    Reconciled,
    Retry,
    Step,
    step,
)  # fmt: skip
from flujo.runner.flujo import Flujo
from flujo.runner.foresight import Misfit, check, check_async
from flujo.runner.result import PipelineResult
from flujo.state import FileBackend, InMemoryBackend, SQLiteBackend, StateBackend, open_backend, register_type
from flujo.state.models import StepResult, WorkflowState

__version__ = "0.1.0"

__all__ = [
    "CurrentStep",
    "FileBackend",
    "Flujo",
    "FlujoError",
    "InMemoryBackend",
    "ItemError",
    "Merge",
    "MigratingState",
    "Misfit",
    "NonRetryableError",
    "Pipeline",
    "PipelineRegistry",
    "PipelineResult",
    "Plan",
    "Reconciled",
    "Retry",
    "RunFailedError",
    "SQLiteBackend",
    "StateBackend",
    "Step",
    "StepResult",
    "Why",
    "WorkflowState",
    "check",
    "check_async",
    "current_step",
    "errors",
    "once",
    "open_backend",
    "register_type",
    "step",
]
