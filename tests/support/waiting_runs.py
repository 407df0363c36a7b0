"""Runs that wait: a clock that a test sets, steps that are held, and hooks around what a store does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel

from flujo import Flujo, StateBackend, Step, step
from flujo.state.mail import Message
from flujo.testing import VirtualClock
from tests.support.backends import THEIRS, Place
from tests.support.nested_runs import PATIENCE_S, Notes
from tests.support.undo_steps import Ledger

T = TypeVar("T")


class Approval(BaseModel):
    """An answer."""

    approved: bool
    note: str = ""


YES = Approval(approved=True)


class Clock(VirtualClock):
    """A virtual clock that can be set, also back."""

    def set(self, moment: datetime) -> None:
        """Show that moment from now on."""
        self._now = moment

    def jump(self, seconds: float) -> None:
        """Be set forward, or back."""
        self._now += timedelta(seconds=seconds)


def ask(name: str = "ask", **options: Any) -> Step[Any, Any]:
    """Return a step that asks a person for an Approval."""
    return Step.human_in_the_loop(name, "Ship it?", options.pop("tp", Approval), **options)


def runner(place: Place, pipeline: Any, clock: VirtualClock | None = None, **options: Any) -> Flujo[Any, Any]:
    """Return a runner on the store, as another process would have."""
    return Flujo(pipeline, state_backend=place.open(), clock=clock or VirtualClock(), pipeline_name="p", **options)


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a test that does several things at once, and say so where it hangs."""

    async def main() -> T:
        async with asyncio.timeout(PATIENCE_S):
            return await work

    return asyncio.run(main())


def one_backend(place: Place) -> StateBackend:
    """Have the place open one and the same backend: three methods know only of the claims of one object."""
    backend = place.open()
    if place.kind in THEIRS:
        place.open = lambda: backend  # type: ignore[method-assign]
    return backend


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Let everything go on until that is so; `at_once` says when it takes too long."""
    while not await condition():  # noqa: ASYNC110  (what it waits for is in a store, which rings no event)
        await asyncio.sleep(0)


async def settle() -> None:
    """Let everything go on that can, but for what waits for a thread."""
    for _ in range(50):
        await asyncio.sleep(0)


class Held:
    """A step that says when it has begun, and ends when it is let go. Made inside of a loop."""

    def __init__(self, notes: Notes, name: str = "work", does: Callable[[Any], Any] = lambda n: n, **options: Any):
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.cancelled = False

        @step(name=name, **options)
        async def held(n: Any) -> Any:
            await notes.call()
            self.begun.set()
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
            return does(n)

        self.step: Step[Any, Any] = held


def message(kind: str, clock: VirtualClock, **changes: Any) -> Message:
    """Return an order as `cancel`, `pause` and `resume` send it."""
    return Message(**{"id": kind, "kind": kind, "by": "ann", "reason": "why not", "at": clock.now()} | changes)


async def unabandoned(work: Coroutine[Any, Any, T]) -> T:
    """Do it to its end, as a store saves: who is cancelled meanwhile hears of that afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None and task.exception() is None:
        raise cancelled
    return task.result()


Hook = Callable[[dict[str, Any]], Awaitable[None]]


def around_saves(
    backend: StateBackend,
    wanted: Callable[[dict[str, Any]], bool],
    before: Hook | None = None,
    after: Hook | None = None,
) -> StateBackend:
    """Do something right before or right after the first save that is wanted, while its owner waits for it."""
    save = backend.save_state
    done = False

    async def hooked(run_id: str, state: dict[str, Any]) -> None:
        if before is not None:
            await before(state)
        try:
            await save(run_id, state)
        finally:
            if after is not None:
                await after(state)

    async def save_state(run_id: str, state: dict[str, Any]) -> None:
        nonlocal done
        if done or not wanted(state):
            await save(run_id, state)
            return
        done = True
        await unabandoned(hooked(run_id, state))

    backend.save_state = save_state  # type: ignore[method-assign]  # of this instance
    return backend


def subclassed(backend: StateBackend) -> StateBackend:
    """Make the backend one of a class of somebody's own, whose save does what that of its parent does."""
    parent = type(backend)

    async def save_state(self: StateBackend, run_id: str, state: dict[str, Any]) -> None:
        await parent.save_state(self, run_id, state)

    backend.__class__ = type("Mine", (parent,), {"save_state": save_state})
    return backend


def records_named(name: str) -> Callable[[dict[str, Any]], bool]:
    """Return the test of a save that has the record of a step of that name."""

    def wanted(state: dict[str, Any]) -> bool:
        paths = [record["path"] if isinstance(record, dict) else record.path for record in state["step_history"]]
        return any(path[-1] == name for path in paths)

    return wanted


def is_pausing(state: dict[str, Any]) -> bool:
    """Return whether a save is one that pauses its run."""
    return bool(state["status"] == "paused")


__all__ = [
    "YES", "Approval", "Clock", "Held", "Ledger", "Notes", "around_saves", "ask", "at_once", "is_pausing", "message",
    "one_backend", "records_named", "runner", "settle", "subclassed",
    "until",
]  # fmt: skip
