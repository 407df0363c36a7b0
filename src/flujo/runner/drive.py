"""One run, from its claim to its result: asks the core what is next, has it done, and saves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flujo import _ids
from flujo.engine import (
    Do,
    Saved,
    attempts_before,
    can_undo,
    completed,
    crashes_before,
    decide,
    failed,
    finished,
    first_record,
    is_cancelled,
    is_held,
    records_so_far,
    sort_out,
    undoing,
    void_records,
    wakes_at,
)  # fmt: skip
from flujo.errors import (
    BackendClosedError,
    CrashLoopError,
    DeadlineExceededError,
    NotSerializableError,
    StateError,
    UnreadMailError,
)  # fmt: skip
from flujo.execution.events import (
    RunEnded,
    RunInterrupted,
    RunPaused,
    RunStarted,
    StepFailed,
    StepSaved,
    StepStarted,
)  # fmt: skip
from flujo.execution.failure import describe, recorded
from flujo.pipeline import Registered
from flujo.runner.commits import Commits
from flujo.runner.composite import CompositeRun
from flujo.runner.mailbox import Mailbox
from flujo.runner.opening import Opened, Setup
from flujo.runner.performing import TIMER_S, Outcome, Performer, TopPlace, cancels, failure
from flujo.runner.result import PipelineResult, waiting_of
from flujo.runner.saving import Keeper
from flujo.runner.scopes import RunContext
from flujo.runner.undoing import Undoing
from flujo.runner.watching import Watch
from flujo.state.backends.base import State
from flujo.state.models import StepRecord

_log = logging.getLogger("flujo")


class Drive:
    """A claimed run. `advance` does and saves one step; `close` gives the run back, whatever happened."""

    def __init__(self, setup: Setup, keeper: Keeper, opened: Opened) -> None:
        self._setup, self._keeper = setup, keeper
        self._commits = Commits(keeper, opened.state, setup.clock)
        self._code: Registered = opened.code
        self._total = len(opened.code.pipeline.steps)
        self._fence = opened.fence
        self._crashes = opened.crashes + crashes_before(opened.state)
        self._context = RunContext(setup, self._commits, opened)
        self._performer = Performer(setup, self._commits)
        crashes = opened.crashes if opened.state["phase"] == "undoing" else 0  # else they were some step's
        self._undoing = Undoing(self._performer, self._context, opened.code.pipeline, crashes, self._pause)
        self._restored = opened.state["history_offset"]
        self._records: list[StepRecord] | None = []  # None: there are more than are to be held in memory
        self._error: BaseException | None = None
        self._announce = setup.announcer
        self._chatty = setup.announcer.wants_all()
        self._released = False
        self._mailbox = Mailbox(self._commits, unread=opened.unread)
        self._watch = Watch(self._commits, self._mailbox, setup.clock)
        keeper.backend.watch(self.run_id, self._fence, self._watch.wake)
        if self._chatty:
            try:
                self._announce_start()
            except BaseException:  # Ctrl-C, say
                self.drop()
                raise

    def _announce_start(self) -> None:
        self._announce(
            RunStarted(
                run_id=self.run_id,
                pipeline_name=self._code.name,
                pipeline_version=self.state["pipeline_version"],
                index=self.state["current_step_index"],
            )
        )

    @property
    def state(self) -> State:
        """The state as it was last saved."""
        return self._commits.state

    @property
    def run_id(self) -> str:
        """The run's id."""
        run_id: str = self.state["run_id"]
        return run_id

    async def advance(self) -> StepRecord | None:
        """Do the next step and save it; return its record, or None where there is nothing left to do now.

        Raises what stops a run without ending it: a failed save, a cancellation, KeyboardInterrupt.
        """
        while True:
            if self._mailbox.stale or self.state["waiting"] is not None:
                await self._heed()
            if self.state["status"] != "running":
                self._announce_pause()
                return None
            if self.state["phase"] == "undoing":
                record = await self._undo()
                if record is None and self.state["status"] == "running":
                    continue  # it was to be paused, and a message came
                return record
            do = decide(self._code.pipeline, self.state)
            if do is None:
                await self._finish()
                return None
            refused = self._refused(do) if self._crashes or self.state["deadline"] is not None else None
            if refused is not None:
                return await self._failed(refused)
            task = asyncio.current_task()
            before = cancels(task)
            done = await self._performed(do, task, before)
            if done is not None:
                record = await self._came_out(do, *done)
                if cancels(task) > before:  # and the step went on to its end all the same
                    raise asyncio.CancelledError
                return record

    async def _performed(self, do: Do, task: asyncio.Task[Any] | None, before: int) -> tuple[Outcome, list[int]] | None:
        """Do a step; None where the rest of it has to wait and the run is paused, or an order or the deadline stops it.

        With the outcome come the places of failures on record that a retry makes good.
        """
        watch, step = self._watch, do.step
        watch.begin(task, before, self.state["deadline"])
        try:
            if step.control is not None or step.on_crash != "retry" or step.retry.longest > TIMER_S:
                return await self._compose(do)  # several things go on in it, or it may have to wait
            return await self._perform(do), []
        except asyncio.CancelledError:
            if not watch.has_interrupted():
                raise
            return None
        finally:
            watch.end()

    def _announce_pause(self) -> None:
        if self._chatty and self.state["status"] == "paused":
            waiting = tuple(map(str, waiting_of(self.state["waiting"])))
            self._announce(RunPaused(run_id=self.run_id, waiting=waiting))

    async def _heed(self) -> None:
        """Read what has come, and do what somebody has ordered."""
        while self._mailbox.stale:
            await self._mailbox.refresh()
        if self.state["waiting"] is None or self.state["phase"] is not None or self.state["status"] != "running":
            return
        if is_cancelled(self.state):
            await self._commits.whole(undoing(self.state, None, None, "cancelled", self._setup.clock.now()))
        elif is_held(self.state):
            await self._pause()

    def _refused(self, do: Do) -> Outcome | None:
        """Return why the step is not to be tried."""
        if self._crashes >= self._setup.max_crashes:
            return self._given_up(do)
        deadline = self.state["deadline"]
        if deadline is not None and deadline <= self._setup.clock.now():
            return self._too_late(do)
        return None

    async def _came_out(self, do: Do, outcome: Outcome, void: list[int]) -> StepRecord:
        """Save how a step came out."""
        if outcome.error is None:
            try:
                await self._save_success(do, outcome)
            except NotSerializableError as error:
                record = outcome.record
                outcome = replace(failure(do.path, error, record.attempts, record.latency_s), change=outcome.change)
        if outcome.error is not None:
            await self._save_failure(outcome, void)
        if self._records is not None:
            self._records.append(outcome.record)
        self._crashes = 0
        return outcome.record

    async def _failed(self, outcome: Outcome) -> StepRecord:
        """Save that the run failed before it could go on."""
        if self.state["position"] and "from" in self.state["position"]:
            self._records = None
        await self._save_failure(outcome, [])
        if self._records is not None:
            self._records.append(outcome.record)
        return outcome.record

    def _too_late(self, do: Do) -> Outcome:
        error = DeadlineExceededError(
            f"The deadline of run {self.run_id!r} has passed ({self.state['deadline']:%Y-%m-%d %H:%M:%S} UTC).",
            hint="Run it again with the same run_id and another `deadline` to go on.",
            run_id=self.run_id, deadline=self.state["deadline"],
        )  # fmt: skip
        return failure(do.path, error, attempts_before(self.state))

    async def _pause(self) -> None:
        try:
            await self._commits.pause()
        except UnreadMailError:
            await self._mailbox.refresh()

    async def _perform(self, do: Do) -> Outcome:
        """Do a step that is a function."""
        before = attempts_before(self.state) + self._crashes
        place = TopPlace(do.step, do.path, do.input, before, self._context)
        saved = await self._saved() if self.state["position"] is not None else None
        outcome = await self._performer.perform(place, saved)
        if self.state["position"] is not None and "from" in self.state["position"]:
            self._records = None
        return outcome

    async def _compose(self, do: Do) -> tuple[Outcome, list[int]] | None:
        """Do a step in which several things may go on, or that may have to wait. See `_performed`."""
        saved = await self._saved()
        if saved is None:
            saved = Saved(attempts={do.path: attempts_before(self.state)})
        self._records = None
        if self._chatty and do.step.bodies:
            self._announce(StepStarted(run_id=self.run_id, path=do.path, attempt=self._crashes + 1))
        self._watch.listener = going = CompositeRun(
            self._performer, self._context, do, saved, self._crashes, self._mailbox
        )
        try:
            outcome = await going.run()
        finally:
            self._watch.listener = None
        return None if outcome is None else (outcome, going.void)

    async def _saved(self) -> Saved | None:
        """Return what of the step that is under way is on record."""
        position = self.state["position"]
        if not isinstance(position, dict) or "from" not in position:
            return None
        records = await self._keeper.records_after(self.run_id, first_record(self.state))
        return sort_out(records, void_records(self.state))

    async def _finish(self) -> None:
        """Complete a run that was found with all of its steps saved, but not its end."""
        if self.state["status"] == "running":
            await self._commits.whole(finished(self.state, self._setup.clock.now()))
            self._announce(RunEnded(run_id=self.run_id, status="completed"))

    async def _save_success(self, do: Do, outcome: Outcome) -> None:
        values = self._context.values if do.step.takes_context else self.state["pipeline_context"]
        state = self.state if outcome.change is None else outcome.change(self.state)
        record = outcome.record
        after = completed(state, record, values, self._total, self._setup.clock.now())
        await self._commits.whole(after)
        if self._chatty:
            self._announce(StepSaved(run_id=self.run_id, result=record))
            if after["status"] != "running":
                self._announce(RunEnded(run_id=self.run_id, status=after["status"]))

    async def _save_failure(self, outcome: Outcome, void: list[int]) -> None:
        assert outcome.error is not None
        self._error = outcome.error
        record = outcome.record
        if self._context.live is not None or self._keeper.subclassed:
            stored = await self._context.restore()
            if stored is not None and self._keeper.subclassed:  # it may save a copy, which is then encoded anew
                unchanged = {name: stored[name] for name in ("pipeline_context", "last_step_output")}
                self._commits.state = {**self.state, **unchanged}
        if outcome.change is not None:
            self._commits.change(outcome.change)
        if self._records is None:  # what failed is tried again, whatever its record says
            void = [*void, records_so_far(self.state) - first_record(self.state)]
        described, now = describe(outcome.error), self._setup.clock.now()
        if can_undo(self._code.pipeline) and await self._undoing.left():
            await self._commits.whole(undoing(self.state, record, described, "failed", now))
        else:
            await self._commits.whole(failed(self.state, record, described, now, void))
        self._announce(StepFailed(run_id=self.run_id, result=record, error=outcome.error))
        if self.state["status"] == "failed":
            self._announce(RunEnded(run_id=self.run_id, status="failed"))

    async def _undo(self) -> StepRecord | None:
        task = asyncio.current_task()
        before = cancels(task)
        record = await self._undoing.next()
        self._error = self._undoing.error or self._error
        if "from" in (self.state["position"] or ()):  # the undo did something `once`
            self._records = None
        if record is not None and self._records is not None:
            self._records.append(record)
        if cancels(task) > before:
            raise asyncio.CancelledError
        return record

    def _given_up(self, do: Do) -> Outcome:
        path = _ids.path_text(do.path)
        error = CrashLoopError(
            f"Run {self.run_id!r} was given up: its process died {self._crashes} times at step {path!r}.",
            hint="Find out what kills it (memory?), then run it again with the same run_id.",
            run_id=self.run_id,
            step=do.step.name,
            crashes=self._crashes,
        )
        attempts = attempts_before(self.state) + self._crashes
        record = StepRecord(path=do.path, success=False, attempts=attempts, feedback=str(error))
        return Outcome(record, error)

    def result(self) -> PipelineResult[Any]:
        """Return how the run stands now."""
        restored, records = self._restored, self._records
        if records is None:
            restored, records = records_so_far(self.state), []
        return make_result(
            self._setup, self._keeper, self.state, restored=restored, records=records,
            error=self._error, context=self._context.live,
        )  # fmt: skip

    @property
    def _held(self) -> bool:
        return self._commits.held and not self._released

    async def close(self, error: BaseException | None = None) -> None:
        """Give the run back if it is still held. A release that fails is logged: the process's death releases too."""
        if error is not None and self._held and self._chatty:
            self._announce(RunInterrupted(run_id=self.run_id, error=error))
        if isinstance(error, GeneratorExit):  # the coroutine is being closed: it cannot wait for anything
            self.drop()
            return
        if not self._held and not self._keeper.lends:
            return
        self._released = True
        self._watch.close()
        try:
            await self._keeper.backend.release(self.run_id, self._fence)
        except BackendClosedError:  # closing gave it back
            pass
        except StateError as problem:
            _log.warning("run %s could not be released: %s", self.run_id, problem)

    def drop(self) -> None:
        """Give the run back from a finalizer, without waiting."""
        if self._held or self._keeper.lends:
            self._released = True
            with contextlib.suppress(StateError):  # the backend is closed
                self._keeper.backend.abandon(self.run_id, self._fence)


def make_result(
    setup: Setup,
    keeper: Keeper,
    state: State,
    *,
    restored: int,
    records: Sequence[StepRecord] = (),
    error: BaseException | None = None,
    context: Any = None,
) -> PipelineResult[Any]:
    """Return the result that a state stands for; `restored` records are in the store, `records` came after them."""
    return PipelineResult(
        run_id=state["run_id"],
        status=state["status"],
        output=state["last_step_output"],
        error=error if error is not None else recorded(state["error"]),
        final_pipeline_context=setup.contexts.restore(state["pipeline_context"]) if context is None else context,
        pipeline_name=state["pipeline_name"],
        pipeline_version=state["pipeline_version"],
        phase=state["phase"],
        waiting=waiting_of(state["waiting"]) if state["status"] == "paused" else (),
        wakes_at=wakes_at(state) if state["status"] == "paused" else None,
        cancelled=(state["waiting"] or {}).get("cancel"),
        earlier=keeper.reader(state["run_id"], restored),
        now=list(records),
    )
