"""Connecting to a PostgreSQL server, what a connection is set to, and what psycopg's errors mean."""

from __future__ import annotations

import contextlib
import os
import re
import weakref
from typing import Any, NamedTuple

from flujo.errors import (
    FlujoError,
    SaveError,
    StateCorruptedError,
    StoreBusyError,
    StoreFormatError,
    StoreUnavailableError,
)  # fmt: skip
from flujo.state.backends._loading import located

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.pq import TransactionStatus
    from psycopg.types.array import ListBinaryDumper
    from psycopg.types.numeric import Int8BinaryDumper
    from psycopg.types.string import StrBinaryDumper, TextBinaryLoader
except ImportError as error:
    raise ImportError("PostgresBackend needs psycopg 3: pip install 'flujo[postgres]'.") from error

Connection = psycopg.Connection[tuple[Any, ...]]

# A peer that is gone without a word is noticed within about 10 s, in both directions.
_DEFAULTS = {
    "connect_timeout": "10", "application_name": "flujo", "client_encoding": "utf8",
    "keepalives_idle": "5", "keepalives_interval": "2", "keepalives_count": "3", "tcp_user_timeout": "10000",
}  # fmt: skip
# A server that does not know one of these goes without it.
_SESSION = {
    "client_connection_check_interval": "1s",
    "tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3", "tcp_user_timeout": "10s",
}  # fmt: skip
_NUL, _MARK = "\0", "\ufdd0"  # text in PostgreSQL has no NUL; the mark is no character, and stands for nothing else

_open: weakref.WeakSet[Connection] = weakref.WeakSet()  # every connection of this process


class Dialing(NamedTuple):
    """Where the server is and how it is talked to. `shown` names it without its password."""

    dsn: str
    shown: str
    durability: str
    pooled: bool


class _Dumper(StrBinaryDumper):
    def dump(self, obj: str) -> Any:
        if _NUL in obj or _MARK in obj:
            obj = obj.replace(_MARK, _MARK + "1").replace(_NUL, _MARK + "0")
        return super().dump(obj)


class _Loader(TextBinaryLoader):
    def load(self, data: Any) -> Any:
        text = super().load(data)
        if isinstance(text, str) and _MARK in text:
            return text.replace(_MARK + "0", _NUL).replace(_MARK + "1", _MARK)
        return text


def is_valid(dsn: str) -> bool:
    """Return whether libpq can read it."""
    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        return False
    return True


def shown(dsn: str) -> str:
    """Return the server and database that a valid DSN names, without a password."""
    facts = conninfo_to_dict(dsn)
    user = f"{facts['user']}@" if facts.get("user") else ""
    host = facts.get("host") or facts.get("hostaddr") or os.environ.get("PGHOST") or "localhost"
    port = f":{facts['port']}" if facts.get("port") else ""
    return f"postgresql://{user}{host}{port}/{facts.get('dbname') or ''}"


def connect(dialing: Dialing) -> Connection:
    """Open a connection in autocommit, set up for flujo; raises psycopg.Error."""
    given = conninfo_to_dict(dialing.dsn)
    given = {name: value for name, value in _DEFAULTS.items() if given.get(name) is None}
    dsn = make_conninfo(dialing.dsn, **given)
    connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=None if dialing.pooled else 2)
    try:
        connection.adapters.register_dumper(int, Int8BinaryDumper)
        connection.adapters.register_dumper(str, _Dumper)
        connection.adapters.register_dumper(list, ListBinaryDumper)
        connection.adapters.register_loader("text", _Loader)
        connection.cursor_factory = psycopg.RawCursor
        if not dialing.pooled:
            _set_up(connection, dialing.durability)
    except BaseException:
        connection.close()
        raise
    _open.add(connection)
    return connection


def _set_up(connection: Connection, durability: str) -> None:
    names = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in _SESSION.items())
    try:
        connection.execute(f"SELECT {names}".encode())
    except psycopg.DatabaseError:  # an older server, or a system without one of them
        if connection.closed:
            raise
    commit = commit_setting(connection, durability)
    if commit is not None:
        connection.execute(f"SET synchronous_commit = {commit}".encode())


def commit_setting(connection: Connection, durability: str) -> str | None:
    """Return what `synchronous_commit` has to be set to, or None where it is as it should be."""
    found = connection.execute(b"SHOW synchronous_commit").fetchone()
    now = found[0] if found is not None else ""
    if durability == "process":
        return "off" if now != "off" else None
    return "on" if now == "off" else None


