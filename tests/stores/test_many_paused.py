"""10,000 runs that wait cost a process nothing but their place in the store, and answering one costs what it does
beside ten.

What an answer costs is counted in SQLite's own instructions, which no neighbour on the machine changes, and in this
process's own time, with a loose bound.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import sqlite3
import statistics
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, SQLiteBackend, Step, step
from flujo.state.backends.sqlite.connection import connect
from tests.support.backends import query
from tests.support.saves import wait

pytestmark = pytest.mark.slow

MANY, FEW = 10_000, 10
AT_ONCE = 500  # runs that are begun at the same moment
ANSWERS = 41  # whose median is compared
TRACED = 2000  # of the runs are begun while the memory is looked at
GRAIN = 10  # instructions a call of the progress handler


@step
async def prepare(n: int) -> int:
    return n


@step
async def use(ok: bool) -> str:
    return "used" if ok else "dropped"


WAITING = prepare >> Step.human_in_the_loop("ask", "Is it fine?", bool) >> use


@dataclass(frozen=True)
class Cost:
    """What a process has of its own."""

    tasks: int
    threads: frozenset[str]
    held: int
    files: int


class Store:
    """A store of runs that wait, and what is done on its connection."""

    def __init__(self, path: Path, pipeline: Any = WAITING) -> None:
        self.path = path
        self.instructions = 0
        self.backend = SQLiteBackend(path, durability="process", connect=self._connect)
        self.runner: Flujo[Any, Any] = Flujo(pipeline, pipeline_name="waiting", state_backend=self.backend)
        self.made = 0

    def _connect(self, path: str) -> sqlite3.Connection:
        connection = connect(path)
        connection.set_progress_handler(self._count, GRAIN)
        return connection

    def _count(self) -> int:
        self.instructions += GRAIN
        return 0

    async def make(self, number: int) -> None:
        """Begin so many more runs, which then wait."""
        while number:
            some = min(number, AT_ONCE)
            numbers = range(self.made, self.made + some)
            results = await asyncio.gather(*(self.runner.run_async(n, run_id=f"run-{n}") for n in numbers))
            assert {result.status for result in results} == {"paused"}
            self.made += some
            number -= some

    def cost(self) -> Cost:
        """Say what this process has of its own now; called within a loop."""
        return Cost(
            tasks=len(asyncio.all_tasks()) - 1,  # the one that asks
            threads=frozenset(thread.name for thread in threading.enumerate()),
            held=len(self.backend._store().held),
            files=len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        )

    def owned(self) -> int:
        """Return how many runs have an owner on record."""
        return int(query(self.path, "SELECT count(*) FROM flujo_run WHERE owner IS NOT NULL")[0][0])

    def answer(self, number: int) -> tuple[int, float]:
        """Answer a run, and return the instructions and seconds that it took."""
        self.instructions = 0
        start = time.process_time()
        result = self.runner.resume(f"run-{number}", True)
        seconds = time.process_time() - start
        assert result.output == "used"
        return self.instructions, seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    found = tmp_path_factory.mktemp("paused")
    yield found
    shutil.rmtree(found)


@dataclass(frozen=True)
class Many:
    """The store of 10,000 runs that wait; what its process had of its own when there were ten, and has now; and how
    much the last 2,000 have added to its memory, in bytes."""

    store: Store
    few: Cost
    now: Cost
    grown: int


@pytest.fixture(scope="module")
def many(folder: Path) -> Iterator[Many]:
    store = Store(folder / "many.db")

    async def make() -> Many:
        await store.make(FEW)
        few = store.cost()
        await store.make(MANY - TRACED - AT_ONCE - FEW)
        tracemalloc.start(1)
        try:
            await store.make(AT_ONCE)
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            await store.make(TRACED)
            gc.collect()
            return Many(store, few, store.cost(), tracemalloc.get_traced_memory()[0] - before)
        finally:
            tracemalloc.stop()

    yield asyncio.run(make())
    wait(store.backend.close())


def test_nothing_is_held(many: Many) -> None:
    """The process that began them has no task, no claim and no open file for any of them, no thread but the store's,
    and not so much as their names in memory; and in the store nobody owns them. It has what it had with ten."""
    assert query(many.store.path, "SELECT status, count(*) FROM flujo_run GROUP BY 1") == [("paused", MANY)]
    assert (many.now.tasks, many.now.held, many.store.owned()) == (0, 0, 0)
    assert {name for name in many.now.threads if name.startswith("flujo")} == {"flujo-store"}
    assert many.now == many.few
    print(f"{many.grown / TRACED:.1f} bytes a paused run")
    assert many.grown < 50 * TRACED, many.grown


def test_answering_one_takes_the_same_time(many: Many, folder: Path) -> None:
    """Beside 10,000 runs as beside ten: as many instructions of SQLite within a third, and less than twice the time.

    The control: counting the runs, which looks at each of them, is seen."""
    store, few = many.store, Store(folder / "few.db")
    wait(few.make(FEW))
    measured: dict[str, list[tuple[int, float]]] = {"few": [], "many": []}
    for number in range(ANSWERS + 3):  # in turn, so that both have the same neighbours
        found = {"few": few.answer(few.made - FEW), "many": store.answer(number * 211)}
        wait(few.make(1))
        wait(store.make(1))
        if number >= 3:  # the first ones open and compile
            for name, cost in found.items():
                measured[name].append(cost)
    instructions, seconds = (
        {name: statistics.median(cost[i] for cost in costs) for name, costs in measured.items()} for i in (0, 1)
    )
    print(f"answering one: {instructions} instructions, {seconds} s")
    assert query(few.path, "SELECT count(*) FROM flujo_run WHERE status = 'paused'") == [(FEW,)]
    assert instructions["many"] < 1.33 * instructions["few"], instructions
    assert seconds["many"] < 2 * seconds["few"], seconds
    store.instructions = 0
    assert sum(wait(store.backend.count_runs()).values()) >= MANY
    assert store.instructions > 5 * instructions["few"]
    wait(few.backend.close())


def test_runs_that_are_executed_are_seen(folder: Path) -> None:
    """The control: where twenty runs stand in a step, each has a task and a claim, and an owner on record."""

    async def main() -> None:
        begun = asyncio.Semaphore(0)
        go = asyncio.Event()

        @step
        async def stand(n: int) -> int:
            begun.release()
            await go.wait()
            return n

        store = Store(folder / "standing.db", stand >> Step.human_in_the_loop("ask", "Is it fine?", bool))
        making = asyncio.create_task(store.make(20))
        for _ in range(20):
            await begun.acquire()
        cost = store.cost()
        assert cost.tasks == 21 and cost.held == 20 and store.owned() == 20
        go.set()
        await making
        assert (store.cost().tasks, store.cost().held, store.owned()) == (0, 0, 0)
        await store.backend.close()

    asyncio.run(main())
