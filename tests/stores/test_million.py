"""A SQLite store of 1,000,000 runs: every question and every claim is answered from an index, in few instructions.

The plans are those of the statements that were executed. How much was done is counted in SQLite's own instructions,
which no neighbour on the machine changes; the bounds on time are loose.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from flujo import Flujo, SQLiteBackend, step
from flujo.state.backends.sqlite.connection import connect
from tests.support.saves import wait

pytestmark = pytest.mark.slow

T = TypeVar("T")
RUNS = 1_000_000
REAL = 5  # failed ones whose checksums are right, so that they can be claimed
TIE = 1000  # so many runs were updated at the same moment, as an import leaves them; one moment an hour
STATUSES = {0: "failed", 1: "failed", 2: "paused", 3: "cancelled", 4: "running"}  # by n % 10; else completed
PIPELINES = 7
NUMBERS = f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {RUNS}) "
GRAIN = 100  # instructions a call of the progress handler


def status(n: int) -> str:
    return STATUSES.get(n % 10, "completed")


class Million:
    """The store, and what happens on its connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.statements: list[str] = []
        self.instructions = 0
        self.seconds = 0.0
        self.backend = SQLiteBackend(path, durability="process", connect=self._connect)

    def _connect(self, path: str) -> sqlite3.Connection:
        connection = connect(path)
        connection.set_trace_callback(self.statements.append)
        connection.set_progress_handler(self._count, GRAIN)
        return connection

    def _count(self) -> int:
        self.instructions += GRAIN
        return 0

    def watch(self, act: Callable[[], T]) -> T:
        """Do it, and note its statements, instructions and time: this process's own, which no other can lengthen."""
        self.statements.clear()
        self.instructions = 0
        start = time.process_time()
        result = act()
        self.seconds = time.process_time() - start
        return result

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def plans(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return the plan of every statement since `watch` that has one."""
        return {
            sql: self.query(f"EXPLAIN QUERY PLAN {sql}")
            for sql in self.statements
            if re.match("(SELECT|WITH|INSERT|UPDATE|DELETE)", sql)
        }

    def used(self) -> str:
        """Return every line of these plans as one text."""
        return "\n".join(row[3] for plan in self.plans().values() for row in plan)

    def by_index(self, *, covering: bool = False) -> bool:
        """Say whether no statement scans a table, but `covering` ones of an index alone, or sorts what it searched."""
        found = [fault for sql, plan in self.plans().items() for fault in faults(sql, plan)]
        return self.plans() != {} and not [fault for fault in found if not (covering and "COVERING INDEX" in fault)]


def faults(sql: str, plan: list[tuple[Any, ...]]) -> list[str]:
    """Return the lines of a plan that cost more the more runs there are.

    A sort may be of what a subquery with a limit has left, beside look-ups of single rows.
    """
    names = {name for pair in re.findall(r"(flujo_\w+)(?:\s+AS\s+(\w+))?", sql) for name in pair if name}
    found = []
    for _, parent, _, line in plan:
        whole = re.match(r"SCAN (\w+)", line)
        if whole and whole[1] in names:
            found.append(line)
        beside = [other for _, above, _, other in plan if above == parent and other.startswith("SEARCH")]
        if "TEMP B-TREE" in line and not all("INTEGER PRIMARY KEY (rowid=?)" in other for other in beside):
            found.append(line)
    return found


def fill(path: Path, now: int) -> None:
    """Copy the newest run of the store a million times, to before `now`."""
    connection = sqlite3.connect(path, isolation_level=None)
    execute = connection.execute
    for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-300000"):
        execute(f"PRAGMA {pragma}").fetchall()
    execute("BEGIN")
    (key,) = execute("SELECT max(key) FROM flujo_run").fetchone()
    at = f":now - (({RUNS} - n) / {TIE} + 1) * 3600000000"
    case = " ".join(f"WHEN {rest} THEN '{name}'" for rest, name in STATUSES.items())
    run = {
        "key": ":key + n", "run_id": "printf('made-%07d', n)", "pipeline_id": f"'pipe-' || (n % {PIPELINES})",
        "status": f"CASE n % 10 {case} ELSE 'completed' END", "updated_at": at, "created_at": at,
    }  # fmt: skip
    log = {"seq": "(:key + n) << 24 | 1", "at": at}
    for table, given, newest in (("flujo_run", run, "key = :key"), ("flujo_log", log, "seq > :key << 24")):
        columns = [row[1] for row in execute(f"PRAGMA table_info({table})")]
        chosen = ", ".join(given.get(name, name) for name in columns)
        one = f"(SELECT * FROM {table} WHERE {newest} ORDER BY 1 DESC LIMIT 1)"
        execute(f"{NUMBERS} INSERT INTO {table} SELECT {chosen} FROM numbers, {one}", {"key": key, "now": now})
    execute("COMMIT")
    connection.close()


@step(name="falls")
async def falls(value: int) -> int:
    raise RuntimeError("fell")


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Million]:
    folder = tmp_path_factory.mktemp("million")
    path = folder / "runs.db"
    now = int(datetime.now(UTC).timestamp() * 1_000_000)
    first = SQLiteBackend(path, durability="process")
    for number in range(REAL):
        Flujo(falls, state_backend=first).run(0, run_id=f"real-{number}")
    wait(first.close())
    fill(path, now)
    made = Million(path)
    wait(made.backend.count_runs({"status": "nothing"}))  # opens the file
    yield made
    wait(made.backend.close())
    shutil.rmtree(folder)


def newest(number: int, wanted: Callable[[int], bool]) -> list[str]:
    """Return the ids of the newest runs that were made, the last of a tie first."""
    found: list[str] = []
    n = RUNS
    while len(found) < number:
        found += [f"made-{n:07}"] if wanted(n) else []
        n -= 1
    return found


def pipe(n: int) -> bool:
    return n % PIPELINES == 3


# What is asked, which runs are the answer, and the index with the columns that must lead into it.
STATUS, PIPELINE = "COVERING INDEX flujo_run_status", "COVERING INDEX flujo_run_pipeline"
LISTINGS: dict[str, tuple[Any, Callable[[int], bool], str]] = {
    "all": ({}, lambda n: True, f"{STATUS} (status=?)"),
    "status": ({"status": "paused"}, lambda n: status(n) == "paused", f"{STATUS} (status=?)"),
    "running": ({"status": "running"}, lambda n: status(n) == "running", f"{STATUS} (status=?)"),
    "pipeline": ({"pipeline_id": "pipe-3"}, pipe, f"{PIPELINE} (pipeline_id=? AND status=?)"),
    "both": (
        {"status": "paused", "pipeline_id": "pipe-3"},
        lambda n: status(n) == "paused" and pipe(n),
        f"{PIPELINE} (pipeline_id=? AND status=?)",
    ),
}


@pytest.mark.parametrize("name", LISTINGS)
def test_the_newest_runs(million: Million, name: str) -> None:
    """The first page, a later one and one at an offset: by the index, and no more rows are looked at than are shown."""
    where, wanted, index = LISTINGS[name]
    real = REAL if name == "all" else 0  # they failed just now
    runs = newest(220, wanted)

    found = million.watch(lambda: wait(million.backend.list_workflows(**where, limit=50)))
    assert [run["run_id"] for run in found][real:] == runs[: 50 - real]
    assert million.by_index() and f"SEARCH r USING {index}" in million.used()
    assert million.instructions < 30_000 and million.seconds < 0.05, (million.instructions, million.seconds)

    found = million.watch(lambda: wait(million.backend.list_workflows(**where, limit=50, offset=150 + real)))
    assert [run["run_id"] for run in found] == runs[150:200]
    assert million.by_index()
    assert million.instructions < 60_000 and million.seconds < 0.05, (million.instructions, million.seconds)

    page = million.watch(lambda: wait(million.backend.list_runs(where, limit=50, after=runs[99])))
    assert [run.run_id for run in page] == runs[100:150]
    assert million.by_index() and index[:-1] + " AND updated_at<?)" in million.used()
    assert million.instructions < 60_000 and million.seconds < 0.05, (million.instructions, million.seconds)


def test_what_failed_of_late(million: Million) -> None:
    """The range of time is searched in the index, however many failed before."""
    found = million.watch(lambda: wait(million.backend.get_failed_workflows(hours_back=2.5)))
    assert len(found) == REAL + 2 * TIE * 2 // 10
    assert {run["status"] for run in found} == {"failed"}
    assert million.by_index() and f"SEARCH r USING {STATUS} (status=? AND updated_at>?)" in million.used()
    assert million.instructions < 200_000
    million.watch(lambda: wait(million.backend.get_failed_workflows(hours_back=0.5)))
    assert million.instructions < 5_000 and million.seconds < 0.05, (million.instructions, million.seconds)


def test_counts_and_statistics(million: Million) -> None:
    """They read an index from end to end, never the table, and no count needs a sort."""
    stats = million.watch(lambda: wait(million.backend.get_workflow_stats()))
    assert million.by_index(covering=True)
    assert million.seconds < 1, million.seconds
    expected = dict(million.query("SELECT status, count(*) FROM flujo_run GROUP BY 1"))
    assert stats["status_counts"] == expected
    assert stats["total_workflows"] == sum(expected.values()) > 0.9 * RUNS
    assert stats["recent_workflows_24h"] == REAL + 23 * TIE

    pipelines = million.watch(lambda: wait(million.backend.count_runs(by="pipeline_id")))
    assert million.by_index(covering=True) and million.seconds < 1, million.seconds
    assert sum(pipelines.values()) == sum(expected.values()) and pipelines["falls"] == REAL

    for where in ({"pipeline_id": "falls"}, {"pipeline_id": "falls", "status": "failed"}):
        counts = million.watch(lambda where=where: wait(million.backend.count_runs(where)))  # type: ignore[misc]
        assert counts == {"failed": REAL}
        assert million.by_index() and f"SEARCH r USING {PIPELINE}" in million.used()
        assert million.instructions < 2_000 and million.seconds < 0.05, (million.instructions, million.seconds)


def test_claiming_a_run(million: Million) -> None:
    """Claiming, executing and saving one run looks up single rows; so does starting a new one, and looking at one."""
    reached: list[float] = []

    @step(name="falls")
    async def fine(value: int) -> int:
        reached.append(time.perf_counter())
        return value

    runner = Flujo(fine, state_backend=million.backend)
    runner.run(0, run_id="new-0")  # enters this process among the owners
    for run_id in ("real-3", "new-1"):
        start = time.perf_counter()
        result = million.watch(lambda run_id=run_id: runner.run(0, run_id=run_id))  # type: ignore[misc]
        assert result.status == "completed"
        assert reached[-1] - start < 0.05, reached[-1] - start
        assert million.by_index() and "(run_id=?)" in million.used()
        assert million.instructions < 5_000, million.instructions
        wait(million.backend.delete_state("new-1"))
    state = million.watch(lambda: wait(million.backend.load_state("real-2")))
    assert state is not None and state["status"] == "failed"
    assert million.by_index() and million.instructions < 2_000
    wait(million.backend.delete_state("new-0"))
    restore(million)


def restore(million: Million) -> None:
    """Let the run that was completed fail again, for whoever counts."""
    wait(million.backend.delete_state("real-3"))
    Flujo(falls, state_backend=million.backend).run(0, run_id="real-3")


def test_cleaning_up(million: Million) -> None:
    """What is old is found by the index, a batch at a time, and deleted by its keys."""
    days = 999.5 / 24  # the first of the thousand moments
    over = "status IN ('completed', 'failed', 'cancelled')"  # paused and running ones stay
    old = million.query(f"SELECT count(*) FROM flujo_run WHERE run_id <= 'made-{TIE:07}' AND {over}")[0][0]
    deleted = million.watch(lambda: wait(million.backend.cleanup_old_workflows(days_old=days)))
    assert deleted == old > 0
    assert million.by_index()
    assert "SEARCH flujo_run USING INDEX flujo_run_status (status=? AND updated_at<?)" in million.used()
    selections = [sql for sql in million.statements if sql.startswith("SELECT key, run_id, rev")]
    assert 3 <= len(selections) <= deleted / 100 + 6
    assert million.instructions < 500 * (deleted + 100), million.instructions
    million.watch(lambda: wait(million.backend.cleanup_old_workflows(days_old=days)))
    assert million.instructions < 2_000 and million.seconds < 0.05, (million.instructions, million.seconds)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM flujo_run",
        "SELECT * FROM flujo_run ORDER BY created_at LIMIT 5",
        "SELECT r.key FROM flujo_run AS r WHERE status = 'failed' ORDER BY created_at LIMIT 5",
        "SELECT r.key FROM (SELECT 1 AS one) AS f JOIN flujo_run AS r ON r.total_steps = f.one",
        "SELECT key FROM (SELECT key, rev FROM flujo_run WHERE status = 'paused' ORDER BY rev LIMIT 5)",
        "DELETE FROM flujo_log WHERE seq >> 24 = 7",
    ],
)
def test_a_bad_plan_would_be_seen(million: Million, sql: str) -> None:
    """Scans and sorts are told from searches."""
    try:
        million.statements[:] = [sql]
        assert not million.by_index() and not million.by_index(covering=True)
    finally:
        million.statements.clear()
