"""The child that runs a described pipeline: it writes down what it does, and dies where it is told to."""

from __future__ import annotations

import asyncio
import collections
import itertools
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flujo import FileBackend, Flujo, PipelineResult, SQLiteBackend, StateBackend, current_step
from flujo.execution.events import Event, StepSaved
from flujo.state.backends.base import Claim, Reading, State
from flujo.state.models import StepRecord, record_from
from tests.support.crash_forks import Journal
from tests.support.nested_pipelines import Notes, Path, Sequence, build, canonical, shown

INPUT = 7
RUN = "run"
Death = tuple[str, int, int]  # what, the how-manieth of it in this process, the signal


class Trace:
    """A journal in which the pipeline's functions and the backend write, and a death on the way.

    A death's `what` is a line's, or "line" for any, or "save" and "saved": before and after the backend's own save.
    """

    def __init__(self, journal: Journal, death: Death | None = None) -> None:
        self.journal = journal
        self._death = death
        self._passed: collections.Counter[str] = collections.Counter()
        self._lock = threading.RLock()
        self._failures: collections.Counter[Path] = collections.Counter()
        self._acknowledged: set[Path] = set()
        for line in journal.read():
            self._note(line["what"], line)

    def _note(self, what: str, line: dict[str, Any]) -> None:
        if what == "fail":
            self._failures[tuple(line["path"])] += 1
        elif what == "ack" and line["success"]:
            self._acknowledged.add(tuple(line["path"]))

    def write(self, what: str, **facts: Any) -> None:
        """Write a line, and die of it where it is the one."""
        with self._lock:
            self.journal.write(what, **facts)
            self._note(what, facts)
            self.point("line")
            self.point(what)

    def point(self, what: str) -> None:
        """Pass a point."""
        self._passed[what] += 1
        if self._death is not None and self._death[:2] == (what, self._passed[what]):
            os.kill(os.getpid(), self._death[2])

    def begin(self, path: Path, given: Any, seen: Any) -> None:
        current = current_step()
        self.write("begin", path=path, given=given, seen=seen, attempt=current.attempt, key=current.idempotency_key)

    def end(self, path: Path) -> None:
        self.write("end", path=path)

    def fail(self, path: Path) -> None:
        self.write("fail", path=path)

    def failures(self, path: Path) -> int:
        return self._failures[path]

    def acknowledged(self, path: Path) -> bool:
        return path in self._acknowledged

    def ack(self, records: list[tuple[Path, bool]], status: str) -> None:
        """The save of these records has returned."""
        for path, success in records:
            self.write("ack", path=path, success=success, status=status)

    def result(self, result: PipelineResult[Any]) -> None:
        """The run has come to an end, or was there."""
        self.journal.write(
            "result",
            status=result.status,
            output=repr(canonical(result.output)) if result.status == "completed" else None,
            error=repr(result.error),
            context=shown(result.final_pipeline_context),
            history=[[record.path, record.success] for record in result.step_history],
        )


class Telling(StateBackend):
    """Mixed into a backend, writes an acknowledgement for each record when its save has returned."""

    trace: Trace
    told = 0  # records, where every save has all of them

    async def claim(self, run_id: str, *args: Any, **options: Any) -> Claim:
        claim = await super().claim(run_id, *args, **options)
        if claim.fence is not None:
            index = claim.state["current_step_index"] if claim.state else 0
            self.trace.write("claim", index=index, crashes=claim.crashes)
        return claim

    async def save_state(self, run_id: str, state: State) -> None:
        records = self.new(state)
        self.trace.point("save")
        await super().save_state(run_id, state)  # type: ignore[safe-super]  # the backend that this is mixed into
        self.trace.point("saved")
        self.trace.ack(records, state["status"])

    def new(self, state: State) -> list[tuple[Path, bool]]:
        """Return path and success of the records that are new in this save."""
        records = [record_from(found) for found in state["step_history"]]
        if not isinstance(self, Reading):
            records, self.told = records[self.told :], len(records)
        return [(record.path, record.success) for record in records]


class TellingSQLite(Telling, SQLiteBackend):
    """A SQLite store."""


class TellingFiles(Telling, FileBackend):
    """A directory."""


class Forgetful(TellingSQLite):
    """A control: does not find every fifth nested record again."""

    lost: Callable[[StepRecord], bool] = staticmethod(lambda record: True)

    async def history(self, run_id: str, **options: Any) -> list[StepRecord]:
        records = await super().history(run_id, **options)
        numbers = itertools.count(1)
        return [r for r in records if len(r.path) == 1 or not self.lost(r) or next(numbers) % 5]


class Undecided(Forgetful):
    """A control: does not find decisions again."""

    async def history(self, run_id: str, **options: Any) -> list[StepRecord]:
        records = await SQLiteBackend.history(self, run_id, **options)
        return [r for r in records if r.path[-1] not in (">choice", ">exit")]


class Unmerged(Forgetful):
    """A control: finds the records of sub-steps without what they did to the context."""

    async def history(self, run_id: str, **options: Any) -> list[StepRecord]:
        records = await SQLiteBackend.history(self, run_id, **options)
        return [replace(record, context_changes=None) for record in records]


class Hasty(TellingSQLite):
    """A control: acknowledges first and saves afterwards."""

    async def save_state(self, run_id: str, state: State) -> None:
        self.trace.ack(self.new(state), state["status"])
        await SQLiteBackend.save_state(self, run_id, state)


BACKENDS: dict[str, Callable[[str], StateBackend]] = {
    "sqlite": lambda store: TellingSQLite(store),
    "stock": lambda store: SQLiteBackend(store),  # the quickest way, with acknowledgements by events
    "file": lambda store: TellingFiles(store, durability="process"),
    "forgetful": lambda store: Forgetful(store),
    "undecided": lambda store: Undecided(store),
    "unmerged": lambda store: Unmerged(store),
    "hasty": lambda store: Hasty(store),
}


def attempt(
    store: str, journal: str, spec: Sequence, kind: str = "sqlite", mode: str = "async", death: Death | None = None
) -> int:
    """Run or resume the described pipeline; the child's whole life."""
    trace = Trace(Journal(journal), tuple(death) if death else None)  # type: ignore[arg-type]
    backend = BACKENDS[kind](store)
    if isinstance(backend, Telling):
        backend.trace = trace

    def heard(event: Event) -> None:
        if isinstance(event, StepSaved):
            trace.ack([(event.result.path, event.result.success)], "running")

    runner: Flujo[Any, Any] = Flujo(
        build(spec, trace),
        context_model=Notes,
        state_backend=backend,
        hooks=[heard] if kind == "stock" else [],
        max_crashes=1000,
    )
    trace.write("process")
    result = runner.run(INPUT, run_id=RUN) if mode == "inline" else asyncio.run(runner.run_async(INPUT, run_id=RUN))
    trace.result(result)
    return 0
