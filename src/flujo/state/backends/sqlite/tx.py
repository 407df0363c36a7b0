"""`Tx` in SQL: every statement that a transaction on a SQLite store consists of."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Mapping
from pkgutil import get_data
from typing import Any

from flujo._clock import micros, moment
from flujo.errors import StateCorruptedError
from flujo.state.backends._ledger import Save
from flujo.state.backends._loading import hidden
from flujo.state.backends._rows import COLUMNS, LogRow, MailRow, RunQuery, RunRow, column
from flujo.state.backends._sidecar import Sidecar, boot_id, machine_id
from flujo.state.backends.base import RunSummary
from flujo.state.models import STATUSES

LEASE_US = 30_000_000
# The tables are STRICT: another type than these (s text, i integer, b bytes, capital: or NULL) is damage.
_RUN_KINDS, _LOG_KINDS, _MAIL_KINDS = "issssISBisiiSIIIIiii", "iisiiiiiBBBbBb", "isssBSSib"
_RENEWED = tuple(name for name in COLUMNS if name not in ("fingerprint", "input"))
_BEYOND = (1 << 63) - 1  # no message has this number
_CLASSES = {"s": (str,), "i": (int,), "b": (bytes,)}
_sound: set[tuple[str, tuple[type, ...]]] = set()


def _statements() -> dict[str, str]:
    text = (get_data(__name__, "tx.sql") or b"").decode()
    blocks = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {name: body.strip() for name, body in zip(blocks[::2], blocks[1::2], strict=True)}


SQL = _statements()
_APPEND = SQL["append"]


class SQLiteTx:
    """The statements on one connection. `me` is this process's owner number, or None before its first claim.

    Without `sidecar` and `fences` it only reads.
    """

    def __init__(
        self, connection: sqlite3.Connection, sidecar: Sidecar | None = None, fences: Callable[[], int] | None = None
    ) -> None:
        self._execute = connection.execute
        self._executemany = connection.executemany
        self._sidecar = sidecar
        self._draw = fences
        self.me: int | None = None
        self.dropped = 0  # pages that deleting has changed, about

    def _one(self, name: str, *values: Any) -> Any:
        return self._execute(SQL[name], values).fetchone()

    def find(self, run_id: str) -> RunRow | None:
        found = self._one("find", run_id)
        if found is None:
            self._check_beside(run_id)
            return None
        _check_kinds(_RUN_KINDS, found, run_id)
        return RunRow(**dict(zip(COLUMNS, found, strict=True)))

    def put_run(self, run: RunRow) -> None:
        values = [getattr(run, name) for name in _RENEWED]
        if run.key:  # what it began with is there
            self._execute(SQL["renew_run"], values)
        else:
            values[0] = None
            (run.key,) = self._execute(SQL["insert_run"], values).fetchone()
            self._execute(SQL["insert_start"], (run.key, run.fingerprint, run.input))

    def _check_beside(self, run_id: str) -> None:
        """Raise StateCorruptedError where the run may be there, but an index entry beside its own hides it.

        Looking up a run_id in an index of which one entry is damaged ends beside that entry.
        """
        for indexed, stored in self._execute(SQL["beside"], (run_id, run_id)):
            if indexed != stored:
                raise hidden(str(indexed if stored is None else stored))

    def drop_run(self, key: int, *, mail: bool = True) -> None:
        self._execute(SQL["drop_run"], (key,))
        if mail:
            self._execute(SQL["drop_mail"], (key,))
        self._execute(SQL["drop_start"], (key,))
        rows = self._execute(SQL["drop_log"], (key, key)).rowcount
        self._execute(SQL["drop_snapshot"], (key, key))
        self.dropped += 4 + rows // 8

    def newest(self, key: int) -> LogRow | None:
        return _log_row(self._one("newest", key, key))

    def row(self, key: int, rev: int) -> LogRow | None:
        return _log_row(self._one("row", key << 24 | rev))

    def rows(self, key: int, after_ended: int, limit: int | None) -> list[LogRow]:
        start = self._first_beyond(key, after_ended) if after_ended > 0 else key << 24
        found = self._execute(SQL["rows"], (start, key, after_ended, -1 if limit is None else limit))
        return [row for row in map(_log_row, found) if row is not None]

    def _first_beyond(self, key: int, ended: int) -> int:
        """Return the seq of the first row with more records than that, or the one after the newest.

        Looks from the end, in strides that grow: what it costs depends on what comes after, not on the run.
        """
        newest = self._one("newest_seq", key, key)[0] or key << 24
        high, low, stride = newest + 1, newest, 1
        while low > key << 24 and self._ended(low) > ended:
            high, low, stride = low, max(key << 24, newest - stride), stride * 2
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
        return [row[0] for row in self._execute(SQL["deltas"], (key << 24 | after, key << 24 | upto))]

    def append(self, row: LogRow, fence: int) -> bool:
        return self._execute(_APPEND, (*row, fence)).rowcount == 1

    def append_all(self, saves: list[Save]) -> bool:
        """Append rows that nothing else goes with; return whether every one of them is there now and is new."""
        values = [(*save.row, save.held.fence) for save in saves]
        return self._executemany(_APPEND, values).rowcount == len(saves)

    def snapshot(self, key: int, rev: int) -> tuple[bytes, bytes] | None:
        found: tuple[bytes, bytes] | None = self._one("snapshot", key << 24 | rev)
        return found

    def put_snapshot(self, seq: int, text: bytes, check: bytes) -> None:
        self._execute(SQL["drop_snapshot"], (seq >> 24, seq >> 24))
        self._execute(SQL["put_snapshot"], (seq, text, check))

    def finish(self, key: int, fence: int, row: LogRow, error: str | None, due: int | None) -> None:
        self._execute(SQL["finish"], (row.status, row.rev, row.at, row.busy, error, due, key, fence))

    def set_free(self, key: int, fence: int, status: str = "running") -> None:
        self._execute(SQL["set_free"], (status, key, fence))

    def draw_fence(self) -> int:
        assert self._draw is not None
        return self._draw()

    def owner_of(self, run: RunRow) -> str | None:
        found = self._one("owner", run.owner)
        if found is None or run.owner is None:
            return None
        machine, boot, beat_at, host, pid = found
        return f"process {pid} on {host}" if self._lives(run.owner, machine, boot, beat_at) else None

    def _lives(self, owner: int, machine: str, boot: str, beat_at: int) -> bool:
        """Return whether that owner, another process, is alive. See `_sidecar`."""
        assert self._sidecar is not None
        if self._sidecar.alive(owner):
            return True
        ours = boot == boot_id() or (machine != "" and machine == machine_id())
        return not ours and beat_at + LEASE_US > now_us()

    def list_runs(self, query: RunQuery) -> list[RunSummary]:
        values: dict[str, Any] = dict(query.where)
        values |= {"limit": query.limit, "offset": query.offset, "most": query.limit + query.offset}
        shared = [f"r.{column(name)} = :{name}" for name in query.where if name != "status"]
        if query.since is not None:
            shared.append("r.updated_at >= :since")
            values["since"] = micros(query.since)
        if query.after is not None:
            last = self.find(query.after)
            if last is None:
                return []
            shared.append("(r.updated_at, r.key) < (:last_at, :last_key)")
            values |= {"last_at": last.updated_at, "last_key": last.key}
        # One ordered piece a status, so that each is a range of an index; the pieces are merged outside.
        pieces = []
        for status in [query.where["status"]] if "status" in query.where else STATUSES:
            filters = [f"r.status = '{status}'" if status in STATUSES else "0", *shared]
            pieces.append(SQL["list_of_status"].replace("{filter}", " AND ".join([*filters, _saved(status)])))
        values.pop("status", None)
        found = self._execute(SQL["list_runs"].replace("{found}", " UNION ALL ".join(pieces)), values)
        return [_summary(row) for row in found]

    def count_runs(self, where: Mapping[str, str], by: str) -> dict[str, tuple[int, int]]:
        filters = " AND ".join(f"r.{column(name)} = :{name}" for name in where) or "1"
        sql = SQL["count_runs"].replace("{filter}", filters).replace("{by}", column(by))
        return {name: (count, busy) for name, count, busy in self._execute(sql, dict(where))}

    def old_runs(self, status: str, before: int, limit: int) -> list[tuple[int, str, int]]:
        return self._execute(SQL["old_runs"], (status, before, limit)).fetchall()

    def recent(self, since: int) -> int:
        return sum(self._one("recent", status, since)[0] for status in STATUSES)

    def runs_after(self, key: int, limit: int) -> list[tuple[int, str]]:
        return self._execute(SQL["runs_after"], (key, limit)).fetchall()

    def next_mail(self, key: int, known: int) -> int:
        number: int = self._one("next_mail", known)[0]
        return number

    def put_mail(self, key: int, row: MailRow) -> None:
        self._execute(SQL["put_mail"], (*row, key))

    def mail(self, key: int, after: int, limit: int | None) -> list[MailRow]:
        return self._mail("mail", key, after, -1 if limit is None else limit)

    def newest_mail(self, key: int) -> MailRow | None:
        return self.mail_before(key, _BEYOND)

    def mail_before(self, key: int, seq: int) -> MailRow | None:
        found = self._mail("mail_before", key, seq)
        return found[0] if found else None

    def mail_of_id(self, key: int, id: str) -> MailRow | None:
        found = self._mail("mail_of_id", key, id)
        return found[0] if found else None

    def mail_beginning(self, key: int, prefix: str) -> list[MailRow]:
        return self._mail("mail_beginning", key, prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))

    def _mail(self, name: str, key: int, *values: Any) -> list[MailRow]:
        found = self._execute(SQL[name], (key, *values)).fetchall()
        for row in found:
            _check_kinds(_MAIL_KINDS, row, f"number {key}")
        return list(map(MailRow._make, found))

    def count_mail(self, key: int, after: int) -> int:
        number: int = self._one("count_mail", key, after)[0]
        return number

    def move_mail(self, old: int, new: int) -> None:
        self._execute(SQL["move_mail"], (new, old))

    def newest_of_all(self) -> int:
        """Return the number of the store's newest message, or 0."""
        return self._one("newest_of_all")[0] or 0

    def news(self, after: int) -> dict[int, int]:
        """Return the keys of the runs with messages after number `after`, and the newest message of each."""
        return dict(self._execute(SQL["news"], (after,)).fetchall())

    def set_due(self, key: int, due: int) -> None:
        self._execute(SQL["set_due"], (due, key))

    def join(self, host: str, pid: int) -> None:
        """Enter this process as an owner and hold its lock; forget the owners that are dead."""
        assert self._sidecar is not None
        for owner, *facts in self._execute(SQL["owners"]).fetchall():
            if not self._lives(owner, *facts):
                self._execute(SQL["drop_owner"], (owner,))
        now = now_us()
        me: int = self._one("add_owner", machine_id(), boot_id(), host, pid, now, now)[0]
        self._sidecar.hold(me)
        self.me = me

    def beat(self) -> None:
        """Renew this process's lease."""
        self._execute(SQL["beat"], (now_us(), self.me))


def _check_kinds(kinds: str, found: tuple[Any, ...], run: object) -> None:
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


def _log_row(found: tuple[Any, ...] | None) -> LogRow | None:
    if found is None:
        return None
    _check_kinds(_LOG_KINDS, found, f"number {found[0] >> 24}" if isinstance(found[0], int) else "?")
    return LogRow(*found)


def _saved(status: str) -> str:
    """Return the condition that a run has been saved: true of every run that is not running."""
    if status != "running":
        return "1"
    return "EXISTS (SELECT 1 FROM flujo_log WHERE seq > r.key << 24 AND seq < (r.key + 1) << 24)"


def _summary(row: tuple[Any, ...]) -> RunSummary:
    return RunSummary(
        run_id=row[0], pipeline_id=row[1], pipeline_name=row[2], pipeline_version=row[3], status=row[4],
        current_step_index=row[5], total_steps=row[6], error_message=row[7],
        created_at=moment(row[8]), updated_at=moment(row[9]), execution_time_ms=row[10] / 1000,
        due_at=moment(row[11]) if row[11] is not None else None,
    )  # fmt: skip


def now_us() -> int:
    """Return the machine's time in us since 1970."""
    return time.time_ns() // 1000
