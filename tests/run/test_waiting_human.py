"""A run that waits for a person: what is asked, what an answer is, and that nothing gets past the question."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import pytest

from flujo import Flujo, PipelineRegistry, RunFailedError, Step
from flujo.errors import (
    AlreadyAnsweredError,
    ConfigurationError,
    InvalidAnswerError,
    NotSerializableError,
    PipelineMismatchError,
    RunInsideLoopError,
    RunNotFoundError,
    RunNotWaitingError,
    StoreBusyError,
    VersionNotRegisteredError,
)
from flujo.execution.events import Event, RunPaused
from flujo.state.codec import Codec
from tests.support.backends import Place
from tests.support.nested_runs import Notes, paths
from tests.support.waiting_runs import YES, Approval, Clock, ask, runner


def shipping(notes: Notes, **options: Any) -> Any:
    """Return a pipeline that asks between two steps."""
    return notes.step("pack", lambda n: n + 1) >> ask(**options) >> notes.step("ship", lambda answer: answer)


def test_what_a_paused_run_says(place: Place) -> None:
    """The result carries the message and the JSON schema, of the store and of the run alike; it has no output yet."""
    notes, clock = Notes(), Clock()
    result = runner(place, shipping(notes), clock).run(1, run_id="r")
    for found in (result, runner(place, shipping(notes), clock).run(run_id="r")):
        assert (found.status, found.error, found.wakes_at, found.phase) == ("paused", None, None, None)
        question = found.waiting_for
        assert question is not None and found.waiting == [question]
        assert (question.kind, question.step, question.message) == ("human", "ask", "Ship it?")
        assert question.schema == Approval.model_json_schema()
        assert (question.since, question.until, question.quorum, question.voters) == (clock.now(), None, 1, None)
        assert "waits at 'ask' for an answer: Ship it?" in repr(found)
        with pytest.raises(RunFailedError, match="is waiting"):
            _ = found.output
        assert paths(found) == ["pack"]
    assert notes.calls == ["pack"]
    stored = place.load()
    assert (stored["status"], stored["current_step_index"], stored["last_step_output"]) == ("paused", 1, 2)


def test_a_message_of_the_input(place: Place) -> None:
    """A function of what the step is given says what the person is told; it is asked once."""
    notes, told = Notes(), list[int]()

    def question(n: int) -> str:
        told.append(n)
        return f"Ship {n}?"

    pipeline = notes.step("pack", lambda n: n + 1) >> Step.human_in_the_loop("ask", question, bool)
    for _ in range(3):
        waiting = runner(place, pipeline).run(1, run_id="r").waiting_for
        assert waiting is not None and waiting.message == "Ship 2?"
    assert told == [2]


@pytest.mark.parametrize("first", [KeyError("no"), "", None, 3])
def test_a_message_that_cannot_be_made(place: Place, first: Any) -> None:
    """What raises, or is no text, is a failure of the step; the next run asks again."""
    texts: list[Any] = ["Now?", first]

    def question(n: int) -> str:
        text = texts.pop()
        if isinstance(text, Exception):
            raise text
        return text  # type: ignore[no-any-return]

    pipeline = Step.human_in_the_loop("ask", question, bool)
    result = runner(place, pipeline).run(1, run_id="r")
    assert result.status == "failed" and paths(result, success=False) == ["ask"]
    with pytest.raises(RunNotWaitingError):
        runner(place, pipeline).resume("r", True)
    waiting = runner(place, pipeline).run(1, run_id="r").waiting_for
    assert waiting is not None and waiting.message == "Now?"
    assert runner(place, pipeline).resume("r", True).output is True


@pytest.mark.parametrize("answer", [Approval(approved=True, note="ok"), {"approved": True, "note": "ok"}])
def test_an_answer(place: Place, answer: Any) -> None:
    """An instance, or data that make one, is the step's output; who gave it and when is on record."""
    notes, clock = Notes(), Clock()
    runner(place, shipping(notes), clock).run(1, run_id="r")
    clock.jump(90)
    result = runner(place, shipping(notes), clock).resume("r", answer, by="ann")
    assert result.output == Approval(approved=True, note="ok") and type(result.output) is Approval
    assert notes.calls == ["pack", "ship"]
    for found in (result, runner(place, shipping(notes), clock).run(run_id="r")):
        assert paths(found) == ["pack", "ask", "ship"]
        record = found.step_history[1]
        assert (record.by, record.latency_s, record.attempts, record.output) == ("ann", 90, 1, found.output)
        assert (found.waiting, found.waiting_for) == ([], None)
    (message,) = runner(place, shipping(notes)).messages("r")
    assert (message.kind, message.by, message.at, message.reason) == ("answer", "ann", clock.now(), None)
    assert Codec().decode(message.payload or b"") == result.output


