"""Going through every run of a store, with a report of how far one is: what `verify` and `gc` consist of.

A backend says nothing while it works; so what goes through a SQLite store does so as a backend of its own, which hands
on each run that it comes to.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from functools import partial
from typing import Any

from flujo._clock import micros
from flujo.cli.progress import Report
from flujo.errors import RunInProgressError, StateError
from flujo.state.backends._admin import _delete_some
from flujo.state.backends._log import LogBackend
from flujo.state.backends.base import Reading
from flujo.state.backends.sqlite import SQLiteBackend

_PAGE = 500
_AT_ONCE = 50


class _Counting(SQLiteBackend):
    """A SQLite store that says which run it checks."""

    report: Report
    runs = 0
    total: int | None = None

    def _check(self, key: int, run_id: str, after: int, tx: Any) -> int:
        if not after:
            self.runs += 1
            self.report(self.runs, self.total)
        return super()._check(key, run_id, after, tx)


class Verifier:
    """Verifies a store. `runs` is how many it has come to."""

    def __init__(self, backend: LogBackend, report: Report) -> None:
        self._backend, self._report = backend, report
        self.runs = 0

    async def problems(self) -> list[str]:
        """Return a line for everything that is damaged."""
        if not isinstance(self._backend, SQLiteBackend):
            return await self._one_by_one()
        counting = _Counting(self._backend.path)
        counting.report = self._report
        try:
            counting.total = sum((await self._backend.count_runs()).values())
            return await counting.check_integrity()
        finally:
            self.runs = counting.runs
            await counting.close()

    async def _one_by_one(self) -> list[str]:
        """Read every run whole, which verifies it: the way of stores that have no check of their own."""
        try:
            runs = await self._backend.list_runs(limit=1 << 30)
        except StateError as error:
            return [str(error)]
        problems = []
        for run in runs:
            self.runs += 1
            self._report(self.runs, len(runs))
            try:
                await self._backend.load_at(run.run_id, head=False)
                await self._backend.mail(run.run_id)
            except StateError as error:
                problems.append(str(error))
        return problems


class OldRuns:
    """Runs that ended before a moment."""

    def __init__(self, backend: LogBackend, before: datetime) -> None:
        self._backend, self._before = backend, before

    async def find(self, status: str, report: Report) -> list[str]:
        """Return their ids."""
        if isinstance(self._backend, SQLiteBackend):
            limit = 1 << 40
            found = await self._backend._store().read(None, lambda tx: tx.old_runs(status, micros(self._before), limit))
            return [run_id for _, run_id, _ in found]
        runs = await self._backend.list_runs({"status": status}, limit=1 << 30)
        return [run.run_id for run in runs if run.updated_at < self._before]

    async def delete(self, status: str, found: list[str], report: Report) -> int:
        """Delete them, in small transactions between which running work is saved; return how many are gone.

        In SQLite what is deleted is looked for anew in each transaction: a failed run may have been taken up meanwhile.
        """
        deleted = 0
        if isinstance(self._backend, SQLiteBackend):
            work = partial(_delete_some, status=status, before=micros(self._before))
            while batch := await self._backend._store().write(None, work):
                deleted += batch
                report(deleted, None)
            return deleted
        for start in range(0, len(found), _AT_ONCE):
            gone = await asyncio.gather(*[self._delete(run_id, status) for run_id in found[start : start + _AT_ONCE]])
            deleted += sum(gone)
            report(deleted, None)
        return deleted

    async def _delete(self, run_id: str, status: str) -> bool:
        assert isinstance(self._backend, Reading)
        state = await self._backend.load_at(run_id)
        if state is None or state["status"] != status:
            return False
        try:
            await self._backend.delete_state(run_id)
        except RunInProgressError:
            return False
        return True
