"""The SQLite file: what plain SQL sees, what may stand beside it, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, SQLiteBackend, step
from flujo.errors import (
    ConfigurationError,
    SaveError,
    StateError,
    StoreBusyError,
    StoreFormatError,
    StoreUnavailableError,
)
from flujo.state.backends.sqlite import connection as opening
from tests.support.backends import dump, query
from tests.support.pipelines import T0, abc, by_hand
from tests.support.saves import saved, take, wait


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def backend(file: Path) -> Iterator[SQLiteBackend]:
    found = SQLiteBackend(file, durability="process")
    yield found
    wait(found.close())


def written(file: Path, **changes: Any) -> None:
    """Make a store with the run `r` in it, and close it."""
    backend = SQLiteBackend(file, durability="process")
    wait(backend.save_state("r", by_hand(**changes)))
    wait(backend.close())


def load(file: Path, **options: Any) -> Any:
    backend = SQLiteBackend(file, durability="process", **options)
    try:
        return wait(backend.load_state("r"))
    finally:
        wait(backend.close())


# The view.

VIEW = "SELECT * FROM workflow_state"
COLUMNS = [
    "run_id",
    "pipeline_id",
    "pipeline_name",
    "pipeline_version",
    "current_step_index",
    "total_steps",
    "pipeline_context",
    "last_step_output",
    "status",
    "error_message",
    "execution_time_ms",
    "created_at",
    "updated_at",
]


def rows(file: Path) -> list[dict[str, Any]]:
    connection = sqlite3.connect(file)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(VIEW)]
    finally:
        connection.close()


def test_the_view_has_its_columns(file: Path) -> None:
    """At least those of the specification, with the values of the newest save, while the file is in use."""
    calls: list[str] = []
    backend = SQLiteBackend(file)
    Flujo(abc(calls), state_backend=backend, initial_context_data={"n": 1}).run(["ä"], run_id="r")
    (row,) = rows(file)
    assert list(row) == COLUMNS
    facts = (row["run_id"], row["pipeline_id"], row["pipeline_name"], row["pipeline_version"], row["status"])
    assert facts == ("r", "abc", "abc", "1.0.0", "completed")
    assert (row["current_step_index"], row["total_steps"], row["error_message"]) == (3, 3, None)
    assert json.loads(row["last_step_output"]) == ["ä", "a", "b", "c"]
    assert json.loads(row["pipeline_context"]) == {"n": 1}
    assert row["execution_time_ms"] >= 0
    for name in ("created_at", "updated_at"):
        assert row[name].endswith("Z") and len(row[name]) == len("2026-01-02T03:04:05.678Z")
    wait(backend.close())
    assert rows(file) == [row]


def test_the_view_shows_a_failure(file: Path, backend: SQLiteBackend) -> None:
    """Status and message of a failed run; while it is tried again it is running."""
    seen: list[Any] = []

    @step
    async def work(n: int) -> int:
        seen.append([(row["status"], row["current_step_index"]) for row in rows(file)])
        if len(seen) < 2:
            raise ValueError("no such account")
        return n

    Flujo(work, state_backend=backend).run(1, run_id="r")
    (row,) = rows(file)
    assert (row["status"], row["current_step_index"]) == ("failed", 0)
    assert "no such account" in row["error_message"]
    Flujo(work, state_backend=backend).run(1, run_id="r")
    (row,) = rows(file)
    assert (row["status"], row["error_message"], row["current_step_index"]) == ("completed", None, 1)
    assert seen == [[], [("running", 0)]]


@pytest.mark.slow
def test_the_view_folds_the_context(file: Path, backend: SQLiteBackend) -> None:
    """After each of hundreds of saves it is the context of that save: unicode, fields that come and go, snapshots."""
    claim = take(backend)
    context: dict[str, Any] = {}
    snapshots = 0
    reader = sqlite3.connect(file)
    for rev in range(1, 251):
        context = dict(context)
        match rev % 9:
            case 0 | 4:
                context[f'fëld {rev} \n " \\ €'] = {"n": [rev, "😀" * (rev % 5)], "none": None}
            case 1:
                context["log"] = [*context.get("log", []), f"entry {rev} äöü €"]
            case 2:
                context["text"] = "π" * rev + context.get("text", "")[: 7 * rev]
                context["n"] = rev
            case 3 if len(context) > 3:
                context.pop(next(name for name in context if name.startswith("fëld")))
            case 5:
                context = dict(reversed(context.items()))
            case 6:
                context["log"] = context.get("log", [])[1:]
                context["text"] = context.get("text", "") + "x" * 2000
            case 7 if rev == 97:
                context = {}
        wait(backend.save_state("r", saved(claim, rev, pipeline_context=context, last_step_output=f"ö{rev}")))
        text, output, index = reader.execute(
            "SELECT pipeline_context, last_step_output, current_step_index FROM workflow_state"
        ).fetchone()
        assert json.loads(text) == context
        assert list(json.loads(text)) == list(context)
        assert (json.loads(output), index) == (f"ö{rev}", rev)
        snapshots += reader.execute("SELECT count(*) FROM flujo_snapshot WHERE seq & 16777215 = ?", (rev,)).fetchone()[
            0
        ]
    reader.close()
    assert snapshots > 1


def test_the_view_of_a_run_without_context_or_output(file: Path, backend: SQLiteBackend) -> None:
    """They are `{}` and null; a run that was never saved is not there."""
    take(backend, "claimed only")
    wait(backend.save_state("r", by_hand(current_step_index=0, last_step_output=None)))
    (row,) = rows(file)
    assert (row["pipeline_context"], row["last_step_output"]) == ("{}", "null")


def test_the_view_with_older_outputs(file: Path, backend: SQLiteBackend) -> None:
    """A failure does not write the last output again, and it is shown all the same."""
    claim = take(backend)
    output = {"big": "x" * 1000}
    wait(backend.save_state("r", saved(claim, 1, last_step_output=output)))
    failed = saved(claim, 2, status="failed", current_step_index=1, last_step_output=output, step_history=[])
    wait(backend.save_state("r", failed))
    (row,) = rows(file)
    assert (json.loads(row["last_step_output"]), row["status"], row["current_step_index"]) == (output, "failed", 1)
    assert query(file, "SELECT output IS NULL FROM flujo_log ORDER BY seq") == [(0,), (1,)]


def test_plain_sql_finds_runs(file: Path, backend: SQLiteBackend) -> None:
    """The view can be filtered, sorted and counted, and JSON functions reach into it."""
    for number in range(5):
        state = by_hand(
            run_id=f"r{number}", status="failed" if number % 2 else "paused", pipeline_context={"n": number}
        )
        wait(backend.save_state(f"r{number}", state))
    sql = "SELECT run_id FROM workflow_state WHERE status = ? AND pipeline_context ->> 'n' > 1 ORDER BY run_id"
    assert query(file, sql, "paused") == [("r2",), ("r4",)]
    assert query(file, "SELECT status, count(*) FROM workflow_state GROUP BY 1 ORDER BY 1") == [
        ("failed", 2),
        ("paused", 3),
    ]


# What stands beside it.


def test_tables_of_the_users_own(file: Path) -> None:
    """A file may hold other tables, views, triggers and indexes, made before and after, and statistics of theirs."""
    connection = sqlite3.connect(file)
    connection.executescript(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, text TEXT); INSERT INTO orders VALUES (1, 'x');"
        "CREATE INDEX by_text ON orders (text); CREATE VIEW all_orders AS SELECT * FROM orders;"
        "CREATE TRIGGER t AFTER INSERT ON orders BEGIN DELETE FROM orders WHERE id < 0; END;"
    )
    connection.close()
    written(file)
    connection = sqlite3.connect(file)
    connection.executescript(
        "CREATE TABLE more (id INTEGER); CREATE VIEW failed AS SELECT * FROM workflow_state WHERE status = 'failed';"
        "ANALYZE; VACUUM; ALTER TABLE more RENAME TO rest; DROP INDEX by_text;"
    )
    connection.close()
    assert load(file)["last_step_output"] == ["a"]
    assert query(file, "SELECT * FROM orders") == [(1, "x")]


def test_a_users_connection_in_the_same_process(file: Path, backend: SQLiteBackend) -> None:
    """It reads, writes and closes while runs are committed; nothing of either is lost."""

    def touch(number: int) -> None:
        connection = sqlite3.connect(file, timeout=20)
        connection.execute("CREATE TABLE IF NOT EXISTS mine (n INTEGER)")
        connection.execute("INSERT INTO mine VALUES (?)", (number,))
        connection.commit()
        connection.close()

    async def main() -> None:
        runner = Flujo(abc([]), state_backend=backend)
        for number in range(10):
            one, two = runner.run_async([], run_id=f"{number}.1"), runner.run_async([], run_id=f"{number}.2")
            await asyncio.gather(one, two, asyncio.to_thread(touch, number))

    asyncio.run(main())
    wait(backend.close())
    assert query(file, "SELECT count(*), sum(n) FROM mine") == [(10, 45)]
    assert query(file, "SELECT count(*) FROM workflow_state WHERE status = 'completed'") == [(20,)]
    assert query(file, "PRAGMA integrity_check") == [("ok",)]


def test_several_backends_on_one_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever path, they share one connection; with other options they are refused."""
    monkeypatch.chdir(file.parent)
    link = file.parent / "link.db"
    link.symlink_to(file)
    one, two, three = SQLiteBackend(file), SQLiteBackend("runs.db"), SQLiteBackend(link)
    wait(one.save_state("r", by_hand()))
    assert wait(two.load_state("r")) == wait(three.load_state("r")) == wait(one.load_state("r"))
    with pytest.raises(ConfigurationError, match="other"):
        wait(SQLiteBackend(file, busy_timeout=1).load_state("r"))
    wait(one.close())
    assert wait(two.load_state("r")) is not None
    wait(two.close())
    wait(three.close())
    assert load(file, busy_timeout=1) is not None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [((":memory:",), "InMemoryBackend"), (("",), "no file"), (("x.db", "durability", "none"), "durability")],
)
def test_a_backend_that_cannot_be(arguments: Any, match: str) -> None:
    """The error comes when it is made."""
    path, *options = arguments
    with pytest.raises(ConfigurationError, match=match):
        SQLiteBackend(path, **dict([options] if options else []))