@dataclass
class Order:
    """An answer that is a dataclass."""

    items: list[str]
    due: timedelta | None = None


@pytest.mark.parametrize(
    ("tp", "answer", "output"),
    [
        (bool, False, False),
        (Literal["yes", "no"], "no", "no"),
        (int, 0, 0),
        (str, "", ""),
        (list[str], ["a"], ["a"]),
        (int | None, None, None),
        (Order, {"items": ["a"]}, Order(["a"])),
        (Order, Order(["b"], timedelta(hours=1)), Order(["b"], timedelta(hours=1))),
        (Any, {"what": [1, None]}, {"what": [1, None]}),
    ],
)
def test_answers_of_other_types(place: Place, tp: Any, answer: Any, output: Any) -> None:
    """Whatever the type is, what is given back has it; what is false is an answer, too."""
    pipeline = ask(tp=tp)
    assert runner(place, pipeline).run(1, run_id="r").status == "paused"
    result = runner(place, pipeline).resume("r", answer)
    assert result.output == output and type(result.output) is type(output)
    assert runner(place, pipeline).run(run_id="r").output == output
    assert result.step_history[0].by is None


BAD = ["yes", {"approved": "yes"}, {"approved": 1}, {}, None, 1, [], {"approved": True, "note": 3}, object(), [YES]]


def test_refused_answers(place: Place) -> None:
    """The store is byte for byte as it was, and the run waits on for a good one."""
    notes = Notes()
    runner(place, shipping(notes)).run(1, run_id="r")
    before = place.contents()
    for answer in BAD:
        with pytest.raises(InvalidAnswerError, match="The answer to 'ask' is not of the type") as caught:
            runner(place, shipping(notes)).resume("r", answer, by="ann")
        assert caught.value.data["run_id"] == "r"
        assert place.contents() == before, answer
    for wrong in ("", "x" * 1001, 3, b"ann"):
        with pytest.raises(ConfigurationError):
            runner(place, shipping(notes)).resume("r", YES, by=wrong)  # type: ignore[arg-type]
        assert place.contents() == before, wrong
    assert runner(place, shipping(notes)).run(run_id="r").status == "paused"
    assert place.contents() == before
    assert runner(place, shipping(notes)).messages("r") == []
    assert runner(place, shipping(notes)).resume("r", YES).output == YES
    assert notes.calls == ["pack", "ship"]


@pytest.mark.slow
def test_an_answer_that_is_too_long(place: Place) -> None:
    """What the codec takes for too much is refused before anything is stored."""
    backend = place.open()
    small = backend.codec or Codec()
    pipeline = ask(tp=str)
    Flujo(pipeline, state_backend=backend).run(1, run_id="r")
    before = place.contents()
    with pytest.raises(NotSerializableError, match=r"answer takes .* bytes, more than"):
        Flujo(pipeline, state_backend=backend).resume("r", "x" * (small.max_bytes + 1))
    assert place.contents() == before
    assert Flujo(pipeline, state_backend=backend).resume("r", "short").output == "short"


