"""Signals: each is stored when it is sent, counts once, and is used by the first step that waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flujo import Flujo, Step, step
from flujo.errors import (
    ConfigurationError,
    InvalidAnswerError,
    MailboxFullError,
    NotSerializableError,
    RunEndedError,
    RunInProgressError,
    RunNotFoundError,
    RunNotWaitingError,
    UnknownSignalError,
)
from flujo.state.codec import Codec
from tests.support.backends import OURS, Place
from tests.support.nested_runs import Notes, paths
from tests.support.waiting_runs import YES, Approval, Clock, Held, Ledger, ask, at_once, one_backend, runner, until

wait_for = Step.wait_for


def paying(notes: Notes) -> Any:
    """Return a pipeline that waits for a signal between two steps."""
    return notes.step("order") >> wait_for("paid", Approval) >> notes.step("ship")


@pytest.mark.parametrize("payload", [YES, {"approved": True}])
def test_a_signal(place: Place, payload: Any) -> None:
    """It is stored, and the run is as it was; the next `run` goes on with it. Who sent it is on record."""
    notes, clock = Notes(), Clock()
    result = runner(place, paying(notes), clock).run(1, run_id="r")
    waiting = result.waiting_for
    assert waiting is not None and result.waiting == [waiting] and result.wakes_at is None
    assert (waiting.kind, waiting.step, waiting.signal) == ("signal", "paid", "paid")
    assert (waiting.schema, waiting.until) == (Approval.model_json_schema(), None)
    assert "waits at 'paid' for signal 'paid'" in repr(result)
    clock.jump(5)
    runner(place, paying(notes), clock).signal("r", "paid", payload, by="bank")
    assert (place.load()["status"], notes.calls) == ("paused", ["order"])
    clock.jump(5)
    result = runner(place, paying(notes), clock).run(run_id="r")
    assert result.output == YES and type(result.output) is Approval
    record = result.step_history[1]
    assert (record.by, record.latency_s) == ("bank", 10)
    assert (paths(result), notes.calls) == (["order", "paid", "ship"], ["order", "ship"])
    (message,) = runner(place, paying(notes)).messages("r")
    assert (message.kind, message.name, message.by) == ("signal", "paid", "bank")
    assert (clock.now() - message.at).total_seconds() == 5


def test_running_it_again_does_not_get_past(place: Place) -> None:
    """Without the signal nothing is written, however often it is run; an answer is none."""
    runner(place, paying(Notes())).run(1, run_id="r")
    before = place.contents()
    for _ in range(5):
        assert runner(place, paying(Notes())).run(1, run_id="r", wait=True).status == "paused"
        with pytest.raises(RunNotWaitingError):
            runner(place, paying(Notes())).resume("r", YES)
    assert place.contents() == before


@pytest.mark.parametrize("other", ["a question", "a sleep", "another signal"])
def test_a_signal_that_comes_early(place: Place, other: str) -> None:
    """It is kept while the run waits for something else, through any number of saves, until a step wants it."""
    clock, notes = Clock(), Notes()
    first = {"a question": ask(), "a sleep": Step.sleep("nap", 60), "another signal": wait_for("other", Any)}[other]
    pipeline = first >> notes.step("a") >> notes.step("b") >> wait_for("paid", int) >> notes.step("c")
    runner(place, pipeline, clock).run(1, run_id="r")
    runner(place, pipeline, clock).signal("r", "paid", 7)
    for _ in range(2):
        assert runner(place, pipeline, clock).run(run_id="r").status == "paused"
    if other == "a question":
        result = runner(place, pipeline, clock).resume("r", YES)
    else:
        clock.jump(60)
        if other == "another signal":
            runner(place, pipeline, clock).signal("r", "other", None)
        result = runner(place, pipeline, clock).run(run_id="r")
    assert (result.output, notes.calls) == (7, ["a", "b", "c"])


@pytest.mark.parametrize("plain", [False, True])
def test_a_signal_before_the_first_save(place: Place, plain: bool) -> None:
    """Sent while the very first step runs, nothing of the run being saved, it is kept too; where the backend has no
    mailbox of its own, that is refused."""
    one_backend(place)
    told: list[Any] = []

    def sending() -> Any:
        return runner(place, pipeline)

    @step(name="first")
    async def first(n: int) -> int:
        try:
            await sending().signal_async("r", "paid", n)
        except RunInProgressError as error:
            told.append(error)
        return n

    @step(name="first")
    def first_plain(n: int) -> int:
        try:
            sending().signal("r", "paid", n)
        except RunInProgressError as error:
            told.append(error)
        return n

    pipeline = (first_plain if plain else first) >> wait_for("paid", int)
    result = sending().run(5, run_id="r")
    if place.kind in OURS:
        assert (result.output, told) == (5, [])
    else:
        assert (result.status, len(told)) == ("paused", 1)
        sending().signal("r", "paid", 5)
        assert sending().run(run_id="r").output == 5


def test_the_same_signal_again(place: Place) -> None:
    """By its id it counts once, whatever it carries the second time; without an id each is one of its own."""
    pipeline = wait_for("a", int, signal="go") >> wait_for("b", int, signal="go") >> wait_for("c", int, signal="go")
    runner(place, pipeline).run(1, run_id="r")
    for payload in (1, 2, 1):
        runner(place, pipeline).signal("r", "go", payload, id="one")
    assert runner(place, pipeline).run(run_id="r").status == "paused"
    runner(place, pipeline).signal("r", "go", 3, id="one")  # it was used already
    result = runner(place, pipeline).run(run_id="r")
    assert result.status == "paused" and [record.output for record in result.step_history] == [1]
    for _ in range(2):
        runner(place, pipeline).signal("r", "go", 4)
    result = runner(place, pipeline).run(run_id="r")
    assert [record.output for record in result.step_history] == [1, 4, 4]
    before = place.contents()
    runner(place, pipeline).signal("r", "go", 1, id="one")  # also when all is over: who sends it again cannot know
    assert place.contents() == before
    assert len(runner(place, pipeline).messages("r")) == 3


def test_first_come_first_used(place: Place) -> None:
    """Signals of a name are used in the order in which they were stored; other names do not come between."""
    notes = Notes()
    loop = Step.loop_until("again", wait_for("go", int) >> notes.step("work"), until=lambda n: n == 3)
    pipeline = ask() >> loop >> wait_for("other", int) >> wait_for("go", int)
    runner(place, pipeline).run(1, run_id="r")
    for name, payload in (("go", 1), ("other", 9), ("go", 2), ("go", 3), ("go", 4)):
        runner(place, pipeline).signal("r", name, payload)
    result = runner(place, pipeline).resume("r", YES)
    assert result.output == 4
    assert [record.output for record in result.step_history if record.name in ("go", "other")] == [1, 2, 3, 9, 4]


def test_several_wait_for_one_name(place: Place) -> None:
    """Each signal lets one of them go on, the first that waits; the others wait for the next."""
    fan = Step.parallel("fan", a=wait_for("x", int, signal="go"), b=wait_for("y", int, signal="go"), c=wait_for("z"))
    runner(place, fan).run(1, run_id="r")
    for number, left in ((1, ["fan.b.y", "fan.c.z"]), (2, ["fan.c.z"])):
        runner(place, fan).signal("r", "go", number)
        result = runner(place, fan).run(run_id="r")
        assert sorted(waiting.step for waiting in result.waiting) == left
    runner(place, fan).signal("r", "z")
    assert runner(place, fan).run(run_id="r").output == {"a": 1, "b": 2, "c": None}


def test_items_that_wait_for_one_name(place: Place) -> None:
    """No more go on than there are signals."""
    pipeline = Step.map_over("many", wait_for("go", int), max_concurrency=3)
    runner(place, pipeline).run(range(4), run_id="r")
    for number in range(4):
        runner(place, pipeline).signal("r", "go", number)
    assert runner(place, pipeline).run(run_id="r").output == [0, 1, 2, 3]


def refused(place: Place, pipeline: Any, error: Any, *args: Any, **options: Any) -> Any:
    """Try to send something, prove that nothing has come of it, and return the error."""
    before = place.contents()
    with pytest.raises(error) as caught:
        runner(place, pipeline).signal(*args, **options)
    assert place.contents() == before
    return caught.value


def test_refused_signals(place: Place) -> None:
    """Of the wrong type, of no step's name, to no run, with an impossible id: nothing is stored."""
    pipeline = wait_for("paid", Approval) >> Step.parallel("fan", a=wait_for("b", int, signal="go"))
    runner(place, pipeline).run(1, run_id="r")
    for payload in ("yes", {}, None, {"approved": 1}):
        error = refused(place, pipeline, InvalidAnswerError, "r", "paid", payload)
        assert "Signal 'paid' is not of the type that is waited for" in str(error)
    error = refused(place, pipeline, UnknownSignalError, "r", "payed", YES)
    assert error.data == {"run_id": "r", "name": "payed", "known": ["go", "paid"]}
    assert "waits for 'go', 'paid'" in str(error)
    refused(place, pipeline, UnknownSignalError, "r", "b", 1)  # the step's name is not the signal's
    refused(place, pipeline, RunNotFoundError, "s", "paid", YES)
    refused(place, pipeline, UnknownSignalError, "s", "payed", YES)
    for wrong in ("", 3, "x" * 1001):
        refused(place, pipeline, ConfigurationError, "r", "paid", YES, id=wrong)
        refused(place, pipeline, ConfigurationError, "r", "paid", YES, by=wrong)
    runner(place, ask()).run(1, run_id="t")
    assert "waits for no signal at all" in str(refused(place, ask(), UnknownSignalError, "t", "paid"))
    assert runner(place, pipeline).messages("r") == []