def forsake_all() -> None:
    """In a forked child: let go of the parent's connections without a word to the server."""
    for connection in list(_open):
        with contextlib.suppress(Exception):
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, connection.fileno())  # what closing would send ends there, and not with the parent's
            os.close(nothing)
            connection.pgconn.finish()
    _open.clear()


def is_idle(connection: Connection) -> bool:
    """Return whether the connection is open and in no transaction."""
    return not connection.closed and connection.info.transaction_status == TransactionStatus.IDLE


def is_theirs(error: BaseException) -> bool:
    """Return whether psycopg raised it."""
    return isinstance(error, psycopg.Error)


def is_lost(error: BaseException) -> bool:
    """Return whether the error says that the server, or the way to it, is gone for now."""
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    if isinstance(error, psycopg.errors.PipelineAborted):
        return False
    state = error.sqlstate or ""
    if state:
        return state.startswith("08") or state in ("57P01", "57P02", "57P03", "57P05", "53300", "25006")
    return not _is_final(str(error))


def _is_final(text: str) -> bool:
    """Return whether trying to connect again would not help. libpq gives no code for it."""
    return re.search(
        r"authentication failed|no password supplied|does not exist|no pg_hba\.conf entry"
        r"|permission denied for database|could not translate host name|invalid (port|integer|connection|value)",
        text,
    ) is not None  # fmt: skip


def is_race(error: BaseException) -> bool:
    """Return whether another transaction came in between, so that the same again may succeed."""
    return isinstance(error, psycopg.Error) and error.sqlstate in ("40001", "40P01", "23505")


def mapped(error: BaseException, place: str) -> BaseException:
    """Return the flujo error for an error of psycopg's or the system's; others are returned as they are."""
    if isinstance(error, FlujoError):
        return located(error, place)
    if not isinstance(error, (psycopg.Error, psycopg.Warning, OSError, OverflowError, UnicodeDecodeError)):
        return error
    kind, what, hint = _meaning(error)
    said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    text = " ".join((said or str(error)).split())
    result = kind(f"{what} ({place}: {text}).", hint=hint, path=place)
    result.__cause__ = error
    return result


_MEANINGS: tuple[tuple[str, type[FlujoError], str, str], ...] = (
    ("42501", StoreUnavailableError, "This user lacks a right",
     "Grant it, or have a DBA run what PostgresBackend.migrations_sql() returns, and grant the schema to this user."),
    ("25006", StoreUnavailableError, "The server only reads",
     "Connect to the primary: target_session_attrs=read-write in the DSN finds it."),
    ("3F|42P01|42703|42883|42804", StoreFormatError, "The schema is not the one that flujo made",
     "Restore it from a backup, or give another schema."),
    ("53300", StoreUnavailableError, "The server takes no more connections",
     "Raise max_connections, or put PgBouncer in between and say pooled=True."),
    ("53", SaveError, "The server lacks disk or memory", "Make room; the run goes on from its last saved step."),
    ("57014|55P03|25P", StoreBusyError, "The server ended the statement or transaction",
     "See its statement_timeout and lock_timeout; the run goes on from its last saved step."),
    ("XX00[12]|22021|22P03", StateCorruptedError, "The database is damaged", "Restore it from a backup."),
    ("40", StoreBusyError, "Other transactions came in between, again and again",
     "Try again; the run goes on from its last saved step."),
    ("08|57P|28|3D", StoreUnavailableError, "The server cannot be reached",
     "See that it runs, and check the DSN; the run goes on from its last saved step."),
)  # fmt: skip


def _meaning(error: BaseException) -> tuple[type[FlujoError], str, str]:
    if isinstance(error, OverflowError | UnicodeDecodeError):
        return StateCorruptedError, "What was read is not what flujo wrote", "Restore the database from a backup."
    state = getattr(error, "sqlstate", None) or ("08" if isinstance(error, _NO_SERVER) else "")
    for pattern, kind, what, hint in _MEANINGS:
        if state and re.match(pattern, state):
            return kind, what, hint
    return SaveError, "PostgreSQL failed", "See the cause; the run goes on from its last saved step."


_NO_SERVER = (psycopg.OperationalError, psycopg.InterfaceError, OSError)
