"""The time for an answer runs out: what the run does then, when exactly, and what becomes of who comes too late."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flujo import Flujo, Step
from flujo.errors import AnswerTooLateError, RunNotWaitingError, SaveError, WaitTimeoutError
from tests.support.backends import Place
from tests.support.nested_runs import Notes, paths
from tests.support.waiting_runs import YES, Approval, Clock, Ledger, around_saves, ask, runner

NO = Approval(approved=False)
DAY = 86400


def too_late(place: Place, pipeline: Any, clock: Clock, run: Any = "r", **options: Any) -> None:
    before = place.contents()
    with pytest.raises(AnswerTooLateError, match="had run out") as caught:
        runner(place, pipeline, clock).resume(run, YES, by="ann", **options)
    assert caught.value.data["run_id"] == "r"
    assert place.contents() == before


def test_a_default(place: Place) -> None:
    """From its moment on, and not a microsecond before, the run goes on with what `on_timeout` says."""
    notes, clock = Notes(), Clock()
    pipeline = ask(timeout=timedelta(days=1), on_timeout=NO) >> notes.step("after")
    first = runner(place, pipeline, clock).run(1, run_id="r")
    begun = clock.now()
    assert first.waiting_for is not None and first.waiting_for.until == begun + timedelta(days=1)
    assert first.wakes_at is None  # a person may answer before
    assert place.load()["due_at"] is not None
    clock.set(begun + timedelta(days=1, microseconds=-1))
    before = place.contents()
    assert runner(place, pipeline, clock).run(run_id="r", wait=True).status == "paused"
    assert place.contents() == before and notes.calls == []
    clock.jump(1e-6)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert result.output == NO and type(result.output) is Approval
    record = result.step_history[0]
    assert (record.by, record.success, record.latency_s) == (None, True, DAY)
    assert (paths(result), notes.calls) == (["ask", "after"], ["after"])
    for run in ("r", first):
        too_late(place, pipeline, clock, run)
    assert runner(place, pipeline, clock).messages("r") == []


@pytest.mark.parametrize("default", [None, False, 0, [], {"a": [1]}])
def test_a_default_is_a_value_like_any(place: Place, default: Any) -> None:
    """None and what is false, too; each run has its own copy of it."""

    def spoil(value: Any) -> Any:
        shown = repr(value)
        if isinstance(value, list | dict):
            value.clear()
        if isinstance(value, dict):
            value["b"] = 2
        return shown

    clock = Clock()
    pipeline = ask(tp=Any, timeout=60, on_timeout=default) >> Notes().step("spoil", spoil)
    for run_id in ("r", "s"):
        runner(place, pipeline, clock).run(1, run_id=run_id)
        clock.jump(60)
        assert runner(place, pipeline, clock).run(run_id=run_id).output == repr(default)


def test_without_a_default(place: Place) -> None:
    """The step fails with WaitTimeoutError; running it again asks anew, and gives the same time again."""
    notes, clock = Notes(), Clock()
    pipeline = notes.step("before") >> ask(timeout=60) >> notes.step("after")
    first = runner(place, pipeline, clock).run(1, run_id="r")
    clock.jump(DAY)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert result.status == "failed" and isinstance(result.error, WaitTimeoutError)
    assert result.error.data == {"run_id": "r", "step": "ask", "timeout": 60}
    assert "Nobody has answered for step 'ask' within 60 s" in str(result.error)
    assert paths(result, success=False) == ["ask"] and result.waiting == []
    too_late(place, pipeline, clock)
    again = runner(place, pipeline, clock).run(run_id="r")
    assert again.status == "paused" and again.waiting_for is not None and first.waiting_for is not None
    assert again.waiting_for.until == clock.now() + timedelta(seconds=60)
    assert again.waiting_for.token != first.waiting_for.token
    too_late(place, pipeline, clock, first)
    assert runner(place, pipeline, clock).resume(again, YES).output == YES
    assert notes.calls == ["before", "after"]


def test_cancelled_when_the_time_was_over(place: Place) -> None:
    """The store says of what the run failed; it may be cancelled then, and stays closed to answers."""
    clock = Clock()
    pipeline = ask(timeout=60) >> ask("again", timeout=60)
    runner(place, pipeline, clock).run(1, run_id="r")
    clock.jump(60)
    runner(place, pipeline, clock).run(run_id="r")
    stored = place.load()
    assert (stored["status"], stored["error"]["type"]) == ("failed", "flujo.errors.WaitTimeoutError")
    ended = runner(place, pipeline, clock).cancel("r", by="ann")
    assert (ended.status, ended.error) == ("cancelled", None)
    with pytest.raises(AnswerTooLateError):
        runner(place, pipeline, clock).resume("r", YES)


def test_a_late_answer_that_is_stored_first(place: Place) -> None:
    """Nobody has saved that the time had run out: then it had not, and the answer counts."""
    clock = Clock()
    pipeline = ask(timeout=60, on_timeout=NO)
    runner(place, pipeline, clock).run(1, run_id="r")
    clock.jump(DAY)
    result = runner(place, pipeline, clock).resume("r", YES, by="ann")
    assert result.output == YES and result.step_history[0].by == "ann"


def test_an_answer_in_time_that_nobody_went_on_with(place: Place) -> None:
    """It counts, however late the run goes on."""
    clock = Clock()
    pipeline = ask(timeout=60, on_timeout=NO) >> Step.sleep("nap", 30) >> ask("again", timeout=60, on_timeout=NO)
    runner(place, pipeline, clock).run(1, run_id="r")
    assert runner(place, pipeline, clock).resume("r", YES).status == "paused"
    clock.jump(DAY)
    question = runner(place, pipeline, clock).run(run_id="r").waiting_for
    assert question is not None and question.since == clock.now()
    assert runner(place, pipeline, clock).resume("r", YES).output == YES


def test_too_few_votes(place: Place) -> None:
    """A quorum that is not reached in time is none; the votes that there were do not count for the next question."""
    clock = Clock()
    pipeline = ask("one", quorum=2, timeout=60, on_timeout=[]) >> ask("two", quorum=2)
    first = runner(place, pipeline, clock).run(1, run_id="r")
    runner(place, pipeline, clock).resume("r", YES, by="ann")
    clock.jump(60)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert result.status == "paused" and result.step_history[0].output == []
    assert result.step_history[0].by is None
    too_late(place, pipeline, clock, first)
    runner(place, pipeline, clock).resume("r", YES, by="ann")
    assert runner(place, pipeline, clock).resume("r", NO, by="bob").output == [YES, NO]


def test_a_vote_that_comes_with_the_end_of_the_time(place: Place) -> None:
    """The last vote that is needed counts as long as nobody has saved that the time is over."""
    clock = Clock()
    pipeline = ask(quorum=2, timeout=60, on_timeout=[])
    runner(place, pipeline, clock).run(1, run_id="r")
    runner(place, pipeline, clock).resume("r", YES, by="ann")
    clock.jump(60)
    assert runner(place, pipeline, clock).resume("r", NO, by="bob").output == [YES, NO]


@pytest.mark.parametrize("stopped", ["before", "after"])
def test_stopped_when_the_time_is_over(place: Place, stopped: str) -> None:
    """That is saved before what follows from it. Where that save was the last, no answer counts any more; where it did
    not come about, one still does."""
    notes, clock = Notes(), Clock()
    pipeline = ask(timeout=60, on_timeout=NO) >> notes.step("after")
    runner(place, pipeline, clock).run(1, run_id="r")
    clock.jump(60)

    async def stop(_: dict[str, Any]) -> None:
        raise SaveError("The disk is gone.")

    def over(state: dict[str, Any]) -> bool:
        return any(wait.get("expired") for wait in (state["waiting"] or {}).get("waits", ()))

    backend = around_saves(place.open(), over, **{stopped: stop})
    with pytest.raises(SaveError):
        Flujo(pipeline, state_backend=backend, clock=clock, pipeline_name="p").run(run_id="r")
    del backend.save_state  # type: ignore[method-assign]
    assert notes.calls == []
    if stopped == "after":
        too_late(place, pipeline, clock)
        assert runner(place, pipeline, clock).run(run_id="r").output == NO
    else:
        assert runner(place, pipeline, clock).resume("r", YES).output == YES
    assert notes.calls == ["after"]


def test_undos_run_when_nobody_answers(place: Place) -> None:
    """A time-out for good is a failure like any other: what was done is undone, and then it is too late for ever."""
    ledger, clock = Ledger(), Clock()
    pipeline = ledger.does("pay") >> ask(timeout=60)
    runner(place, pipeline, clock).run(1, run_id="r")
    clock.jump(60)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert (result.status, result.phase, ledger.calls) == ("failed", "undone", ["pay", "pay>undo"])
    too_late(place, pipeline, clock)
    assert runner(place, pipeline, clock).run(run_id="r").status == "failed"


def test_another_limit(place: Place) -> None:
    """`with_timeout` sets it; without one the run waits for a thousand years."""
    clock = Clock()
    limited, patient = ask("soon").with_timeout(60), ask("some day")
    runner(place, limited, clock).run(1, run_id="r")
    runner(place, patient, clock).run(1, run_id="s")
    clock.set(clock.now().replace(year=3025))
    assert runner(place, limited, clock).run(run_id="r").status == "failed"
    assert runner(place, patient, clock).run(run_id="s").status == "paused"
    assert runner(place, patient, clock).resume("s", YES).output == YES


def test_a_signal_that_does_not_come(place: Place) -> None:
    """As with an answer: a default, or WaitTimeoutError that names it; what comes later is kept for another wait."""
    clock = Clock()
    wait = Step.wait_for("paid", int, signal="money", timeout=60)
    pipeline = wait >> Step.wait_for("more", int, signal="money", timeout=60, on_timeout=-1)
    runner(place, pipeline, clock).run(1, run_id="r")
    clock.jump(60)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert isinstance(result.error, WaitTimeoutError)
    assert "No signal 'money' has come for step 'paid' within 60 s" in str(result.error)
    runner(place, pipeline, clock).signal("r", "money", 5)  # the run has failed, and can go on
    result = runner(place, pipeline, clock).run(run_id="r")
    assert result.status == "paused" and result.step_history[-1].output == 5
    clock.jump(60)
    assert runner(place, pipeline, clock).run(run_id="r").output == -1
    with pytest.raises(RunNotWaitingError):
        runner(place, pipeline, clock).resume("r", YES)
