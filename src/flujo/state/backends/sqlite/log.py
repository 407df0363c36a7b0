"""A run's log in SQL: its own rows, and before them those that it shares with the run that it was forked from."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from pkgutil import get_data
from typing import Any, NamedTuple

from flujo.errors import StateCorruptedError
from flujo.state.backends._rows import MAX_REV, Cut, LogRow, RunRow

# The tables are STRICT: another type than these (s text, i integer, b bytes, capital: or NULL) is damage.
_LOG_KINDS, _FORK_KINDS = "iisiiiiiBBBbBb", "iiib"
_CLASSES = {"s": (str,), "i": (int,), "b": (bytes,)}
_sound: set[tuple[str, tuple[type, ...]]] = set()


def _statements() -> dict[str, str]:
    text = (get_data(__name__, "tx.sql") or b"").decode()
    blocks = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {name: body.strip() for name, body in zip(blocks[::2], blocks[1::2], strict=True)}


SQL = _statements()


class _Fork(NamedTuple):
    """What a run shares: the rows that lie under `parent` up to `rev`, and what `parent` shares in turn."""

    parent: int
    rev: int
    start: int
    identity: bytes


class LogTx:
    """The statements about one run's log, and about its end. `key` is the run's."""

    def __init__(self, execute: Callable[..., sqlite3.Cursor]) -> None:
        self._execute = execute
        self.dropped = 0  # pages that deleting has changed, about

    def _one(self, name: str, *values: Any) -> Any:
        return self._execute(SQL[name], values).fetchone()

    def _fork(self, key: int) -> _Fork | None:
        found = self._one("fork", key)
        if found is None:
            return None
        check_kinds(_FORK_KINDS, found, f"number {key}")
        return _Fork(*found)

    def _parts(self, key: int, upto: int = MAX_REV) -> Iterator[tuple[int, int, int]]:
        """Yield where the run's saves up to that one lie, the newest first: a key, and the rows after and up to."""
        fork: _Fork | None
        while (fork := self._fork(key)) is not None:
            if fork.parent >= key:  # a run is made after the one that it is forked from
                raise StateCorruptedError(
                    f"The state of run number {key} is damaged: it is forked from run number {fork.parent}.",
                    hint="Restore the store from a backup.",
                )
            if upto > fork.rev:
                yield key, fork.rev, upto
            key, upto = fork.parent, min(upto, fork.rev)
        yield key, 0, upto

    def newest(self, key: int) -> LogRow | None:
        return log_row(self._one("newest", key, key))

    def row(self, key: int, rev: int) -> LogRow | None:
        own = log_row(self._one("row", key << 24 | rev))
        if own is not None:
            return own
        return next((log_row(self._one("row", holder << 24 | rev)) for holder, _, _ in self._parts(key, rev)), None)

    def identity(self, run: RunRow, row: LogRow) -> bytes:
        key, identity = run.key, run.identity()
        while key != row.seq >> 24 and (fork := self._fork(key)) is not None:
            key, identity = fork.parent, fork.identity
        return identity

    def rows(self, key: int, after_ended: int, limit: int | None) -> list[LogRow]:
        parts: list[tuple[int, int, int]] = []
        for part in self._parts(key):
            parts.append(part)
            if after_ended > 0 and self._ended(part[0] << 24 | part[1] + 1) <= after_ended:
                break  # a fork's own rows begin with as many records as it shares
        found: list[LogRow] = []
        for holder, after, upto in reversed(parts):
            start = self._first_beyond(holder, after, upto, after_ended) if after_ended > 0 else holder << 24 | after
            left = -1 if limit is None else limit - len(found)
            rows = self._execute(SQL["rows"], (start, holder << 24 | upto, after_ended, left))
            found += [row for row in map(log_row, rows) if row is not None]
        return found

    def _first_beyond(self, key: int, after: int, upto: int, ended: int) -> int:
        """Return the seq of the first row with more records than that, or the one after the newest.

        Looks from the end, in strides that grow: what it costs depends on what comes after, not on the run.
        """
        least = key << 24 | after
        newest = min(self._one("newest_seq", key, key)[0] or least, key << 24 | upto)
        high, low, stride = newest + 1, newest, 1
        while low > least and self._ended(low) > ended:
            high, low, stride = low, max(least, newest - stride), stride * 2
        while high - low > 1:
            middle = (low + high) // 2
            if self._ended(middle) > ended:
                high = middle
            else:
                low = middle
        return high

    def _ended(self, seq: int) -> int:
        """Return how many records there were after that save; one that is damaged or gone is as if it were too old."""
        found = self._one("ended", seq)
        return found[0] if found is not None and isinstance(found[0], int) else -1

    def deltas(self, key: int, after: int, upto: int) -> list[bytes]:
        found: list[bytes] = []
        for holder, low, high in self._parts(key, upto):
            seqs = (holder << 24 | max(after, low), holder << 24 | high)
            found[:0] = [row[0] for row in self._execute(SQL["deltas"], seqs)]
            if low <= after:
                break
        return found

    def snapshot(self, key: int, rev: int) -> tuple[bytes, bytes] | None:
        holder = next(self._parts(key, rev))[0]
        found: tuple[bytes, bytes] | None = self._one("snapshot", holder << 24 | rev)
        return found

    def arrival(self, key: int, idx: int) -> int | None:
        for holder, _, upto in self._parts(key):
            (seq,) = self._one("arrival", holder, upto, idx)
            if seq is not None:
                return int(seq) & MAX_REV
        return None

    def cut(self, run: RunRow, rev: int) -> Cut | None:
        key, identity, fork = run.key, run.identity(), self._fork(run.key)
        start = run.key if fork is None else fork.start
        while fork is not None and rev <= fork.rev:
            key, identity, fork = fork.parent, fork.identity, self._fork(fork.parent)
        row = self.row(key, rev) if rev else None
        if rev and row is None:
            return None
        return Cut(key, rev, identity, start, row.sum if row is not None else b"")

    def is_there(self, cut: Cut) -> bool:
        if not cut.rev:
            return self._one("has_start", cut.start) is not None
        row = log_row(self._one("row", cut.key << 24 | cut.rev))
        return row is not None and row.sum == cut.sum

    def put_row(self, row: LogRow) -> None:
        self._execute(SQL["put_row"], row)

    def drop_run(self, key: int, *, mail: bool = True) -> None:
        self._execute(SQL["drop_run"], (key,))
        if mail:
            self._execute(SQL["drop_mail"], (key,))
        self._drop_unshared(key)

    def _drop_unshared(self, key: int) -> None:
        """Drop the rows of a run that is deleted but for those that forks refer to; and of its parents, in turn."""
        while True:
            shared: int | None = self._one("shared", key)[0]
            beyond = (key << 24 | shared if shared is not None else key << 24, key)
            rows = self._execute(SQL["drop_log"], beyond).rowcount
            self._execute(SQL["drop_snapshot"], beyond)
            self.dropped += 4 + rows // 8
            if shared is not None:
                return
            fork = self._fork(key)
            self._execute(SQL["drop_start"], (key,))
            if fork is None:
                return
            self._execute(SQL["drop_fork"], (key,))
            if self._one("is_run", fork.parent) is not None:
                return
            key = fork.parent


def check_kinds(kinds: str, found: tuple[Any, ...], run: object) -> None:
    """Raise StateCorruptedError where a value has a type that its column cannot hold."""
    classes = tuple(map(type, found))
    if (kinds, classes) in _sound:
        return
    for kind, value in zip(kinds, found, strict=True):
        if not (isinstance(value, _CLASSES[kind.lower()]) or (value is None and kind.isupper())):
            raise StateCorruptedError(
                f"The state of run {run!r} is damaged: a column of its row holds a {type(value).__name__}.",
                hint="Restore the store from a backup; `PRAGMA integrity_check` says more.",
                run_id=run,
            )
    _sound.add((kinds, classes))


def log_row(found: tuple[Any, ...] | None) -> LogRow | None:
    """Return a row of the log as it was read; raises StateCorruptedError."""
    if found is None:
        return None
    check_kinds(_LOG_KINDS, found, f"number {found[0] >> 24}" if isinstance(found[0], int) else "?")
    return LogRow(*found)
