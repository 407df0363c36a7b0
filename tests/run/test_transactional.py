"""A failed attempt leaves nothing behind: neither in the step's input nor in the context."""

from __future__ import annotations

import asyncio
import copy
import threading
from typing import Any

import pytest
from pydantic import BaseModel, PrivateAttr

from flujo import Flujo, InMemoryBackend, SQLiteBackend, step
from flujo.testing import VirtualClock
from tests.support.backends import Place
from tests.support.pipelines import T0, by_hand


class Shop(BaseModel):
    """A context with everything that can be changed in place."""

    log: list[str] = []
    counts: dict[str, list[int]] = {}
    seen: set[int] = set()
    _secret: list[int] = PrivateAttr(default_factory=list)


def spoil(items: list[Any], context: Shop | None = None) -> None:
    items.append("spoilt")
    items[0].append("spoilt")
    if context is not None:
        context.log.append("spoilt")
        context.counts.setdefault("spoilt", []).append(1)
        context.seen.add(99)
        context._secret.append(99)


def record_of(items: list[Any], context: Shop) -> tuple[Any, ...]:
    found = (items, context.log, context.counts, context.seen, context._secret)
    return copy.deepcopy(found)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("plain", [False, True])
def test_what_a_failed_attempt_changed_is_gone(place: Place, at: int, retries: int, plain: bool) -> None:
    """Each further attempt, in this process or the next, sees input and context as they were saved."""
    seen: list[Any] = []
    fail = True

    @step
    async def make(items: list[Any], *, context: Shop) -> list[Any]:
        context.log.append("made")
        context.seen.add(1)
        context._secret.append(1)
        return [["kept"], 1]

    def work(items: list[Any], *, context: Shop) -> list[Any]:
        seen.append(record_of(items, context))
        spoil(items, context)
        if fail:
            raise OSError("down")
        return ["done"]

    async def work_async(items: list[Any], *, context: Shop) -> list[Any]:
        return work(items, context=context)

    spoiling = step(retries=[0.0] * retries)(work if plain else work_async)
    pipeline = make >> spoiling if at else spoiling
    given = [["kept"], 1]

    def runner() -> Any:
        return Flujo(pipeline, context_model=Shop, state_backend=place.open(), clock=VirtualClock())

    expected = (given, ["made"], {}, {1}, [1]) if at else (given, [], {}, set(), [])
    if not at and not retries:
        given = copy.deepcopy(given)
    for _ in range(3):
        result = runner().run(copy.deepcopy(expected[0]), run_id="r")
        assert result.status == "failed"
        assert record_of([["kept"], 1], result.final_pipeline_context) == expected
    assert seen == [expected] * 3 * (retries + 1)
    state = place.load()
    assert state["current_step_index"] == at
    fail = False
    result = runner().run(run_id="r")
    assert result.output == ["done"]
    assert seen == [expected] * (3 * (retries + 1) + 1)
    final = result.final_pipeline_context
    assert final.log == [*expected[1], "spoilt"] and final._secret == [*expected[4], 99]
    again = runner().run(run_id="r").final_pipeline_context
    assert record_of([], again) == record_of([], final)


@pytest.mark.parametrize("retries", [0, 2])
def test_the_input_alone(place: Place, retries: int) -> None:
    """A step without a context gets its own input again, too."""
    seen: list[Any] = []
    fail = True

    @step
    async def make(n: int) -> list[list[int]]:
        return [[n]]

    @step(retries=[0.0] * retries)
    async def work(items: list[list[int]]) -> str:
        seen.append(copy.deepcopy(items))
        items[0].append(99)
        if fail:
            raise OSError("down")
        return "done"

    def runner() -> Any:
        return Flujo(make >> work, state_backend=place.open(), clock=VirtualClock())

    for _ in range(3):
        assert runner().run(1, run_id="r").status == "failed"
    fail = False
    assert runner().run(1, run_id="r").output == "done"
    assert seen == [[[1]]] * (3 * (retries + 1) + 1)


def test_the_callers_input_and_context_stay_the_callers(place: Place) -> None:
    """What the steps do to the context is not seen in the data that it was made of, nor by the next run."""
    shop = Shop(log=["old"])
    data = {"log": ["old"], "n": 1}

    @step
    async def change(n: int, *, context: Any) -> int:
        log = context["log"] if isinstance(context, dict) else context.log
        log.append("new")
        return len(log)

    with_model = Flujo(change, context_model=Shop, initial_context_data=shop, state_backend=place.open())
    assert [with_model.run(1, run_id="r").output, with_model.run(1, run_id="s").output] == [2, 2]
    assert shop.log == ["old"]
    with_dict = Flujo(change, initial_context_data=data, pipeline_id="d", state_backend=place.open())
    assert [with_dict.run(1, run_id="t").output, with_dict.run(1, run_id="u").output] == [2, 2]
    assert data == {"log": ["old"], "n": 1}


