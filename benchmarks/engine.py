"""The engine alone: steps that do nothing, kept in memory."""

from __future__ import annotations

import asyncio
import time

from benchmarks.measure import Bench, Figure, Row, alternate, no_op_pipeline
from flujo import Flujo, InMemoryBackend

SIZES = (100, 1000, 10_000)


def measure(bench: Bench) -> Row:
    pipelines = {size: no_op_pipeline(size) for size in SIZES}

    async def runs(size: int) -> float:
        times = max(1, 2000 // size)
        backend = InMemoryBackend()
        runner = Flujo(pipelines[size], state_backend=backend)
        start = time.perf_counter()
        for _ in range(times):
            await runner.run_async(0)
        return (time.perf_counter() - start) / times / size * 1e6

    def side(size: int) -> float:
        return asyncio.run(runs(size))

    samples = alternate(bench.rounds(9), *[lambda size=size: side(size) for size in SIZES])
    figures = [
        Figure(name=f"{size:,} steps", unit="us a step", samples=found)
        for size, found in zip(SIZES, samples, strict=True)
    ]
    flat = max(f.median for f in figures) / min(f.median for f in figures)
    slowest = max(f.median for f in figures)
    return Row(
        name="engine",
        what="the engine alone (in memory, no-op steps), 100 to 10,000 steps a run",
        target="at most 20 us a step, within 1.5 x",
        measured=f"{' / '.join(f'{f.median:.1f}' for f in figures)} us a step; within {flat:.2f} x",
        met=slowest <= 20 and flat <= 1.5,
        figures=[*figures, Figure(name="flatness", unit="x", samples=[flat])],
    )
