"""A run that is saved step by step without a runner: what a backend sees of one."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from flujo import SQLiteBackend, StateBackend, StepResult
from flujo.state.backends.base import Claim
from flujo.state.backends.sqlite import connection as opening
from flujo.state.models import StepRecord
from tests.support.pipelines import T0, by_hand, new_run

T = TypeVar("T")


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it to its end in a loop of its own."""
    return asyncio.run(coroutine)


def take(backend: StateBackend, run_id: str = "r", given: Any = None, **options: Any) -> Claim:
    """Claim a run of the pipeline `abc`."""
    return wait(backend.claim(run_id, new_run(given=given), now=T0, **options))


def saved(claim: Claim, rev: int, run_id: str = "r", **changes: Any) -> dict[str, Any]:
    """Return the state of save number `rev` by the owner of this claim: one more step has succeeded."""
    name = f"s{rev}"
    state = by_hand(
        run_id=run_id,
        current_step_index=rev,
        last_step_output={"rev": rev},
        updated_at=T0 + timedelta(seconds=rev),
        rev=rev,
        fence=claim.fence,
        step_history=[StepRecord(path=(name,), output={"rev": rev}, latency_s=0.5)],
        history_offset=rev - 1,
        fingerprint="[]",
        total_steps=3,
        position=None,
        error=None,
    )
    return state | changes


def sub_step(claim: Any, rev: int, records: list[StepResult], before: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the save of sub-steps that follows the save `before`: index, output and context are still those."""
    kept = {name: before[name] for name in ("current_step_index", "last_step_output", "pipeline_context")}
    offset = before["history_offset"] + len(before["step_history"])
    reserved = {"step_history": records, "history_offset": offset, "position": {"from": 1}}
    return saved(claim, rev) | kept | reserved | changes


def counting(file: Path, spent: list[int]) -> SQLiteBackend:
    """Return a backend on the file that counts the instructions of SQLite's virtual machine."""

    def connect(path: str) -> sqlite3.Connection:
        connection = opening.connect(path)

        def count() -> None:
            spent[0] += 1

        connection.set_progress_handler(count, 1)
        return connection

    return SQLiteBackend(file, durability="process", connect=connect)


def plain(state: dict[str, Any] | None) -> dict[str, Any]:
    """Return the parts of a loaded state that a test compares."""
    assert state is not None
    wanted = ("current_step_index", "pipeline_context", "last_step_output", "status", "rev", "created_at", "updated_at")
    return {name: state[name] for name in wanted}
