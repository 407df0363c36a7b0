"""Attempts: how many, how far apart, how they are numbered, and what ends them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flujo import Flujo, NonRetryableError, Retry, current_step, step
from flujo.execution.events import Event, StepRetrying, StepStarted
from flujo.testing import VirtualClock
from tests.support.backends import Place


class Flaky:
    """A step that fails so many times, and notes what it knows of itself at each attempt."""

    def __init__(self, failures: int, error: Any = OSError("down"), **options: Any) -> None:  # noqa: B008
        self.failures = failures
        self.attempts: list[int] = []
        self.keys: list[str] = []

        @step(name="flaky", **options)
        async def flaky(n: int) -> int:
            self.attempts.append(current_step().attempt)
            self.keys.append(current_step().idempotency_key)
            if self.failures:
                self.failures -= 1
                raise error
            return n

        self.step = flaky


def test_a_number_of_retries() -> None:
    """So many further attempts are made, a tenth of a second apart and then twice as long each time."""
    flaky, clock = Flaky(3, retries=3), VirtualClock()
    result = Flujo(flaky.step, clock=clock).run(1)
    assert (result.output, flaky.attempts, clock.slept) == (1, [1, 2, 3, 4], [0.1, 0.2, 0.4])
    assert result.step_history[0].attempts == 4


def test_no_more_than_that() -> None:
    """When they are used up the run has failed with the last attempt's error."""
    flaky, clock = Flaky(9, retries=2), VirtualClock()
    result = Flujo(flaky.step, clock=clock).run(1)
    assert (result.status, str(result.error), flaky.attempts) == ("failed", "down", [1, 2, 3])
    assert result.step_history[0].attempts == 3


def test_delays() -> None:
    """A list of seconds says how long to wait before each retry."""
    flaky, clock = Flaky(9, retries=[1, 60, 3600]), VirtualClock()
    begun = clock.now()
    assert Flujo(flaky.step, clock=clock).run(1, wait=True).status == "failed"
    assert clock.slept == [1, 60, 3600]
    assert (clock.now() - begun).total_seconds() == clock.perf() == 3661


def test_a_predicate() -> None:
    """It says which errors are worth another attempt."""

    @step(retries=Retry(max_retries=5, when=lambda error: "again" in str(error)))
    async def fussy(texts: list[str]) -> str:
        raise OSError(texts[current_step().attempt - 1])

    clock = VirtualClock()
    result = Flujo(fussy, clock=clock).run(["again", "again", "never"])
    assert (str(result.error), len(clock.slept)) == ("never", 2)


def test_a_predicate_that_raises() -> None:
    """The step fails with its own error, which carries the predicate's as a note."""
    flaky = Flaky(9, retries=Retry(max_retries=5, when=lambda error: 1 / 0 > 1))
    result = Flujo(flaky.step, clock=VirtualClock()).run(1)
    assert isinstance(result.error, OSError) and "ZeroDivisionError" in result.error.__notes__[0]
    assert flaky.attempts == [1]


def test_jitter() -> None:
    """It takes a random part off each delay."""
    flaky, clock = Flaky(9, retries=Retry(max_retries=20, delay=4, factor=1, jitter=0.5)), VirtualClock()
    Flujo(flaky.step, clock=clock).run(1)
    assert all(2 <= seconds <= 4 for seconds in clock.slept)
    assert len(set(clock.slept)) > 1


def test_a_non_retryable_error() -> None:
    """It ends the retrying at once, whatever the step's options say."""
    flaky, clock = Flaky(9, error=NonRetryableError("no such account"), retries=5), VirtualClock()
    result = Flujo(flaky.step, clock=clock).run(1)
    assert isinstance(result.error, NonRetryableError)
    assert (flaky.attempts, clock.slept) == ([1], [])


