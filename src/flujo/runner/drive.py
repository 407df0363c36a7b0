"""One run, from its claim to its result: asks the core what is next, has it done, and saves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence
from typing import Any

from flujo import _ids
from flujo.engine import Do, attempts_before, completed, decide, failed, finished
from flujo.errors import BackendClosedError, CrashLoopError, NotSerializableError, StateError
from flujo.execution.attempt import attempt, ended
from flujo.execution.current import CURRENT, CurrentStep
from flujo.execution.events import (
    RunEnded,
    RunInterrupted,
    RunStarted,
    StepFailed,
    StepProgress,
    StepRetrying,
    StepSaved,
    StepStarted,
)  # fmt: skip
from flujo.execution.failure import describe, recorded
from flujo.pipeline import Registered
from flujo.runner.opening import Opened, Setup
from flujo.runner.result import PipelineResult
from flujo.runner.saving import Keeper
from flujo.state.backends.base import State
from flujo.state.models import StepRecord

_log = logging.getLogger("flujo")
_UNCHANGING = frozenset({type(None), bool, int, float, str, bytes, complex})


class Drive:
    """A claimed run. `advance` does and saves one step; `close` gives the run back, whatever happened."""

    def __init__(self, setup: Setup, keeper: Keeper, opened: Opened) -> None:
        self._setup, self._keeper = setup, keeper
        self.state: State = opened.state
        self._code: Registered = opened.code
        self._total = len(opened.code.pipeline.steps)
        self._fence = opened.fence
        self._crashes = opened.crashes
        self._context: Any = opened.context
        self._restored = opened.state["history_offset"]
        self._first = opened.pristine
        self._records: list[StepRecord] = []
        self._error: BaseException | None = None
        self._announce = setup.announcer
        self._chatty = setup.announcer.wants_all()
        self._held = True
        self._cancels = 0  # asked for before the step began
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
    def run_id(self) -> str:
        """The run's id."""
        run_id: str = self.state["run_id"]
        return run_id

    async def advance(self) -> StepRecord | None:
        """Do the next step and save it; return its record, or None where there is nothing left to do.

        Raises what stops a run without ending it: a failed save, a cancellation, KeyboardInterrupt.
        """
        do = decide(self._code.pipeline, self.state)
        if do is None:
            await self._finish()
            return None
        if self._crashes >= self._setup.max_crashes:
            await self._give_up(do)
            return None
        record = await self._perform(do)
        if record.success:
            try:
                await self._save_success(do, record)
            except NotSerializableError as error:
                record = self._failure(do, error, record.attempts, record.latency_s)
        if not record.success:
            await self._save_failure(record)
        self._records.append(record)
        self._crashes = 0
        if self._interrupted():  # and the step went on to its end all the same
            raise asyncio.CancelledError
        return record

    async def _finish(self) -> None:
        """Complete a run that was found with all of its steps saved, but not its end."""
        if self.state["status"] == "running":
            await self._save(finished(self.state, self._setup.clock.now()))
            self._announce(RunEnded(run_id=self.run_id, status="completed"))

    async def _save_success(self, do: Do, record: StepRecord) -> None:
        values = self.state["pipeline_context"]
        if do.step.takes_context:
            values = self._setup.contexts.values(self._context)
        after = completed(self.state, record, values, self._total, self._setup.clock.now())
        await self._save(after)
        if self._chatty:
            self._announce(StepSaved(run_id=self.run_id, result=record))
            if after["status"] != "running":
                self._announce(RunEnded(run_id=self.run_id, status=after["status"]))

    async def _save_failure(self, record: StepRecord | None) -> None:
        assert self._error is not None
        if self._context is not None or self._keeper.subclassed:
            stored = await self._restore_context()
            if stored is not None and self._keeper.subclassed:  # it may save a copy, which is then encoded anew
                unchanged = {name: stored[name] for name in ("pipeline_context", "last_step_output")}
                self.state = {**self.state, **unchanged}
        await self._save(failed(self.state, record, describe(self._error), self._setup.clock.now()))
        if record is not None:
            self._announce(StepFailed(run_id=self.run_id, result=record, error=self._error))
        self._announce(RunEnded(run_id=self.run_id, status="failed"))

    async def _save(self, state: State) -> None:
        await self._keeper.save(state)
        self.state = state
        self._held = state["status"] == "running"

    async def _give_up(self, do: Do) -> None:
        path = _ids.path_text(do.path)
        self._error = CrashLoopError(
            f"Run {self.run_id!r} was given up: its process died {self._crashes} times at step {path!r}.",
            hint="Find out what kills it (memory?), then run it again with the same run_id.",
            run_id=self.run_id,
            step=do.step.name,
            crashes=self._crashes,
        )
        record = StepRecord(
            path=do.path,
            success=False,
            attempts=attempts_before(self.state) + self._crashes,
            feedback=str(self._error),
        )
        self._records.append(record)
        await self._save_failure(record)

    async def _perform(self, do: Do) -> StepRecord:
        """Attempt the step until it succeeds or its retries are used up."""
        step, given = do.step, do.input
        self._cancels = _cancels()
        before = attempts_before(self.state) + self._crashes
        tries = 0
        while True:
            tries += 1
            current = CurrentStep(self.run_id, do.path, before + tries, self._progress(do) if self._chatty else None)
            if self._chatty:
                self._announce(StepStarted(run_id=self.run_id, path=do.path, attempt=current.attempt))
            token = CURRENT.set(current)
            start = self._setup.clock.perf()
            try:
                output = await attempt(step, given, self._context, current)
                latency = self._setup.clock.perf() - start
                return StepRecord(path=do.path, output=output, attempts=current.attempt, latency_s=latency)
            except Exception as raised:
                if self._interrupted():
                    raise asyncio.CancelledError from raised  # the step's answer to being cancelled is no failure
                error: BaseException = raised
            except asyncio.CancelledError as raised:
                if self._interrupted() or asyncio.current_task() is None:
                    raise
                error = raised  # not ours: something that the step awaited was cancelled
            finally:
                CURRENT.reset(token)
            latency = self._setup.clock.perf() - start
            delay = step.retry.delay_before(tries, error, random.random) if isinstance(error, Exception) else None
            if delay is None:
                return self._failure(do, error, current.attempt, latency)
            self._announce(
                StepRetrying(run_id=self.run_id, path=do.path, attempt=current.attempt, error=error, delay_s=delay)
            )
            del error  # its traceback holds this frame, and with it whoever iterates over the run
            await self._setup.clock.sleep(delay)
            if not await ended(current):
                _log.warning("run %s: step %s: an abandoned attempt is still running", self.run_id, step.name)
            given = await self._restore(do)

    def _interrupted(self) -> bool:
        """Return whether the task was cancelled since the step began."""
        return _cancels() > self._cancels

    def _failure(self, do: Do, error: BaseException, attempts: int, latency: float) -> StepRecord:
        self._error = error
        feedback = f"{type(error).__name__}: {describe(error)['text']}"
        return StepRecord(path=do.path, success=False, attempts=attempts, latency_s=latency, feedback=feedback)

    async def _restore(self, do: Do) -> Any:
        """Return the step's input as it was saved, and put the context back: the attempt may have changed both."""
        plain = type(do.input) in _UNCHANGING
        if plain and not do.step.takes_context:
            return do.input
        stored = await self._restore_context()
        if plain:
            return do.input
        if stored is not None and stored["current_step_index"]:
            return stored["last_step_output"]
        if self._first is not None:
            return self._keeper.codec.decode(self._first.input)
        return stored["input"] if stored is not None else do.input

    async def _restore_context(self) -> State | None:
        stored = await self._keeper.reload(self.run_id, self.state["rev"]) if self.state["rev"] else None
        if stored is not None:
            values = stored["pipeline_context"]
        elif self._first is not None:
            values = {name: self._keeper.codec.decode(value) for name, value in self._first.context.items()}
        else:
            return None
        if self._context is not None:
            self._context = self._setup.contexts.restore(values)
            if stored is None:  # nothing was saved, so the values at hand are the only ones, and may have changed
                self.state["pipeline_context"] = values
        return stored

    def _progress(self, do: Do) -> Any:
        def report(done: float, total: float | None) -> None:
            self._announce(StepProgress(run_id=self.run_id, path=do.path, done=done, total=total))

        return report

    def result(self) -> PipelineResult[Any]:
        """Return how the run stands now."""
        return make_result(
            self._setup, self._keeper, self.state, restored=self._restored, records=self._records,
            error=self._error, context=self._context,
        )  # fmt: skip

    async def close(self, error: BaseException | None = None) -> None:
        """Give the run back if it is still held. A release that fails is logged: the process's death releases too."""
        if error is not None and self._held and self._chatty:
            self._announce(RunInterrupted(run_id=self.run_id, error=error))
        if isinstance(error, GeneratorExit):  # the coroutine is being closed: it cannot wait for anything
            self.drop()
            return
        if not self._held and not self._keeper.lends:
            return
        self._held = False
        try:
            await self._keeper.backend.release(self.run_id, self._fence)
        except BackendClosedError:  # closing gave it back
            pass
        except StateError as problem:
            _log.warning("run %s could not be released: %s", self.run_id, problem)

    def drop(self) -> None:
        """Give the run back from a finalizer, without waiting."""
        if self._held or self._keeper.lends:
            self._held = False
            with contextlib.suppress(StateError):  # the backend is closed
                self._keeper.backend.abandon(self.run_id, self._fence)


def _cancels() -> int:
    """Return how many cancellations of the current task were asked for and not taken back."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


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
        earlier=keeper.reader(state["run_id"], restored),
        now=list(records),
    )
