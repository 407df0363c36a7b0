"""What an operator asks of a SQLite store and does to it, while runs are going on."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, SQLiteBackend, step
from flujo.errors import ConfigurationError, RunInProgressError, StoreUnavailableError
from tests.support.backends import query
from tests.support.disks import NOW, Disk, explains, old
from tests.support.pipelines import abc
from tests.support.saves import saved, take, wait


def names(found: list[dict[str, Any]]) -> list[str]:
    return [run["run_id"] for run in found]


# --- listings and figures ---------------------------------------------------------------------------------


def test_list_workflows(backend: SQLiteBackend) -> None:
    """By status, by pipeline, by both; the most recently updated first; page by page; without payloads."""
    for number, status in enumerate(["completed", "failed", "paused", "cancelled", "running"] * 4):
        old(backend, f"{number:02}", status, timedelta(hours=number), pipeline_id=f"p{number % 2}")
    everything = asyncio.run(backend.list_workflows())
    assert names(everything) == [f"{number:02}" for number in range(20)]
    assert everything[1] == {
        "run_id": "01", "pipeline_id": "p1", "pipeline_name": "abc", "pipeline_version": "1.0.0", "status": "failed",
        "current_step_index": 1, "total_steps": None, "error_message": None, "execution_time_ms": 0.0,
        "created_at": NOW - timedelta(hours=1), "updated_at": NOW - timedelta(hours=1), "due_at": None,
    }  # fmt: skip
    assert names(asyncio.run(backend.list_workflows(status="failed"))) == ["01", "06", "11", "16"]
    assert names(asyncio.run(backend.list_workflows(pipeline_id="p1", limit=3))) == ["01", "03", "05"]
    assert names(asyncio.run(backend.list_workflows("failed", "p0"))) == ["06", "16"]
    assert names(asyncio.run(backend.list_workflows("running", "p1", 1, 1))) == ["19"]
    pages = [asyncio.run(backend.list_workflows(limit=6, offset=offset)) for offset in (0, 6, 12, 18, 24)]
    assert [name for page in pages for name in names(page)] == names(everything)
    for nothing in ({"status": "no such"}, {"pipeline_id": "no such"}, {"limit": 0}, {"offset": 20}):
        assert asyncio.run(backend.list_workflows(**nothing)) == []


def test_runs_of_the_same_moment_have_an_order(backend: SQLiteBackend) -> None:
    """Pages neither repeat nor leave out a run, though all were updated at once."""
    for number in range(12):
        old(backend, f"{number:02}", ["completed", "failed"][number % 2], timedelta(hours=1))
    pages = [names(asyncio.run(backend.list_workflows(limit=5, offset=offset))) for offset in (0, 5, 10)]
    assert [name for page in pages for name in page] == [f"{number:02}" for number in reversed(range(12))]


def test_get_failed_workflows(backend: SQLiteBackend) -> None:
    """Those of the last hours, the newest first, with what went wrong; fractions of an hour count."""
    now = datetime.now(UTC)  # not that of the import: a whole run of the tests takes minutes
    for hours in (0.1, 1, 5, 23.9, 24.1, 100):
        ago, error = timedelta(hours=hours), {"type": "OSError", "text": f"{hours}"}
        old(backend, f"{hours}", "failed", ago, error=error, updated_at=now - ago)
        old(backend, f"completed {hours}", "completed", timedelta(hours=hours))
    assert names(asyncio.run(backend.get_failed_workflows())) == ["0.1", "1", "5", "23.9"]
    assert names(asyncio.run(backend.get_failed_workflows(hours_back=0.5))) == ["0.1"]
    assert names(asyncio.run(backend.get_failed_workflows(1000)))[-1] == "100"
    assert asyncio.run(backend.get_failed_workflows(2))[1]["error_message"] == "OSError: 1"


def test_get_workflow_stats(backend: SQLiteBackend) -> None:
    """Numbers by status, of the last day, and the mean time that runs which are not running spent in steps."""
    assert asyncio.run(backend.get_workflow_stats()) == {
        "total_workflows": 0, "status_counts": {}, "recent_workflows_24h": 0, "average_execution_time_ms": 0.0
    }  # fmt: skip
    for number, (status, ms) in enumerate([("completed", 30), ("failed", 60), ("paused", 90), ("running", 999)]):
        record = {"path": ("a",), "output": ["a"], "latency_s": ms / 1000}
        old(backend, f"{number}", status, timedelta(hours=number * 10), step_history=[record])
    assert asyncio.run(backend.get_workflow_stats()) == {
        "total_workflows": 4, "status_counts": {"completed": 1, "failed": 1, "paused": 1, "running": 1},
        "recent_workflows_24h": 3, "average_execution_time_ms": pytest.approx(60),
    }  # fmt: skip
    assert asyncio.run(backend.count_runs(by="pipeline_id")) == {"abc": 4}
    assert asyncio.run(backend.count_runs({"pipeline_id": "abc", "status": "failed"})) == {"failed": 1}
    with pytest.raises(ConfigurationError):
        asyncio.run(backend.count_runs(by="run_id; DROP TABLE flujo_run"))


def test_a_run_that_was_claimed_but_never_saved_is_not_listed(backend: SQLiteBackend) -> None:
    """Nothing of it exists yet but its claim."""
    take(backend, "claimed")
    assert asyncio.run(backend.list_workflows()) == []
    assert asyncio.run(backend.get_workflow_stats())["total_workflows"] == 0


# --- retention ----------------------------------------------------------------------------------------------


def test_cleanup_deletes_what_ended_long_ago(backend: SQLiteBackend, file: Path) -> None:
    """Completed, failed and cancelled runs, with all their rows; running and paused ones stay, however old."""
    for status in ("completed", "failed", "cancelled", "running", "paused"):
        for days in (29, 31, 400):
            old(backend, f"{status} {days}", status, timedelta(days=days), pipeline_context={"a": "x" * 100})
    assert asyncio.run(backend.cleanup_old_workflows(days_old=30)) == 6
    kept = {f"{status} 29" for status in ("completed", "failed", "cancelled")}
    kept |= {f"{status} {days}" for status in ("running", "paused") for days in (29, 31, 400)}
    assert {run["run_id"] for run in asyncio.run(backend.list_workflows())} == kept
    assert query(file, "SELECT count(*) FROM flujo_log") == [(9,)]
    assert asyncio.run(backend.cleanup_old_workflows(days_old=30)) == 0
    assert asyncio.run(backend.cleanup_old_workflows(days_old=0)) == 3
    assert asyncio.run(backend.check_integrity()) == []


def test_cleanup_leaves_a_failed_run_that_is_tried_again(backend: SQLiteBackend) -> None:
    """Taken up, it is running; that it failed long ago does not count any more."""
    old(backend, "r", "failed", timedelta(days=100))
    claim = take(backend, "r")
    assert asyncio.run(backend.cleanup_old_workflows(30)) == 0
    wait(backend.save_state("r", saved(claim, 2, status="completed", updated_at=NOW)))
    assert asyncio.run(backend.cleanup_old_workflows(30)) == 0
    assert asyncio.run(backend.load_state("r"))["rev"] == 2


def test_the_age_of_a_run_is_that_of_its_end(backend: SQLiteBackend) -> None:
    """Not that of its beginning, and not that of the last look at it."""
    old(backend, "r", "completed", timedelta(days=31), created_at=NOW - timedelta(days=500))
    asyncio.run(backend.load_state("r"))
    assert asyncio.run(backend.cleanup_old_workflows(days_old=32)) == 0
    assert asyncio.run(backend.cleanup_old_workflows(days_old=30)) == 1


def fill(file: Path, runs: int, saves: int = 1, days: int = 100) -> None:
    """Put completed runs of so many days ago into a store, by plain SQL: enough for all that verifies nothing."""
    then = int((NOW - timedelta(days=days)).timestamp() * 1e6)
    with closing(sqlite3.connect(file, timeout=60)) as connection, connection:
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO flujo_run"
            " SELECT 1000 + i, 'filled ' || i, 'p', 'p', '1', 1, ?2, 'completed', ?3, ?2 + i, NULL, NULL,"
            " NULL, NULL, NULL, 0, 0, 0 FROM n",
            (runs, then, saves),
        )
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO flujo_log"
            " SELECT key << 24 | n.i, n.i, 'completed', updated_at, 0, n.i, 0, 0, NULL, NULL, NULL, x'', NULL, x''"
            " FROM flujo_run, n WHERE key > 1000",
            (saves,),
        )


@pytest.mark.slow
def test_cleanup_does_not_stop_running_work(backend: SQLiteBackend, file: Path) -> None:
    """While thousands of runs are deleted, another one keeps saving: its steps come in between all the time."""
    asyncio.run(backend.load_state("there is a store now"))
    fill(file, 5000, saves=3)
    left: list[int] = []

    @step
    async def walk(n: int) -> int:
        left.append(query(file, "SELECT count(*) FROM flujo_run WHERE status = 'completed'")[0][0])
        return n + 1

    async def both() -> tuple[Any, int]:
        steps = (walk if n == 0 else step(name=f"walk {n}")(walk.fn) for n in range(30))
        pipeline = next(steps)
        for other in steps:
            pipeline = pipeline >> other  # type: ignore[assignment]
        cleaning = asyncio.create_task(backend.cleanup_old_workflows(30))
        result = await Flujo(pipeline, state_backend=backend).run_async(0, run_id="walking")
        return result, await cleaning

    result, deleted = asyncio.run(both())
    assert (result.output, deleted) == (30, 5000)
    between = [count for count in left if 0 < count < 5000]
    assert len(set(between)) >= 5, left
    assert query(file, "SELECT (SELECT count(*) FROM flujo_run), (SELECT count(*) FROM flujo_log)") == [(1, 30)]
    assert names(asyncio.run(backend.list_workflows())) == ["walking"]
    assert asyncio.run(backend.check_integrity()) == []


@pytest.mark.slow
def test_cleanup_keeps_the_log_short(backend: SQLiteBackend, file: Path) -> None:
    """What deleting writes is moved into the database as it goes, so that the log beside it does not grow with it."""
    asyncio.run(backend.load_state("there is a store now"))
    fill(file, 20_000)
    assert asyncio.run(backend.cleanup_old_workflows(30)) == 20_000
    assert Path(f"{file}-wal").stat().st_size < 12_000_000


def test_delete_state_of_one_run(backend: SQLiteBackend) -> None:
    """One run at a time is deleted by its run_id, but not while somebody executes it."""
    old(backend, "r", "paused", timedelta(0))
    claim = take(backend, "other")
    with pytest.raises(RunInProgressError):
        asyncio.run(backend.delete_state("other"))
    wait(backend.release("other", claim.fence))
    for run_id in ("r", "other", "no such"):
        asyncio.run(backend.delete_state(run_id))
    assert asyncio.run(backend.list_workflows()) == []


# --- backup -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_backup_while_runs_go_on(backend: SQLiteBackend, tmp_path: Path) -> None:
    """Each copy is a whole store as of one moment, to be opened in place of the other; the runs in it go on there."""
    copies: list[Path] = []

    async def work() -> None:
        async def copy(number: int) -> None:
            target = tmp_path / f"copy {number}.db"
            await backend.backup(target)
            copies.append(target)

        runs = (Flujo(abc([]), state_backend=backend).run_async([], run_id=f"{n}") for n in range(60))
        await asyncio.gather(*runs, *(copy(number) for number in range(4)))

    asyncio.run(work())
    old(backend, "half", "running", timedelta(0))
    asyncio.run(backend.backup(tmp_path / "last.db"))
    counts = []
    for target in [*copies, tmp_path / "last.db"]:
        restored = SQLiteBackend(target)
        assert asyncio.run(restored.check_integrity()) == []
        runs = asyncio.run(restored.list_workflows(limit=100))
        counts.append(len(runs))
        for run in runs[:10]:
            calls: list[str] = []
            result = Flujo(abc(calls), state_backend=restored).run(run_id=run["run_id"])
            assert result.output == ["a", "b", "c"]
            assert calls == ["a", "b", "c"][run["current_step_index"] :]
        asyncio.run(restored.close())
    assert counts[-1] == 61
    assert {path.name for path in tmp_path.glob("*.part")} == set()


def test_backup_refuses_what_is_there(backend: SQLiteBackend, tmp_path: Path) -> None:
    """An existing file is not overwritten; a folder that is not there is named; what failed leaves nothing behind."""
    old(backend, "r", "completed", timedelta(0))
    (tmp_path / "mine.db").write_text("mine")
    with pytest.raises(ConfigurationError) as there:
        asyncio.run(backend.backup(tmp_path / "mine.db"))
    assert explains(there.value, tmp_path / "mine.db") and (tmp_path / "mine.db").read_text() == "mine"
    with pytest.raises(StoreUnavailableError) as nowhere:
        asyncio.run(backend.backup(tmp_path / "no folder" / "copy.db"))
    assert explains(nowhere.value, tmp_path / "no folder")
    assert {path.name for path in tmp_path.iterdir()} <= {
        "mine.db",
        *(f"runs.db{e}" for e in ("", "-flujo", "-wal", "-shm")),
    }


def test_a_copy_made_with_the_shell_of_a_closed_store(tmp_path: Path) -> None:
    """After the last backend is closed the one file is the store: it may be copied, moved and renamed."""
    disk = Disk("sqlite", tmp_path)
    path = disk.half()
    moved = tmp_path / "moved.db"
    path.rename(moved)
    disk.path = moved
    disk.goes_on()
    disk.close()
