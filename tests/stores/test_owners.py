"""Who lives: what an owner's lock, boot, machine and lease say of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flujo.errors import RunInProgressError
from flujo.state.backends import _sidecar
from flujo.state.backends._sidecar import boot_id, machine_id
from flujo.state.backends.sqlite import tx
from tests.support.backends import query
from tests.support.disks import KINDS, Disk
from tests.support.saves import saved, take, wait

ROOT = Path(__file__).parents[2]
LEASE_S = tx.LEASE_US / 1e6
OURS, OTHER, NONE = "this machine", "another machine", ""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    found = Disk("sqlite", tmp_path)
    yield found
    found.close()


def gone(disk: Disk, *, machine: str, boot: str, beat_s: float) -> None:
    """Make a run whose owner, number 777, beat so many seconds ago, and is no process that runs now."""
    backend = disk.open()
    wait(backend.save_state("r", saved(take(backend), 1)))
    disk.close()
    at = time.time_ns() // 1000 - int(beat_s * 1e6)
    query(disk.path, "INSERT INTO flujo_owner VALUES (777, ?, ?, 'far', 1, ?, ?)", machine, boot, at, at)
    query(disk.path, "UPDATE flujo_run SET owner = 777, fence = 1")


@pytest.mark.parametrize(
    ("here", "machine", "boot", "beat_s", "lives"),
    [
        (OURS, OURS, "now", 0, False),  # it died a moment ago
        (OURS, OURS, "before", 0, False),  # and then the machine was switched on again
        (OURS, OURS, "before", -3600, False),  # and has put its clock right
        (OURS, OTHER, "now", 0, False),  # in a container with an id of its own, under this kernel
        (OURS, NONE, "now", 0, False),  # in one without
        (OURS, OTHER, "before", LEASE_S - 20, True),  # who knows
        (OURS, OTHER, "before", LEASE_S + 1, False),
        (NONE, NONE, "before", LEASE_S - 20, True),  # that two have no id does not make them the same
        (NONE, NONE, "before", LEASE_S + 1, False),
        (OURS, NONE, "before", LEASE_S - 20, True),
        (NONE, OURS, "before", LEASE_S - 20, True),
    ],
)
def test_an_owner_whose_lock_is_free(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, here: str, machine: str, boot: str, beat_s: float, lives: bool
) -> None:
    """It is dead at once if it was of this boot, or of this machine; only of another machine its lease decides."""
    monkeypatch.setattr(tx, "machine_id", lambda: here)
    monkeypatch.setattr(tx, "boot_id", lambda: "now")
    gone(disk, machine=machine, boot=boot, beat_s=beat_s)
    backend = disk.open()
    if lives:
        with pytest.raises(RunInProgressError, match="process 1 on far"):
            take(backend)
    else:
        claim = take(backend)
        assert claim.fence is not None and claim.crashes == 1
    left = query(disk.path, "SELECT count(*) FROM flujo_owner WHERE id = 777")
    assert left == [(int(lives),)]  # whoever enters forgets the dead


CHILD = """
import sys
from pathlib import Path
from tests.support.disks import Disk
from tests.support.saves import saved, take, wait
from flujo import FileBackend, SQLiteBackend

backend = (SQLiteBackend if {kind!r} == "sqlite" else FileBackend)({path!r}, durability="process")
claim = take(backend)
wait(backend.save_state("r", saved(claim, 1)))
print("owned", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(disk: Disk) -> Iterator[subprocess.Popen[str]]:
    """Run a process that owns the run `r`, saved once."""
    code = CHILD.format(kind=disk.kind, path=str(disk.path))
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == "owned\n"
            yield child
        finally:
            child.kill()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_owner_whose_lock_is_held(kind: str, tmp_path: Path) -> None:
    """It lives, whatever its boot and machine are called and however old its lease is; killed, it is dead at once."""
    disk = Disk(kind, tmp_path)
    with another_process(disk) as child:
        backend = disk.open()
        for machine, boot in ((machine_id(), "another"), ("another", "another"), ("", boot_id())):
            if kind == "sqlite":
                query(disk.path, "UPDATE flujo_owner SET machine = ?, boot = ?, beat_at = 0", machine, boot)
            with pytest.raises(RunInProgressError, match=f"process {child.pid} on "):
                take(backend)
            with pytest.raises(RunInProgressError):
                asyncio.run(backend.delete_state("r"))
        child.kill()
        child.wait(20)
        if kind == "sqlite":
            now = time.time_ns() // 1000
            query(disk.path, "UPDATE flujo_owner SET machine = ?, boot = 'x', beat_at = ?", machine_id() or "x", now)
        if kind == "file" or machine_id():
            claim = take(backend)
            assert claim.fence is not None and claim.crashes == 1
    disk.close()


ID = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("etc", "dbus", "named"),
    [
        (ID + "\n", None, True), (None, ID, True), ("", ID, True), (None, None, False), ("", "", False),
        ("uninitialized\n", None, False), (ID[:-1], None, False), (ID + ID, None, False), ("ä", None, False),
    ],
)  # fmt: skip
def test_the_machines_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, etc: str | None, dbus: str | None, named: bool
) -> None:
    """It is a digest of the one that the system gives it, or nothing: what an image holds is often no id."""
    places = {"/etc/machine-id": tmp_path / "etc", "/var/lib/dbus/machine-id": tmp_path / "dbus"}
    for path, text in zip(places.values(), (etc, dbus), strict=True):
        if text is not None:
            path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(_sidecar, "Path", places.get)
    found = machine_id.__wrapped__()
    assert bool(found) is named and ID not in found
    if named:
        assert found == machine_id.__wrapped__() and len(found) == 32
