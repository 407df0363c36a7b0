"""What is kept of a run, and where."""

from __future__ import annotations

from flujo.state.backends.base import StateBackend
from flujo.state.backends.file import FileBackend
from flujo.state.backends.memory import InMemoryBackend
from flujo.state.backends.sqlite import SQLiteBackend
from flujo.state.codec import Codec, register_type
from flujo.state.models import StepRecord, WorkflowState
from flujo.state.uri import open_backend

__all__ = [
    "Codec",
    "FileBackend",
    "InMemoryBackend",
    "SQLiteBackend",
    "StateBackend",
    "StepRecord",
    "WorkflowState",
    "open_backend",
    "register_type",
]
