"""Backends of somebody else's: three methods, kept to in whatever way."""

from __future__ import annotations

import asyncio
import json
import pickle
from typing import Any

import pytest

from flujo import Flujo, PipelineRegistry, StateBackend, WorkflowState, step
from flujo.errors import InvalidStateError
from flujo.state.models import FIELDS
from tests.support.backends import ByReference
from tests.support.pipelines import abc


class TenFields(ByReference):
    """Keeps the specification's fields and nothing else, as a table with ten columns would."""

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        kept = WorkflowState(**{name: state[name] for name in FIELDS})
        self.data[run_id] = kept.model_dump_json()

    async def load_state(self, run_id: str) -> dict[str, Any] | None:
        text = self.data.get(run_id)
        return None if text is None else json.loads(text)


class Pickling(ByReference):
    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        self.data[run_id] = pickle.dumps(state)

    async def load_state(self, run_id: str) -> dict[str, Any] | None:
        return pickle.loads(self.data[run_id]) if run_id in self.data else None


class Models(ByReference):
    """Gives back what pydantic makes of it."""

    async def load_state(self, run_id: str) -> dict[str, Any] | None:
        state = self.data.get(run_id)
        return None if state is None else {**state, **WorkflowState(**{n: state[n] for n in FIELDS}).model_dump()}


class Emptying(ByReference):
    """Clears the dict that it was handed, once it has kept it: it was told that the dict is its own."""

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        self.data[run_id] = dict(state)
        for value in state.values():
            if isinstance(value, list | dict):
                self.data[run_id] = pickle.loads(pickle.dumps(self.data[run_id]))
                value.clear()
        state.clear()


class Slotted(StateBackend):
    """With slots, and without calling super().__init__."""

    __slots__ = ("runs",)

    def __init__(self, data: dict[str, Any]) -> None:
        self.runs = data

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        self.runs[run_id] = state

    async def load_state(self, run_id: str) -> dict[str, Any] | None:
        return self.runs.get(run_id)

    async def delete_state(self, run_id: str) -> None:
        self.runs.pop(run_id, None)


ALL = [TenFields, Pickling, Models, Emptying, Slotted]


@pytest.mark.parametrize("kind", ALL)
def test_a_run_that_fails_at_every_step(kind: Any) -> None:
    """It goes on at the failed step each time, with that step's input and context, to the same result."""
    data: dict[str, Any] = {}
    seen: list[Any] = []
    failing: set[str] = set()

    def make(name: str) -> Any:
        @step(name=name)
        async def work(numbers: set[int], *, context: dict[str, Any]) -> set[int]:
            seen.append((name, sorted(numbers), sorted(context.get("n", ()))))
            new = {*numbers, len(numbers)}
            numbers.clear()
            context["n"] = context.get("n", set()) | new
            if name not in failing:
                failing.add(name)
                raise OSError("down")
            return new

        return work

    pipeline = make("a") >> make("b") >> make("c")

    def run() -> Any:
        return Flujo(pipeline, state_backend=kind(data)).run({0}, run_id="r")

    assert [run().status for _ in range(4)] == ["failed", "failed", "failed", "completed"]
    result = run()
    assert result.output == {0, 1, 2, 3}
    assert result.final_pipeline_context == {"n": {0, 1, 2, 3}}
    assert seen == [
        ("a", [0], []),
        ("a", [0], []),
        ("b", [0, 1], [0, 1]),
        ("b", [0, 1], [0, 1]),
        ("c", [0, 1, 2], [0, 1, 2]),
        ("c", [0, 1, 2], [0, 1, 2]),
    ]


@pytest.mark.parametrize("kind", ALL)
def test_versions_on_it(kind: Any) -> None:
    """The version is one of the ten fields: a run goes on with its own."""
    data: dict[str, Any] = {}
    calls: list[str] = []
    registry = PipelineRegistry()
    registry.register(abc(calls), "abc", "1.0")

    @step
    async def stop(items: list[Any]) -> list[Any]:
        raise KeyboardInterrupt

    first = Flujo(abc(calls) >> stop, pipeline_name="abc", pipeline_version="1.0", state_backend=kind(data))
    with pytest.raises(KeyboardInterrupt):
        first.run([], run_id="r")
    registry.register(abc([]) >> stop, "abc", "2.0")
    state = asyncio.run(kind(data).load_state("r"))
    assert (state["pipeline_version"], state["current_step_index"]) == ("1.0", 3)


@pytest.mark.parametrize("kind", ALL)
def test_a_completed_run_on_it(kind: Any) -> None:
    """Its result is the recorded one."""
    data: dict[str, Any] = {}
    calls: list[str] = []
    for _ in range(3):
        assert Flujo(abc(calls), state_backend=kind(data)).run([], run_id="r").output == ["a", "b", "c"]
    assert calls == ["a", "b", "c"]


@pytest.mark.parametrize("broken", [[], "text", 7, {"run_id": "r"}, {}])
def test_a_backend_that_gives_something_else(broken: Any) -> None:
    """What is no state is an error of flujo's, not a new run, and the run is not left owned."""

    class Broken(ByReference):
        async def load_state(self, run_id: str) -> Any:
            return broken

    runner = Flujo(abc([]), state_backend=Broken({}))
    for _ in range(2):
        with pytest.raises(InvalidStateError):
            runner.run([], run_id="r")


def test_a_backend_that_cannot_be_reached() -> None:
    """What its load raises comes out of `run`, each time; when it is back the run begins."""
    down = True

    class Remote(ByReference):
        async def load_state(self, run_id: str) -> dict[str, Any] | None:
            if down:
                raise ConnectionError("no route to host")
            return await super().load_state(run_id)

    runner = Flujo(abc([]), state_backend=Remote({}))
    for _ in range(2):
        with pytest.raises(ConnectionError):
            runner.run([], run_id="r")
    down = False
    assert runner.run([], run_id="r").output == ["a", "b", "c"]


def test_a_save_that_is_cancelled_is_waited_for() -> None:
    """A cancellation during a save is raised when the save is done, and what was saved is not done again."""
    calls: list[str] = []

    class Slow(ByReference):
        async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
            saving.set()
            await go.wait()
            await super().save_state(run_id, state)

    async def main() -> None:
        runner = Flujo(abc(calls), state_backend=Slow(data))
        task = asyncio.create_task(runner.run_async([], run_id="r"))
        await saving.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert data["r"]["current_step_index"] == 1
        assert (await runner.run_async([], run_id="r")).output == ["a", "b", "c"]

    data: dict[str, Any] = {}
    saving, go = asyncio.Event(), asyncio.Event()
    asyncio.run(main())
    assert calls == ["a", "b", "c"]


@pytest.mark.parametrize("missing", ["save_state", "load_state", "delete_state"])
def test_all_three_methods_are_needed(missing: str) -> None:
    """A class that lacks one cannot be used."""
    methods = {name: getattr(ByReference, name) for name in ("save_state", "load_state", "delete_state")}
    del methods[missing]
    with pytest.raises(TypeError, match=missing):
        type("Incomplete", (StateBackend,), methods)()
