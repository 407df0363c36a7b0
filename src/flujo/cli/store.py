"""Which store a command works on, and whether there is one: looking at a store that is not there must not make it."""

from __future__ import annotations

import contextlib
import difflib
import os
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flujo.errors import ConfigurationError, StoreFormatError, StoreUnavailableError
from flujo.state.backends._log import LogBackend
from flujo.state.backends.base import StateBackend
from flujo.state.backends.file import FileBackend
from flujo.state.backends.file.writer import _LOCKS
from flujo.state.backends.sqlite import SQLiteBackend
from flujo.state.uri import VARIABLE, open_backend

LOCKS = _LOCKS
_SQLITE = b"SQLite format 3\x00"


def opened(given: str | None, *, make: bool) -> StateBackend:
    """Return the backend that a path or a URI names, by default that of the variable FLUJO_STATE_URI.

    With `make` it may begin a new store. Raises ConfigurationError, StoreUnavailableError, StoreFormatError.
    """
    text = given if given is not None else os.environ.get(VARIABLE, "")
    if not text:
        raise ConfigurationError(
            "No store was named.", hint=f"Give --state runs.db (or a URI: sqlite:///runs.db), or set {VARIABLE}."
        )
    backend = open_backend(text) if "://" in text else _at(Path(text))
    if not make:
        check_there(backend)
    return backend


def _at(path: Path) -> StateBackend:
    return FileBackend(path) if path.is_dir() else SQLiteBackend(path)


def check_there(backend: StateBackend) -> None:
    """Raise where there is no store yet: a backend would make one, if need be in a database that is somebody else's."""
    if isinstance(backend, SQLiteBackend):
        _check_database(backend.path)
    elif isinstance(backend, FileBackend):
        if not backend.path.is_dir():
            raise _nothing_at(backend.path)
        if not (backend.path / _LOCKS).exists():
            raise StoreFormatError(f"{backend.path} is a folder, but no flujo store.", hint=_beside(backend.path))


def _check_database(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise _nothing_at(path) from None
    except OSError:
        return  # what is wrong is told by who opens it
    if head == _SQLITE and not _has_tables(path):
        raise StoreFormatError(f"{path} is a database, but no flujo store.", hint=_beside(path), path=str(path))
    if not head:
        raise StoreFormatError(f"{path} is empty: there is no store in it.", hint=_beside(path), path=str(path))


def _has_tables(path: Path) -> bool:
    with contextlib.suppress(sqlite3.Error):
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5)
        try:
            found = connection.execute("SELECT 1 FROM sqlite_schema WHERE name LIKE 'flujo@_%' ESCAPE '@'").fetchone()
        finally:
            connection.close()
        return found is not None
    return True  # what is wrong is told by who opens it


def _nothing_at(path: Path) -> StoreUnavailableError:
    return StoreUnavailableError(f"There is no store at {path}.", hint=_beside(path), path=str(path))


def _beside(path: Path) -> str:
    """Return what else could have been meant."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = [found.name for found in path.parent.iterdir() if found.suffix in (".db", ".sqlite", ".sqlite3")]
    names = [name for name in names if name != path.name]
    close = difflib.get_close_matches(path.name, names, n=1) or (names if len(names) == 1 else [])
    if close:
        return f"Did you mean {path.parent / close[0]}?"
    return f"Check --state and {VARIABLE}; `flujo run` makes a store."


def reading(backend: StateBackend) -> LogBackend:
    """Return a backend that can list and look; raises ConfigurationError for one that cannot."""
    if isinstance(backend, LogBackend):
        return backend
    raise ConfigurationError(
        f"{type(backend).__name__} cannot list runs, or look at parts of one.",
        hint="A backend with the Reading capability can: SQLiteBackend, FileBackend.",
    )


def sqlite(backend: Any, what: str) -> SQLiteBackend:
    """Return the backend as one on a SQLite file; raises ConfigurationError for another."""
    if isinstance(backend, SQLiteBackend):
        return backend
    raise ConfigurationError(f"{what} works on a SQLite store, not on {type(backend).__name__}.", hint="")
