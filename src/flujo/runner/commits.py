"""A run's state as it was last saved, and the way to the next: one save at a time, in the order they were asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from flujo._clock import Clock
from flujo.engine import first_record, paused, progressed, records_so_far
from flujo.errors import NotSerializableError, UnreadMailError
from flujo.runner.saving import Keeper
from flujo.state.backends.base import State
from flujo.state.models import StepRecord

Change = Callable[[State], State]
_HARMLESS = (NotSerializableError, UnreadMailError)  # nothing was written, and something else can be


class _Entry:
    """Something that waits for its save. `place` is where its record then is among those of the step under way."""

    __slots__ = ("change", "context", "error", "guard", "place", "record", "settled")

    def __init__(
        self, record: StepRecord | None, context: dict[str, Any] | None, change: Change | None, guard: bool
    ) -> None:
        self.record, self.context, self.change, self.guard = record, context, change, guard
        self.settled = False
        self.error: BaseException | None = None
        self.place = 0


class Commits:
    """The one writer of a claimed run.

    `whole` saves a state. `add` saves what has been done inside of the step that is under way: while one save is in
    flight, what else is added waits and shares the next. `change` changes what the next save saves, whichever it is. A
    caller that is cancelled gets its cancellation when the outcome of its save is known.
    """

    def __init__(self, keeper: Keeper, state: State, clock: Clock) -> None:
        self.keeper, self.state = keeper, state
        self.held = True
        self.crowded = False  # several things go on at once
        self.broken: BaseException | None = None  # a save failed: nothing can be saved after it
        self.clock = clock
        self._changes: list[Change] = []  # since the save that is in flight was made up
        self._lock = asyncio.Lock()
        self._waiting: list[_Entry] = []

    async def whole(self, state: State) -> None:
        """Save the state that follows `self.state`.

        Whatever this raises stops the run, but for NotSerializableError and, of a state with a guard, UnreadMailError.
        """
        if self.broken is not None:
            raise self.broken
        if self._changes:
            self._changes = []
        try:
            await self.keeper.save(state)
        except asyncio.CancelledError:  # it is saved
            self._take(state)
            raise
        except _HARMLESS:
            raise
        except BaseException as error:
            self.broken = error
            raise
        self._take(state)

    def change(self, change: Change) -> None:
        """Have the state changed, and that saved with whatever is saved next. Doing it twice is doing it once."""
        self.state = change(self.state)
        self._changes.append(change)

    async def pause(self) -> None:
        """Save that nothing can go on before a message comes, or a time; raises UnreadMailError where one has come."""
        if self.keeper.subclassed and self.state["rev"]:
            await self._forget_changes()
        await self.whole({**paused(self.state, self.clock.now()), "guard": True})

    async def add(
        self, record: StepRecord | None, context: dict[str, Any] | None = None, change: Change | None = None
    ) -> int:
        """Save the record, and the run's context where it changed; return its place among the step's records.

        `change` is what else becomes of the state with it. Raises NotSerializableError, about this record, and what
        stops the run.
        """
        return await self._queue(_Entry(record, context, change, False))

    async def guarded(self, change: Change) -> None:
        """Save the changed state; raises UnreadMailError, and changes nothing, where an unread message is there."""
        await self._queue(_Entry(None, None, change, True))

    async def _queue(self, entry: _Entry) -> int:
        self._waiting.append(entry)
        async with self._lock:
            if not entry.settled:
                if self.crowded:  # whoever comes to its end in this same moment is to be waited for
                    await asyncio.sleep(0)
                await self._write_waiting()
        if entry.error is not None:
            raise entry.error
        return entry.place

    async def flush(self) -> None:
        """Save what was added by somebody who was cancelled while it waited."""
        async with self._lock:
            if self._waiting:
                await self._write_waiting()

    async def _write_waiting(self) -> None:
        batch, self._waiting = self._waiting, []
        try:
            await self._write_all(batch)
        except asyncio.CancelledError:  # who asked is cancelled; the others are not
            self._waiting = [entry for entry in batch if not entry.settled] + self._waiting
            raise
        except BaseException as error:
            for entry in batch:
                if not entry.settled:
                    entry.error, entry.settled = error, True
            raise

    async def _write_all(self, batch: list[_Entry]) -> None:
        if len(batch) > 1:
            try:
                await self._write(batch)
                return
            except _HARMLESS:  # one of them is to blame: each by itself
                pass
        for entry in batch:
            try:
                await self._write([entry])
            except _HARMLESS as error:
                entry.error, entry.settled = error, True

    async def _write(self, batch: list[_Entry]) -> None:
        if self.keeper.subclassed and self.state["rev"]:
            await self._forget_changes()
        contexts = [entry.context for entry in batch if entry.context is not None]
        context = contexts[-1] if contexts else self.state["pipeline_context"]
        first = records_so_far(self.state) - first_record(self.state)
        records = [entry.record for entry in batch if entry.record is not None]
        state = self.state
        for entry in batch:
            if entry.change is not None:
                state = entry.change(state)
        state = progressed(state, records, context, self.clock.now())
        if any(entry.guard for entry in batch):
            state["guard"] = True
        try:
            await self.whole(state)
        except asyncio.CancelledError:
            self._settle(batch, first)
            raise
        self._settle(batch, first)

    async def _forget_changes(self) -> None:
        """Take the payloads as they were saved: a subclass may save copies, and what is under way may change them."""
        stored = await self.keeper.reload(self.state["run_id"], self.state["rev"])
        if stored is not None:
            unchanged = {name: stored[name] for name in ("pipeline_context", "last_step_output")}
            self.state = {**self.state, **unchanged}

    def _settle(self, batch: list[_Entry], first: int) -> None:
        for entry in batch:
            entry.place, entry.settled = first, True
            first += entry.record is not None

    def _take(self, state: State) -> None:
        if "guard" in state:
            del state["guard"]
        for change in self._changes:
            state = change(state)
        self.state = state
        self.held = state["status"] == "running"
