"""What setting a run right makes of its state: an edit, and what a fork has of another run."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flujo.engine.core import State, first_record, following, records_so_far, void_records

KEEP: Any = object()  # as it is


def inherited(state: State) -> int:
    """Return how many of the run's first records are those of the run that it was forked from."""
    return int(state.get("inherited") or 0)


def generation(state: State) -> int:
    """Return how often what the step under way takes was changed: a part of its idempotency key."""
    position = state["position"]
    return int(position.get("generation", 0)) if isinstance(position, dict) else 0


def is_inside(state: State) -> bool:
    """Return whether something that was done inside of the step under way is saved, and counts."""
    return records_so_far(state) - first_record(state) > len(void_records(state))


def edited(state: State, message: int, now: datetime, *, context: Any = KEEP, output: Any = KEEP) -> State:
    """Return the state after an edit, which message number `message` is the record of.

    The step that comes next takes what was changed, so it is another call of it: its generation goes up. Its `attempts`
    stay, and so does what the run waits for. The status and `due_at` are the caller's to set.
    """
    after = following(state, [], now)
    after["position"] = {**(state["position"] or {}), "generation": generation(state) + 1}
    after["edits"] = [*(state.get("edits") or ()), message]
    if context is not KEEP:
        after["pipeline_context"] = context
    if output is not KEEP:
        after["last_step_output"] = output
    return after
