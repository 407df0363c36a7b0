"""Damage: whatever is altered in the file, what is read is what was written, or StateCorruptedError."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, FlujoError, SQLiteBackend, step
from flujo.errors import InvalidRunIdError, StateCorruptedError, StateError
from tests.support.backends import query
from tests.support.pipelines import T0, abc, new_run
from tests.support.saves import saved, take, wait

RUNS = ("completed", "failed", "paused", "due", "running", "big")
BY_KEY = ("flujo_run", "flujo_start")
# What no state consists of: bookkeeping of claims, and copies for the listings.
NO_STATE = {"fence", "owner", "claimed_at", "claim_rev", "crashes", "busy", "updated_at", "error_message"}


def make(file: Path) -> None:
    """Write runs in every status, with outputs, contexts and a snapshot."""
    backend = SQLiteBackend(file, durability="process")
    for name in RUNS:
        claim = take(backend, name, given=[name])
        context: dict[str, Any] = {}
        for rev in (1, 2, 3):
            status = "running"
            if rev == 3:
                status = {"due": "paused", "big": "running"}.get(name, name)
            size = 30_000 if name == "big" else 30
            context = {**context, "log": [*context.get("log", []), f"entry {rev} of {name}"], "t": str(rev) * size}
            error = {"type": "E", "text": f"text of {name}"} if status == "failed" else None
            due = T0 + timedelta(hours=1) if name == "due" and rev == 3 else None
            state = saved(claim, rev, name, status=status, pipeline_context=context, error=error, due_at=due)
            wait(backend.save_state(name, state))
        if claim.fence is not None:
            wait(backend.release(name, claim.fence))
    wait(backend.close())


def observe(backend: SQLiteBackend, name: str) -> list[Any]:
    """Return everything that can be read of a run, each part that is refused as the error's class."""
    found: list[Any] = []

    async def claim() -> Any:
        claim = await backend.claim(name, new_run(given=[name]), now=T0)
        return claim.fence is None, {**(claim.state or {}), "status": None}

    async def look() -> None:
        for reading in (
            lambda: backend.load_state(name),
            lambda: backend.history(name),
            lambda: backend.history(name, after=1, limit=1),
            *(partial(backend.load_at, name, rev, head=False) for rev in (1, 2, 3)),
            claim,  # last, since it changes something
        ):
            try:
                found.append(await reading())
            except FlujoError as error:
                found.append(type(error))

    wait(look())
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, list[Any]]]:
    """A file's content, and what is read of it."""
    folder = tmp_path_factory.mktemp("damage")
    file = folder / "runs.db"
    make(file)
    content = file.read_bytes()
    backend = SQLiteBackend(file, durability="process")
    truth = {name: observe(backend, name) for name in RUNS}
    wait(backend.close())
    assert not any(part is StateCorruptedError for parts in truth.values() for part in parts)
    return content, truth


def variants(value: Any, rng: random.Random) -> list[Any]:
    """Return other values that a damaged column could hold."""
    match value:
        case None:
            return [7, b"x", "x"]
        case int():
            return [value + 1, value ^ (1 << rng.randrange(40)), -value - 1, 0, 2**62]
        case str():
            place = rng.randrange(len(value))
            return [value[:place] + "~" + value[place + 1 :], "", value + "x"]
        case bytes():
            found: list[Any] = [b"", value + b"x", None]
            for place in {0, len(value) - 1, rng.randrange(len(value))} if value else set():
                changed = bytearray(value)
                changed[place] ^= 1 << rng.randrange(8)
                found.append(bytes(changed))
            return [*found, value[:-1]]
    raise AssertionError(value)


def changes(content: bytes, folder: Path) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield table, column, row's key and new value for every column of every row."""
    file = folder / "original.db"
    file.write_bytes(content)
    connection = sqlite3.connect(file)
    rng = random.Random(1)
    for table, key in (("flujo_log", "seq"), *((table, "key") for table in BY_KEY), ("flujo_snapshot", "seq")):
        cursor = connection.execute(f"SELECT * FROM {table}")
        columns = [part[0] for part in cursor.description]
        for row in cursor.fetchall():
            values = dict(zip(columns, row, strict=True))
            for column in columns:
                for other in variants(values[column], rng):
                    if other != values[column]:
                        yield table, column, values[key], other
    connection.close()