def test_attempts_count_over_failures_and_resumes(place: Place) -> None:
    """The number goes on where the last run left it, the key stays, and every run has all of its retries."""
    flaky = Flaky(7, retries=2)

    @step
    async def before(n: int) -> int:
        return n

    def run() -> Any:
        return Flujo(before >> flaky.step, state_backend=place.open(), clock=VirtualClock()).run(1, run_id="r")

    assert [run().status, run().status, run().status] == ["failed", "failed", "completed"]
    assert flaky.attempts == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(set(flaky.keys)) == 1
    assert [s.attempts for s in run().step_history] == [1, 8]
    assert place.load()["position"] is None


def test_attempts_of_the_next_step_begin_at_one(place: Place) -> None:
    """Failures are counted for each step of its own; keys differ by run and by step."""
    first, second = Flaky(1), Flaky(1)

    def run(run_id: str = "r") -> Any:
        pipeline = first.step.named("first") >> second.step.named("second")
        return Flujo(pipeline, state_backend=place.open()).run(1, run_id=run_id)

    assert [run().status, run().status, run().status] == ["failed", "failed", "completed"]
    assert first.attempts == [1, 2] and second.attempts == [1, 2]
    run("other")
    assert len({*first.keys, *second.keys}) == 4


def test_the_key_is_the_same_in_every_version_of_flujo() -> None:
    """uuid5 of run_id, path and generation: a provider has stored it, so it must never change."""
    flaky = Flaky(0)
    Flujo(flaky.step).run(1, run_id="order-7")
    assert flaky.keys == ["00bf1fcb-cbab-5ec5-858f-975c8815e142"]


def test_an_interrupted_retry_is_not_a_failure(place: Place) -> None:
    """Cancelled while it waits for the next attempt, the run stays `running` and begins the step anew."""
    flaky = Flaky(1, retries=[5])
    events: list[Event] = []

    async def main() -> None:
        runner = Flujo(flaky.step, state_backend=place.open(), hooks=[events.append])
        task = asyncio.create_task(runner.run_async(1, run_id="r"))
        while not any(isinstance(event, StepRetrying) for event in events):  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await runner.run_async(1, run_id="r")).output == 1

    asyncio.run(main())
    assert flaky.attempts == [1, 1]


def test_events_of_retries() -> None:
    """Each attempt is announced, and each retry with its error and delay."""
    events: list[Event] = []
    Flujo(Flaky(2, retries=[1, 2]).step, clock=VirtualClock(), hooks=[events.append]).run(1)
    assert [event.attempt for event in events if isinstance(event, StepStarted)] == [1, 2, 3]
    retrying = [event for event in events if isinstance(event, StepRetrying)]
    assert [(event.attempt, event.delay_s, str(event.error)) for event in retrying] == [(1, 1, "down"), (2, 2, "down")]


def test_what_the_step_awaited_was_cancelled(place: Place) -> None:
    """A CancelledError that is none of the run's own is a failure like any other, not an interruption."""
    cancel = True

    @step
    async def awaiting(n: int) -> int:
        future = asyncio.get_running_loop().create_future()
        if cancel:
            future.cancel()
            await future
        return n

    def run() -> Any:
        return Flujo(awaiting, state_backend=place.open()).run(1, run_id="r")

    result = run()
    assert result.status == "failed" and isinstance(result.error, asyncio.CancelledError)
    assert place.load()["error"]["type"].endswith("CancelledError")
    cancel = False
    assert run().output == 1


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("error", [StopIteration("x"), StopAsyncIteration("x"), TimeoutError("x")])
def test_errors_that_mean_something_to_python(place: Place, plain: bool, error: BaseException) -> None:
    """Raised by a step they are failures of that step, and the text of each is kept."""

    def work(n: int) -> int:
        raise error

    async def work_async(n: int) -> int:
        raise error

    made = step(name="work")(work if plain else work_async)
    result = Flujo(made, state_backend=place.open()).run(1, run_id="r")
    assert result.status == "failed"
    assert result.error is not None
    assert place.load()["status"] == "failed"
