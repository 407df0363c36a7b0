"""`Flujo`: runs a pipeline so that it survives its process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar, overload

from pydantic import BaseModel

from flujo import _ids
from flujo._clock import Clock, SystemClock
from flujo.errors import ConfigurationError, RunEndedError, RunInProgressError
from flujo.execution.context import ContextKind
from flujo.execution.events import Announcer, Hook
from flujo.execution.executors import Executors, Given
from flujo.pipeline import LATEST, Merge, MergeFunction, Pipeline, PipelineRegistry, Step
from flujo.runner.code import Code
from flujo.runner.executing import RunExecution, looked_at, run_now
from flujo.runner.foresight import Foresight
from flujo.runner.opening import MISSING, Request, Setup
from flujo.runner.posting import Post
from flujo.runner.repair import Repairs
from flujo.runner.result import PipelineResult
from flujo.runner.saving import Keeper
from flujo.state.backends.base import StateBackend
from flujo.state.backends.memory import InMemoryBackend
from flujo.state.codec import declare
from flujo.state.mail import Message
from flujo.state.models import as_utc

In = TypeVar("In")
Out = TypeVar("Out")
Initial = BaseModel | Mapping[str, Any] | None


class Flujo(Foresight, Repairs[Out], Generic[In, Out]):
    """Runs a pipeline, and goes on with runs that were interrupted or failed.

    Arguments:
        pipeline: a pipeline or a step; or else
        registry, pipeline_name, pipeline_version: a named pipeline of a registry; the version is for new runs, since
            a run that exists goes on with the one that it started with.
        state_backend: where runs are kept; without one, in memory, so that nothing is written.
        context_model: the pydantic model of the context that steps with a parameter `context` share.
        context_merges: how a field of the context that several branches changed comes together, where its annotation
            in the model does not say so: {"notes": Merge.APPEND}.
        initial_context_data: what a new run's context starts with: the model's fields, or an instance.
        hooks: called with every event of every run; see `flujo.execution.events`.
        pipeline_id: a stable identity of a pipeline given directly; by default its name.
        executors: where steps run that name an executor: {"cpu": any concurrent.futures.Executor, or what makes one}.
        max_crashes: how often in a row a process may die at one step before the run is failed.
        clock: where the time comes from.

    Raises ConfigurationError, PipelineNotRegisteredError.
    """

    @overload
    def __init__(
        self,
        pipeline: Step[In, Out] | Pipeline[In, Out],
        *,
        pipeline_name: str | None = None,
        pipeline_version: str = LATEST,
        state_backend: StateBackend | None = None,
        context_model: type[BaseModel] | None = None,
        context_merges: Mapping[str, Merge | MergeFunction] | None = None,
        initial_context_data: Initial = None,
        hooks: Sequence[Hook] = (),
        pipeline_id: str | None = None,
        max_crashes: int = 10,
        executors: Mapping[str, Given] | None = None,
        clock: Clock | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: Flujo[Any, Any],
        *,
        registry: PipelineRegistry,
        pipeline_name: str,
        pipeline_version: str = LATEST,
        state_backend: StateBackend | None = None,
        context_model: type[BaseModel] | None = None,
        context_merges: Mapping[str, Merge | MergeFunction] | None = None,
        initial_context_data: Initial = None,
        hooks: Sequence[Hook] = (),
        max_crashes: int = 10,
        executors: Mapping[str, Given] | None = None,
        clock: Clock | None = None,
    ) -> None: ...
    def __init__(
        self,
        pipeline: Step[Any, Any] | Pipeline[Any, Any] | None = None,
        *,
        registry: PipelineRegistry | None = None,
        pipeline_name: str | None = None,
        pipeline_version: str = LATEST,
        state_backend: StateBackend | None = None,
        context_model: type[BaseModel] | None = None,
        context_merges: Mapping[str, Merge | MergeFunction] | None = None,
        initial_context_data: Initial = None,
        hooks: Sequence[Hook] = (),
        pipeline_id: str | None = None,
        max_crashes: int = 10,
        executors: Mapping[str, Given] | None = None,
        clock: Clock | None = None,
    ) -> None:
        if state_backend is not None and not isinstance(state_backend, StateBackend):
            raise ConfigurationError(
                f"state_backend is a StateBackend, not {type(state_backend).__name__}.",
                hint="Use SQLiteBackend(path), or derive your own from flujo.state.backends.base.StateBackend.",
            )
        if max_crashes < 1:
            raise ConfigurationError(f"max_crashes is at least 1, not {max_crashes}.", hint="The default is 10.")
        code = Code(pipeline, registry, pipeline_name, pipeline_version, pipeline_id)
        self.backend: StateBackend = state_backend if state_backend is not None else InMemoryBackend()
        self._setup = Setup(
            code=code,
            contexts=ContextKind(context_model, context_merges),
            initial_context=initial_context_data,
            announcer=Announcer(hooks),
            clock=clock or SystemClock(),
            max_crashes=max_crashes,
            executors=Executors(executors),
        )
        code.declare_types()
        if context_model is not None:
            declare(context_model)
        if pipeline is not None:
            self._setup.contexts.check(code.for_new().pipeline)
            self._setup.executors.check(code.for_new().pipeline)
        self._post = Post(self._setup, self.backend)

    _now = staticmethod(run_now)

    def run(
        self,
        input: In = MISSING,
        *,
        run_id: str | None = None,
        wait: bool = False,
        initial_context_data: Initial = None,
        deadline: timedelta | datetime | None = None,
    ) -> PipelineResult[Out]:
        """Run the pipeline to its end, or go on with the run of this run_id, and return how it came out.

        Arguments: `input` of the first step; `run_id`, by default a new one; `wait`: where another runner executes
        the run, wait for it and take over if it dies, and where it waits for nothing but the time (a sleep, the delay
        before a retry), wait that long, also where that is more than 5 s; `initial_context_data` for this run;
        `deadline`, when the run has to have ended or fails with DeadlineExceededError: from now, or a moment. A run
        that exists keeps its own, unless that has passed.
        A run that waits for a person, for a signal, or for a time that is further off is returned `paused`.
        A failing step does not raise here: see `PipelineResult.status`, `.error`, `.output`.
        Raises RunInsideLoopError, RunInProgressError, ResumeError, ConfigurationError, StateError (a failed save).
        Ctrl-C and SIGTERM interrupt: the run is given back as it was last saved, and goes on with the next `run`.
        """
        return run_now(self._execution(input, run_id, initial_context_data, wait=wait, inline=True, deadline=deadline))

    def run_async(
        self,
        input: In = MISSING,
        *,
        run_id: str | None = None,
        wait: bool = False,
        initial_context_data: Initial = None,
        deadline: timedelta | datetime | None = None,
    ) -> RunExecution[Out]:
        """Return the run as a coroutine: `await` it for its result, or iterate over it.

        `async for` gives a `StepResult` after each step that is executed and saved, and the `PipelineResult` last;
        leaving the loop early gives the run back. Arguments and errors are those of `run`.
        """
        return self._execution(input, run_id, initial_context_data, wait=wait, inline=False, deadline=deadline)

    def resume(
        self,
        run_id: str | PipelineResult[Any],
        human_input: Any = MISSING,
        *,
        by: str | None = None,
        at: str | None = None,
        reason: str | None = None,
        wait: bool = False,
    ) -> PipelineResult[Out]:
        """Answer what a run waits for, and go on with it; without an answer, go on with one that `pause` has paused.

        Arguments: `run_id`, or the paused result, which says exactly which question is meant; `human_input`, of the
        type that the step asks for, or data that makes one; `by`, who answers; `at`, the path of the step, where
        several wait; `reason`, why a pause ends; `wait` as for `run`.
        Raises RunNotFoundError, RunNotWaitingError, InvalidAnswerError, AlreadyAnsweredError, AnswerTooLateError,
        NoVoteError (the run is as it was, and waits on), RunEndedError, ResumeError, and what `run` raises.
        """
        return run_now(self._resumed(run_id, human_input, by, at, reason, wait=wait, inline=True))

    def resume_async(
        self,
        run_id: str | PipelineResult[Any],
        human_input: Any = MISSING,
        *,
        by: str | None = None,
        at: str | None = None,
        reason: str | None = None,
        wait: bool = False,
    ) -> RunExecution[Out]:
        """Do what `resume` does, as a coroutine."""
        return self._resumed(run_id, human_input, by, at, reason, wait=wait, inline=False)

    def signal(
        self, run_id: str, name: str, payload: Any = None, *, id: str | None = None, by: str | None = None
    ) -> None:
        """Send a run a signal. It is stored when this returns, and used by the first step that waits for it.

        Arguments: `id`, the same for each try to send the same signal: it counts once; `by`, who sends it.
        A paused run that waits for it can go on with the next `run`, or by a worker.
        Raises UnknownSignalError, InvalidAnswerError (of the wrong type), RunNotFoundError, RunEndedError,
        MailboxFullError, NotSerializableError, ResumeError.
        """
        run_now(self.signal_async(run_id, name, payload, id=id, by=by))

    async def signal_async(
        self, run_id: str, name: str, payload: Any = None, *, id: str | None = None, by: str | None = None
    ) -> None:
        """Do what `signal` does, as a coroutine."""
        await self._post.signal(_ids.check_run_id(run_id), name, payload, id, by)

    def pause(self, run_id: str, *, by: str | None = None, reason: str | None = None) -> None:
        """Have a run stand still until `resume(run_id)`.

        That is at once where nobody executes it, else as soon as what is under way has ended. A paused run takes
        answers and signals, and no timer of it fires. Raises RunNotFoundError, RunEndedError, RunNotWaitingError (it
        has failed), RunInProgressError (it is executed, on a backend without a mailbox).
        """
        run_now(self.pause_async(run_id, by=by, reason=reason))

    async def pause_async(self, run_id: str, *, by: str | None = None, reason: str | None = None) -> None:
        """Do what `pause` does, as a coroutine."""
        await self._post.order(_ids.check_run_id(run_id), "pause", by, reason)
        with contextlib.suppress(RunInProgressError):  # its owner has been told
            await self._execution(MISSING, run_id, None, wait=False, inline=False, known=True)

    def cancel(self, run_id: str, *, by: str | None = None, reason: str | None = None) -> PipelineResult[Out]:
        """End a run: what is under way is cancelled, its undos run, and it is `cancelled`; once more changes nothing.

        Where another process executes the run, that one is told, and waited for; if it dies, this one ends the run.
        Raises RunNotFoundError, RunEndedError (it has completed, or failed and was undone), RunInProgressError
        (executed on a backend without a mailbox), and what `run` raises. Where an undo fails, the result says so
        (`failed`), and cancelling or running it again goes on undoing.
        """
        return run_now(self._cancelled(run_id, by, reason, inline=True))

    def cancel_async(self, run_id: str, *, by: str | None = None, reason: str | None = None) -> RunExecution[Out]:
        """Do what `cancel` does, as a coroutine."""
        return self._cancelled(run_id, by, reason, inline=False)

    def get(self, run_id: str) -> PipelineResult[Out]:
        """Return how a run stands, and change nothing: also of one that is `running`; raises RunNotFoundError."""
        return run_now(self.get_async(run_id))

    async def get_async(self, run_id: str) -> PipelineResult[Out]:
        """Do what `get` does, as a coroutine."""
        return await looked_at(self._setup, Keeper(self.backend), _ids.check_run_id(run_id))

    async def messages_async(self, run_id: str) -> list[Message]:
        """Return the messages that were sent to a run, in order: who answered, cancelled or paused it, when and why."""
        return await self.backend.mail(_ids.check_run_id(run_id))

    def messages(self, run_id: str) -> list[Message]:
        """Return the messages that were sent to a run, in order: who answered, cancelled or paused it, when and why."""
        return run_now(self.messages_async(run_id))

    def _resumed(
        self, run: str | PipelineResult[Any], answer: Any, by: str | None, at: str | None, reason: str | None,
        *, wait: bool, inline: bool,
    ) -> RunExecution[Out]:  # fmt: skip
        run_id = _ids.check_run_id(run.run_id if isinstance(run, PipelineResult) else run)
        seen = run if isinstance(run, PipelineResult) else None

        async def send() -> None:
            if answer is MISSING:
                await self._post.order(run_id, "resume", by, reason)
            else:
                await self._post.answer(run_id, answer, by, at, seen)

        return self._execution(MISSING, run_id, None, wait=wait, inline=inline, known=True, attach=True, before=send)

    def _cancelled(self, run_id: str, by: str | None, reason: str | None, *, inline: bool) -> RunExecution[Out]:
        async def send() -> None:
            try:
                await self._post.order(run_id, "cancel", by, reason)
            except RunEndedError as error:
                if error.data.get("status") != "cancelled":
                    raise

        def check(result: PipelineResult[Any]) -> None:
            if result.status == "completed":  # its last step was saved before anybody read that
                raise RunEndedError(
                    f"Run {run_id!r} has ended ({result.status}), and cannot be cancelled.",
                    hint="What it did can only be taken back by another run.", run_id=run_id, status=result.status,
                )  # fmt: skip

        return self._execution(
            MISSING, run_id, None, wait=False, inline=inline, known=True, attach=True, before=send, check=check
        )

    def _execution(
        self,
        given: In,
        run_id: str | None,
        initial: Initial,
        *,
        wait: bool,
        inline: bool,
        deadline: timedelta | datetime | None = None,
        known: bool = False,
        attach: bool = False,
        before: Callable[[], Coroutine[Any, Any, object]] | None = None,
        check: Callable[[PipelineResult[Any]], None] | None = None,
        keeper: Keeper | None = None,
    ) -> RunExecution[Out]:
        request = Request(
            run_id=_ids.new_run_id() if run_id is None else _ids.check_run_id(run_id),
            input=given,
            initial_context=initial,
            wait=wait,
            inline=inline,
            deadline=None if deadline is None else _moment(deadline, self._setup.clock),
            known=known,
            attach=attach or wait,
        )
        return RunExecution(self._setup, keeper or Keeper(self.backend), request, before, check)


def _moment(deadline: timedelta | datetime, clock: Clock) -> datetime:
    given: object = deadline
    if isinstance(given, timedelta) and given > timedelta(0):
        return clock.now() + given
    if isinstance(given, datetime) and given.tzinfo is not None:
        return as_utc(given)
    raise ConfigurationError(
        f"A deadline cannot be {given!r}.", hint="Give a timedelta from now, or a datetime with a time zone."
    )