def altered(file: Path, table: str, column: str, key: Any, value: Any) -> bool:
    """Make the change; return whether SQLite let it be made."""
    connection = sqlite3.connect(file, isolation_level=None)
    name = "key" if table in BY_KEY else "seq"
    try:
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {name} = ?", (value, key))
    except sqlite3.IntegrityError:  # a strict table
        return False
    finally:
        connection.close()
    return True


def check(file: Path, truth: dict[str, list[Any]], what: object, runs: Iterable[str] = RUNS) -> int:
    """Compare all that is read of these runs with the truth; return how much of it was refused."""
    backend = SQLiteBackend(file, durability="process")
    refused = 0
    for name in runs:
        for part, (found, expected) in enumerate(zip(observe(backend, name), truth[name], strict=True)):
            if found is StateCorruptedError:
                refused += 1
            else:
                assert found == expected, (what, name, part)
    wait(backend.close())
    return refused


def found_as(file: Path, name: str) -> Any:
    """Return what is read under that name, or the class of the error."""
    backend = SQLiteBackend(file, durability="process")
    try:
        return wait(backend.load_state(name))
    except FlujoError as error:
        return type(error)
    finally:
        wait(backend.close())


@pytest.mark.slow
@pytest.mark.parametrize("table", ["flujo_log", "flujo_run", "flujo_start", "flujo_snapshot"])
def test_any_column_altered(store: tuple[bytes, dict[str, list[Any]]], table: str, tmp_path: Path) -> None:
    """Each column of each row, in several ways: other data is never read silently."""
    content, truth = store
    file = tmp_path / "runs.db"
    detected: dict[str, int] = {}
    names: dict[int, str] = {}
    for found, column, key, value in changes(content, tmp_path):
        names = names or dict(query(tmp_path / "original.db", "SELECT key, run_id FROM flujo_run"))
        if found != table or column in (NO_STATE if table == "flujo_run" else ()):
            continue
        run = names[key if table in BY_KEY else key >> 24]
        if table == "flujo_log" and run not in ("completed", "big"):
            continue  # they are as good as all, and this takes its time
        others = [name for name in RUNS if name != run][key % 5 :][: table == "flujo_run"]
        file.write_bytes(content)
        if not altered(file, table, column, key, value):
            continue
        if column == "run_id":  # nothing is found under the old name; under the new one it is refused
            assert found_as(file, value) in (StateCorruptedError, InvalidRunIdError)
            detected[column] = 1
        elif column in ("seq", "key") and run in ("running", "big") and table not in ("flujo_snapshot", "flujo_start"):
            pass  # nothing but the save itself says that it is there
        else:
            others = [run, *others]
        detected[column] = detected.get(column, 0) + check(file, truth, (table, column, key, value), others)
    silent = {column for column, number in detected.items() if not number}
    # A snapshot that cannot be found is not needed: all deltas are folded then.
    assert silent <= {"seq"} if table == "flujo_snapshot" else silent == set(), detected


def test_bookkeeping_altered(store: tuple[bytes, dict[str, list[Any]]], tmp_path: Path) -> None:
    """What no state consists of may be altered without any state being read otherwise."""
    content, truth = store
    file = tmp_path / "runs.db"
    for column in sorted(NO_STATE - {"fence", "owner"}):
        file.write_bytes(content)
        query(file, f"UPDATE flujo_run SET {column} = {'NULL' if column == 'error_message' else 2}")
        assert check(file, truth, column) == 0


