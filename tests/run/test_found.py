"""What `run` does with what it finds: the table of found states, on every kind of store."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flujo import Flujo, RunFailedError, StateBackend, step
from flujo.errors import ConfigurationError, InvalidStateError, RunInProgressError
from flujo.runner.opening import InputIgnoredWarning
from flujo.state.models import FIELDS, StepRecord, WorkflowState
from flujo.testing import VirtualClock
from tests.support.backends import Place
from tests.support.pipelines import T0, abc, adding, by_hand


def names(history: list[StepRecord]) -> list[str]:
    return [record.name for record in history]


def test_nothing_is_found(place: Place) -> None:
    """The run starts, and each step runs once."""
    calls: list[str] = []
    result = Flujo(abc(calls), state_backend=place.open()).run([], run_id="r")
    assert (result.status, result.output, calls) == ("completed", ["a", "b", "c"], ["a", "b", "c"])
    assert names(result.step_history) == ["a", "b", "c"]
    assert result.final_pipeline_context == {}
    state = place.load()
    assert WorkflowState.model_validate({name: state[name] for name in FIELDS}).current_step_index == 3
    assert state["status"] == "completed"


@pytest.mark.parametrize("naive", [False, True])
def test_running_without_an_owner(place: Place, naive: bool) -> None:
    """It goes on after its last saved step; a state of the ten fields is enough, and a naive time is UTC."""
    moment = T0.replace(tzinfo=None) if naive else T0
    place.put(by_hand(created_at=moment, updated_at=moment))
    calls: list[str] = []
    result = Flujo(abc(calls), state_backend=place.open()).run(run_id="r")
    assert (result.output, calls) == (["a", "b", "c"], ["b", "c"])
    assert names(result.step_history) == ["b", "c"]
    state = place.load()
    assert WorkflowState.model_validate({name: state[name] for name in FIELDS}).created_at == T0


def test_running_at_the_first_step(place: Place) -> None:
    """A submitted run gets the input that `run` is given; without one it is refused and stays as it is."""
    place.put(by_hand(current_step_index=0, last_step_output=None))
    calls: list[str] = []
    runner = Flujo(abc(calls), state_backend=place.open())
    with pytest.raises(ConfigurationError, match="needs an input"):
        runner.run(run_id="r")
    assert place.load()["current_step_index"] == 0
    assert runner.run(["x"], run_id="r").output == ["x", "a", "b", "c"]


def test_running_at_the_end(place: Place) -> None:
    """All steps are saved, but not that the run is over: nothing is executed, and now it is completed."""
    place.put(by_hand(current_step_index=3, last_step_output=["a", "b", "c"]))
    calls: list[str] = []
    result = Flujo(abc(calls), state_backend=place.open()).run(run_id="r")
    assert (result.status, result.output, calls) == ("completed", ["a", "b", "c"], [])
    assert place.load()["status"] == "completed"


@pytest.mark.parametrize("kind", ["input", "context"])
def test_running_with_a_live_owner(place: Place, kind: str) -> None:
    """A second `run` is refused, says who and since when, and changes nothing; the first goes on."""
    entered, go = asyncio.Event(), asyncio.Event()

    @step
    async def hold(text: str) -> str:
        entered.set()
        await go.wait()
        return text.upper()

    async def main() -> None:
        backend = place.open()
        runner = Flujo(hold, state_backend=backend)
        task = asyncio.create_task(runner.run_async("x", run_id="r"))
        await entered.wait()
        with pytest.raises(RunInProgressError) as caught:
            await Flujo(hold, state_backend=backend).run_async("x", run_id="r")
        assert caught.value.run_id == "r"
        go.set()
        assert (await task).output == "X"

    asyncio.run(main())


def test_paused_for_a_person(place: Place) -> None:
    """The paused result is returned and nothing is executed or written, however often one looks."""
    place.put(by_hand(status="paused", pipeline_context={"n": 1}))
    before = place.contents()
    calls: list[str] = []
    for _ in range(5):
        result = Flujo(abc(calls), state_backend=place.open()).run(run_id="r")
        assert (result.status, result.final_pipeline_context, calls) == ("paused", {"n": 1}, [])
        with pytest.raises(RunFailedError, match="waiting"):
            _ = result.output
    assert place.contents() == before


def test_paused_and_the_time_has_come(place: Place) -> None:
    """Before the time it is returned as paused; when it has come the run goes on."""
    clock = VirtualClock(T0)
    place.put(by_hand(status="paused", due_at=T0 + timedelta(hours=1)))
    calls: list[str] = []
    runner = Flujo(abc(calls), state_backend=place.open(), clock=clock)
    assert runner.run(run_id="r").status == "paused"
    asyncio.run(clock.sleep(3600))
    assert runner.run(run_id="r").output == ["a", "b", "c"]
    assert place.load()["status"] == "completed"


def test_failed(place: Place) -> None:
    """The failed step is tried again, with its own input, and never skipped."""
    place.put(by_hand(status="failed"))
    calls: list[str] = []
    assert Flujo(abc(calls), state_backend=place.open()).run(run_id="r").output == ["a", "b", "c"]
    assert calls == ["b", "c"]


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_over(place: Place, status: str) -> None:
    """The recorded result is returned; nothing is executed or written, however often one looks."""
    index = 3 if status == "completed" else 2
    place.put(by_hand(status=status, current_step_index=index, last_step_output=["old"]))
    before = place.contents()
    calls: list[str] = []
    for _ in range(5):
        result = Flujo(abc(calls), state_backend=place.open()).run(["other"], run_id="r")
        assert (result.status, calls) == (status, [])
    if status == "completed":
        assert result.output == ["old"]
    else:
        with pytest.raises(RunFailedError, match="cancelled"):
            _ = result.output
    assert place.contents() == before


def test_a_completed_run_stays_as_it_is(place: Place) -> None:
    """Looked at with and without its input, awaited and iterated, nothing of it changes."""
    calls: list[str] = []
    first = Flujo(abc(calls), state_backend=place.open()).run([], run_id="r")
    before = place.contents()

    async def iterate() -> list[Any]:
        runner = Flujo(abc(calls), state_backend=place.open())
        return [item async for item in runner.run_async([], run_id="r")]

    for _ in range(3):
        again = Flujo(abc(calls), state_backend=place.open()).run([], run_id="r")
        assert again.output == first.output and again.status == first.status
        assert [(s.name, s.output) for s in again.step_history] == [(s.name, s.output) for s in first.step_history]
        (only,) = asyncio.run(iterate())
        assert only.output == first.output
        assert Flujo(abc(calls), state_backend=place.open()).run(run_id="r").output == first.output
    assert place.contents() == before
    assert calls == ["a", "b", "c"]


@pytest.mark.parametrize(
    "changes",
    [
        {"current_step_index": 4},
        {"current_step_index": 400, "status": "failed"},
        {"current_step_index": 2, "status": "completed"},
    ],
)
def test_a_place_that_the_pipeline_does_not_have(place: Place, changes: dict[str, Any]) -> None:
    """It is an error that names index and length, and the state stays as it is."""
    place.put(by_hand(**changes))
    runner = Flujo(abc([]), state_backend=place.open())
    for _ in range(2):  # and the run is not left owned
        with pytest.raises(InvalidStateError, match=f"{changes['current_step_index']}.* 3"):
            runner.run(run_id="r")
    assert place.load()["current_step_index"] == changes["current_step_index"]


@pytest.mark.parametrize(
    "changes",
    [
        {"current_step_index": -1},
        {"current_step_index": "two"},
        {"status": "done"},
        {"created_at": "yesterday"},
        {"pipeline_context": [1]},
        {"pipeline_id": None},
        {"run_id": 7},
    ],
)
def test_no_workflow_state(place: Place, changes: dict[str, Any]) -> None:
    """A state with a wrong field is refused by name: at the save, or by the run that finds it."""
    (field,) = changes
    backend = place.open()
    with pytest.raises(InvalidStateError, match=field):  # noqa: PT012
        asyncio.run(backend.save_state("r", by_hand(**changes)))
        Flujo(abc([]), state_backend=backend).run(run_id="r")


@pytest.mark.parametrize("field", [name for name in FIELDS if name != "last_step_output"])
def test_a_state_that_lacks_a_field(place: Place, field: str) -> None:
    """The error names what is missing."""
    state = by_hand()
    del state[field]
    backend = place.open()
    with pytest.raises(InvalidStateError, match=field):  # noqa: PT012
        asyncio.run(backend.save_state("r", state))
        Flujo(abc([]), state_backend=backend).run(run_id="r")


def test_a_state_of_another_run(place: Place) -> None:
    """A state that says another run_id than the one it is kept under is refused."""
    backend = place.open()
    with pytest.raises(InvalidStateError, match="'s'"):  # noqa: PT012
        asyncio.run(backend.save_state("r", by_hand(run_id="s")))
        Flujo(abc([]), state_backend=backend).run(run_id="r")


def test_an_index_beyond_the_pipeline_in_a_paused_state(place: Place) -> None:
    """Also where nothing would be executed: the state does not fit the pipeline."""
    place.put(by_hand(status="paused", current_step_index=9))
    with pytest.raises(InvalidStateError):
        Flujo(abc([]), state_backend=place.open()).run(run_id="r")


def test_another_input_is_ignored_with_a_warning(place: Place) -> None:
    """The run goes on with its own input; the same input, or none, is no reason to warn."""
    calls: list[str] = []
    runner = Flujo(abc(calls), state_backend=place.open())
    assert runner.run(["x"], run_id="r").output == ["x", "a", "b", "c"]
    with pytest.warns(InputIgnoredWarning, match="'r'"):
        assert runner.run(["y"], run_id="r").output == ["x", "a", "b", "c"]
    assert runner.run(["x"], run_id="r").output == ["x", "a", "b", "c"]
    assert runner.run(run_id="r").output == ["x", "a", "b", "c"]


def test_the_same_input_is_the_same_in_whatever_order_it_is_written(place: Place) -> None:
    """Two equal dicts and two equal sets are one input."""

    @step
    async def size(given: dict[str, Any]) -> int:
        return len(given)

    runner = Flujo(size, state_backend=place.open())
    numbers = [8, 0, 16, 1]
    runner.run({"a": 1, "b": set(numbers)}, run_id="r")
    again = runner.run({"b": {1, 16, 0, 8}, "a": 1}, run_id="r")
    assert again.output == 2


def test_another_input_that_could_not_be_saved_is_ignored_too(place: Place) -> None:
    """The run that exists is what counts."""
    runner = Flujo(adding("a", []), state_backend=place.open())
    runner.run([], run_id="r")
    with pytest.warns(InputIgnoredWarning):
        assert runner.run([object()], run_id="r").output == ["a"]


def test_a_new_run_needs_an_input(place: Place) -> None:
    """Without one a step that takes one is not started, and nothing is saved; a step that takes none is."""
    runner = Flujo(abc([]), state_backend=place.open())
    with pytest.raises(ConfigurationError, match="'r' does not exist"):
        runner.run(run_id="r")
    assert asyncio.run(place.open().load_state("r")) is None

    @step
    async def start() -> int:
        return 1

    assert Flujo(start, state_backend=place.open()).run(run_id="s").output == 1


def test_an_explicit_none_is_an_input(place: Place) -> None:
    """`run(None)` is not the same as no input."""

    @step
    async def kind(given: str | None) -> str:
        return repr(given)

    assert Flujo(kind, state_backend=place.open()).run(None, run_id="r").output == "None"


def test_times_are_aware_and_created_at_is_set_once(place: Place) -> None:
    """`created_at` is when the run was begun, `updated_at` that of the last save; both in UTC over resumes."""
    clock = VirtualClock(T0)
    fail = True

    @step
    async def one(x: int) -> int:
        await clock.sleep(10)
        return x

    @step
    async def two(x: int) -> int:
        await clock.sleep(100)
        if fail:
            raise OSError("down")
        return x

    def times() -> tuple[datetime, datetime]:
        state = place.load()
        model = WorkflowState.model_validate({name: state[name] for name in FIELDS})
        assert model.created_at.tzinfo is UTC and model.updated_at.tzinfo is UTC
        return model.created_at, model.updated_at

    runner = Flujo(one >> two, state_backend=place.open(), clock=clock)
    assert runner.run(1, run_id="r").status == "failed"
    assert times() == (T0, T0 + timedelta(seconds=110))
    assert Flujo(one >> two, state_backend=place.open(), clock=clock).run(1, run_id="r").status == "failed"
    assert times() == (T0, T0 + timedelta(seconds=210))
    fail = False
    assert Flujo(one >> two, state_backend=place.open(), clock=clock).run(1, run_id="r").status == "completed"
    assert times() == (T0, T0 + timedelta(seconds=310))


def test_the_index_never_drifts(place: Place) -> None:
    """However often a run fails and is resumed, the index is the number of steps that are saved."""
    fail_at = {"b": 3, "c": 2}
    calls: list[str] = []

    def flaky(name: str) -> Any:
        @step(name=name)
        async def run(items: list[str]) -> list[str]:
            calls.append(name)
            if fail_at.get(name, 0):
                fail_at[name] -= 1
                raise OSError("down")
            return [*items, name]

        return run

    pipeline = flaky("a") >> flaky("b") >> flaky("c")
    found = []
    for _ in range(7):
        result = Flujo(pipeline, state_backend=place.open()).run([], run_id="r")
        found.append((result.status, place.load()["current_step_index"]))
    assert found == [("failed", 1)] * 3 + [("failed", 2)] * 2 + [("completed", 3)] * 2
    assert calls == ["a", "b", "b", "b", "b", "c", "c", "c"]
    assert result.output == ["a", "b", "c"]
    assert names(result.step_history) == ["a", "b", "c"]


def test_two_backends_of_one_store_are_two_processes(place: Place) -> None:
    """What one wrote the other one goes on with (the store in memory has but one backend)."""
    first: StateBackend = place.open()
    asyncio.run(first.save_state("r", by_hand()))
    calls: list[str] = []
    assert Flujo(abc(calls), state_backend=place.open()).run(run_id="r").output == ["a", "b", "c"]
    asyncio.run(first.delete_state("r"))
    assert asyncio.run(place.open().load_state("r")) is None
    assert Flujo(abc(calls), state_backend=place.open()).run([], run_id="r").status == "completed"
