"""Six steps that leave traces, the points at which their process can die, and the child that runs them.

A point's name says where: ``save@3 commit before`` is before the COMMIT that saves step 3. The journal has a line for
each thing that happened, so that what the store says can be held against what was done and what was acknowledged.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import os
import re
import signal
import sqlite3
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from flujo import Flujo, Pipeline, PipelineResult, SQLiteBackend, current_step, step
from flujo.execution.events import Event, StepSaved
from tests.support.crash_forks import Journal, call

STEPS = 6
INPUT = 7
MODES = ("inline", "inline-stock", "async", "iterated-stock")
_VM_STEPS = 3  # the progress handler is called every so many instructions of SQLite's virtual machine


class Notes(BaseModel):
    """A context that grows: by one line a step, and once by more than its deltas may hold."""

    lines: list[str] = []
    text: str = ""
    tries: int = 0


class Points:
    """Counts the points that this process passes, and kills it at one of them."""

    def __init__(self, kill: tuple[str, int] | None) -> None:
        self.phase = "open"
        self.tell: Callable[[str], None] | None = None
        self._kill = kill
        self._passed: collections.Counter[str] = collections.Counter()

    def __call__(self, what: str) -> None:
        name = f"{self.phase} {what}"
        self._passed[name] += 1
        if self.tell is not None:
            self.tell(name)
        if self._kill == (name, self._passed[name]):
            os.kill(os.getpid(), signal.SIGKILL)


class Traced(sqlite3.Connection):
    """A connection with a point before and after each statement that changes something, and within it."""

    points: Points

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        label = _label(sql)
        if label is None:
            if "WHERE run_id = ?" in sql and self.points.phase == "open":
                self.points.phase = "claim"
            return super().execute(sql, *values)
        self.points(f"{label} before")
        self.set_progress_handler(lambda: self.points(f"{label} within"), _VM_STEPS)
        try:
            return super().execute(sql, *values)
        finally:
            self.set_progress_handler(None, 0)
            self.points(f"{label} after")


def _label(sql: str) -> str | None:
    words = re.sub(r"--.*", "", sql).split()
    verb = words[0].lower()
    if verb in ("begin", "commit", "rollback"):
        return "begin immediate" if "IMMEDIATE" in sql else None if verb == "begin" else verb
    if verb == "pragma":
        return f"pragma {words[1].partition('=')[0]}" if "=" in sql or "checkpoint" in sql else None
    table = next((word for word in words if word.startswith(("flujo_", "workflow_state"))), "")
    return f"{verb} {table}" if verb in ("insert", "update", "delete", "create") else None


class Child:
    """One process's attempt at the run: what it runs, and what it writes down."""

    def __init__(self, journal: Journal, kill: tuple[str, int] | None = None, interrupt: int | None = None) -> None:
        self.journal = journal
        self.points = Points(kill)
        self.stall: Callable[[int], None] | None = None  # called in each step, after its effect
        self._interrupt = interrupt
        self.index = -1
        self.tried = -1

    def connect(self, path: str) -> sqlite3.Connection:
        self.points("connect before")
        factory = type("Connection", (Traced,), {"points": self.points})
        made = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, factory=factory)
        self.points("connect after")
        return made

    def enter(self, index: int, given: Any, context: Notes | None) -> None:
        """A step begins: a point before its effect, the effect, a point after it."""
        current = current_step()
        self.index, self.points.phase = index, f"step@{index}"
        self.points("before")
        self.journal.write(
            "effect",
            index=index,
            attempt=current.attempt,
            key=current.idempotency_key,
            given=digest(given),
            context=digest(context),
        )
        self.points("inside")
        if self.stall is not None:
            self.stall(index)
        if self._interrupt == index:
            self.points.phase = f"release@{index}"
            raise KeyboardInterrupt

    def leave(self) -> None:
        """A step ends: what comes now is its save."""
        self.points("end")
        self.points.phase = f"save@{self.index}"

    def acknowledge(self, index: int) -> None:
        """The save of step number `index` is acknowledged."""
        self.points("unacknowledged")
        self.journal.write("ack", index=index)
        self.points.phase = f"step@{index}"
        self.points("acknowledged")

    def result(self, result: PipelineResult[Any]) -> None:
        """The run came to its end, or was there already."""
        self.journal.write(
            "result",
            status=result.status,
            output=result.output,
            history=[[r.name, r.success, digest(r.output)] for r in result.step_history],
            context=digest(result.final_pipeline_context),
        )


def digest(value: Any) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=6).hexdigest()


def long_text(seed: int) -> str:
    """Return 24 KB. Rewritten in every step, it makes the deltas outgrow the context, so that a snapshot is saved."""
    return "".join(digest(seed + i / 8) for i in range(2000))