@pytest.mark.parametrize(
    ("statement", "runs"),
    [
        ("DELETE FROM flujo_log WHERE seq & 0xffffff = 3", {"completed", "failed", "paused", "due"}),
        ("DELETE FROM flujo_log WHERE seq & 0xffffff = 2", set(RUNS)),
        ("DELETE FROM flujo_log WHERE seq & 0xffffff > 1", {"completed", "failed", "paused", "due"}),
        ("DELETE FROM flujo_log", {"completed", "failed", "paused", "due"}),
        ("UPDATE flujo_run SET status = 'running' WHERE status = 'completed'", {"completed"}),
        ("UPDATE flujo_run SET status = 'running' WHERE status = 'failed'", {"failed"}),
        ("UPDATE flujo_run SET status = 'running' WHERE status = 'paused'", {"paused", "due"}),
        ("UPDATE flujo_run SET status = 'completed' WHERE status = 'running'", {"running", "big"}),
        ("UPDATE flujo_run SET status = 'failed' WHERE status = 'paused'", {"paused", "due"}),
        ("UPDATE flujo_run SET due_at = 1 WHERE run_id = 'due'", {"due"}),
        ("UPDATE flujo_run SET due_at = NULL WHERE run_id = 'due'", {"due"}),
        ("UPDATE flujo_run SET due_at = 1 WHERE run_id = 'paused'", {"paused"}),
    ],
)  # fmt: skip
def test_rows_gone_and_statuses_changed(
    store: tuple[bytes, dict[str, list[Any]]], statement: str, runs: set[str], tmp_path: Path
) -> None:
    """A run whose newest save, or an earlier one, is gone is refused, and so is a status that was not saved."""
    content, truth = store
    file = tmp_path / "runs.db"
    file.write_bytes(content)
    query(file, statement)
    backend = SQLiteBackend(file, durability="process")
    for name in RUNS:
        seen = observe(backend, name)
        if name in runs:
            assert seen[0] is StateCorruptedError, name
            assert seen[-1] is StateCorruptedError, name
        elif "flujo_run" in statement:
            assert seen == truth[name]
    wait(backend.close())


def swap(file: Path, one: tuple[str, int], two: tuple[str, int]) -> None:
    """Exchange two log rows, each given by its run and rev."""
    first, second = (
        query(file, "SELECT key << 24 | ? FROM flujo_run WHERE run_id = ?", rev, run_id)[0][0]
        for run_id, rev in (one, two)
    )
    for old, new in ((first, -1), (second, first), (-1, second)):
        query(file, "UPDATE flujo_log SET seq = ? WHERE seq = ?", new, old)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("completed", 2), ("completed", 3)),
        (("completed", 1), ("completed", 2)),
        (("running", 2), ("running", 3)),
        (("completed", 3), ("failed", 3)),
        (("running", 3), ("big", 3)),
        (("running", 1), ("big", 1)),
        (("paused", 2), ("due", 2)),
    ],
)
def test_rows_swapped(
    store: tuple[bytes, dict[str, list[Any]]], one: tuple[str, int], two: tuple[str, int], tmp_path: Path
) -> None:
    """Two saves of a run, or of two runs, that changed places are found: the checksums are chained and bound."""
    content, truth = store
    file = tmp_path / "runs.db"
    file.write_bytes(content)
    swap(file, one, two)
    assert check(file, truth, (one, two)) > 0


def test_runs_swapped(store: tuple[bytes, dict[str, list[Any]]], tmp_path: Path) -> None:
    """Two runs whose names, or whole rows, were exchanged are found."""
    content, truth = store
    file = tmp_path / "runs.db"
    for table, columns in (
        ("flujo_run", "run_id"),
        ("flujo_start", "input"),
        ("flujo_run", "pipeline_version, created_at"),
        ("flujo_start", "fingerprint"),
    ):
        file.write_bytes(content)
        query(file, "UPDATE flujo_run SET pipeline_version = '2' WHERE run_id = 'failed'")
        backend = SQLiteBackend(file, durability="process")
        assert observe(backend, "failed")[0] is StateCorruptedError
        wait(backend.close())
        file.write_bytes(content)
        connection = sqlite3.connect(file, isolation_level=None)
        names = columns.split(", ")
        keys = dict(connection.execute("SELECT run_id, key FROM flujo_run"))
        rows = {
            name: connection.execute(f"SELECT {columns} FROM {table} WHERE key = ?", (keys[name],)).fetchone()
            for name in ("completed", "failed")
        }
        if columns == "run_id":
            connection.execute("UPDATE flujo_run SET run_id = 'between' WHERE key = ?", (keys["completed"],))
        assignments = ", ".join(f"{name} = ?" for name in names)
        connection.execute(f"UPDATE {table} SET {assignments} WHERE key = ?", (*rows["completed"], keys["failed"]))
        connection.execute(f"UPDATE {table} SET {assignments} WHERE key = ?", (*rows["failed"], keys["completed"]))
        connection.close()
        same = rows["completed"] == rows["failed"]
        assert (check(file, truth, columns) > 0) is not same


