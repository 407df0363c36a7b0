"""Opening a SQLite file: what it must be, what it must hold, and what SQLite's errors mean."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import get_data

from flujo.errors import (
    FlujoError,
    SaveError,
    StateCorruptedError,
    StoreBusyError,
    StoreFormatError,
    StoreUnavailableError,
)  # fmt: skip
from flujo.state.backends._loading import located


def _script(name: str) -> str:
    return (get_data(__name__, name) or b"").decode()


SCHEMA_VERSION = 3
# How to come from each older version to the next: SQL by the version that it starts from. New stores go the same way.
MIGRATIONS: dict[int, str] = {1: _script("mail.sql"), 2: _script("fork.sql")}
Connect = Callable[[str], sqlite3.Connection]
_PREFIX = "flujo_"


def connect(path: str) -> sqlite3.Connection:
    """Open the file with the interpreter's own SQLite, in autocommit, usable from any thread."""
    return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256)


def check_writable(path: str) -> None:
    """Raise PermissionError where the file may only be read: SQLite would leave a log beside it that is like it."""
    if Path(path).exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def check_whole(path: str) -> None:
    """Raise StateCorruptedError where the end of the file is gone: SQLite notices when it comes to a page that is."""
    try:
        with Path(path).open("rb") as file:
            header = file.read(100)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return
    page_size, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
    known = len(header) == 100 and header[24:28] == header[92:96]  # else an old SQLite wrote, which did not count them
    if known and size < pages * (65536 if page_size == 1 else page_size) and not Path(path + "-wal").exists():
        raise StateCorruptedError(
            f"The database is cut off: of {pages} pages {size} bytes are left ({path}).",
            hint="Restore it from a backup.",
            path=path,
        )


def prepare(connection: sqlite3.Connection, path: str, durability: str) -> None:
    """Set the connection up and bring the schema to this version; the write lock is held.

    Raises StoreFormatError, StoreBusyError, StoreUnavailableError.
    """
    execute = connection.execute
    if execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        mode = execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise StoreUnavailableError(
                f"{path} cannot use a write-ahead log (its journal mode stays {mode!r}).",
                hint="Put the file on a local disk.",
                path=path,
            )
    execute(f"PRAGMA synchronous={durability}")
    for pragma in ("wal_autocheckpoint=0", "trusted_schema=OFF", "cell_size_check=ON", "temp_store=MEMORY"):
        execute(f"PRAGMA {pragma}").fetchall()
    if sys.platform == "darwin":
        execute("PRAGMA fullfsync=ON")
        execute("PRAGMA checkpoint_fullfsync=ON")
    execute("BEGIN IMMEDIATE")
    try:
        _bring_schema(connection, path)
        execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            execute("ROLLBACK")
        raise


def _bring_schema(connection: sqlite3.Connection, path: str) -> None:
    execute = connection.execute
    there = execute("SELECT sql FROM sqlite_schema WHERE name = 'flujo_meta'").fetchone()
    if there is None or "value TEXT NOT NULL" not in " ".join(str(there[0]).split()):
        if execute(
            "SELECT 1 FROM sqlite_schema WHERE name LIKE 'flujo@_%' ESCAPE '@' OR name = 'workflow_state'"
        ).fetchone():
            raise StoreFormatError(
                f"{path} has tables that are called like flujo's, but is no flujo store.",
                hint="Use another file, or rename those tables.",
                path=path,
            )
        for script in (_script("schema.sql"), *(MIGRATIONS[step] for step in range(1, SCHEMA_VERSION))):
            _run_script(connection, script)
        _stamp(connection)
        return
    found = execute("SELECT value FROM flujo_meta WHERE name = 'schema_version'").fetchone()
    version = int(found[0]) if found and re.fullmatch("[0-9]{1,9}", str(found[0])) else 0
    if version > SCHEMA_VERSION:
        raise StoreFormatError(
            f"{path} was written by a newer flujo (schema {version}; this one knows {SCHEMA_VERSION}).",
            hint="Upgrade flujo; nothing was changed.",
            path=path,
            schema_version=version,
        )
    stored = execute("SELECT value FROM flujo_meta WHERE name = 'schema_digest'").fetchone()
    if version < 1 or stored is None or stored[0] != _digest(connection):
        raise StoreFormatError(
            f"The schema of {path} is not the one that flujo made: a table, trigger or view of its was changed.",
            hint="Restore the file from a backup, or copy the runs you need out of it with plain SQL.",
            path=path,
        )
    if version < SCHEMA_VERSION:
        for step in range(version, SCHEMA_VERSION):
            _run_script(connection, MIGRATIONS[step])
        _stamp(connection)


