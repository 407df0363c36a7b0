"""Time limits of what goes on inside of a step."""

from __future__ import annotations

import asyncio


class Timer:
    """A time limit that runs; whoever comes to an end before cancels it."""

    __slots__ = ("_handle", "_running")

    def __init__(self, running: set[Timer], handle: asyncio.TimerHandle) -> None:
        self._running, self._handle = running, handle
        running.add(self)

    def cancel(self) -> None:
        """Stop it."""
        self._handle.cancel()
        self._running.discard(self)
