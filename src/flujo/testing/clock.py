"""Virtual time, so that a test of retries that wait for hours is done at once."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from datetime import UTC, datetime, timedelta

from flujo.state.models import as_utc

START = datetime(2026, 1, 1, tzinfo=UTC)


class VirtualClock:
    """A clock that stands still until somebody sleeps on it.

    `now` and `perf` advance by `sleep` alone, which takes no real time: of all that sleep at the same moment the
    one that is due first wakes first, and the clock then shows its hour. One clock may serve several runners,
    event loops and threads. Give it to the runner:

    ```python
    from flujo import Flujo, step
    from flujo.testing import VirtualClock

    attempts = 0

    @step(retries=[60, 3600])
    async def fetch(url: str) -> str:
        global attempts
        attempts += 1
        if attempts < 3:
            raise ConnectionError("down")
        return "page"

    clock = VirtualClock()
    assert Flujo(fetch, clock=clock).run("https://example.org", wait=True).output == "page"
    assert clock.slept == [60, 3600]
    ```

    Arguments: `start` is the time that it shows first (a naive one is read as UTC), by default the beginning of 2026.
    Attributes: `slept`, the seconds of every sleep in the order in which they began.
    """

    def __init__(self, start: datetime = START) -> None:
        self._start = self._now = as_utc(start)
        self._numbers = itertools.count()
        self._waiting: list[tuple[datetime, int]] = []
        self._lock = threading.Lock()
        self.slept: list[float] = []

    def now(self) -> datetime:
        """Return the virtual time, aware, in UTC."""
        return self._now

    def perf(self) -> float:
        """Return the seconds that have passed on this clock."""
        return (self._now - self._start).total_seconds()

    async def sleep(self, seconds: float) -> None:
        """Let `seconds` pass on this clock; less than none is none. Others get to run meanwhile."""
        mine = (self._now + timedelta(seconds=max(0.0, seconds)), next(self._numbers))
        with self._lock:
            self.slept.append(seconds)
            heapq.heappush(self._waiting, mine)
        try:
            await asyncio.sleep(0)
            while self._waiting[0] is not mine:  # noqa: ASYNC110  # an event is one loop's, sleepers are of several
                await asyncio.sleep(0)
            self._now = max(self._now, mine[0])
        finally:
            with self._lock:
                self._waiting.remove(mine)
                heapq.heapify(self._waiting)

    def __repr__(self) -> str:
        return f"<VirtualClock {self._now:%Y-%m-%d %H:%M:%S}>"
