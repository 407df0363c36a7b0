"""Runs in one SQLite file, shared by any number of processes of one machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal, TypeVar

from flujo.errors import ConfigurationError
from flujo.state.backends._admin import AdminQueries
from flujo.state.backends._log import Read
from flujo.state.backends._service import Service
from flujo.state.backends._stores import StoredBackend
from flujo.state.backends.sqlite import upkeep
from flujo.state.backends.sqlite.connection import Connect, connect
from flujo.state.backends.sqlite.writer import Writer
from flujo.state.codec import Codec

__all__ = ["SQLiteBackend"]

T = TypeVar("T")


class SQLiteBackend(StoredBackend, AdminQueries):
    """Keeps runs in one SQLite file (WAL, every save synced), created when it is first used.

    Arguments: `path` of the file; `durability` "full" keeps every acknowledged save through a power cut, "process"
    through the death of the process only; `busy_timeout` in seconds, how long a save waits while another program holds
    the file locked; `codec` sets limits other than the default ones; `connect` opens the connection.
    Works from any thread and event loop, and anew after a process fork. Several backends on one file share one
    connection. Errors: StoreFormatError, StoreBusyError, StoreUnavailableError, StateCorruptedError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Literal["full", "process"] = "full",
        busy_timeout: float = 60.0,
        codec: Codec | None = None,
        connect: Connect = connect,
    ) -> None:
        if str(path) == ":memory:" or not str(path):
            raise ConfigurationError(
                f"SQLiteBackend({str(path)!r}) has no file that could outlive the process.",
                hint="Use InMemoryBackend() where nothing needs to be kept.",
            )
        if durability not in ("full", "process"):
            raise ConfigurationError(
                f"durability is 'full' or 'process', not {durability!r}.", hint="'full' survives a power cut."
            )
        options = (connect, "FULL" if durability == "full" else "NORMAL", busy_timeout)
        super().__init__(path, options, codec)

    def _make(self) -> Service:
        return Service(self._real, self._options, Writer(self._real, *self._options), self._options[2])

    async def backup(self, target: str | os.PathLike[str]) -> None:
        """Copy the store to a new file as of one moment, while runs go on.

        Raises ConfigurationError where `target` exists, StoreUnavailableError where it cannot be written.
        """
        await self._store().read(None, lambda tx: None)  # so that there is a store to copy
        await asyncio.to_thread(upkeep.backup, self._real, os.fspath(target))

    async def check_integrity(self) -> list[str]:
        """Return a line for everything that is wrong with the file: SQLite's own check, then every run's checksums."""
        await self._store().read(None, lambda tx: None)
        return await asyncio.to_thread(upkeep.integrity, self._real) + await super().check_integrity()

    @contextlib.asynccontextmanager
    async def _survey(self) -> AsyncGenerator[Read]:
        await self._store().read(None, lambda tx: None)  # so that there is a store to read
        survey = await asyncio.to_thread(upkeep.Survey, self._real, self._options[0])

        async def read(work: Callable[[Any], T]) -> T:
            return await asyncio.to_thread(survey.read, work)

        try:
            yield read
        finally:
            await asyncio.to_thread(survey.close)