def pipeline(child: Child) -> Pipeline[Any, Any]:
    """Async and plain steps, with and without the context, and one that fails before it succeeds."""

    @step
    async def gather(n: int, *, context: Notes) -> list[int]:
        child.enter(0, n, context)
        context.lines.append(f"gathered {n}")
        context.text = long_text(0)
        await asyncio.sleep(0)
        child.leave()
        return list(range(n))

    @step
    def measure(items: list[int]) -> dict[str, int]:
        child.enter(1, items, None)
        child.leave()
        return {"sum": sum(items), "count": len(items)}

    @step(retries=[0.0])
    async def weigh(sizes: dict[str, int], *, context: Notes) -> float:
        child.enter(2, sizes, context)
        context.lines.append(f"weighed {sizes['sum']}")  # a failed attempt's line must not stay
        context.text = long_text(2)
        context.tries += 1
        if child.tried != 2:
            child.tried = 2
            child.points("failing")
            raise ConnectionError("the scales do not answer")
        child.leave()
        return sizes["sum"] / sizes["count"]

    @step
    async def expand(mean: float, *, context: Notes) -> int:
        child.enter(3, mean, context)
        context.text = long_text(3)
        child.leave()
        return int(mean * 100)

    @step
    def rank(value: int, *, context: Notes) -> tuple[int, str]:
        child.enter(4, value, context)
        context.lines.append(f"ranked {value}")
        context.text = long_text(4)
        child.leave()
        return value, digest(context.text)

    @step
    async def report(ranked: tuple[int, str], *, context: Notes) -> dict[str, Any]:
        child.enter(5, ranked, context)
        context.lines.append("reported")
        child.leave()
        return {"lines": list(context.lines), "ranked": ranked, "text": digest(context.text), "tries": context.tries}

    return gather >> measure >> weigh >> expand >> rank >> report


class Acknowledging(SQLiteBackend):
    """Writes an acknowledgement into the journal when a save has returned, and a claim when one was made."""

    child: Child

    async def claim(self, run_id: str, *args: Any, **options: Any) -> Any:
        claim = await super().claim(run_id, *args, **options)
        if claim.fence is not None:
            index = claim.state["current_step_index"] if claim.state else 0
            self.child.journal.write("claim", index=index, crashes=claim.crashes)
        self.child.points("made")
        return claim

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        self.child.points("called")
        await super().save_state(run_id, state)
        if state["status"] != "failed":
            self.child.acknowledge(state["current_step_index"] - 1)


class Hasty(Acknowledging):
    """The control: acknowledges first and commits afterwards."""

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        self.child.acknowledge(state["current_step_index"] - 1)
        self.child.points.phase = f"save@{state['current_step_index'] - 1}"
        await SQLiteBackend.save_state(self, run_id, state)


def attempt(
    store: str,
    journal: str,
    run_id: str,
    mode: str,
    kill: tuple[str, int] | None = None,
    interrupt: int | None = None,
    wire: str | None = None,
    trace: bool = False,
    hasty: bool = False,
) -> int:
    """Run or resume the pipeline; the child's whole life. Exit code 3: the run was somebody else's."""
    child = Child(Journal(journal), tuple(kill) if kill else None, interrupt)
    if trace:
        child.points.tell = lambda name: child.journal.write("point", name=name)
    if wire is not None:
        child.points.tell = call(wire).say
    kind = SQLiteBackend if mode.endswith("-stock") else Hasty if hasty else Acknowledging
    backend = kind(store, connect=child.connect)
    if isinstance(backend, Acknowledging):
        backend.child = child
    runner = runner_of(child, backend, hooked=mode == "inline-stock")
    try:
        result = asyncio.run(_later(runner, run_id, child, mode)) if "inline" not in mode else _now(runner, run_id)
    except KeyboardInterrupt:
        return 0
    child.result(result)
    return 0


def runner_of(child: Child, backend: SQLiteBackend, *, hooked: bool = False) -> Flujo[Any, Any]:
    """Return the runner of a child; with `hooked` an event acknowledges the saves."""

    def heard(event: Event) -> None:
        if isinstance(event, StepSaved):
            child.acknowledge(child.index)

    return Flujo(
        pipeline(child),
        pipeline_name="six",
        context_model=Notes,
        state_backend=backend,
        hooks=[heard] if hooked else [],
        max_crashes=1000,
    )


def fleet(store: str, journal: str, runs: list[str]) -> None:
    """Bring all these runs to their end, together with whoever else does."""
    backend = Acknowledging(store)
    for run_id in runs:
        backend.child = Child(Journal(journal, run=run_id))
        backend.child.result(runner_of(backend.child, backend).run(INPUT, run_id=run_id, wait=True))


def _now(runner: Flujo[Any, Any], run_id: str) -> Any:
    return runner.run(INPUT, run_id=run_id)


async def _later(runner: Flujo[Any, Any], run_id: str, child: Child, mode: str) -> Any:
    if mode == "async":
        return await runner.run_async(INPUT, run_id=run_id)
    result: Any = None
    async for result in runner.run_async(INPUT, run_id=run_id):
        if hasattr(result, "path"):
            child.acknowledge(child.index)
    return result
