"""Every backend that comes with flujo passes the whole suite."""

from __future__ import annotations

from pathlib import Path

from flujo import FileBackend, InMemoryBackend, SQLiteBackend, StateBackend
from flujo.testing import BackendSuite


class TestInMemory(BackendSuite):
    durable = False
    fenced = reads = True

    def make(self, place: Path) -> StateBackend:
        return InMemoryBackend()


class TestSQLite(BackendSuite):
    fenced = reads = True

    def make(self, place: Path) -> StateBackend:
        return SQLiteBackend(place / "runs.db")


class TestFile(BackendSuite):
    fenced = reads = True

    def make(self, place: Path) -> StateBackend:
        return FileBackend(place / "runs")
