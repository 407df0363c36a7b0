"""Time limits of what goes on inside of a step. They go on while the run is paused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flujo._clock import micros
from flujo.engine import Frame, Path, limit_at
from flujo.runner.commits import Commits


class Timer:
    """The time limit of what goes on at `path`, up to `until` (in us since 1970); whoever ends before cancels it."""

    __slots__ = ("_handle", "_running", "path", "until")

    def __init__(self, running: set[Timer], handle: asyncio.TimerHandle, path: Path, until: int) -> None:
        self._running, self._handle = running, handle
        self.path, self.until = path, until
        running.add(self)

    def cancel(self) -> None:
        """Stop it."""
        self._handle.cancel()
        self._running.discard(self)


def begin(frame: Frame, running: set[Timer], commits: Commits, expired: Callable[[Frame], None]) -> None:
    """Begin the frame's time limit, or go on with one that began before the run was paused."""
    now = micros(commits.clock.now())
    until = limit_at(commits.state, frame.path)
    left = frame.limit if until is None else max(0.0, (until - now) / 1e6)
    handle = asyncio.get_running_loop().call_later(left, expired, frame)
    frame.timer = Timer(running, handle, frame.path, now + round(left * 1e6))


def overdue(running: set[Timer], commits: Commits) -> bool:
    """Return whether one of them is about to run out."""
    now = micros(commits.clock.now())
    return any(timer.until <= now for timer in running)
