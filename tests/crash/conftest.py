"""A fork server for the module, a switchboard for the test."""

from __future__ import annotations

from collections.abc import Generator

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
