"""Runs in a directory: each run is one JSON file, rewritten whole at every save."""

from __future__ import annotations

import os
from typing import Literal

from flujo.errors import ConfigurationError
from flujo.state.backends._service import Service
from flujo.state.backends._stores import StoredBackend
from flujo.state.backends.file.writer import FileWriter
from flujo.state.codec import Codec

__all__ = ["FileBackend"]


class FileBackend(StoredBackend):
    """Keeps each run in a JSON file of a directory, which is made when it is first used.

    Arguments: `directory`; `durability` "full" syncs every file and the directory, so that an acknowledged save
    survives a power cut, "process" leaves that to the operating system; `codec` sets limits other than the default.
    Several processes may share the directory, on a local disk. A save writes the run's whole file, so its cost grows
    with the run; listing reads every file: `SQLiteBackend` does neither.
    A file can be read with any JSON tool; it is not to be edited, since its checksum would not fit any more.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        durability: Literal["full", "process"] = "full",
        codec: Codec | None = None,
    ) -> None:
        if durability not in ("full", "process"):
            raise ConfigurationError(
                f"durability is 'full' or 'process', not {durability!r}.", hint="'full' survives a power cut."
            )
        if not str(directory):
            raise ConfigurationError("FileBackend needs a directory.", hint="Give its path.")
        super().__init__(directory, ("file", durability), codec)
        self._sync = durability == "full"

    def _make(self) -> Service:
        return Service(self._real, self._options, FileWriter(self._real, self._sync), patience=60.0)