def test_making_a_backend_touches_nothing(file: Path) -> None:
    """The file is made when it is first used, and one that was never used can be closed."""
    backend = SQLiteBackend(file)
    assert "runs.db" in repr(backend)
    wait(backend.close())
    assert list(file.parent.iterdir()) == []


# What is refused.


def refused(file: Path, kind: type[Exception], match: str) -> None:
    """The store is refused, twice, with an error that names the file; it is not changed by that."""
    before = file.read_bytes() if file.is_file() else None
    for _ in range(2):
        with pytest.raises(kind, match=match) as caught:
            load(file)
        assert str(file) in str(caught.value)
    assert before is None or file.read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at" * 100, b"\x00" * 5000])
def test_no_database(file: Path, content: bytes) -> None:
    """A file with something else in it is not written to."""
    file.write_bytes(content)
    refused(file, StoreFormatError, "no SQLite database")


def test_an_empty_file(file: Path) -> None:
    """It is a new store."""
    file.touch()
    assert load(file) is None


def test_a_missing_folder(file: Path) -> None:
    """The error says which one, and it is not made."""
    refused(file.parent / "no" / "such" / "runs.db", StoreUnavailableError, "no/such does not exist")
    assert not (file.parent / "no").exists()


def test_a_folder(file: Path) -> None:
    """A folder is no file."""
    file.mkdir()
    refused(file, StoreUnavailableError, "it is a folder")


