"""Steps in doubt that die again, fail, wait for a retry, or are taken back: what is known of them never gets less."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from flujo import Flujo, Reconciled, Step, current_step, once, step
from flujo.errors import AlreadyAnsweredError, DeadlineExceededError, SaveError
from tests.support.backends import OURS, Place
from tests.support.nested_runs import Notes, paths, stopping
from tests.support.waiting_runs import Clock, Held, Ledger, at_once, runner

HAPPENED, NOT = Reconciled(happened=True, output=77), Reconciled(happened=False)


class Effects:
    """A step on whose death a person is asked. What each call in turn does is said beforehand."""

    def __init__(self, *turns: BaseException | None, **options: Any) -> None:
        self.turns = list(turns)
        self.attempts: list[int] = []
        self.keys: set[str] = set()

        @step(**{"name": "charge", "on_crash": "ask", **options})
        async def charge(n: int) -> int:
            self.attempts.append(current_step().attempt)
            self.keys.add(current_step().idempotency_key)
            await asyncio.sleep(0)
            turn = self.turns.pop(0) if self.turns else None
            if turn is not None:
                raise turn
            return n * 10

        self.step: Step[Any, Any] = charge


def dies(place: Place, pipeline: Any, *given: Any, clock: Clock | None = None, run_id: str = "r") -> None:
    """Run it in a process that dies."""
    with pytest.raises(KeyboardInterrupt):
        runner(place, pipeline, clock).run(*given, run_id=run_id)


def is_asked(place: Place, pipeline: Any, clock: Clock | None = None, at: str = "charge") -> Any:
    """Run it in a process that has to ask about the step, and return the result."""
    result = runner(place, pipeline, clock).run(run_id="r")
    assert result.status == "paused", result
    assert [(waiting.kind, waiting.step) for waiting in result.waiting] == [("crash", at)]
    return result


def test_dying_again(place: Place) -> None:
    """Each death is a question of its own; an answer to the one before is too late for the next."""
    effects = Effects(KeyboardInterrupt(), KeyboardInterrupt())
    dies(place, effects.step, 1)
    first = is_asked(place, effects.step)
    with pytest.raises(KeyboardInterrupt):
        runner(place, effects.step).resume(first, NOT, by="ann")
    before = place.contents()
    with pytest.raises(AlreadyAnsweredError, match="answered by ann"):
        runner(place, effects.step).resume(first, HAPPENED)
    assert place.contents() == before
    second = is_asked(place, effects.step)
    assert second.waiting[0].token != first.waiting[0].token
    with pytest.raises(AlreadyAnsweredError):
        runner(place, effects.step).resume(first, HAPPENED)
    assert runner(place, effects.step).resume(second, NOT).output == 10
    assert len(effects.attempts) == 3 and len(effects.keys) == 1


def test_dying_before_the_save(place: Place) -> None:
    """A step whose effect is there, and whose save is not, is in doubt as well as one in the middle."""
    effects = Effects()
    backend = stopping(place.open(), lambda records: False)
    save, saves = backend.save_state, list[Any]()

    async def save_state(run_id: str, state: dict[str, Any]) -> None:
        saves.append(state)
        if len(saves) > 1:  # the first one says that the step is about to run
            raise SaveError("The disk is gone.")
        await save(run_id, state)

    backend.save_state = save_state  # type: ignore[method-assign]
    with pytest.raises(SaveError):
        Flujo(effects.step, state_backend=backend, pipeline_name="p").run(1, run_id="r")
    del backend.save_state  # type: ignore[method-assign]
    is_asked(place, effects.step)
    assert runner(place, effects.step).resume("r", {"happened": True, "output": 10}).output == 10
    assert effects.attempts == [1]


@pytest.mark.parametrize("inside", [False, True])
def test_dying_in_an_attempt_after_a_pause(place: Place, inside: bool) -> None:
    """An attempt that was put off and has begun is in doubt like the first: it is not just made once more. While it is
    only waited for nothing is in doubt."""
    effects, clock = Effects(OSError("down"), KeyboardInterrupt(), retries=[60, 60]), Clock()
    pipeline: Any = Step.parallel("fan", a=effects.step) if inside else effects.step
    at = "fan.a.charge" if inside else "charge"
    result = runner(place, pipeline, clock).run(1, run_id="r")
    assert [waiting.kind for waiting in result.waiting] == ["retry"]
    clock.jump(60)
    dies(place, pipeline, clock=clock)
    is_asked(place, pipeline, clock, at)
    result = runner(place, pipeline, clock).resume("r", NOT)
    assert result.output == ({"a": 10} if inside else 10)
    assert len(effects.attempts) == 3 and len(effects.keys) == 1


def test_dying_while_the_time_is_slept(place: Place) -> None:
    """Between two attempts nothing runs: a process that dies there leaves no doubt, but cannot say so; it is asked."""
    effects = Effects(OSError("down"), retries=[1])

    class Deadly(Clock):
        async def sleep(self, seconds: float) -> None:
            raise KeyboardInterrupt

    dies(place, effects.step, 1, clock=Deadly())
    assert runner(place, effects.step).run(run_id="r").status == "paused"


def test_a_step_that_fails_after_the_verdict(place: Place) -> None:
    """That it failed is known: the next run just does it."""
    effects = Effects(KeyboardInterrupt(), OSError("down"))
    dies(place, effects.step, 1)
    is_asked(place, effects.step)
    assert runner(place, effects.step).resume("r", NOT).status == "failed"
    assert runner(place, effects.step).run(run_id="r").output == 10
    assert len(effects.attempts) == 3 and len(effects.keys) == 1


def test_a_verdict_outlives_who_took_it(place: Place) -> None:
    """Who says that it happened is believed once and for all, also where the next process dies right after that."""
    effects = Effects(KeyboardInterrupt())
    pipeline = effects.step >> Effects(KeyboardInterrupt(), name="next", on_crash="retry").step
    dies(place, pipeline, 1)
    is_asked(place, pipeline)
    with pytest.raises(KeyboardInterrupt):
        runner(place, pipeline).resume("r", HAPPENED)
    assert runner(place, pipeline).run(run_id="r").output == 770
    assert effects.attempts == [1]


def test_what_happened_is_undone(place: Place) -> None:
    """A step that was not done again, since it had happened, is undone with the output that was told."""
    ledger = Ledger()
    undone: list[Any] = []
    effects = Effects(KeyboardInterrupt(), undo=undone.append)
    pipeline = effects.step >> ledger.step("bad")
    dies(place, pipeline, 1)
    is_asked(place, pipeline)
    ledger.failing = {"bad"}
    result = runner(place, pipeline).resume("r", HAPPENED)
    assert (result.phase, result.undone, undone) == ("undone", ["charge"], [77])


def test_cancelling_a_run_in_doubt(place: Place) -> None:
    """Nobody knows whether there is anything to undo, so the step's undo does not run; those of others do."""
    ledger = Ledger()
    undone: list[Any] = []
    effects = Effects(KeyboardInterrupt(), undo=undone.append)
    pipeline = ledger.does("pay") >> effects.step
    dies(place, pipeline, 1)
    is_asked(place, pipeline)
    result = runner(place, pipeline).cancel("r")
    assert (result.status, result.undone, undone, result.waiting) == ("cancelled", ["pay"], [], [])


