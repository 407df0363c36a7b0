"""The one connection of a process and store that transactions run on, and what to do when one fails.

Every method is called with the store's lock held, by one thread at a time. What fails because the server is away is
tried again for a while, once it is known that it has not happened, or where doing it twice is doing it once: a save is
recognised by its fence, number and checksum, and whoever claims twice has the later claim.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping

from flujo.errors import SaveError
from flujo.state.backends import _ledger
from flujo.state.backends._jobs import Job
from flujo.state.backends._ledger import Held, Save
from flujo.state.backends.postgres import schema as schemas
from flujo.state.backends.postgres.connection import (
    Connection,
    Dialing,
    commit_setting,
    connect,
    forsake_all,
    is_idle,
    is_lost,
    is_race,
    is_theirs,
    mapped,
)
from flujo.state.backends.postgres.pulse import Pulse
from flujo.state.backends.postgres.statements import statements
from flujo.state.backends.postgres.tx import PostgresTx

_FIRST_S = 5.0  # that a server which was never reached is waited for
_PAUSE_S = (0.02, 0.5)  # between attempts to reach it: at first, and at most
_RACES = 30
_BYTES = 32 << 20  # of payloads in one statement
Act = Callable[[list[Job]], None]


class _UnknownOutcomeError(Exception):
    """The connection was lost after COMMIT was sent. `xid` is the transaction, `since` when its server started."""

    def __init__(self, xid: str | None, since: object) -> None:
        super().__init__("the outcome of a commit is unknown")
        self.xid, self.since = xid, since


class Writer:
    """See the module. `patience` in seconds bounds the wait for a server that is away."""

    def __init__(self, dialing: Dialing, schema: str, patience: float, pulse: Pulse) -> None:
        self.joined: int | None = None  # this process's owner number, once others can see it
        self._dialing, self._schema, self._patience = dialing, schema, patience
        self._pulse = pulse
        self._place = f"{dialing.shown}, schema {schema}"
        self._sql = statements(schema)
        self._connection: Connection | None = None
        self._tx: PostgresTx | None = None
        self._view: PostgresTx | None = None
        self._since: object = None  # when the server started
        self._reached = False
        self._fences = itertools.count(1)

    def process(self, batch: list[Job]) -> None:
        """Finish every job of the batch: reads first, then rows in one statement, then the rest in one transaction."""
        until = time.monotonic() + (self._patience if self._reached else min(self._patience, _FIRST_S))
        self._tidy()
        self._finish([job for job in batch if job.reads or job.peek is not None], self._read, until)
        writes = [job for job in batch if not job.finished]
        for chunk in _chunks(job for job in writes if job.is_row):
            self._finish(chunk, self._append, until)
        for chunk in _chunks(job for job in writes if _is_end(job)):
            self._finish(chunk, self._end, until)
        self._finish([job for job in writes if not job.finished], self._transact, until)

    def _finish(self, jobs: list[Job], act: Act, until: float) -> None:
        """Do it for all; again while the server is away, and one by one where it fails otherwise."""
        pause, races = _PAUSE_S[0], 0
        while jobs:
            try:
                act(jobs)
                return
            except Exception as failure:
                error: BaseException = failure
                self._clean()
            if isinstance(error, _UnknownOutcomeError):
                error = self._find_out(jobs, error, until)
            jobs = [job for job in jobs if not job.finished]
            if is_lost(error) and time.monotonic() < until:
                self._drop()
                time.sleep(pause)
                pause = min(pause * 2, _PAUSE_S[1])
            elif is_race(error) and races < _RACES:
                races += 1
                time.sleep(random.uniform(0, 0.005) * races)  # two that met are not to meet again
            elif len(jobs) > 1 and not is_lost(error):
                for job in jobs:
                    self._finish([job], act, until)
                return
            else:
                for job in jobs:
                    job.error = None
                    job.fail(mapped(error, self._place))
                return

    def _read(self, jobs: list[Job]) -> None:
        """Run readings on one view of the store. A peek that has no answer leaves its job as it was."""
        self._opened()
        view = self._view
        assert view is not None
        with view.piped():
            view.begin()
            view.look_ahead([job.run_id for job in jobs if job.run_id is not None])
            for job in jobs:
                try:
                    answer = job.work(view) if job.reads else job.peek(view) if job.peek else None
                except Exception as error:
                    if is_theirs(error):
                        raise
                    job.fail(mapped(error, self._place))
                    continue
                if job.reads or answer is not None:
                    job.succeed(answer)
            view.end()

    def _append(self, jobs: list[Job]) -> None:
        self._appended(jobs, lambda tx, saves: tx.append_all(saves))

    def _end(self, jobs: list[Job]) -> None:
        self._appended(jobs, lambda tx, saves: tx.finish_all(saves))

    def _appended(self, jobs: list[Job], append: Callable[[PostgresTx, list[Save]], set[int]]) -> None:
        """Append rows by one statement, which is its own transaction. Each that is not appended is looked into."""
        tx = self._opened()
        saves = [job.save for job in jobs if job.save is not None]
        if tx.commit_setting is None:
            there = append(tx, saves)
        else:
            with tx.piped():
                tx.begin()
                there = append(tx, saves)
                tx.end()
        for job in jobs:
            if job.save is not None and job.save.row.seq in there:
                job.succeed(None)
        left = [job for job in jobs if not job.finished]
        if left:  # it is there already, or it is fenced
            self._transact(left)

    def _transact(self, jobs: list[Job]) -> None:
        """Run the jobs in one transaction."""
        tx = self._opened()
        sent, xid = False, None
        try:
            with tx.piped():
                tx.begin()
                if len(jobs) > 1:
                    ahead = [j.run_id for j in jobs if j.run_id is not None and j.save is None and not j.owed]
                    if ahead:
                        tx.look_ahead(ahead)
                for job in jobs:
                    self._work(job, tx)
                if any(_counts_once(job) for job in jobs):
                    xid = tx.xid()
                sent = True
                tx.end()
        except BaseException as error:
            if sent and is_lost(error):
                raise _UnknownOutcomeError(xid, self._since) from error
            _undo(jobs)
            raise
        for job in jobs:
            job.finished = True

    @staticmethod
    def _work(job: Job, tx: PostgresTx) -> None:
        job.error = None
        if job.save is not None and job.save.guard is not None:
            tx.lock(job.save.held.key)  # nobody is to post between the look into the mailbox and the save
        try:
            job.result = job.work(tx)
        except _ledger.REFUSALS as error:
            job.error = error

    def _find_out(self, jobs: list[Job], unknown: _UnknownOutcomeError, until: float) -> BaseException:
        """Ask the server what became of a transaction; return the error after which the jobs are to be done again.

        The server knows for as long as it has not been started anew: then a number may be another transaction's.
        """
        self._drop()
        once = any(_counts_once(job) for job in jobs)
        status = "aborted" if once and unknown.xid is None else None  # it has written nothing
        while once and unknown.xid is not None:
            with contextlib.suppress(Exception):
                tx = self._opened()
                status = tx.status_of(unknown.xid) if self._since == unknown.since else None
                if status != "in progress":
                    break
            if time.monotonic() > until:
                break
            self._clean()
            time.sleep(_PAUSE_S[0])
        if status == "committed":
            for job in jobs:
                job.finished = True
        else:
            _undo(jobs)
        for job in jobs:
            if not job.finished and _counts_once(job) and status != "aborted":
                job.error = None
                failed = SaveError(
                    f"The connection to {self._place} was lost in a commit, and what it held is not known to be saved.",
                    hint="See whether it is there; the run goes on from its last saved step.",
                    path=self._place,
                )
                failed.__cause__ = unknown.__cause__
                job.fail(failed)
        return unknown.__cause__ or unknown

    def inline(self, job: Job) -> bool:
        """Do the job here and now if that needs no waiting; return whether it was done."""
        if self._connection is None or self.joined is None:
            return False
        self._tidy()
        if self._connection is None:
            return False
        try:
            if job.peek is not None:
                self._read([job])
            if not job.finished:
                (self._append if job.is_row else self._end if _is_end(job) else self._transact)([job])
        except _UnknownOutcomeError:
            _undo([job])
            self._drop()
            return False  # what is done inline (claims, saves, releases) is done once when the thread does it again
        except Exception as error:
            self._clean()
            if is_lost(error) or is_race(error):
                return False
            job.error = None
            job.fail(mapped(error, self._place))
        except BaseException:
            self._drop()
            raise
        return True

    def housekeeping(self) -> bool:
        """Return whether there is something to do that no job waits for: never."""
        return False

    def keep_house(self) -> None:
        """Do nothing: the server keeps its own house."""

    def news(self, held: Mapping[str, Held]) -> dict[str, int]:
        """Return the runs that have new mail, with the number of the newest message."""
        self._pulse.listen(bool(held))
        if not held or self._connection is None:
            return {}
        self._tidy()
        try:
            found = self._opened().news([claim.key for claim in held.values()])
        except BaseException:
            self._clean()
            raise
        return {run_id: found[claim.key] for run_id, claim in held.items() if found.get(claim.key, 0) > claim.newest}

    def _opened(self) -> PostgresTx:
        if self._tx is not None and self._connection is not None and not self._connection.closed:
            return self._tx
        self._drop()
        connection = connect(self._dialing)
        try:
            schemas.bring(connection, self._schema, self._place)
            self._since = (connection.execute("SELECT pg_postmaster_start_time()").fetchone() or (None,))[0]
            setting = commit_setting(connection, self._dialing.durability) if self._dialing.pooled else None
        except BaseException:
            connection.close()
            raise
        self._connection, self._reached = connection, True
        self._view = PostgresTx(connection, self._sql)
        self._tx = PostgresTx(connection, self._sql, self._draw_fence)
        self._view.me = self._tx.me = self.joined
        self._tx.commit_setting = setting.encode() if setting is not None else None
        return self._tx

    def _draw_fence(self) -> int:
        if self.joined is None:
            self.joined = self._pulse.join()
            for tx in (self._tx, self._view):
                if tx is not None:
                    tx.me = self.joined
        return self.joined << 32 | next(self._fences)

    def _tidy(self) -> None:
        """End a transaction that was left open by an exception out of nowhere, such as a signal handler's."""
        if self._connection is not None and not is_idle(self._connection):
            self._clean()

    def _clean(self) -> None:
        """Have the connection in no transaction, or have none."""
        connection = self._connection
        if connection is None or is_idle(connection):
            return
        with contextlib.suppress(Exception):
            if not connection.closed:
                connection.execute(b"ROLLBACK")
        if not is_idle(connection):
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._tx = self._view = None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def shut(self) -> None:
        """Give the owner's number up and close the connections."""
        self._pulse.stop()
        self._drop()

    def forsake(self) -> None:
        """In a forked child: close what was inherited, without a word to the server."""
        forsake_all()
        self._connection = self._tx = self._view = None


def _is_end(job: Job) -> bool:
    """Return whether the job appends a run's last row, and does nothing else but to free it."""
    save = job.save
    return save is not None and save.row.status != "running" and save.snapshot is None and save.guard is None


def _counts_once(job: Job) -> bool:
    """Return whether doing the job twice may not be doing it once."""
    return job.save is None and job.peek is None and not job.owed and not job.reads


def _undo(jobs: Iterable[Job]) -> None:
    for job in jobs:
        if job.undo is not None:
            job.undo()


def _chunks(jobs: Iterable[Job]) -> list[list[Job]]:
    """Return the jobs in parts that one statement can hold."""
    chunks: list[list[Job]] = []
    size = _BYTES + 1
    for job in jobs:
        assert job.save is not None
        if size > _BYTES:
            chunks.append([])
            size = 0
        chunks[-1].append(job)
        size += 200 + sum(len(part) for part in job.save.row if isinstance(part, bytes))
    return chunks
