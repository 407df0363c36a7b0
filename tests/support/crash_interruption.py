"""Runs that are interrupted in one process: at every await, by a signal, by an error of the disk."""

from __future__ import annotations

import asyncio
import copy
import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flujo import (
    FileBackend,
    Flujo,
    InMemoryBackend,
    PipelineResult,
    SQLiteBackend,
    StateBackend,
    current_step,
    step,
)
from flujo.execution.events import Event, StepSaved, StepStarted
from tests.support.backends import ByReference
from tests.support.crash_forks import Journal, call

NAMES = ["fetch", "measure", "settle", "report"]
STEPS = len(NAMES)
KINDS = tuple(f"{kind}{sub}" for sub in ("", " subclass") for kind in ("memory", "sqlite", "file", "third-party"))


class Trail(BaseModel):
    """A context that every step but one adds to."""

    seen: list[str] = []


class Work:
    """Four steps that leave notes: `started` and `effects` have (run, step, attempt), `acknowledged` (run, step).

    An effect may come late, from a plain step that was abandoned in its thread before it had begun.
    """

    def __init__(self) -> None:
        self.started: list[tuple[str, int, int]] = []
        self.effects: list[tuple[str, int, int]] = []
        self.acknowledged: list[tuple[str, int]] = []
        self.inside: Callable[[int], None] = lambda index: None  # called in each step, after its effect
        self.waits: Callable[[int], Coroutine[Any, Any, object]] = lambda index: asyncio.sleep(0)  # in async ones

    def runner(self, backend: StateBackend, *, hooked: bool = False) -> Flujo[int, str]:
        """Return a runner of the four steps; with `hooked` an event notes the acknowledgements."""

        def heard(event: Event) -> None:
            if isinstance(event, StepStarted):
                self.started.append((event.run_id, NAMES.index(event.path[0]), event.attempt))
            elif isinstance(event, StepSaved) and hooked:
                self.acknowledged.append((event.run_id, NAMES.index(event.result.name)))

        return Flujo(
            self.pipeline(),
            pipeline_name="work",
            context_model=Trail,
            state_backend=backend,
            hooks=[heard],
        )

    def note(self, index: int) -> None:
        """The effect of a step."""
        current = current_step()
        self.effects.append((current.run_id, index, current.attempt))
        self.inside(index)

    def pipeline(self) -> Any:
        tried: set[str] = set()

        @step
        async def fetch(n: int, *, context: Trail) -> list[int]:
            self.note(0)
            await self.waits(0)
            context.seen.append("fetched")
            await asyncio.sleep(0)
            return list(range(n))

        @step
        def measure(items: list[int]) -> int:
            self.note(1)
            return len(items)

        @step(retries=[0.0])
        async def settle(size: int, *, context: Trail) -> int:
            self.note(2)
            context.seen.append(f"settled {size}")
            await self.waits(2)
            run_id = current_step().run_id
            if run_id not in tried:
                tried.add(run_id)
                raise ConnectionError("not yet")
            return size * 2

        @step
        def report(total: int, *, context: Trail) -> str:
            self.note(3)
            return f"{total} {context.seen}"

        return fetch >> measure >> settle >> report

    def output(self, n: int) -> str:
        """Return what a run of n comes to, interrupted or not."""
        return f"{2 * n} {['fetched', f'settled {n}']}"


class Distant(ByReference):
    """Saves take a while to arrive, and as long again to be confirmed; the newest to arrive counts."""

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        self.data[run_id] = copy.deepcopy(state)
        for _ in range(3):
            await asyncio.sleep(0)


def backend_of(kind: str, work: Work, folder: Path) -> StateBackend:
    """Return a backend of that kind; a subclass notes each save when it has returned."""
    name, _, subclass = kind.partition(" ")
    base: Any = {
        "memory": InMemoryBackend,
        "sqlite": SQLiteBackend,
        "file": FileBackend,
        "third-party": Distant,
    }[name]

    class Noting(base):  # type: ignore[misc]
        async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
            await super().save_state(run_id, state)
            work.acknowledged.append((run_id, state["current_step_index"] - 1))

    made = Noting if subclass else base
    backend: StateBackend = {
        "memory": lambda: made(),
        "sqlite": lambda: made(folder / "runs.db"),
        "file": lambda: made(folder / "runs"),
        "third-party": lambda: made({}),
    }[name]()
    return backend