def test_a_state_put_there_by_hand_is_as_safe(place: Place) -> None:
    """The ten fields are enough for a retried step to see its own input and context each time."""
    place.put(by_hand(pipeline_id="p", pipeline_name="p", last_step_output=[["kept"]], pipeline_context={"log": [1]}))
    seen: list[Any] = []

    @step
    async def first(n: int) -> list[list[str]]:
        raise AssertionError

    @step(retries=[0.0, 0.0])
    async def work(items: list[list[str]], *, context: dict[str, Any]) -> str:
        seen.append(copy.deepcopy((items, context)))
        items[0].append("spoilt")
        context["log"].append(2)
        raise OSError("down")

    runner = Flujo((first >> work).named("p"), state_backend=place.open(), clock=VirtualClock(T0))
    for _ in range(2):
        assert runner.run(run_id="r").status == "failed"
    assert seen == [([["kept"]], {"log": [1]})] * 6


def test_a_submitted_run_retries_with_its_own_input(place: Place) -> None:
    """Found at index 0 without an input of its own, it takes the caller's, unspoilt at each attempt."""
    place.put(by_hand(pipeline_id="p", pipeline_name="p", current_step_index=0, last_step_output=None))
    seen: list[Any] = []

    @step(name="p", retries=[0.0, 0.0])
    async def work(items: list[list[str]]) -> str:
        seen.append(copy.deepcopy(items))
        items[0].append("spoilt")
        raise OSError("down")

    Flujo(work, state_backend=place.open(), clock=VirtualClock(T0)).run([["kept"]], run_id="r")
    assert seen == [[["kept"]]] * 3


def test_values_that_json_lacks_survive_failures(place: Place) -> None:
    """However often a step fails, its input and context are restored with their exact types."""
    seen: list[Any] = []

    @step
    async def make(n: int, *, context: dict[str, Any]) -> Any:
        context["x"] = {(1, 2): {3}, "$type": "mine"}
        context["$type"] = "set"
        return [{1, 2}, (3, b"4"), T0, {"$type": "set", "x": 1}, float("inf")]

    @step(retries=[0.0])
    async def work(given: Any, *, context: dict[str, Any]) -> Any:
        seen.append((given, context))
        raise OSError("down")

    for _ in range(4):
        runner = Flujo(make >> work, state_backend=place.open(), clock=VirtualClock())
        assert runner.run(1, run_id="r").status == "failed"
    expected = (
        [{1, 2}, (3, b"4"), T0, {"$type": "set", "x": 1}, float("inf")],
        {"x": {(1, 2): {3}, "$type": "mine"}, "$type": "set"},
    )
    assert seen == [expected] * 8


def test_an_output_that_cannot_be_saved_takes_the_context_back(place: Place) -> None:
    """The step has failed, so what it did to the context is gone, nested changes included."""
    mended = False

    @step
    async def make(n: int, *, context: dict[str, Any]) -> int:
        context["log"] = [["made"]]
        return n

    @step
    async def work(n: int, *, context: dict[str, Any]) -> Any:
        context["log"][0].append("worked")
        return n if mended else object()

    def runner() -> Any:
        return Flujo(make >> work, state_backend=place.open())

    for _ in range(2):
        result = runner().run(1, run_id="r")
        assert result.status == "failed"
        assert result.final_pipeline_context == {"log": [["made"]]}
    mended = True
    assert runner().run(1, run_id="r").final_pipeline_context == {"log": [["made", "worked"]]}


@pytest.mark.parametrize("copies", [dict, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("base", [InMemoryBackend, SQLiteBackend])
def test_subclasses_that_copy_the_state(base: Any, copies: Any, tmp_path: Any) -> None:
    """A copied state is the same state: a failed step's changes do not reach the store through it."""

    class Copies(base):  # type: ignore[misc]
        async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
            await super().save_state(run_id, copies(state))

    backend = Copies(tmp_path / "x.db") if base is SQLiteBackend else Copies()
    seen: list[Any] = []

    @step
    async def make(n: int, *, context: dict[str, Any]) -> list[list[int]]:
        context["log"] = [[n]]
        return [[n]]

    @step(retries=[0.0])
    async def work(items: list[list[int]], *, context: dict[str, Any]) -> str:
        seen.append(copy.deepcopy((items, context)))
        items[0].append(99)
        context["log"][0].append(99)
        raise OSError("down")

    for _ in range(2):
        runner = Flujo(make >> work, state_backend=backend, clock=VirtualClock())
        assert runner.run(1, run_id="r").status == "failed"
    assert seen == [([[1]], {"log": [[1]]})] * 4
    asyncio.run(backend.close())


def test_an_abandoned_attempt_changes_nothing(place: Place) -> None:
    """A plain function that goes on after its time-out works on objects that nobody looks at any more."""

    @step
    async def make(n: int, *, context: dict[str, Any]) -> list[int]:
        context["log"] = ["made"]
        return [n]

    entered, timed_out, done = threading.Event(), threading.Event(), threading.Event()

    @step(timeout=0.01, name="work")
    def work(items: list[int], *, context: dict[str, Any]) -> list[int]:
        entered.set()
        assert timed_out.wait(20)
        items.append(99)
        context["log"].append("late")
        done.set()
        return items

    result = Flujo(make >> work, state_backend=place.open()).run(1, run_id="r")
    assert result.status == "failed"
    timed_out.set()
    assert not entered.is_set() or done.wait(20)  # on a busy machine it may not even have begun
    assert result.final_pipeline_context == {"log": ["made"]}

    @step(name="work")
    async def patient(items: list[int], *, context: dict[str, Any]) -> Any:
        return items, context["log"]

    assert Flujo(make >> patient, state_backend=place.open()).run(1, run_id="r").output == ([1], ["made"])
