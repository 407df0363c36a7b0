"""Delays before a retry that are longer than five seconds: timers in the store, and no process that sleeps."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from flujo import Flujo, ItemError, NonRetryableError, Retry, Step, current_step, once, step
from flujo._ids import path_text
from flujo.errors import RecordedError, RunEndedError, RunNotWaitingError, UndoFailedError
from flujo.execution.events import Event, StepRetrying
from tests.support.backends import Place
from tests.support.nested_runs import Notes, paths
from tests.support.waiting_runs import YES, Clock, Held, Ledger, ask, at_once, runner, until


class Flaky:
    """Steps that fail so often, each by its path, and note every attempt with what it is given."""

    def __init__(self, failures: int, **options: Any) -> None:
        self.failures = failures
        self.attempts: dict[str, list[int]] = {}
        self.keys: dict[str, set[str]] = {}
        self.failed: dict[str, int] = {}
        options = {"retries": [60, 60], **options}

        @step(name="flaky", **options)
        async def flaky(given: Any) -> Any:
            self.note()
            return given

        self.step: Step[Any, Any] = flaky

    def note(self) -> None:
        """Note an attempt, and fail where it is to."""
        current = current_step()
        path = path_text(current.path)
        self.attempts.setdefault(path, []).append(current.attempt)
        self.keys.setdefault(path, set()).add(current.idempotency_key)
        if self.failed.get(path, 0) < self.failures:
            self.failed[path] = self.failed.get(path, 0) + 1
            raise OSError("down")


def test_a_long_delay(place: Place) -> None:
    """The run is paused until then, and says what for; the attempt after that is the second, with the same key."""
    flaky, clock, events = Flaky(1, retries=[5.000001]), Clock(), list[Event]()
    pipeline = Notes().step("a") >> flaky.step
    result = runner(place, pipeline, clock, hooks=[events.append]).run(7, run_id="r")
    waiting, due = result.waiting_for, clock.now() + timedelta(seconds=5.000001)
    assert waiting is not None and result.waiting == [waiting]
    assert (waiting.kind, waiting.step, waiting.message, waiting.until) == ("retry", "flaky", "OSError: down", due)
    assert (result.status, result.wakes_at, result.error, clock.slept) == ("paused", due, None, [])
    (told,) = [event for event in events if isinstance(event, StepRetrying)]
    assert (told.attempt, told.delay_s, str(told.error)) == (1, 5.000001, "down")
    before = place.contents()
    assert runner(place, pipeline, clock).run(run_id="r").status == "paused"
    assert place.contents() == before
    with pytest.raises(RunNotWaitingError):
        runner(place, pipeline, clock).resume("r", YES)
    assert place.contents() == before and clock.slept == []
    clock.set(due)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert (result.output, flaky.attempts) == (7, {"flaky": [1, 2]})
    assert [record.attempts for record in result.step_history] == [1, 2]
    assert paths(result, success=False) == [] and len(flaky.keys["flaky"]) == 1
    assert place.load()["position"] is None and place.load()["waiting"] is None


def test_long_and_short_delays(place: Place) -> None:
    """Short ones are slept, long ones are not; with `wait` all are. Attempts are counted through all of it."""
    delays = [1, 60, 2, 3600]
    flaky, clock = Flaky(4, retries=delays), Clock()
    for seconds in (0, 60, 3600):
        clock.jump(seconds)
        result = runner(place, flaky.step, clock).run(1, run_id="r")
    assert (result.output, flaky.attempts, clock.slept) == (1, {"flaky": [1, 2, 3, 4, 5]}, [1, 2])
    flaky, clock = Flaky(4, retries=delays), Clock()
    assert runner(place, flaky.step, clock).run(1, run_id="s", wait=True).output == 1
    assert (clock.slept, clock.perf()) == (delays, sum(delays))


def test_retries_that_are_used_up(place: Place) -> None:
    """The run has failed with the last attempt's error; when it is run again all of them are there anew, and the
    attempts go on counting."""
    flaky, clock = Flaky(9, retries=Retry(max_retries=2, delay=60, max_delay=6000, factor=10)), Clock()
    for seconds, status in ((0, "paused"), (60, "paused"), (600, "failed")) * 2:
        if seconds:
            clock.jump(seconds - 6)
            assert runner(place, flaky.step, clock).run(1, run_id="r").status == "paused"
            clock.jump(6)
        result = runner(place, flaky.step, clock).run(1, run_id="r")
        assert result.status == status
    assert isinstance(result.error, OSError)
    assert flaky.attempts == {"flaky": [1, 2, 3, 4, 5, 6]} and len(flaky.keys["flaky"]) == 1
    assert [record.attempts for record in result.step_history] == [6]


def test_what_ends_the_retrying(place: Place) -> None:
    """A NonRetryableError and a predicate that says no do, after a pause as before one."""
    errors: list[Exception] = []
    clock = Clock()

    @step(retries=Retry(max_retries=5, delay=60, when=lambda error: "fatal" not in str(error)))
    async def work(n: int) -> int:
        raise errors.pop(0)

    for number, last in enumerate([NonRetryableError("no"), OSError("fatal")]):
        errors += [OSError("down"), last]
        assert runner(place, work, clock).run(1, run_id=f"{number}").status == "paused"
        clock.jump(60)
        result = runner(place, work, clock).run(run_id=f"{number}")
        assert (result.status, result.error) == ("failed", last)
        assert result.step_history[0].attempts == 2


class Trail(BaseModel):
    """A context."""

    lines: list[str] = []


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_input_and_context_are_put_back(place: Place, first: bool, inside: bool) -> None:
    """What a failed attempt did to them is not stored, nor seen by the next; in the very first step, too."""
    clock, seen = Clock(), list[Any]()

    @step(retries=[60, 1, 60])
    async def spoil(given: list[int], *, context: Trail) -> list[int]:
        seen.append((list(given), list(context.lines)))
        given.append(len(seen))
        context.lines.append(f"attempt {len(seen)}")
        if len(seen) < 4:
            raise OSError("down")
        return given

    body: Any = Step.parallel("fan", one=spoil) if inside else spoil
    pipeline = body if first else Notes().step("a") >> body
    options: dict[str, Any] = {"context_model": Trail, "initial_context_data": {"lines": ["begun"]}}
    for _ in range(3):
        result = runner(place, pipeline, clock, **options).run([0], run_id="r")
        clock.jump(60)
    assert seen == [([0], ["begun"])] * 4
    assert result.output == ({"one": [0, 4]} if inside else [0, 4])
    assert result.final_pipeline_context.lines == ["begun", "attempt 4"]


def test_other_items_go_on(place: Place) -> None:
    """While one item of a map waits for its retry the others are done; each has its own attempts, and is done once."""
    notes, clock = Notes(), Clock()
    flaky = Flaky(1, retries=[60])
    body = Step.branch_on("route", by=lambda n: "bad" if n % 2 else "good", bad=flaky.step, good=notes.step("work"))
    pipeline = Step.map_over("many", body >> notes.step("after"))
    result = runner(place, pipeline, clock).run(range(5), run_id="r")
    assert sorted(w.step for w in result.waiting) == ["many[1].route.bad.flaky", "many[3].route.bad.flaky"]
    assert sorted(notes.taken()) == sorted(
        [f"many[{i}].route.good.work" for i in (0, 2, 4)] + [f"many[{i}].after" for i in (0, 2, 4)]
    )
    clock.jump(60)
    assert runner(place, pipeline, clock).run(run_id="r").output == [0, 1, 2, 3, 4]
    assert sorted(notes.taken()) == ["many[1].after", "many[3].after"]
    assert flaky.attempts == {"many[1].route.bad.flaky": [1, 2], "many[3].route.bad.flaky": [1, 2]}
    assert len({key for keys in flaky.keys.values() for key in keys}) == 2


def test_everywhere_in_a_composite(place: Place) -> None:
    """In a branch, a decision, an exit test, an iteration, a primary whose fallback comes after the last retry."""
    clock = Clock()
    flaky, hopeless = Flaky(1, retries=[60]), Flaky(9, retries=[60])

    @step(retries=[60])
    async def decide(n: int) -> str:
        flaky.note()
        return "a"

    @step(retries=[60])
    async def done(n: int) -> bool:
        flaky.note()
        return True

    pipeline = (
        Step.branch_on("route", by=decide, a=Notes().step("work"))
        >> Step.loop_until("again", flaky.step, until=done)
        >> hopeless.step.fallback(flaky.step.named("other")).named("either")
        >> (flaky.step >> ask()).as_step("inner")
    )
    for _ in range(8):
        result = runner(place, pipeline, clock).run(1, run_id="r")
        clock.jump(60)
    assert result.status == "paused" and result.waiting[0].step == "inner.ask"
    assert runner(place, pipeline, clock).resume("r", YES).output == YES
    assert flaky.attempts == {
        "route>choice": [1, 2], "again#1.flaky": [1, 2], "again#1>exit": [1, 2], "either.fallback.other": [1, 2],
        "inner.flaky": [1, 2],
    }  # fmt: skip
    assert hopeless.attempts == {"either.primary.flaky": [1, 2]}


def test_an_item_that_fails_in_the_end(place: Place) -> None:
    """Where failures are collected it is one of them, with all its attempts."""
    clock = Clock()
    flaky = Flaky(9, retries=[60])
    pipeline = Step.map_over("many", flaky.step, on_error="collect") >> ask()
    runner(place, pipeline, clock).run([1], run_id="r")
    clock.jump(60)
    result = runner(place, pipeline, clock).run(run_id="r")
    failed, own = result.step_history
    assert (failed.success, failed.attempts, failed.where) == (False, 2, "many[0].flaky")
    assert own.output == [ItemError(index=0, error="OSError: down")]


def test_in_the_same_process(place: Place) -> None:
    """Where another branch is under way the time may come while the process lives: the attempt is made in it, with what
    was done `once` before."""
    clock, pages = Clock(), list[str]()
    flaky = Flaky(1)

    @step(retries=[60])
    async def crawl(n: int) -> int:
        await once("page", pages.append, "page")
        flaky.note()
        return n

    async def main() -> Any:
        notes = Notes()
        held, small = Held(notes), Held(notes, "small")
        fan = Step.parallel("fan", crawl=crawl >> notes.step("after"), held=held.step, small=small.step)
        task = asyncio.ensure_future(runner(place, fan, clock).run_async(1, run_id="r"))
        await small.begun.wait()
        await until(lambda: is_put_off(place))
        clock.jump(60)
        small.go.set()  # what comes to its end has the timers looked at
        while "fan.crawl.after" not in notes.calls:  # noqa: ASYNC110
            await asyncio.sleep(0)
        held.go.set()
        return await task

    assert at_once(main()).output == {"crawl": 1, "held": 1, "small": 1}
    assert (pages, flaky.attempts) == (["page"], {"fan.crawl.crawl": [1, 2]})


async def is_put_off(place: Place) -> bool:
    """Return whether the store says that a run waits for a retry."""
    state = await place.open().load_state("r") or {}
    return any(wait["kind"] == "retry" for wait in (state.get("waiting") or {}).get("waits", ()))


@pytest.mark.parametrize("where", ["top", "inside", "undo"])
def test_what_was_done_once(place: Place, where: str) -> None:
    """It is not done again after the pause, in another process; what was not done yet is."""
    clock, pages, flaky = Clock(), list[str](), Flaky(1)

    @step(name="crawl", retries=[60])
    async def crawl(n: int) -> int:
        await once("one", pages.append, "one")
        flaky.note()
        await once("two", pages.append, "two")
        return n

    bad = Notes()
    bad.failing = {"bad"}
    pipeline: Any = {
        "top": Notes().step("a") >> crawl,
        "inside": Step.parallel("fan", crawl=crawl, other=Notes().step("b")),
        "undo": step(name="a", undo=crawl)(lambda n: n) >> bad.step("bad"),
    }[where]
    assert runner(place, pipeline, clock).run(1, run_id="r").status == "paused"
    assert pages == ["one"]
    clock.jump(60)
    result = runner(place, pipeline, clock).run(1, run_id="r")
    assert result.phase == "undone" if where == "undo" else result.status == "completed"
    assert pages == ["one", "two"]


def undoing(ledger: Ledger, flaky: Flaky, **options: Any) -> Any:
    """Return a pipeline that fails, and whose second undo is flaky."""
    undo = step(name="undo", **options)(lambda output: flaky.note())
    return ledger.step("pay", undo=undo) >> ledger.does("pack") >> ledger.step("bad")


def test_an_undo(place: Place) -> None:
    """The run is paused while it is being undone; it goes on with that undo, and nothing else is undone twice."""
    ledger, flaky, clock = Ledger(), Flaky(2), Clock()
    ledger.failing = {"bad"}
    pipeline = undoing(ledger, flaky, retries=[60, 3600])
    for seconds in (60, 3600):
        result = runner(place, pipeline, clock).run(1, run_id="r")
        assert (result.status, result.phase, result.undone) == ("paused", "undoing", ["pack"])
        waiting = result.waiting_for
        assert waiting is not None and (waiting.kind, waiting.step) == ("retry", "pay>undo")
        assert result.wakes_at == clock.now() + timedelta(seconds=seconds)
        before = place.contents()
        assert runner(place, pipeline, clock).run(1, run_id="r").status == "paused"
        for order in ("pause", "resume"):
            with pytest.raises(RunEndedError, match="is being undone"):
                getattr(runner(place, pipeline, clock), order)("r")
        with pytest.raises(RunNotWaitingError):
            runner(place, pipeline, clock).resume("r", YES)
        assert place.contents() == before
        clock.jump(seconds)
    result = runner(place, pipeline, clock).run(1, run_id="r")
    assert (result.status, result.phase, result.undone) == ("failed", "undone", ["pack", "pay"])
    assert isinstance(result.error, RecordedError) and "bad is out of order" in str(result.error)
    assert flaky.attempts == {"pay>undo": [1, 2, 3]} and len(flaky.keys["pay>undo"]) == 1
    assert ledger.calls == ["pay", "pack", "bad", "pack>undo"]


def test_an_undo_that_fails_in_the_end(place: Place) -> None:
    """The run has failed, and goes on undoing when it is run again; that has all of its retries."""
    ledger, flaky, clock = Ledger(), Flaky(3), Clock()
    ledger.failing = {"bad"}
    pipeline = undoing(ledger, flaky, retries=[60])
    assert runner(place, pipeline, clock).run(1, run_id="r").status == "paused"
    clock.jump(60)
    result = runner(place, pipeline, clock).run(1, run_id="r")
    assert result.status == "failed" and isinstance(result.error, UndoFailedError) and result.waiting == []
    assert runner(place, pipeline, clock).run(1, run_id="r").status == "paused"
    clock.jump(60)
    assert runner(place, pipeline, clock).run(1, run_id="r").phase == "undone"
    assert flaky.attempts == {"pay>undo": [1, 2, 3, 4]}


def test_cancelling_does_not_wait_for_it(place: Place) -> None:
    """Where an undo is put off, `cancel` says that the run is being undone, and blocks nobody for an hour."""
    ledger, flaky, clock = Ledger(), Flaky(1), Clock()
    pipeline = undoing(ledger, flaky, retries=[3600])
    ledger.interrupt(runner(place, pipeline), 1, at={"bad"})
    result = runner(place, pipeline, clock).cancel("r", by="ann")
    assert (result.status, result.phase, clock.slept) == ("paused", "undoing", [])
    clock.jump(3600)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert (result.status, result.undone) == ("cancelled", ["pack", "pay"])
    assert result.cancelled is not None and result.cancelled["by"] == "ann"


def test_interrupted_in_the_attempt_after_it(place: Place) -> None:
    """An interruption is no failure: the attempt is made again, under the same number, and without waiting."""
    notes, clock, attempts = Notes(), Clock(), list[int]()

    @step(name="work", retries=[60, 60])
    async def work(n: int) -> int:
        attempts.append(current_step().attempt)
        await notes.call()
        if len(attempts) == 1:
            raise OSError("down")
        return n

    assert runner(place, work, clock).run(1, run_id="r").status == "paused"
    clock.jump(60)
    notes.interrupt(runner(place, work, clock), at={"work"})
    assert place.load()["status"] in ("running", "paused")
    result = runner(place, work, clock).run(run_id="r")
    assert (result.output, attempts) == (1, [1, 2, 2])


def test_a_step_that_times_out(place: Place) -> None:
    """A time-out is a failure of the attempt, and waits for the next as others do; a plain step is no different."""
    clock, attempts = Clock(), list[int]()

    @step(retries=[60], timeout=0.01)
    async def slow(n: int) -> int:
        attempts.append(current_step().attempt)
        if len(attempts) == 1:
            await asyncio.Event().wait()
        return n

    @step(retries=[60])
    def plain(n: int) -> int:
        attempts.append(current_step().attempt)
        if len(attempts) == 3:
            raise OSError("down")
        return n

    flow: Flujo[Any, Any]
    for status in ("paused", "paused", "completed"):
        flow = runner(place, slow >> plain, clock)
        assert flow.run(1, run_id="r").status == status
        clock.jump(60)
    assert attempts == [1, 2, 1, 2]
