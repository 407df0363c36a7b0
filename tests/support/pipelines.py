"""Pipelines that note what was executed, and states put there by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flujo import Pipeline, Step, step
from flujo.state.backends.base import NewRun

T0 = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def adding(name: str, calls: list[str]) -> Step[list[Any], list[Any]]:
    """Return a step that adds its name to the list it is given, in a list of its own."""

    @step(name=name)
    async def add(items: list[Any]) -> list[Any]:
        calls.append(name)
        return [*items, name]

    return add


def abc(calls: list[str]) -> Pipeline[list[Any], list[Any]]:
    """Return the pipeline a >> b >> c."""
    return (adding("a", calls) >> adding("b", calls) >> adding("c", calls)).named("abc")


def by_hand(**changes: Any) -> dict[str, Any]:
    """Return the ten fields of a state of `abc` whose first step is saved, with changes."""
    state = {
        "run_id": "r",
        "pipeline_id": "abc",
        "pipeline_name": "abc",
        "pipeline_version": "1.0.0",
        "current_step_index": 1,
        "pipeline_context": {},
        "last_step_output": ["a"],
        "status": "running",
        "created_at": T0,
        "updated_at": T0,
    }
    return state | changes


def new_run(name: str = "abc", given: Any = None, **changes: Any) -> NewRun:
    """Return what a claim says of a run that does not exist yet."""
    facts: dict[str, Any] = {
        "pipeline_id": name,
        "pipeline_name": name,
        "pipeline_version": "1.0.0",
        "total_steps": 3,
        "fingerprint": "[]",
        "input": given,
        "created_at": T0,
    }
    return NewRun(**facts | changes)
