"""A run's deadline: passed while a step runs, between steps, or while the run waits; and another one afterwards."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime, timedelta
from typing import Any

import pytest

from flujo import Step, current_step, step
from flujo.errors import ConfigurationError, DeadlineExceededError, RecordedError
from tests.support.backends import Place
from tests.support.nested_runs import PATIENCE_S, Notes, paths
from tests.support.waiting_runs import YES, Clock, Ledger, ask, at_once, runner

SOON = timedelta(milliseconds=20)  # of real time: it is the event loop that stops what goes on
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize("wrong", [timedelta(0), -SOON, 5, "tomorrow", datetime(2027, 1, 1), True])
def test_no_deadline(place: Place, wrong: Any) -> None:
    """It is a time from now on, or a moment with a time zone; what is none is refused before anything is done."""
    notes = Notes()
    with pytest.raises(ConfigurationError, match="A deadline cannot be"):
        runner(place, notes.step("a")).run(1, run_id="r", deadline=wrong)
    assert notes.calls == [] and asyncio.run(place.open().load_state("r")) is None


def test_a_deadline_that_is_kept(place: Place) -> None:
    """It changes nothing."""
    clock = Clock()
    pipeline = Notes().step("a") >> Step.sleep("nap", 30) >> Notes().step("b")
    runner(place, pipeline, clock).run(1, run_id="r", deadline=MINUTE)
    clock.jump(30)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert result.output == 1 and paths(result) == ["a", "nap", "b"]


def test_a_moment_that_is_past(place: Place) -> None:
    """No step begins; the run has failed, and goes on when it is given a later one."""
    notes, clock = Notes(), Clock()
    pipeline = notes.step("a") >> notes.step("b")
    past = clock.now() - HOUR
    result = runner(place, pipeline, clock).run(1, run_id="r", deadline=past)
    assert result.status == "failed" and isinstance(result.error, DeadlineExceededError)
    assert result.error.data == {"run_id": "r", "deadline": past}
    assert "The deadline of run 'r' has passed (2025-12-31 23:00:00 UTC)" in str(result.error)
    assert notes.calls == [] and paths(result, success=False) == ["a"]
    assert place.load()["error"]["type"] == "flujo.errors.DeadlineExceededError"
    assert isinstance(runner(place, pipeline, clock).run(run_id="r").error, DeadlineExceededError)  # it has its own
    assert notes.calls == []
    result = runner(place, pipeline, clock).run(run_id="r", deadline=HOUR)
    assert (result.output, notes.calls) == (1, ["a", "b"])


def test_between_two_steps(place: Place) -> None:
    """The step that ends too late is saved; the next does not begin. When it is run again the first is not repeated."""
    notes, clock = Notes(), Clock()

    def late(n: int) -> int:
        clock.jump(60)
        return n + 1

    pipeline = notes.step("a", late) >> notes.step("b")
    result = runner(place, pipeline, clock).run(1, run_id="r", deadline=MINUTE)
    assert isinstance(result.error, DeadlineExceededError)
    assert (paths(result), paths(result, success=False), notes.taken()) == (["a"], ["b"], ["a"])
    assert runner(place, pipeline, clock).run(run_id="r", deadline=MINUTE).output == 2
    assert notes.calls == ["b"]


def test_the_last_step_ends_too_late(place: Place) -> None:
    """Then there is nothing left to do: the run has completed."""
    notes, clock = Notes(), Clock()
    pipeline = notes.step("a", lambda n: clock.jump(HOUR.total_seconds()))
    assert runner(place, pipeline, clock).run(1, run_id="r", deadline=MINUTE).status == "completed"


def test_an_async_step_is_cancelled(place: Place) -> None:
    """At once, with time to tidy up; undos run then. It was begun once, and is not tried again."""
    ledger, clock, told = Ledger(), Clock(), list[str]()

    @step(retries=3)
    async def slow(n: int) -> int:
        await ledger.call()
        clock.jump(1)
        try:
            await asyncio.Event().wait()
        finally:
            told.append("tidied up")
        return n

    pipeline = ledger.does("pay") >> slow
    deadline = clock.now() + SOON
    result = runner(place, pipeline, clock).run(1, run_id="r", deadline=SOON)
    assert isinstance(result.error, DeadlineExceededError) and result.error.deadline == deadline
    assert (result.status, result.phase, told) == ("failed", "undone", ["tidied up"])
    assert ledger.calls == ["pay", "slow", "pay>undo"]
    later = runner(place, pipeline, clock).run(run_id="r", deadline=HOUR)  # what was undone is final
    assert (later.status, ledger.calls) == ("failed", ["pay", "slow", "pay>undo"])
    assert isinstance(later.error, RecordedError) and "DeadlineExceededError" in str(later.error)


def test_a_plain_step_is_abandoned(place: Place) -> None:
    """It is told, and what it returns is thrown away; the run fails without it."""
    clock, told, over = Clock(), threading.Event(), threading.Event()

    @step
    def slow(n: int) -> int:
        clock.jump(1)
        current = current_step()
        while not current.cancelled and not over.wait(0.005):
            pass
        if current.cancelled:
            told.set()
        return n

    result = runner(place, slow, clock).run(1, run_id="r", deadline=SOON)
    assert isinstance(result.error, DeadlineExceededError) and paths(result) == []
    assert told.wait(PATIENCE_S)
    over.set()
    assert place.load()["last_step_output"] is None


def test_inside_of_a_composite(place: Place) -> None:
    """All that goes on is cancelled. What was saved is not repeated when the run goes on under another deadline."""
    notes, clock = Notes(), Clock()
    slow = notes.step("a", lambda n: clock.jump(1)) >> notes.step("b")
    fan = Step.parallel("fan", slow=slow, other=notes.step("c"), wait=Step.sleep("nap", 3600))
    notes.waiting = {"fan.slow.b", "fan.other.c"}
    result = runner(place, fan, clock).run(1, run_id="r", deadline=SOON)
    assert isinstance(result.error, DeadlineExceededError)
    assert sorted(notes.cancelled) == ["fan.other.c", "fan.slow.b"]
    notes.waiting = set()
    assert sorted(notes.taken()) == ["fan.other.c", "fan.slow.a", "fan.slow.b"]
    result = runner(place, fan, clock).run(run_id="r", deadline=HOUR)
    assert (result.status, sorted(notes.taken())) == ("paused", ["fan.other.c", "fan.slow.b"])


def test_while_it_waits(place: Place) -> None:
    """A question without a time limit of its own ends with the deadline, and not a microsecond before."""
    notes, clock = Notes(), Clock()
    pipeline = notes.step("a") >> ask() >> notes.step("b")
    runner(place, pipeline, clock).run(1, run_id="r", deadline=HOUR)
    clock.jump(3600 - 1e-6)
    before = place.contents()
    assert runner(place, pipeline, clock).run(run_id="r").status == "paused"
    assert place.contents() == before
    clock.jump(1e-6)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert isinstance(result.error, DeadlineExceededError)
    assert paths(result, success=False) == ["ask"] and result.waiting == []
    result = runner(place, pipeline, clock).run(run_id="r", deadline=HOUR)
    assert result.status == "paused"
    assert runner(place, pipeline, clock).resume(result, YES).output == YES
    assert notes.calls == ["a", "b"]


def test_while_it_sleeps(place: Place) -> None:
    """A sleep that would end later ends with the deadline; who waits for it waits until then."""
    clock = Clock()
    result = runner(place, Step.sleep("nap", 7200), clock).run(1, run_id="r", deadline=HOUR)
    assert result.wakes_at == clock.now() + HOUR
    result = runner(place, Step.sleep("nap", 7200), clock).run(run_id="r", wait=True)
    assert isinstance(result.error, DeadlineExceededError) and clock.slept == [3600]
    clock.jump(3600)
    result = runner(place, Step.sleep("nap", 7200), clock).run(run_id="r", deadline=HOUR)
    assert result.output == 1  # its own moment has come meanwhile


def test_an_answer_that_comes_after_it(place: Place) -> None:
    """The run has failed all the same, since a deadline is not for anybody to keep open; the answer is not lost."""
    clock = Clock()
    runner(place, ask(), clock).run(1, run_id="r", deadline=HOUR)
    clock.jump(3600)
    result = runner(place, ask(), clock).resume("r", YES, by="ann")
    assert isinstance(result.error, DeadlineExceededError)
    result = runner(place, ask(), clock).run(run_id="r", deadline=HOUR)
    assert result.output == YES and result.step_history[0].by == "ann"


def test_a_run_keeps_its_own(place: Place) -> None:
    """Another one that is given while the first is not over changes nothing, nor does none."""
    for number, later in enumerate([HOUR * 5, SOON, None]):
        clock = Clock()
        run_id = f"run {number}"
        runner(place, ask(), clock).run(1, run_id=run_id, deadline=HOUR)
        clock.jump(1800)
        assert runner(place, ask(), clock).run(run_id=run_id, deadline=later).status == "paused"
        clock.jump(1799)
        assert runner(place, ask(), clock).run(run_id=run_id, deadline=later).status == "paused"
        clock.jump(1)
        assert runner(place, ask(), clock).run(run_id=run_id).status == "failed"


def test_a_run_without_one_gets_none(place: Place) -> None:
    """A run that exists has what it was begun with."""
    clock = Clock()
    runner(place, ask(), clock).run(1, run_id="r")
    runner(place, ask(), clock).run(run_id="r", deadline=MINUTE)
    clock.jump(3600)
    assert runner(place, ask(), clock).run(run_id="r").status == "paused"


def test_while_somebody_has_paused_it(place: Place) -> None:
    """Nothing of a run that stands still fires; when it is to go on the deadline has passed."""
    clock = Clock()
    runner(place, ask(), clock).run(1, run_id="r", deadline=HOUR)
    runner(place, ask(), clock).pause("r")
    assert place.load()["due_at"] is None
    clock.jump(7200)
    before = place.contents()
    assert runner(place, ask(), clock).run(run_id="r").status == "paused"
    assert place.contents() == before
    assert isinstance(runner(place, ask(), clock).resume("r").error, DeadlineExceededError)


def test_cancelling_after_it(place: Place) -> None:
    """A cancel counts for more than a deadline, before the run has failed of it and afterwards."""
    ledger, clock = Ledger(), Clock()
    pipeline = ledger.step("a") >> ask()
    for run_id in ("r", "s"):
        runner(place, pipeline, clock).run(1, run_id=run_id, deadline=HOUR)
    clock.jump(3600)
    assert runner(place, pipeline, clock).run(run_id="s").status == "failed"
    for run_id in ("r", "s"):
        assert runner(place, pipeline, clock).cancel(run_id).status == "cancelled"


def test_undos_have_all_the_time(place: Place) -> None:
    """The deadline is the run's, and not that of taking it back."""
    ledger, clock = Ledger(), Clock()

    @step(name="undo")
    async def slow_undo(n: Any) -> None:
        await ledger.call()
        clock.jump(3600)
        await asyncio.sleep(0)

    pipeline = ledger.does("a", undo=slow_undo) >> ledger.does("b", undo=slow_undo) >> ask()
    runner(place, pipeline, clock).run(1, run_id="r", deadline=HOUR)
    clock.jump(3600)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert (result.phase, result.undone) == ("undone", ["b", "a"])
    assert isinstance(result.error, DeadlineExceededError)


def test_the_clock_is_set_back_while_a_step_runs(place: Place) -> None:
    """The deadline is a moment of the runner's clock: as long as that has not come, the step is left alone, and when it
    does come it is stopped."""
    clock, calls = Clock(), list[str]()

    @step
    async def slow(n: int) -> int:
        calls.append("begun")
        if len(calls) == 1:
            await later(0.06)
        return n

    @step
    async def slower(n: int) -> int:
        calls.append("begun too")
        if len(calls) == 2:
            await later(0.06)
            clock.jump(1)
            await later(10)
        return n

    run = runner(place, slow >> slower, clock).run_async(1, run_id="r", deadline=SOON)
    result = at_once(run)  # type: ignore[arg-type]
    assert calls == ["begun", "begun too"]
    assert isinstance(result.error, DeadlineExceededError) and paths(result) == ["slow"]


async def later(seconds: float) -> None:
    """Come back after so many seconds of real time."""
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, done.set)
    await done.wait()
