"""What a map's item costs: the same in a map of ten thousand as in one of a hundred, in time, bytes and memory."""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, InMemoryBackend, SQLiteBackend, Step, step
from tests.support.backends import query

pytestmark = pytest.mark.slow

FEW, MANY = 100, 10_000
LARGE = 100_000  # bytes of an inner step's output


@step
async def work(n: int) -> int:
    return n + 1


@step
async def numbers(count: int) -> list[int]:
    return list(range(count))


def mapped(body: Any = work, **options: Any) -> Any:
    return numbers >> Step.map_over("each", body, max_concurrency=8, **options)


def seconds_an_item(runner: Flujo[Any, Any], items: int, name: str) -> float:
    gc.collect()
    start = time.process_time()
    result = runner.run(items, run_id=name)
    taken = time.process_time() - start
    assert result.status == "completed"
    return taken / items


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_the_time_of_an_item_is_flat(tmp_path: Path, kind: str) -> None:
    """An item of a map over 10,000 takes at most 1.7 times the processor time of one of a map over 100, on a store
    that is handed what is new; a cost that grew with the items would be a hundredfold here."""
    backend = InMemoryBackend() if kind == "memory" else SQLiteBackend(tmp_path / "runs.db", durability="process")
    runner = Flujo(mapped(), state_backend=backend)
    seconds_an_item(runner, FEW, "warm")
    few = statistics.median(seconds_an_item(runner, FEW, f"few {n}") for n in range(15))
    many = min(seconds_an_item(runner, MANY, f"many {n}") for n in range(2))
    print(f"{kind}: {few * 1e6:.0f} us an item of {FEW}, {many * 1e6:.0f} us of {MANY}: {many / few:.2f}")
    assert many <= 1.7 * few


def test_the_bytes_of_an_item_are_flat(tmp_path: Path) -> None:
    """What an item adds to the log of a map over 10,000 is at most 1.1 times what it adds in one over 100."""

    def bytes_an_item(items: int) -> float:
        file = tmp_path / f"{items}.db"
        backend = SQLiteBackend(file, durability="process")
        assert Flujo(mapped(), state_backend=backend).run(items).status == "completed"
        columns = [name for _, name, *_ in query(file, "PRAGMA table_info(flujo_log)")]
        size = " + ".join(f"ifnull(length(CAST({name} AS BLOB)), 0)" for name in columns)
        return float(query(file, f"SELECT sum({size}) FROM flujo_log")[0][0]) / items

    few, many = bytes_an_item(FEW), bytes_an_item(MANY)
    print(f"{few:.0f} bytes an item of {FEW}, {many:.0f} of {MANY}")
    assert many <= 1.1 * few


def growth_an_item(runner: Flujo[Any, Any], items: int) -> float:
    """Return the bytes that the memory of a run over so many items needs at its most, for each of them."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        result = runner.run(items)
        assert result.status == "completed"
        return (tracemalloc.get_traced_memory()[1] - before) / items
    finally:
        tracemalloc.stop()


def test_the_memory_of_an_item_is_its_output(tmp_path: Path) -> None:
    """A map over more items needs no more memory for each; little beside what the output itself takes."""
    runner = Flujo(mapped(), state_backend=SQLiteBackend(tmp_path / "runs.db", durability="process"))
    runner.run(FEW)
    few, many = growth_an_item(runner, 1000), growth_an_item(runner, MANY)
    print(f"{few:.0f} bytes an item of 1000, {many:.0f} of {MANY}")
    assert many <= 1.2 * few
    assert many <= 400


def test_large_outputs_inside_of_an_item_are_let_go(tmp_path: Path) -> None:
    """What a step within an item gave is forgotten when the item is done: 300 items with 100 KB each need no more
    memory than a few of them at a time."""

    @step
    async def fetch(n: int) -> bytes:
        return bytes([n % 256]) * LARGE

    @step
    async def measure(page: bytes) -> int:
        return len(page)

    backend = SQLiteBackend(tmp_path / "runs.db", durability="process")
    runner = Flujo(mapped(fetch >> measure), state_backend=backend)
    runner.run(8)
    assert growth_an_item(runner, 300) * 300 <= 8 * 10 * LARGE


def test_large_outputs_inside_of_an_iteration_are_let_go(tmp_path: Path) -> None:
    """The same for a loop: 300 iterations need no more memory than a few."""

    @step
    async def fetch(n: int) -> bytes:
        return bytes([n % 256]) * LARGE

    @step
    async def measure(page: bytes) -> int:
        return page[0] + 256 * (len(page) - LARGE) + 1

    loop = Step.loop_until("again", fetch >> measure, until=lambda n: n >= 200, max_iterations=500)
    runner = Flujo(numbers_off(loop), state_backend=SQLiteBackend(tmp_path / "runs.db", durability="process"))
    runner.run(199)
    assert growth_an_item(runner, 1) <= 20 * LARGE


def numbers_off(loop: Any) -> Any:
    @step
    async def start(n: int) -> int:
        return n

    return start >> loop


@pytest.mark.parametrize("done", [100, 2000])
def test_resuming_a_map_reads_what_is_done_once(tmp_path: Path, done: int) -> None:
    """A map that goes on after 100 or 2,000 items calls none of them again; see the benchmarks for the time."""
    calls: list[int] = []

    @step
    async def item(n: int) -> int:
        calls.append(n)
        if n == done and len(calls) <= done + 1:
            raise ValueError("not yet")
        return n

    runner = Flujo(
        numbers >> Step.map_over("each", item, max_concurrency=1),
        state_backend=SQLiteBackend(tmp_path / "runs.db", durability="process"),
    )
    assert runner.run(done + 10, run_id="r").status == "failed"
    assert runner.run(run_id="r").output == list(range(done + 10))
    assert len(calls) == done + 11
