"""Copying and checking a SQLite file while it is in use, on a connection of its own."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from flujo.errors import ConfigurationError
from flujo.state.backends.sqlite.connection import mapped


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
        part.unlink(missing_ok=True)
        raise mapped(error, target) from error


def integrity(path: str) -> list[str]:
    """Return what SQLite's own integrity check finds; an empty list is good."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check(20)")]
    except sqlite3.Error as error:
        return [str(mapped(error, path))]
    return [] if found == ["ok"] else found


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