def test_a_newer_schema(file: Path) -> None:
    """It says to upgrade, and changes nothing."""
    written(file)
    query(file, "UPDATE flujo_meta SET value = '4' WHERE name = 'schema_version'")
    refused(file, StoreFormatError, "newer flujo")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0", "-1", "x", "", "1.0", "٣", "9" * 5000])
def test_a_schema_version_that_is_none(file: Path, version: str) -> None:
    """It is refused as a format error, whatever stands there."""
    written(file)
    query(file, "UPDATE flujo_meta SET value = ? WHERE name = 'schema_version'", version)
    refused(file, StoreFormatError, "schema")


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON flujo_log BEGIN UPDATE flujo_log SET output = NULL; END",
        "CREATE TRIGGER t AFTER UPDATE ON flujo_run BEGIN DELETE FROM flujo_log; END",
        "CREATE TRIGGER flujo_t AFTER INSERT ON mine BEGIN SELECT 1; END",
        "CREATE TRIGGER t INSTEAD OF DELETE ON workflow_state BEGIN SELECT 1; END",
        "CREATE UNIQUE INDEX i ON flujo_log (status)",
        "ALTER TABLE flujo_run ADD COLUMN extra TEXT",
        "ALTER TABLE flujo_log RENAME COLUMN at TO moment",
        "DROP TABLE flujo_snapshot",
        "DROP VIEW workflow_state",
        "DROP INDEX flujo_run_status",
        "CREATE TABLE flujo_more (id INTEGER)",
        "DELETE FROM flujo_meta WHERE name = 'schema_digest'",
        "DELETE FROM flujo_meta",
    ],
)
def test_a_changed_schema(file: Path, statement: str) -> None:
    """What was added to, changed in or taken from flujo's part is refused, planted triggers above all."""
    written(file)
    query(file, "CREATE TABLE mine (id INTEGER)")
    query(file, "PRAGMA foreign_keys=OFF")
    if "RENAME" in statement:
        query(file, "DROP VIEW workflow_state")
    query(file, statement)
    refused(file, StoreFormatError, "schema")


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE flujo_run (id INTEGER)",
        "CREATE TABLE workflow_state (id INTEGER)",
        "CREATE VIEW workflow_state AS SELECT 1",
        "CREATE TABLE flujo_meta (name TEXT PRIMARY KEY, value TEXT)",
        "CREATE TABLE flujo_meta (id INTEGER)",
    ],
)
def test_somebody_elses_tables_by_our_names(file: Path, statement: str) -> None:
    """They are left alone."""
    query(file, statement)
    with pytest.raises(StoreFormatError):
        load(file)
    assert len(query(file, "SELECT * FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")) == 1


