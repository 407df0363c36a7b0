"""The virtual clock that flujo ships for tests."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pytest

from flujo._clock import Clock, SystemClock
from flujo.testing import VirtualClock


def test_it_stands_still() -> None:
    """Time passes by sleeping alone, and then exactly as much."""
    clock: Clock = VirtualClock()
    begun = clock.now()
    assert begun.tzinfo is UTC
    assert clock.now() == begun and clock.perf() == 0
    asyncio.run(clock.sleep(86_400.5))
    assert clock.now() == begun + timedelta(days=1, seconds=0.5)
    assert clock.perf() == 86_400.5


@pytest.mark.parametrize(
    "start", [datetime(2030, 5, 6), datetime(2030, 5, 6, tzinfo=UTC), datetime.fromisoformat("2030-05-06T02:00+02:00")]
)
def test_it_starts_where_one_says(start: datetime) -> None:
    """A naive time is UTC."""
    clock = VirtualClock(start)
    assert clock.now() == datetime(2030, 5, 6, tzinfo=UTC) and clock.now().tzinfo is UTC
    assert "2030-05-06" in repr(clock)


@pytest.mark.parametrize("seconds", [0, -1, -0.5])
def test_no_time(seconds: float) -> None:
    """A sleep of nothing, or less, passes no time, but lets others run."""
    clock = VirtualClock()
    ran: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().call_soon(ran.append, "other")
        await clock.sleep(seconds)

    asyncio.run(main())
    assert (clock.perf(), ran) == (0, ["other"])


def test_who_is_due_first_wakes_first() -> None:
    """Sleepers of the same moment wake in the order of their times, each at its own; equal ones as they came."""
    clock = VirtualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.perf()))

    async def main() -> None:
        await asyncio.gather(*(sleeper(name, seconds) for name, seconds in (("a", 5), ("b", 1), ("c", 3), ("d", 1))))

    asyncio.run(main())
    assert woken == [("b", 1), ("d", 1), ("c", 3), ("a", 5)]
    assert clock.slept == [5, 1, 3, 1]


def test_a_cancelled_sleeper_holds_up_nobody() -> None:
    """Its time does not pass."""
    clock = VirtualClock()

    async def main() -> None:
        early = asyncio.create_task(clock.sleep(1))
        late = asyncio.create_task(clock.sleep(10))
        await asyncio.sleep(0)
        early.cancel()
        await late
        assert early.cancelled()

    asyncio.run(main())
    assert clock.perf() == 10


def test_sleepers_of_several_threads() -> None:
    """One clock serves several event loops."""
    clock = VirtualClock()
    threads = [threading.Thread(target=lambda: asyncio.run(clock.sleep(1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(clock.slept) == 8
    assert 1 <= clock.perf() <= 8


def test_the_system_clock() -> None:
    """It is aware, in UTC, and its seconds never go back."""
    clock: Clock = SystemClock()
    assert clock.now().tzinfo is UTC
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=60)
    first = clock.perf()
    asyncio.run(clock.sleep(0))
    assert clock.perf() >= first
