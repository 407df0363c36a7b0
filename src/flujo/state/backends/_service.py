"""The thread that does a store's writing: one a process and store, shared by every backend object on it.

Whatever waits at the same moment, from any run, thread or event loop, is handed to the writer as one batch (group
commit). `Flujo.run`, whose loop has nothing else to do, writes on its own thread when nobody else is writing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from flujo.errors import BackendClosedError, SaveError, StoreBusyError, UnreadMailError
from flujo.state.backends import _ledger
from flujo.state.backends._jobs import Job, cancel_again, deliver, settle
from flujo.state.backends._ledger import Held, Save

T = TypeVar("T")
_BATCH = 512
_BEAT_S = 10.0  # a third of the lease
_LOOK_S = 0.25  # between looks for what other processes have posted
_OWED_S = 1.0
_FREEZE_S = 5.0


class Writer(Protocol):
    """What does the work, always called by one thread at a time."""

    joined: int | None  # this process's owner number, once others can see it

    def process(self, batch: list[Job]) -> None:
        """Finish every job of the batch."""

    def inline(self, job: Job) -> bool:
        """Do the job here and now if that needs no waiting; return whether it was done."""

    def housekeeping(self) -> bool:
        """Return whether there is something to do that no job waits for."""

    def keep_house(self) -> None:
        """Do it."""

    def news(self, held: Mapping[str, Held]) -> dict[str, int]:
        """Return which of these runs may have mail that is newer than `Held.newest`, and its number (0: unknown)."""

    def shut(self) -> None:
        """Close what is open."""

    def forsake(self) -> None:
        """In a forked child: close what was inherited, without touching what is the parent's."""