def test_what_cannot_be_stored(place: Place) -> None:
    """Where any type will do, the codec decides."""
    runner(place, wait_for("go")).run(1, run_id="r")
    error = refused(place, wait_for("go"), NotSerializableError, "r", "go", {"handle": object()})
    assert "payload.handle" in str(error)


@pytest.mark.slow
def test_more_than_the_codec_takes(place: Place) -> None:
    """It is refused before anything is stored, and the run waits on."""
    codec = place.open().codec or Codec()
    runner(place, wait_for("go", str)).run(1, run_id="r")
    error = refused(place, wait_for("go", str), NotSerializableError, "r", "go", "x" * codec.max_bytes)
    assert "payload takes" in str(error)
    assert runner(place, wait_for("go", str)).run(run_id="r").status == "paused"


def test_several_types_for_one_name(place: Place) -> None:
    """What is sent has to be of the type of every step that waits for it, since any of them may get it."""
    pipeline = wait_for("a", int | str, signal="go") >> wait_for("b", int, signal="go")
    runner(place, pipeline).run(1, run_id="r")
    refused(place, pipeline, InvalidAnswerError, "r", "go", "text")
    runner(place, pipeline).signal("r", "go", 1)


def test_runs_that_take_no_signal(place: Place) -> None:
    """One that has ended, however that came; one that has failed and may be tried again does, and keeps it."""
    ledger = Ledger()
    pipeline = ledger.does("pay") >> wait_for("go", int)
    for run_id in ("done", "cancelled"):
        runner(place, pipeline).run(1, run_id=run_id)
    runner(place, pipeline).signal("done", "go", 1)
    runner(place, pipeline).run(run_id="done")
    runner(place, pipeline).cancel("cancelled")
    undone = ledger.does("pay") >> ledger.step("bad") >> wait_for("go", int)
    ledger.failing = {"bad"}
    assert runner(place, undone).run(1, run_id="undone").phase == "undone"
    for run_id, status in (("done", "completed"), ("cancelled", "cancelled"), ("undone", "failed")):
        error = refused(place, undone if run_id == "undone" else pipeline, RunEndedError, run_id, "go", 2)
        assert error.data == {"run_id": run_id, "status": status}
    failed = ledger.step("bad") >> wait_for("go", int)
    assert runner(place, failed).run(1, run_id="failed").status == "failed"
    runner(place, failed).signal("failed", "go", 3)
    ledger.failing = set()
    assert runner(place, failed).run(run_id="failed").output == 3


