"""1,000 runs of 5 steps, 100 at a time, against a bare writer that commits in groups.

Both write the same rows: one of the run before its first step, one of each save, and the run's status with the last.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence

from benchmarks.measure import INSERT, Bench, Figure, Row, alternate, bare, no_op_pipeline, ratios, saved_rows
from flujo import Flujo, SQLiteBackend

RUNS, STEPS, AT_ONCE = 1000, 5, 100


RUN_TABLE = """
CREATE TABLE run (
    key INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, pipeline TEXT NOT NULL, status TEXT NOT NULL,
    fingerprint TEXT, input BLOB, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, fence INTEGER
) STRICT;
CREATE INDEX run_status ON run (status, key);
CREATE INDEX run_pipeline ON run (pipeline, status, key);
"""
BEGIN_RUN = "INSERT INTO run VALUES (?, ?, 'pipeline', 'running', ?, ?, ?, ?, ?)"
END_RUN = "UPDATE run SET status = 'completed', updated_at = ?, fence = NULL WHERE key = ?"
Statement = tuple[str, Sequence[object]]


class GroupCommit:
    """The least that a durable group commit needs: one thread writes what waits in one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Statement] = []
        self._written = self._loop.create_future()
        self._busy = False
        self._batches: queue.SimpleQueue[tuple[list[Statement], asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    async def commit(self, *statements: Statement) -> None:
        if not self._waiting and not self._busy:
            self._loop.call_soon(self._flush)
        self._waiting += statements
        await asyncio.shield(self._written)

    def close(self) -> None:
        self._batches.put(None)
        self._thread.join()

    def _flush(self) -> None:
        self._busy = True
        self._batches.put((self._waiting, self._written))
        self._waiting, self._written = [], self._loop.create_future()

    def _done(self, written: asyncio.Future[None]) -> None:
        written.set_result(None)
        self._busy = False
        if self._waiting:
            self._loop.call_soon(self._flush)

    def _serve(self) -> None:
        while (batch := self._batches.get()) is not None:
            statements, written = batch
            self._connection.execute("BEGIN IMMEDIATE")
            for sql, values in statements:
                self._connection.execute(sql, values)
            self._connection.execute("COMMIT")
            self._loop.call_soon_threadsafe(self._done, written)


async def at_once(runner: Flujo[int, int], names: Iterator[str], many: int) -> None:
    """Start every run of `names`, `many` at a time."""

    async def work() -> None:
        for name in names:
            await runner.run_async(0, run_id=name)

    await asyncio.gather(*[work() for _ in range(many)])


def measure(bench: Bench) -> Row:
    ours, theirs = bench.folder / "flujo.db", bench.folder / "bare.db"
    backend = SQLiteBackend(ours)
    runner = Flujo(no_op_pipeline(STEPS), state_backend=backend)
    runner.run(0)
    rows = [row[1:] for row in saved_rows(ours, STEPS)]
    fingerprint = "x" * 60
    connection = bare(theirs)
    connection.executescript(RUN_TABLE)
    keys = itertools.count(1)
    rounds = itertools.count()

    def flujo_runs() -> float:
        number = next(rounds)
        names = iter([f"run-{number}-{index}" for index in range(RUNS)])
        start = time.perf_counter()
        asyncio.run(at_once(runner, names, AT_ONCE))
        return RUNS * STEPS / (time.perf_counter() - start)

    async def bare_writes() -> None:
        writer = GroupCommit(connection)
        left = iter(range(RUNS))

        async def work() -> None:
            for _ in left:
                key = next(keys)
                await writer.commit((BEGIN_RUN, (key, f"run-{key}", fingerprint, b"0", key, key, key)))
                for rev, row in enumerate(rows[:-1]):
                    await writer.commit((INSERT, (key << 24 | rev, *row)))
                await writer.commit((INSERT, (key << 24 | STEPS, *rows[-1])), (END_RUN, (key, key)))

        await asyncio.gather(*[work() for _ in range(AT_ONCE)])
        writer.close()

    def bare_runs() -> float:
        start = time.perf_counter()
        asyncio.run(bare_writes())
        return RUNS * STEPS / (time.perf_counter() - start)

    a, b = alternate(bench.rounds(9), flujo_runs, bare_runs, warm_up=2)
    connection.close()
    asyncio.run(backend.close())
    ratio = ratios(a, b)
    ours_figure = Figure(name="flujo", unit="steps/s", samples=a)
    return Row(
        name="concurrent",
        what=f"{RUNS:,} runs x {STEPS} steps, {AT_ONCE} at a time, against a bare group-commit writer of the same rows",
        target="at least 0.4 x",
        measured=f"{ratio}; {ours_figure.median:,.0f} steps/s",
        met=ratio.median >= 0.4,
        figures=[ratio, ours_figure, Figure(name="bare", unit="steps/s", samples=b)],
    )
