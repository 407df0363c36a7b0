"""Cancelling runs: which can be, and what is undone then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flujo import Flujo, PipelineResult, Step, step
from flujo.errors import (
    RecordedError,
    RunEndedError,
    RunFailedError,
    RunInProgressError,
    RunInsideLoopError,
    RunNotFoundError,
    UndoFailedError,
)
from tests.support.backends import OURS, Place
from tests.support.nested_runs import PATIENCE_S, paths
from tests.support.pipelines import by_hand
from tests.support.undo_steps import Ledger, orders, runner


def test_cancelling_an_interrupted_run(place: Place) -> None:
    """What it has done is undone, what it was doing is not; it is `cancelled`, and stays so."""
    ledger = Ledger()
    ledger.interrupt(runner(place, orders(ledger)), 1, at={"ship"})
    assert place.load()["status"] == "running"
    result = runner(place, orders(ledger)).cancel("r")
    assert ledger.taken() == ["pay", "pack", "ship", "pack>undo", "pay>undo"]
    assert (result.status, result.error) == ("cancelled", None)
    assert paths(result) == ["pay", "pack", "pack>undo", "pay>undo"]
    stored = place.load()
    assert (stored["status"], stored["phase"], stored["position"]) == ("cancelled", "undone", None)
    assert (stored["current_step_index"], stored["last_step_output"]) == (2, 1)
    with pytest.raises(RunFailedError, match="was cancelled"):
        _ = result.output
    before = place.contents()
    for again in (runner(place, orders(ledger)).cancel("r"), runner(place, orders(ledger)).run(1, run_id="r")):
        assert again.status == "cancelled" and again.error is None
        assert paths(again) == paths(result)
    assert ledger.calls == []
    assert place.contents() == before


def test_cancelling_inside_of_a_composite_step(place: Place) -> None:
    """The items that were done are undone; nothing else of the map is executed."""
    ledger = Ledger()
    pipeline = ledger.does("pay") >> Step.map_over("many", ledger.does("fetch"), max_concurrency=1)
    ledger.interrupt(runner(place, pipeline), [1, 2, 3], at={"many[2].fetch"})
    ledger.taken()
    assert runner(place, pipeline).cancel("r").status == "cancelled"
    assert ledger.taken() == ["many[1].fetch>undo", "many[0].fetch>undo", "pay>undo"]


def test_cancelling_a_failed_run(place: Place) -> None:
    """A run that failed with nothing to undo can be cancelled, and is not tried again then."""
    ledger = Ledger()
    ledger.failing = {"pay"}
    assert runner(place, orders(ledger)).run(1, run_id="r").status == "failed"
    ledger.failing = set()
    assert runner(place, orders(ledger)).cancel("r").status == "cancelled"
    assert runner(place, orders(ledger)).run(1, run_id="r").status == "cancelled"
    assert ledger.taken() == ["pay"]


def test_cancelling_a_run_of_steps_without_undos(place: Place) -> None:
    """It needs none: the run is over."""
    ledger = Ledger()
    pipeline = ledger.step("a") >> ledger.step("b")
    ledger.interrupt(runner(place, pipeline), 1, at={"b"})
    ledger.taken()
    result = runner(place, pipeline).cancel("r")
    assert (result.status, paths(result)) == ("cancelled", ["a"])
    assert runner(place, pipeline).run(1, run_id="r").status == "cancelled"
    assert ledger.taken() == []


def test_cancelling_a_run_that_was_put_there_by_hand(place: Place) -> None:
    """A run that waits to begin needs no input to be cancelled."""
    fields = {"pipeline_id": "p", "pipeline_name": "p", "current_step_index": 0, "last_step_output": None}
    place.put(by_hand(**fields))
    ledger = Ledger()
    assert runner(place, orders(ledger), pipeline_name="p").cancel("r").status == "cancelled"
    assert ledger.calls == []


def test_what_has_ended_cannot_be_cancelled(place: Place) -> None:
    """A run that has completed, and one that failed and was undone, are what they are; nothing is written."""
    ledger = Ledger()
    runner(place, orders(ledger)).run(1, run_id="r")
    ledger.failing = {"ship"}
    runner(place, orders(ledger)).run(1, run_id="s")
    before = place.contents()
    ledger.taken()
    for run_id, status in (("r", "completed"), ("s", "failed")):
        with pytest.raises(RunEndedError) as caught:
            runner(place, orders(ledger)).cancel(run_id)
        assert caught.value.data == {"run_id": run_id, "status": status}
    assert ledger.calls == []
    assert place.contents() == before


def test_a_run_that_does_not_exist_cannot_be_cancelled(place: Place) -> None:
    """The error names it, and no run is made by trying; it can begin afterwards."""
    ledger = Ledger()
    runner(place, ledger.step("a")).run(1, run_id="another")
    ledger.taken()
    before = place.contents()
    with pytest.raises(RunNotFoundError, match="There is no run 'r'") as caught:
        runner(place, orders(ledger)).cancel("r")
    assert caught.value.data == {"run_id": "r"}
    assert place.contents() == before
    assert ledger.calls == []
    assert runner(place, orders(ledger)).run(1, run_id="r").status == "completed"


def test_a_run_that_is_deleted_in_that_moment(place: Place) -> None:
    """It is as if it had never been: nothing of its pipeline is executed, and no run is made of it."""
    ledger = Ledger()
    pipeline = step(name="a")(lambda: ledger.calls.append("a")) >> ledger.does("b")
    ledger.interrupt(runner(place, pipeline), at={"b"})
    ledger.taken()
    backend = place.open()
    load, post = backend.load_state, backend.post

    async def posted(run_id: str, message: Any) -> int:
        seq = await post(run_id, message)
        await backend.delete_state(run_id)
        return seq

    backend.post = posted  # type: ignore[method-assign]
    with pytest.raises(RunNotFoundError):
        Flujo(pipeline, state_backend=backend).cancel("r")
    assert asyncio.run(load("r")) is None
    assert ledger.calls == []


def test_a_run_that_is_being_executed(place: Place) -> None:
    """Its owner is told and ends it; on a backend without a mailbox of its own that is refused, and the run goes on."""
    ledger = Ledger()

    async def main() -> PipelineResult[Any]:
        reached, go = asyncio.Event(), asyncio.Event()

        @step
        async def hold(n: int) -> int:
            reached.set()
            await go.wait()
            return n

        task = asyncio.ensure_future(runner(place, ledger.does("pay") >> hold).run_async(1, run_id="r"))
        async with asyncio.timeout(PATIENCE_S):
            await reached.wait()
            cancelling = runner(place, ledger.does("pay") >> hold).cancel_async("r")
            if place.kind in OURS:
                assert (await cancelling).status == "cancelled"
            else:
                with pytest.raises(RunInProgressError):
                    await cancelling
                go.set()
            return await task

    if place.kind not in OURS:  # three methods know of the claims of one backend object only
        backend = place.open()
        place.open = lambda: backend  # type: ignore[method-assign]
    assert asyncio.run(main()).status == ("cancelled" if place.kind in OURS else "completed")
    assert ledger.taken() == (["pay", "pay>undo"] if place.kind in OURS else ["pay"])


def test_cancel_has_an_async_twin(place: Place) -> None:
    """`cancel` in a running loop says what to call; `cancel_async` can be awaited, or iterated over."""
    ledger = Ledger()
    ledger.interrupt(runner(place, orders(ledger)), 1, at={"ship"})

    async def main() -> list[Any]:
        with pytest.raises(RunInsideLoopError, match="_async"):
            runner(place, orders(ledger)).cancel("r")
        found = [each async for each in runner(place, orders(ledger)).cancel_async("r")]
        assert (await runner(place, orders(ledger)).cancel_async("r")).status == "cancelled"
        return found

    *records, result = asyncio.run(main())
    assert [record.name for record in records] == ["pack>undo", "pay>undo"]
    assert result.status == "cancelled"


def test_an_undo_that_fails_while_a_run_is_cancelled(place: Place) -> None:
    """The run is `failed` until somebody cancels it again, or runs it; both go on undoing, and then it is cancelled."""
    ledger = Ledger()
    ledger.interrupt(runner(place, orders(ledger)), 1, at={"ship"})
    ledger.taken()
    ledger.failing = {"pay>undo"}
    for go_on in (
        runner(place, orders(ledger)).cancel,
        lambda run_id: runner(place, orders(ledger)).run(run_id=run_id),
    ):
        result = go_on("r")
        assert result.status == "failed" and isinstance(result.error, UndoFailedError)
    assert ledger.taken() == ["pack>undo", "pay>undo", "pay>undo"]
    ledger.failing = set()
    result = runner(place, orders(ledger)).cancel("r")
    assert (result.status, result.error) == ("cancelled", None)
    assert ledger.taken() == ["pay>undo"]
    assert (place.load()["status"], place.load()["error"]) == ("cancelled", None)


def test_cancelling_does_not_change_how_undoing_ends(place: Place) -> None:
    """A run that failed and is being undone goes on with that, and is failed, not cancelled."""
    ledger = Ledger()
    ledger.failing = {"ship", "pay>undo"}
    runner(place, orders(ledger)).run(1, run_id="r")
    ledger.failing = set()
    result = runner(place, orders(ledger)).cancel("r")
    assert result.status == "failed"
    assert isinstance(result.error, RecordedError) and str(result.error) == "ValueError: ship is out of order"
    with pytest.raises(RunEndedError):
        runner(place, orders(ledger)).cancel("r")
    assert ledger.taken() == ["pay", "pack", "ship", "pack>undo", "pay>undo", "pay>undo"]
