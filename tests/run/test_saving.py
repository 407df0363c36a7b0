"""What a backend is handed, and when."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, InMemoryBackend, SQLiteBackend, StateBackend, step
from flujo.errors import FencedError, RunInProgressError
from flujo.state.models import FIELDS, WorkflowState
from tests.support.backends import OURS, AsText, ByReference, Copying, Place
from tests.support.pipelines import T0, abc, adding, new_run

BASES = [InMemoryBackend, SQLiteBackend, ByReference, AsText, Copying]


def make(cls: Any, tmp_path: Path) -> Any:
    if issubclass(cls, SQLiteBackend):
        return cls(tmp_path / "runs.db")
    return cls({}) if issubclass(cls, ByReference) else cls()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("copies", [None, dict, copy.deepcopy])
def test_a_subclass_sees_every_checkpoint(base: Any, copies: Any, tmp_path: Path) -> None:
    """Index 1 before the second step starts, and so on to the end with the final status; each in a dict of its own."""
    events: list[Any] = []
    states: list[dict[str, Any]] = []

    class Watching(base):  # type: ignore[misc]
        async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
            assert run_id == state["run_id"] == "r"
            states.append(state)
            await super().save_state(run_id, copies(state) if copies else state)
            events.append((state["current_step_index"], state["status"], state["rev"], state["total_steps"]))

    backend = make(Watching, tmp_path)
    result = Flujo(abc(events), state_backend=backend).run([], run_id="r")
    assert result.output == ["a", "b", "c"]
    assert events == [
        "a",
        (1, "running", 1, 3),
        "b",
        (2, "running", 2, 3),
        "c",
        (3, "completed", 3, 3),
    ]
    assert len({id(state) for state in states}) == 3
    assert [state["last_step_output"] for state in states] == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert len({state.get("fence") for state in states}) == 1
    again = Flujo(abc(events), state_backend=backend).run([], run_id="r")
    assert again.output == ["a", "b", "c"] and len(events) == 6
    asyncio.run(backend.close())


@pytest.mark.parametrize("base", BASES)
def test_a_subclass_sees_failures_and_resumes(base: Any, tmp_path: Path) -> None:
    """A failure is saved at the index of the failed step, with the reason; the resumed run counts on."""
    seen: list[Any] = []
    fail = True

    class Watching(base):  # type: ignore[misc]
        async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
            await super().save_state(run_id, state)
            reason = state["error"]["text"] if state["error"] else None
            seen.append((state["current_step_index"], state["status"], state["rev"], reason))

    @step
    async def fragile(items: list[Any]) -> list[Any]:
        if fail:
            raise OSError("down")
        return items

    backend = make(Watching, tmp_path)
    pipeline = adding("a", []) >> fragile
    assert Flujo(pipeline, state_backend=backend).run([], run_id="r").status == "failed"
    assert Flujo(pipeline, state_backend=backend).run([], run_id="r").status == "failed"
    fail = False
    assert Flujo(pipeline, state_backend=backend).run([], run_id="r").output == ["a"]
    assert seen == [
        (1, "running", 1, None),
        (1, "failed", 2, "down"),
        (1, "failed", 3, "down"),
        (2, "completed", 4, None),
    ]
    asyncio.run(backend.close())


@pytest.mark.parametrize("base", BASES)
def test_a_failed_save_stops_the_run(base: Any, tmp_path: Path) -> None:
    """What save_state raises comes out of `run`; nothing more is executed, and the next run goes on from there."""
    broken = True
    calls: list[str] = []

    class Broken(base):  # type: ignore[misc]
        async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
            if broken and state["current_step_index"] == 2:
                raise ConnectionError("the store is gone")
            await super().save_state(run_id, state)

    backend = make(Broken, tmp_path)
    for _ in range(2):
        with pytest.raises(ConnectionError, match="the store is gone"):
            Flujo(abc(calls), state_backend=backend).run([], run_id="r")
    assert calls == ["a", "b", "b"]
    broken = False
    assert Flujo(abc(calls), state_backend=backend).run([], run_id="r").output == ["a", "b", "c"]
    assert calls == ["a", "b", "b", "b", "c"]
    asyncio.run(backend.close())


def test_what_a_backend_of_three_methods_is_handed(tmp_path: Path) -> None:
    """Plain JSON data that is complete at each save: every step so far is in it."""
    states: list[dict[str, Any]] = []

    class Plain(ByReference):
        async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
            plain = {k: v for k, v in state.items() if k not in ("created_at", "updated_at")}
            assert json.loads(json.dumps(plain)) == plain
            WorkflowState.model_validate({name: state[name] for name in FIELDS})
            states.append(state)
            await super().save_state(run_id, state)

    @step
    async def make(n: int, *, context: dict[str, Any]) -> set[int]:
        context["moment"] = {n}
        return {n}

    @step
    async def more(numbers: set[int]) -> tuple[int, ...]:
        return tuple(numbers)

    data: dict[str, Any] = {}
    assert Flujo(make >> more, state_backend=Plain(data)).run(1, run_id="r").output == (1,)
    assert [[r["path"] for r in s["step_history"]] for s in states] == [[["make"]], [["make"], ["more"]]]
    result = Flujo(make >> more, state_backend=Plain(data)).run(1, run_id="r")
    assert (result.output, result.final_pipeline_context) == ((1,), {"moment": {1}})
    assert [(s.name, s.output) for s in result.step_history] == [("make", {1}), ("more", (1,))]


@pytest.mark.parametrize("kind", OURS)
def test_a_wrapper_of_three_methods_around_ours(kind: str, tmp_path: Path) -> None:
    """A backend that hands everything on to one of flujo's works and resumes, though it owns nothing."""
    place = Place(kind, tmp_path)

    class Wrapper(StateBackend):
        def __init__(self) -> None:
            self.inner = place.open()

        async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
            await self.inner.save_state(run_id, state)

        async def load_state(self, run_id: str) -> dict[str, Any] | None:
            return await self.inner.load_state(run_id)

        async def delete_state(self, run_id: str) -> None:
            await self.inner.delete_state(run_id)

    fail = True

    @step
    async def make(n: int, *, context: dict[str, Any]) -> set[int]:
        context["n"] = {n}
        return {n}

    @step
    async def fragile(numbers: set[int], *, context: dict[str, Any]) -> set[int]:
        if fail:
            raise OSError("down")
        return numbers | context["n"] | {2}

    def run() -> Any:
        return Flujo(make >> fragile, state_backend=Wrapper()).run(1, run_id="r")

    assert [run().status, run().status] == ["failed", "failed"]
    fail = False
    assert run().output == {1, 2}
    assert run().output == {1, 2}
    assert [(s.name, s.output) for s in run().step_history] == [("make", {1}), ("fragile", {1, 2})]
    place.close()


