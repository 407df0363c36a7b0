"""Time as a parameter: everything that needs a clock is given one."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Clock(Protocol):
    """What flujo asks of a clock."""

    def now(self) -> datetime:
        """Return the time of day, aware, in UTC."""

    def perf(self) -> float:
        """Return seconds on a scale that never goes back; only differences mean something."""

    async def sleep(self, seconds: float) -> None:
        """Return after that many seconds."""


class SystemClock:
    """The machine's own clock."""

    __slots__ = ()

    def now(self) -> datetime:
        """Return the time of day, aware, in UTC."""
        return datetime.now(UTC)

    perf = staticmethod(time.perf_counter)
    sleep = staticmethod(asyncio.sleep)


def micros(moment: datetime) -> int:
    """Return whole microseconds since 1970; a naive datetime is read as UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // _MICROSECOND


def moment(us: int) -> datetime:
    """Return the aware UTC datetime of `us` microseconds since 1970."""
    return EPOCH + timedelta(microseconds=us)
