"""Runs in this process's memory: for tests and demos; gone when the process ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from flujo.errors import BackendClosedError
from flujo.state.backends import _ledger
from flujo.state.backends._ledger import Held, Save
from flujo.state.backends._log import LogBackend, Store
from flujo.state.backends._rowstore import RowTx
from flujo.state.codec import Codec

T = TypeVar("T")


class InMemoryBackend(LogBackend):
    """Keeps runs in memory, encoded exactly as the other backends encode them.

    Arguments: `codec` sets limits other than the default ones.
    """

    def __init__(self, *, codec: Codec | None = None) -> None:
        super().__init__(codec)
        self._memory = MemoryStore()

    def _store(self) -> Store:
        if self._memory.closed:
            raise BackendClosedError("The InMemoryBackend is closed.", hint="Make a new one; its runs are gone.")
        return self._memory

    async def close(self) -> None:
        """Drop all runs; using the backend afterwards is an error."""
        self._memory = MemoryStore(closed=True)


class MemoryStore:
    """A store whose transactions are single calls under a lock."""

    def __init__(self, closed: bool = False) -> None:
        self.held: dict[str, Held] = {}
        self.closed = closed
        self._lock = threading.RLock()
        self._tx = RowTx()

    async def read(self, run_id: str | None, work: Callable[[Any], T]) -> T:
        """Run `work` on a consistent view of the store."""
        with self._lock:
            return work(self._tx)

    async def write(
        self,
        run_id: str | None,
        work: Callable[[Any], T],
        *,
        peek: Callable[[Any], T | None] | None = None,
        undo: Callable[[], None] | None = None,
        inline: bool = False,
    ) -> T:
        """Run `work`, which checks before it changes anything."""
        with self._lock:
            return work(self._tx)

    async def append(self, save: Save) -> None:
        """Write a prepared save."""
        with self._lock:
            _ledger.write(self._tx, save)

    def look(self, run_id: str) -> None:
        """Wake the run's owner: there is no knowing what was posted before it asked."""
        held = self.held.get(run_id)
        if held is not None:
            held.ring()

    def soon(self, run_id: str | None, work: Callable[[Any], object]) -> None:
        """Run `work` now: nothing here takes long."""
        with self._lock:
            work(self._tx)
