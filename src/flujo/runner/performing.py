"""One step, attempted until it succeeds or its retries are used up; and what it asks for while it runs."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from flujo import _ids
from flujo.engine import Act, Path, Saved
from flujo.engine.repair import generation
from flujo.errors import ConfigurationError
from flujo.execution.attempt import attempt, ended
from flujo.execution.current import CURRENT, CurrentStep
from flujo.execution.events import StepProgress, StepRetrying, StepStarted
from flujo.execution.failure import describe
from flujo.execution.once import Once
from flujo.pipeline import Reconciled, Step
from flujo.runner.commits import Change, Commits
from flujo.runner.opening import Setup
from flujo.runner.scopes import RunContext, Scopes
from flujo.state.models import StepRecord

_log = logging.getLogger("flujo")
TIMER_S = 5.0  # a longer delay before a retry is a timer in the store, and no sleeping task
CLOCK_S = 10.0  # between looks at a clock that may have been set
UNCHANGING = frozenset({type(None), bool, int, float, str, bytes, complex})


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step came out; `error` is None where it succeeded.

    `change` is what else becomes of the state when it is saved. `retry_in` says that it is not over: in so many seconds
    there is to be another attempt, after `tries` of them, which did that `once`.
    """

    record: StepRecord
    error: BaseException | None = None
    change: Change | None = None
    retry_in: float | None = None
    tries: int = 0
    once: Mapping[Path, StepRecord] = field(default_factory=dict)


class Place(Protocol):
    """Where a step is performed: what it is given, and how that is put back after a failed attempt."""

    step: Step[Any, Any]
    path: Path
    given: Any
    before: int  # attempts on record

    def context(self) -> Any:
        """Return the context that the step works on."""

    async def restore(self) -> None:
        """Put the input and the context back as they were saved: an attempt may have changed both."""


class TopPlace:
    """A step of the pipeline itself: its input is the run's newest saved output."""

    def __init__(self, step: Step[Any, Any], path: Path, given: Any, before: int, context: RunContext) -> None:
        self.step, self.path, self.given, self.before = step, path, given, before
        self._context = context

    def context(self) -> Any:
        """Return the run's context."""
        return self._context.live

    async def restore(self) -> None:
        """Read both again, where the step may have changed them."""
        plain = type(self.given) in UNCHANGING
        if plain and not self.step.takes_context:
            return
        if plain:
            await self._context.restore()
        else:
            self.given = await self._context.restored_input(self.given)


class InnerPlace:
    """A step inside of another: its input is kept encoded where there may be another attempt."""

    def __init__(self, act: Act, before: int, scopes: Scopes, commits: Commits) -> None:
        assert act.step is not None
        self.step, self.path, self.given, self.before = act.step, act.path, act.given, before
        self._scope, self._scopes, self._codec = act.scope, scopes, commits.keeper.codec
        self._kept: bytes | None = None
        if act.step.retry.max_retries and type(act.given) not in UNCHANGING:
            self._kept = self._codec.encode(act.given, "input")

    def context(self) -> Any:
        """Return the context of the branch or item."""
        return self._scopes.context(self._scope) if self.step.takes_context else None

    async def restore(self) -> None:
        """Decode the input again, and drop what was done to the context."""
        if self._kept is not None:
            self.given = self._codec.decode(self._kept)
        if self.step.takes_context:
            await self._scopes.restore(self._scope)


