"""Sleeping: for some seconds or until a moment, through restarts, changes of the clock and daylight-saving time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from flujo import Flujo, Step, step
from flujo.errors import NonRetryableError, RunFailedError
from tests.support.backends import Place
from tests.support.nested_runs import Notes, paths
from tests.support.waiting_runs import YES, Clock, Held, ask, at_once, one_backend, runner

HOUR = 3600
ROME = ZoneInfo("Europe/Rome")
SPRING = datetime(2026, 3, 29, 1, tzinfo=UTC)  # in Rome it is two, and then it is three
AUTUMN = datetime(2026, 10, 25, 1, tzinfo=UTC)  # in Rome it is three, and then it is two


def napping(notes: Notes, nap: Step[Any, Any]) -> Any:
    return notes.step("before", lambda n: n + 1) >> nap >> notes.step("after", lambda n: n * 10)


@pytest.mark.parametrize("seconds", [0, 0.5, 5, timedelta(seconds=5)])
def test_a_short_sleep(place: Place, seconds: Any) -> None:
    """Up to five seconds are slept through in `run`; the output is the input."""
    notes, clock = Notes(), Clock()
    result = runner(place, napping(notes, Step.sleep("nap", seconds)), clock).run(1, run_id="r")
    assert (result.output, notes.calls) == (20, ["before", "after"])
    assert paths(result) == ["before", "nap", "after"]
    slept = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    assert sum(clock.slept) == clock.perf() == result.step_history[1].latency_s == slept


def test_a_long_sleep(place: Place) -> None:
    """A longer one is a timer in the store: the run is paused, holds no process, and goes on from its moment on."""
    notes, clock = Notes(), Clock()
    pipeline = napping(notes, Step.sleep("nap", 5.000001))
    result = runner(place, pipeline, clock).run(1, run_id="r")
    wakes = clock.now() + timedelta(seconds=5.000001)
    for found in (result, runner(place, pipeline, clock).run(run_id="r")):
        waiting = found.waiting_for
        assert waiting is not None and (waiting.kind, waiting.step, waiting.until) == ("sleep", "nap", wakes)
        assert (found.status, found.wakes_at) == ("paused", wakes)
        with pytest.raises(RunFailedError, match="is waiting"):
            _ = found.output
    assert clock.slept == [] and place.load()["due_at"] is not None
    before = place.contents()
    clock.set(wakes - timedelta(seconds=5, microseconds=1))
    assert runner(place, pipeline, clock).run(run_id="r").status == "paused"
    assert (clock.slept, place.contents(), notes.calls) == ([], before, ["before"])
    clock.set(wakes)
    assert runner(place, pipeline, clock).run(run_id="r").output == 20
    assert (clock.slept, notes.calls) == ([], ["before", "after"])


def test_the_rest_of_a_sleep_is_short(place: Place) -> None:
    """Who runs it within five seconds of its end waits for that."""
    clock = Clock()
    runner(place, Step.sleep("nap", HOUR), clock).run(1, run_id="r")
    clock.jump(HOUR - 2)
    assert runner(place, Step.sleep("nap", HOUR), clock).run(run_id="r").output == 1
    assert clock.slept == [2]


def test_waiting_for_it(place: Place) -> None:
    """With `wait` a `run` sleeps as long as it takes, also where it finds the run asleep."""
    notes, clock = Notes(), Clock()
    pipeline = Step.sleep("one", HOUR) >> notes.step("work") >> Step.sleep("two", 2 * HOUR)
    assert runner(place, pipeline, clock).run(1, run_id="r", wait=True).output == 1
    assert (clock.slept, notes.calls) == ([HOUR, 2 * HOUR], ["work"])
    runner(place, pipeline, clock).run(1, run_id="s")
    assert runner(place, pipeline, clock).run(run_id="s", wait=True).output == 1
    assert clock.perf() == 6 * HOUR


@pytest.mark.parametrize(
    ("begins", "when", "sleeps"),
    [
        (SPRING - timedelta(hours=2), datetime(2026, 3, 29, 3, 30, tzinfo=ROME), 2.5),
        (SPRING - timedelta(hours=2), datetime(2026, 3, 29, 1, 30, tzinfo=ROME), 1.5),
        (SPRING - timedelta(hours=13), datetime(2026, 3, 29, 13, 0, tzinfo=ROME), 23),  # from one to one
        (AUTUMN - timedelta(hours=2), datetime(2026, 10, 25, 2, 30, tzinfo=ROME), 1.5),
        (AUTUMN - timedelta(hours=2), datetime(2026, 10, 25, 2, 30, tzinfo=ROME, fold=1), 2.5),
        (AUTUMN - timedelta(hours=14), datetime(2026, 10, 25, 13, 0, tzinfo=ROME), 26 - 1),
    ],
)
@pytest.mark.parametrize("asked", [False, True])
def test_until_a_moment(place: Place, asked: bool, begins: datetime, when: datetime, sleeps: float) -> None:
    """The moment is that of its time zone, also where its clocks are changed in between; a function may say it."""
    clock = Clock(begins)
    moment: Any = (lambda given: when) if asked else when
    pipeline = Step.sleep_until("nap", moment)
    if sleeps == 23:
        assert begins.astimezone(ROME).hour == when.hour
    result = runner(place, pipeline, clock).run(1, run_id="r")
    assert result.wakes_at == begins + timedelta(hours=sleeps) and result.wakes_at == when.astimezone(UTC)
    clock.set(result.wakes_at - timedelta(seconds=6))
    assert runner(place, pipeline, clock).run(run_id="r").status == "paused"
    clock.set(result.wakes_at)
    assert runner(place, pipeline, clock).run(run_id="r").output == 1


def test_until_the_same_hour_tomorrow(place: Place) -> None:
    """What a function of the input works out by the clock on the wall is a day of 23 hours in spring."""
    clock = Clock(SPRING - timedelta(hours=12))

    def tomorrow(text: str) -> datetime:
        return datetime.fromisoformat(text).astimezone(ROME) + timedelta(days=1)

    result = runner(place, Step.sleep_until("nap", tomorrow), clock).run(clock.now().isoformat(), run_id="r")
    assert result.wakes_at is not None and result.wakes_at - clock.now() == timedelta(hours=23)


def test_until_a_moment_that_is_past(place: Place) -> None:
    """The run goes on at once."""
    clock = Clock()
    past = clock.now() - timedelta(days=1000)
    result = runner(place, napping(Notes(), Step.sleep_until("nap", lambda n: past)), clock).run(1, run_id="r")
    assert (result.output, sum(clock.slept), result.step_history[1].latency_s) == (20, 0, 0)


@pytest.mark.parametrize("told", [datetime(2027, 1, 1), None, "tomorrow", 5, KeyError("no")])
def test_a_moment_that_is_none(place: Place, told: Any) -> None:
    """Without a time zone it is none either: the step fails, and is asked again by the next run."""
    answers: list[Any] = [Clock().now() + timedelta(hours=1), told]

    def when(n: int) -> Any:
        answer = answers.pop()
        if isinstance(answer, Exception):
            raise answer
        return answer

    result = runner(place, Step.sleep_until("nap", when)).run(1, run_id="r")
    assert result.status == "failed" and paths(result, success=False) == ["nap"]
    assert isinstance(result.error, KeyError if isinstance(told, KeyError) else NonRetryableError)
    assert runner(place, Step.sleep_until("nap", when)).run(run_id="r").status == "paused"


@pytest.mark.parametrize("hours", [1, -1, 24 * 365, -24 * 365])
def test_the_clock_is_set(place: Place, hours: float) -> None:
    """The moment was fixed when the sleep began. Set forward, the timer is due; set back, it is due when the clock
    shows that moment again; either way it fires once."""
    notes, clock = Notes(), Clock()
    pipeline = napping(notes, Step.sleep("nap", HOUR))
    wakes = runner(place, pipeline, clock).run(1, run_id="r").wakes_at
    clock.jump(hours * HOUR)
    result = runner(place, pipeline, clock).run(run_id="r")
    if hours < 0:
        assert (result.status, result.wakes_at) == ("paused", wakes)
        clock.jump(-hours * HOUR)
        assert runner(place, pipeline, clock).run(run_id="r").status == "paused"
        clock.jump(HOUR)
        result = runner(place, pipeline, clock).run(run_id="r")
    assert result.output == 20 and result.step_history[1].latency_s >= HOUR
    clock.set(datetime(2020, 1, 1, tzinfo=UTC))  # and once more, after all
    assert runner(place, pipeline, clock).run(run_id="r").output == 20
    assert notes.calls == ["before", "after"]


def test_a_latency_is_never_less_than_none(place: Place) -> None:
    """Where the clock was set back before a wait began to when it ended, that took no time at all."""
    clock = Clock()
    runner(place, ask(), clock).run(1, run_id="r")
    clock.jump(-HOUR)
    assert runner(place, ask(), clock).resume("r", YES).step_history[0].latency_s == 0


class Meanwhile(Clock):
    """A clock on which something happens in the first sleep."""

    def __init__(self, what: Callable[[Clock], Any]) -> None:
        super().__init__()
        self._what: Callable[[Clock], Any] | None = what

    async def sleep(self, seconds: float) -> None:
        what, self._what = self._what, None
        await super().sleep(seconds)
        if what is not None:
            found = what(self)
            if asyncio.iscoroutine(found):
                await found


def test_the_clock_is_set_during_a_short_sleep(place: Place) -> None:
    """Back: the run is found asleep for as long as its clock says, and is given back paused. Forward: it goes on."""
    back = Meanwhile(lambda clock: clock.jump(-HOUR))
    result = runner(place, Step.sleep("nap", 3), back).run(1, run_id="r")
    assert (result.status, back.slept) == ("paused", [3])
    back.jump(HOUR)
    assert runner(place, Step.sleep("nap", 3), back).run(run_id="r").output == 1
    ahead = Meanwhile(lambda clock: clock.jump(HOUR))
    assert runner(place, Step.sleep("nap", 3), ahead).run(1, run_id="s").output == 1
    again = Meanwhile(lambda clock: clock.jump(-HOUR))
    assert runner(place, Step.sleep("nap", 3), again).run(1, run_id="t", wait=True).output == 1
    assert again.slept == [3, HOUR]


@pytest.mark.parametrize("then", ["run", "cancel", "pause"])
def test_somebody_else_has_the_run_meanwhile(place: Place, then: str) -> None:
    """While it sleeps in `run` a run belongs to nobody: what somebody else makes of it is what `run` gives back, and
    every step is done once."""
    one_backend(place)
    notes = Notes()
    pipeline = napping(notes, Step.sleep("nap", 3))

    async def other(clock: Clock) -> None:
        using = runner(place, pipeline, clock)
        if then == "run":
            assert (await using.run_async(run_id="r")).output == 20
        else:
            await getattr(using, f"{then}_async")("r", by="ann")

    clock = Meanwhile(other)
    result = at_once(runner(place, pipeline, clock).run_async(1, run_id="r"))  # type: ignore[arg-type]
    assert result.status == {"run": "completed", "cancel": "cancelled", "pause": "paused"}[then]
    assert notes.calls == (["before", "after"] if then == "run" else ["before"])
    if then == "pause":
        assert [waiting.kind for waiting in result.waiting] == ["pause", "sleep"] and result.wakes_at is None


def test_no_process_was_there(place: Place) -> None:
    """Timers that were due while nobody ran the run fire with the next run, each once; the one that follows another
    begins then, and not when the first was due."""
    notes, clock = Notes(), Clock()
    naps = {f"n{hours}": Step.sleep("nap", hours * HOUR) >> notes.step("after") for hours in (1, 2, 30)}
    pipeline = Step.parallel("fan", **naps) >> Step.sleep("last", HOUR)
    runner(place, pipeline, clock).run(1, run_id="r")
    clock.jump(10 * HOUR)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert [waiting.step for waiting in result.waiting] == ["fan.n30.nap"]
    assert sorted(notes.taken()) == ["fan.n1.after", "fan.n2.after"]
    clock.jump(100 * HOUR)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert result.wakes_at == clock.now() + timedelta(hours=1)
    assert notes.taken() == ["fan.n30.after"]
    clock.jump(HOUR)
    assert runner(place, pipeline, clock).run(run_id="r").output == {"n1": 1, "n2": 1, "n30": 1}
    assert notes.calls == []


def test_sleeps_at_the_same_time(place: Place) -> None:
    """Of several the first is waited for, then the next; a loop sleeps in each iteration."""
    clock = Clock()
    fan = Step.parallel("fan", a=Step.sleep("nap", 4), b=Step.sleep("nap", 3), c=Step.sleep("nap", 4))
    assert runner(place, fan, clock).run(1, run_id="r").output == {"a": 1, "b": 1, "c": 1}
    assert clock.slept == [3, 1]
    loop = Step.loop_until("again", Notes().step("add", lambda n: n + 1) >> Step.sleep("nap", 2), until=lambda n: n > 3)
    assert runner(place, loop, clock).run(1, run_id="s").output == 4
    assert clock.slept == [3, 1, 2, 2, 2]


def test_a_sleep_beside_a_question(place: Place) -> None:
    """Nobody waits in `run` for a short sleep where the run waits for a person, too, who may take days."""
    clock = Clock()
    fan = Step.parallel("fan", nap=Step.sleep("nap", 3), who=ask())
    result = runner(place, fan, clock).run(1, run_id="r", wait=True)
    assert (result.status, result.wakes_at, clock.slept) == ("paused", None, [])
    clock.jump(3)
    assert [waiting.step for waiting in runner(place, fan, clock).run(run_id="r").waiting] == ["fan.who.ask"]
    assert runner(place, fan, clock).resume("r", YES).output == {"nap": 1, "who": YES}


def test_a_sleep_beside_work(place: Place) -> None:
    """While another branch is under way the timer fires in the same process, and what follows goes on."""

    async def main() -> Any:
        notes = Notes()
        held = Held(notes)
        after = asyncio.Event()

        async def follow(n: int) -> int:
            after.set()
            return n

        nap = Step.sleep("nap", 0.02) >> notes.step("a") >> step(follow)
        fan = Step.parallel("fan", nap=nap, work=held.step)
        task = asyncio.ensure_future(Flujo(fan, state_backend=place.open()).run_async(1, run_id="r"))
        await after.wait()
        held.go.set()
        return (await task).output

    assert at_once(main()) == {"nap": 1, "work": 1}


def test_iterating_over_a_run_that_sleeps(place: Place) -> None:
    """`async for` goes through short sleeps, and ends with the paused result at a long one."""
    clock = Clock()

    async def main() -> list[Any]:
        pipeline = napping(Notes(), Step.sleep("nap", 3)) >> Step.sleep("long", HOUR)
        return [each async for each in runner(place, pipeline, clock).run_async(1, run_id="r")]

    *records, result = asyncio.run(main())
    assert [record.name for record in records] == ["before", "nap", "after"]
    assert (result.status, clock.slept) == ("paused", [3])
