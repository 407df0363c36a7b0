"""Copying and checking a SQLite file while it is in use, on a connection of its own."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from flujo.errors import ConfigurationError, StoreUnavailableError
from flujo.state.backends.sqlite.connection import Connect, mapped
from flujo.state.backends.sqlite.tx import SQLiteTx

T = TypeVar("T")


def backup(source: str, target: str) -> None:
    """Copy the store as of one moment, without keeping any writer waiting; the copy is complete or not there at all.

    Raises ConfigurationError where `target` exists.
    """
    goal = Path(target)
    if goal.exists():
        raise ConfigurationError(f"{target} exists already.", hint="Give a name that is free.", path=target)
    part = goal.with_name(goal.name + ".part")
    try:
        part.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(source)) as live, contextlib.closing(sqlite3.connect(part)) as copy:
            live.backup(copy)
        _sync(part)
        part.rename(goal)
        _sync(goal.parent)
    except (sqlite3.Error, OSError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise StoreUnavailableError(
            f"The backup {target} could not be written ({error}).",
            hint="Give a path on a disk that has room for it; the store itself is as it was.",
            path=target,
        ) from error


class Survey:
    """A connection for readings that may take long: no save waits for them."""

    def __init__(self, path: str, connect: Connect) -> None:
        self._path = path
        self._using = threading.Lock()
        self._connection = connect(path)
        try:
            for pragma in ("query_only=ON", "trusted_schema=OFF", "cell_size_check=ON", "busy_timeout=5000"):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
        except BaseException:
            self._connection.close()
            raise

    def read(self, work: Callable[[Any], T]) -> T:
        """Run `work` on a view of the store as of one moment."""
        with self._using:
            try:
                self._connection.execute("BEGIN")
                try:
                    return work(SQLiteTx(self._connection))
                finally:
                    self._connection.execute("COMMIT")
            except Exception as error:
                raise mapped(error, self._path) from error

    def close(self) -> None:
        """Close the connection; a reading that is under way ends with an error."""
        self._connection.interrupt()
        with self._using:
            self._connection.close()


def integrity(path: str) -> list[str]:
    """Return what SQLite's own integrity check finds, and what has no run; an empty list is good."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
            lost = connection.execute(
                "SELECT DISTINCT seq >> 24 FROM flujo_log WHERE seq >> 24 NOT IN (SELECT key FROM flujo_run)"
                " AND seq >> 24 NOT IN (SELECT parent FROM flujo_fork) LIMIT 20"  # what a fork shares stays
            )
            found += [f"{path}: there are saves of a run number {key}, but no such run." for (key,) in lost]
            lost = connection.execute(
                "SELECT DISTINCT run FROM flujo_mail WHERE run NOT IN (SELECT key FROM flujo_run) LIMIT 20"
            )
            found += [f"{path}: there are messages to a run number {key}, but no such run." for (key,) in lost]
    except sqlite3.Error as error:
        return [str(mapped(error, path))]
    return found


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
