"""A task is cancelled anywhere inside of nested steps: the run goes on where it was, in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flujo import FileBackend, Flujo, InMemoryBackend, SQLiteBackend, StateBackend
from tests.support.crash_interruption import CancelledAt, Distant
from tests.support.nested_check import faults
from tests.support.nested_child import INPUT, Telling, Trace
from tests.support.nested_interpreter import interpret
from tests.support.nested_pipelines import Notes, Sequence, build
from tests.support.nested_samples import EVERYTHING, over_items


class Pad:
    """A journal in memory. `cancels` is a task that is cancelled by line number `at`."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.cancels: asyncio.Task[Any] | None = None
        self.at = 0

    def write(self, what: str, **facts: Any) -> None:
        self.lines.append({"what": what, "pid": 0, **facts})
        if self.cancels is not None and len(self.lines) == self.at:
            self.cancels.cancel()

    def read(self) -> list[dict[str, Any]]:
        return self.lines


class TellingMemory(Telling, InMemoryBackend):
    """In memory."""


class TellingDistant(Telling, Distant):
    """Somebody else's three methods."""


class TellingQuick(Telling, SQLiteBackend):
    """A SQLite store that need not outlive its machine."""


class TellingFiles(Telling, FileBackend):
    """A directory that need not outlive its machine."""


KINDS: dict[str, Callable[[Path], StateBackend]] = {
    "memory": lambda folder: TellingMemory(),
    "sqlite": lambda folder: TellingQuick(folder / "runs.db", durability="process"),
    "file": lambda folder: TellingFiles(folder / "runs", durability="process"),
    "third-party": lambda folder: TellingDistant({}),
}


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    made = KINDS[request.param](tmp_path)
    yield made
    asyncio.run(made.close())


async def cancelled(backend: Any, spec: Sequence, run_id: str, at: int, *, again: bool) -> int:
    """Cancel a run at its await number `at`, let another finish it, prove it faultless; return the awaits there were.

    With `again` it is cancelled at every await after that one, too.
    """
    pad = Pad()
    backend.trace = Trace(pad)  # type: ignore[arg-type]
    backend.told = 0
    runner: Flujo[Any, Any] = Flujo(build(spec, backend.trace), context_model=Notes, state_backend=backend)
    watched = CancelledAt(runner.run_async(INPUT, run_id=run_id), at, again=again)
    task = asyncio.get_running_loop().create_task(watched)  # type: ignore[arg-type]
    try:
        result = await task
    except asyncio.CancelledError:
        assert asyncio.all_tasks() == {asyncio.current_task()}, "something goes on"
        state = await backend.load_state(run_id)
        assert state is None or state["status"] in ("running", "completed")
        pad.write("over", completed=False)
        result = await runner.run_async(INPUT, run_id=run_id)
    backend.trace.result(result)
    assert faults(pad.lines, interpret(spec, INPUT)) == []
    return watched.awaits


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
def test_a_task_may_be_cancelled_at_every_await(backend: Any, again: bool) -> None:
    """Inside of parallels, maps, loops, branches and fallbacks: nothing goes on behind its back, the run stays
    `running`, and the next one does what is left, with the output and the context of an unbroken run."""

    stride = 1 if isinstance(backend, TellingQuick | TellingMemory) else 3

    async def main() -> int:
        at = 1
        while await cancelled(backend, EVERYTHING, f"run {at}", at, again=again) >= at:
            at += stride
        return at

    at = asyncio.run(main())
    assert at > 20


@pytest.mark.slow
def test_a_map_over_1000_items_cancelled_at_item_600() -> None:
    """As after a kill: at most the 8 that were in flight are done again, and the run's memory is all that it needs."""
    backend = TellingMemory()
    spec = over_items(1000, 8, [{"kind": "leaf", "name": "fetch"}])
    pad = Pad()
    backend.trace = Trace(pad)  # type: ignore[arg-type]
    runner: Flujo[Any, Any] = Flujo(build(spec, backend.trace), context_model=Notes, state_backend=backend)

    async def main() -> Any:
        pad.cancels, pad.at = asyncio.ensure_future(runner.run_async(INPUT, run_id="r")), 3 * 600
        with pytest.raises(asyncio.CancelledError):
            await pad.cancels
        pad.write("over", completed=False)
        assert 590 <= sum(line["what"] == "begin" for line in pad.lines) <= 610
        return await runner.run_async(INPUT, run_id="r")

    backend.trace.result(asyncio.run(main()))
    assert faults(pad.lines, interpret(spec, INPUT)) == []
    assert 1001 <= sum(line["what"] == "begin" for line in pad.lines) <= 1009
