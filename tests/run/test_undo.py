"""What a run that failed for good takes back, in which order, and what becomes of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from flujo import Flujo, ItemError, Pipeline, PipelineResult, Step, current_step, once, step
from flujo.errors import NotSerializableError, RecordedError, RunFailedError, SaveError, UndoFailedError
from flujo.execution.events import Event, RunEnded, StepFailed, StepSaved, StepStarted
from flujo.testing import VirtualClock
from tests.support.backends import Place
from tests.support.nested_runs import paths, stopping
from tests.support.undo_steps import Ledger, expected_undos


class Shop(BaseModel):
    """A context."""

    log: list[str] = []


def failing(ledger: Ledger) -> Step[Any, Any]:
    """Return a step that fails."""
    ledger.failing.add("bad")
    return ledger.step("bad")


def fulfilment(ledger: Ledger) -> Pipeline[Any, Any]:
    """Return a pipeline of four steps that fails at the last; the first and the third can be undone."""
    pay = ledger.does("pay", lambda n: {"paid": n})
    note = ledger.step("note", lambda receipt: receipt["paid"] + 1)
    return pay >> note >> ledger.does("ship", lambda n: ["parcel", n]) >> failing(ledger)


def run(place: Place, pipeline: Any, *given: Any, **options: Any) -> PipelineResult[Any]:
    """Run the pipeline as run "r", as another process would."""
    return Flujo(pipeline, state_backend=place.open(), **options).run(*given, run_id="r")


# --- which, in which order, and what is said of it ---


def test_a_run_that_fails_for_good_is_undone(place: Place) -> None:
    """The undos of its steps run in reverse, each with its step's output; steps without one are passed over."""
    ledger = Ledger()
    result = run(place, fulfilment(ledger), 5)
    assert ledger.taken() == ["pay", "note", "ship", "bad", "ship>undo", "pay>undo"]
    assert ledger.given == {"ship>undo": ["parcel", 6], "pay>undo": {"paid": 5}}
    assert result.status == "failed"
    assert isinstance(result.error, ValueError) and str(result.error) == "bad is out of order"
    history = [(record.name, record.success, record.output) for record in result.step_history]
    assert history == [
        ("pay", True, {"paid": 5}), ("note", True, 6), ("ship", True, ["parcel", 6]), ("bad", False, None),
        ("ship>undo", True, "ship>undo"), ("pay>undo", True, "pay>undo"),
    ]  # fmt: skip
    with pytest.raises(RunFailedError) as caught:
        _ = result.output
    assert caught.value.__cause__ is result.error


def test_what_is_saved_of_an_undone_run(place: Place) -> None:
    """`failed`, phase `undone`, where it was: the index, the last output and the reason are those of the failure."""
    run(place, fulfilment(Ledger()), 5)
    stored = place.load()
    assert (stored["status"], stored["phase"], stored["position"]) == ("failed", "undone", None)
    assert (stored["current_step_index"], stored["last_step_output"]) == (3, ["parcel", 6])
    assert stored["error"]["text"] == "bad is out of order"


def test_an_undone_run_is_final(place: Place) -> None:
    """It is not tried again: the recorded result comes back, nothing is executed and nothing is written."""
    ledger = Ledger()
    first = run(place, fulfilment(ledger), 5)
    ledger.taken()
    ledger.failing = set()
    before = place.contents()
    again = run(place, fulfilment(ledger), 5)
    assert ledger.calls == []
    assert place.contents() == before
    assert again.status == "failed"
    assert isinstance(again.error, RecordedError) and str(again.error) == "ValueError: bad is out of order"
    assert paths(again) == paths(first) and paths(again, success=False) == ["bad"]


def test_a_run_that_has_done_nothing_to_undo_is_tried_again(place: Place) -> None:
    """What fails before any step with an undo has completed is a failed run like any other. Then undos count."""
    ledger = Ledger()
    ledger.failing = {"pay", "ship"}
    pipeline = ledger.step("note") >> ledger.does("pay") >> ledger.does("ship")
    assert run(place, pipeline, 1).status == "failed"
    stored = place.load()
    assert (stored["status"], stored["phase"]) == ("failed", None)
    ledger.failing = {"ship"}
    assert run(place, pipeline).status == "failed"
    assert ledger.taken() == ["note", "pay", "pay", "ship", "pay>undo"]
    assert place.load()["phase"] == "undone"
    assert run(place, pipeline).status == "failed"
    assert ledger.calls == []


