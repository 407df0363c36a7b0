"""One composite step from its beginning, or from where it was, to its end: performs what its tree asks for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from flujo import _ids
from flujo.engine import (
    Act,
    Do,
    Frame,
    Met,
    Path,
    Saved,
    Scope,
    Tree,
    begun,
    closed,
    in_doubt,
    is_cancelled,
    is_held,
    known,
    limited,
    over,
)  # fmt: skip
from flujo.errors import NotSerializableError, StepTimeoutError, UnreadMailError, WaitTimeoutError
from flujo.execution.events import StepFailed, StepSaved
from flujo.pipeline import WAITS, Reconciled, Step
from flujo.runner.limits import Timer, begin, overdue
from flujo.runner.mailbox import Mailbox
from flujo.runner.performing import UNCHANGING, InnerPlace, Outcome, Performer, failure
from flujo.runner.scopes import RunContext, Scopes
from flujo.runner.waits import Parked, Waits
from flujo.state.models import StepRecord

T = TypeVar("T")


class CompositeRun:
    """A composite step under way.

    `run` returns how it came out. What goes on at once is performed in tasks; where there is only one thing to do, it
    is done here. Attribute: `void`, the places of the failures (among the step's records) that a retry makes good.
    """

    def __init__(
        self, performer: Performer, context: RunContext, do: Do, saved: Saved, crashes: int, mailbox: Mailbox
    ) -> None:
        self._setup, self._commits = performer.setup, performer.commits
        self._performer, self._context = performer, context
        self._do, self._saved, self._crashes = do, saved, crashes
        self._announce = self._setup.announcer
        self._chatty = self._announce.wants_all()
        self._scopes = Scopes(self._setup, self._commits, context)
        self._tree = Tree(do.step, do.path, do.input, saved, self._copy)
        self._waits = Waits(self._setup, self._commits, mailbox)
        self._doubtful = in_doubt(self._commits.state)
        self._todo: list[Act] = []
        self._own: Outcome | None = None  # how the step itself came out, where it is a function or waits
        self._tasks: dict[Path, asyncio.Task[None]] = {}
        self._leaving: set[Path] = set()  # cancelled, and not yet at their end
        self._timers: set[Timer] = set()
        self._progress = asyncio.Event()
        self._fatal: BaseException | None = None
        self._last: Outcome | None = None  # the failure that ended it, not yet saved
        self._stray: list[int] = []
        self.void: list[int] = []

    async def run(self) -> Outcome | None:
        """Perform it, and return how it came out, or None where it goes no further: the run is paused, or cancelled.

        Raises CancelledError where the task was cancelled, and what stops the run.
        """
        start = self._setup.clock.perf()
        try:
            while not self._tree.over and self._fatal is None:
                if not await self._go_on():
                    return None
            await self._stop()
        except GeneratorExit:  # nothing may be awaited now
            self._cancel_all()
            raise
        except BaseException as error:
            await self._stop()
            if isinstance(error, asyncio.CancelledError):  # what had come to its end, and waited for a save
                await self._commits.flush()
            raise
        if self._fatal is not None:
            raise self._fatal
        await self._commits.flush()
        self._commits.crowded = False
        latency = self._setup.clock.perf() - start
        if self._tree.failure is not None:
            return self._failed(latency)
        if self._own is not None:
            return self._own
        return Outcome(StepRecord(path=self._do.path, output=self._tree.output, latency_s=latency))

    def news(self) -> None:
        """Something has come, or somebody has paused the run: look again."""
        self._progress.set()

    def _failed(self, latency: float) -> Outcome:
        found = self._tree.failure
        assert found is not None
        places = self._saved.places
        self.void = [places[path] for path in found.causes if path in places] + self._stray
        if self._last is not None and self._last.record.path == found.path:
            return self._last
        return failure(self._do.path, found.error, latency=latency)

    async def _go_on(self) -> bool:
        """Start what may be started, and wait until something has come about; return False where it goes no further."""
        while self._waits.mailbox.stale:
            await self._waits.mailbox.refresh()
        self._take_notes()
        if is_cancelled(self._commits.state):
            await self._stop()
            await self._commits.flush()
            return False
        held = is_held(self._commits.state)
        if not self._leaving and not held:
            self._todo += self._tree.ready()
            for parked, how in self._waits.ended(self._tasks):
                self._start(parked.act.path, self._come_true, (parked, how))
            alone = not self._tasks and not self._timers and not self._waits.parked
            acts, self._todo = self._todo, []
            if len(acts) == 1 and alone:
                self._commits.crowded = False
                await self._act(acts[0])
                return True
            self._commits.crowded = bool(acts or self._tasks)
            for act in acts:
                self._start(act.path, self._act, act)
        self._progress.clear()
        if self._tree.over:
            return True
        if not self._tasks:
            if overdue(self._timers, self._commits) and not held:
                await self._progress.wait()  # it is about to run out
                return True
            assert self._waits.parked or held, "nothing goes on, and nothing has come to an end"
            return not await self._pause()
        timer = self._waits.timer(self._progress.set) if not held else None
        try:
            await self._waits.make_known()
            await self._progress.wait()
        finally:
            if timer is not None:
                timer.cancel()
        return True

    async def _pause(self) -> bool:
        """Save that nothing can go on; return False where a message has come meanwhile."""
        self._commits.change(partial(limited, limits=[(timer.path, timer.until) for timer in self._timers]))
        try:
            await self._commits.pause()
        except UnreadMailError:
            await self._waits.mailbox.refresh()
            return False
        return True

    def _take_notes(self) -> None:
        """See what the tree wants to be known."""
        tree = self._tree
        for scope, record in tree.restored:
            self._scopes.apply(scope, record.context_changes)
        for scope in tree.ended:
            self._scopes.ended(scope)
        for path in tree.dropped:
            self._waits.drop(path)
            if path in self._tasks:
                self._tasks[path].cancel()
                self._leaving.add(path)
        for frame in tree.timed:
            if not frame.over:
                begin(frame, self._timers, self._commits, self._expired)
        for notes in (tree.restored, tree.ended, tree.dropped, tree.timed):
            notes.clear()

    def _start(self, path: Path, work: Callable[[T], Coroutine[Any, Any, None]], what: T) -> None:
        task = asyncio.ensure_future(self._guarded(path, work, what))
        self._tasks[path] = task
        task.add_done_callback(lambda _: self._ended(path))  # also of one that is cancelled before it begins

    async def _guarded(self, path: Path, work: Callable[[T], Coroutine[Any, Any, None]], what: T) -> None:
        """Run a task to its end. What stops the run is kept for `run`, which raises it."""
        try:
            await work(what)
        except BaseException as error:
            wanted = path not in self._leaving or not isinstance(error, asyncio.CancelledError)
            if wanted and self._fatal is None:
                self._fatal = error

    def _ended(self, path: Path) -> None:
        del self._tasks[path]
        self._leaving.discard(path)
        self._progress.set()

    async def _stop(self) -> None:
        """Cancel what goes on and wait for its end, however often that is cancelled."""
        self._cancel_all()
        while self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(list(self._tasks.values()))

    def _cancel_all(self) -> None:
        for timer in list(self._timers):
            timer.cancel()
        self._leaving.update(self._tasks)
        for task in list(self._tasks.values()):
            task.cancel()

    async def _act(self, act: Act) -> None:
        """Perform one thing, save it, and tell the tree; or have it wait."""
        if act.step is None:
            await self._join(act)
        elif act.step.kind in WAITS:
            await self._begin_wait(act)
        elif act.path in self._doubtful and not self._waits.asks_verdict(act):
            await self._reconcile(act, act.step)
        elif not self._waits.stands(act):  # for a verdict, or for the time of another attempt
            await self._perform(act, act.step)

    async def _perform(self, act: Act, step: Step[Any, Any], tries: int = 0) -> None:
        before = self._saved.attempts.get(act.path, 0) + self._crashes
        place = InnerPlace(act, before, self._scopes, self._commits)
        if step.on_crash != "retry":
            self._commits.change(partial(begun, path=act.path, crashes=self._crashes))
            await self._commits.add(None)
        outcome = await self._performer.perform(place, self._saved, tries)
        if outcome.retry_in is not None:
            self._saved.done.update(outcome.once)
            self._commits.change(partial(over, path=act.path))
            self._waits.retry(act, outcome)
            return
        if step.on_crash != "retry" or tries:
            outcome = replace(outcome, change=partial(known, path=act.path))
        await self._came_out(act, step, outcome)

    async def _came_out(self, act: Act, step: Step[Any, Any], outcome: Outcome) -> None:
        """Save how a thing came out, and tell the tree."""
        own = act.path == self._do.path
        if outcome.error is None and not own:
            outcome = await self._settled(act, step, outcome)
        if outcome.error is not None:
            await self._broke(act.path, act.path, outcome, act.scope if step.takes_context else None)
            return
        self._crashes = 0
        if own:  # the run's own save of this step is all that is needed
            self._own = outcome
        elif self._chatty:
            self._announce(StepSaved(run_id=self._run_id, result=outcome.record))
        self._tree.succeeded(act.path, outcome.record.output)

    async def _begin_wait(self, act: Act) -> None:
        try:
            self._waits.begin(act)
        except Exception as error:  # of the function that says what the person is told, or until when to sleep
            await self._broke(act.path, act.path, failure(act.path, error), None)

    async def _reconcile(self, act: Act, step: Step[Any, Any]) -> None:
        """Find out whether the step had happened when its process died: of its function, or of a person."""
        verdict = Reconciled(happened=None)
        if isinstance(step.on_crash, Step):
            outcome = await self._performer.reconcile(act, step.on_crash, self._scopes)
            if outcome.error is not None:
                await self._broke(act.path, act.path, outcome, None)
                return
            verdict = outcome.record.output
        if verdict.happened is None:
            self._commits.change(partial(begun, path=act.path, crashes=self._crashes))
            self._waits.ask_verdict(act)
        else:
            await self._judged(act, step, verdict)

    async def _judged(self, act: Act, step: Step[Any, Any], verdict: Reconciled, by: str | None = None) -> None:
        self._doubtful -= {act.path}
        if not verdict.happened:
            await self._perform(act, step)
            return
        attempts = self._saved.attempts.get(act.path, 0) + max(self._crashes, 1)
        record = StepRecord(path=act.path, output=verdict.output, attempts=attempts, by=by)
        await self._came_out(
            act, replace(step, takes_context=False), Outcome(record, change=partial(known, path=act.path))
        )

    async def _come_true(self, ended: tuple[Parked, Met]) -> None:
        """A wait has come to its end."""
        (parked, how), act = ended, ended[0].act
        step = act.step
        assert step is not None
        if parked.wait["kind"] == "retry":
            await self._perform(act, step, parked.wait["tries"])
            return
        if how.late:
            again = await self._waits.expire(parked)
            if again is not None:
                how = again
        change = partial(closed, path=act.path, how=how)
        if parked.wait["kind"] == "crash":
            self._commits.change(change)
            await self._judged(act, step, self._waits.mailbox.content(how.messages[0]), how.messages[0].by)
            return
        try:
            outcome = Outcome(self._waits.record(parked, how), change=change)
        except WaitTimeoutError as error:
            outcome = replace(failure(act.path, error), change=change)
        await self._came_out(act, step, outcome)

    async def _settled(self, act: Act, step: Step[Any, Any], outcome: Outcome) -> Outcome:
        """Save what a step has given, and changed; what cannot be saved is a failure."""
        record = outcome.record
        try:
            output = record.output if act.settle is None else act.settle(record.output)
            changes = self._scopes.changes(act.scope) if step.takes_context else None
            record = StepRecord(
                path=record.path, output=output, attempts=record.attempts, latency_s=record.latency_s,
                context_changes=changes, by=record.by,
            )  # fmt: skip
        except Exception as error:
            return replace(failure(act.path, error, record.attempts, record.latency_s), change=outcome.change)
        own = self._context.values if step.takes_context and act.scope.parent is None else None
        try:
            await self._commits.add(record, own, outcome.change)
        except NotSerializableError as error:
            return replace(failure(act.path, error, record.attempts, record.latency_s), change=outcome.change)
        self._scopes.apply(act.scope, changes)
        return Outcome(record)

    async def _broke(self, path: Path, where: Path | Frame, outcome: Outcome, scope: Scope | None) -> None:
        """A step failed for good. Where the tree can live with that, it is saved now; else with the run's failure."""
        assert outcome.error is not None
        if not self._tree.wants(where):
            return
        if self._tree.absorbs(where):
            if scope is not None:
                await self._scopes.restore(scope)
            self._saved.places[path] = await self._commits.add(outcome.record, change=outcome.change)
            if not self._tree.wants(where):  # meanwhile all of it has failed, of something else
                self._stray.append(self._saved.places[path])
            self._announce(StepFailed(run_id=self._run_id, result=outcome.record, error=outcome.error))
        elif self._last is None:
            self._last = outcome
        text = outcome.record.feedback or ""
        if isinstance(where, Frame):
            self._tree.broken(where, outcome.error, text)
        else:
            self._tree.failed(where, outcome.error, text)

    async def _join(self, act: Act) -> None:
        """Bring the contexts of branches together, and save that if it changes anything."""
        try:
            changes = self._scopes.joined(act)
        except Exception as error:
            await self._broke(act.path, act.path, failure(act.path, error), None)
            return
        own = self._scopes.settle(act, changes)
        if changes is not None:
            kept = None if act.scope.parent is None else changes
            await self._commits.add(StepRecord(path=act.path, context_changes=kept), own)
        self._tree.succeeded(act.path, None)

    def _expired(self, frame: Frame) -> None:
        """A time limit has run out."""
        frame.timer.cancel()
        self._progress.set()
        if self._tree.expire(frame):
            self._start((*frame.path, ">timeout"), self._timed_out, frame)
            self._take_notes()

    async def _timed_out(self, frame: Frame) -> None:
        inside = [task for path, task in self._tasks.items() if path[: len(frame.path)] == frame.path]
        inside.remove(self._tasks[(*frame.path, ">timeout")])
        if inside:  # what they do to the context until they have ended must not stay
            await asyncio.wait(inside)
        error = StepTimeoutError(
            f"Step {_ids.path_text(frame.path)!r} took longer than {frame.limit:g} s.",
            hint="Give it a longer `timeout`.",
            run_id=self._run_id, step=frame.path[-1], timeout=frame.limit,
        )  # fmt: skip
        await self._broke(frame.path, frame, failure(frame.path, error), frame.scope)

    def _copy(self, value: Any) -> Any:
        if type(value) in UNCHANGING:
            return value
        codec = self._commits.keeper.codec
        return codec.decode(codec.encode(value, "input"))

    @property
    def _run_id(self) -> str:
        run_id: str = self._commits.state["run_id"]
        return run_id
