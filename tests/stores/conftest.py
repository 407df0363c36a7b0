from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flujo import SQLiteBackend
from tests.support.crash_forks import Forks
from tests.support.disks import KINDS, Disk


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: no test here depends on what a sync costs."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="flujo-", dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A place for a store of each kind that lies on disk."""
    found = Disk(request.param, tmp_path)
    yield found
    found.close()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def backend(file: Path) -> Iterator[SQLiteBackend]:
    found = SQLiteBackend(file, durability="process")
    yield found
    asyncio.run(found.close())
