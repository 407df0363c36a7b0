"""A place on disk for a store of each kind, and what can be done to it."""

from __future__ import annotations

import asyncio
import os
import unicodedata
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flujo import FileBackend, Flujo, FlujoError, PipelineResult, SQLiteBackend
from flujo.state.backends.file.format import file_name
from tests.support.pipelines import abc, by_hand

KINDS = ("sqlite", "file")
NOW = datetime.now(UTC)


class Disk:
    """A store at `path`, below `root`. `calls` notes the steps that were executed, `broken` are those that fail."""

    def __init__(self, kind: str, root: Path) -> None:
        self.kind = kind
        self.root = root
        self.path = root / "disk" / ("runs.db" if kind == "sqlite" else "runs")
        self.path.parent.mkdir()
        self.calls: list[str] = []
        self.broken: set[str] = set()
        self._opened: list[Any] = []

    def open(self, path: Path | None = None, **options: Any) -> Any:
        """Return a backend on the store."""
        cls: Any = SQLiteBackend if self.kind == "sqlite" else FileBackend
        backend = cls(path or self.path, **{"durability": "process", **options})
        self._opened.append(backend)
        return backend

    def close(self) -> None:
        """Close every backend that was opened, so that the next one opens the store anew."""
        for backend in self._opened:
            asyncio.run(backend.close())
        self._opened.clear()

    def run(self, run_id: str = "r", given: Any = (), backend: Any = None) -> PipelineResult[Any]:
        """Run a >> b >> c on the list that is given."""
        pipeline = abc(_Calls(self))
        return Flujo(pipeline, state_backend=backend or self.open()).run(list(given), run_id=run_id)

    def file(self, run_id: str = "r") -> Path:
        """Return the file that this run lies in."""
        return self.path if self.kind == "sqlite" else self.path / file_name(run_id)

    def half(self, run_id: str = "r") -> Path:
        """Make a run that failed in step b, close the store, and return its file."""
        self.broken = {"b"}
        assert self.run(run_id).status == "failed"
        self.broken = set()
        self.close()
        self.calls.clear()
        return self.file(run_id)

    def goes_on(self, run_id: str = "r") -> None:
        """Let the run that `half` made go on: with b, not with a."""
        result = self.run(run_id)
        assert (result.status, result.output, self.calls) == ("completed", ["a", "b", "c"], ["b", "c"])
        assert [record.name for record in result.step_history] == ["a", "b", "c"]

    def tree(self) -> set[str]:
        """Return every path below the root."""
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}


def old(backend: Any, run_id: str, status: str, age: timedelta, **changes: Any) -> None:
    """Save a run by hand that came to this status so long ago."""
    then = NOW - age
    state = by_hand(run_id=run_id, status=status, **{"created_at": then, "updated_at": then, **changes})
    asyncio.run(backend.save_state(run_id, state))


class _Calls(list[str]):
    """Where a pipeline notes its calls: fails for those that are broken."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def append(self, name: str) -> None:
        if name in self._disk.broken:
            raise ConnectionError(f"{name} is broken")
        self._disk.calls.append(name)


def explains(error: BaseException, *names: object) -> bool:
    """Return whether this is an error of flujo's that names these things and ends with what to do."""
    text = str(error)
    return (
        isinstance(error, FlujoError)
        and all(str(name) in text for name in names)
        and len(error.hint) > 10
        and text.endswith(error.hint)
        and error.hint.endswith(".")
    )


def as_one(name: str) -> str:
    """Return what a file system that folds case and normalises makes of a name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def flip(path: Path, at: int, mask: int = 0xFF) -> None:
    """Change one byte of a file in place."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ mask]))


def replace(path: Path, content: bytes) -> None:
    """Put other content in the place of a file, as a restore does."""
    part = path.with_name(path.name + ".new")
    part.write_bytes(content)
    os.replace(part, path)