def test_what_has_failed_is_not_undone(place: Place) -> None:
    """The failed step's own undo does not run: there is no output to give it."""
    ledger = Ledger()
    ledger.failing = {"ship"}
    run(place, ledger.does("pay") >> ledger.does("ship"), 1)
    assert ledger.taken() == ["pay", "ship", "pay>undo"]


def test_a_run_that_completes_is_not_undone(place: Place) -> None:
    """Whatever was tried again on the way, and whoever looks at it afterwards."""
    ledger = Ledger()
    ledger.failing = {"charge.primary.charge"}
    pipeline = ledger.does("pay") >> ledger.does("charge", retries=[0.0]).fallback(ledger.does("wire"))
    for _ in range(2):
        assert run(place, pipeline, 1, clock=VirtualClock()).status == "completed"
    assert ledger.undone() == []


def test_hooks_and_the_iteration_show_it(place: Place) -> None:
    """Undos are events and records like those of steps; the run ends once, when all is undone."""
    ledger, events = Ledger(), list[Event]()

    async def main() -> list[Any]:
        runner = Flujo(fulfilment(ledger), state_backend=place.open(), hooks=[events.append])
        return [found async for found in runner.run_async(5, run_id="r")]

    *records, result = asyncio.run(main())
    assert [str(record).split()[0] for record in records] == ["pay", "note", "ship", "bad", "ship>undo", "pay>undo"]
    assert result.status == "failed" and result.step_history == records
    started = [event.path for event in events if isinstance(event, StepStarted)]
    assert started[-2:] == [("ship", ">undo"), ("pay", ">undo")]
    assert [event.result.name for event in events if isinstance(event, StepSaved)][-2:] == ["ship>undo", "pay>undo"]
    assert [event.result.name for event in events if isinstance(event, StepFailed)] == ["bad"]
    assert [event.status for event in events if isinstance(event, RunEnded)] == ["failed"]
    assert isinstance(events[-1], RunEnded)


# --- nested steps ---


def shapes(ledger: Ledger) -> dict[str, Step[Any, Any]]:
    """Return a composite step of each kind, with steps that can be undone in it."""
    body = ledger.does("fetch") >> ledger.step("look") >> ledger.does("score")
    return {
        "map": Step.map_over("many", body, max_concurrency=2),
        "loop": Step.loop_until("again", ledger.does("grow", lambda given: [*given, 0]), until=lambda n: len(n) > 4),
        "branch": Step.branch_on("route", by=lambda _: "big", big=body, small=ledger.does("never")),
        "parallel": Step.parallel("fan", left=body, right=ledger.does("other")),
        "pipeline": body.as_step("inner"),
        "nested": Step.map_over("many", Step.parallel("fan", left=ledger.does("a"), right=body)),
    }


@pytest.mark.parametrize("shape", ["map", "loop", "branch", "parallel", "pipeline", "nested"])
def test_nested_steps_are_undone_in_reverse_order_of_commit(place: Place, shape: str) -> None:
    """Each item's, iteration's, branch's and case's, with its own output, whatever the order they came to their end."""
    ledger = Ledger()
    result = run(place, ledger.does("pay") >> shapes(ledger)[shape] >> failing(ledger), [1, 2, 3])
    undone = ledger.undone()
    composites = {"many", "again", "route", "fan", "inner"}
    assert undone == expected_undos(result, lambda path: path not in composites and not path.endswith("look"))
    assert len(undone) == {"map": 7, "loop": 3, "branch": 3, "parallel": 4, "pipeline": 3, "nested": 10}[shape]
    outputs = {f"{str(record).split()[0]}>undo": record.output for record in result.step_history}
    assert ledger.given == {path: outputs[path] for path in undone}


def test_undos_inside_of_the_step_that_failed(place: Place) -> None:
    """What a composite had done before it failed is undone; what was in flight, or failed, is not."""
    ledger = Ledger()
    ledger.failing = {"many[2].score"}
    body = Step.map_over("many", ledger.does("fetch") >> ledger.does("score"), max_concurrency=1)
    result = run(place, ledger.does("pay") >> body, [1, 2, 3, 4])
    assert ledger.undone() == [
        "many[2].fetch>undo", "many[1].score>undo", "many[1].fetch>undo", "many[0].score>undo", "many[0].fetch>undo",
        "pay>undo",
    ]  # fmt: skip
    assert str(result.error) == "many[2].score is out of order"


