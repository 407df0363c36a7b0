"""Several at once: who answers, orders, runs and fails in the same moment, a turn of the event loop sooner or later."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from flujo import Flujo, PipelineResult, Step
from flujo.errors import AlreadyAnsweredError, RunEndedError
from flujo.state.codec import Codec
from tests.support.backends import OURS, Place
from tests.support.nested_runs import Notes, paths
from tests.support.waiting_runs import (
    Clock,
    Held,
    Ledger,
    around_saves,
    ask,
    at_once,
    is_pausing,
    message,
    runner,
    subclassed,
    until,
)

ours = pytest.mark.parametrize("place", OURS, indirect=True)
TURNS = (0, 1, 2, 3, 4, 5, 7, 10, 15, 25)
Result = PipelineResult[Any]


async def turns(number: int) -> None:
    """Let the event loop turn so often."""
    for _ in range(number):
        await asyncio.sleep(0)


@ours
def test_several_answer_at_once(place: Place) -> None:
    """One of them has answered, and the others are told so; all that follows is done once."""
    notes = Notes()
    pipeline = ask(tp=int) >> notes.step("after")

    async def main() -> list[Any]:
        await runner(place, pipeline).run_async(1, run_id="r")
        answering = [runner(place, pipeline).resume_async("r", n, by=f"{n}") for n in range(5)]
        return list(await asyncio.gather(*answering, return_exceptions=True))

    found = at_once(main())
    results = [each for each in found if isinstance(each, PipelineResult)]
    assert len(results) == 1 and notes.calls == ["after"]
    assert results[0].step_history[0].by == f"{results[0].output}"
    refused = [each for each in found if each is not results[0]]
    assert all(isinstance(each, AlreadyAnsweredError) and each.by == results[0].step_history[0].by for each in refused)


@pytest.mark.slow
@ours
def test_several_threads_answer_at_once(place: Place) -> None:
    """The same with the plain methods, each in a thread of its own."""
    notes = Notes()
    pipeline = ask(tp=int) >> notes.step("after")
    for number in range(10):
        runner(place, pipeline).run(1, run_id=f"{number}")
        gate, found = threading.Barrier(4), list[Any]()

        def answer(n: int, number: int = number, gate: Any = gate, found: Any = found) -> None:
            gate.wait()
            try:
                found.append(runner(place, pipeline).resume(f"{number}", n, by=f"{n}").output)
            except AlreadyAnsweredError as error:
                found.append(error)

        threads = [threading.Thread(target=answer, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (output,) = [each for each in found if isinstance(each, int)]
        assert len(found) == 4 and runner(place, pipeline).run(run_id=f"{number}").output == output
    assert len(notes.calls) == 10


@ours
def test_several_take_it_up_at_once(place: Place) -> None:
    """Where the answer is stored and nobody has gone on with it: one does, and the others get its result."""
    notes, clock = Notes(), Clock()
    pipeline = Step.sleep("nap", 60) >> notes.step("after") >> Step.wait_for("go", int) >> notes.step("last")

    async def main() -> list[Result]:
        await runner(place, pipeline, clock).run_async(1, run_id="r")
        await runner(place, pipeline, clock).signal_async("r", "go", 7)
        clock.jump(60)
        running = [runner(place, pipeline, clock).run_async(run_id="r", wait=True) for _ in range(5)]
        return list(await asyncio.gather(*running))

    assert {result.output for result in at_once(main())} == {7}
    assert notes.calls == ["after", "last"]


def live(place: Place, ledger: Ledger) -> tuple[Held, Flujo[Any, Any]]:
    """Return a held step, and a runner of a pipeline in which another branch waits for a signal meanwhile."""
    held = Held(ledger, "work", undo=ledger.undo())
    who = Step.wait_for("go", int) >> ledger.does("after")
    pipeline = ledger.does("first") >> Step.parallel("fan", who=who, work=held.step) >> ledger.does("last")
    return held, runner(place, pipeline)


async def wait_is_known(place: Place, run_id: str) -> bool:
    """Return whether the store has what the run waits for."""
    return bool(((await place.open().load_state(run_id) or {}).get("waiting") or {}).get("waits"))


@pytest.mark.slow
@ours
def test_a_signal_and_a_failure(place: Place) -> None:
    """A signal that comes when another branch fails is used, or there for when the run is tried again: never lost."""
    notes, clock = Notes(), Clock()

    def fan(work: Step[Any, Any]) -> Any:
        return Step.parallel("fan", who=Step.wait_for("go", int) >> notes.step("after"), work=work)

    async def main(run_id: str, turn: int) -> None:
        held = Held(notes, "work", does=lambda n: 1 / 0)
        using = runner(place, fan(held.step), clock)
        task = asyncio.ensure_future(using.run_async(1, run_id=run_id))
        await until(lambda: wait_is_known(place, run_id))
        sending = asyncio.ensure_future(using.signal_async(run_id, "go", 7))
        await turns(turn)
        held.go.set()
        await sending
        assert (await task).status == "failed"

    for number, turn in enumerate(TURNS * 2):
        at_once(main(f"{number}", turn))
        result = runner(place, fan(notes.step("work")), clock).run(run_id=f"{number}")
        assert (result.status, result.output) == ("completed", {"who": 7, "work": 1}), (turn, result)
        assert notes.taken().count("fan.who.after") <= 2


def undone_rightly(result: Result, ledger: Ledger) -> None:
    """Prove that what is on record as done was undone, each once and the last first, and nothing else was."""
    done = [path for path in paths(result) if not path.endswith(">undo")]
    undoable = [path for path in done if path != "fan" and not path.endswith(".go")]
    assert result.undone == list(reversed(undoable)), (result.undone, done)
    undos = [call for call in ledger.calls if call.endswith(">undo")]
    assert undos == [f"{path}>undo" for path in result.undone]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["cancel", "pause"])
@ours
def test_an_order_a_signal_and_the_end_of_a_step(place: Place, order: str) -> None:
    """Whenever exactly each comes: the run completes, or it is cancelled and all that was done is undone, or it is
    paused and goes on without repeating anything; what `cancel` says is so."""

    async def main(run_id: str, turn: int, ledger: Ledger, *, before: bool, signalled: bool) -> tuple[Result, Any]:
        held, using = live(place, ledger)
        task = asyncio.ensure_future(using.run_async(1, run_id=run_id))
        await until(lambda: wait_is_known(place, run_id))
        if signalled:
            await using.signal_async(run_id, "go", 7)
        if before:
            held.go.set()
            await turns(turn)
        ordering: Any = using.cancel_async(run_id) if order == "cancel" else using.pause_async(run_id)
        ordered = asyncio.ensure_future(ordering)
        if not before:
            await turns(turn)
            held.go.set()
        answer = (await asyncio.gather(ordered, return_exceptions=True))[0]
        return await task, answer

    for number, turn in enumerate(TURNS * 3):
        ledger, run_id, signalled = Ledger(), f"{order} {number}", number % 3 == 0
        result, answer = at_once(main(run_id, turn, ledger, before=number % 2 == 0, signalled=signalled))
        if order == "cancel":
            if isinstance(answer, RunEndedError):
                assert result.status == "completed" and "fan.work.work>undo" not in ledger.calls
                continue
            assert isinstance(answer, PipelineResult) and answer.status == "cancelled", answer
            undone_rightly(answer, ledger)
            continue
        assert answer is None or isinstance(answer, RunEndedError)
        flow = live(place, ledger)[1]
        if result.status == "paused" and result.waiting[0].kind == "pause":
            result = flow.resume(run_id)
        if result.status == "paused" and not signalled:
            flow.signal(run_id, "go", 7)
            result = flow.run(run_id=run_id)
        if result.status == "paused":
            result = flow.resume(run_id)
        assert (result.status, result.output) == ("completed", {"who": 7, "work": 1})
        assert sorted(ledger.calls) == ["fan.who.after", "fan.work.work", "first", "last"]


@ours
@pytest.mark.parametrize("own", [False, True])
def test_interrupted_when_a_message_keeps_it_from_pausing(place: Place, own: bool) -> None:
    """A task that is cancelled while its pausing save is refused is cancelled; the message is there for the next."""
    notes, clock = Notes(), Clock()
    pipeline = notes.step("a") >> Step.wait_for("go", int) >> notes.step("b")

    async def main() -> None:
        backend = place.open()
        if own:
            subclassed(backend)
        pausing = asyncio.Event()

        async def interrupt(_: Any) -> None:
            payload = Codec().encode(7, "payload")
            await backend.post("r", message("signal", clock, id="signal/1", name="go", payload=payload))
            pausing.set()
            await turns(3)

        around_saves(backend, is_pausing, before=interrupt)
        using: Flujo[Any, Any] = Flujo(pipeline, state_backend=backend, pipeline_name="p", clock=clock)
        task = asyncio.ensure_future(using.run_async(1, run_id="r"))
        await pausing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        backend.__dict__.pop("save_state", None)

    at_once(main())
    result = runner(place, pipeline, clock).run(run_id="r")
    assert result.output == 7 and notes.calls.count("a") == 1


@pytest.mark.slow
@ours
def test_an_answer_while_it_is_begun_again(place: Place) -> None:
    """Answers to two questions come while somebody else goes on with the run: all have their way."""
    clock = Clock()
    fan = Step.parallel("fan", a=ask(tp=int), b=Step.sleep("nap", 60), c=ask(tp=int))

    async def main(run_id: str, turn: int) -> Result:
        using = runner(place, fan, clock)
        await using.run_async(1, run_id=run_id)
        clock.jump(60)
        running = asyncio.ensure_future(using.run_async(run_id=run_id, wait=True))
        await turns(turn)
        one = asyncio.ensure_future(using.resume_async(run_id, 1, at="fan.a.ask"))
        two = asyncio.ensure_future(using.resume_async(run_id, 2, at="fan.c.ask"))
        await asyncio.gather(running, one, two)
        return await using.run_async(run_id=run_id, wait=True)

    for number, turn in enumerate(TURNS):
        assert at_once(main(f"{number}", turn)).output == {"a": 1, "b": 1, "c": 2}, turn
