"""One run of 1,000 steps that do nothing, against a bare loop of INSERT and COMMIT of the same rows."""

from __future__ import annotations

import asyncio
import itertools
import time

from benchmarks.measure import (
    INSERT,
    Bench,
    Figure,
    Row,
    alternate,
    bare,
    no_op_pipeline,
    ratios,
    saved_rows,
    sync_cost,
)
from flujo import Flujo, SQLiteBackend

STEPS = 1000


def measure(bench: Bench) -> Row:
    ours, theirs = bench.folder / "flujo.db", bench.folder / "bare.db"
    backend = SQLiteBackend(ours)
    runner = Flujo(no_op_pipeline(STEPS), state_backend=backend)
    runner.run(0)
    rows = [row[1:] for row in saved_rows(ours, STEPS)]
    connection = bare(theirs)
    keys = itertools.count(1)
    runs = itertools.count()

    def flujo_run() -> float:
        run_id = f"run-{next(runs):06}"
        start = time.perf_counter()
        runner.run(0, run_id=run_id)
        return (time.perf_counter() - start) / STEPS * 1000

    def bare_run() -> float:
        start = time.perf_counter()
        for row in rows:
            connection.execute(INSERT, (next(keys), *row))
        return (time.perf_counter() - start) / STEPS * 1000

    # Two rounds first: a commit that makes the WAL longer costs more than one that overwrites it.
    a, b, syncs = alternate(bench.rounds(9), flujo_run, bare_run, lambda: sync_cost(bench.folder), warm_up=2)
    connection.close()
    asyncio.run(backend.close())
    ratio = ratios(a, b)
    sync = Figure(name="fdatasync of 4 KB", unit="ms", samples=syncs)
    more = Figure(name="more a step", unit="ms", samples=[x - y for x, y in zip(a, b, strict=True)])
    return Row(
        name="sequential",
        what=f"one run, {STEPS:,} no-op steps, SQLite at full durability, against bare INSERT+COMMIT",
        target="at most 1.2 x, or 0.1 ms a step more where an fsync takes less than that",
        measured=f"{ratio}; {more.median:.3f} ms a step more; an fsync takes {sync.median:.3f} ms",
        met=ratio.median <= 1.2 or (sync.median < 0.1 and more.median <= 0.1),
        figures=[
            ratio,
            more,
            Figure(name="flujo", unit="ms a step", samples=a),
            Figure(name="bare", unit="ms a step", samples=b),
            sync,
        ],
    )
