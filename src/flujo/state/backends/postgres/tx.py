"""`Tx` in PostgreSQL: every statement that a transaction on a store there consists of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flujo._clock import micros, moment
from flujo.state.backends._ledger import Save
from flujo.state.backends._rows import COLUMNS, Cut, LogRow, MailRow, RunQuery, RunRow, column
from flujo.state.backends.base import UNFINISHED, RunSummary, Shape
from flujo.state.backends.overview import counted
from flujo.state.backends.postgres.connection import Connection
from flujo.state.backends.postgres.log import LogTx
from flujo.state.models import STATUSES

_RENEWED = tuple(name for name in COLUMNS if name not in ("fingerprint", "input"))
_COLUMNS_SQL = {name: f"r.{name}" for name in COLUMNS}
_COLUMNS_SQL["failure"] = "(CASE WHEN r.status <> 'running' THEN r.error_message END)"
_BEYOND = (1 << 63) - 1  # no message has this number
_SAVED = (
    "EXISTS (SELECT 1 FROM flujo.log AS l WHERE l.seq > r.key << 24 AND l.seq < (r.key + 1) << 24)"  # of a running run
)


class PostgresTx(LogTx):
    """The statements on one connection. `me` is this process's owner number, or None before its first claim.

    Without `fences` it only reads.
    """

    def __init__(
        self, connection: Connection, sql: Mapping[str, bytes], fences: Callable[[], int] | None = None
    ) -> None:
        super().__init__(connection, sql, locking=fences is not None)
        self._draw = fences
        self._ahead: dict[str, Any] = {}  # rows of runs that were read for a whole batch
        self._keys: list[int] = []
        self.me: int | None = None

    def begin(self) -> None:
        self._ahead.clear()
        self._keys.clear()  # a key is greater than those of all runs that were there before
        super().begin()

    def look_ahead(self, run_ids: Sequence[str]) -> None:
        """Read the runs' rows at once (and lock them, always in the same order), and draw keys for those not there."""
        wanted = list(dict.fromkeys(run_ids))
        found = self._find(wanted)
        missing = [run_id for run_id in wanted if run_id not in found]
        if missing and self.locking:
            found |= self._find(missing)  # one that was made anew while its old row was waited for
            self._keys += [key for (key,) in self._all("new_keys", len(missing) - len(self._keys))]
        self._ahead = dict.fromkeys(wanted) | found

    def _find(self, run_ids: list[str]) -> dict[str, Any]:
        query = self._sql["find"] + (b" FOR UPDATE OF r" if self.locking else b"")
        rows = self._connection.cursor(binary=True).execute(query, (run_ids,)).fetchall()
        return {row[1]: row for row in rows}

    def find(self, run_id: str) -> RunRow | None:
        if run_id not in self._ahead:
            self.look_ahead([run_id])
        found = self._ahead.pop(run_id)  # what is asked again may have changed
        return None if found is None else RunRow(**dict(zip(COLUMNS, found, strict=True)))

    def lock(self, key: int) -> None:
        """Keep everybody else from writing to the run until the end of this transaction."""
        self._send("lock_run", key)

    def put_run(self, run: RunRow) -> None:
        if run.key:  # what it began with is there
            self._send("renew_run", *[getattr(run, name) for name in _RENEWED])
        else:
            self._insert("insert_run", run, run.fingerprint, run.input)

    def put_fork(self, run: RunRow, cut: Cut) -> None:
        self._insert("insert_fork", run, cut.key, cut.rev, cut.start, cut.identity)

    def _insert(self, name: str, run: RunRow, *more: Any) -> None:
        ahead = self._keys and name == "insert_run"
        run.key = self._keys.pop() if ahead else self._one("new_keys", 1)[0]
        self._send(name, *[getattr(run, column) for column in _RENEWED], *more)
        if name == "insert_run":
            self._new.add(run.key)

    def append(self, row: LogRow, fence: int) -> bool:
        self._new.discard(row.seq >> 24)
        return self._one("append", *row, fence) is not None

    def append_all(self, saves: Sequence[Save]) -> set[int]:
        """Append rows that nothing else goes with; return the `seq` of those that were appended."""
        if len(saves) == 1:
            return {saves[0].row.seq} if self.append(saves[0].row, saves[0].held.fence) else set()
        return {seq for (seq,) in self._all("append_all", *_by_column((*s.row, s.held.fence) for s in saves))}

    def finish_all(self, saves: Sequence[Save]) -> set[int]:
        """Append last rows, and free their runs; return the `seq` of those that were appended."""
        values = _by_column((*s.row, s.held.fence, s.error, s.due) for s in saves)
        return {seq for (seq,) in self._all("finish_all", *values)}

    def finish(self, key: int, fence: int, row: LogRow, error: str | None, due: int | None) -> None:
        self._send("finish", row.status, row.rev, row.at, row.busy, error, due, key, fence)

    def set_free(self, key: int, fence: int, status: str = "running") -> None:
        self._send("set_free", status, key, fence)
        if status == "running":
            self._send("notify_work", str(key))

    def draw_fence(self) -> int:
        assert self._draw is not None
        return self._draw()

    def owner_of(self, run: RunRow) -> str | None:
        who, alive = self.owner_facts(run)
        return who if alive else None

    def owner_facts(self, run: RunRow) -> tuple[str, bool]:
        found = self._one("owner", run.owner)
        if found is None:
            return "a process that is gone", False
        host, pid, lives = found
        return f"process {pid} on {host}", bool(lives) and run.owner != self.me

    def list_runs(self, query: RunQuery) -> list[RunSummary]:
        values: list[Any] = []

        def value(given: Any) -> str:
            values.append(given)
            return f"${len(values)}"

        shared = [f"{_COLUMNS_SQL[column(name)]} = {value(v)}" for name, v in query.where.items() if name != "status"]
        if query.since is not None:
            shared.append(f"r.updated_at >= {value(micros(query.since))}")
        if query.after is not None:
            last = self.find(query.after)
            if last is None:
                return []
            shared.append(f"(r.updated_at, r.key) < ({value(last.updated_at)}, {value(last.key)})")
        # One ordered piece a status, so that each is a range of an index; the pieces are merged outside.
        pieces = []
        most = value(query.limit + query.offset)
        for status in [query.where["status"]] if "status" in query.where else STATUSES:
            filters = [f"r.status = '{status}'" if status in STATUSES else "false", *shared]
            filters += [self._saved()] if status == "running" else []
            pieces.append(self._text("list_of_status", filter=" AND ".join(filters), most=most))
        limits = {"limit": value(query.limit), "offset": value(query.offset)}
        text = self._text("list_runs", found=" UNION ALL ".join(pieces), **limits)
        return [_summary(row) for row in self._connection.cursor(binary=True).execute(text.encode(), values)]

    def count_runs(self, where: Mapping[str, str], by: str) -> dict[str, tuple[int, int]]:
        filters = [f"{_COLUMNS_SQL[column(name)]} = ${n}" for n, name in enumerate(where, 1)] or ["true"]
        text = self._text("count_runs", filter=" AND ".join(filters), by=_COLUMNS_SQL[column(by)])
        rows = self._connection.cursor(binary=True).execute(text.encode(), list(where.values()))
        return {name: (count, busy) for name, count, busy in rows}

    def _text(self, name: str, **parts: str) -> str:
        text = self._sql[name].decode()
        for part, content in parts.items():
            text = text.replace(f"{{{part}}}", content)
        return text

    def _saved(self) -> str:
        schema = self._sql["is_run"].decode().split("FROM ")[1].split(".")[0]
        return _SAVED.replace("flujo.", f"{schema}.")

    def old_runs(self, status: str, before: int, limit: int) -> list[tuple[int, str, int]]:
        query = self._sql["old_runs"] + (b" FOR UPDATE SKIP LOCKED" if self.locking else b"")
        return self._connection.cursor(binary=True).execute(query, (status, before, limit)).fetchall()

    def recent(self, since: int) -> int:
        return int(self._one("recent", list(STATUSES), since)[0])

    def failed(self, limit: int) -> list[tuple[str, str | None, int]]:
        return self._all("failed", limit)

    def shapes(self) -> list[Shape]:
        return counted((row[:4], row[4]) for row in self._all("shapes", list(UNFINISHED)))

    def runs_after(self, key: int, limit: int) -> list[tuple[int, str]]:
        return self._all("runs_after", key, limit)

    def due_runs(self, serves: Sequence[tuple[str, str]], now: int, limit: int) -> list[str]:
        """Return runs of these pipelines that are due and that nobody has, and keep others from finding them."""
        names, versions = [name for name, _ in serves], [version for _, version in serves]
        return [run_id for (run_id,) in self._all("due_runs", names, versions, now, limit)]

    def next_mail(self, key: int, known: int) -> int:
        return int(self._one("next_mail", known)[0])

    def put_mail(self, key: int, row: MailRow) -> None:
        self._new.discard(key)
        self._send("put_mail", *row, key)

    def mail(self, key: int, after: int, limit: int | None) -> list[MailRow]:
        return self._mail("mail", key, after, _BEYOND if limit is None else limit)

    def newest_mail(self, key: int) -> MailRow | None:
        return None if key in self._new else self.mail_before(key, _BEYOND)

    def mail_before(self, key: int, seq: int) -> MailRow | None:
        found = self._mail("mail_before", key, seq)
        return found[0] if found else None

    def mail_of_id(self, key: int, id: str) -> MailRow | None:
        found = self._mail("mail_of_id", key, id)
        return found[0] if found else None

    def mail_beginning(self, key: int, prefix: str) -> list[MailRow]:
        return self._mail("mail_beginning", key, prefix)

    def _mail(self, name: str, key: int, *values: Any) -> list[MailRow]:
        return list(map(MailRow._make, self._all(name, key, *values)))

    def count_mail(self, key: int, after: int) -> int:
        return int(self._one("count_mail", key, after)[0])

    def move_mail(self, old: int, new: int) -> None:
        self._new.discard(new)
        self._send("move_mail", new, old)

    def set_due(self, key: int, due: int) -> None:
        self._send("set_due", due, key)

    def news(self, keys: Sequence[int]) -> dict[int, int]:
        """Return the newest message of each of these runs that has any."""
        return dict(self._all("news", list(keys)))

    def xid(self) -> str | None:
        """Return the number of this transaction, or None where it has written nothing."""
        found: str | None = self._one("xid")[0]
        return found

    def status_of(self, xid: str) -> str | None:
        """Return what became of a transaction: "committed", "aborted", "in progress", or None: not known."""
        found: str | None = self._one("status_of", xid)[0]
        return found

    def beat(self) -> None:
        """Do nothing: the lease is renewed by a thread of its own. See `pulse.py`."""


def _by_column(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(values) for values in zip(*sorted(rows, key=_seq), strict=True)]  # locked in the same order everywhere


def _seq(row: tuple[Any, ...]) -> int:
    seq: int = row[0]
    return seq


def _summary(row: tuple[Any, ...]) -> RunSummary:
    return RunSummary(
        run_id=row[0], pipeline_id=row[1], pipeline_name=row[2], pipeline_version=row[3], status=row[4],
        current_step_index=row[5], total_steps=row[6], error_message=row[7],
        created_at=moment(row[8]), updated_at=moment(row[9]), execution_time_ms=row[10] / 1000,
        due_at=moment(row[11]) if row[11] is not None else None,
    )  # fmt: skip
