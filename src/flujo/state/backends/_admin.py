"""The questions that an operator asks of a SQL store, and the housekeeping; they sit on the ledger's listings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import Any

from flujo._clock import micros
from flujo.errors import StateError
from flujo.state.backends import _loading, _mailbox
from flujo.state.backends._log import LogBackend
from flujo.state.backends._rows import Tx
from flujo.state.backends.base import RunSummary, utc_now

_BATCH_RUNS, _BATCH_SAVES = 100, 5000
_OVER = ("completed", "failed", "cancelled")


class AdminQueries(LogBackend):
    """What `SQLiteBackend` offers to whoever operates it. All of it may be called while runs are going on."""

    async def list_workflows(
        self, status: str | None = None, pipeline_id: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[dict[str, Any]]:
        """Return runs as dicts, the most recently updated first, without their payloads.

        Keys: run_id, pipeline_id, pipeline_name, pipeline_version, status, current_step_index, total_steps,
        error_message, created_at, updated_at (aware datetimes), execution_time_ms (spent in steps), due_at (of a
        paused run, or None).
        """
        where = {name: value for name, value in (("status", status), ("pipeline_id", pipeline_id)) if value is not None}
        return _dicts(await self.list_runs(where, limit=limit, offset=offset))

    async def get_failed_workflows(self, hours_back: float = 24) -> list[dict[str, Any]]:
        """Return the runs that failed in the last `hours_back` hours, the newest first, at most 1,000."""
        since = utc_now() - timedelta(hours=hours_back)
        return _dicts(await self.list_runs({"status": "failed"}, limit=1000, since=since))

    async def get_workflow_stats(self) -> dict[str, Any]:
        """Return counts: total_workflows, status_counts, recent_workflows_24h, average_execution_time_ms.

        The average is over runs that came to an end or wait, of the time that they spent in steps.
        """
        day = micros(utc_now() - timedelta(hours=24))

        def work(tx: Tx) -> dict[str, Any]:
            counts = tx.count_runs({}, "status")
            over = {name: found for name, found in counts.items() if name != "running"}
            number = sum(count for count, _ in over.values())
            busy = sum(time for _, time in over.values())
            return {
                "total_workflows": sum(count for count, _ in counts.values()),
                "status_counts": {name: count for name, (count, _) in counts.items()},
                "recent_workflows_24h": tx.recent(day),
                "average_execution_time_ms": busy / number / 1000 if number else 0.0,
            }

        async with self._survey() as read:
            return await read(work)

    async def cleanup_old_workflows(self, days_old: float = 30) -> int:
        """Delete runs that ended (completed, failed, cancelled) over `days_old` days ago; return how many.

        Goes in small transactions, between which running work is saved. Paused and running runs are never deleted.
        """
        before = micros(utc_now() - timedelta(days=days_old))
        deleted = 0
        for status in _OVER:
            while batch := await self._store().write(None, lambda tx, status=status: _delete_some(tx, status, before)):  # type: ignore[misc]
                deleted += batch
        return deleted

    async def check_integrity(self) -> list[str]:
        """Verify every checksum of every run; return a line for each run that is damaged, so an empty list is good."""
        problems: list[str] = []
        last = 0
        async with self._survey() as read:
            while runs := await read(partial(_some_runs, last)):
                for key, run_id in runs:
                    last, rev = key, -1
                    try:
                        while rev:
                            rev = await read(partial(self._check, key, run_id, max(rev, 0)))
                    except StateError as error:
                        problems.append(str(error))
        return problems

    def _check(self, key: int, run_id: str, after: int, tx: Tx) -> int:
        """Check some saves of a run; return the last of them, or 0 where there are no more."""
        run = tx.find(run_id)
        if run is None or run.key != key:
            if (key, run_id) in tx.runs_after(key - 1, 1):  # else it was deleted meanwhile
                raise _loading.hidden(run_id)
            return 0
        if not after:
            _loading.load(tx, run, self.codec, strict=False)
            _mailbox.check_all(tx, run)
        return _loading.check_saves(tx, run, self.codec, after, _BATCH_RUNS)


def _some_runs(after: int, tx: Tx) -> list[tuple[int, str]]:
    return tx.runs_after(after, _BATCH_RUNS)


def _delete_some(tx: Tx, status: str, before: int) -> int:
    saves, count = 0, 0
    for key, _, rev in tx.old_runs(status, before, _BATCH_RUNS):
        if count and saves + rev > _BATCH_SAVES:
            break
        tx.drop_run(key)
        saves += rev
        count += 1
    return count


def _dicts(found: Iterable[RunSummary]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(summary) for summary in found]
