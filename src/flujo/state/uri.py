"""A backend from a URI, so that the store is configuration and not code."""

from __future__ import annotations

import os
from collections.abc import Callable
from urllib.parse import unquote

from flujo.errors import ConfigurationError
from flujo.state.backends.base import StateBackend
from flujo.state.backends.file import FileBackend
from flujo.state.backends.memory import InMemoryBackend
from flujo.state.backends.sqlite import SQLiteBackend

VARIABLE = "FLUJO_STATE_URI"


def _sqlite(rest: str) -> StateBackend:
    return SQLiteBackend(unquote(rest.removeprefix("/")))


def _file(rest: str) -> StateBackend:
    return FileBackend(unquote(rest))


def _memory(rest: str) -> StateBackend:
    return InMemoryBackend()


def _postgres(uri: str) -> StateBackend:
    from flujo.state.backends.postgres import PostgresBackend

    return PostgresBackend(uri)


_SCHEMES: dict[str, Callable[[str], StateBackend]] = {"sqlite": _sqlite, "file": _file, "memory": _memory}


def open_backend(uri: str | None = None) -> StateBackend:
    """Return the backend that `uri` names; without one, that of the variable FLUJO_STATE_URI.

    `sqlite:///runs.db` is a file in the working directory, `sqlite:////var/lib/runs.db` one with an absolute path,
    `postgresql://user@host/database` is a database (its schema is called flujo; it takes the extra `postgres`),
    `file:///var/lib/runs` is a directory with an absolute path, `file://runs` one in the working directory, and
    `memory://` keeps nothing. Raises ConfigurationError.
    """
    given = uri if uri is not None else os.environ.get(VARIABLE, "")
    scheme, separator, rest = given.partition("://")
    if separator and scheme in ("postgresql", "postgres"):
        return _postgres(given)
    make = _SCHEMES.get(scheme)
    if not separator or make is None or (scheme != "memory" and not rest.strip("/")):
        what = f"The state URI {given!r} names no store" if given else f"No URI was given, and {VARIABLE} is not set"
        raise ConfigurationError(
            f"{what}.",
            hint="Use sqlite:///runs.db, postgresql://host/database, file:///var/lib/runs or memory://.",
            uri=given,
        )
    return make(rest)
