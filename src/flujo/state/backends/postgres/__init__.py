"""Runs in a PostgreSQL database, shared by any number of processes of any number of machines."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from functools import partial
from typing import Any, Literal, TypeVar

from flujo.errors import ConfigurationError, RunInProgressError
from flujo.state.backends._admin import AdminQueries
from flujo.state.backends._ledger import Held
from flujo.state.backends._log import Read, give_back
from flujo.state.backends._queue import DueTx, Queueing, Serves, claim_found
from flujo.state.backends._service import Service
from flujo.state.backends._stores import SharedBackend
from flujo.state.backends.base import Claim, NewRun
from flujo.state.backends.postgres import schema as schemas
from flujo.state.backends.postgres.connection import Dialing, connect, is_valid, mapped, shown
from flujo.state.backends.postgres.pulse import Pulse
from flujo.state.backends.postgres.statements import statements
from flujo.state.backends.postgres.tx import PostgresTx
from flujo.state.backends.postgres.writer import Writer
from flujo.state.codec import Codec

__all__ = ["PostgresBackend"]

T = TypeVar("T")
_SELDOM_S = 1.0  # between looks for mail while the server tells of it
_NOTICED_S = 0.05  # after a process has died the server has noticed


class PostgresBackend(SharedBackend, AdminQueries, Queueing):
    """Keeps runs in a PostgreSQL database (13 or newer), in a schema of its own that is made when it is first used.

    Arguments: `dsn`, a URI or `key=value` pairs as libpq reads them; `schema`, its name; `durability` "full" keeps
    every acknowledged save through a power cut of the server, "process" (synchronous_commit off) loses the last moments
    of it; `lease` in seconds, after which a process that hangs, or is cut off, is presumed dead; `listen`, whether the
    server tells of messages (else they are looked for four times a second while a run is executed); `pooled`, for
    PgBouncer in transaction mode: no session is relied on, so a process that died is known by its lease alone;
    `busy_timeout` in seconds, how long saves and claims wait for a server that is away; `codec` sets limits other than
    the default ones.
    Works from any thread and event loop, and anew after a process fork. A process has two connections to a store,
    however many backends there are on it. Errors: StoreUnavailableError, StoreFormatError, StoreBusyError, SaveError,
    StateCorruptedError.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = schemas.DEFAULT,
        durability: Literal["full", "process"] = "full",
        lease: float = 30.0,
        listen: bool = True,
        pooled: bool = False,
        busy_timeout: float = 60.0,
        codec: Codec | None = None,
    ) -> None:
        if durability not in ("full", "process"):
            raise ConfigurationError(
                f"durability is 'full' or 'process', not {durability!r}.", hint="'full' survives a power cut."
            )
        if not 1 <= lease <= 86_400:
            raise ConfigurationError(f"lease is {lease!r}.", hint="Give seconds, from 1 to a day.")
        if not is_valid(dsn):
            raise ConfigurationError(
                "The DSN cannot be read.", hint="Write it as postgresql://user@host/database, or as libpq's key=value."
            )
        self._schema, self._lease = schemas.check_name(schema), lease
        self._dialing = Dialing(dsn, shown(dsn), durability, pooled)
        self._busy_timeout, self._listen = busy_timeout, listen
        place = f"{self._dialing.shown}, schema {schema}"
        super().__init__(place, (self._dialing, lease, listen, busy_timeout), place, codec)

    @staticmethod
    def migrations_sql(schema: str = schemas.DEFAULT, *, since: int = 0) -> str:
        """Return the SQL that makes the schema, for a DBA to run in one transaction.

        `since` is the version that is there (`SELECT value FROM flujo.meta WHERE name = 'schema_version'`).
        """
        return schemas.migrations(schemas.check_name(schema), since)

    async def claim(
        self, run_id: str, new: NewRun, *, now: datetime, force: bool = False, inline: bool = False
    ) -> Claim:
        """Become the run's only owner. See `StateBackend.claim`; here it holds between machines too."""
        try:
            return await super().claim(run_id, new, now=now, force=force, inline=inline)
        except RunInProgressError as error:
            if error.data.get("owner") == "this process":
                raise
        await asyncio.sleep(_NOTICED_S)
        return await super().claim(run_id, new, now=now, force=force, inline=inline)

    async def claim_due(self, serves: Serves, limit: int, *, now: datetime) -> list[tuple[str, Claim]]:
        """Claim runs that are due and that nobody has. See `Queueing.claim_due`; no two processes find the same."""
        store = self._store()
        taken: dict[str, Held] = {}

        def undo() -> None:
            for run_id, held in taken.items():
                if store.held.get(run_id) is held:
                    del store.held[run_id]
            taken.clear()

        def work(tx: DueTx) -> list[tuple[str, Claim]]:
            undo()
            found = claim_found(
                tx, taken, self.codec, serves, limit, now, holds=partial(self._live, store), by=id(self)
            )
            store.held.update(taken)
            return found

        try:
            return await store.write(None, work, peek=lambda tx: None, undo=undo) if serves and limit > 0 else []
        except BaseException:
            for held in list(taken.values()):  # it may be committed all the same
                give_back(store, held)
            raise

    def _make(self) -> Service:
        made: list[Service] = []

        def heard(key: int, seq: int) -> None:
            for held in list(made[0].held.values()):
                if held.key == key:
                    held.ring(seq)

        def listening(on: bool) -> None:
            made[0].look_s = _SELDOM_S if on else None

        pulse = Pulse(self._dialing, statements(self._schema), self._lease, self._listen, heard, listening)
        writer = Writer(self._dialing, self._schema, self._busy_timeout, pulse)
        made.append(Service(self._real, self._options, writer, self._busy_timeout))
        return made[0]

    @contextlib.asynccontextmanager
    async def _survey(self) -> AsyncGenerator[Read]:
        await self._store().read(None, lambda tx: None)  # so that there is a store to read
        survey = await asyncio.to_thread(_Survey, self._dialing, self._schema)

        async def read(work: Callable[[Any], T]) -> T:
            return await asyncio.to_thread(survey.read, work)

        try:
            yield read
        finally:
            await asyncio.to_thread(survey.close)


class _Survey:
    """A connection for readings that may take long: no save waits for them."""

    def __init__(self, dialing: Dialing, schema: str) -> None:
        self._place = dialing.shown
        self._using = threading.Lock()
        try:
            self._connection = connect(dialing)
        except Exception as error:
            raise mapped(error, self._place) from error
        self._tx = PostgresTx(self._connection, statements(schema))

    def read(self, work: Callable[[Any], T]) -> T:
        """Run `work` on a view of the store as of one moment."""
        with self._using:
            try:
                self._tx.begin()
                try:
                    return work(self._tx)
                finally:
                    self._tx.end()
            except Exception as error:
                raise mapped(error, self._place) from error

    def close(self) -> None:
        """Close the connection; a reading that is under way ends with an error."""
        self._connection.cancel()
        with self._using:
            self._connection.close()
