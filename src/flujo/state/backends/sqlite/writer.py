"""The one connection of a process and file: transactions on it, and what to do when one fails.

Every method is called with the store's lock held, by one thread at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from flujo.errors import SaveError, StoreUnavailableError
from flujo.state.backends import _ledger, _mailbox
from flujo.state.backends._jobs import Job
from flujo.state.backends._ledger import Held
from flujo.state.backends._sidecar import Sidecar, host_name, refuse_network
from flujo.state.backends.sqlite import connection as opening
from flujo.state.backends.sqlite.tx import SQLiteTx

CHECKPOINT_PAGES = 1000


class Writer:
    """See the module. `busy_timeout` in seconds bounds the wait for locks of other programs."""

    def __init__(self, path: str, connect: opening.Connect, durability: str, busy_timeout: float) -> None:
        self.path = path
        self.pages = 0  # written to the WAL since the last checkpoint, about
        self.joined: int | None = None  # this process's owner number, once it is committed
        self._connect, self._durability, self._busy_timeout = connect, durability, busy_timeout
        self._connection: sqlite3.Connection | None = None
        self._sidecar: Sidecar | None = None
        self._tx: SQLiteTx | None = None
        self._fences = itertools.count(1)
        self._looked = 0  # the newest message of the store when it was last looked for any

    def process(self, batch: list[Job]) -> None:
        """Finish every job of the batch: reads first, then all writes in one transaction."""
        self._tidy()
        try:
            tx = self._opened()
        except Exception as error:
            for job in batch:
                job.fail(opening.mapped(error, self.path))
            return
        writes = []
        for job in batch:
            try:
                if job.reads or job.peek is not None:
                    self._patiently(partial(self._read, tx, job))
            except Exception as error:
                job.fail(opening.mapped(error, self.path))
            if not job.finished:
                writes.append(job)
        if writes:
            self._transact(writes)

    def _read(self, tx: SQLiteTx, job: Job) -> None:
        assert self._connection is not None
        self._connection.execute("BEGIN")
        try:
            answer = job.work(tx) if job.reads else job.peek(tx) if job.peek else None
        finally:
            self._connection.execute("COMMIT")
        if job.reads or answer is not None:
            job.succeed(answer)

    def _transact(self, jobs: list[Job]) -> None:
        """Run the jobs in one transaction; where one of them fails, each in one of its own."""
        assert self._connection is not None and self._sidecar is not None and self._tx is not None
        alone: list[Job] = []
        try:
            self._sidecar.lock(wait=True)
            try:
                self._sidecar.check_in_place()
                alone = self._locked(jobs, self._connection.execute, self._tx)
            finally:
                self._sidecar.unlock()
        except Exception as error:
            for job in jobs:
                job.fail(opening.mapped(error, self.path))
            return
        for job in alone:
            job.error = None
            self._transact([job])

    def _locked(self, jobs: list[Job], execute: Callable[[str], object], tx: SQLiteTx) -> list[Job]:
        """Run the transaction under the write lock; return the jobs that have to be tried alone."""
        self._patiently(lambda: execute("BEGIN IMMEDIATE"))
        try:
            if tx.me is None:
                tx.join(host_name(), os.getpid())
            self._work(jobs, tx)
        except Exception as error:
            self._roll_back(jobs)
            if len(jobs) > 1:
                return jobs
            jobs[0].fail(opening.mapped(error, self.path))
            return []
        self._commit(jobs, execute, tx)
        return []

    @staticmethod
    def _work(jobs: list[Job], tx: SQLiteTx) -> None:
        """Do what the jobs are for; saves that are a row and nothing else in one statement."""
        rows = [job.save for job in jobs if job.save is not None and job.is_row]
        done = len(rows) > 1 and tx.append_all(rows)
        for job in jobs:
            if done and job.is_row:
                continue
            try:
                job.result = job.work(tx)
            except _ledger.REFUSALS as error:
                job.error = error

    def _commit(self, jobs: list[Job], execute: Callable[[str], object], tx: SQLiteTx) -> None:
        try:
            self._patiently(lambda: execute("COMMIT"))
        except Exception as error:
            self._find_out(jobs, error)
            return
        self.joined = tx.me
        self.pages += tx.dropped
        tx.dropped = 0
        for job in jobs:
            job.finished = True
            self.pages += job.pages()

    def _roll_back(self, jobs: list[Job]) -> None:
        assert self._connection is not None and self._tx is not None
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("ROLLBACK")
        if self._tx.me is not None and self._tx.me != self.joined and self._sidecar is not None:
            self._sidecar.drop(self._tx.me)
        self._tx.me = self.joined
        for job in jobs:
            if job.undo is not None:
                job.undo()

    def _find_out(self, jobs: list[Job], error: Exception) -> None:
        """A commit failed, so whether it happened is unknown: open the file anew and read."""
        self._roll_back(jobs)
        self._drop_connection()
        there = [False] * len(jobs)
        with contextlib.suppress(Exception):
            tx = self._opened()
            found = [job.save is not None and job.error is None and _ledger.written(tx, job.save) for job in jobs]
            if any(found) and self._flushed():
                there = found
        for job, happened in zip(jobs, there, strict=True):
            if happened:
                job.succeed(None)
            else:
                failed = SaveError(
                    f"A commit to {self.path} failed ({error}), and what it held is not known to be saved.",
                    hint="The run goes on from its last saved step.",
                    path=self.path,
                )
                failed.__cause__ = error
                job.fail(failed)

    def _flushed(self) -> bool:
        """Write what the log holds into the database, synced: what a failed sync left in doubt is then durable."""
        assert self._connection is not None and self._sidecar is not None
        self._sidecar.lock(wait=True)
        busy, logged, moved = self._connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
        return not busy and bool(logged == moved)

    def _patiently(self, act: Callable[[], object]) -> None:
        """Do it again while another program holds the database locked, up to `busy_timeout` seconds."""
        until = time.monotonic() + self._busy_timeout
        pause = 0.001
        while True:
            try:
                act()
                return
            except sqlite3.OperationalError as error:
                if not opening.is_busy(error) or time.monotonic() > until:
                    raise
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)

    def inline(self, job: Job) -> bool:
        """Do the job here and now if that needs no waiting; return whether it was done."""
        if self._connection is None or self._sidecar is None or self._tx is None or self.joined is None:
            return False
        self._tidy()
        try:
            if job.peek is not None:
                try:
                    self._read(self._tx, job)
                except sqlite3.OperationalError as error:
                    if opening.is_busy(error):
                        return False
                    raise
                if job.finished:
                    return True
            if not self._sidecar.lock(wait=False):
                return False
            try:
                self._sidecar.check_in_place()
                return self._write_inline(job, self._connection.execute, self._tx)
            finally:
                self._tidy()
                self._sidecar.unlock()
        except Exception as error:
            job.fail(opening.mapped(error, self.path))
            return True

    def news(self, held: Mapping[str, Held]) -> dict[str, int]:
        """Return the runs that have new mail since the last look, with the number of the newest message.

        Reads without a transaction: what is committed while it does is found now, or at the next look.
        """
        if self._tx is None or not held:
            return {}
        self._tidy()
        fresh = [claim for claim in held.values() if claim.fresh]
        newest = self._tx.newest_of_all()
        found = self._tx.news(self._looked) if len(fresh) < len(held) and newest > self._looked else {}
        self._looked = newest
        found |= {claim.key: _mailbox.newest_of(self._tx, claim.key) for claim in fresh}
        return {run_id: found[claim.key] for run_id, claim in held.items() if found.get(claim.key, 0) > claim.newest}

    def _tidy(self) -> None:
        """End a transaction that was left open by an exception out of nowhere, such as a signal handler's."""
        if self._connection is not None and self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def _write_inline(self, job: Job, execute: Callable[[str], object], tx: SQLiteTx) -> bool:
        single = job.is_row
        try:
            if not single:
                execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        try:
            job.result = job.work(tx)
        except _ledger.REFUSALS as error:
            job.error = error
        except sqlite3.Error as error:
            if single and opening.is_busy(error):
                return False
            if single:  # the statement was its own commit
                self._find_out([job], error)
            else:
                self._roll_back([job])
                job.fail(opening.mapped(error, self.path))
            return True
        except BaseException:
            self._roll_back([job])
            raise
        if single:
            job.finished = True
            self.pages += job.pages()
        else:
            self._commit([job], execute, tx)
        return True

    def housekeeping(self) -> bool:
        """Return whether a checkpoint is due."""
        return self.pages > CHECKPOINT_PAGES

    def keep_house(self) -> None:
        """Move the WAL's pages into the database. Nothing that was acknowledged depends on it, so it may fail."""
        self.pages = 0
        if self._connection is None or self._sidecar is None:
            return
        self._sidecar.lock(wait=True)
        try:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            self._sidecar.unlock()

    def _opened(self) -> SQLiteTx:
        if self._tx is not None and self._connection is not None:
            return self._tx
        refuse_network(self.path)
        if self._sidecar is None:
            self._sidecar = Sidecar(self.path + "-flujo", self.path)
        self._sidecar.lock(wait=True)
        try:
            self._sidecar.check_not_emptied()
            opening.check_writable(self.path)
            opening.check_whole(self.path)
            connection = self._connect(self.path)
            try:
                self._patiently(lambda: opening.prepare(connection, self.path, self._durability))
                with contextlib.suppress(OSError):
                    if Path(self.path + "-wal").stat().st_size > CHECKPOINT_PAGES * 4096:
                        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                self._sidecar.note_guarded()
                self._sidecar.note_made()
            except BaseException:
                connection.close()
                raise
        finally:
            self._sidecar.unlock()
        self._connection = connection
        self._tx = SQLiteTx(connection, self._sidecar, self._draw_fence)
        self._tx.me = self.joined
        return self._tx

    def _draw_fence(self) -> int:
        if self._tx is None or self._tx.me is None:
            raise StoreUnavailableError(f"{self.path} knows no owner for this process.", path=self.path)
        return self._tx.me << 32 | next(self._fences)

    def _drop_connection(self) -> None:
        connection, self._connection, self._tx = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def shut(self) -> None:
        """Close the file and drop every lock."""
        if self._sidecar is None:
            return
        self._sidecar.lock(wait=True)  # closing the last connection is a checkpoint
        try:
            self._drop_connection()
        finally:
            self._sidecar.unlock()
        self._sidecar.close()
        self._sidecar = None

    def forsake(self) -> None:
        """In a forked child: close what was inherited; the parent holds its locks, so nothing of its is deleted."""
        self._drop_connection()
        if self._sidecar is not None:
            self._sidecar.close()
            self._sidecar = None
