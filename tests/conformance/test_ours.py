"""Every backend that comes with flujo passes the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from flujo import FileBackend, InMemoryBackend, SQLiteBackend, StateBackend
from flujo.testing import BackendSuite
from tests.support import postgres


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


class TestPostgres(BackendSuite):
    fenced = reads = True

    @pytest.fixture(autouse=True)
    def _server(self) -> None:
        postgres.dsn()  # the first one starts it, which takes longer than a test may

    def make(self, place: Path) -> StateBackend:
        return postgres.backend_of(place)