def test_running_it_again_changes_nothing(place: Place) -> None:
    """However often, and however it is called, a paused run stays before the question, and nothing is written."""
    notes, events = Notes(), list[Event]()
    runner(place, shipping(notes)).run(1, run_id="r")
    before = place.contents()

    async def iterated() -> Any:
        return [each async for each in runner(place, shipping(notes), hooks=[events.append]).run_async(run_id="r")]

    for _ in range(4):
        assert runner(place, shipping(notes), hooks=[events.append]).run(1, run_id="r").status == "paused"
        assert runner(place, shipping(notes)).run(run_id="r", wait=True).status == "paused"
        assert asyncio.run(runner(place, shipping(notes)).run_async(run_id="r")).status == "paused"  # type: ignore[arg-type]
        (only,) = asyncio.run(iterated())
        assert only.status == "paused"
        with pytest.raises(RunNotWaitingError):  # nobody has paused it
            runner(place, shipping(notes)).resume("r")
        assert place.contents() == before
    assert notes.calls == ["pack"]
    assert events == []


def test_a_pause_is_announced() -> None:
    """Hooks hear of it once, with what the run waits for."""
    events: list[Event] = []
    Flujo(ask() >> ask("again"), hooks=[events.append]).run(1, run_id="r")
    paused = [event for event in events if isinstance(event, RunPaused)]
    assert [event.waiting for event in paused] == [("waits at 'ask' for an answer: Ship it?",)]
    assert events[-1] is paused[0]


def test_answering_twice(place: Place) -> None:
    """Whoever comes second is told who came first; before the run has gone on, and after its end."""
    notes, pipeline = Notes(), ask() >> ask("again")
    first = runner(place, pipeline).run(1, run_id="r")
    runner(place, pipeline).resume(first, YES, by="ann")
    before = place.contents()
    for late in (lambda run: run.resume(first, YES, by="bob"), lambda run: run.resume("r", YES, by="bob", at="ask")):
        with pytest.raises(AlreadyAnsweredError, match="answered by ann") as caught:
            late(runner(place, pipeline))
        assert caught.value.data == {"run_id": "r", "by": "ann"}
        assert place.contents() == before
    runner(place, pipeline).resume("r", YES, by="cid")  # of the question that is there now
    assert runner(place, pipeline).run(run_id="r").status == "completed"
    before = place.contents()
    with pytest.raises(AlreadyAnsweredError, match="answered by cid"):
        runner(place, pipeline).resume("r", YES)
    assert place.contents() == before
    assert notes.calls == []


def test_a_run_that_asks_nothing(place: Place) -> None:
    """Completed, failed, interrupted, or waiting for something else: it is told apart from one that was answered."""
    notes = Notes()
    plain = notes.step("a") >> notes.step("b")
    runner(place, plain).run(1, run_id="done")
    notes.failing = {"a"}
    runner(place, plain).run(1, run_id="failed")
    notes.failing = set()
    notes.interrupt(runner(place, plain), 1, at={"b"}, run_id="running")
    runner(place, Step.sleep("nap", 60)).run(1, run_id="asleep")
    before = place.contents()
    for run_id, pipeline in (("done", plain), ("failed", plain), ("running", plain), ("asleep", Step.sleep("nap", 60))):
        for at in (None, "a", "nap", "nowhere"):
            with pytest.raises(RunNotWaitingError, match="does not wait") as caught:
                runner(place, pipeline).resume(run_id, YES, at=at)
            assert caught.value.data["run_id"] == run_id
    with pytest.raises(RunNotFoundError, match="There is no run 'r'"):
        runner(place, plain).resume("r", YES)
    with pytest.raises(RunNotFoundError):
        runner(place, plain).resume("r")
    assert place.contents() == before
    assert runner(place, plain).messages("r") == []


