"""Pausing, resuming and cancelling runs that nobody executes: who, why, and what a run that stands still takes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flujo import PipelineResult, Step
from flujo.errors import (
    ConfigurationError,
    RunEndedError,
    RunInsideLoopError,
    RunNotFoundError,
    RunNotWaitingError,
    UndoFailedError,
)
from tests.support.backends import Place
from tests.support.nested_runs import Notes, paths
from tests.support.waiting_runs import YES, Clock, Ledger, ask, message, runner

HOUR = 3600


def interrupted(place: Place, notes: Notes, clock: Clock, run_id: str = "r") -> Any:
    """Return a pipeline of three steps whose run was interrupted in the second."""
    pipeline = notes.step("a") >> notes.step("b") >> notes.step("c")
    notes.interrupt(runner(place, pipeline, clock), 1, at={"b"}, run_id=run_id)
    notes.taken()
    return pipeline


def kinds(result: PipelineResult[Any]) -> list[str]:
    """Return what a paused run waits for."""
    assert result.status == "paused", result
    return [waiting.kind for waiting in result.waiting]


def test_pausing(place: Place) -> None:
    """A run that nobody executes stands still at once. Who paused it and why is on record, and `run` does not get
    past; `resume` does, and its author is on record as well."""
    notes, clock = Notes(), Clock()
    pipeline = interrupted(place, notes, clock)
    clock.jump(5)
    runner(place, pipeline, clock).pause("r", by="ann", reason="a look at it")
    assert (place.load()["status"], place.load()["current_step_index"]) == ("paused", 1)
    before = place.contents()
    for _ in range(3):
        result = runner(place, pipeline, clock).run(1, run_id="r", wait=True)
        assert kinds(result) == ["pause"] and result.wakes_at is None
        waiting = result.waiting_for
        assert waiting is not None and (waiting.by, waiting.message, waiting.since) == (
            "ann",
            "a look at it",
            clock.now(),
        )
        assert "was paused by ann: a look at it" in repr(result)
    assert (place.contents(), notes.calls) == (before, [])
    clock.jump(5)
    assert runner(place, pipeline, clock).resume("r", by="bob", reason="looks good").output == 1
    assert notes.calls == ["b", "c"]
    said = [(m.kind, m.by, m.reason) for m in runner(place, pipeline, clock).messages("r")]
    assert said == [("pause", "ann", "a look at it"), ("resume", "bob", "looks good")]


def test_nobody_says_who(place: Place) -> None:
    """Author and reason may be left out; what is none is refused, and nothing is stored."""
    notes, clock = Notes(), Clock()
    pipeline = interrupted(place, notes, clock)
    before = place.contents()
    for wrong in ({"by": ""}, {"reason": ""}, {"by": 3}, {"reason": "x" * 1001}):
        for order in ("pause", "cancel"):
            with pytest.raises(ConfigurationError):
                getattr(runner(place, pipeline, clock), order)("r", **wrong)
        assert place.contents() == before
    runner(place, pipeline, clock).pause("r")
    waiting = runner(place, pipeline, clock).run(run_id="r").waiting_for
    assert waiting is not None and (waiting.by, waiting.message) == (None, None)
    result = runner(place, pipeline, clock).cancel("r")
    assert result.cancelled == {"by": None, "reason": None, "at": clock.now().isoformat()}


def test_a_paused_run_takes_an_answer(place: Place) -> None:
    """It keeps it and stays paused; when it is resumed it goes on with it. A second answer is one too many."""
    notes, clock = Notes(), Clock()
    pipeline = notes.step("a") >> ask() >> notes.step("b")
    runner(place, pipeline, clock).run(1, run_id="r")
    runner(place, pipeline, clock).pause("r", by="ann")
    assert kinds(runner(place, pipeline, clock).run(run_id="r")) == ["pause", "human"]
    result = runner(place, pipeline, clock).resume("r", YES, by="bob")
    assert "pause" in kinds(result) and notes.calls == ["a"]
    before = place.contents()
    with pytest.raises(Exception, match="answered by bob"):
        runner(place, pipeline, clock).resume("r", YES, by="cid")
    assert kinds(runner(place, pipeline, clock).run(run_id="r"))[0] == "pause"
    assert place.contents() == before
    result = runner(place, pipeline, clock).resume("r", by="ann")
    assert result.output == YES and result.step_history[1].by == "bob"
    assert notes.calls == ["a", "b"]


def test_a_paused_run_takes_signals_and_votes(place: Place) -> None:
    """As many as come; all are there when it goes on."""
    clock = Clock()
    fan = Step.parallel("fan", a=Step.wait_for("go", int), b=ask("vote", tp=int, quorum=2))
    runner(place, fan, clock).run(1, run_id="r")
    runner(place, fan, clock).pause("r")
    runner(place, fan, clock).signal("r", "go", 7)
    for vote, by in ((1, "ann"), (2, "bob")):
        assert kinds(runner(place, fan, clock).resume("r", vote, by=by))[0] == "pause"
    assert runner(place, fan, clock).resume("r").output == {"a": 7, "b": [1, 2]}


def test_no_timer_fires_while_it_is_paused(place: Place) -> None:
    """A sleep, a time limit and a retry that are due meanwhile are so when the run is resumed, and each once."""
    notes, clock, tries = Notes(), Clock(), list[int]()

    def flaky(n: int) -> int:
        tries.append(n)
        if len(tries) == 1:
            raise OSError("down")
        return n

    retried = notes.step("flaky", flaky, retries=[HOUR])
    fan = Step.parallel("fan", a=Step.sleep("nap", HOUR), b=ask(timeout=HOUR, on_timeout=YES), c=retried)
    runner(place, fan, clock).run(1, run_id="r")
    assert place.load()["due_at"] is not None
    runner(place, fan, clock).pause("r")
    assert place.load()["due_at"] is None
    clock.jump(2 * HOUR)
    before = place.contents()
    result = runner(place, fan, clock).run(run_id="r", wait=True)
    assert sorted(kinds(result)) == ["human", "pause", "retry", "sleep"] and result.wakes_at is None
    assert place.contents() == before
    assert runner(place, fan, clock).resume("r").output == {"a": 1, "b": YES, "c": 1}
    assert tries == [1, 1]


def test_pausing_again(place: Place) -> None:
    """The newest order is the one that is shown, and one `resume` ends them all; a second has nothing to end."""
    notes, clock = Notes(), Clock()
    pipeline = interrupted(place, notes, clock)
    for by in ("ann", "bob"):
        runner(place, pipeline, clock).pause("r", by=by)
    waiting = runner(place, pipeline, clock).run(run_id="r").waiting_for
    assert waiting is not None and waiting.by == "bob"
    assert runner(place, pipeline, clock).resume("r").status == "completed"
    with pytest.raises(RunEndedError):
        runner(place, pipeline, clock).resume("r")


def test_pausing_and_resuming_again_and_again(place: Place) -> None:
    """Each time the run stands still and goes on with what it waits for."""
    clock = Clock()
    pipeline = ask() >> ask("again")
    runner(place, pipeline, clock).run(1, run_id="r")
    for name in ("ask", "again"):
        for _ in range(2):
            runner(place, pipeline, clock).pause("r")
            assert kinds(runner(place, pipeline, clock).resume("r")) == ["human"]
            before = place.contents()
            with pytest.raises(RunNotWaitingError):
                runner(place, pipeline, clock).resume("r")
            assert place.contents() == before
        result = runner(place, pipeline, clock).resume("r", YES, at=name)
    assert result.output == YES


def test_what_cannot_be_ordered(place: Place) -> None:
    """Orders to runs that are over, have failed or do not exist are refused, and nothing is stored."""
    ledger, clock = Ledger(), Clock()
    pipeline = ledger.does("a") >> ledger.step("b")
    runner(place, pipeline, clock).run(1, run_id="completed")
    ledger.failing = {"b"}
    runner(place, pipeline, clock).run(1, run_id="undone")
    ledger.failing = {"a"}
    runner(place, pipeline, clock).run(1, run_id="failed")
    ledger.failing = {"b", "a>undo"}
    assert isinstance(runner(place, pipeline, clock).run(1, run_id="undoing").error, UndoFailedError)
    ledger.failing = set()
    ledger.interrupt(runner(place, pipeline, clock), 1, at={"b"}, run_id="cancelled")
    runner(place, pipeline, clock).cancel("cancelled")
    ledger.interrupt(runner(place, pipeline, clock), 1, at={"b"}, run_id="running")
    ledger.taken()
    refused: list[tuple[str, str, Any]] = [
        ("completed", "pause", RunEndedError),
        ("completed", "resume", RunEndedError),
        ("completed", "cancel", RunEndedError),
        ("undone", "pause", RunEndedError),
        ("undone", "resume", RunEndedError),
        ("undone", "cancel", RunEndedError),
        ("undoing", "pause", RunEndedError),
        ("undoing", "resume", RunEndedError),
        ("cancelled", "pause", RunEndedError),
        ("cancelled", "resume", RunEndedError),
        ("failed", "pause", RunNotWaitingError),
        ("failed", "resume", RunNotWaitingError),
        ("running", "resume", RunNotWaitingError),
        ("nobody", "pause", RunNotFoundError),
        ("nobody", "resume", RunNotFoundError),
        ("nobody", "cancel", RunNotFoundError),
    ]
    before = place.contents()
    for run_id, order, error in refused:
        with pytest.raises(error) as caught:
            getattr(runner(place, pipeline, clock), order)(run_id)
        assert caught.value.data["run_id"] == run_id, (run_id, order)
        assert place.contents() == before, (run_id, order)
    assert ledger.calls == []


@pytest.mark.parametrize("how", ["asks", "sleeps", "is held", "was interrupted", "waits in branches", "has failed"])
def test_cancelling(place: Place, how: str) -> None:
    """Whatever it waits for, what it has done is undone, and it is cancelled; by whom, why and when is in the result,
    everywhere and for good, and among the messages. It waits for nothing any more."""
    ledger, clock = Ledger(), Clock()
    last = {
        "asks": ask(timeout=HOUR),
        "sleeps": Step.sleep("nap", HOUR),
        "waits in branches": Step.parallel("fan", a=ledger.does("work") >> ask(), b=Step.wait_for("go")),
    }.get(how, ledger.step("bad"))
    first = ledger.step("pay") if how == "has failed" else ledger.does("pay")
    pipeline = first >> last >> ledger.step("after")
    if how in ("was interrupted", "is held"):
        ledger.interrupt(runner(place, pipeline, clock), 1, at={"bad"})
    else:
        ledger.failing = {"bad"}
        runner(place, pipeline, clock).run(1, run_id="r")
        ledger.failing = set()
    if how == "is held":
        runner(place, pipeline, clock).pause("r")
    clock.jump(5)
    result = runner(place, pipeline, clock).cancel("r", by="ann", reason="a mistake")
    said = {"by": "ann", "reason": "a mistake", "at": clock.now().isoformat()}
    clock.jump(2 * HOUR)
    for found in (result, runner(place, pipeline, clock).run(1, run_id="r")):
        assert (found.status, found.phase, found.error) == ("cancelled", "undone", None)
        assert (found.cancelled, found.waiting, found.wakes_at) == (said, [], None)
    undone = {"waits in branches": ["fan.a.work", "pay"], "has failed": []}.get(how, ["pay"])
    assert result.undone == undone and "after" not in ledger.calls
    stored, before = place.load(), place.contents()
    assert (stored["status"], stored["due_at"]) == ("cancelled", None)
    assert runner(place, pipeline, clock).cancel("r", by="bob").cancelled == said
    with pytest.raises(RunNotWaitingError):
        runner(place, pipeline, clock).resume("r", YES)
    assert place.contents() == before
    (order,) = [m for m in runner(place, pipeline, clock).messages("r") if m.kind == "cancel"]
    assert (order.by, order.reason) == ("ann", "a mistake")


def post(place: Place, clock: Clock, *orders: str) -> None:
    """Store orders as a process would that dies before it can do any more."""
    backend = place.open()
    for number, kind in enumerate(orders):
        asyncio.run(backend.post("r", message(kind, clock, id=f"{kind}/{number}" if kind != "cancel" else kind)))


@pytest.mark.parametrize(
    ("orders", "status"),
    [
        (["cancel"], "cancelled"),
        (["pause"], "paused"),
        (["pause", "cancel"], "cancelled"),
        (["cancel", "pause"], "cancelled"),
        (["pause", "resume"], "completed"),
        (["pause", "resume", "pause"], "paused"),
        (["pause", "pause", "resume"], "completed"),
        (["pause", "resume", "cancel"], "cancelled"),
        (["pause", "cancel", "resume"], "cancelled"),
    ],
)
@pytest.mark.parametrize("waits", [True, False])
def test_orders_that_nobody_has_read(place: Place, orders: list[str], status: str, waits: bool) -> None:
    """Whoever takes the run up next obeys them in the order in which they were stored; a cancel cannot be taken back.
    A run that has been paused by nobody yet can be resumed all the same, when the pause is stored."""
    ledger, clock = Ledger(), Clock()
    pipeline = ledger.does("a") >> (Step.sleep("nap", HOUR) if waits else ledger.step("b"))
    if waits:
        runner(place, pipeline, clock).run(1, run_id="r")
        clock.jump(HOUR)
    else:
        ledger.interrupt(runner(place, pipeline, clock), 1, at={"b"})
    post(place, clock, *orders)
    result = runner(place, pipeline, clock).run(run_id="r")
    assert result.status == status
    assert result.undone == (["a"] if status == "cancelled" else [])
    assert (result.cancelled is not None) == (status == "cancelled")
    if status == "paused":
        assert kinds(result)[0] == "pause"
        assert runner(place, pipeline, clock).resume("r").status == "completed"


def test_orders_in_a_loop(place: Place) -> None:
    """Each has an async twin, and the plain one says so."""
    notes, clock = Notes(), Clock()
    pipeline = interrupted(place, notes, clock)

    async def main() -> None:
        using = runner(place, pipeline, clock)
        for plain in (using.pause, using.resume, using.cancel, using.messages):
            with pytest.raises(RunInsideLoopError, match="_async"):
                plain("r")
        with pytest.raises(RunInsideLoopError, match="_async"):
            using.signal("r", "go")
        await using.pause_async("r", by="ann")
        assert (await using.run_async(run_id="r")).status == "paused"
        *records, result = [each async for each in using.resume_async("r")]
        assert [record.name for record in records] == ["b", "c"] and result.status == "completed"
        with pytest.raises(RunEndedError):
            await using.cancel_async("r")
        assert [m.kind for m in await using.messages_async("r")] == ["pause", "resume"]

    asyncio.run(main())


def test_a_pause_in_the_middle_of_a_composite(place: Place) -> None:
    """A run that was interrupted there goes on there, when it is resumed; nothing that is saved is repeated."""
    notes, clock = Notes(), Clock()
    pipeline = Step.map_over("many", notes.step("one") >> notes.step("two"), max_concurrency=1)
    notes.interrupt(runner(place, pipeline, clock), [1, 2], at={"many[1].one"})
    notes.taken()
    runner(place, pipeline, clock).pause("r")
    assert kinds(runner(place, pipeline, clock).run(run_id="r")) == ["pause"]
    result = runner(place, pipeline, clock).resume("r")
    assert result.output == [1, 2] and notes.taken() == ["many[1].one", "many[1].two"]
    assert paths(result)[-1] == "many"
