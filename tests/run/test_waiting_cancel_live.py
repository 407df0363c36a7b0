"""Cancelling a run that this process executes: what is under way is cancelled at once, and what it has done undone."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from flujo import Flujo, PipelineResult, Step, current_step, once, step
from flujo.errors import RunInProgressError
from flujo.testing import VirtualClock
from tests.support.backends import OURS, Place
from tests.support.nested_runs import PATIENCE_S, Notes, paths
from tests.support.waiting_runs import (
    Held,
    Ledger,
    around_saves,
    ask,
    at_once,
    records_named,
    runner,
    settle,
    until,
)

ours = pytest.mark.parametrize("place", OURS, indirect=True)
Result = PipelineResult[Any]


def begun(place: Place, pipeline: Any, given: Any = 1, **options: Any) -> asyncio.Task[Result]:
    """Have a run executed in the background."""
    return asyncio.ensure_future(runner(place, pipeline, **options).run_async(given, run_id="r"))


async def calls_of(notes: Notes, path: str) -> bool:
    """Return whether that step was called."""
    return path in notes.calls


@ours
def test_cancelling_an_async_step(place: Place) -> None:
    """It is cancelled at once, and nobody has to let it go; undos run. Both get the same result."""
    ledger = Ledger()

    async def main() -> list[Result]:
        held = Held(ledger, "work", undo=lambda n: None)
        pipeline = ledger.does("pay") >> held.step >> ledger.step("after")
        task = begun(place, pipeline)
        await held.begun.wait()
        result = await runner(place, pipeline).cancel_async("r", by="ann", reason="a mistake")
        assert held.cancelled and not held.go.is_set()
        results = [await task, result]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return results

    for result in at_once(main()):
        assert (result.status, result.undone, result.error) == ("cancelled", ["pay"], None)
        assert result.cancelled is not None and result.cancelled["by"] == "ann"
        assert result.cancelled["reason"] == "a mistake"
    assert ledger.calls == ["pay", "work", "pay>undo"]


@ours
def test_cancelling_a_plain_step(place: Place) -> None:
    """It is told that nobody waits for it, and is abandoned: undos begin when it has come to its end."""
    ledger, begin, order = Ledger(), threading.Event(), list[str]()
    go = threading.Event()

    @step
    def slow(n: int) -> int:
        begin.set()
        current = current_step()
        while not current.cancelled and not go.wait(0.002):
            pass
        order.append("told" if current.cancelled else "let go")
        return n

    def undo(n: int) -> None:
        order.append("undone")

    pipeline = step(name="pay", undo=undo)(lambda n: n) >> slow >> ledger.step("after")

    async def main() -> list[Result]:
        task = begun(place, pipeline)
        await asyncio.to_thread(begin.wait, PATIENCE_S)
        return [await runner(place, pipeline).cancel_async("r"), await task]

    for result in at_once(main()):
        assert (result.status, result.undone, paths(result)) == ("cancelled", ["pay"], ["pay", "pay>undo"])
    go.set()
    assert (order, ledger.calls) == (["told", "undone"], [])


@ours
@pytest.mark.parametrize("order", ["cancel", "pause"])
def test_from_another_thread(place: Place, order: str) -> None:
    """A plain call in a thread reaches a run that another thread's loop executes."""
    notes = Notes()

    async def main() -> Result:
        held = Held(notes)
        pipeline = notes.step("a") >> held.step >> notes.step("b")
        task = begun(place, pipeline)
        await held.begun.wait()
        await asyncio.to_thread(getattr(runner(place, pipeline), order), "r", by="ann")
        held.go.set()
        return await task

    result = at_once(main())
    assert result.status == {"cancel": "cancelled", "pause": "paused"}[order]
    assert notes.calls == ["a", "work"]


@ours
def test_cancelling_a_composite(place: Place) -> None:
    """All that goes on in it is cancelled, what it has done is undone, nothing new begins."""
    ledger = Ledger()

    async def main() -> Result:
        held = Held(ledger)
        body = ledger.does("before") >> held.step >> ledger.step("after")
        fan = Step.parallel(
            "fan", one=Step.map_over("many", body, max_concurrency=2), two=ask(), nap=Step.sleep("z", 9)
        )
        task = begun(place, fan, [1, 2, 3])
        await until(lambda: calls_of(ledger, "fan.one.many[1].work"))
        await settle()
        result = await runner(place, fan).cancel_async("r")
        assert (await task).status == "cancelled"
        return result

    result = at_once(main())
    assert sorted(result.undone) == ["fan.one.many[0].before", "fan.one.many[1].before"]
    assert not [call for call in ledger.calls if "[2]" in call or "after" in call]
    assert place.load()["waiting"].get("waits") is None


@ours
@pytest.mark.parametrize("answer", ["returns", "raises"])
def test_a_step_that_answers_its_cancellation(place: Place, answer: str) -> None:
    """What it returns all the same is saved, and undone; what it raises instead is no failure. No step follows."""
    ledger = Ledger()
    reached = asyncio.Event()

    @step(undo=ledger.undo())
    async def stubborn(n: int) -> int:
        reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if answer == "raises":
                raise ValueError("not now") from None
        return n

    pipeline = stubborn >> ledger.step("after")

    async def main() -> Result:
        task = begun(place, pipeline)
        await reached.wait()
        await runner(place, pipeline).cancel_async("r")
        return await task

    result = at_once(main())
    assert (result.status, result.error) == ("cancelled", None)
    assert result.undone == (["stubborn"] if answer == "returns" else [])
    assert "after" not in ledger.calls


