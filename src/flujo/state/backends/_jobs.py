"""What is handed to a store's thread, and how the answer comes back to the event loop that asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from flujo.state.backends._ledger import Save


class Job:
    """One piece of work for a store, on one run (`run_id`) or on all.

    `future` only wakes its waiter; the answer lies in the job.
    """

    __slots__ = (
        "error", "finished", "future", "loop", "owed", "peek", "reads", "result", "run_id", "save", "undo", "work",
    )  # fmt: skip

    def __init__(
        self,
        work: Callable[[Any], Any],
        *,
        run_id: str | None = None,
        reads: bool = False,
        peek: Callable[[Any], Any] | None = None,
        undo: Callable[[], None] | None = None,
        save: Save | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        owed: bool = False,
    ) -> None:
        self.work, self.reads, self.peek, self.undo, self.save = work, reads, peek, undo, save
        self.run_id, self.loop = run_id, loop
        self.owed = owed  # nobody waits for it, but it has to be done
        self.future: asyncio.Future[None] | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.finished = False

    @property
    def is_row(self) -> bool:
        """Whether the job appends one row to the log and does nothing else."""
        save = self.save
        return save is not None and save.row.status == "running" and save.snapshot is None and save.guard is None

    def succeed(self, result: Any) -> None:
        """Note the answer."""
        self.result, self.error, self.finished = result, None, True

    def fail(self, error: BaseException) -> None:
        """Note that there is none."""
        if not self.finished:
            self.error, self.finished = error, True

    def answer(self) -> Any:
        """Return the result or raise the error."""
        if self.error is not None:
            raise self.error
        return self.result

    def pages(self) -> int:
        """Return about how many pages of WAL the job wrote."""
        if self.save is None:
            return 3
        row = self.save.row
        size = len(row.output or b"") + len(row.delta or b"") + len(row.records or b"") + len(self.save.snapshot or b"")
        return 1 + size // 4096


async def settle(job: Job) -> Any:
    """Wait for the job's outcome, however often the caller is cancelled; raise the cancellation afterwards."""
    loop = asyncio.get_running_loop()
    cancelled: asyncio.CancelledError | None = None
    while not job.finished:
        job.future = loop.create_future()
        if job.finished:  # it was delivered before there was a future to wake
            break
        try:
            await job.future
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return job.answer()


def cancel_again() -> None:
    """Have the task that was just cancelled, and has caught that, be cancelled where it waits next."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()  # it counts once, as before
        task.cancel()


def deliver(batch: list[Job]) -> None:
    """Wake the waiters, with one call into each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in batch:
        if job.loop is not None:
            loops.setdefault(job.loop, []).append(job)
    for loop, jobs in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_wake, jobs)


def _wake(jobs: list[Job]) -> None:
    for job in jobs:
        if job.future is not None and not job.future.done():
            job.future.set_result(None)