def test_a_copied_save(store: tuple[bytes, dict[str, list[Any]]], tmp_path: Path) -> None:
    """A row copied from an earlier place to the end is no newer save."""
    content, truth = store
    file = tmp_path / "runs.db"
    file.write_bytes(content)
    key = query(file, "SELECT key FROM flujo_run WHERE run_id = 'running'")[0][0]
    columns = "idx, status, at, busy, ended, out_rev, snap_rev, records, output, delta, ctx, rest, sum"
    insert = f"INSERT INTO flujo_log SELECT ?, {columns} FROM flujo_log WHERE seq = ?"
    query(file, insert, key << 24 | 4, key << 24 | 2)
    backend = SQLiteBackend(file, durability="process")
    assert observe(backend, "running")[0] is StateCorruptedError
    wait(backend.close())
    assert truth


@pytest.mark.slow
def test_bits_of_the_file(store: tuple[bytes, dict[str, list[Any]]], tmp_path: Path) -> None:
    """A bit flipped anywhere in the file: an error of flujo's, or everything that is found is true."""
    content, truth = store
    file = tmp_path / "runs.db"
    rng = random.Random(2)
    outcomes = {"true": 0, "refused": 0, "absent": 0}
    for _ in range(150):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        for name in ("-wal", "-shm"):
            file.with_name(file.name + name).unlink(missing_ok=True)
        backend = SQLiteBackend(file, durability="process")
        for name in RUNS:
            for found, expected in zip(observe(backend, name), truth[name], strict=True):
                if isinstance(found, type):
                    outcomes["refused"] += 1
                elif found in (None, []) or (isinstance(found, tuple) and not found[1].get("run_id")):
                    outcomes["absent"] += 1  # an index or a name is hit, so that the run is not found
                else:
                    assert found == expected
                    outcomes["true"] += 1
        wait(backend.close())
    assert outcomes["refused"] > 50
    assert outcomes["absent"] < outcomes["refused"]


def test_a_damaged_run_does_no_harm_to_others(store: tuple[bytes, dict[str, list[Any]]], tmp_path: Path) -> None:
    """It can be deleted and begun anew; the others go on; a runner gets the error that says so."""
    content, _ = store
    file = tmp_path / "runs.db"
    file.write_bytes(content)
    query(file, "UPDATE flujo_log SET output = CAST('[1]' AS BLOB) WHERE idx = 3")
    backend = SQLiteBackend(file)

    @step
    async def work(n: Any) -> Any:
        return n

    runner = Flujo(abc([]), state_backend=backend)
    for _ in range(2):
        with pytest.raises(StateCorruptedError, match=r"Restore .* or delete"):
            runner.run([], run_id="completed")
    assert Flujo(work, state_backend=backend).run(1, run_id="new").output == 1
    with pytest.raises(StateError):
        wait(backend.load_state("completed"))
    wait(backend.delete_state("completed"))
    assert runner.run([], run_id="completed").output == ["a", "b", "c"]
    wait(backend.close())


def test_one_damaged_run_among_many_at_once(store: tuple[bytes, dict[str, list[Any]]], tmp_path: Path) -> None:
    """In a batch of claims and saves it fails alone."""
    content, _ = store
    file = tmp_path / "runs.db"
    file.write_bytes(content)
    query(file, "UPDATE flujo_log SET idx = 9 WHERE idx = 3")
    backend = SQLiteBackend(file)

    async def main() -> list[Any]:
        runner = Flujo(abc([]), state_backend=backend)
        names = ["completed", *(f"new {number}" for number in range(20))]
        return await asyncio.gather(*(runner.run_async([], run_id=name) for name in names), return_exceptions=True)

    damaged, *others = asyncio.run(main())
    assert isinstance(damaged, StateCorruptedError)
    assert [result.output for result in others] == [["a", "b", "c"]] * 20
    wait(backend.close())
