"""Time-outs of async and plain steps, and what becomes of an attempt that nobody waits for any more."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from flujo import Flujo, current_step, step
from flujo.errors import StepTimeoutError
from flujo.execution import attempt as attempting
from flujo.testing import VirtualClock
from tests.support.backends import Place

LIMIT = 0.02  # s of real time: a time-out is the event loop's


def test_an_async_step() -> None:
    """It is cancelled, may tidy up, and the run fails with a StepTimeoutError that names step, run and limit."""
    tidied: list[str] = []

    @step(timeout=LIMIT)
    async def slow(n: int) -> int:
        try:
            await asyncio.Event().wait()
        finally:
            tidied.append("yes")
        return n

    result = Flujo(slow).run(1, run_id="r")
    assert isinstance(result.error, StepTimeoutError)
    assert (result.error.step, result.error.run_id, result.error.timeout) == ("slow", "r", LIMIT)
    assert result.step_history[0].feedback is not None and "StepTimeoutError" in result.step_history[0].feedback
    assert tidied == ["yes"]


def test_a_step_that_is_quick_enough() -> None:
    """A limit changes nothing for it."""

    @step(timeout=60)
    async def quick(n: int) -> int:
        return n

    @step(timeout=60)
    def quick_plain(n: int) -> int:
        return n + 1

    assert Flujo(quick >> quick_plain).run(1).output == 2


def test_a_time_out_is_retried() -> None:
    """It is a failure of the attempt, and the next one has its whole time again."""

    @step(timeout=LIMIT, retries=2)
    async def slow(n: int) -> int:
        if current_step().attempt < 3:
            await asyncio.Event().wait()
        return current_step().attempt

    assert Flujo(slow, clock=VirtualClock()).run(1).output == 3


def test_a_timeout_error_of_its_own() -> None:
    """A TimeoutError that the step raised itself stays what it is."""

    @step(timeout=60)
    async def own(n: int) -> int:
        raise TimeoutError("the database was slow")

    @step(timeout=60)
    async def inner(n: int) -> int:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
        return n

    for made in (own, inner):
        error = Flujo(made).run(1).error
        assert isinstance(error, TimeoutError) and not isinstance(error, StepTimeoutError)


def test_a_plain_step_is_abandoned(place: Place) -> None:
    """Its thread goes on and is told; whatever it returns or raises later is nobody's."""
    entered, told = threading.Event(), threading.Event()

    @step(timeout=LIMIT)
    def slow(n: int) -> int:
        entered.set()
        me = current_step()
        while not me.cancelled:
            threading.Event().wait(0.005)
        told.set()
        return 99

    result = Flujo(slow, state_backend=place.open()).run(1, run_id="r")
    assert isinstance(result.error, StepTimeoutError)
    assert not entered.is_set() or told.wait(20)  # on a busy machine it may not even have begun
    assert (place.load()["status"], place.load()["last_step_output"]) == ("failed", None)


def test_the_next_attempt_waits_for_the_abandoned_one() -> None:
    """Two attempts of one plain step are never at work at the same time."""
    at_work = 0
    most = 0
    lock = threading.Lock()

    @step(timeout=LIMIT, retries=20)
    def slow(n: int) -> int:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        try:
            me = current_step()
            while me.attempt < 3 and not me.cancelled:
                threading.Event().wait(0.005)
            return me.attempt
        finally:
            with lock:
                at_work -= 1

    assert Flujo(slow, clock=VirtualClock()).run(1).output >= 3
    assert most == 1


def test_an_attempt_that_does_not_listen(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the grace the next attempt begins all the same, and the log says so."""
    monkeypatch.setattr(attempting, "GRACE_S", 0.01)
    go = threading.Event()

    @step(timeout=LIMIT, retries=20)
    def deaf(n: int) -> int:
        if current_step().attempt == 1:
            assert go.wait(20)
        return current_step().attempt

    with caplog.at_level(logging.WARNING, "flujo"):
        assert Flujo(deaf, clock=VirtualClock()).run(1, run_id="r").output >= 2
    go.set()
    messages = [record.getMessage() for record in caplog.records]
    assert "run r: step deaf: an abandoned attempt is still running" in messages


def test_cancelling_a_run_abandons_its_plain_step(place: Place) -> None:
    """The run is given back at once; the function is told and its result is nobody's."""
    entered, told = threading.Event(), threading.Event()

    @step
    def slow(n: int) -> int:
        entered.set()
        me = current_step()
        while not me.cancelled:
            threading.Event().wait(0.005)
        told.set()
        return n

    @step(name="slow")
    async def quick(n: int) -> int:
        return n + 1

    async def main() -> None:
        backend = place.open()
        task = asyncio.create_task(Flujo(slow, state_backend=backend).run_async(1, run_id="r"))
        await asyncio.to_thread(entered.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await Flujo(quick, state_backend=backend).run_async(1, run_id="r")).output == 2

    asyncio.run(main())
    assert told.wait(20)
    assert place.load()["last_step_output"] == 2


def test_cancelled_is_false_for_who_is_waited_for() -> None:
    """Also in an async step, which is cancelled by its exception instead."""

    @step
    def plain(n: int) -> bool:
        return current_step().cancelled

    @step
    async def aware(n: int) -> bool:
        return current_step().cancelled

    assert Flujo(plain).run(1).output is False
    assert Flujo(aware).run(1).output is False


def test_the_caller_cancels_at_the_moment_of_the_time_out() -> None:
    """The run's own cancellation wins over the step's time-out: it is not recorded as a failure."""
    place: Any = None

    @step(timeout=60)
    async def slow(n: int) -> int:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await asyncio.sleep(0)
        return n

    async def main() -> Any:
        runner = Flujo(slow)
        task = asyncio.create_task(runner.run_async(1, run_id="r"))
        with pytest.raises(asyncio.CancelledError):
            await task
        return await runner.backend.load_state("r")

    assert asyncio.run(main()) is place
