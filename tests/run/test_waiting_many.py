"""Ten thousand runs that wait: they lie in the store, and nowhere else."""

from __future__ import annotations

import asyncio
import gc
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, SQLiteBackend, Step
from tests.support.nested_runs import Notes
from tests.support.waiting_runs import YES, ask

FEW, MANY, AT_ONCE = 10, 10_000, 500
ANSWERS = 40  # how many are timed
SLOWER = 3.0  # times; an index is a little deeper, and the machine is shared


def flow(backend: SQLiteBackend) -> Flujo[Any, Any]:
    """Return a runner of a pipeline that asks, and then does something."""
    pipeline = ask() >> Notes().step("after")
    return Flujo(pipeline, state_backend=backend, pipeline_name="p")


async def wait_in_store(backend: SQLiteBackend, first: int, last: int) -> None:
    """Have runs come to their question, some at a time."""
    using = flow(backend)
    for start in range(first, last, AT_ONCE):
        names = [f"run {number}" for number in range(start, min(start + AT_ONCE, last))]
        results = await asyncio.gather(*(using.run_async(1, run_id=name) for name in names))
        assert {result.status for result in results} == {"paused"}


async def answering(backend: SQLiteBackend, numbers: range) -> float:
    """Return what it takes to answer one run, in seconds of this process's own time."""
    using = flow(backend)
    took = []
    for number in numbers:
        begun = time.process_time()
        result = await using.resume_async(f"run {number}", YES, by="ann")
        took.append(time.process_time() - begun)
        assert result.status == "completed"
    return statistics.median(took)


def living() -> int:
    """Return how many objects there are."""
    gc.collect()
    return len(gc.get_objects())


@pytest.mark.slow
def test_ten_thousand_runs_that_wait(tmp_path: Path) -> None:
    """No task, no thread and no memory is theirs, and one of them is answered as quickly as where there are ten."""

    async def main() -> tuple[float, float]:
        small = SQLiteBackend(tmp_path / "few.db", durability="process")
        await wait_in_store(small, 0, FEW)
        few = await answering(small, range(FEW))
        await small.close()

        backend = SQLiteBackend(tmp_path / "many.db", durability="process")
        await wait_in_store(backend, 0, AT_ONCE)
        threads = threading.active_count()
        before = living()
        await wait_in_store(backend, AT_ONCE, MANY)
        grown = living() - before
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert threading.active_count() <= threads
        assert backend._store().held == {}
        assert grown < MANY / 10, f"{grown} objects more, with {MANY - AT_ONCE} runs more"
        assert await backend.count_runs() == {"paused": MANY}

        many = min([await answering(backend, range(start, start + ANSWERS)) for start in (7, 5000, 9900)])
        assert await backend.count_runs() == {"paused": MANY - 3 * ANSWERS, "completed": 3 * ANSWERS}
        await backend.close()
        return few, many

    few, many = asyncio.run(main())
    print(f"answering one of {FEW}: {few * 1e3:.2f} ms, one of {MANY}: {many * 1e3:.2f} ms")
    assert many < SLOWER * few, f"{many * 1e3:.2f} ms instead of {few * 1e3:.2f} ms"


@pytest.mark.slow
def test_sleepers_are_no_different(tmp_path: Path) -> None:
    """A thousand runs that sleep for an hour hold nothing, and none of them is in the way of one that is due."""

    async def main() -> None:
        backend = SQLiteBackend(tmp_path / "runs.db", durability="process")
        using: Flujo[Any, Any] = Flujo(Step.sleep("nap", 3600), state_backend=backend)
        threads = threading.active_count()
        results = await asyncio.gather(*(using.run_async(1, run_id=f"run {n}") for n in range(1000)))
        assert {result.status for result in results} == {"paused"}
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert threading.active_count() <= threads + 1  # the store's own
        assert backend._store().held == {}
        await backend.close()

    asyncio.run(main())