def test_a_robbed_runner_saves_no_more(place: Place) -> None:
    """After a claim by force the old owner's next save is refused; the run has the new owner's result alone."""
    entered, go = asyncio.Event(), asyncio.Event()
    calls: list[str] = []

    @step
    async def hold(text: str) -> str:
        calls.append("hold")
        if len(calls) == 1:
            entered.set()
            await go.wait()
            return "stale"
        return "fresh"

    async def main() -> None:
        backend = place.open()
        runner = Flujo(hold, state_backend=backend)
        first = asyncio.create_task(runner.run_async("x", run_id="r"))
        await entered.wait()
        state = await backend.load_state("r")
        assert state is None
        claim = await backend.claim("r", new_run("hold"), now=T0, force=True)
        await backend.release("r", claim.fence)
        assert (await runner.run_async("x", run_id="r")).output == "fresh"
        go.set()
        with pytest.raises(FencedError):
            await first
        assert (await runner.run_async("x", run_id="r")).output == "fresh"

    asyncio.run(main())


def test_a_save_by_hand_is_refused_while_the_run_is_executed(place: Place) -> None:
    """A live owner's run is changed by nobody else (a backend of three methods cannot know)."""
    if place.kind not in OURS:
        pytest.skip("three methods have no owners")
    entered, go = asyncio.Event(), asyncio.Event()

    @step
    async def hold(items: list[str]) -> list[str]:
        entered.set()
        await go.wait()
        return items

    async def main() -> None:
        backend = place.open()
        pipeline = adding("a", []) >> hold
        task = asyncio.create_task(Flujo(pipeline, state_backend=backend).run_async([], run_id="r"))
        await entered.wait()
        state = await backend.load_state("r")
        assert state is not None and state["current_step_index"] == 1
        with pytest.raises(RunInProgressError):
            await place.open().save_state("r", state)
        with pytest.raises(RunInProgressError):
            await place.open().delete_state("r")
        go.set()
        assert (await task).output == ["a"]
        await backend.delete_state("r")
        assert await backend.load_state("r") is None

    asyncio.run(main())


def test_load_change_save(place: Place) -> None:
    """A loaded state that is changed and saved is what the run goes on with; its history stays whole."""
    fail = True
    calls: list[str] = []

    @step
    async def fragile(items: list[str], *, context: dict[str, Any]) -> list[str]:
        if fail:
            raise OSError("down")
        return [*items, context.get("by", "?")]

    pipeline = adding("a", calls) >> fragile
    Flujo(pipeline, state_backend=place.open()).run([], run_id="r")
    for name in ("one", "two"):
        state = place.load()
        state["pipeline_context"] = {"by": name}
        state["last_step_output"] = [*state["last_step_output"], name]
        place.put(state)
    assert place.load()["pipeline_context"] == {"by": "two"}
    fail = False
    result = Flujo(pipeline, state_backend=place.open()).run([], run_id="r")
    assert result.output == ["a", "one", "two", "two"]
    assert calls == ["a"]
    assert [s.name for s in result.step_history] == ["a", "fragile"]
    again = Flujo(pipeline, state_backend=place.open()).run([], run_id="r")
    assert [(s.name, s.success) for s in again.step_history] == [("a", True), ("fragile", True)]
    assert len(place.load()["step_history"]) == 3  # the failure is on record too
