"""Stores of very many runs, quickly: real runs are copied with checksums of their own, so that each can be read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flujo.state.backends._rows import COLUMNS, LogRow, RunRow, row_sum

_AGE_US = 1_000_000  # each run was updated so long before the next


def fill(path: Path, shares: dict[str, int]) -> int:
    """Copy runs, each as often as said, and return how many there are then; the store is closed."""
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-300000"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    connection.execute("BEGIN")
    key = connection.execute("SELECT max(key) FROM flujo_run").fetchone()[0]
    for run_id, count in shares.items():
        template = _Template(connection, run_id)
        for table, rows in template.copies(key, count):
            marks = ", ".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        key += count
    connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
    total: int = connection.execute("SELECT count(*) FROM flujo_run").fetchone()[0]
    connection.close()
    return total


class _Template:
    def __init__(self, connection: sqlite3.Connection, run_id: str) -> None:
        self.names = [row[1] for row in connection.execute("PRAGMA table_info(flujo_run)")]
        found = connection.execute("SELECT * FROM flujo_run WHERE run_id = ?", (run_id,)).fetchone()
        self.run: dict[str, Any] = dict(zip(self.names, found, strict=True))
        key = self.run["key"]
        self.start = connection.execute("SELECT * FROM flujo_start WHERE key = ?", (key,)).fetchone()
        where = f"seq > {key} << 24 AND seq < ({key} + 1) << 24"
        self.log = [LogRow(*row) for row in connection.execute(f"SELECT * FROM flujo_log WHERE {where} ORDER BY seq")]
        assert not connection.execute(f"SELECT 1 FROM flujo_snapshot WHERE {where}").fetchone()

    def copies(self, key: int, count: int) -> Iterator[tuple[str, list[Any]]]:
        """Yield tables and rows for them."""
        runs, starts, log = [], [], []
        for number in range(1, count + 1):
            run = {**self.run, "key": key + number, "run_id": f"{self.run['run_id']}-{number:06}"}
            run["updated_at"] -= number * _AGE_US
            runs.append(tuple(run[name] for name in self.names))
            starts.append((key + number, *self.start[1:]))
            facts = {name: run[name] for name in COLUMNS if name in run}
            before, identity = b"", RunRow(**facts, fingerprint=self.start[1], input=self.start[2]).identity()
            for row in self.log:
                moved = row._replace(seq=(key + number) << 24 | row.rev)
                before = row_sum(identity, before, moved[:-1])
                log.append(moved._replace(sum=before))
        yield "flujo_run", runs
        yield "flujo_start", starts
        yield "flujo_log", log