def test_what_an_absorbed_failure_left_behind_is_undone(place: Place) -> None:
    """The steps of an item that was collected, and of the way that a fallback took the place of."""
    ledger = Ledger()
    ledger.failing = {"many[1].score", "charge.primary.confirm"}
    collect = Step.map_over("many", ledger.does("fetch") >> ledger.does("score"), on_error="collect", max_concurrency=1)
    charge = (ledger.does("reserve") >> ledger.does("confirm")).as_step("charge")
    either = Step.parallel("fan", one=charge.fallback(ledger.does("wire")))
    ledger.failing.add("fan.one.charge.primary.charge.confirm")
    result = run(place, collect >> either >> failing(ledger), [1, 2])
    assert result.status == "failed" and paths(result).count("many") == 1
    assert ledger.given["fan.one.charge.fallback.wire>undo"][1] == ItemError(
        index=1, error="ValueError: many[1].score is out of order"
    )
    assert ledger.undone() == [
        "fan.one.charge.fallback.wire>undo", "fan.one.charge.primary.charge.reserve>undo",
        "many[1].fetch>undo", "many[0].score>undo", "many[0].fetch>undo",
    ]  # fmt: skip


# --- contexts and attempts ---


def test_an_undo_may_take_the_context(place: Place) -> None:
    """It sees the context as the steps have left it, and what it changes is saved with its record."""
    seen: list[list[str]] = []

    async def refund(n: int, *, context: Shop) -> None:
        seen.append(list(context.log))
        context.log.append(f"refund {n}")

    def pay(n: int, *, context: Shop) -> int:
        context.log.append(f"pay {n}")
        return n + 1

    def bad(n: int, *, context: Shop) -> int:
        context.log.append("spoilt")
        raise ValueError("no")

    pipeline = Pipeline.of(*(step(name=name, undo=refund)(pay) for name in ("one", "two")), step(bad))
    result = run(place, pipeline, 1, context_model=Shop)
    paid = ["pay 1", "pay 2"]
    assert seen == [paid, [*paid, "refund 3"]]
    assert result.final_pipeline_context.log == [*paid, "refund 3", "refund 2"]
    assert run(place, pipeline, 1, context_model=Shop).final_pipeline_context == result.final_pipeline_context


def test_a_failed_attempt_of_an_undo_leaves_nothing_behind(place: Place) -> None:
    """Each attempt, in this run and the next, sees the step's output and the context as they were saved."""
    seen: list[Any] = []
    down = True

    @step(retries=[3.0])
    async def refund(items: list[int], *, context: Shop) -> None:
        seen.append((list(items), list(context.log)))
        items.append(99)
        context.log.append("spoilt")
        if down:
            raise OSError("down")

    @step(undo=refund)
    async def pay(n: int, *, context: Shop) -> list[int]:
        context.log.append("pay")
        return [n]

    def again() -> PipelineResult[Any]:
        return run(place, pay >> failing(Ledger()), 1, context_model=Shop, clock=VirtualClock())

    for _ in range(2):
        result = again()
        assert isinstance(result.error, UndoFailedError)
        assert result.final_pipeline_context.log == ["pay"] == place.load()["pipeline_context"]["log"]
    down = False
    assert again().final_pipeline_context.log == ["pay", "spoilt"]
    assert seen == [([1], ["pay"])] * 5


@pytest.mark.parametrize("own", [True, False])
def test_an_undo_has_retries(place: Place, own: bool) -> None:
    """A function has those of its step; a step its own. What is recorded is how many attempts it took."""
    ledger = Ledger()
    ledger.failing = {"pay>undo"}
    failures = 0

    async def refund(output: Any) -> None:
        nonlocal failures
        failures += 1
        ledger.failing -= {"pay>undo"} if failures == 3 else set()
        await ledger.call()

    undo = step(retries=[3.0, 4.0])(refund) if own else refund
    pay = ledger.step("pay", undo=undo, retries=0 if own else [3.0, 4.0])
    clock = VirtualClock()
    start = clock.now()
    result = run(place, pay >> failing(ledger), 1, clock=clock)
    assert isinstance(result.error, ValueError)
    assert ledger.attempts["pay>undo"] == [1, 2, 3]
    assert [record.attempts for record in result.step_history] == [1, 1, 3]
    assert (clock.now() - start).total_seconds() == 7


def test_each_undo_has_a_key_of_its_own(place: Place) -> None:
    """It is the same for every attempt of that undo, in every process, and neither its step's nor another undo's."""
    ledger = Ledger()
    pipeline = fulfilment(ledger)
    ledger.failing.add("ship>undo")
    for _ in range(3):
        run(place, pipeline, 5)
    ledger.failing.remove("ship>undo")
    run(place, pipeline)
    assert ledger.attempts["ship>undo"] == [1, 2, 3, 4]
    assert {len(keys) for keys in ledger.keys.values()} == {1}
    assert len(set.union(*ledger.keys.values())) == len(ledger.keys) == 6