class CancelledAt(Coroutine[Any, Any, Any]):
    """A coroutine whose task is cancelled at its await number `at`, and with `again` at every one after that."""

    def __init__(self, inner: Coroutine[Any, Any, Any], at: int, *, again: bool = False) -> None:
        self._inner, self._at, self._again = inner, at, again
        self.awaits = 0

    def send(self, value: Any) -> Any:
        return self._waits(self._inner.send(value))

    def throw(self, *error: Any) -> Any:
        return self._waits(self._inner.throw(*error))

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:
        raise NotImplementedError

    def _waits(self, awaited: Any) -> Any:
        self.awaits += 1
        if self.awaits == self._at or (self._again and self.awaits > self._at):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        return awaited


async def consumed(runner: Flujo[int, str], run_id: str, n: int) -> Any:
    """Iterate over a run to its end and return its result."""
    items: list[Any] = [item async for item in runner.run_async(n, run_id=run_id)]
    return items[-1]


async def awaited(runner: Flujo[int, str], run_id: str, n: int) -> PipelineResult[str]:
    """Await a run."""
    return await runner.run_async(n, run_id=run_id)


async def driven(coroutine: Coroutine[Any, Any, Any], awaits: int) -> bool:
    """Drive a coroutine by hand to its await number `awaits`, then close it; return whether it got that far."""
    try:
        waits_for = coroutine.send(None)
        for _ in range(awaits - 1):
            if waits_for is None:
                await asyncio.sleep(0)
            else:
                waits_for._asyncio_future_blocking = False
                await asyncio.wait([waits_for])
            waits_for = coroutine.send(None)
    except StopIteration:
        return False
    coroutine.close()
    return True


class Faulty(sqlite3.Connection):
    """A connection whose statements raise what `trouble` does, before they are done or after."""

    trouble: Trouble

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self.trouble.meet(sql, "before")
        cursor = super().execute(sql, *values)
        try:
            self.trouble.meet(sql, "after")
        except BaseException:
            cursor.close()  # which a traceback would keep, and SQLite commits nothing while it is open
            raise
        return cursor


class Trouble:
    """Raises once, at the n-th statement in which a text is found."""

    def __init__(self) -> None:
        self.left: int | None = None
        self._when = self._part = ""
        self._error: BaseException = Exception()

    def comes(self, number: int, when: str, part: str, error: BaseException | None = None) -> None:
        """Raise `error`, an error of the disk by default, "before" or "after" that statement."""
        self.left, self._when, self._part = number, when, part
        self._error = error if error is not None else sqlite_error(sqlite3.SQLITE_IOERR, "disk I/O error")

    def meet(self, sql: str, when: str) -> None:
        if self.left is None or when != self._when or self._part not in sql:
            return
        self.left -= 1
        if not self.left:
            self.left = None
            raise self._error


def sqlite_error(code: int, text: str) -> sqlite3.OperationalError:
    """Return an error as SQLite raises it."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


def faulty(trouble: Trouble) -> Callable[[str], sqlite3.Connection]:
    """Return what opens connections that have this trouble."""

    def connect(path: str) -> sqlite3.Connection:
        factory = type("Connection", (Faulty,), {"trouble": trouble})
        return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, factory=factory)

    return connect


def signalled(store: str, journal: str, wire: str, at: int) -> None:
    """Run, wait for ever in step `at`, and write down what is raised in the end."""
    written = Journal(journal)
    work = Work()
    line = call(wire)

    def inside(index: int) -> None:
        written.write("effect", index=index, attempt=work.effects[-1][2])
        if index == at:
            line.say("inside")
            if index in (1, 3):  # a plain step: in its thread
                line.hear()

    work.inside = inside
    work.waits = lambda index: asyncio.Event().wait() if index == at else asyncio.sleep(0)
    runner = work.runner(SQLiteBackend(store))
    try:
        runner.run(5, run_id="run")
    except BaseException as error:
        written.write("raised", error=type(error).__name__, code=getattr(error, "code", None))


def leaving(store: str, wire: str) -> None:
    """Leave an iteration over a run after its first step, and stay alive."""
    line = call(wire)
    runner = Work().runner(SQLiteBackend(store))

    async def main() -> None:
        async for _ in runner.run_async(5, run_id="run"):
            break
        line.say("left")
        line.hear()

    asyncio.run(main())


def resuming(store: str, journal: str) -> None:
    """Bring the run to its end, attached if somebody has it."""
    written = Journal(journal)
    work = Work()
    work.inside = lambda index: written.write("effect", index=index, attempt=work.effects[-1][2])
    result = work.runner(SQLiteBackend(store)).run(5, run_id="run", wait=True)
    written.write("result", status=result.status, output=result.output)
