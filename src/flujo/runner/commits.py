"""A run's state as it was last saved, and the way to the next: one save at a time, in the order they were asked for."""

from __future__ import annotations

import asyncio
from typing import Any

from flujo._clock import Clock
from flujo.engine import first_record, progressed, records_so_far
from flujo.errors import NotSerializableError
from flujo.runner.saving import Keeper
from flujo.state.backends.base import State
from flujo.state.models import StepRecord


class _Entry:
    """A record that waits for its save. `place` is where it then is among the records of the step under way."""

    __slots__ = ("context", "error", "place", "record", "settled")

    def __init__(self, record: StepRecord, context: dict[str, Any] | None) -> None:
        self.record, self.context = record, context
        self.settled = False
        self.error: BaseException | None = None
        self.place = 0


class Commits:
    """The one writer of a claimed run.

    `whole` saves a state. `add` saves what has been done inside of the step that is under way: while one save is in
    flight, what else is added waits and shares the next. A caller that is cancelled gets its cancellation when the
    outcome of its save is known.
    """

    def __init__(self, keeper: Keeper, state: State, clock: Clock) -> None:
        self.keeper, self.state = keeper, state
        self.held = True
        self.crowded = False  # several things go on at once
        self.broken: BaseException | None = None  # a save failed: nothing can be saved after it
        self._clock = clock
        self._lock = asyncio.Lock()
        self._waiting: list[_Entry] = []

    async def whole(self, state: State) -> None:
        """Save the state that follows `self.state`; whatever this raises, but NotSerializableError, stops the run."""
        if self.broken is not None:
            raise self.broken
        try:
            await self.keeper.save(state)
        except asyncio.CancelledError:  # it is saved
            self._take(state)
            raise
        except NotSerializableError:
            raise
        except BaseException as error:
            self.broken = error
            raise
        self._take(state)

    async def add(self, record: StepRecord, context: dict[str, Any] | None = None) -> int:
        """Save the record, and the run's context where it changed; return its place among the step's records.

        Raises NotSerializableError, about this record, and what stops the run.
        """
        entry = _Entry(record, context)
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
            except NotSerializableError:  # one of them is to blame: each by itself
                pass
        for entry in batch:
            try:
                await self._write([entry])
            except NotSerializableError as error:
                entry.error, entry.settled = error, True

    async def _write(self, batch: list[_Entry]) -> None:
        if self.keeper.subclassed and self.state["rev"]:
            await self._forget_changes()
        contexts = [entry.context for entry in batch if entry.context is not None]
        context = contexts[-1] if contexts else self.state["pipeline_context"]
        first = records_so_far(self.state) - first_record(self.state)
        records = [entry.record for entry in batch]
        try:
            await self.whole(progressed(self.state, records, context, self._clock.now()))
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
        for place, entry in enumerate(batch, first):
            entry.place, entry.settled = place, True

    def _take(self, state: State) -> None:
        self.state = state
        self.held = state["status"] == "running"
