"""What another process does with the store: a function each, called with its own backend."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Awaitable, Callable
from typing import Any

from flujo.state.backends.base import StateBackend
from flujo.testing.suite import values
from flujo.testing.suite.base import load, owned, records_of, runner, save_as_owner, state_of, sub_step_state, ten
from flujo.testing.suite.expect import difference
from flujo.testing.suite.steps import sampling

Answer = Callable[[Any], None]
Hear = Callable[[], Any]
_ROOM = 1024  # bytes that a file may have while the disk is full


async def look(backend: StateBackend, answer: Answer, hear: Hear, run_ids: list[str]) -> None:
    """Answer with the ten fields of each run, as JSON, and how many step records it has; or with None."""
    for run_id in run_ids:
        if await backend.load_state(run_id) is None:
            answer(None)
            continue
        state = await load(backend, run_id)
        fields = ten(state)
        fields |= {name: fields[name].isoformat() for name in ("created_at", "updated_at")}
        answer([fields, len(records_of(state))])


async def finish_samples(backend: StateBackend, answer: Answer, hear: Hear, run_id: str) -> None:
    """Go on with a run of the sampling pipeline; answer with its status, what was executed, and what was wrong."""
    values.register()
    executed: list[str] = []
    received: list[Any] = []
    result = await runner(sampling(executed, received, lambda: None), backend).run_async(run_id=run_id)
    problems = [difference(values.samples(), value) for value in received]
    answer([result.status, executed, [problem for problem in problems if problem is not None], str(result.error)])


async def save_on(backend: StateBackend, answer: Answer, hear: Hear, run_id: str, upto: int) -> None:
    """Save state after state, answer with the index of each that is acknowledged, and then wait."""
    for index in range(1, upto + 1):
        await backend.save_state(run_id, state_of(run_id, index, pipeline_context={"count": index, "more": "x" * 2000}))
        answer(index)
    hear()


async def save_sub_steps(backend: StateBackend, answer: Answer, hear: Hear, run_id: str, upto: int) -> None:
    """Claim the run and save sub-steps of its first step, answer with each save that is acknowledged, and then wait."""
    fence = await owned(backend, run_id)
    for rev in range(1, upto + 1):
        await backend.save_state(run_id, sub_step_state(backend, run_id, fence, rev))
        answer(rev)
    hear()


async def own(backend: StateBackend, answer: Answer, hear: Hear, run_id: str, upto: int) -> None:
    """Claim the run and save it up to `upto`; then save on at every word, and answer with how that went."""
    fence = await owned(backend, run_id)
    await save_as_owner(backend, run_id, fence, *range(1, upto + 1))
    answer("owned")
    while hear() is not None:
        upto += 1
        try:
            await save_as_owner(backend, run_id, fence, upto, last_step_output="stale")
            answer("saved")
        except Exception as error:
            answer(type(error).__name__)


async def fill(backend: StateBackend, answer: Answer, hear: Hear, run_id: str) -> None:
    """Save the run twice, the second time with a full disk; answer with "saved", or the error's name."""
    await backend.save_state(run_id, state_of(run_id, 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_ROOM, resource.RLIM_INFINITY))
    try:
        await backend.save_state(run_id, state_of(run_id, 2, last_step_output="x" * 300_000))
        answer(["saved", ""])
    except Exception as error:
        answer([type(error).__name__, str(error)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def closing(backend: StateBackend, work: Awaitable[None]) -> None:
    """Await the work, then close the backend."""
    try:
        await work
    finally:
        with contextlib.suppress(Exception):
            await backend.close()
