"""Stores of every kind that a run can be kept in, each to be opened as often as a test needs it."""

from __future__ import annotations

import asyncio
import copy
import json
import sqlite3
from pathlib import Path
from typing import Any

from flujo import InMemoryBackend, SQLiteBackend, StateBackend
from flujo.state.backends.file import FileBackend
from tests.support import postgres

OURS = ("memory", "sqlite", "file")
SERVED = (*OURS, "postgres")  # for the tests of the port: a schema for each test takes its time
THEIRS = ("by-reference", "as-text", "copying")
KINDS = OURS + THEIRS


class ByReference(StateBackend):
    """Keeps the very dict that it was handed."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        self.data[run_id] = state

    async def load_state(self, run_id: str) -> dict[str, Any] | None:
        return self.data.get(run_id)

    async def delete_state(self, run_id: str) -> None:
        self.data.pop(run_id, None)


class AsText(ByReference):
    """Keeps text, as a simple file or Redis backend would: whatever JSON lacks becomes a string."""

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        self.data[run_id] = json.dumps(state, default=str)

    async def load_state(self, run_id: str) -> dict[str, Any] | None:
        text = self.data.get(run_id)
        return None if text is None else json.loads(text)


class Copying(ByReference):
    """Copies deeply on the way in and on the way out, and takes its time."""

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        self.data[run_id] = copy.deepcopy(state)
        await asyncio.sleep(0)

    async def load_state(self, run_id: str) -> dict[str, Any] | None:
        await asyncio.sleep(0)
        return copy.deepcopy(self.data.get(run_id))


class Place:
    """One store. Each `open` gives a backend of its own on it, as another process would have (memory: the one)."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.file = folder / "runs.db"
        self.data: dict[str, Any] = {}
        self._memory = InMemoryBackend()
        self._opened: list[StateBackend] = []
        if kind == "postgres":
            postgres.dsn()  # the first one starts the server

    def open(self) -> StateBackend:
        """Return a backend on the store."""
        if self.kind == "memory":
            return self._memory
        if self.kind == "sqlite":
            backend = SQLiteBackend(self.file, durability="process")  # what is tested here does not cut the power
            self._opened.append(backend)
            return backend
        if self.kind == "postgres":
            served = postgres.backend_of(self.file)
            self._opened.append(served)
            return served
        if self.kind == "file":
            files = FileBackend(self.file, durability="process")
            self._opened.append(files)
            return files
        return {"by-reference": ByReference, "as-text": AsText, "copying": Copying}[self.kind](self.data)

    def load(self, run_id: str = "r") -> dict[str, Any]:
        """Return the stored state of a run that is there."""
        state = asyncio.run(self.open().load_state(run_id))
        assert state is not None
        return state

    def put(self, state: dict[str, Any]) -> None:
        """Save a state by hand."""
        asyncio.run(self.open().save_state(state["run_id"], state))

    def contents(self) -> Any:
        """Return all that lies in the store, to be compared."""
        if self.kind == "sqlite":
            return dump(self.file)
        if self.kind == "postgres":
            return postgres.dump(self.file)
        if self.kind == "file":
            return {path.name: path.read_bytes() for path in sorted(self.file.rglob("*.json"))}
        if self.kind == "memory":
            tx = self._memory._memory._tx
            return repr((tx._runs, tx._logs, tx._snapshots, tx._mail))
        return copy.deepcopy(self.data)

    def close(self) -> None:
        """Close every backend that was opened."""
        for backend in self._opened:
            asyncio.run(backend.close())


def dump(file: Path, *tables: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of flujo's tables (all but the owners' and their heartbeat)."""
    connection = sqlite3.connect(file)
    try:
        return {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
            for table in tables
            or ("flujo_meta", "flujo_run", "flujo_start", "flujo_log", "flujo_snapshot", "flujo_mail")
        }
    finally:
        connection.close()


def query(file: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run one statement on the file, commit, and return its rows."""
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=OFF")  # no power is cut here
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()
