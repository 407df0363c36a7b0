"""Pausing a run that this process executes: what is under way comes to its end, and nothing new begins."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from flujo import Flujo, PipelineResult, Step
from flujo.errors import RunEndedError, RunInProgressError, StoreBusyError
from tests.support.backends import OURS, THEIRS, Place
from tests.support.nested_runs import Notes, paths
from tests.support.waiting_runs import (
    YES,
    Clock,
    Held,
    ask,
    at_once,
    one_backend,
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
def test_pausing(place: Place) -> None:
    """What is under way comes to its end and is saved, and nothing else begins. `resume` goes on after it."""
    notes = Notes()

    async def main() -> Result:
        held = Held(notes)
        pipeline = notes.step("a") >> held.step >> notes.step("b")
        task = begun(place, pipeline)
        await held.begun.wait()
        await runner(place, pipeline).pause_async("r", by="ann", reason="a look at it")
        await settle()
        assert not held.cancelled and not task.done()
        held.go.set()
        result = await task
        assert result.status == "paused" and [waiting.by for waiting in result.waiting] == ["ann"]
        assert paths(result) == ["a", "work"] and notes.calls == ["a", "work"]
        return await runner(place, pipeline).resume_async("r")

    assert paths(at_once(main())) == ["a", "work", "b"]
    assert notes.calls == ["a", "work", "b"]


@ours
def test_pausing_a_composite(place: Place) -> None:
    """Items under way come to the end of their step, each is saved; no step and no item begins after that."""
    notes = Notes()

    async def main() -> Result:
        held = Held(notes)
        many = Step.map_over("many", held.step >> notes.step("after"), max_concurrency=2)
        task = begun(place, many, [1, 2, 3])
        await until(lambda: calls_of(notes, "many[1].work"))
        await runner(place, many).pause_async("r")
        await settle()
        held.go.set()
        result = await task
        assert result.status == "paused" and not held.cancelled
        assert notes.taken() == ["many[0].work", "many[1].work"]
        assert sorted(paths(result)) == ["many[0].work", "many[1].work"]
        return await runner(place, many).resume_async("r")

    assert at_once(main()).output == [1, 2, 3]
    assert sorted(notes.calls) == ["many[0].after", "many[1].after", "many[2].after", "many[2].work"]


@ours
def test_pausing_in_the_last_step(place: Place) -> None:
    """When that is saved there is nothing left that could be paused: the run has completed."""
    notes = Notes()

    async def main() -> Result:
        held = Held(notes)
        task = begun(place, held.step)
        await held.begun.wait()
        await runner(place, held.step).pause_async("r")
        held.go.set()
        return await task

    assert at_once(main()).status == "completed"


@ours
@pytest.mark.parametrize("then", ["resume", "cancel", "pause"])
def test_an_order_after_a_pause_that_is_not_obeyed_yet(place: Place, then: str) -> None:
    """While the step that a pause waits for is under way, a `resume` takes it back, and a `cancel` is one."""
    notes = Notes()

    async def main() -> Result:
        held = Held(notes)
        pipeline = held.step >> notes.step("b")
        task = begun(place, pipeline)
        await held.begun.wait()
        await runner(place, pipeline).pause_async("r", by="ann")
        await settle()
        if then == "pause":
            await runner(place, pipeline).pause_async("r", by="bob")
            held.go.set()
        else:
            other = asyncio.ensure_future(getattr(runner(place, pipeline), f"{then}_async")("r"))
            await settle()
            await until(lambda: kinds(place, 2))
            if then == "resume":
                held.go.set()
            assert (await other).status == (await task).status
        result = await task
        if then != "pause":
            with pytest.raises(RunEndedError):
                await runner(place, pipeline).resume_async("r")
        return result

    result = at_once(main())
    assert result.status == {"resume": "completed", "cancel": "cancelled", "pause": "paused"}[then]
    if then == "pause":
        assert result.waiting_for is not None and result.waiting_for.by == "bob"


async def kinds(place: Place, count: int) -> bool:
    """Return whether there are so many messages."""
    return len(await place.open().mail("r")) == count


class Counting(Clock):
    """A clock that counts how often it is asked."""

    asked = 0

    def now(self) -> Any:
        self.asked += 1
        return super().now()


@ours
def test_a_paused_composite_with_a_timer_that_is_due(place: Place) -> None:
    """The timer does not fire, and nobody looks at it again and again while something else comes to its end."""
    notes, clock = Notes(), Counting()

    async def main() -> None:
        held = Held(notes)
        fan = Step.parallel("fan", nap=Step.sleep("nap", 0.001) >> notes.step("after"), work=held.step)
        task = begun(place, fan, clock=clock)
        await until(lambda: place.open().load_state("r"))
        await runner(place, fan, clock).pause_async("r")
        await settle()
        clock.jump(1)
        ticked = asyncio.Event()
        asyncio.get_running_loop().call_later(0.02, ticked.set)
        await ticked.wait()
        before = clock.asked
        await settle()
        assert clock.asked - before < 5
        held.go.set()
        assert (await task).status == "paused"
        assert notes.calls == ["fan.work.work"]
        assert (await runner(place, fan, clock).resume_async("r")).status == "completed"

    at_once(main())


@ours
def test_an_answer_to_a_run_that_is_to_be_paused(place: Place) -> None:
    """It is kept: what follows it begins when the run is resumed."""
    notes = Notes()

    async def main() -> Result:
        held = Held(notes)
        fan = Step.parallel("fan", who=ask() >> notes.step("after"), work=held.step)
        task = begun(place, fan)
        await until(lambda: place.open().load_state("r"))
        await runner(place, fan).pause_async("r")
        answering = asyncio.ensure_future(runner(place, fan).resume_async("r", YES, by="ann"))
        await until(lambda: kinds(place, 2))
        await settle()
        held.go.set()
        assert [(await task).status, (await answering).status] == ["paused", "paused"]
        assert notes.calls == ["fan.work.work"]
        return await runner(place, fan).resume_async("r")

    assert at_once(main()).output == {"who": YES, "work": 1}


@ours
def test_messages_that_cannot_be_read(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """That is logged and does not touch the step; the next look finds what has come."""
    notes = Notes()

    async def main() -> Result:
        backend = place.open()
        read = backend.mail

        async def busy(*_: Any, **__: Any) -> Any:
            raise StoreBusyError("Somebody is at it.")

        held = Held(notes)
        pipeline = held.step >> notes.step("b")
        using = Flujo(pipeline, state_backend=backend, pipeline_name="p")
        task = asyncio.ensure_future(using.run_async(1, run_id="r"))
        await held.begun.wait()
        backend.mail = busy  # type: ignore[method-assign]
        await runner(place, pipeline).pause_async("r")
        await until(lambda: logged(caplog))
        backend.mail = read  # type: ignore[method-assign]
        held.go.set()
        return await task

    with caplog.at_level(logging.WARNING, "flujo"):
        assert at_once(main()).status == "paused"
    assert notes.calls == ["work"]


async def logged(caplog: pytest.LogCaptureFixture) -> bool:
    """Return whether anything was logged of messages."""
    return "its messages could not be read" in caplog.text


@pytest.mark.parametrize("place", THEIRS, indirect=True)
def test_without_a_mailbox(place: Place) -> None:
    """A backend of three methods takes nothing for a run that is executed: it says so, and the run is not touched."""
    notes = Notes()
    one_backend(place)

    async def main() -> Result:
        held = Held(notes)
        fan = Step.parallel("fan", work=held.step, who=ask(), go=Step.wait_for("go", int))
        task = begun(place, fan)
        await held.begun.wait()
        await until(lambda: place.open().load_state("r"))
        before = place.contents()
        using = runner(place, fan)
        for work in (using.cancel_async("r"), using.pause_async("r"), using.signal_async("r", "go", 1)):
            with pytest.raises(RunInProgressError):
                await work
        with pytest.raises(RunInProgressError):
            await using.resume_async("r", YES)
        assert place.contents() == before
        held.go.set()
        return await task

    result = at_once(main())
    assert result.status == "paused" and asyncio.run(place.open().mail("r")) == []