def test_a_version_that_is_not_there(place: Place) -> None:
    """It is refused before anything is stored; whoever has the version can still answer."""
    old, new = PipelineRegistry(), PipelineRegistry()
    old.register(ask() >> Step.wait_for("go", int), "p", "1.0")
    new.register(ask() >> Step.wait_for("go", int), "p", "2.0")
    mine = Flujo(registry=old, pipeline_name="p", state_backend=place.open())
    mine.run(1, run_id="r")
    before = place.contents()
    other: Flujo[Any, Any] = Flujo(registry=new, pipeline_name="p", state_backend=place.open())
    stranger = Flujo(ask(), pipeline_name="q", state_backend=place.open())
    for using, error in ((other, VersionNotRegisteredError), (stranger, PipelineMismatchError)):
        for send in (lambda run: run.resume("r", YES), lambda run: run.signal("r", "go", 1)):
            with pytest.raises(error):
                send(using)
            assert place.contents() == before
    assert mine.messages("r") == []
    assert Flujo(registry=old, pipeline_name="p", state_backend=place.open()).resume("r", YES).status == "paused"


@pytest.mark.parametrize("order", ["cancel", "pause", "resume"])
def test_orders_where_the_version_is_not_there(place: Place, order: str) -> None:
    """An order that this process cannot have carried out is not stored either."""
    old, new = PipelineRegistry(), PipelineRegistry()
    old.register(ask(), "p", "1.0")
    new.register(ask(), "p", "2.0")
    mine: Flujo[Any, Any] = Flujo(registry=old, pipeline_name="p", state_backend=place.open())
    mine.run(1, run_id="r")
    if order == "resume":
        mine.pause("r")
    before = place.contents()
    with pytest.raises(VersionNotRegisteredError):
        getattr(Flujo(registry=new, pipeline_name="p", state_backend=place.open()), order)("r")
    assert place.contents() == before


def test_an_answer_outlives_who_took_it(place: Place) -> None:
    """It is stored before the run is taken up: a process that can do no more than that has done it for the next."""
    notes = Notes()
    runner(place, shipping(notes)).run(1, run_id="r")
    backend = place.open()

    async def busy(*_: Any, **__: Any) -> Any:
        raise StoreBusyError("Somebody is at it.")

    backend.claim = busy  # type: ignore[method-assign]
    with pytest.raises(StoreBusyError):
        Flujo(shipping(notes), state_backend=backend, pipeline_name="p").resume("r", YES, by="ann")
    del backend.claim  # type: ignore[method-assign]
    stored = place.contents()
    with pytest.raises(AlreadyAnsweredError):
        runner(place, shipping(notes)).resume("r", YES, by="bob")
    assert place.contents() == stored
    result = runner(place, shipping(notes)).run(run_id="r")
    assert result.output == YES and result.step_history[1].by == "ann"
    assert notes.calls == ["pack", "ship"]


def test_resuming_in_a_loop(place: Place) -> None:
    """`resume` says what to call there; `resume_async` is awaited, or iterated over."""
    notes = Notes()

    async def main() -> list[Any]:
        for run_id in ("r", "s"):
            await runner(place, shipping(notes)).run_async(1, run_id=run_id)
        with pytest.raises(RunInsideLoopError, match="_async"):
            runner(place, shipping(notes)).resume("r", YES)
        assert (await runner(place, shipping(notes)).resume_async("s", YES)).output == YES
        assert len(await runner(place, shipping(notes)).messages_async("s")) == 1
        return [each async for each in runner(place, shipping(notes)).resume_async("r", YES)]

    *records, result = asyncio.run(main())
    assert [record.name for record in records][-1] == "ship" and result.output == YES


def test_asking_in_the_first_and_in_the_last_step(place: Place) -> None:
    """A run that begins with a question keeps its input; one that ends with it has the answer for its output."""
    notes, given = Notes(), list[Any]()

    def question(n: Any) -> str:
        given.append(n)
        return "?"

    pipeline = Step.human_in_the_loop("first", question, int) >> notes.step("work") >> ask("last", tp=int)
    runner(place, pipeline).run({"an": "input"}, run_id="r")
    assert place.load()["current_step_index"] == 0
    assert runner(place, pipeline).resume("r", 7).status == "paused"
    assert runner(place, pipeline).resume("r", 8).output == 8
    assert (given, notes.calls) == ([{"an": "input"}], ["work"])