def _stamp(connection: sqlite3.Connection) -> None:
    facts = {"schema_version": str(SCHEMA_VERSION), "schema_digest": _digest(connection)}
    connection.executemany("INSERT OR REPLACE INTO flujo_meta VALUES (?, ?)", facts.items())


def _digest(connection: sqlite3.Connection) -> str:
    """Digest every definition that is flujo's or hangs on one of flujo's tables (a trigger, say)."""
    rows = connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema"
        " WHERE name LIKE 'flujo@_%' ESCAPE '@' OR tbl_name LIKE 'flujo@_%' ESCAPE '@'"
        " OR name = 'workflow_state' OR tbl_name = 'workflow_state' ORDER BY type, name"
    ).fetchall()
    return hashlib.blake2b(repr(rows).encode(), digest_size=16).hexdigest()


def _run_script(connection: sqlite3.Connection, script: str) -> None:
    """Execute the statements one by one: `executescript` would commit the transaction that we are in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    if statement.strip():  # the last one, without its semicolon
        connection.execute(statement)


def is_busy(error: BaseException) -> bool:
    """Return whether the error says that somebody else holds the database locked."""
    return isinstance(error, sqlite3.OperationalError) and _code(error) in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    )


def _code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0) or 0
    return code & 0xFF


def mapped(error: BaseException, path: str) -> BaseException:
    """Return the flujo error for an error of SQLite or the operating system; others are returned as they are."""
    if isinstance(error, FlujoError):
        return located(error, path)
    if isinstance(error, OverflowError):  # a number that SQLite cannot hold: a key that was altered
        damaged = StateCorruptedError(f"A stored number is out of range ({path}: {error}).", path=path)
        damaged.__cause__ = error
        return damaged
    if not isinstance(error, (sqlite3.Error, OSError, UnicodeDecodeError)):
        return error
    kind, what, hint = _meaning(error, path)
    result = kind(f"{what} ({path}: {error}).", hint=hint, path=path)
    result.__cause__ = error
    return result


def _meaning(error: sqlite3.Error | OSError | UnicodeDecodeError, path: str) -> tuple[type[FlujoError], str, str]:
    code = _code(error) if isinstance(error, sqlite3.Error) else 0
    if code == sqlite3.SQLITE_NOTADB or str(error) == "unsupported file format":
        return (
            StoreFormatError,
            "The file is no SQLite database",
            "Give the path of a flujo store, or of no file yet.",
        )
    # The module decodes text, and SQLite's messages about a damaged schema, as UTF-8.
    if code == sqlite3.SQLITE_CORRUPT or "decode" in str(error):
        return (
            StateCorruptedError,
            "The database is damaged",
            "Restore it from a backup; `PRAGMA integrity_check` says more.",
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return (
            StoreBusyError,
            "Another program holds the database locked",
            "End its transaction; the run goes on from its last saved step.",
        )
    if code == sqlite3.SQLITE_READONLY or isinstance(error, PermissionError):
        return (
            StoreUnavailableError,
            "The database cannot be written",
            "Give this user write permission on the file, its -wal and -shm, and their folder.",
        )
    if code == sqlite3.SQLITE_FULL:
        return SaveError, "The disk is full", "Make room; the run goes on from its last saved step."
    if code == sqlite3.SQLITE_CANTOPEN or isinstance(error, OSError):
        reason = _why_not(path)
        return (
            StoreUnavailableError,
            f"The database cannot be opened{reason}",
            "Check the path and its permissions.",
        )
    if code == sqlite3.SQLITE_ERROR and str(error).startswith("no such "):
        return (
            StoreFormatError,
            "The schema is not the one that flujo made",
            "Restore the file from a backup, or copy the runs you need out of it with plain SQL.",
        )
    if code == sqlite3.SQLITE_IOERR:
        return (
            SaveError,
            "The system refused to read or write the database",
            "See that the disk has room and is sound; the run goes on from its last saved step.",
        )
    return SaveError, "SQLite failed", "See the cause; the run goes on from its last saved step."


def _why_not(path: str) -> str:
    where = Path(path)
    with contextlib.suppress(OSError):
        if not where.parent.is_dir():
            return f": the folder {where.parent} does not exist"
        return ": it is a folder" if where.is_dir() else ""
    return ""
