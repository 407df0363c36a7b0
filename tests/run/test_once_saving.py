"""`once` among saves that fail, steps that are cancelled, and contexts that are not to be saved yet."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flujo import Flujo, InMemoryBackend, PipelineResult, SQLiteBackend, StateBackend, Step, current_step, once, step
from flujo.errors import SaveError
from flujo.execution.events import Event, StepRetrying
from flujo.testing import VirtualClock
from tests.support.backends import AsText, Place
from tests.support.nested_runs import PATIENCE_S, paths, stopping
from tests.support.reference_backends import Live, LiveFencedReadable, Text
from tests.support.undo_pages import Pages, run

# --- saves that fail, and cancellations ---


@pytest.mark.parametrize("then", ["returns", "raises", "goes on"])
def test_a_save_that_fails_stops_the_run(place: Place, then: str) -> None:
    """However the step takes it: it is not retried and nothing more of it is saved. The next run goes on."""
    calls: list[str] = []

    @step(retries=[3.0])
    async def work(_: int) -> int:
        for name in "abc":
            try:
                await once(name, calls.append, name)
            except SaveError:
                if then == "raises":
                    raise ValueError("mine") from None
                if then == "returns":
                    return 1
        return 2

    broken = stopping(place.open(), lambda records: any(record.name == "work>b" for record in records))
    with pytest.raises(SaveError):
        Flujo(work, state_backend=broken, clock=VirtualClock()).run(1, run_id="r")
    assert calls == (["a", "b", "c"] if then == "goes on" else ["a", "b"])
    assert len(place.load()["step_history"]) == 2
    del broken.__dict__["save_state"]
    assert run(place, work, 1).output == 2
    assert calls == (["a", "b", "c", "c"] if then == "goes on" else ["a", "b", "c"])


class Gated(InMemoryBackend):
    """Says when a save begins, and lets it be done when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        self.begun.set()
        await self.go.wait()
        await super().save_state(run_id, state)


@pytest.mark.parametrize("waits", [False, True])
def test_cancelled_while_it_is_being_saved(waits: bool) -> None:
    """Who stops waiting for it hears of that when it is saved; the next attempt has it, and does not repeat it.

    The same where it `waits` for the save of another call.
    """
    pages = Pages()

    async def main() -> PipelineResult[Any]:
        backend = Gated()
        attempts = 0

        @step(retries=[3.0])
        async def work(_: int) -> list[str]:
            nonlocal attempts
            attempts += 1
            if attempts == 2:
                return await once("page-1", pages.fetch, 1)
            other = asyncio.ensure_future(once("page-0", pages.fetch, 0)) if waits else None
            if other is not None:
                await backend.begun.wait()
            mine = asyncio.ensure_future(once("page-1", pages.fetch, 1))
            await backend.begun.wait()
            for _ in range(9):  # until it is fetched, and waits for its save
                await asyncio.sleep(0)
            assert 1 in pages.fetched
            mine.cancel()
            asyncio.get_running_loop().call_soon(backend.go.set)
            with pytest.raises(asyncio.CancelledError):
                await mine
            if other is not None:
                await other
            raise LookupError("the first attempt")

        runner = Flujo(work, state_backend=backend, clock=VirtualClock())
        async with asyncio.timeout(PATIENCE_S):
            return await runner.run_async(1, run_id="r")

    result = asyncio.run(main())
    assert result.output == ["row 1"]
    assert pages.fetched == ([0, 1] if waits else [1])
    assert paths(result) == [*(["work>page-0"] if waits else []), "work>page-1", "work"]


@pytest.mark.slow
def test_a_time_limit_around_it() -> None:
    """`asyncio.wait_for` that runs out while it is being saved: a TimeoutError, and the result is there next time."""
    pages = Pages()

    async def main() -> PipelineResult[Any]:
        backend = Gated()

        @step(retries=[3.0])
        async def work(_: int) -> list[str]:
            asyncio.get_running_loop().call_later(0.2, backend.go.set)
            return await asyncio.wait_for(once("page", pages.fetch, 1), 0.1 if not backend.go.is_set() else None)

        return await Flujo(work, state_backend=backend, clock=VirtualClock()).run_async(1, run_id="r")

    result = asyncio.run(main())
    assert result.output == ["row 1"]
    assert result.step_history[-1].attempts == 2
    assert pages.fetched == [1]


