"""Taking back what a run has done: which undos there are, in which order, and what the state is after each.

A run that failed for good, or is cancelled, has `phase` "undoing" while its undos run, in the reverse order of the
commits (a saga, as Garcia-Molina and Salem describe it, 1987), and "undone" when all are done; it is then final.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from flujo.engine.core import State, failed, following, without_waits
from flujo.engine.frames import UNDO, Path
from flujo.pipeline import Pipeline, Step
from flujo.state.models import StepRecord


@dataclass(frozen=True, slots=True)
class Undo:
    """Perform `step` with the output of the step that it undoes."""

    step: Step[Any, Any]
    path: Path
    given: Any
    attempts: int  # failed ones, on record


def can_undo(pipeline: Pipeline[Any, Any]) -> bool:
    """Return whether any step of the pipeline, at any depth, has an undo."""
    return any(step.undo is not None or any(can_undo(body) for _, body in step.bodies) for step in pipeline.steps)


def undos(pipeline: Pipeline[Any, Any], records: Iterable[StepRecord], inherited: int = 0) -> list[Undo]:
    """Return what is still to be undone after these records, the first to be undone first.

    `inherited`: the first so many are those of the run that this one was forked from, which did them.
    """
    done: dict[Path, Undo] = {}
    for record in islice(records, inherited, None):
        if record.path[-1] == UNDO:
            before = done.get(record.path)
            if record.success:
                done.pop(record.path, None)
            elif before is not None:
                done[record.path] = Undo(before.step, before.path, before.given, record.attempts)
        elif record.success:
            step = step_at(pipeline, record.path)
            if step is not None and step.undo is not None:
                path = (*record.path, UNDO)
                done[path] = Undo(step.undo, path, record.output, 0)
    return list(reversed(done.values()))


def step_at(pipeline: Pipeline[Any, Any], path: Path) -> Step[Any, Any] | None:
    """Return the step with that path, or None where the path is one of flujo's own records, or leads nowhere."""
    parts = list(reversed(path))
    while True:
        name = parts.pop()
        step = next((found for found in pipeline.steps if found.name == name), None)
        if step is None or not parts:
            return step
        key = "" if step.kind in ("map", "loop", "pipeline") else parts[-1]
        if step.kind != "pipeline":
            parts.pop()
        body = dict(step.bodies).get(key)
        if body is None or not parts:
            return None
        pipeline = body


def undoing(state: State, record: StepRecord | None, error: dict[str, Any] | None, then: str, now: datetime) -> State:
    """Return the state of a run whose undos are about to run; it will end as `then` ("failed", "cancelled")."""
    after = following(state, [record] if record is not None else [], now)
    after["status"], after["phase"], after["error"] = "running", "undoing", error
    after["waiting"] = without_waits(state["waiting"])
    # Kept twice: a save within an undo, and an undo that fails, put something else in the place of the error.
    after["position"] = {**(state["position"] or {}), "then": then, "reason": error}
    return after


def undid(state: State, record: StepRecord, context: dict[str, Any], now: datetime) -> State:
    """Return the state after one undo."""
    after = following(state, [record], now)
    after["pipeline_context"] = context
    after["status"], after["error"] = "running", after["position"]["reason"]
    return after


def undo_failed(state: State, record: StepRecord, error: dict[str, Any], now: datetime) -> State:
    """Return the state after an undo failed for good; the run goes on undoing when it is run again."""
    return failed(state, record, error, now)


def undone(state: State, now: datetime) -> State:
    """Return the state of a run all of whose undos are done: its end."""
    after = following(state, [], now)
    position = state["position"]
    after["status"], after["phase"], after["error"] = position["then"], "undone", position["reason"]
    after["position"] = None
    after["waiting"] = without_waits(state["waiting"])
    return after
