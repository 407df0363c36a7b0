"""What stores take on the disk, and copies of those that are folders."""

from __future__ import annotations

import contextlib
import heapq
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flujo.cli.progress import Report
from flujo.cli.store import LOCKS
from flujo.errors import ConfigurationError, FlujoError, StoreUnavailableError
from flujo.state.backends._log import LogBackend
from flujo.state.backends.file import FileBackend
from flujo.state.backends.file.format import decoded, file_name
from flujo.state.backends.sqlite import SQLiteBackend
from flujo.state.backends.sqlite.connection import connect, mapped

_RANGE = 5000  # runs that are measured in one reading
_BESIDE = {"database": "", "log (wal)": "-wal", "index of the log": "-shm"}
# What a run takes: the bytes of its rows, without what the b-trees around them take.
_PARTS = {
    "run": "SELECT sum(length(run_id) + length(pipeline_name) + coalesce(length(error_message), 0) + 100)"
           " FROM flujo_run WHERE key = :key",
    "input": "SELECT sum(coalesce(length(input), 0) + coalesce(length(fingerprint), 0)) FROM flujo_start"
             " WHERE key = :key",
    "steps": "SELECT sum(coalesce(length(records), 0) + coalesce(length(output), 0) + 60) FROM flujo_log"
             " WHERE seq > :key << 24 AND seq < (:key + 1) << 24",
    "context": "SELECT sum(coalesce(length(delta), 0) + length(ctx)) FROM flujo_log"
               " WHERE seq > :key << 24 AND seq < (:key + 1) << 24",
    "snapshots": "SELECT sum(length(text)) FROM flujo_snapshot WHERE seq > :key << 24 AND seq < (:key + 1) << 24",
    "other": "SELECT sum(coalesce(length(rest), 0) + length(sum)) FROM flujo_log"
             " WHERE seq > :key << 24 AND seq < (:key + 1) << 24",
    "messages": "SELECT sum(coalesce(length(body), 0) + length(id) + 60) FROM flujo_mail WHERE run = :key",
}  # fmt: skip
_SIZES = """
SELECT seq >> 24, sum(coalesce(length(records), 0) + coalesce(length(output), 0) + coalesce(length(delta), 0)
                      + coalesce(length(rest), 0) + length(ctx) + length(sum) + 60)
FROM flujo_log WHERE seq >= :first << 24 AND seq < :last << 24 GROUP BY 1
UNION ALL
SELECT seq >> 24, sum(length(text)) FROM flujo_snapshot WHERE seq >= :first << 24 AND seq < :last << 24 GROUP BY 1
UNION ALL
SELECT key, coalesce(length(input), 0) + coalesce(length(fingerprint), 0)
FROM flujo_start WHERE key >= :first AND key < :last
"""


@contextlib.contextmanager
def looking(path: Path) -> Iterator[sqlite3.Connection]:
    """Give a connection that only reads; errors are flujo's."""
    try:
        connection = connect(str(path))
        try:
            connection.execute("PRAGMA query_only=ON")
            connection.execute("PRAGMA busy_timeout=5000")
            yield connection
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise mapped(error, str(path)) from error


def store_files(backend: LogBackend) -> dict[str, int]:
    """Return the files of a store, and how many bytes each has; of a folder the sum."""
    found: dict[str, int] = {}
    if isinstance(backend, SQLiteBackend):
        for suffix in _BESIDE.values():
            with contextlib.suppress(OSError):
                path = backend.path.with_name(backend.path.name + suffix)
                found[path.name] = path.stat().st_size
    elif isinstance(backend, FileBackend):
        found[backend.path.name or str(backend.path)] = sum(count for _, count in _listed(backend.path))
    return found


def _listed(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError):  # it was deleted meanwhile
            yield path, path.stat().st_size


def run_size(backend: LogBackend, run_id: str) -> dict[str, int]:
    """Return how many bytes a run takes, by what they are for."""
    if isinstance(backend, FileBackend):
        return {"file": (backend.path / file_name(run_id)).stat().st_size}
    if not isinstance(backend, SQLiteBackend):
        raise ConfigurationError(f"{type(backend).__name__} cannot be measured.", hint="")
    with looking(backend.path) as connection:
        (key,) = connection.execute("SELECT key FROM flujo_run WHERE run_id = ?", (run_id,)).fetchone()
        return {name: connection.execute(sql, {"key": key}).fetchone()[0] or 0 for name, sql in _PARTS.items()}


def sizes(backend: LogBackend, limit: int, report: Report) -> tuple[int, list[tuple[str, int]]]:
    """Return how many runs there are, and the largest of them with their bytes."""
    if isinstance(backend, FileBackend):
        files = list(_listed(backend.path))
        largest = heapq.nlargest(limit, files, key=lambda pair: pair[1])
        return len(files), [(path.name.removesuffix(".json"), count) for path, count in largest]
    if not isinstance(backend, SQLiteBackend):
        raise ConfigurationError(f"{type(backend).__name__} cannot be measured.", hint="")
    with looking(backend.path) as connection:
        return _sizes(connection, limit, report)


def _sizes(connection: sqlite3.Connection, limit: int, report: Report) -> tuple[int, list[tuple[str, int]]]:
    runs = connection.execute("SELECT count(*) FROM flujo_run").fetchone()[0]
    newest = connection.execute("SELECT max(key) FROM flujo_run").fetchone()[0] or 0
    largest: list[tuple[int, int]] = []
    for first in range(1, newest + 1, _RANGE):  # one reading at a time: no save waits for all of them
        found: dict[int, int] = {}
        for key, count in connection.execute(_SIZES, {"first": first, "last": first + _RANGE}):
            found[key] = found.get(key, 0) + count
        largest = heapq.nlargest(limit, [*largest, *((count, key) for key, count in found.items())])
        report(min(first + _RANGE, newest), newest)
    names: list[tuple[str, int]] = []
    for count, key in largest:
        row: Any = connection.execute("SELECT run_id FROM flujo_run WHERE key = ?", (key,)).fetchone()
        names += [(row[0], count)] if row else []
    return runs, names


def copied(folder: Path, goal: Path, report: Report) -> None:
    """Copy a store that is a folder, complete or not at all. Each run is as of one moment, all together are not.

    Raises ConfigurationError where `goal` exists, StoreUnavailableError where it cannot be written.
    """
    if goal.exists():
        raise ConfigurationError(f"{goal} exists already.", hint="Give a name that is free.", path=str(goal))
    part = goal.with_name(goal.name + ".part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        files, newest = list(_listed(folder)), 0
        for number, (path, _) in enumerate(files, start=1):
            with contextlib.suppress(FileNotFoundError):  # it was deleted meanwhile
                newest = max(newest, _copy(path, part / path.name))
            report(number, len(files))
        _write(part / LOCKS, b"%020d" % newest)  # no owner to come may have the number of one in these files
        _sync(part)
        part.rename(goal)
        _sync(goal.parent)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise StoreUnavailableError(
            f"The copy {goal} could not be written ({error}).", hint="Give a path on a disk that has room for it.",
            path=str(goal),
        ) from error  # fmt: skip


def _copy(source: Path, target: Path) -> int:
    """Copy a run's file; return the largest number of an owner in it, as far as it can be read."""
    content = source.read_bytes()
    _write(target, content)
    with contextlib.suppress(FlujoError):  # it is copied as it is
        found = decoded(content, str(source))
        return max(int((found.owner or {}).get("id", 0)), (found.run.fence or 0) >> 32)
    return 0


def _write(target: Path, content: bytes) -> None:
    target.write_bytes(content)
    _sync(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
