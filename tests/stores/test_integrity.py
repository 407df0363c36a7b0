"""Checking a SQLite store as a whole, and whatever else looks through all of it, while runs are going on."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flujo import Flujo, SQLiteBackend, step
from flujo.state.backends.sqlite.connection import connect
from tests.support.backends import query
from tests.support.disks import old
from tests.support.pipelines import abc


class Notes(BaseModel):
    text: str = ""


def runs_with_context(file: Path) -> None:
    """Make the runs `good` and `bad`, each of three saves with a context."""

    def adding(name: str) -> Any:
        @step(name=name)
        async def add(given: int, *, context: Notes) -> int:
            context.text += f" {name} of {given}"
            return given + 1

        return add

    backend = SQLiteBackend(file, durability="process")
    runner = Flujo(adding("a") >> adding("b") >> adding("c"), context_model=Notes, state_backend=backend)
    for run_id in ("bad", "good"):
        assert runner.run(1, run_id=run_id).status == "completed"
    asyncio.run(backend.close())


DAMAGE = {
    "an output": "UPDATE flujo_log SET output = x'37' WHERE seq = 1 << 24 | 2",
    "an older output": "UPDATE flujo_log SET output = x'37' WHERE seq = 1 << 24 | 1",
    "a change": "UPDATE flujo_log SET delta = CAST(replace(delta, ' of ', ' on ') AS BLOB) WHERE seq = 1 << 24 | 2",
    "a record": "UPDATE flujo_log SET records = CAST(replace(records, 'path', 'pith') AS BLOB) WHERE seq = 1 << 24 | 1",
    "a checksum": "UPDATE flujo_log SET sum = zeroblob(16) WHERE seq = 1 << 24 | 1",
    "a status": "UPDATE flujo_run SET status = 'cancelled' WHERE key = 1",
    "an input": "UPDATE flujo_start SET input = x'32' WHERE key = 1",
    "a name": "UPDATE flujo_run SET pipeline_name = 'other' WHERE key = 1",
    "the first save": "DELETE FROM flujo_log WHERE seq = 1 << 24 | 1",
    "a save": "DELETE FROM flujo_log WHERE seq = 1 << 24 | 2",
    "the last save": "DELETE FROM flujo_log WHERE seq = 1 << 24 | 3",
    "all saves": "DELETE FROM flujo_log WHERE seq >> 24 = 1",
}  # fmt: skip


@pytest.mark.parametrize("sql", DAMAGE.values(), ids=DAMAGE.keys())
def test_check_integrity_finds_what_was_altered(file: Path, sql: str) -> None:
    """One line that names the run and the file, for each run that is damaged, and none for the others."""
    runs_with_context(file)
    query(file, sql)
    backend = SQLiteBackend(file)
    (line,) = asyncio.run(backend.check_integrity())
    assert "'bad'" in line and str(file) in line and "backup" in line
    asyncio.run(backend.delete_state("bad"))
    assert asyncio.run(backend.check_integrity()) == []
    asyncio.run(backend.close())


def test_check_integrity_finds_saves_without_their_run(file: Path) -> None:
    """A run's row that is gone leaves its saves behind."""
    runs_with_context(file)
    query(file, "DELETE FROM flujo_run WHERE key = 1")
    backend = SQLiteBackend(file)
    (line,) = asyncio.run(backend.check_integrity())
    assert str(file) in line and "run number 1" in line
    asyncio.run(backend.close())


def test_check_integrity_finds_a_page_that_was_overwritten(file: Path) -> None:
    """SQLite's own check comes first; where the file cannot even be read, that is the line."""
    runs_with_context(file)
    (page,) = query(file, "SELECT rootpage FROM sqlite_schema WHERE name = 'flujo_log'")[0]
    content = bytearray(file.read_bytes())
    content[(page - 1) * 4096 : page * 4096] = b"\xa5" * 4096
    file.write_bytes(content)
    backend = SQLiteBackend(file)
    lines = asyncio.run(backend.check_integrity())
    assert any("'bad'" in line or "damaged" in line or "malformed" in line for line in lines), lines
    asyncio.run(backend.close())


@pytest.mark.slow
def test_check_integrity_while_runs_go_on(backend: SQLiteBackend) -> None:
    """It finds nothing wrong with runs that are saved, begun and deleted meanwhile, and keeps none of them waiting."""

    async def work() -> list[str]:
        async def run(number: int) -> None:
            run_id = f"{number}"
            await Flujo(abc([]), state_backend=backend).run_async([], run_id=run_id)
            if number % 3 == 0:
                await backend.delete_state(run_id)

        checks = [asyncio.create_task(backend.check_integrity()) for _ in range(3)]
        await asyncio.gather(*(run(number) for number in range(100)))
        return [line for check in checks for line in await check]

    assert asyncio.run(work()) == []


@pytest.mark.parametrize("ask", ["get_workflow_stats", "count_runs", "check_integrity"])
def test_no_run_waits_for_a_survey(file: Path, ask: str) -> None:
    """While a question about the whole store is being answered, runs begin, save and end."""
    within, go_on, opened = threading.Event(), threading.Event(), []

    def halting() -> int:
        within.set()
        go_on.wait(10)
        return 0

    def second_halts(path: str) -> sqlite3.Connection:
        connection = connect(path)
        if opened:
            connection.set_progress_handler(halting, 1)
        opened.append(path)
        return connection

    backend = SQLiteBackend(file, durability="process", connect=second_halts)
    old(backend, "r", "completed", timedelta(0))

    async def both() -> None:
        asked = asyncio.create_task(getattr(backend, ask)())
        assert await asyncio.to_thread(within.wait, 10)
        result = await Flujo(abc([]), state_backend=backend).run_async([], run_id="meanwhile")
        assert result.status == "completed" and not asked.done()
        go_on.set()
        await asked
        await backend.close()

    asyncio.run(both())


def test_a_survey_that_is_cancelled(backend: SQLiteBackend) -> None:
    """Cancelling what reads the whole store ends it, and leaves the store as usable as before."""
    old(backend, "r", "completed", timedelta(0))

    async def work() -> None:
        for ask in (backend.get_workflow_stats, backend.check_integrity, backend.count_runs):
            for turns in range(6):
                task = asyncio.ensure_future(ask())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            assert not isinstance(await ask(), BaseException)

    asyncio.run(work())