class Service:
    """See the module. `place` is the real path of the store; `options` are what every backend on it must agree on."""

    def __init__(self, place: str, options: tuple[Any, ...], writer: Writer, patience: float) -> None:
        self.place = place
        self.options = options
        self.pid = os.getpid()
        self.held: dict[str, Held] = {}
        self.users = 0
        self.closed = False
        self._writer = writer
        self._patience = patience  # s that closing waits for what is being written
        self._lock = threading.Lock()  # around every use of the writer
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._owed: list[Job] = []  # what nobody waits for and could not be done yet
        self._thread: threading.Thread | None = None
        self._gate = threading.Lock()  # nothing is queued after the end
        self._frozen = False
        self._behind = 0  # jobs that nobody waits for, but that nothing may overtake
        self._looking = False  # whether the thread looks for mail; it ends that when nobody asks for it any more
        self._look_at = 0.0  # when the thread does so next, monotonic
        self.look_s: float | None = None  # between looks, where it is not the usual time
        self._beat_at = time.monotonic() + _BEAT_S
        self.ended = threading.Event()

    async def read(self, run_id: str | None, work: Callable[[Any], T]) -> T:
        """Run `work` on a consistent view of the run, or of the store."""
        answer: T = await self._done(Job(work, run_id=run_id, reads=True, loop=asyncio.get_running_loop()))
        return answer

    async def write(
        self,
        run_id: str | None,
        work: Callable[[Any], T],
        *,
        peek: Callable[[Any], T | None] | None = None,
        undo: Callable[[], None] | None = None,
        inline: bool = False,
    ) -> T:
        """Run `work` in a transaction, unless `peek` has the answer. See `_log.Store.write`."""
        job = Job(work, run_id=run_id, peek=peek, undo=undo, loop=asyncio.get_running_loop())
        answer: T = job.answer() if inline and self._inline(job) else await self._done(job)
        return answer

    async def append(self, save: Save) -> None:
        """Write a prepared save, together with others that wait at the same time."""
        job = Job(
            lambda tx: _ledger.write(tx, save), run_id=save.held.run_id, save=save, loop=asyncio.get_running_loop()
        )
        if save.held.inline and self._inline(job):
            job.answer()
            return
        try:
            await self._done(job)
        except asyncio.CancelledError:
            try:
                job.answer()  # an error here is worse than being cancelled
            except UnreadMailError:  # but after this one the caller goes on, and is to be cancelled where it waits next
                cancel_again()
                raise
            raise

    def soon(self, run_id: str | None, work: Callable[[Any], object]) -> None:
        """Run `work` in a transaction some time, however long the store is busy; nobody waits for it."""
        with contextlib.suppress(BackendClosedError):
            self._put(Job(work, run_id=run_id, owed=True))

    def look(self, run_id: str) -> None:
        """Have the thread look for mail, from now on for as long as anybody watches a run that this process holds."""
        if not self._looking:
            self._looking = True
            with contextlib.suppress(BackendClosedError):  # the thread may be asleep until the next beat
                self._put(Job(lambda tx: None, run_id=run_id, reads=True))

    def close(self) -> None:
        """Finish what waits, close the file, end the thread. Blocks for as long as that takes."""
        with self._gate:
            already, self.closed = self.closed, True
            thread = self._thread
            if thread is not None and not already:
                self._jobs.put(None)
        if thread is None:
            with self._lock:
                self._writer.shut()
            self.ended.set()
        elif thread is not threading.current_thread():
            thread.join(timeout=self._patience)

    def _inline(self, job: Job) -> bool:
        if self.closed or self._behind or not self._lock.acquire(blocking=False):
            return False
        try:
            done = self._writer.inline(job)
        finally:
            self._lock.release()
        if self._writer.housekeeping():
            self._wake()
        return done

    def _wake(self) -> None:
        """Let the thread look whether there is something to do."""
        with contextlib.suppress(BackendClosedError):
            self._put(Job(lambda tx: None))

    async def _done(self, job: Job) -> Any:
        self._put(job)
        return await settle(job)

    def _put(self, job: Job) -> None:
        with self._gate:
            if self.closed:
                raise BackendClosedError(
                    f"The backend on {self.place} is closed.", hint="Open it again.", path=self.place
                )
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="flujo-store", daemon=True)
                self._thread.start()
            self._behind += job.owed
            self._jobs.put(job)

    def _serve(self) -> None:
        more = True
        while more:
            batch, more = self._waiting()
            batch += self._beat()
            try:
                with self._lock:
                    if batch:
                        self._writer.process(batch)
            except BaseException as error:
                for job in batch:
                    job.fail(error)
            deliver(batch)
            self._owed = [
                Job(job.work, run_id=job.run_id, owed=True)
                for job in batch
                if job.owed and isinstance(job.error, (StoreBusyError, SaveError))
            ]
            with self._gate:
                self._behind -= sum(job.owed for job in batch) - len(self._owed)
            if self._writer.housekeeping():
                with self._lock:
                    self._writer.keep_house()
            if self._looking and time.monotonic() >= self._look_at:
                self._look()
        with self._lock:
            self._writer.shut()
        self.ended.set()

    def _waiting(self) -> tuple[list[Job], bool]:
        """Return what waits, which may be nothing, and whether there will be more."""
        batch = self._owed
        try:
            job = self._jobs.get(timeout=self._pause())
        except queue.Empty:
            return batch, True
        with contextlib.suppress(queue.Empty):
            while job is not None:
                batch.append(job)
                if len(batch) >= _BATCH or job.owed:  # reads go first in a batch, and are to find this done
                    return batch, True
                job = self._jobs.get_nowait()
            return batch, False
        return batch, True

    def _pause(self) -> float | None:
        """Return how long the thread may sleep where nothing comes, in seconds."""
        now = time.monotonic()
        until = [self._beat_at - now] if self._writer.joined is not None else []
        until += [_OWED_S] if self._owed else []
        until += [self._look_at - now] if self._looking else []
        return max(0.0, min(until)) if until else None

    def _beat(self) -> list[Job]:
        """Return what shows others that this process lives, where that is due."""
        now = time.monotonic()
        if self._writer.joined is None or now < self._beat_at:
            return []
        self._beat_at = now + _BEAT_S
        return [Job(lambda tx: tx.beat())] if self.held else []

    def _look(self) -> None:
        """Ring the owners whose runs may have new mail."""
        self._look_at = time.monotonic() + (self.look_s or _LOOK_S)
        self._looking = False  # before the list is made: who comes onto it afterwards wakes this thread again
        watched = {run_id: held for run_id, held in list(self.held.items()) if held.wake is not None}
        self._looking = self._looking or bool(watched)
        found: dict[str, int] = {}
        with self._lock, contextlib.suppress(Exception):  # what is wrong is found out by whoever waits for an answer
            found = self._writer.news(watched)
            for held in watched.values():
                held.fresh = False
        for run_id, seq in found.items():
            watched[run_id].ring(seq)

    # Process forks: none happens in the middle of a transaction, and the child keeps nothing of the parent's.

    def before_fork(self) -> None:
        """Wait until the connection is idle, and keep it so."""
        self._frozen = self._lock.acquire(timeout=_FREEZE_S)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._frozen:
            self._lock.release()

    def after_fork_in_child(self) -> bool:
        """Close what was inherited; the child opens everything anew."""
        self.closed = True
        if self._frozen:
            self._writer.forsake()
        return self._frozen
