"""`Flujo`: runs a pipeline so that it survives its process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

from pydantic import BaseModel

from flujo import _ids
from flujo._clock import Clock, SystemClock
from flujo.errors import ConfigurationError, RunEndedError, RunInsideLoopError
from flujo.execution.context import ContextKind
from flujo.execution.events import Announcer, Hook
from flujo.execution.executors import Executors, Given
from flujo.execution.forks import listening
from flujo.pipeline import LATEST, Merge, MergeFunction, Pipeline, PipelineRegistry, Step
from flujo.runner.code import Code
from flujo.runner.drive import Drive, make_result
from flujo.runner.opening import MISSING, Opening, Request, Setup
from flujo.runner.result import PipelineResult
from flujo.runner.saving import Keeper
from flujo.state.backends.base import StateBackend
from flujo.state.backends.memory import InMemoryBackend
from flujo.state.codec import declare
from flujo.state.models import StepRecord

In = TypeVar("In")
Out = TypeVar("Out")
Initial = BaseModel | Mapping[str, Any] | None


class Flujo(Generic[In, Out]):
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

    def run(
        self,
        input: In = MISSING,
        *,
        run_id: str | None = None,
        wait: bool = False,
        initial_context_data: Initial = None,
    ) -> PipelineResult[Out]:
        """Run the pipeline to its end, or go on with the run of this run_id, and return how it came out.

        Arguments: `input` of the first step; `run_id`, by default a new one; `wait`: where another runner executes
        the run, wait for it and take over if it dies; `initial_context_data` for this run.
        A failing step does not raise here: see `PipelineResult.status`, `.error`, `.output`.
        Raises RunInsideLoopError, RunInProgressError, ResumeError, ConfigurationError, StateError (a failed save).
        Ctrl-C and SIGTERM interrupt: the run is given back as it was last saved, and goes on with the next `run`.
        """
        return self._now(self._execution(input, run_id, initial_context_data, wait=wait, inline=True))

    def run_async(
        self,
        input: In = MISSING,
        *,
        run_id: str | None = None,
        wait: bool = False,
        initial_context_data: Initial = None,
    ) -> RunExecution[Out]:
        """Return the run as a coroutine: `await` it for its result, or iterate over it.

        `async for` gives a `StepResult` after each step that is executed and saved, and the `PipelineResult` last;
        leaving the loop early gives the run back. Arguments and errors are those of `run`.
        """
        return self._execution(input, run_id, initial_context_data, wait=wait, inline=False)

    def cancel(self, run_id: str) -> PipelineResult[Out]:
        """End a run that nobody executes: its undos run, and it is `cancelled`. Cancelling it again changes nothing.

        Raises RunNotFoundError, RunEndedError (it has completed, or failed and was undone), RunInProgressError, and
        what `run` raises. Where an undo fails, the result says so (`failed`), and cancelling or running it again goes
        on undoing.
        """
        return self._now(self._execution(MISSING, run_id, None, wait=False, inline=True, cancel=True))

    def cancel_async(self, run_id: str) -> RunExecution[Out]:
        """Do what `cancel` does, as a coroutine."""
        return self._execution(MISSING, run_id, None, wait=False, inline=False, cancel=True)

    @staticmethod
    def _now(execution: RunExecution[Out]) -> PipelineResult[Out]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RunInsideLoopError(
                "run() or cancel() was called while an event loop is running in this thread.",
                hint="Use `await runner.run_async(...)` there, or cancel_async.",
            )
        with asyncio.Runner() as loop:
            return loop.run(_until_terminated(execution))

    def _execution(
        self, given: In, run_id: str | None, initial: Initial, *, wait: bool, inline: bool, cancel: bool = False
    ) -> RunExecution[Out]:
        request = Request(
            run_id=_ids.new_run_id() if run_id is None else _ids.check_run_id(run_id),
            input=given,
            initial_context=initial,
            wait=wait,
            inline=inline,
            cancel=cancel,
        )
        return RunExecution(self._setup, Keeper(self.backend), request)


class RunExecution(Coroutine[Any, Any, PipelineResult[Out]], Generic[Out]):
    """A run that can be awaited, scheduled as a task, or iterated over, once."""

    def __init__(self, setup: Setup, keeper: Keeper, request: Request) -> None:
        self.run_id = request.run_id
        self._setup, self._keeper, self._request = setup, keeper, request
        self._coroutine: Coroutine[Any, Any, PipelineResult[Out]] | None = None

    async def _open(self) -> Drive | PipelineResult[Out]:
        opened = await Opening(self._setup, self._keeper, self._request).open()
        if opened.fence is not None:
            return Drive(self._setup, self._keeper, opened, cancel=self._request.cancel)
        if self._request.cancel and opened.state["status"] != "cancelled":
            raise RunEndedError(
                f"Run {self.run_id!r} has ended ({opened.state['status']}), and cannot be cancelled.",
                hint="What it did can only be taken back by another run.",
                run_id=self.run_id, status=opened.state["status"],
            )  # fmt: skip
        restored = opened.state["history_offset"]
        return make_result(self._setup, self._keeper, opened.state, restored=restored)

    async def _to_the_end(self) -> PipelineResult[Out]:
        drive = await self._open()
        if isinstance(drive, PipelineResult):
            return drive
        try:
            while await drive.advance() is not None:
                pass
        except GeneratorExit:  # nothing may be awaited now
            drive.drop()
            raise
        except BaseException as error:
            await drive.close(error)
            raise
        await drive.close()
        return drive.result()

    def _inner(self) -> Coroutine[Any, Any, PipelineResult[Out]]:
        if self._coroutine is None:
            self._coroutine = self._to_the_end()
        return self._coroutine

    def send(self, value: Any) -> Any:
        """Go on; part of being a coroutine."""
        return self._inner().send(value)

    def throw(self, *error: Any) -> Any:
        """Raise inside; part of being a coroutine."""
        return self._inner().throw(*error)

    def close(self) -> None:
        """End without a result; part of being a coroutine."""
        if self._coroutine is not None:
            self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, PipelineResult[Out]]:
        return self._inner().__await__()

    def __aiter__(self) -> AsyncIterator[StepRecord | PipelineResult[Out]]:
        return _Steps(self._open)


class _Steps(AsyncIterator[Any]):
    """The iteration over one run. Dropping it, as leaving `async for` early does, gives the run back at once."""

    def __init__(self, open_run: Callable[[], Coroutine[Any, Any, Drive | PipelineResult[Any]]]) -> None:
        self._open = open_run
        self._drive: Drive | None = None
        self._over = False

    async def __anext__(self) -> Any:
        if self._over:
            raise StopAsyncIteration
        if self._drive is None:
            drive = await self._open()
            if isinstance(drive, PipelineResult):
                self._over = True
                return drive
            self._drive = drive
        try:
            record = await self._drive.advance()
        except GeneratorExit:  # nothing may be awaited now
            self._over = True
            self._drive.drop()
            raise
        except BaseException as error:
            self._over = True
            await self._drive.close(error)
            raise
        if record is not None:
            return record
        self._over = True
        await self._drive.close()
        return self._drive.result()

    def __del__(self) -> None:
        if self._drive is not None:
            self._drive.drop()


async def _until_terminated(execution: RunExecution[Out]) -> PipelineResult[Out]:
    """Await the run; on SIGTERM, unless the program handles it itself, interrupt it and raise SystemExit(143)."""
    task = asyncio.current_task()
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not ours or task is None:
        return await execution
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    loop = asyncio.get_running_loop()
    listening.set()
    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await execution
    except asyncio.CancelledError:
        if terminated:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    finally:
        with contextlib.suppress(ValueError):
            loop.remove_signal_handler(signal.SIGTERM)
        listening.clear()
