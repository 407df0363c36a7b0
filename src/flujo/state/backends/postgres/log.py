"""A run's log in PostgreSQL: its own rows, and before them those that it shares with the run it was forked from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from flujo.state.backends._rows import MAX_REV, Cut, LogRow, RunRow
from flujo.state.backends.postgres.connection import Connection

_ALL = (1 << 63) - 1
_BEGIN_WRITING = b"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_BEGIN_READING = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class LogTx:
    """The statements about one run's log. `key` is the run's.

    Within `piped` what only writes is sent without waiting for the server's word, which comes with the next reading.
    `locking` says that this is a transaction that writes: what it reads of a run stays so until its end.
    """

    def __init__(self, connection: Connection, sql: Mapping[str, bytes], *, locking: bool = False) -> None:
        self._connection = connection
        self._sql = sql
        self.locking = locking
        self.commit_setting: bytes | None = None  # where it cannot be the session's: see `connection.commit_setting`
        self._new: set[int] = set()  # keys of runs that this transaction has made, and that have nothing yet

    @contextlib.contextmanager
    def piped(self) -> Iterator[None]:
        """Send statements without waiting for each. Raises the first error of any."""
        failure: BaseException | None = None
        try:
            with self._connection.pipeline():
                try:
                    yield
                except BaseException as error:  # leaving the pipeline with it would have psycopg log a warning
                    failure = error
        except BaseException as error:
            raise failure or error from None
        if failure is not None:
            raise failure

    def _send(self, name: str, *values: Any) -> None:
        self._connection.cursor(binary=True).execute(self._sql[name], values)

    def _all(self, name: str, *values: Any) -> list[Any]:
        return self._connection.cursor(binary=True).execute(self._sql[name], values).fetchall()

    def _one(self, name: str, *values: Any) -> Any:
        return self._connection.cursor(binary=True).execute(self._sql[name], values).fetchone()

    def begin(self) -> None:
        """Begin a transaction: one that writes, or one that reads a single state of the store."""
        self._new.clear()
        self._connection.cursor().execute(_BEGIN_WRITING if self.locking else _BEGIN_READING, prepare=False)
        if self.locking and self.commit_setting is not None:
            self._connection.cursor().execute(b"SET LOCAL synchronous_commit = " + self.commit_setting, prepare=False)

    def end(self) -> None:
        """Commit the transaction."""
        self._connection.cursor().execute(b"COMMIT", prepare=False)

    def newest(self, key: int) -> LogRow | None:
        return None if key in self._new else _row(self._one("newest", key))

    def row(self, key: int, rev: int) -> LogRow | None:
        own = _row(self._one("row", key << 24 | rev))
        if own is not None or rev < 1:
            return own
        return next((_row(self._one("row", holder << 24 | rev)) for holder, _, _ in self._parts(key, rev)[:1]), None)

    def _parts(self, key: int, upto: int = MAX_REV) -> list[tuple[int, int, int]]:
        """Return where the run's saves up to that one lie, the newest first: a key, and the rows after and up to."""
        return self._all("parts", key, upto)

    def identity(self, run: RunRow, row: LogRow) -> bytes:
        key, identity = run.key, run.identity()
        while key != row.seq >> 24 and (fork := self._one("fork", key)) is not None:
            key, _, _, identity = fork
        return identity

    def rows(self, key: int, after_ended: int, limit: int | None) -> list[LogRow]:
        found: list[LogRow] = []
        for holder, after, upto in reversed(self._parts(key)):
            left = _ALL if limit is None else limit - len(found)
            found += map(LogRow._make, self._all("rows", holder, after, upto, after_ended, left))
        return found

    def deltas(self, key: int, after: int, upto: int) -> list[bytes]:
        found: list[bytes] = []
        for holder, low, high in self._parts(key, upto):
            rows = self._all("deltas", holder << 24 | max(after, low), holder << 24 | high)
            found[:0] = [row[0] for row in rows]
            if low <= after:
                break
        return found

    def snapshot(self, key: int, rev: int) -> tuple[bytes, bytes] | None:
        holder = self._parts(key, rev)[0][0]
        found: tuple[bytes, bytes] | None = self._one("snapshot", holder << 24 | rev)
        return found

    def arrival(self, key: int, idx: int) -> int | None:
        for holder, _, upto in self._parts(key):
            (seq,) = self._one("arrival", holder, upto, idx)
            if seq is not None:
                return int(seq) & MAX_REV
        return None

    def cut(self, run: RunRow, rev: int) -> Cut | None:
        key, identity, fork = run.key, run.identity(), self._one("fork", run.key)
        start = run.key if fork is None else fork[2]
        while fork is not None and rev <= fork[1]:
            key, identity = fork[0], fork[3]
            fork = self._one("fork", key)
        row = self.row(key, rev) if rev else None
        if rev and row is None:
            return None
        return Cut(key, rev, identity, start, row.sum if row is not None else b"")

    def is_there(self, cut: Cut) -> bool:
        self._send("share_forks")  # nobody deletes what this transaction is to refer to
        if not cut.rev:
            return self._one("has_start", cut.start) is not None
        row = _row(self._one("row", cut.key << 24 | cut.rev))
        return row is not None and row.sum == cut.sum

    def put_row(self, row: LogRow) -> None:
        self._new.discard(row.seq >> 24)
        self._send("put_row", *row)

    def put_snapshot(self, seq: int, text: bytes, check: bytes) -> None:
        self._send("drop_snapshot", seq >> 24 << 24, seq >> 24)
        self._send("put_snapshot", seq, text, check)

    def drop_run(self, key: int, *, mail: bool = True) -> None:
        self._send("lock_forks")
        self._send("drop_run", key)
        if mail:
            self._send("drop_mail", key)
        while True:
            shared = self._one("shared", key)[0]
            beyond = (key << 24 | shared if shared is not None else key << 24, key)
            self._send("drop_log", *beyond)
            self._send("drop_snapshot", *beyond)
            if shared is not None:
                return
            fork = self._one("fork", key)
            self._send("drop_start", key)
            if fork is None:
                return
            self._send("drop_fork", key)
            if self._one("is_run", fork[0]) is not None:
                return
            key = fork[0]


def _row(found: tuple[Any, ...] | None) -> LogRow | None:
    return None if found is None else LogRow._make(found)
