"""A store with 1,000,000 runs: the newest 50 that failed, and the claim of one of them."""

from __future__ import annotations

import asyncio
import itertools
import re
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measure import Bench, Figure, Row, no_op_pipeline
from flujo import Flujo, Pipeline, SQLiteBackend, Step, step

RUNS = 1_000_000
RARE = 10_007  # one run in so many has failed: whoever looks through the runs looks through all of them
REAL = 40


@step
async def falls(value: int) -> int:
    raise RuntimeError("fell")


def build(path: Path, runs: int) -> None:
    """Fill a store by plain SQL with copies of the newest run of it, some of them failed."""
    connection = sqlite3.connect(path, isolation_level=None)
    execute = connection.execute
    execute("PRAGMA synchronous=OFF")
    execute("BEGIN")
    (key,) = execute("SELECT max(key) FROM flujo_run").fetchone()
    columns = [row[1] for row in execute("PRAGMA table_info(flujo_run)")]
    given = {
        "key": ":key + n", "run_id": "printf('made-%07d', n)",
        "status": f"CASE WHEN n % {RARE} = 0 THEN 'failed' ELSE 'completed' END",
        "created_at": "created_at + n * 1000", "updated_at": "updated_at + n * 1000",
    }  # fmt: skip
    numbers = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :runs)"
    chosen = ", ".join(given.get(name, name) for name in columns)
    execute(
        f"{numbers} INSERT INTO flujo_run SELECT {chosen} FROM numbers, (SELECT * FROM flujo_run WHERE key = :key)",
        {"key": key, "runs": runs},
    )
    columns = [row[1] for row in execute("PRAGMA table_info(flujo_log)")]
    chosen = ", ".join("(:key + n) << 24 | 1" if name == "seq" else name for name in columns)
    execute(
        f"{numbers} INSERT INTO flujo_log SELECT {chosen} FROM numbers,"
        " (SELECT * FROM flujo_log WHERE seq > :key << 24 ORDER BY seq DESC LIMIT 1)",
        {"key": key, "runs": runs},
    )
    execute("COMMIT")
    execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()


class Watched(sqlite3.Connection):
    """A connection that remembers every statement, so that its plan can be asked for."""

    statements: list[str] = []  # noqa: RUF012  # one list for all, to be read from outside


def watched(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, factory=Watched)
    connection.set_trace_callback(Watched.statements.append)
    return connection


def scanned(path: Path, statements: set[str]) -> list[str]:
    """Return what the plans of the statements look through from end to end, of the store's own tables."""
    found = []
    connection = sqlite3.connect(path)
    for statement in sorted(statements):
        if not statement.lstrip().upper().startswith(("SELECT", "UPDATE", "INSERT", "DELETE")):
            continue
        tables = set(re.findall(r"(?:FROM|JOIN|UPDATE)\s+(flujo_\w+)", statement))
        aliases = set(re.findall(r"flujo_\w+\s+AS\s+(\w+)", statement))
        for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}"):
            whole = re.match(r"SCAN (\w+)", row[3])
            if whole and whole[1] in tables | aliases:
                found.append(row[3])
    connection.close()
    return found


def measure(bench: Bench) -> Row:
    path = bench.folder / "million.db"
    runs = RUNS // 10 if bench.quick else RUNS
    backend = SQLiteBackend(path)
    failing: Pipeline[int, int] = Pipeline.of(falls)
    runner = Flujo(failing, pipeline_name="failing", state_backend=backend)
    for number in range(REAL):  # real runs, whose checksums a claim verifies, among the oldest
        runner.run(0, run_id=f"real-{number:04}")
    Flujo(no_op_pipeline(1), pipeline_name="made", state_backend=backend).run(0)
    asyncio.run(backend.close())
    start = time.perf_counter()
    build(path, runs)
    built = time.perf_counter() - start
    figures = [*_listed(path, bench), _claimed(path, bench)]
    bad = scanned(path, set(Watched.statements))
    worst = max(figure.median for figure in figures)
    return Row(
        name="listing",
        what=f"newest 50 failed of {runs:,} runs; claiming one of {runs:,} runs",
        target="under 5 ms each, by index",
        measured=" / ".join(f"{f.median:.2f}" for f in figures)
        + (" ms, every plan by index" if not bad else f" ms; not by index: {bad}"),
        met=worst < 5 and not bad,
        figures=[*figures, Figure(name="building the file", unit="s", samples=[built])],
    )


def _listed(path: Path, bench: Bench) -> list[Figure]:
    async def listed(backend: SQLiteBackend, where: Mapping[str, str], expected: int) -> list[float]:
        samples: list[float] = []
        for _ in range(bench.rounds(15) + 1):
            start = time.perf_counter()
            found = await backend.list_runs(where, limit=50)
            samples.append((time.perf_counter() - start) * 1000)
            assert len(found) == expected
        return samples[1:]

    backend = SQLiteBackend(path, connect=watched)
    asyncio.run(backend.count_runs({"status": "paused"}))
    Watched.statements.clear()  # those of opening the file
    made = 50 if not bench.quick else RUNS // 10 // RARE
    figures = [
        Figure(name=name, unit="ms", samples=asyncio.run(listed(backend, where, expected)))
        for name, where, expected in (
            ("newest 50 failed", {"status": "failed"}, min(50, made + REAL)),
            ("newest 50 failed of a pipeline", {"status": "failed", "pipeline_id": "made"}, made),
            ("newest 50 of all", {}, 50),
        )
    ]
    asyncio.run(backend.close())
    return figures


def _claimed(path: Path, bench: Bench) -> Figure:
    """Return the time of claims: a transaction with its fsync, and the verification of what was saved."""
    before = len(Watched.statements)
    backend = SQLiteBackend(path, connect=watched)
    reached: list[float] = []

    @step(name="falls")
    async def falls_again(value: int) -> int:
        reached.append(time.perf_counter())
        raise RuntimeError("fell")

    steps: Step[int, int] = falls_again
    runner = Flujo(steps, pipeline_name="failing", state_backend=backend)
    runner.run(0, run_id="real-0000")  # enters this process among the owners
    del Watched.statements[before:]
    samples = []
    for number in itertools.islice(itertools.count(1), bench.rounds(REAL - 1)):
        start = time.perf_counter()
        runner.run(0, run_id=f"real-{number:04}")
        samples.append((reached[-1] - start) * 1000)
    asyncio.run(backend.close())
    return Figure(name="claim of a run, up to its step", unit="ms", samples=samples)
