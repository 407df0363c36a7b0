"""The state machine. A run's state is the dict that is saved, so that nothing has to be translated between the two.

`decide` says what is next; `completed` and `failed` say what the state is after it came about. Each returns a new
state and leaves the old one as it was.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
        "input": given, "error": None, "total_steps": len(code.pipeline.steps), "phase": None,
        "waiting": None, "mail_seen": 0, "due_at": None, "deadline": None,
    }  # fmt: skip


def decide(pipeline: Pipeline[Any, Any], state: State) -> Do | None:
    """Return what is to be done next, or None where the run has come to its end."""
    index = state["current_step_index"]
    if index >= len(pipeline.steps) or state["status"] != "running":
        return None
    step = pipeline.steps[index]
    return Do(step, (step.name,), state["last_step_output"] if index else state["input"])


def completed(state: State, record: StepRecord, context: dict[str, Any], total: int, now: datetime) -> State:
    """Return the state after the top-level step of `record`, which changed the context to `context`."""
    index = state["current_step_index"] + 1
    after = following(state, [record], now)
    after["current_step_index"] = index
    after["pipeline_context"] = context
    after["last_step_output"] = record.output
    after["position"] = after["error"] = None
    after["status"] = "completed" if index == total else "running"
    if after["waiting"] is not None:
        after["waiting"] = without_waits(after["waiting"]) if index == total else without_limits(after["waiting"])
    return after


def progressed(state: State, records: Sequence[StepRecord], context: dict[str, Any], now: datetime) -> State:
    """Return the state after sub-steps of the step that is under way."""
    after = following(state, records, now)
    after["pipeline_context"] = context
    after["status"] = "running"
    after["position"] = {**(state["position"] or {}), "from": first_record(state)}
    if records:  # it goes on
        after["position"].pop("crashes", None)
    after["error"] = None
    return after


def finished(state: State, now: datetime) -> State:
    """Return the state of a run all of whose steps are saved, and now its end."""
    after = following(state, [], now)
    after["status"] = "completed"
    after["position"] = after["error"] = None
    after["waiting"] = without_waits(after["waiting"])
    return after


def failed(
    state: State, record: StepRecord | None, error: dict[str, Any], now: datetime, void: Collection[int] = ()
) -> State:
    """Return the state after the run failed with `error`: where it was, with the failure on record.

    `void` are the places (counted from the step's first record) of the failures that are tried again by a retry.
    """
    after = following(state, [record] if record is not None else [], now)
    after["status"] = "failed"
    position = dict(state["position"] or {})
    position.pop("crashes", None)
    if record is not None:
        position["attempts"] = record.attempts
    if void:
        position["from"] = first_record(state)
        position["void"] = _ranges(void_records(state) | set(void))
    after["position"] = position or None
    after["error"] = error
    after["waiting"] = without_limits(state["waiting"])
    return after


def following(state: State, records: Sequence[StepRecord], now: datetime) -> State:
    """Return a copy of the state as the next save, with these records."""
    after = state.copy()
    after["history_offset"] = state["history_offset"] + len(state["step_history"])
    after["updated_at"] = now
    after["rev"] = state["rev"] + 1
    after["step_history"] = list(records)
    after["due_at"] = None
    return after


def without_waits(waiting: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what a run that has nothing more to do keeps of what it waited for."""
    over = ("waits", "kept", "held", "limits")
    return {name: value for name, value in (waiting or {}).items() if name not in over} or None


def without_limits(waiting: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what is waited for by a run whose step under way has ended, with its time limits."""
    return {name: value for name, value in (waiting or {}).items() if name != "limits"} or None


def records_so_far(state: State) -> int:
    """Return how many step records the run has."""
    count: int = state["history_offset"] + len(state["step_history"])
    return count


def first_record(state: State) -> int:
    """Return how many step records there were before the step that is under way."""
    position = state["position"]
    return int(position["from"]) if isinstance(position, dict) and "from" in position else records_so_far(state)


def void_records(state: State) -> set[int]:
    """Return the places of the failures that are to be tried again, counted from the step's first record."""
    position = state["position"]
    ranges = position.get("void", ()) if isinstance(position, dict) else ()
    return {place for first, last in ranges for place in range(first, last + 1)}


def _ranges(places: Collection[int]) -> list[list[int]]:
    ranges: list[list[int]] = []
    for place in sorted(places):
        if ranges and ranges[-1][1] == place - 1:
            ranges[-1][1] = place
        else:
            ranges.append([place, place])
    return ranges


def crashes_before(state: State) -> int:
    """Return how often the process of the step under way had died before the last save, which made no headway."""
    position = state.get("position")
    return int(position.get("crashes", 0)) if isinstance(position, dict) else 0


def attempts_before(state: State) -> int:
    """Return how many failed attempts of the next step are on record."""
    position = state.get("position")
    return int(position["attempts"]) if isinstance(position, dict) and "attempts" in position else 0