def test_the_next_attempt_waits_for_a_plain_call_that_was_abandoned() -> None:
    """A plain function that the step's time ran out on comes to its end before it is called again."""
    log: list[str] = []
    go = threading.Event()

    def slow() -> str:
        log.append("begin")
        assert go.wait(PATIENCE_S)
        log.append("unwanted" if current_step().cancelled else "wanted")
        return log[-1]

    def let_go(event: Event) -> None:
        if isinstance(event, StepRetrying):  # some time later, when an attempt that does not wait has long begun
            asyncio.get_running_loop().call_later(0.05, go.set)

    @step(retries=[0.0], timeout=0.1)
    async def work(_: int) -> str:
        return await once("x", slow)

    assert Flujo(work, clock=VirtualClock(), hooks=[let_go]).run(1).output == "wanted"
    assert log == ["begin", "unwanted", "begin", "wanted"]


# --- contexts ---


class Deep(SQLiteBackend):
    """Saves copies of what it is handed."""

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        await super().save_state(run_id, copy.deepcopy(state))


MAKES: dict[str, Callable[[Path], StateBackend]] = {
    "memory": lambda _: InMemoryBackend(),
    "sqlite": lambda folder: SQLiteBackend(folder / "runs.db", durability="process"),
    "copies": lambda folder: Deep(folder / "runs.db", durability="process"),
    "as text": lambda _: AsText({}),
    "three methods": lambda _: Text(),
    "a codec": lambda _: Live(),
    "everything": lambda _: LiveFencedReadable(),
}


@pytest.fixture(params=MAKES)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateBackend]:
    """A backend of each make in turn."""
    found = MAKES[request.param](tmp_path)
    yield found
    if isinstance(found, SQLiteBackend):
        asyncio.run(found.close())


class Shop(BaseModel):
    """A context."""

    log: list[str] = []


@pytest.mark.parametrize("model", [True, False])
@pytest.mark.parametrize("shape", ["first", "later", "loop", "items", "undo"])
def test_what_the_step_did_to_the_context_is_not_saved_with_it(backend: StateBackend, shape: str, model: bool) -> None:
    """It becomes part of the run with the step's own save, and not before; a failed attempt leaves none of it."""
    before = [] if shape == "first" else ["first"]
    attempts = list[list[str]]()
    stored = list[list[str]]()
    fails = True

    def log_of(context: Any) -> list[str]:
        log: list[str] = context.log if model else context.setdefault("log", [])
        return log

    async def work(n: Any, *, context: Any) -> Any:
        log = log_of(context)
        attempts.append(list(log))
        log.append("work")
        await once("x", lambda: 1)
        state = await backend.load_state("r")
        assert state is not None
        stored.append(state["pipeline_context"].get("log", []))
        if fails:
            raise OSError("down")
        return n

    @step
    async def first(n: int, *, context: Any) -> list[int]:
        log_of(context).append("first")
        return [n]

    @step
    async def bad(n: Any) -> None:
        raise ValueError("no")

    working = step(work)
    shapes: dict[str, Callable[[], Any]] = {
        "first": lambda: working,
        "later": lambda: first >> working,
        "loop": lambda: first >> Step.loop_until("again", working, until=lambda _: True),
        "items": lambda: first >> Step.map_over("many", working),
        "undo": lambda: replace(first, undo=working) >> bad,
    }

    def again() -> PipelineResult[Any]:
        runner: Flujo[Any, Any] = Flujo(
            shapes[shape](), context_model=Shop if model else None, state_backend=backend, clock=VirtualClock()
        )
        return runner.run(1, run_id="r")

    for _ in range(2):
        result = again()
        assert result.status == "failed"
        assert log_of(result.final_pipeline_context) == before
    fails = False
    result = again()
    assert log_of(result.final_pipeline_context) == [*before, "work"]
    assert attempts == [before] * 3 == stored


def test_nor_is_it_after_an_attempt_that_failed_before_anything_was_saved(backend: StateBackend) -> None:
    """The first step of a run, in its second attempt: what that has done to the context is not saved either."""
    attempts = list[list[str]]()
    stored = list[list[str]]()

    @step(retries=[3.0])
    async def work(n: int, *, context: Shop) -> int:
        attempts.append(list(context.log))
        context.log.append("work")
        if len(attempts) > 1:
            await once("x", lambda: 1)
            state = await backend.load_state("r")
            assert state is not None
            stored.append(state["pipeline_context"]["log"])
        raise OSError("down")

    runner = Flujo(work, context_model=Shop, state_backend=backend, clock=VirtualClock())
    assert runner.run(1, run_id="r").final_pipeline_context.log == []
    assert attempts == [[], []]
    assert stored == [[]]
