"""Steps that note their calls, and runs that are stopped inside of a composite step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from flujo import Flujo, PipelineResult, StateBackend, Step, current_step, step
from flujo._ids import path_text
from flujo.errors import SaveError
from flujo.state.models import StepRecord, record_from

PATIENCE_S = 30.0  # how long a test waits before it says that it hangs


class Notes:
    """What was called, by path, in order; and a gate at which calls wait for ever."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.cancelled: list[str] = []
        self.failing: set[str] = set()  # the paths that fail now
        self.waiting: set[str] = set()  # the paths that never come to their end now
        self._reached: asyncio.Event | None = None
        self._wanted = 0

    def step(self, name: str, does: Callable[[Any], Any] = lambda given: given, **options: Any) -> Step[Any, Any]:
        """Return an async step that notes its call, waits or fails where it is to, and returns what `does` returns."""

        @step(name=name, **options)
        async def work(given: Any) -> Any:
            await self.call()
            return does(given)

        return work

    async def call(self) -> str:
        """Note a call of the current step; wait or fail where it is to."""
        path = path_text(current_step().path)
        self.calls.append(path)
        await asyncio.sleep(0)
        if path in self.failing:
            raise ValueError(f"{path} is out of order")
        if path in self.waiting:
            await self.wait(path)
        return path

    async def wait(self, path: str) -> None:
        """Wait for ever, and note the cancellation."""
        self._wanted -= 1
        if self._reached is not None and self._wanted == 0:
            self._reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(path)
            raise

    def taken(self) -> list[str]:
        """Return the calls since this was asked last."""
        calls, self.calls = self.calls, []
        return calls

    def interrupt(self, runner: Flujo[Any, Any], *given: Any, at: set[str], run_id: str = "r") -> None:
        """Run until all the calls `at` are waiting, and cancel the task then."""

        async def main() -> None:
            self._reached, self._wanted = asyncio.Event(), len(at)
            task = asyncio.ensure_future(runner.run_async(*given, run_id=run_id))
            reached = asyncio.ensure_future(self._reached.wait())
            await asyncio.wait([task, reached], timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            assert not task.done(), task
            assert reached.done(), f"{at} were not reached, only {self.calls}"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        self.waiting = set(at)
        asyncio.run(main())
        self.waiting = set()


def stopping(backend: StateBackend, wanted: Callable[[list[StepRecord]], bool]) -> StateBackend:
    """Let the save of wanted records be the last that this backend does: it is done, and then raises SaveError.

    `wanted` is told the records that are new in a save.
    """
    save = backend.save_state
    seen = 0
    over = False

    async def save_state(run_id: str, state: dict[str, Any]) -> None:
        nonlocal seen, over
        if over:
            raise SaveError("The disk is gone.")
        records = [record_from(found) for found in state["step_history"]]
        new = records if state["history_offset"] else records[seen:]
        seen = len(records)
        await save(run_id, state)
        if wanted(new):
            over = True
            raise SaveError("The disk is gone.")

    backend.save_state = save_state  # type: ignore[method-assign]  # of this instance
    return backend


def paths(result: PipelineResult[Any], *, success: bool = True) -> list[str]:
    """Return the paths of a result's step history."""
    return [path_text(record.path) for record in result.step_history if record.success is success]
