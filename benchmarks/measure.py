"""What the workloads share: rounds that alternate, figures with their spread, and the bare sides' connection."""

from __future__ import annotations

import os
import sqlite3
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flujo import Pipeline, Step, step

LOG_TABLE = """
CREATE TABLE log (
    seq INTEGER PRIMARY KEY, idx INTEGER NOT NULL, status TEXT NOT NULL, at INTEGER NOT NULL, busy INTEGER NOT NULL,
    ended INTEGER NOT NULL, out_rev INTEGER NOT NULL, snap_rev INTEGER NOT NULL, records BLOB, output BLOB, delta BLOB,
    ctx BLOB NOT NULL, rest BLOB, sum BLOB NOT NULL
) STRICT
"""
INSERT = "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured quantity: a sample a round."""

    name: str
    unit: str
    samples: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def worst(self) -> float:
        return max(self.samples)

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit not in ("", "x") else self.unit
        spread = ""
        if len(self.samples) > 1:
            spread = f" ({number(min(self.samples))} to {number(max(self.samples))})"
        return f"{number(self.median)}{unit}{spread}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One budget: what was measured, what it has to be, and whether it is."""

    name: str
    what: str
    target: str
    measured: str
    met: bool
    figures: Sequence[Figure] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a workload is given: a folder of its own on the disk to be measured, and whether to be quick."""

    folder: Path
    quick: bool

    def rounds(self, full: int) -> int:
        return min(3, full) if self.quick else full


def number(value: float) -> str:
    """Write a number with three digits that matter."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def alternate(rounds: int, *sides: Callable[[], float], warm_up: int = 1) -> list[list[float]]:
    """Run the sides in turn, round after round, the order turned each time; return each side's samples."""
    samples: list[list[float]] = [[] for _ in sides]
    for turn in range(warm_up + rounds):
        order = list(range(len(sides)))
        if turn % 2:
            order.reverse()
        for side in order:
            value = sides[side]()
            if turn >= warm_up:
                samples[side].append(value)
    return samples


def ratios(over: Sequence[float], under: Sequence[float], name: str = "ratio") -> Figure:
    """Return the ratio of each round's two samples."""
    return Figure(name=name, unit="x", samples=[a / b for a, b in zip(over, under, strict=True)])


def timed(work: Callable[[], object]) -> float:
    """Return how many seconds `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare(path: Path) -> sqlite3.Connection:
    """Open the bare side's file: the durability of flujo's, SQLite's own checkpoints, the same table of saves."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_autocheckpoint=1000").fetchall()
    connection.execute(LOG_TABLE)
    return connection


def saved_rows(path: Path, limit: int) -> list[tuple[object, ...]]:
    """Return the newest saves of a flujo store, so that the bare side writes the very same bytes."""
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT * FROM flujo_log ORDER BY seq DESC LIMIT ?", (limit,)).fetchall()
    finally:
        connection.close()
    return rows[::-1]


def no_op_pipeline(steps: int) -> Pipeline[int, int]:
    """Return a pipeline of that many steps that do nothing."""
    return Pipeline.of(*[_no_op(f"s{number}") for number in range(steps)])


def _no_op(name: str) -> Step[int, int]:
    async def same(value: int) -> int:
        return value

    return step(name=name)(same)


def sync_cost(folder: Path) -> float:
    """Return the median of what an fdatasync of 4 KB costs here, in ms."""
    path = folder / "sync"
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.write(handle, bytes(1 << 20))
        os.fsync(handle)
        samples = []
        for turn in range(100):
            os.pwrite(handle, os.urandom(4096), turn * 4096)
            samples.append(timed(lambda: getattr(os, "fdatasync", os.fsync)(handle)))
    finally:
        os.close(handle)
        path.unlink()
    return statistics.median(samples) * 1000
