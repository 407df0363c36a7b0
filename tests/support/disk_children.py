"""Children of the fork server that meet a disk which refuses them. Each returns 0, or raises what the test shows."""

from __future__ import annotations

import asyncio
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flujo import Flujo, Pipeline, SQLiteBackend, StateBackend, step
from flujo.errors import FlujoError, SaveError, StoreUnavailableError
from flujo.execution.events import Event, StepSaved
from tests.support.disks import Disk, explains

NOBODY = 65534
STEPS = 12


def without_permission(kind: str, case: str) -> int:
    """As a user whom permissions bind: a run is refused, and goes on when it has them again."""
    if os.geteuid() == 0:
        _import_everything(kind)  # nobody may be unable to read the interpreter's own modules
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    with tempfile.TemporaryDirectory(prefix="flujo-") as folder:
        disk = Disk(kind, Path(folder))
        names, mode = case.split(":")
        if names == "new":  # there is no store yet, and none can be made
            refused(disk, [disk.path.parent], int(mode, 8), disk.path)
            assert disk.run().output == ["a", "b", "c"]
        else:
            disk.half()
            places = [disk.path.parent / name for name in names.split(",")]
            refused(disk, places, int(mode, 8), disk.path)
            disk.goes_on()
        disk.close()
    return 0


def _import_everything(kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        disk = Disk(kind, Path(folder))
        disk.half()
        disk.goes_on()
        disk.close()
        (disk.root / "file").touch()
        disk.path = disk.root / "file" / "store"
        with pytest.raises(FlujoError):
            disk.run()
        disk.close()


def refused(disk: Disk, places: list[Path], mode: int, name: Path) -> None:
    """See a run refused while these files have this mode."""
    before = {place: place.stat().st_mode for place in places}
    for place in places:
        place.chmod(mode)
    try:
        with pytest.raises(StoreUnavailableError) as caught:
            disk.run()
    finally:
        for place, was in reversed(before.items()):
            place.chmod(was)
    assert explains(caught.value, name), caught.value
    assert "permission" in str(caught.value).lower(), caught.value
    assert disk.calls == []
    disk.close()


def with_a_full_disk(kind: str, folder: str, room: int, how: str) -> int:
    """Run steps until no file may grow beyond `room` bytes; then, with room again, go on in this process."""
    disk = Disk(kind, Path(folder))
    backend = disk.open(durability="full")
    saved: list[int] = []
    begun: list[int] = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        with pytest.raises((SaveError, StoreUnavailableError)) as caught:
            run(backend, saved, begun, how)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert explains(caught.value, disk.path), caught.value
    assert saved == list(range(len(saved))) and begun in (saved, [*saved, len(saved)])
    before = len(saved)
    found = asyncio.run(backend.load_state("r"))
    there = found["current_step_index"] if found else 0
    assert there in (before, before + 1), (there, before)  # one that was not acknowledged may be there
    begun.clear()
    result = run(backend, saved, begun, how)
    assert begun == list(range(there, STEPS)), (there, begun)
    assert result.output == [f"{number}" * 1500 for number in range(STEPS)]
    assert [record.name for record in result.step_history] == [f"s{number}" for number in range(STEPS)]
    if isinstance(backend, SQLiteBackend):
        assert asyncio.run(backend.check_integrity()) == []
    return 0


def run(backend: StateBackend, saved: list[int], begun: list[int], how: str) -> Any:
    """Run twelve steps, each of which adds 1,500 bytes, and note those that begin and those whose save is known."""

    def heard(event: Event) -> None:
        if isinstance(event, StepSaved):
            saved.append(int(event.result.name[1:]))

    runner = Flujo(pipeline(begun.append), state_backend=backend, hooks=[heard])
    if how == "inline":
        return runner.run([], run_id="r")
    return asyncio.run(_awaited(runner))


async def _awaited(runner: Flujo[Any, Any]) -> Any:
    return await runner.run_async([], run_id="r")


def pipeline(note: Callable[[int], None]) -> Pipeline[Any, Any]:
    def make(number: int) -> Any:
        @step(name=f"s{number}")
        async def add(items: list[str]) -> list[str]:
            note(number)
            return [*items, f"{number}" * 1500]

        return add

    return Pipeline.of(*(make(number) for number in range(STEPS)))
