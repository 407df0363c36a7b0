"""`Tx` on rows in memory: what the in-memory backend is made of, and how a run's file is worked on."""

from __future__ import annotations

import itertools
import os
from bisect import bisect_left, bisect_right
from collections.abc import Mapping

from flujo._clock import micros, moment
from flujo.state.backends._loading import carried_to
from flujo.state.backends._rows import COLUMNS, MAX_REV, Cut, LogRow, MailRow, RunQuery, RunRow, column, make_row
from flujo.state.backends.base import UNFINISHED, RunSummary, Shape
from flujo.state.backends.overview import counted


class RowTx:
    """`Tx` on dicts and lists. A run's rows lie in a list, save 1 first, and so do its messages."""

    me: int | None = 1

    def __init__(self) -> None:
        self._runs: dict[str, RunRow] = {}
        self._by_key: dict[int, RunRow] = {}
        self._logs: dict[int, list[LogRow]] = {}
        self._snapshots: dict[int, tuple[int, bytes, bytes]] = {}
        self._mail: dict[int, list[MailRow]] = {}
        self._keys = itertools.count(1)
        self._fences = itertools.count(1)

    def take(
        self, run: RunRow, log: list[LogRow], snapshot: tuple[int, bytes, bytes] | None, mail: list[MailRow]
    ) -> None:
        """Put a run in that comes from elsewhere."""
        self._mail[run.key] = mail
        self._runs[run.run_id] = self._by_key[run.key] = run
        self._logs[run.key] = log
        if snapshot is not None:
            self._snapshots[run.key] = snapshot

    def find(self, run_id: str) -> RunRow | None:
        run = self._runs.get(run_id)
        return None if run is None else _copy(run)

    def put_run(self, run: RunRow) -> None:
        run.key = run.key or next(self._keys)
        self._runs[run.run_id] = self._by_key[run.key] = _copy(run)
        self._logs.setdefault(run.key, [])

    def drop_run(self, key: int, *, mail: bool = True) -> None:
        del self._runs[self._by_key.pop(key).run_id]
        self._logs.pop(key, None)
        self._snapshots.pop(key, None)
        if mail:
            self._mail.pop(key, None)

    def newest(self, key: int) -> LogRow | None:
        log = self._logs.get(key)
        return log[-1] if log else None

    def row(self, key: int, rev: int) -> LogRow | None:
        log = self._logs.get(key, [])
        return log[rev - 1] if 0 < rev <= len(log) else None

    def rows(self, key: int, after_ended: int, limit: int | None) -> list[LogRow]:
        log = self._logs.get(key, [])
        start = bisect_right(log, after_ended, key=lambda row: row.ended)
        found = (log[place] for place in range(start, len(log)) if log[place].records is not None)
        return list(itertools.islice(found, limit))

    def identity(self, run: RunRow, row: LogRow) -> bytes:
        """Return what the row's checksum covers of its run: here all rows are the run's own."""
        return run.identity()

    def arrival(self, key: int, idx: int) -> int | None:
        log = self._logs.get(key, [])
        for place in range(len(log) - 1, -1, -1):
            if log[place].idx == idx and (place == 0 or log[place - 1].idx != idx):
                return place + 1
        return None

    def cut(self, run: RunRow, rev: int) -> Cut | None:
        log, snapshot = self._logs.get(run.key, []), self._snapshots.get(run.key)
        if rev > len(log):
            return None
        kept = snapshot if snapshot is not None and snapshot[0] <= rev else None
        return Cut(run.key, rev, run.identity(), run.key, log[rev - 1].sum if rev else b"", log[:rev], kept)

    def is_there(self, cut: Cut) -> bool:
        """Return whether the rows are still there: these are copies."""
        return True

    def put_fork(self, run: RunRow, cut: Cut) -> None:
        """Put a run in that begins with these rows: what they hold is shared, and they are its own."""
        self.put_run(run)
        log, before = self._logs[run.key], b""
        for row in cut.rows:
            log.append(make_row(run.identity(), before, run.key << 24 | row.rev, *row[1:-1]))
            before = log[-1].sum
        if cut.snapshot is not None:
            self._snapshots[run.key] = cut.snapshot

    def put_row(self, row: LogRow) -> None:
        self._logs[row.seq >> 24].append(row)

    def deltas(self, key: int, after: int, upto: int) -> list[bytes]:
        return [row.delta for row in self._logs[key][after:upto] if row.delta is not None]

    def append(self, row: LogRow, fence: int) -> bool:
        run = self._by_key.get(row.seq >> 24)
        log = self._logs.get(row.seq >> 24)
        if run is None or log is None or run.fence != fence or len(log) != (row.seq & MAX_REV) - 1:
            return False
        log.append(row)
        return True

    def snapshot(self, key: int, rev: int) -> tuple[bytes, bytes] | None:
        found = self._snapshots.get(key)
        return found[1:] if found and found[0] == rev else None

    def put_snapshot(self, seq: int, text: bytes, check: bytes) -> None:
        self._snapshots[seq >> 24] = (seq & MAX_REV, text, check)

    def finish(self, key: int, fence: int, row: LogRow, error: str | None, due: int | None) -> None:
        run = self._by_key[key]
        run.status, run.rev, run.updated_at, run.busy = row.status, row.rev, row.at, row.busy
        run.error_message, run.due_at, run.fence, run.owner = error, due, None, None

    def set_free(self, key: int, fence: int, status: str = "running") -> None:
        run = self._by_key.get(key)
        if run is not None and run.fence == fence:
            run.status, run.fence, run.owner = status, None, None

    def next_mail(self, key: int, known: int) -> int:
        return known + 1

    def put_mail(self, key: int, row: MailRow) -> None:
        self._mail.setdefault(key, []).append(row)

    def mail(self, key: int, after: int, limit: int | None) -> list[MailRow]:
        mail = self._mail.get(key, [])
        start = bisect_right(mail, after, key=_seq)
        return mail[start : None if limit is None else start + limit]

    def newest_mail(self, key: int) -> MailRow | None:
        mail = self._mail.get(key)
        return mail[-1] if mail else None

    def mail_before(self, key: int, seq: int) -> MailRow | None:
        mail = self._mail.get(key, [])
        place = bisect_left(mail, seq, key=_seq)
        return mail[place - 1] if place else None

    def mail_of_id(self, key: int, id: str) -> MailRow | None:
        return next((row for row in self._mail.get(key, ()) if row.id == id), None)

    def mail_beginning(self, key: int, prefix: str) -> list[MailRow]:
        return [row for row in self._mail.get(key, ()) if row.id.startswith(prefix)]

    def count_mail(self, key: int, after: int) -> int:
        return len(self.mail(key, after, None))

    def move_mail(self, old: int, new: int) -> None:
        if old in self._mail:
            self._mail[new] = self._mail.pop(old)

    def set_due(self, key: int, due: int) -> None:
        self._by_key[key].due_at = due

    def draw_fence(self) -> int:
        return next(self._fences)

    def owner_of(self, run: RunRow) -> str | None:
        return None

    def beat(self) -> None:
        """Do nothing: who lives is known without it."""

    def list_runs(self, query: RunQuery) -> list[RunSummary]:
        since = 0 if query.since is None else micros(query.since)
        found = [r for r in self._saved(query.where) if r.updated_at >= since]
        found.sort(key=_recency, reverse=True)
        if query.after is not None:
            last = self._runs.get(query.after)
            found = [r for r in found if last is not None and _recency(r) < _recency(last)]
        return [self._summary(r) for r in found[query.offset : query.offset + query.limit]]

    def count_runs(self, where: Mapping[str, str], by: str) -> dict[str, tuple[int, int]]:
        counts: dict[str, tuple[int, int]] = {}
        for run in self._saved(where):
            count, busy = counts.get(getattr(run, column(by)), (0, 0))
            counts[getattr(run, by)] = (count + 1, busy + run.busy)
        return counts

    def old_runs(self, status: str, before: int, limit: int) -> list[tuple[int, str, int]]:
        found = [r for r in self._saved({"status": status}) if r.updated_at < before]
        return [(r.key, r.run_id, r.rev) for r in found[:limit]]

    def recent(self, since: int) -> int:
        return sum(run.updated_at >= since for run in self._saved({}))

    def failed(self, limit: int) -> list[tuple[str, str | None, int]]:
        found = sorted(self._saved({"status": "failed"}), key=_recency, reverse=True)
        return [(run.run_id, run.error_message, run.updated_at) for run in found[:limit]]

    def shapes(self) -> list[Shape]:
        return counted(
            (
                (
                    run.pipeline_id,
                    run.pipeline_name,
                    *carried_to(self._logs[run.key][-1].rest, run.pipeline_version, run.fingerprint),
                ),
                run.run_id,
            )
            for run in self._saved({})
            if run.status in UNFINISHED
        )

    def owner_facts(self, run: RunRow) -> tuple[str, bool]:
        """Return who the run's owner is, and whether another process that is alive."""
        return f"process {os.getpid()}", False

    def runs_after(self, key: int, limit: int) -> list[tuple[int, str]]:
        return [(other, run.run_id) for other, run in sorted(self._by_key.items()) if other > key][:limit]

    def _saved(self, where: Mapping[str, str]) -> list[RunRow]:
        wanted = {column(name): value for name, value in where.items()}
        return [
            run
            for run in self._by_key.values()
            if self._logs[run.key] and all(getattr(run, name) == value for name, value in wanted.items())
        ]

    def _summary(self, run: RunRow) -> RunSummary:
        tip = self._logs[run.key][-1]
        return RunSummary(
            run_id=run.run_id, pipeline_id=run.pipeline_id, pipeline_name=run.pipeline_name,
            pipeline_version=run.pipeline_version, status=run.status, current_step_index=tip.idx,
            total_steps=run.total_steps, error_message=run.failure,
            created_at=moment(run.created_at), updated_at=moment(tip.at), execution_time_ms=tip.busy / 1000,
            due_at=moment(run.due_at) if run.due_at is not None and run.status == "paused" else None,
        )  # fmt: skip


def _recency(run: RunRow) -> tuple[int, int]:
    return run.updated_at, run.key


def _seq(row: MailRow) -> int:
    return row.seq


def _copy(run: RunRow) -> RunRow:
    return RunRow(**{name: getattr(run, name) for name in COLUMNS})
