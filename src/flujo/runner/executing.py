"""A run as a coroutine: awaited, scheduled as a task, or iterated over."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from dataclasses import replace
from typing import Any, Generic, TypeVar

from flujo.errors import RunInsideLoopError
from flujo.execution.forks import listening
from flujo.runner.drive import Drive, make_result
from flujo.runner.opening import MISSING, Opening, Request, Setup, not_found
from flujo.runner.performing import TIMER_S
from flujo.runner.result import PipelineResult
from flujo.runner.saving import Keeper
from flujo.state.backends.base import Reading
from flujo.state.models import StepRecord

Out = TypeVar("Out")
Opened = Drive | PipelineResult[Any]


def run_now(work: Coroutine[Any, Any, Out]) -> Out:
    """Run a coroutine to its end in an event loop of its own; raises RunInsideLoopError where one is running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        work.close()
        raise RunInsideLoopError(
            "A method of Flujo that blocks was called while an event loop is running in this thread.",
            hint="Use the method of the same name with _async there: `await runner.run_async(...)`.",
        )
    with asyncio.Runner() as loop:
        return loop.run(_until_terminated(work))


class RunExecution(Coroutine[Any, Any, PipelineResult[Out]], Generic[Out]):
    """A run that can be awaited, scheduled as a task, or iterated over, once.

    `before` is awaited first: it sends the run a message. `check` is given the result, and may raise instead.
    """

    def __init__(
        self,
        setup: Setup,
        keeper: Keeper,
        request: Request,
        before: Callable[[], Coroutine[Any, Any, object]] | None = None,
        check: Callable[[PipelineResult[Any]], None] | None = None,
    ) -> None:
        self.run_id = request.run_id
        self._setup, self._keeper, self._request = setup, keeper, request
        self._before, self._check = before, check
        self._coroutine: Coroutine[Any, Any, PipelineResult[Out]] | None = None

    async def _open(self) -> Opened:
        if self._before is not None:
            before, self._before = self._before, None
            await before()
        opened = await Opening(self._setup, self._keeper, self._request).open()
        if opened.fence is not None:
            return Drive(self._setup, self._keeper, opened)
        restored = opened.state["history_offset"]
        return make_result(self._setup, self._keeper, opened.state, restored=restored)

    async def _goes_on(self, result: PipelineResult[Any]) -> bool:
        """Sleep until a run goes on that waits for nothing but the time, if that is soon or the caller waits for it."""
        if result.wakes_at is None:
            if self._check is not None:
                self._check(result)
            return False
        left = (result.wakes_at - self._setup.clock.now()).total_seconds()
        if left > TIMER_S and not self._request.wait:
            return False
        await self._setup.clock.sleep(left)
        # The run is anybody's meanwhile: where somebody else has gone on with it, their result is waited for.
        self._request = replace(self._request, input=MISSING, initial_context=None, attach=True)
        return True

    async def _to_the_end(self) -> PipelineResult[Out]:
        while True:
            opened = await self._open()
            result = opened if isinstance(opened, PipelineResult) else await _driven(opened)
            if not await self._goes_on(result):
                return result

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
        return _Steps(self._open, self._goes_on)


async def looked_at(setup: Setup, keeper: Keeper, run_id: str) -> PipelineResult[Any]:
    """Return how a run stands, without taking it up; raises RunNotFoundError."""
    setup.code.declare_types()
    backend = keeper.backend
    stored = await (backend.load_at(run_id) if isinstance(backend, Reading) else backend.load_state(run_id))
    if stored is None:
        raise not_found(run_id)
    state = keeper.lifted(run_id, stored)
    return make_result(setup, keeper, state, restored=state["history_offset"])


async def _driven(drive: Drive) -> PipelineResult[Any]:
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


class _Steps(AsyncIterator[Any]):
    """The iteration over one run. Dropping it, as leaving `async for` early does, gives the run back at once."""

    def __init__(
        self,
        open_run: Callable[[], Coroutine[Any, Any, Opened]],
        goes_on: Callable[[PipelineResult[Any]], Coroutine[Any, Any, bool]],
    ) -> None:
        self._open, self._goes_on = open_run, goes_on
        self._drive: Drive | None = None
        self._over = False

    async def __anext__(self) -> Any:
        while not self._over:
            if self._drive is None:
                opened = await self._open()
                if isinstance(opened, Drive):
                    self._drive = opened
                    continue
                result = opened
            else:
                record = await self._advance(self._drive)
                if record is not None:
                    return record
                result, self._drive = self._drive.result(), None
            if not await self._goes_on(result):
                self._over = True
                return result
        raise StopAsyncIteration

    async def _advance(self, drive: Drive) -> StepRecord | None:
        try:
            record = await drive.advance()
        except GeneratorExit:  # nothing may be awaited now
            self._over = True
            drive.drop()
            raise
        except BaseException as error:
            self._over = True
            await drive.close(error)
            raise
        if record is None:
            await drive.close()
        return record

    def __del__(self) -> None:
        if self._drive is not None:
            self._drive.drop()


async def _until_terminated(execution: Coroutine[Any, Any, Out]) -> Out:
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
