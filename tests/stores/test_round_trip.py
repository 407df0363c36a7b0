"""Values of every kind come back alike from every store: exact types, by run and by hand, here and elsewhere."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import round_trip
from tests.support.disks import KINDS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["memory", *KINDS])
def test_in_this_process(kind: str, tmp_path: Path) -> None:
    """With the backend that saved them, and with another one on the same store."""
    path = tmp_path / "store"
    backend = round_trip.opened(kind, path)
    round_trip.put(backend)
    assert round_trip.look(backend) == []
    asyncio.run(backend.close())
    if kind != "memory":
        again = round_trip.opened(kind, path)
        assert round_trip.look(again) == []
        asyncio.run(again.close())


def elsewhere(kind: str, path: Path, way: str) -> list[str]:
    """Return what another process says of the store."""
    code = "from tests.support import round_trip; round_trip.main()"
    command = [sys.executable, "-W", "error", "-c", code, kind, str(path), way]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["a pipeline", "register_type"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_new_process(kind: str, way: str, tmp_path: Path) -> None:
    """Where a pipeline or register_type declares the types, they come back, and the run is found completed."""
    backend = round_trip.opened(kind, tmp_path / "store")
    round_trip.put(backend)
    asyncio.run(backend.close())
    assert elsewhere(kind, tmp_path / "store", way) == ["", "completed None None"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_process_that_knows_nothing_of_the_types(kind: str, tmp_path: Path) -> None:
    """They are plain data there, and the state says which types are missing."""
    backend = round_trip.opened(kind, tmp_path / "store")
    round_trip.put(backend)
    asyncio.run(backend.close())
    (line,) = elsewhere(kind, tmp_path / "store", "nothing")
    kind_of_output, *unresolved = line.split()
    assert kind_of_output == "dict"
    assert "tests.support.round_trip:Everything" in unresolved