def test_an_undo_may_do_something_once(place: Place) -> None:
    """It is not done again after a failed attempt or in the next process, and the reason of the failure stays."""
    ledger, calls = Ledger(), list[str]()
    fails = True

    async def refund(n: int) -> None:
        calls.append(await once("call", lambda: f"{current_step().name} {current_step().idempotency_key}"))
        calls.append(current_step().idempotency_key)
        if fails:
            raise OSError("down")

    pipeline = step(name="pay", undo=step(retries=[0.0])(refund))(lambda n: n) >> failing(ledger)
    result = run(place, pipeline, 1, clock=VirtualClock())
    assert isinstance(result.error, UndoFailedError)
    assert paths(result) == ["pay", "pay>undo>call"]
    assert result.step_history[-2].name == "pay>undo>call"
    fails = False
    result = run(place, pipeline)
    assert len(calls) == 6 and len(set(calls)) == 2
    assert calls[0].startswith("pay>undo>call ")
    assert str(result.error) == "ValueError: bad is out of order"
    assert paths(result) == ["pay", "pay>undo>call", "pay>undo"]
    assert place.load()["error"]["text"] == "bad is out of order"


# --- undos that fail, and saves that do ---


def test_an_undo_that_fails_for_good(place: Place) -> None:
    """The run is `failed` with an UndoFailedError; run again it goes on with that very undo, and then is final."""
    ledger = Ledger()
    pipeline = fulfilment(ledger)
    ledger.failing.add("pay>undo")
    result = run(place, pipeline, 5)
    assert result.status == "failed"
    error = result.error
    assert isinstance(error, UndoFailedError) and error.data == {"run_id": "r", "step": "pay"}
    assert isinstance(error.__cause__, ValueError) and "pay>undo is out of order" in str(error)
    assert paths(result, success=False) == ["bad", "pay>undo"]
    stored = place.load()
    assert (stored["status"], stored["phase"]) == ("failed", "undoing")
    assert stored["error"]["type"] == "flujo.errors.UndoFailedError"
    assert stored["error"]["causes"] == [{"type": "ValueError", "text": "pay>undo is out of order"}]
    assert ledger.taken() == ["pay", "note", "ship", "bad", "ship>undo", "pay>undo"]
    again = run(place, pipeline)
    assert isinstance(again.error, UndoFailedError)
    assert ledger.taken() == ["pay>undo"]
    ledger.failing.remove("pay>undo")
    last = run(place, pipeline)
    assert ledger.taken() == ["pay>undo"]
    for found in (last, run(place, pipeline)):
        assert isinstance(found.error, RecordedError) and str(found.error) == "ValueError: bad is out of order"
        assert paths(found) == ["pay", "note", "ship", "ship>undo", "pay>undo"]
        assert paths(found, success=False) == ["bad"]
    assert ledger.taken() == []
    assert place.load()["phase"] == "undone"


def test_what_an_undo_returns_has_to_be_saved(place: Place) -> None:
    """What cannot be saved is a failure of the undo, which says where it is; the undo is due again."""
    ledger = Ledger()

    async def refund(n: Any) -> object:
        await ledger.call()
        return {"handle": object()} if ledger.failing else None

    pipeline = ledger.step("pay", undo=refund) >> failing(ledger)
    result = run(place, pipeline, 1)
    assert isinstance(result.error, UndoFailedError)
    assert isinstance(result.error.__cause__, NotSerializableError)
    assert "could not be undone: NotSerializableError: output of pay>undo.handle is of type object" in str(result.error)
    assert ledger.taken() == ["pay", "bad", "pay>undo"]
    ledger.failing = set()
    assert run(place, pipeline).status == "failed"
    assert ledger.taken() == ["pay>undo"]
    assert place.load()["phase"] == "undone"


@pytest.mark.parametrize("last", ["pay", "note", "ship", "bad", "ship>undo", "pay>undo"])
def test_a_failed_save_stops_the_undoing(place: Place, last: str) -> None:
    """Nothing is undone after a save that failed; the next run goes on after the last one that did not."""
    ledger = Ledger()
    pipeline = fulfilment(ledger)
    broken = stopping(place.open(), lambda records: any(record.name == last for record in records))
    with pytest.raises(SaveError):
        Flujo(pipeline, state_backend=broken).run(5, run_id="r")
    del broken.__dict__["save_state"]
    run(place, pipeline, 5)
    order = ["pay", "note", "ship", "bad", "ship>undo", "pay>undo"]
    assert ledger.taken() == order
    assert place.load()["phase"] == "undone"