def test_a_store_that_cannot_be_written(file: Path) -> None:
    """A file without write permission is an error that says so (root is simulated: nobody refuses it anything)."""
    written(file)

    def read_only(path: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"file:{path}?mode=ro", uri=True, timeout=0, isolation_level=None, check_same_thread=False
        )

    backend = SQLiteBackend(file, connect=read_only)
    with pytest.raises(StoreUnavailableError, match="cannot be written"):
        wait(backend.save_state("r", by_hand()))
    wait(backend.close())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(file: Path) -> None:
    """The error is flujo's."""
    file.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(StoreUnavailableError):
            load(file)
    finally:
        file.parent.chmod(stat.S_IRWXU)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError(13, "Permission denied"), StoreUnavailableError),
        (OSError(5, "Input/output error"), StoreUnavailableError),
        (sqlite3.OperationalError("unable to open database file"), StoreUnavailableError),
        (sqlite3.DatabaseError("something"), SaveError),
    ],
)
def test_what_the_system_says_is_flujos_error(file: Path, error: Exception, kind: type[Exception]) -> None:
    """Whatever goes wrong on opening reaches the caller as a flujo error with the cause."""
    if isinstance(error, sqlite3.OperationalError):
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN

    def broken(path: str) -> sqlite3.Connection:
        raise error

    backend = SQLiteBackend(file, connect=broken)
    with pytest.raises(kind) as caught:
        wait(backend.load_state("r"))
    assert caught.value.__cause__ is error
    wait(backend.close())