class Performer:
    """Performs the steps of one run."""

    def __init__(self, setup: Setup, commits: Commits) -> None:
        self.setup, self.commits = setup, commits
        self._run_id: str = commits.state["run_id"]
        self._announce = setup.announcer
        self._chatty = setup.announcer.wants_all()
        self._plain_once = Once({}, commits.add, setup.clock, None)
        self.abandoned: list[CurrentStep] = []  # attempts that nobody waits for, and that may still be running

    async def perform(self, place: Place, saved: Saved | None, tries: int = 0) -> Outcome:
        """Attempt the step until it succeeds, its retries are used up, or the next one is far off.

        Arguments: `saved` holds what it did `once`; `tries`, the attempts that were made before a timer.

        Raises CancelledError where the task was cancelled, and what stops the run.
        """
        task = asyncio.current_task()
        asked, clock, step = cancels(task), self.setup.clock, place.step
        pool = self.setup.executors.get(step.executor) if step.executor is not None else None
        once = self._once(step, saved)
        edits = self._edits()
        while True:
            tries += 1
            current = CurrentStep(self._run_id, place.path, place.before + tries, None)
            current.once, current.generation = once, edits
            if self._chatty:
                self._announce_start(current)
            token = CURRENT.set(current)
            start = clock.perf()
            try:
                output = await attempt(step, place.given, place.context(), current, pool)
                latency = clock.perf() - start
                return Outcome(StepRecord(path=place.path, output=output, attempts=current.attempt, latency_s=latency))
            except Exception as raised:
                if cancels(task) > asked:
                    raise asyncio.CancelledError from raised  # the step's answer to being cancelled is no failure
                error: BaseException = raised
            except asyncio.CancelledError as raised:
                if cancels(task) > asked or task is None:
                    raise
                error = raised  # not ours: something that the step awaited was cancelled
            finally:
                CURRENT.reset(token)
                self._leave(current)
            latency = clock.perf() - start
            if self.commits.broken is not None:  # a save within the step failed; the step may hide it, the run may not
                raise self.commits.broken
            delay = step.retry.delay_before(tries, error, random.random) if isinstance(error, Exception) else None
            if delay is None:
                return failure(place.path, error, current.attempt, latency)
            if delay > TIMER_S:
                return await self._put_off(place, current, error, delay, tries, once)
            await self._pause(place, current, error, delay)
            del error  # its traceback holds this frame, and with it whoever iterates over the run

    def _edits(self) -> int:
        """Return how often what the step under way takes was changed from outside: that makes it another call of it."""
        state = self.commits.state
        return 0 if state["position"] is None or state["phase"] is not None else generation(state)

    async def reconcile(self, act: Act, asked: Step[Any, Any], scopes: Scopes) -> Outcome:
        """Ask the step's reconcile function, with the step's idempotency key, whether it had happened."""
        about = CurrentStep(self._run_id, act.path, 1, None)
        about.generation = self._edits()
        key = about.idempotency_key
        path = (*act.path, ">" + asked.name)
        place = InnerPlace(Act(path, act.scope, asked, key), 0, scopes, self.commits)
        outcome = await self.perform(place, None)
        if outcome.error is None and not isinstance(outcome.record.output, Reconciled):
            wrong = ConfigurationError(
                f"The reconcile function of step {_ids.path_text(act.path)!r} returned {outcome.record.output!r}.",
                hint="It returns a Reconciled: did the step happen, and what is its output?",
            )
            return replace(failure(act.path, wrong), retry_in=None)
        return replace(outcome, record=replace(outcome.record, path=act.path), retry_in=None)

    def _leave(self, current: CurrentStep) -> None:
        """The attempt is over: what it has left behind must not do anything in its name."""
        current.over = True
        if current.call is not None and not current.call.ended.done():
            self.abandoned.append(current)

    def _once(self, step: Step[Any, Any], saved: Saved | None) -> Once:
        if saved is None and not step.retry.max_retries:
            return self._plain_once
        codec = self.commits.keeper.codec if step.retry.max_retries else None
        return Once(saved.done if saved is not None else {}, self.commits.add, self.setup.clock, codec)

    def _announce_start(self, current: CurrentStep) -> None:
        current.report = self._progress(current.path)
        self._announce(StepStarted(run_id=self._run_id, path=current.path, attempt=current.attempt))

    async def _pause(self, place: Place, current: CurrentStep, error: BaseException, delay: float) -> None:
        """Wait for the next attempt, and put everything back for it."""
        self._announce_retry(place, current, error, delay)
        del error
        await self.setup.clock.sleep(delay)
        await self._put_back(place, current)

    async def _put_off(
        self, place: Place, current: CurrentStep, error: BaseException, delay: float, tries: int, once: Once
    ) -> Outcome:
        """Put everything back for an attempt that is far off."""
        self._announce_retry(place, current, error, delay)
        await self._put_back(place, current)
        outcome = failure(place.path, error, current.attempt)
        return replace(outcome, retry_in=delay, tries=tries, once=once.records())

    def _announce_retry(self, place: Place, current: CurrentStep, error: BaseException, delay: float) -> None:
        self._announce(
            StepRetrying(run_id=self._run_id, path=place.path, attempt=current.attempt, error=error, delay_s=delay)
        )

    async def _put_back(self, place: Place, current: CurrentStep) -> None:
        """Put back what an attempt may have changed, when what it has left behind has ended."""
        if not await ended(current):
            _log.warning(
                "run %s: step %s: an abandoned attempt is still running", self._run_id, _ids.path_text(place.path)
            )
        await place.restore()

    def _progress(self, path: Path) -> Callable[[float, float | None], None]:
        def report(done: float, total: float | None) -> None:
            self._announce(StepProgress(run_id=self._run_id, path=path, done=done, total=total))

        return report


def failure(path: Path, error: BaseException, attempts: int = 1, latency: float = 0.0) -> Outcome:
    """Return the outcome of a step that failed for good."""
    feedback = f"{type(error).__name__}: {describe(error)['text']}"
    record = StepRecord(path=path, success=False, attempts=attempts, latency_s=latency, feedback=feedback)
    return Outcome(record, error)


def cancels(task: asyncio.Task[Any] | None) -> int:
    """Return how many cancellations of the task were asked for and not taken back."""
    return task.cancelling() if task is not None else 0
