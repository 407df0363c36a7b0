"""A fork server for the module; a switchboard and a folder for the test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.crash_forks import Forks, Switchboard, switchboard


@pytest.fixture(scope="module")
def forks() -> Generator[Forks, None, None]:
    server = Forks()
    yield server
    server.close()


@pytest.fixture
def board() -> Generator[Switchboard, None, None]:
    with switchboard() as found:
        yield found


@pytest.fixture
def tmp_path(tmp_path: Path) -> Generator[Path, None, None]:
    """A folder in memory where there is one: a killed process loses nothing that the kernel has, synced or not."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="flujo-", dir="/dev/shm") as folder:
        yield Path(folder)
