"""`Tx` in SQL: every statement that a transaction on a SQLite store consists of."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from typing import Any

from flujo._clock import micros, moment
from flujo.state.backends._ledger import Save
from flujo.state.backends._loading import carried_to, hidden
from flujo.state.backends._rows import COLUMNS, Cut, LogRow, MailRow, RunQuery, RunRow, column
from flujo.state.backends._sidecar import Sidecar, boot_id, machine_id
from flujo.state.backends.base import UNFINISHED, RunSummary, Shape
from flujo.state.backends.overview import counted
from flujo.state.backends.sqlite.log import SQL, LogTx, check_kinds
from flujo.state.models import STATUSES

LEASE_US = 30_000_000
_RUN_KINDS, _MAIL_KINDS = "issssISBisiiSIIIIiii", "isssBSSib"
_RENEWED = tuple(name for name in COLUMNS if name not in ("fingerprint", "input"))
_COLUMNS_SQL = {name: f"r.{name}" for name in COLUMNS}
_COLUMNS_SQL["failure"] = "iif(r.status = 'running', NULL, r.error_message)"
_BEYOND = (1 << 63) - 1  # no message has this number


_APPEND = SQL["append"]


class SQLiteTx(LogTx):
    """The statements on one connection. `me` is this process's owner number, or None before its first claim.

    Without `sidecar` and `fences` it only reads.
    """

    def __init__(
        self, connection: sqlite3.Connection, sidecar: Sidecar | None = None, fences: Callable[[], int] | None = None
    ) -> None:
        super().__init__(connection.execute)
        self._executemany = connection.executemany
        self._sidecar = sidecar
        self._draw = fences
        self.me: int | None = None

    def find(self, run_id: str) -> RunRow | None:
        found = self._one("find", run_id)
        if found is None:
            self._check_beside(run_id)
            return None
        check_kinds(_RUN_KINDS, found, run_id)
        return RunRow(**dict(zip(COLUMNS, found, strict=True)))

    def put_run(self, run: RunRow) -> None:
        values = [getattr(run, name) for name in _RENEWED]
        if run.key:  # what it began with is there
            self._execute(SQL["renew_run"], values)
        else:
            values[0] = None
            (run.key,) = self._execute(SQL["insert_run"], values).fetchone()
            self._execute(SQL["insert_start"], (run.key, run.fingerprint, run.input))

    def put_fork(self, run: RunRow, cut: Cut) -> None:
        values = [getattr(run, name) for name in _RENEWED]
        values[0] = None
        (run.key,) = self._execute(SQL["insert_run"], values).fetchone()
        self._execute(SQL["put_fork"], (run.key, cut.key, cut.rev, cut.start, cut.identity))

    def _check_beside(self, run_id: str) -> None:
        """Raise StateCorruptedError where the run may be there, but an index entry beside its own hides it.

        Looking up a run_id in an index of which one entry is damaged ends beside that entry.
        """
        for indexed, stored in self._execute(SQL["beside"], (run_id, run_id)):
            if indexed != stored:
                raise hidden(str(indexed if stored is None else stored))

    def append(self, row: LogRow, fence: int) -> bool:
        return self._execute(_APPEND, (*row, fence)).rowcount == 1

    def append_all(self, saves: list[Save]) -> bool:
        """Append rows that nothing else goes with; return whether every one of them is there now and is new."""
        values = [(*save.row, save.held.fence) for save in saves]
        return self._executemany(_APPEND, values).rowcount == len(saves)

    def put_snapshot(self, seq: int, text: bytes, check: bytes) -> None:
        self._execute(SQL["drop_snapshot"], (seq >> 24 << 24, seq >> 24))
        self._execute(SQL["put_snapshot"], (seq, text, check))

    def finish(self, key: int, fence: int, row: LogRow, error: str | None, due: int | None) -> None:
        self._execute(SQL["finish"], (row.status, row.rev, row.at, row.busy, error, due, key, fence))

    def set_free(self, key: int, fence: int, status: str = "running") -> None:
        self._execute(SQL["set_free"], (status, key, fence))

    def draw_fence(self) -> int:
        assert self._draw is not None
        return self._draw()

    def owner_of(self, run: RunRow) -> str | None:
        who, alive = self.owner_facts(run)
        return who if alive else None

    def owner_facts(self, run: RunRow) -> tuple[str, bool]:
        found = self._one("owner", run.owner)
        if found is None or run.owner is None:
            return "a process that is gone", False
        machine, boot, beat_at, host, pid = found
        mine = run.owner == self.me  # never to be asked after
        return f"process {pid} on {host}", not mine and self._lives(run.owner, machine, boot, beat_at)

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
        shared = [f"{_COLUMNS_SQL[column(name)]} = :{name}" for name in query.where if name != "status"]
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
        filters = " AND ".join(f"{_COLUMNS_SQL[column(name)]} = :{name}" for name in where) or "1"
        sql = SQL["count_runs"].replace("{filter}", filters).replace("{by}", _COLUMNS_SQL[column(by)])
        return {name: (count, busy) for name, count, busy in self._execute(sql, dict(where))}

    def old_runs(self, status: str, before: int, limit: int) -> list[tuple[int, str, int]]:
        return self._execute(SQL["old_runs"], (status, before, limit)).fetchall()

    def recent(self, since: int) -> int:
        return sum(self._one("recent", status, since)[0] for status in STATUSES)

    def failed(self, limit: int) -> list[tuple[str, str | None, int]]:
        return self._execute(SQL["failed"], (limit,)).fetchall()

    def shapes(self) -> list[Shape]:
        pieces = [SQL["shapes"].replace("{status}", status).replace("{saved}", _saved(status)) for status in UNFINISHED]
        # Counted here: SQL would sort the fingerprints, which takes twice as long where they are long.
        return counted(
            ((by, name, *carried_to(rest, version, fingerprint)), run_id)
            for by, name, version, fingerprint, run_id, rest in self._execute(" UNION ALL ".join(pieces))
        )

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
            check_kinds(_MAIL_KINDS, row, f"number {key}")
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