def test_stopped_by_a_failure_elsewhere(place: Place) -> None:
    """A branch that was cancelled in the middle of such a step is in doubt too, when the run is tried again."""
    notes = Notes()

    async def main() -> None:
        held = Held(notes, "charge", on_crash="ask")

        @step(name="bad")
        async def bad(n: int) -> int:
            await held.begun.wait()
            raise ValueError("out of order")

        pipeline = Step.parallel("fan", a=held.step, b=bad)
        result = await runner(place, pipeline).run_async(1, run_id="r")
        assert result.status == "failed" and held.cancelled

    at_once(main())
    charge = notes.step("charge", on_crash="ask")
    pipeline = Step.parallel("fan", a=charge, b=notes.step("bad"))
    is_asked(place, pipeline, at="fan.a.charge")
    assert runner(place, pipeline).resume("r", HAPPENED).output == {"a": 77, "b": 1}
    assert notes.calls == ["fan.a.charge", "fan.b.bad"]


@pytest.mark.parametrize("place", OURS, indirect=True)
def test_paused_while_it_runs(place: Place) -> None:
    """A pause lets it come to its end: nothing is in doubt then. A cancel stops it, and that is the end of the run."""
    notes = Notes()

    async def main(order: str) -> Any:
        held = Held(notes, "charge", on_crash="ask")
        pipeline = held.step >> notes.step("b")
        task = asyncio.ensure_future(runner(place, pipeline).run_async(1, run_id=order))
        await held.begun.wait()
        if order == "pause":
            await runner(place, pipeline).pause_async(order)
            held.go.set()
            assert (await task).status == "paused"
            return await runner(place, pipeline).resume_async(order)
        return await runner(place, pipeline).cancel_async(order)

    assert at_once(main("pause")).status == "completed"
    assert at_once(main("cancel")).status == "cancelled"
    assert notes.calls == ["charge", "b", "charge"]


def test_the_deadline_passes_while_it_is_asked(place: Place) -> None:
    """The run has failed then; under another deadline it asks on, and does not just do it."""
    effects, clock = Effects(KeyboardInterrupt()), Clock()
    with pytest.raises(KeyboardInterrupt):
        runner(place, effects.step, clock).run(1, run_id="r", deadline=timedelta(hours=1))
    is_asked(place, effects.step, clock)
    clock.jump(3600)
    result = runner(place, effects.step, clock).run(run_id="r")
    assert isinstance(result.error, DeadlineExceededError)
    again = runner(place, effects.step, clock).run(run_id="r", deadline=timedelta(hours=1))
    assert [waiting.kind for waiting in again.waiting] == ["crash"]
    assert runner(place, effects.step, clock).resume("r", HAPPENED).output == 77
    assert effects.attempts == [1]


def test_what_it_did_once(place: Place) -> None:
    """Where it did not happen as a whole, its parts that were saved are not done again."""
    parts: list[str] = []
    turns = [KeyboardInterrupt()]

    @step(on_crash="ask")
    async def charge(n: int) -> int:
        await once("one", parts.append, "one")
        if turns:
            raise turns.pop()
        await once("two", parts.append, "two")
        return n

    dies(place, charge, 1)
    is_asked(place, charge)
    assert runner(place, charge).resume("r", NOT).output == 1
    assert parts == ["one", "two"]


def test_a_plain_step(place: Place) -> None:
    """It is no different."""
    turns = [KeyboardInterrupt()]

    @step(on_crash="ask")
    def charge(n: int) -> int:
        if turns:
            raise turns.pop()
        return n

    pipeline = Notes().step("a") >> charge
    dies(place, pipeline, 1)
    is_asked(place, pipeline)
    result = runner(place, pipeline).resume("r", NOT)
    assert result.output == 1 and paths(result) == ["a", "charge"]
