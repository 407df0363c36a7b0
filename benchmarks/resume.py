"""Going on with a run at step 10,000, against one at step 10.

Every tenth step changes the context, so that the place of the last change is not the place of the last save.
"""

from __future__ import annotations

import asyncio
import time

from pydantic import BaseModel

from benchmarks.measure import Bench, Figure, Row, alternate, ratios
from flujo import Flujo, Pipeline, SQLiteBackend, Step, current_step, step

EARLY, LATE = 10, 10_000


class Marks:
    """When the step that a run goes on with was reached."""

    reached = 0.0


class Notes(BaseModel):
    """A context of about 1 KB, in which a number changes."""

    text: str = "note " * 200
    changes: int = 0


def pipeline(steps: int) -> Pipeline[int, int]:
    """Return a pipeline that stops, whenever it is tried, at the step that is the run's id."""
    return Pipeline.of(*[_noting(f"s{n}") if n % 10 == 5 else _stopping(f"s{n}") for n in range(steps)])


def _noting(name: str) -> Step[int, int]:
    async def note(value: int, *, context: Notes) -> int:
        context.changes += 1
        return value

    return step(name=name)(note)


def _stopping(name: str) -> Step[int, int]:
    async def stop(value: int) -> int:
        current = current_step()
        if current.run_id == name:
            Marks.reached = time.perf_counter()
            raise RuntimeError("stops here")
        return value

    return step(name=name)(stop)


def measure(bench: Bench) -> Row:
    backend = SQLiteBackend(bench.folder / "flujo.db")
    long = Flujo(pipeline(LATE + 1), pipeline_name="long", state_backend=backend, context_model=Notes)
    other = SQLiteBackend(bench.folder / "short.db")
    short = Flujo(pipeline(EARLY + 1), pipeline_name="short", state_backend=other, context_model=Notes)
    long.run(0, run_id=f"s{LATE}")
    long.run(0, run_id=f"s{EARLY}")
    short.run(0, run_id=f"s{EARLY}")

    def resumed(runner: Flujo[int, int], run_id: str) -> float:
        """Return the ms from the call of `run` to the call of the step that it goes on with."""
        start = time.perf_counter()
        runner.run(0, run_id=run_id)
        return (Marks.reached - start) * 1000

    late, early, small = alternate(
        bench.rounds(41),
        lambda: resumed(long, f"s{LATE}"),
        lambda: resumed(long, f"s{EARLY}"),
        lambda: resumed(short, f"s{EARLY}"),
        warm_up=3,
    )
    asyncio.run(backend.close())
    asyncio.run(other.close())
    at_late = Figure(name="step 10,000 of 10,001", unit="ms", samples=late)
    at_early = Figure(name="step 10 of 10,001", unit="ms", samples=early)
    at_small = Figure(name="step 10 of 11", unit="ms", samples=small)
    ratio = at_late.median / at_early.median
    against_small = at_late.median / at_small.median
    return Row(
        name="resume",
        what="resuming at step 10,000 against step 10, from `run` to the step's call",
        target="at most 1.2 x",
        measured=f"{ratio:.2f} x of the same pipeline, {against_small:.2f} x of one of 11 steps",
        met=ratio <= 1.2 and against_small <= 1.2,
        figures=[at_late, at_early, at_small, ratios(late, small, "against 11 steps, by round")],
    )
