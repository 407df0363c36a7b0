"""Runs the undos of a run that failed for good or is cancelled, one after the other, each saved."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from flujo import _ids
from flujo._clock import micros
from flujo.engine import UNDO, Path, Saved, Undo, closed, opened, put_off, undid, undo_failed, undone, undos, wait_at
from flujo.engine.repair import inherited
from flujo.errors import CrashLoopError, NotSerializableError, UndoFailedError
from flujo.execution.attempt import ended
from flujo.execution.events import RunEnded, StepFailed, StepSaved
from flujo.execution.failure import describe
from flujo.pipeline import Pipeline
from flujo.runner.performing import UNCHANGING, Outcome, Performer, failure
from flujo.runner.scopes import RunContext
from flujo.state.models import StepRecord

_log = logging.getLogger("flujo")


class UndoPlace:
    """An undo: what it is given is kept encoded where there may be another attempt."""

    def __init__(self, undo: Undo, before: int, context: RunContext, codec: Any) -> None:
        self.step, self.path, self.given, self.before = undo.step, undo.path, undo.given, before
        self._context, self._codec = context, codec
        plain = not undo.step.retry.max_retries or type(undo.given) in UNCHANGING
        self._kept: bytes | None = None if plain else codec.encode(undo.given, "output")

    def context(self) -> Any:
        """Return the run's context."""
        return self._context.live

    async def restore(self) -> None:
        """Decode the input again, and put the context back."""
        if self._kept is not None:
            self.given = self._codec.decode(self._kept)
        if self.step.takes_context:
            await self._context.restore()


class Undoing:
    """What is to be undone of one run. `error` is why an undo failed, if one did."""

    def __init__(
        self,
        performer: Performer,
        context: RunContext,
        pipeline: Pipeline[Any, Any],
        crashes: int,
        pause: Callable[[], Awaitable[None]],
    ) -> None:
        self._pause = pause
        self._performer, self._commits = performer, performer.commits
        self._context, self._pipeline, self._crashes = context, pipeline, crashes
        self._clock, self._announce = performer.setup.clock, performer.setup.announcer
        self._left: list[Undo] | None = None
        self._once = Saved()  # what undos did `once`
        self.error: BaseException | None = None

    async def left(self) -> list[Undo]:
        """Return what is still to be undone, in order."""
        if self._left is None:
            state = self._commits.state
            records = await self._commits.keeper.records_after(state["run_id"], 0)
            self._left = undos(self._pipeline, records, inherited(state))
            self._once.done = {record.path: record for record in records if UNDO in record.path[:-1]}
        return self._left

    async def next(self) -> StepRecord | None:
        """Undo one step, and return the record of that; None where all is undone, which then is saved, or it pauses."""
        left = await self.left()
        if not left:
            await self._commits.whole(undone(self._commits.state, self._clock.now()))
            state = self._commits.state
            self._announce(RunEnded(run_id=state["run_id"], status=state["status"]))
            return None
        wait = wait_at(self._commits.state, left[0].path)
        if wait is not None and (wait["until"] or 0) > micros(self._clock.now()):
            await self._pause()
            return None
        await self._wait_for_abandoned(left[0].path)
        outcome = await self._perform(left[0], wait["tries"] if wait is not None else 0)
        self._crashes = 0
        if outcome.retry_in is not None:
            self._once.done.update(outcome.once)
            self._put_off(outcome, outcome.retry_in)
            await self._pause()
            return None
        if wait is not None:
            self._commits.change(partial(closed, path=left[0].path))
        if outcome.error is None:
            outcome = await self._save(left[0], outcome)
        if outcome.error is not None:
            await self._fail(outcome, outcome.error)
        else:
            left.pop(0)
        return outcome.record

    def _put_off(self, outcome: Outcome, delay: float) -> None:
        """The next attempt is far off: until then the run is paused."""
        path, why = outcome.record.path, outcome.record.feedback or ""
        wait = put_off(self._commits.state, path, self._clock.now(), delay, why, outcome.tries)
        self._commits.change(partial(opened, wait=wait))

    async def _perform(self, undo: Undo, tries: int) -> Outcome:
        before = undo.attempts + self._crashes
        if self._crashes >= self._performer.setup.max_crashes:
            error = CrashLoopError(
                f"The process died {self._crashes} times while it ran.",
                hint="Find out what kills it (memory?), then run it again with the same run_id.",
                run_id=self._commits.state["run_id"], crashes=self._crashes,
            )  # fmt: skip
            return failure(undo.path, error, before)
        place = UndoPlace(undo, before, self._context, self._commits.keeper.codec)
        return await self._performer.perform(place, self._once, tries)

    async def _save(self, undo: Undo, outcome: Outcome) -> Outcome:
        state = self._commits.state
        values = self._context.values if undo.step.takes_context else state["pipeline_context"]
        try:
            await self._commits.whole(undid(state, outcome.record, values, self._clock.now()))
        except NotSerializableError as error:
            return failure(undo.path, error, outcome.record.attempts, outcome.record.latency_s)
        self._announce(StepSaved(run_id=state["run_id"], result=outcome.record))
        return outcome

    async def _fail(self, outcome: Outcome, error: BaseException) -> None:
        stored, state = await self._context.restore(), self._commits.state
        if stored is not None and self._commits.keeper.subclassed:  # it may save a copy, which is then encoded anew
            state = {**state, **{name: stored[name] for name in ("pipeline_context", "last_step_output")}}
        path = _ids.path_text(outcome.record.path[:-1])
        why = (outcome.record.feedback or "").rstrip(".")
        self.error = UndoFailedError(
            f"Step {path!r} of run {state['run_id']!r} could not be undone: {why}.",
            hint="Run it again with the same run_id to go on undoing.",
            run_id=state["run_id"], step=path,
        )  # fmt: skip
        self.error.__cause__ = error
        await self._commits.whole(undo_failed(state, outcome.record, describe(self.error), self._clock.now()))
        self._announce(StepFailed(run_id=state["run_id"], result=outcome.record, error=error))
        self._announce(RunEnded(run_id=state["run_id"], status="failed"))

    async def _wait_for_abandoned(self, path: Path) -> None:
        """A plain function cannot be stopped: let one that nobody waits for come to its end, up to the grace."""
        abandoned, self._performer.abandoned = self._performer.abandoned, []
        for current in abandoned:
            if not await ended(current):
                _log.warning(
                    "run %s: %s begins while an abandoned attempt of step %s is still running",
                    self._commits.state["run_id"], _ids.path_text(path), _ids.path_text(current.path),
                )  # fmt: skip
