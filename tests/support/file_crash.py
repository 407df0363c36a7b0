"""The crash tests' processes on a directory of files: points at the system calls of a save, and the same six steps.

A point's name says where: ``save@3 rename before`` is before the new file takes the old one's place. What a child does
is what it does on SQLite (tests/support/crash_pipeline.py, crash_actors.py), but for the backend.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flujo import FileBackend
from flujo.errors import RunInProgressError
from flujo.state.backends import _rowstore
from flujo.state.backends._sidecar import Sidecar
from flujo.state.backends.file.format import decoded
from tests.support import crash_actors, crash_pipeline
from tests.support.crash_forks import Wire

Points = crash_pipeline.Points
REAL_APPEND = _rowstore.RowTx.append


def watch(points: Points, *, careless: bool = False) -> None:
    """Put points around everything that this process does to files; `careless` is a control that writes in place."""

    def around(owner: Any, name: str, label: Callable[..., str | None]) -> None:
        real = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            what = label(*args, **options)
            if what is None:
                return real(*args, **options)
            points(f"{what} before")
            result = real(*args, **options)
            points(f"{what} after")
            return result

        setattr(owner, name, watched)

    around(os, "fsync", lambda fd: "fsync directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "fsync file")
    around(os, "pwrite", lambda *_: "draw")
    around(Path, "rename", lambda *_: "rename")
    around(Path, "unlink", lambda *_, **__: "unlink")
    around(Sidecar, "lock", lambda *_, **__: "lock")
    around(Sidecar, "unlock", lambda *_: "unlock")
    around(Sidecar, "hold", lambda *_: "hold")
    opened = Path.open

    def watched_open(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode != "wb":
            return opened(path, mode, *args, **options)
        points("open before")
        if careless:
            path = path.with_name(path.name[1:].rsplit(".", 2)[0])
        file = Halting(opened(path, "wb", buffering=0), points)
        points("open after")
        return file

    Path.open = watched_open  # type: ignore[assignment, method-assign]
    if careless:
        Path.rename = lambda self, target: target  # type: ignore[assignment, method-assign, return-value]


class Halting(io.RawIOBase):
    """A file whose writes have a point in their middle."""

    def __init__(self, file: Any, points: Points) -> None:
        self._file, self._points = file, points

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self._points("write before")
        self._file.write(data[:half])
        self._points("write within")
        self._file.write(data[half:])
        self._points("write after")
        return len(data)

    def fileno(self) -> int:
        number: int = self._file.fileno()
        return number

    def close(self) -> None:
        self._file.close()
        super().close()


class Stock(FileBackend):
    """Takes the place of SQLiteBackend in the child: `connect` is a method of the child, whose points are put there."""

    careless = False

    def __init__(self, store: str, *, connect: Any = None, busy_timeout: float = 0) -> None:
        super().__init__(store)
        if connect is not None:
            watch(connect.__self__.points, careless=self.careless)


class Acknowledging(Stock):
    """See crash_pipeline.Acknowledging."""

    child: crash_pipeline.Child

    async def claim(self, run_id: str, *args: Any, **options: Any) -> Any:
        claim = await super().claim(run_id, *args, **options)
        if claim.fence is not None:
            index = claim.state["current_step_index"] if claim.state else 0
            self.child.journal.write("claim", index=index, crashes=claim.crashes)
        self.child.points("made")
        return claim

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        self.child.points("called")
        await super().save_state(run_id, state)
        if state["status"] != "failed":
            self.child.acknowledge(state["current_step_index"] - 1)


class Hasty(Acknowledging):
    """The control: acknowledges first and saves afterwards."""

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        self.child.acknowledge(state["current_step_index"] - 1)
        self.child.points.phase = f"save@{state['current_step_index'] - 1}"
        await Stock.save_state(self, run_id, state)


class Reporting(Acknowledging):
    """See crash_actors.Reporting."""

    line: Wire
    waiting = False

    async def claim(self, run_id: str, *args: Any, **options: Any) -> Any:
        try:
            return await super().claim(run_id, *args, **options)
        except RunInProgressError:
            if self.waiting:
                self.line.say("attached")
            self.waiting = False
            raise


def _on_files() -> None:
    """Let everything in this process, a child, run on files."""
    for module in (crash_pipeline, crash_actors):
        for name, kind in (("SQLiteBackend", Stock), ("Acknowledging", Acknowledging), ("Hasty", Hasty)):
            if hasattr(module, name):
                setattr(module, name, kind)
    crash_actors.Reporting = Reporting  # type: ignore[assignment, misc]
    crash_actors._tamper = tamper


def tamper(boot: str | None, unfenced: str) -> None:
    """Pretend to be on a machine called `boot`, so that other owners are as good as dead, and leave out the fence.

    `unfenced` "fence" leaves out the fence alone, "all" also lets a second save of a step replace the first.
    """
    if boot is not None:
        Sidecar.alive = lambda self, owner: False  # type: ignore[method-assign]  # no lock reaches another machine
    if unfenced:

        def append(self: Any, row: Any, fence: int) -> bool:
            log = self._logs[row.seq >> 24]
            if unfenced == "all":
                del log[(row.seq & 0xFFFFFF) - 1 :]
            return REAL_APPEND(self, row, self._by_key[row.seq >> 24].fence)

        _rowstore.RowTx.append = append  # type: ignore[method-assign]


def attempt(careless: bool = False, **options: Any) -> int:
    _on_files()
    Stock.careless = careless
    return crash_pipeline.attempt(**options)


def fleet(**options: Any) -> None:
    _on_files()
    crash_pipeline.fleet(**options)


def act(**options: Any) -> None:
    _on_files()
    crash_actors.act(**options)


def race(**options: Any) -> None:
    _on_files()
    crash_actors.race(**options)


# --- the test's own end ---


def lying(store: Path) -> list[tuple[str, int, str]]:
    """Return (run_id, index, status) of each run as it lies there; raises StateCorruptedError where one is torn."""
    found = [decoded(path.read_bytes(), str(path)) for path in sorted(store.glob("*.json"))]
    return [(file.run.run_id, file.log[-1].idx, file.run.status) for file in found if file.log]


def saves(store: Path, run_id: str = "run") -> list[tuple[int, str]]:
    """Return index and status of every save of the run."""
    (file,) = (decoded(path.read_bytes(), str(path)) for path in store.glob("*.json") if path.stem.startswith(run_id))
    return [(row.idx, row.status) for row in file.log]


def owner(store: Path, run_id: str = "run") -> Any:
    """Return the owner that the run's file names."""
    path = store / f"{run_id}.json"
    return decoded(path.read_bytes(), str(path)).run.owner