@ours
def test_cancelling_in_the_first_step(place: Place) -> None:
    """Nothing of the run is saved yet; then it is, as cancelled."""
    notes = Notes()

    async def main() -> Result:
        held = Held(notes)
        task = begun(place, held.step >> notes.step("b"))
        await held.begun.wait()
        result = await runner(place, held.step >> notes.step("b")).cancel_async("r", by="ann")
        assert (await task).status == "cancelled"
        return result

    result = at_once(main())
    assert (result.status, result.step_history, notes.calls) == ("cancelled", [], ["work"])
    assert place.load()["status"] == "cancelled"


class Stopping(VirtualClock):
    """A clock on which whoever sleeps never wakes."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeping = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.sleeping.set()
        await asyncio.Event().wait()


@ours
def test_cancelling_between_two_attempts(place: Place) -> None:
    """A run that sleeps before a retry does not sleep to the end."""
    notes = Notes()
    notes.failing = {"flaky"}

    async def main() -> Result:
        clock = Stopping()
        pipeline = notes.step("flaky", retries=[5])
        task = begun(place, pipeline, clock=clock)
        await clock.sleeping.wait()
        result = await runner(place, pipeline).cancel_async("r")
        assert (await task).status == "cancelled"
        return result

    assert at_once(main()).status == "cancelled" and notes.calls == ["flaky"]


@ours
def test_cancelling_while_it_is_undone(place: Place) -> None:
    """It is being undone already, and ends as it would have."""
    ledger = Ledger()
    ledger.failing = {"bad"}

    async def main() -> Result:
        held = Held(ledger, "undo")
        pipeline = ledger.step("pay", undo=held.step) >> ledger.step("bad")
        task = begun(place, pipeline)
        await held.begun.wait()
        cancelling = asyncio.ensure_future(runner(place, pipeline).cancel_async("r"))
        await until(lambda: place.open().mail("r"))
        held.go.set()
        result = await task
        assert not held.cancelled and (await cancelling).status == "failed"
        return result

    result = at_once(main())
    assert (result.status, result.undone) == ("failed", ["pay"])


@ours
def test_cancelling_while_two_are_being_saved(place: Place) -> None:
    """Steps that had come to their end before the cancel are saved, one that waited for its save too: all of them are
    undone, and no later save tells of a step that was done and not undone."""
    ledger = Ledger()

    async def main() -> Result:
        backend = place.open()
        saving, go = asyncio.Event(), asyncio.Event()

        async def stall(_: Any) -> None:
            saving.set()
            await go.wait()

        @step(name="undo")
        async def undo(n: Any) -> None:
            await once("part", ledger.calls.append, f"{current_step().path[-2]} undone")

        around_saves(backend, records_named("one"), before=stall)
        held = Held(ledger, "two", undo=undo)
        fan = Step.parallel("fan", a=ledger.step("one", undo=undo), b=held.step, c=Held(ledger).step)
        using = Flujo(fan, state_backend=backend, clock=VirtualClock(), pipeline_name="p")
        task = asyncio.ensure_future(using.run_async(1, run_id="r"))
        await saving.wait()
        held.go.set()
        await settle()  # it has come to its end, and waits for the save before its own
        cancelling = asyncio.ensure_future(using.cancel_async("r"))
        await until(lambda: backend.mail("r"))
        await settle()
        go.set()
        assert (await cancelling).status == "cancelled"
        assert not held.cancelled
        return await task

    result = at_once(main())
    assert sorted(result.undone) == ["fan.a.one", "fan.b.two"]
    assert sorted(ledger.calls[3:]) == ["one undone", "two undone"]


@pytest.mark.parametrize("order", ["an order", "and none"])
@ours
def test_interrupted_from_outside_as_well(place: Place, order: str) -> None:
    """A task that is cancelled ends with CancelledError whatever else has come; the run is there for whoever wants it
    next."""
    ledger = Ledger()

    async def main() -> Result:
        held = Held(ledger)
        pipeline = ledger.does("pay") >> held.step
        task = begun(place, pipeline)
        await held.begun.wait()
        if order == "an order":
            cancelling = asyncio.ensure_future(runner(place, pipeline).cancel_async("r"))
            await until(lambda: place.open().mail("r"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if order == "an order":
            return await cancelling
        held.go.set()
        return await runner(place, pipeline).run_async(run_id="r")

    result = at_once(main())
    assert result.status == ("cancelled" if order == "an order" else "completed")
    assert result.undone == (["pay"] if order == "an order" else [])


@ours
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("order", ["cancel", "pause"])
def test_a_step_that_stops_its_own_run(place: Place, order: str, plain: bool) -> None:
    """What it orders while it runs is obeyed before the next step begins, however quickly it comes to its end. But it
    cannot wait for its own run to end, and is told so."""
    ledger = Ledger()
    told: list[BaseException] = []

    @step(name="first", undo=ledger.undo())
    async def first(n: int) -> int:
        try:
            await getattr(runner(place, pipeline), f"{order}_async")("r", by="itself")
        except (RunInProgressError, asyncio.CancelledError) as error:
            told.append(error)
        return n

    @step(name="first", undo=ledger.undo())
    def first_plain(n: int) -> int:
        try:
            getattr(runner(place, pipeline), order)("r", by="itself")
        except RunInProgressError as error:
            told.append(error)
        return n

    pipeline = (first_plain if plain else first) >> ledger.step("second")
    result = runner(place, pipeline).run(1, run_id="r")
    assert told == [] or order == "cancel"
    if order == "pause":
        assert result.status == "paused" and result.waiting[0].by == "itself" and paths(result) == ["first"]
        assert ledger.calls == []
    else:
        assert result.status == "cancelled" and result.cancelled is not None and result.cancelled["by"] == "itself"
        assert "second" not in ledger.calls
        assert set(result.undone) <= {"first"}
