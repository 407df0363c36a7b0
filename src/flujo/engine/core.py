"""The state machine. A run's state is the dict that is saved, so that nothing has to be translated between the two.

`decide` says what is next; `completed` and `failed` say what the state is after it came about. Each returns a new
state and leaves the old one as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flujo.pipeline import Pipeline, Registered, Step
from flujo.state.models import StepRecord

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Do:
    """Perform this step with this input."""

    step: Step[Any, Any]
    path: tuple[str, ...]
    input: Any


def fresh(run_id: str, code: Registered, fingerprint: str, given: Any, now: datetime) -> State:
    """Return the state of a run before its first step; it is not saved as such."""
    return {
        "run_id": run_id, "pipeline_id": code.pipeline_id, "pipeline_name": code.name,
        "pipeline_version": code.version,
        "current_step_index": 0, "pipeline_context": {}, "last_step_output": None, "status": "running",
        "created_at": now, "updated_at": now,
        "rev": 0, "position": None, "step_history": [], "history_offset": 0, "fingerprint": fingerprint,
        "input": given, "error": None, "total_steps": len(code.pipeline.steps),
    }  # fmt: skip


def decide(pipeline: Pipeline[Any, Any], state: State) -> Do | None:
    """Return what is to be done next, or None where the run has come to its end."""
    index = state["current_step_index"]
    if index >= len(pipeline.steps) or state["status"] != "running":
        return None
    step = pipeline.steps[index]
    return Do(step, (step.name,), state["last_step_output"] if index else state["input"])


def completed(state: State, record: StepRecord, context: dict[str, Any], total: int, now: datetime) -> State:
    """Return the state after the step of `record`, which changed the context to `context`."""
    index = state["current_step_index"] + 1
    after = state.copy()
    after["history_offset"] = state["history_offset"] + len(state["step_history"])
    after["current_step_index"] = index
    after["pipeline_context"] = context
    after["last_step_output"] = record.output
    after["status"] = "completed" if index == total else "running"
    after["updated_at"] = now
    after["rev"] = state["rev"] + 1
    after["step_history"] = [record]
    after["position"] = after["error"] = None
    return after


def finished(state: State, now: datetime) -> State:
    """Return the state of a run all of whose steps are saved, and now its end."""
    after = state.copy()
    after["history_offset"] = state["history_offset"] + len(state["step_history"])
    after["status"] = "completed"
    after["updated_at"] = now
    after["rev"] = state["rev"] + 1
    after["step_history"] = []
    after["position"] = after["error"] = None
    return after


def failed(state: State, record: StepRecord | None, error: dict[str, Any], now: datetime) -> State:
    """Return the state after the run failed with `error`: where it was, with the failure on record."""
    after = state.copy()
    after["history_offset"] = state["history_offset"] + len(state["step_history"])
    after["status"] = "failed"
    after["updated_at"] = now
    after["rev"] = state["rev"] + 1
    after["step_history"] = [record] if record is not None else []
    after["position"] = {"attempts": record.attempts} if record is not None else state["position"]
    after["error"] = error
    return after


def attempts_before(state: State) -> int:
    """Return how many failed attempts of the next step are on record."""
    position = state.get("position")
    return int(position["attempts"]) if isinstance(position, dict) and "attempts" in position else 0
