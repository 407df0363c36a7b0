"""A disk that refuses: no permission, no room, no folder, something in the way, a sync that fails.

The error says which file and what to do, nothing that was acknowledged is lost, and afterwards the run goes on.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path

import pytest

from flujo.errors import ConfigurationError, SaveError, StateError, StoreUnavailableError
from tests.support.crash_forks import Forks
from tests.support.disks import Disk, explains

PERMISSIONS = {
    "sqlite": [
        "new:0555", "new:0000", ".:0000", "runs.db:0000", "runs.db:0444", "runs.db,runs.db-flujo,.:0555",
        "runs.db-flujo:0000", "runs.db-flujo:0444",
    ],
    "file": [
        "new:0555", "new:0000", ".:0000", "runs:0000", "runs:0555", "runs:0444", "runs/r.json:0000",
        "runs/.flujo-locks:0000", "runs/.flujo-locks:0444",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, cases in PERMISSIONS.items() for case in cases])
def test_without_permission(forks: Forks, kind: str, case: str) -> None:
    """Whatever lacks a permission, the error names it; with the permission the run goes on where it was."""
    forks.join(forks.fork("disk_children:without_permission", kind=kind, case=case))


ROOM = {"sqlite": [0, 1, 5_000, 30_000, 60_000, 90_000, 140_000, 200_000], "file": [0, 19, 500, 5_000, 20_000, 60_000]}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["inline", "async"])
@pytest.mark.parametrize(("kind", "room"), [(kind, room) for kind, rooms in ROOM.items() for room in rooms])
def test_a_full_disk(forks: Forks, tmp_path: Path, kind: str, room: int, how: str) -> None:
    """The save is refused wherever the room ends, and when there is room again the same process goes on."""
    forks.join(forks.fork("disk_children:with_a_full_disk", kind=kind, folder=str(tmp_path), room=room, how=how))


def in_the_way(disk: Disk, name: Path, match: str | None = None) -> StateError:
    """Return the error of a run, which leaves everything as it is."""
    before = disk.tree()
    with pytest.raises(StateError, match=match) as caught:
        disk.run()
    assert explains(caught.value, name) and isinstance(caught.value, StoreUnavailableError), caught.value
    assert disk.calls == [] and disk.tree() - before <= {"disk/runs.db-flujo", "disk/runs/.flujo-locks"}
    return caught.value


def test_the_wrong_kind_of_thing_at_the_path(disk: Disk) -> None:
    """A folder where a database should be, and a file where a folder should be."""
    disk.path.mkdir() if disk.kind == "sqlite" else disk.path.write_text("mine")
    in_the_way(disk, disk.path)
    disk.path.rmdir() if disk.kind == "sqlite" else disk.path.unlink()
    assert disk.run().output == ["a", "b", "c"]


def test_a_file_where_the_folder_above_should_be(disk: Disk) -> None:
    """The path leads through a file."""
    disk.path.parent.rmdir()
    disk.path.parent.write_text("mine")
    in_the_way(disk, disk.path)
    assert disk.path.parent.read_text() == "mine"
    disk.path.parent.unlink()
    disk.path.parent.mkdir()
    assert disk.run().output == ["a", "b", "c"]


def test_something_else_in_the_place_of_the_lock_file(disk: Disk) -> None:
    """A folder by that name."""
    disk.half()
    locks = disk.path.parent / "runs.db-flujo" if disk.kind == "sqlite" else disk.path / ".flujo-locks"
    locks.unlink()
    locks.mkdir()
    in_the_way(disk, locks)
    locks.rmdir()
    disk.goes_on()


def test_a_folder_in_the_place_of_a_run(tmp_path: Path) -> None:
    """It is an error for that run, and no run; others are not concerned."""
    disk = Disk("file", tmp_path)
    disk.run("other")
    disk.calls.clear()
    disk.file("r").mkdir()
    in_the_way(disk, disk.file("r"))
    disk.file("r").rmdir()
    assert disk.run().output == ["a", "b", "c"]
    disk.close()


def test_a_missing_folder(disk: Disk) -> None:
    """A database's folder is not made, since a misspelt path would hide in it; a directory of files is."""
    disk.path.parent.rmdir()
    if disk.kind == "sqlite":
        in_the_way(disk, disk.path, f"the folder {disk.path.parent} does not exist")
        assert disk.tree() == set()
        disk.path.parent.mkdir()
    assert disk.run().output == ["a", "b", "c"]


def test_a_path_that_cannot_be(disk: Disk) -> None:
    """One that holds NUL is refused when the backend is made; one that is too long, by the system."""
    with pytest.raises(ConfigurationError, match="no path"):
        disk.open(disk.root / "a\0b")
    disk.path = disk.root / ("x" * 300)
    with pytest.raises(StateError) as caught:
        disk.run()
    assert explains(caught.value, disk.path)


# --- a sync that fails: files (what a failed commit of SQLite means is shown elsewhere, by cutting its power) ----


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("what", ["file", "directory"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_sync_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, code: int, index: int) -> None:
    """The save of a file that was not synced is refused, and so is one whose name was not; the run goes on.

    A file that was not synced has not taken the old one's place, so its step is done again. Where the directory's sync
    failed the save may be there, which is read again and not guessed.
    """
    disk = Disk("file", tmp_path)
    backend = disk.open(durability="full")
    sync = os.fsync

    def failing(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if len(disk.calls) == index + 1 and folder == (what == "directory"):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", failing)
        with pytest.raises(SaveError) as caught:
            disk.run(backend=backend)
    assert explains(caught.value, disk.file() if what == "file" else disk.path)
    disk.close()  # so that nothing is being given back any more
    done = ["a", "b", "c"][: index + 1]
    assert disk.calls == done
    assert not list(disk.path.glob("*.part")) and not list(disk.path.glob(".*.part"))
    again = done[-1:] if what == "file" else []
    result = disk.run()
    assert result.output == ["a", "b", "c"]
    assert disk.calls == done + again + ["a", "b", "c"][index + 1 :]
    disk.close()
    assert asyncio.run(disk.open().load_state("r"))["status"] == "completed"
    disk.close()
