"""A context of 1 MB of which every step changes 1 KB, or appends 1 KB: what reaches the WAL, and how long it takes."""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.measure import INSERT, Bench, Figure, Row, bare, ratios, saved_rows
from flujo import Flujo, Pipeline, SQLiteBackend, Step, step

RECORDS, KB = 1000, 1000
FRAME = 24 + 4096


class Archive(BaseModel):
    """A context of about 1 MB: 1,000 records of about 1 KB."""

    title: str = "archive"
    records: list[dict[str, Any]]
    edits: int = 0


def record(number: int) -> dict[str, Any]:
    return {"id": number, "tags": ["a", "b"], "score": number / 7, "text": f"{number:08}" * ((KB - 60) // 8)}


def change(context: Archive) -> None:
    context.edits += 1
    context.records[context.edits * 37 % RECORDS] = record(RECORDS + context.edits)


def append(context: Archive) -> None:
    context.edits += 1
    context.records.append(record(RECORDS + context.edits))


class Wal:
    """Counts the bytes that reach a WAL file, by its frames, over resets. Nothing is ever locked on that file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        self._salts = b""
        self._at = 32

    def grown(self) -> int:
        """Return how many bytes were written since the last call."""
        salts = os.pread(self._file, 8, 16)
        if salts != self._salts:
            self._salts, self._at = salts, 32
        start = self._at
        while os.pread(self._file, 16, self._at)[8:] == salts:
            self._at += FRAME
        return self._at - start

    def close(self) -> None:
        os.close(self._file)


def pipeline(steps: int, edit: Callable[[Archive], None], after: Callable[[], None]) -> Pipeline[int, int]:
    """Return a pipeline whose steps edit the context; `after` is called before each, when the last one is saved."""

    def make(name: str) -> Step[int, int]:
        async def editing(value: int, *, context: Archive) -> int:
            after()
            edit(context)
            return value

        return step(name=name)(editing)

    return Pipeline.of(*[make(f"s{number}") for number in range(steps)])


def wal_bytes(bench: Bench, name: str, edit: Callable[[Archive], None], steps: int) -> list[float]:
    """Return the KB of WAL that each step's save wrote, but for the first, which writes the context whole."""
    path = bench.folder / f"{name}.db"
    backend = SQLiteBackend(path)
    grown: list[int] = []
    wal: list[Wal] = []

    def after() -> None:
        if not wal:
            wal.append(Wal(Path(f"{path}-wal")))
        grown.append(wal[0].grown())

    runner = Flujo(
        pipeline(steps, edit, after),
        state_backend=backend,
        context_model=Archive,
        initial_context_data={"records": [record(n) for n in range(RECORDS)]},
    )
    runner.run(0)
    wal[0].close()
    asyncio.run(backend.close())
    return whole_cycle([size / 1024 for size in grown[2:]])


def whole_cycle(sizes: list[float]) -> list[float]:
    """Return the sizes up to the last save that wrote the context whole, so that none lacks its steps."""
    snapshots = [place for place, size in enumerate(sizes) if size > RECORDS * KB / 2 / 1024]
    return sizes[: snapshots[-1] + 1] if snapshots else sizes


def times(bench: Bench, edit: Callable[[Archive], None], steps: int, rounds: int) -> tuple[Figure, ...]:
    """Return ms a step of flujo's, ms of encoding and a bare commit of the same row, and the ratio."""
    path = bench.folder / f"{edit.__name__}-time.db"
    backend = SQLiteBackend(path)
    marks: list[float] = []
    runner = Flujo(
        pipeline(steps, edit, lambda: marks.append(time.perf_counter())),
        state_backend=backend,
        context_model=Archive,
        initial_context_data={"records": [record(n) for n in range(RECORDS)]},
    )
    runner.run(0)
    (row,) = saved_rows(path, 1)
    connection = bare(bench.folder / f"{edit.__name__}-bare.db")
    keys = itertools.count(1)
    ours, theirs, encoding = [], [], []
    for _ in range(rounds):
        marks.clear()
        runner.run(0)
        gaps = [b - a for a, b in itertools.pairwise(marks)]
        ours.append(statistics.median(gaps[1:]) * 1000)
        context = Archive(records=[record(n) for n in range(RECORDS)])
        whole, parts = [], []
        for _ in range(steps):
            start = time.perf_counter()
            edit(context)
            backend.codec.encode_fields({name: getattr(context, name) for name in Archive.model_fields})
            encoded = time.perf_counter()
            connection.execute(INSERT, (next(keys), *row[1:]))
            parts.append(encoded - start)
            whole.append(time.perf_counter() - start)
        theirs.append(statistics.median(whole) * 1000)
        encoding.append(statistics.median(parts) * 1000)
    connection.close()
    asyncio.run(backend.close())
    return (
        ratios(ours, theirs, f"{edit.__name__}: ratio"),
        Figure(name=f"{edit.__name__}: flujo", unit="ms a step", samples=ours),
        Figure(name=f"{edit.__name__}: encode + commit", unit="ms a step", samples=theirs),
        Figure(name=f"{edit.__name__}: encode alone", unit="ms a step", samples=encoding),
    )


def measure(bench: Bench) -> Row:
    # A snapshot is due after about 2 MB of deltas: with fewer steps the mean leaves it out.
    steps = 200 if bench.quick else 2200
    medians, means, timings = [], [], []
    for edit in (change, append):
        sizes = wal_bytes(bench, edit.__name__, edit, steps)
        medians.append(Figure(name=f"{edit.__name__}: WAL, median", unit="KB", samples=[statistics.median(sizes)]))
        means.append(Figure(name=f"{edit.__name__}: WAL, mean", unit="KB", samples=[statistics.fmean(sizes)]))
        timings.append(times(bench, edit, 40, bench.rounds(5)))
    slowest = max(timing[0].median for timing in timings)
    median, mean = max(f.median for f in medians), max(f.median for f in means)
    return Row(
        name="context",
        what="bytes of WAL a step, 1 MB context of which 1 KB changed or was appended; its time",
        target="at most 5 KB median, 8 KB mean; 2 x (encode + commit)",
        measured=f"{median:.1f} KB median, {mean:.1f} KB mean; {slowest:.2f} x",
        met=median <= 5 and mean <= 8 and slowest <= 2,
        figures=[*medians, *means, *itertools.chain.from_iterable(timings)],
    )