def test_more_signals_than_anybody_waits_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a limit to how many are kept: those that are used make room, and others than signals are not counted."""
    monkeypatch.setattr("flujo.state.mail.MAX_UNUSED", 3)
    pipeline = ask() >> wait_for("go", int) >> ask("again") >> wait_for("last", int, signal="go")
    runner(place, pipeline).run(1, run_id="r")
    for number in range(3):
        runner(place, pipeline).signal("r", "go", number, id=f"{number}")
        runner(place, pipeline).run(run_id="r")
    error = refused(place, pipeline, MailboxFullError, "r", "go", 3)
    assert error.data == {"run_id": "r", "limit": 3} and "holds 3 messages that nothing has waited for" in str(error)
    runner(place, pipeline).signal("r", "go", 0, id="0")  # one that is there
    assert runner(place, pipeline).resume("r", YES).status == "paused"
    runner(place, pipeline).signal("r", "go", 3)
    refused(place, pipeline, MailboxFullError, "r", "go", 4)
    assert runner(place, pipeline).resume("r", YES).output == 1


@pytest.mark.slow
@pytest.mark.parametrize("place", ["memory", "sqlite"], indirect=True)
def test_a_thousand_signals(place: Place) -> None:
    """So many are kept, and all are used, in order."""
    loop = Step.loop_until("again", wait_for("go", int), until=lambda n: n == 999, max_iterations=1000)
    pipeline = ask() >> loop
    runner(place, pipeline).run(1, run_id="r")

    async def send() -> None:
        using = runner(place, pipeline)
        for number in range(1000):
            await using.signal_async("r", "go", number)
        with pytest.raises(MailboxFullError):
            await using.signal_async("r", "go", 1000)

    asyncio.run(send())
    result = runner(place, pipeline).resume("r", YES)
    assert result.output == 999
    assert [record.output for record in result.step_history if record.name == "go"] == list(range(1000))


@pytest.mark.parametrize("place", OURS, indirect=True)
def test_a_signal_to_a_run_that_is_executed(place: Place) -> None:
    """It is taken at once where a branch waits for it: others are still under way then."""
    notes = Notes()

    async def main() -> Any:
        held = Held(notes)
        used = asyncio.Event()

        @step
        async def follow(n: int) -> int:
            used.set()
            return n

        fan = Step.parallel("fan", wait=wait_for("go", int) >> follow, work=held.step)
        task = asyncio.ensure_future(runner(place, fan).run_async(1, run_id="r"))
        await held.begun.wait()
        await runner(place, fan).signal_async("r", "go", 7)
        await used.wait()
        held.go.set()
        return await task

    assert at_once(main()).output == {"wait": 7, "work": 1}


@pytest.mark.parametrize("place", OURS, indirect=True)
def test_a_signal_to_a_run_in_its_only_step(place: Place) -> None:
    """Nobody waits for it, and the run completes; it is among the messages all the same."""

    async def main() -> Any:
        held = Held(Notes())
        pipeline = Step.branch_on("route", by=lambda n: "a", a=held.step, b=wait_for("go", int))
        task = asyncio.ensure_future(runner(place, pipeline).run_async(1, run_id="r"))
        await held.begun.wait()
        await runner(place, pipeline).signal_async("r", "go", 7)
        await until(lambda: place.open().mail("r"))
        held.go.set()
        assert (await task).output == 1
        return await runner(place, pipeline).messages_async("r")

    assert [message.name for message in at_once(main())] == ["go"]


def test_a_new_run_does_not_get_an_old_ones_signal(place: Place) -> None:
    """A run that is deleted takes its messages with it."""
    pipeline = ask() >> wait_for("go", int)
    runner(place, pipeline).run(1, run_id="r")
    runner(place, pipeline).signal("r", "go", 7)
    asyncio.run(place.open().delete_state("r"))
    assert runner(place, pipeline).messages("r") == []
    runner(place, pipeline).run(1, run_id="r")
    assert runner(place, pipeline).resume("r", YES).status == "paused"


def test_a_signal_of_nothing(place: Place) -> None:
    """What any type will do for needs no payload; a default runner in memory knows signals, too."""
    flow = Flujo(wait_for("go"))
    flow.run(1, run_id="r")
    flow.signal("r", "go")
    assert flow.run(run_id="r").output is None
