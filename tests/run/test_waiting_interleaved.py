"""Signals, answers, orders, timers and saves at the same moment, in every order: one outcome each, whatever the store.

What is stored counts in the order of its storing. A cancel ends the run before its next step; a pause keeps it there. A
message that is stored before it is saved that a time has run out counts, one after that does not. Whatever comes in the
very moment in which a run pauses is there for whoever runs it next, or is obeyed at once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from flujo import Flujo, PipelineResult, StateBackend, Step
from flujo.errors import AnswerTooLateError, FlujoError, RunEndedError, RunInProgressError
from flujo.state.codec import Codec
from flujo.state.mail import Message, answer_id, token, waits_of
from tests.support.backends import OURS, THEIRS, Place
from tests.support.nested_runs import paths
from tests.support.waiting_runs import (
    Clock,
    Ledger,
    around_saves,
    ask,
    is_pausing,
    message,
    records_named,
    subclassed,
)

SAVE = "save"
HOUR = 3600
WAYS = ["inline", "async", "subclass"]
ours = pytest.mark.parametrize("place", OURS, indirect=True)
Result = PipelineResult[Any]


def sequences(*events: str, always: str = "") -> Iterator[tuple[str, ...]]:
    """Yield all orders of all selections of the events, those without `always` left out."""
    for count in range(1, len(events) + 1):
        for found in itertools.permutations(events, count):
            if not always or always in found:
                yield found


class Stage:
    """One run on which a sequence of events is played. `errors` are the refusals, by event."""

    def __init__(self, place: Place, way: str = "async", run_id: str = "r") -> None:
        self.clock, self.ledger = Clock(), Ledger()
        self.backend: StateBackend = place.open()
        self.way, self.run_id = way, run_id
        if way == "subclass" and type(self.backend).__name__ != "Mine":
            subclassed(self.backend)
        self.errors: dict[str, FlujoError] = {}
        self.stored: list[str] = []
        self.calls = 0

    def run(self, pipeline: Any, *given: Any) -> Result:
        flow: Flujo[Any, Any] = Flujo(pipeline, state_backend=self.backend, clock=self.clock, pipeline_name="p")
        if self.way == "inline":
            return flow.run(*given, run_id=self.run_id)
        return asyncio.run(flow.run_async(*given, run_id=self.run_id))  # type: ignore[arg-type]

    def resume(self, pipeline: Any) -> Result:
        return Flujo(pipeline, state_backend=self.backend, clock=self.clock, pipeline_name="p").resume(self.run_id)

    async def happen(self, event: str) -> None:
        """Let an event come: as another process would bring it, which does nothing else."""
        if event == "due":
            self.clock.jump(HOUR)
            return
        try:
            await self.backend.post(self.run_id, await self._message(event))
        except FlujoError as error:
            self.errors[event] = error
        else:
            self.stored.append(event)

    async def _message(self, event: str) -> Message:
        if event == "signal":
            return message("signal", self.clock, id="signal/1", name="go", payload=Codec().encode(7, "payload"))
        if event == "answer":
            state = await self.backend.load_state(self.run_id)
            wait = next(wait for wait in waits_of((state or {}).get("waiting")) if wait["kind"] == "human")
            answer = Codec().encode(7, "answer")
            return message("answer", self.clock, id=answer_id(wait, None), name=token(wait), payload=answer)
        self.calls += 1
        return message(event, self.clock, id=event if event == "cancel" else f"{event}/{self.calls}")

    async def all_of(self, events: Sequence[str]) -> None:
        for event in events:
            await self.happen(event)

    def around(self, wanted: Any, sequence: Sequence[str]) -> None:
        """Play the sequence at the first save that is wanted, which is the event SAVE in it."""
        place = sequence.index(SAVE)

        async def before(_: Any) -> None:
            await self.all_of(sequence[:place])

        async def after(_: Any) -> None:
            await self.all_of(sequence[place + 1 :])

        around_saves(self.backend, wanted, before, after)

    def close(self) -> None:
        """Prove that every message is there, in the order of its storing, and take the hooks off."""
        found = asyncio.run(self.backend.mail(self.run_id))
        assert [m.kind for m in found] == self.stored
        assert [m.seq for m in found] == sorted(m.seq for m in found)
        self.backend.__dict__.pop("save_state", None)


def waiting(kind: str, **options: Any) -> Step[Any, Any]:
    """Return a step that waits for 7."""
    return Step.wait_for("go", int, **options) if kind == "signal" else ask("go", tp=int, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["signal", "answer"])
def test_all_that_can_come_to_a_paused_run(place: Place, kind: str) -> None:
    """A message, a cancel, a pause and the time, in all orders, before anybody runs it: a cancel ends it; else a pause
    keeps it; else the message counts for more than the time, whichever came first."""
    for number, sequence in enumerate(sequences(kind, "cancel", "pause", "due")):
        stage = Stage(place, WAYS[number % 2], run_id=f"run {number}")
        ledger = stage.ledger
        pipeline = ledger.does("first") >> waiting(kind, timeout=HOUR, on_timeout=-1) >> ledger.step("last")
        assert stage.run(pipeline, 1).status == "paused"
        asyncio.run(stage.all_of(sequence))
        result = stage.run(pipeline)
        assert stage.errors == {}, sequence
        if "cancel" in sequence:
            assert (result.status, result.undone, "last" in ledger.calls) == ("cancelled", ["first"], False), sequence
            stage.close()
            continue
        if "pause" in sequence:
            assert result.status == "paused" and result.waiting[0].kind == "pause", sequence
            assert "last" not in ledger.calls
            stage.stored.append("resume")
            result = stage.resume(pipeline)
        if kind in sequence or "due" in sequence:
            assert (result.status, result.output) == ("completed", 7 if kind in sequence else -1), sequence
            assert ledger.calls == ["first", "last"]
        else:
            assert [found.kind for found in result.waiting] == ["human" if kind == "answer" else kind], sequence
        stage.close()


def before_save(sequence: Sequence[str], *, guarded: bool = False) -> list[str]:
    """Return what comes before the save. A save that is `guarded` is refused where anything does, and comes last."""
    early = list(sequence[: sequence.index(SAVE)])
    return [event for event in sequence if event != SAVE] if guarded and early else early


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["top", "inside"])
@ours
def test_all_that_can_come_with_the_save_of_a_step(place: Place, where: str, way: str) -> None:
    """Before or after it, the step is saved; the next one does not begin where there is a cancel or a pause. A signal
    is kept for the step that waits for it."""
    for number, sequence in enumerate(sequences("signal", "cancel", "pause", SAVE, always=SAVE)):
        stage = Stage(place, way, run_id=f"{way} {number}")
        ledger = stage.ledger
        chain = ledger.does("first") >> ledger.step("second") >> Step.wait_for("go", int)
        pipeline: Any = chain.as_step("all") >> ledger.step("last") if where == "inside" else chain
        stage.around(records_named("first"), sequence)
        result = stage.run(pipeline, 1)
        assert stage.errors == {}, sequence
        called = [call.rpartition(".")[2] for call in ledger.calls]
        if "cancel" in sequence:
            assert result.status == "cancelled" and called == ["first", "first>undo"], (sequence, result, called)
        elif "pause" in sequence:
            assert result.status == "paused" and result.waiting[0].kind == "pause", (sequence, result)
            assert called == ["first"], (sequence, called)
            stage.stored.append("resume")
            result = stage.resume(pipeline)
            assert result.status == ("completed" if "signal" in sequence else "paused"), (sequence, result)
        elif "signal" in sequence:
            assert (result.status, result.output) == ("completed", 7), (sequence, result)
        else:
            assert [found.kind for found in result.waiting] == ["signal"], sequence
        stage.close()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@ours
def test_all_that_can_come_with_the_last_save(place: Place, way: str) -> None:
    """There is no step left that could be kept from beginning: the run completes. What comes after that save is told
    that it has ended."""
    for number, sequence in enumerate(sequences("signal", "cancel", "pause", SAVE, always=SAVE)):
        stage = Stage(place, way, run_id=f"{way} {number}")
        pipeline = stage.ledger.step("first") >> stage.ledger.does("last")
        stage.around(records_named("last"), sequence)
        result = stage.run(pipeline, 1)
        assert (result.status, result.output) == ("completed", 1), (sequence, result)
        assert stage.ledger.calls == ["first", "last"], sequence
        late = set(sequence) - {SAVE, *before_save(sequence)}
        assert set(stage.errors) == late and all(isinstance(e, RunEndedError) for e in stage.errors.values()), sequence
        if "cancel" in sequence:
            with pytest.raises(RunEndedError):
                Flujo(pipeline, state_backend=stage.backend, pipeline_name="p").cancel(stage.run_id)
        stage.close()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["signal", "answer"])
@ours
def test_all_that_can_come_while_it_pauses(place: Place, kind: str, way: str) -> None:
    """Before the save by which the run pauses: it is obeyed or used, and the run does not pause for nothing. After that
    save: it is there for the next one who runs it."""
    for number, sequence in enumerate(sequences(kind, "cancel", "pause", SAVE, always=SAVE)):
        stage = Stage(place, way, run_id=f"{way} {number}")
        ledger = stage.ledger
        fan = Step.parallel("fan", who=waiting(kind) >> ledger.step("after"), work=ledger.does("work"))
        pipeline = fan >> ledger.step("last")
        stage.around(is_pausing, sequence)
        result = stage.run(pipeline, 1)
        assert stage.errors == {}, (sequence, stage.errors)
        early = before_save(sequence, guarded=True)
        check(result, early, ledger, sequence)
        if not early:
            result = stage.run(pipeline)
            check(result, sequence, ledger, sequence)
        if result.status == "paused" and "pause" in sequence:
            stage.stored.append("resume")
            result = stage.resume(pipeline)
            check(result, [event for event in sequence if event != "pause"], ledger, sequence)
        stage.close()


def check(result: Result, events: Sequence[str], ledger: Ledger, shown: Any) -> None:
    """Prove that the run is where it has to be when these events have come, whatever their order."""
    if "cancel" in events:
        assert (result.status, result.undone) == ("cancelled", ["fan.work.work"]), (shown, result)
        assert "last" not in ledger.calls, shown
    elif "pause" in events:
        assert result.status == "paused" and result.waiting[0].kind == "pause", (shown, result)
        assert "last" not in ledger.calls, shown
    elif "signal" in events or "answer" in events:
        assert (result.status, result.output) == ("completed", {"who": 7, "work": 1}), (shown, result)
    else:
        assert result.status == "paused" and len(result.waiting) == 1, (shown, result)
        assert ledger.calls == ["fan.work.work"], shown


def is_expiring(state: dict[str, Any]) -> bool:
    """Return whether a save is one that says that the time for something is over."""
    return any(wait.get("expired") for wait in waits_of(state.get("waiting")))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["signal", "answer"])
@ours
def test_all_that_can_come_when_the_time_is_over(place: Place, kind: str, way: str) -> None:
    """A message that is stored before that save counts, and the time has not run out; one after it comes too late, an
    answer is told so. A cancel ends the run before its next step, a pause keeps it there."""
    for number, sequence in enumerate(sequences(kind, "cancel", "pause", SAVE, always=SAVE)):
        stage = Stage(place, way, run_id=f"{way} {number}")
        ledger = stage.ledger
        pipeline = ledger.does("first") >> waiting(kind, timeout=HOUR, on_timeout=-1) >> ledger.step("last")
        stage.run(pipeline, 1)
        stage.clock.jump(HOUR)
        stage.around(is_expiring, sequence)
        result = stage.run(pipeline)
        early = kind in before_save(sequence, guarded=True)
        if kind == "answer" and kind in sequence and not early:
            assert isinstance(stage.errors.pop("answer"), AnswerTooLateError), sequence
        assert stage.errors == {}, (sequence, stage.errors)
        if "cancel" in sequence:
            assert (result.status, result.undone) == ("cancelled", ["first"]), (sequence, result)
            assert "last" not in ledger.calls, sequence
            stage.close()
            continue
        if "pause" in sequence:
            assert result.status == "paused" and result.waiting[0].kind == "pause", (sequence, result)
            assert "last" not in ledger.calls, sequence
            stage.stored.append("resume")
            result = stage.resume(pipeline)
        assert (result.status, result.output) == ("completed", 7 if early else -1), (sequence, result)
        stage.close()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["signal", "answer"])
def test_a_message_a_cancel_a_timer_and_a_save(place: Place, kind: str, way: str) -> None:
    """All four at once, while one branch waits and the other is saved, in all orders: a cancel ends the run, and what
    was saved is undone; else the message counts for more than the time. Three methods take no message meanwhile."""
    if place.kind in THEIRS and way != "async":
        way = "inline"
    for number, sequence in enumerate(sequences(kind, "cancel", "due", SAVE, always=SAVE)):
        stage = Stage(place, way, run_id=f"{way} {number}")
        ledger = stage.ledger
        who = waiting(kind, timeout=HOUR, on_timeout=-1)
        work = ledger.step("wait a moment") >> ledger.step("wait another") >> ledger.does("work")
        pipeline = Step.parallel("fan", who=who, work=work) >> ledger.step("last")
        stage.around(records_named("work"), sequence)
        result = stage.run(pipeline, 1)
        events = set(sequence)
        if place.kind in THEIRS:
            refused = events & {kind, "cancel"}
            assert set(stage.errors) == refused, sequence
            assert all(isinstance(error, RunInProgressError) for error in stage.errors.values())
            events -= refused
        else:
            assert stage.errors == {}, (sequence, stage.errors)
        if "cancel" in events:
            assert (result.status, result.undone) == ("cancelled", ["fan.work.work"]), (sequence, result)
            assert "last" not in ledger.calls, sequence
        elif kind in events or "due" in events:
            output = {"who": 7 if kind in events else -1, "work": 1}
            assert (result.status, result.output) == ("completed", output), (sequence, result)
        else:
            assert result.status == "paused" and paths(result)[-1] == "fan.work.work", (sequence, result)
        stage.close()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@ours
def test_pausing_and_resuming_around_a_save(place: Place, way: str) -> None:
    """Whoever pauses and resumes a run while a step of it is under way has changed nothing: the last word counts."""
    for number, sequence in enumerate(sequences("pause", "resume", SAVE, always=SAVE)):
        for inside in (False, True):
            stage = Stage(place, way, run_id=f"{way} {number} {inside}")
            ledger = stage.ledger
            chain = ledger.does("first") >> ledger.step("second")
            pipeline: Any = chain.as_step("all") if inside else chain
            stage.around(records_named("first"), sequence)
            result = stage.run(pipeline, 1)
            orders = [event for event in sequence if event != SAVE]
            if orders[:1] == ["resume"]:  # there was nothing to end yet
                assert list(stage.errors) == ["resume"], sequence
            assert result.status == ("paused" if orders[-1:] == ["pause"] else "completed"), (sequence, result)
            stage.close()
