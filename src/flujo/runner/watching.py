"""Notices, while a step is being done, that somebody has written to the run or that its deadline is there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import datetime
from typing import Any, Protocol

from flujo._clock import Clock
from flujo.engine import is_cancelled
from flujo.errors import StateError
from flujo.runner.commits import Commits
from flujo.runner.mailbox import Mailbox
from flujo.runner.performing import CLOCK_S, cancels

_log = logging.getLogger("flujo")


class Listener(Protocol):
    """A step in which several things go on, and that looks at the mailbox itself."""

    def news(self) -> None:
        """Something has come."""


class Watch:
    """One claimed run's. `listener` is told of messages; of a cancel and the deadline the step itself gets to know."""

    def __init__(self, commits: Commits, mailbox: Mailbox, clock: Clock) -> None:
        self.listener: Listener | None = None
        self._commits, self._mailbox, self._clock = commits, mailbox, clock
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None  # does a step, and may be interrupted
        self._before = 0  # how often that was cancelled when it began
        self._interrupted = False
        self._timer: asyncio.Handle | None = None
        self._looking: asyncio.Future[None] | None = None

    def begin(self, task: asyncio.Task[Any] | None, before: int, deadline: datetime | None) -> None:
        """The task, which was cancelled `before` times, is about to do a step: interrupt it when that is called for."""
        self._task, self._before, self._interrupted = task, before, False
        if deadline is not None:
            self._timer = self._loop.call_soon(self._arm, deadline)  # never from within the task itself

    def has_interrupted(self) -> bool:
        """Return whether the step was cancelled by this watch, and by nobody else."""
        return self._interrupted and cancels(self._task) == self._before + 1

    def end(self) -> None:
        """The step is done, or has given up."""
        task, self._task = self._task, None
        if self._timer is not None:
            self._timer.cancel()
        if self._interrupted and task is not None:
            task.uncancel()

    def _arm(self, deadline: datetime) -> None:
        """Interrupt at the deadline by the clock, which may be set meanwhile."""
        left = (deadline - self._clock.now()).total_seconds()
        if left <= 0:
            self._interrupt()
        else:
            self._timer = self._loop.call_later(min(left, CLOCK_S), self._arm, deadline)

    def _interrupt(self) -> None:
        if self._task is not None and not self._interrupted:
            self._interrupted = True
            self._task.cancel()

    def wake(self) -> None:
        """A message may have come: called by the store, from any of its threads."""
        self._mailbox.ring()  # now: what is stored before a step's save is obeyed before the next step begins
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        if self._task is not None and self._looking is None:
            self._looking = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        """Read what has come while a step is being done."""
        try:
            while self._mailbox.stale and self._task is not None:
                await self._mailbox.refresh()
        except StateError as error:  # the next look, or the next save, will tell
            _log.warning("run %s: its messages could not be read: %s", self._commits.state["run_id"], error)
        finally:
            self._looking = None
        if is_cancelled(self._commits.state) and self._commits.state["phase"] is None:
            self._interrupt()
        elif self.listener is not None:
            self.listener.news()

    def close(self) -> None:
        """Stop looking."""
        if self._looking is not None:
            self._looking.cancel()