def test_a_file_that_becomes_usable(file: Path) -> None:
    """A backend that could not open its file tries again with the next call."""
    folder = file.parent / "later"
    backend = SQLiteBackend(folder / "runs.db")
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            wait(backend.load_state("r"))
    folder.mkdir()
    wait(backend.save_state("r", by_hand()))
    assert wait(backend.load_state("r")) is not None
    wait(backend.close())


def test_a_locked_file(file: Path) -> None:
    """Within `busy_timeout` a save waits for another program's transaction; beyond that it says who may be at fault."""
    written(file)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    backend = SQLiteBackend(file, busy_timeout=0.05)
    with pytest.raises(StoreBusyError):
        wait(backend.save_state("r", by_hand(current_step_index=2)))

    async def wait_for_it() -> None:
        saving = asyncio.create_task(patient.save_state("r", by_hand(current_step_index=3)))
        await asyncio.sleep(0)
        other.execute("COMMIT")
        await saving

    wait(backend.close())
    patient = SQLiteBackend(file, busy_timeout=30)
    other.execute("ROLLBACK")
    other.execute("BEGIN IMMEDIATE")
    asyncio.run(wait_for_it())
    state = wait(patient.load_state("r"))
    assert state is not None and state["current_step_index"] == 3
    wait(patient.close())
    other.close()


# Migration.


def test_migration(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of an older schema is brought to this one, step by step, with its runs; then it is of the newer one."""
    written(file)
    migrations = {
        3: "CREATE TABLE flujo_extra (\n    id INTEGER PRIMARY KEY, -- a comment; with a semicolon\n"
        "    t TEXT\n) STRICT;\n",
        4: "INSERT INTO flujo_extra (t) VALUES ('a;b');\nCREATE INDEX flujo_extra_t ON flujo_extra (t)",
    }
    with monkeypatch.context() as newer:
        newer.setattr(opening, "SCHEMA_VERSION", 5)
        newer.setattr(opening, "MIGRATIONS", migrations)
        assert load(file)["last_step_output"] == ["a"]
        assert load(file)["last_step_output"] == ["a"]
        assert query(file, "SELECT t FROM flujo_extra") == [("a;b",)]
        assert query(file, "SELECT count(*) FROM sqlite_schema WHERE name = 'flujo_extra_t'") == [(1,)]
        assert ("schema_version", "5") in query(file, "SELECT * FROM flujo_meta")
        assert query(file, "PRAGMA integrity_check") == [("ok",)]
    refused(file, StoreFormatError, "newer flujo")


def test_a_migration_that_fails(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves the store as it was, to be opened by the version before."""
    written(file)
    before = dump(file)
    with monkeypatch.context() as newer:
        newer.setattr(opening, "SCHEMA_VERSION", 4)
        newer.setattr(
            opening, "MIGRATIONS", {3: "CREATE TABLE flujo_extra (id INTEGER);\nINSERT INTO nowhere VALUES (1);\n"}
        )
        for _ in range(2):
            with pytest.raises(StateError):
                load(file)
    assert dump(file) == before
    assert load(file)["last_step_output"] == ["a"]


def test_a_changed_store_is_not_migrated(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First it must be what flujo made."""
    written(file)
    query(file, "CREATE TRIGGER t AFTER INSERT ON flujo_log BEGIN SELECT 1; END")
    monkeypatch.setattr(opening, "SCHEMA_VERSION", 4)
    monkeypatch.setattr(opening, "MIGRATIONS", {3: "CREATE TABLE flujo_extra (id INTEGER);"})
    refused(file, StoreFormatError, "schema")


def test_the_file_is_left_whole(file: Path) -> None:
    """After the last backend is closed the file alone holds everything."""
    written(file, created_at=T0)
    names = {path.name for path in file.parent.iterdir()}
    assert names <= {"runs.db", "runs.db-flujo"}
    copy = file.parent / "copy.db"
    copy.write_bytes(file.read_bytes())
    assert load(copy)["created_at"] == T0
