"""A map over 10,000 items against maps over 100: 32 items at once, and each of them saved.

What a run costs without any items (its claim, its one save, its end) is taken off both sides, so that it cannot hide
an item's cost that grows.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from pathlib import Path

from benchmarks.measure import Bench, Figure, Row, alternate, ratios
from flujo import Flujo, SQLiteBackend, Step, step

FEW, MANY, AT_ONCE = 100, 10_000, 32
RUNS = 20  # runs over 100 items in a sample
BYTES = """
SELECT sum(coalesce(length(records), 0) + coalesce(length(output), 0) + coalesce(length(delta), 0)
           + length(ctx) + coalesce(length(rest), 0) + length(sum))
FROM flujo_log WHERE seq > ?
"""


@step
async def work(item: int) -> int:
    return item + 1


class Store:
    """A file of its own for the runs over one number of items."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.backend = SQLiteBackend(path)
        self._runner = Flujo(Step.map_over("each", work, max_concurrency=AT_ONCE), state_backend=self.backend)
        self._runs = itertools.count()

    def seconds(self, items: int, runs: int = 1) -> float:
        """Return how long that many runs take, from the call of `run` to its result."""
        given = list(range(items))
        start = time.perf_counter()
        for _ in range(runs):
            result = self._runner.run(given, run_id=f"run-{next(self._runs):06}")
            assert len(result.output) == items
        return time.perf_counter() - start

    def item_us(self, items: int, runs: int) -> float:
        """Return the us that each item adds to a run."""
        empty = self.seconds(0, RUNS) / RUNS * runs
        return (self.seconds(items, runs) - empty) / (runs * items) * 1e6

    def item_bytes(self, items: int) -> float:
        """Return how many bytes each item of one more run puts into the log."""
        connection = sqlite3.connect(self._path)
        try:
            (newest,) = connection.execute("SELECT max(seq) FROM flujo_log").fetchone()
            self.seconds(items)
            (written,) = connection.execute(BYTES, (newest,)).fetchone()
        finally:
            connection.close()
        return float(written) / items


def measure(bench: Bench) -> Row:
    few, many = Store(bench.folder / "few.db"), Store(bench.folder / "many.db")
    short, long = alternate(bench.rounds(9), lambda: few.item_us(FEW, RUNS), lambda: many.item_us(MANY, 1))
    few_bytes, many_bytes = few.item_bytes(FEW), many.item_bytes(MANY)
    for store in (few, many):
        asyncio.run(store.backend.close())
    ratio = ratios(long, short)
    speed = Figure(name="throughput", unit="items/s", samples=[1e6 / cost for cost in long])
    return Row(
        name="map",
        what=f"an item of a map, saved, {AT_ONCE} at once: of {MANY:,} items against of {FEW}",
        target="time and bytes of log an item at most 1.2 x",
        measured=f"{ratio}; {speed.median:,.0f} items/s; {many_bytes:.0f} against {few_bytes:.0f} bytes",
        met=ratio.median <= 1.2 and many_bytes <= 1.2 * few_bytes,
        figures=[
            ratio,
            speed,
            Figure(name=f"{FEW} items", unit="us an item", samples=short),
            Figure(name=f"{MANY:,} items", unit="us an item", samples=long),
            Figure(name=f"{FEW} items: log", unit="bytes an item", samples=[few_bytes]),
            Figure(name=f"{MANY:,} items: log", unit="bytes an item", samples=[many_bytes]),
        ],
    )
