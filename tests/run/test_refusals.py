"""What could not be restored exactly is refused, and nothing that was there before is lost."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from flujo import Flujo, SQLiteBackend, step
from flujo.errors import BackendClosedError, NotSerializableError
from flujo.state import Codec
from tests.support.backends import OURS, Place


class Handle:
    """Something that lives in one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


@dataclass
class Item:
    name: str
    conn: Any = None


def test_an_output(place: Place) -> None:
    """The run is `failed` with the path to the value; the next run, with the step mended, goes on."""
    calls: list[str] = []
    mended = False

    @step
    async def first(n: int) -> int:
        calls.append("first")
        return n

    @step
    async def second(n: int) -> dict[str, list[Item]]:
        calls.append("second")
        return {"items": [Item("a"), Item("b", None if mended else Handle())]}

    def run() -> Any:
        return Flujo(first >> second, state_backend=place.open()).run(1, run_id="r")

    for _ in range(2):
        result = run()
        assert result.status == "failed"
        assert isinstance(result.error, NotSerializableError)
        assert result.error.path == "output['items'][1].conn" or result.error.path == "output.items[1].conn"
        assert "Handle" in str(result.error)
        state = place.load()
        assert (state["status"], state["current_step_index"], state["last_step_output"]) == ("failed", 1, 1)
        assert result.step_history[0].output == 1
    mended = True
    assert run().output == {"items": [Item("a"), Item("b")]}
    assert calls == ["first", "second", "second", "second"]


def test_no_retry_for_it(place: Place) -> None:
    """The step has done its work: doing it again would not help."""
    calls: list[int] = []

    @step(retries=3)
    async def work(n: int) -> Any:
        calls.append(n)
        return Handle()

    assert Flujo(work, state_backend=place.open()).run(1, run_id="r").status == "failed"
    assert calls == [1]


def test_a_context(place: Place) -> None:
    """The same for the context, with the path to the field."""

    class Shop(BaseModel):
        n: int = 0
        parts: dict[str, Any] = {}

    mended = False

    @step
    async def first(n: int, *, context: Shop) -> int:
        context.n = 1
        return n

    @step
    async def second(n: int, *, context: Shop) -> int:
        context.n = 2
        context.parts["conn"] = 7 if mended else Handle()
        return n

    def run() -> Any:
        return Flujo(first >> second, context_model=Shop, state_backend=place.open()).run(1, run_id="r")

    for _ in range(2):
        result = run()
        assert isinstance(result.error, NotSerializableError)
        assert result.error.path.startswith("context.parts") and "conn" in result.error.path
        assert result.final_pipeline_context == Shop(n=1)
    mended = True
    assert run().final_pipeline_context == Shop(n=2, parts={"conn": 7})


def test_an_input(place: Place) -> None:
    """It is refused before anything is written, and the run_id is free."""
    calls: list[Any] = []

    @step
    async def work(given: Any) -> int:
        calls.append(given)
        return 1

    runner = Flujo(work, state_backend=place.open())
    for _ in range(2):
        with pytest.raises(NotSerializableError, match="input"):
            runner.run({"a": [Handle()]}, run_id="r")
    assert asyncio.run(place.open().load_state("r")) is None
    assert calls == []
    assert runner.run({"a": []}, run_id="r").output == 1


def test_an_initial_context(place: Place) -> None:
    """It is refused before anything is written."""

    @step
    async def work(n: int, *, context: dict[str, Any]) -> int:
        return n

    runner = Flujo(work, state_backend=place.open(), initial_context_data={"conn": Handle()})
    with pytest.raises(NotSerializableError, match=r"context\.conn"):
        runner.run(1, run_id="r")
    assert asyncio.run(place.open().load_state("r")) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: Handle(),
        lambda: lambda: 1,
        lambda: (number for number in range(3)),
        lambda: open,
        lambda: Item,
        lambda: [object()],
        lambda: memoryview(b"x"),
    ],
)
def test_what_cannot_be_restored(place: Place, make: Any) -> None:
    """Objects without a data form are refused on every store alike."""

    @step
    async def work(n: int) -> Any:
        return make()

    result = Flujo(work, state_backend=place.open()).run(1, run_id="r")
    assert isinstance(result.error, NotSerializableError)


def test_too_much(tmp_path: Any) -> None:
    """A payload over the codec's limit is refused like any other value that cannot be kept."""
    backend = SQLiteBackend(tmp_path / "x.db", codec=Codec(max_bytes=1000))

    @step
    async def grow(n: int) -> str:
        return "x" * n

    runner = Flujo(grow, state_backend=backend)
    assert runner.run(900, run_id="small").status == "completed"
    result = runner.run(2000, run_id="big")
    assert isinstance(result.error, NotSerializableError) and "1,000" in str(result.error)
    asyncio.run(backend.close())


@pytest.mark.slow
def test_a_cycle_and_depth(place: Place) -> None:
    """A list that contains itself, and one nested too deeply, are refused and not followed for ever."""

    @step
    async def cycle(n: int) -> Any:
        items: list[Any] = []
        items.append(items)
        return items

    @step
    async def deep(n: int) -> Any:
        items: list[Any] = []
        for _ in range(100_000):
            items = [items]
        return items

    for made in (cycle, deep):
        result = Flujo(made, state_backend=place.open()).run(1, run_id=made.name)
        assert isinstance(result.error, NotSerializableError)


def test_a_closed_backend(tmp_path: Any) -> None:
    """A run on it is an error that says so; closing twice is fine."""
    for kind in OURS:
        (tmp_path / kind).mkdir()
        backend = Place(kind, tmp_path / kind).open()

        @step
        async def work(n: int) -> int:
            return n

        runner = Flujo(work, state_backend=backend)
        assert runner.run(1, run_id=f"{kind} r").output == 1
        asyncio.run(backend.close())
        asyncio.run(backend.close())
        for run_id in (f"{kind} r", "new"):
            with pytest.raises(BackendClosedError):
                runner.run(1, run_id=run_id)
        with pytest.raises(BackendClosedError):
            asyncio.run(backend.load_state("r"))
        with pytest.raises(BackendClosedError):
            asyncio.run(backend.delete_state("r"))


def test_a_backend_that_is_closed_during_a_run(tmp_path: Any) -> None:
    """The next save is refused and stops the run; another backend on the file goes on from the last saved step."""
    place = Place("sqlite", tmp_path)
    other = place.open()
    asyncio.run(other.load_state("r"))
    closing = place.open()

    @step
    async def first(n: int) -> int:
        return n

    @step
    async def second(n: int) -> int:
        await closing.close()
        return n + 1

    with pytest.raises(BackendClosedError):
        Flujo(first >> second, state_backend=closing).run(1, run_id="r")
    assert Flujo(first >> second, state_backend=other).run(1, run_id="r").output == 2
    place.close()
