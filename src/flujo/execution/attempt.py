"""One attempt of one step."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from flujo import _ids
from flujo.errors import StepTimeoutError
from flujo.execution.current import CurrentStep
from flujo.execution.executors import Pool, call_in
from flujo.execution.threads import Call
from flujo.pipeline import Step

GRACE_S = 5.0


async def attempt(
    step: Step[Any, Any], given: Any, context: Any, current: CurrentStep, executor: Pool | None = None
) -> Any:
    """Call the step's function once and return its output, or raise what it raises, or StepTimeoutError.

    `executor`: where it runs, if not in this process. The time in its queue counts.
    """
    if step.timeout is None:
        return await _call(step, given, context, current, executor)
    limit = asyncio.timeout(step.timeout)
    try:
        async with limit:
            return await _call(step, given, context, current, executor)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise StepTimeoutError(
            f"Step {_ids.path_text(current.path)!r} took longer than {step.timeout:g} s.",
            hint="Give it a longer `timeout`, or more `retries`.",
            run_id=current.run_id,
            step=step.name,
            timeout=step.timeout,
        ) from error


async def _call(step: Step[Any, Any], given: Any, context: Any, current: CurrentStep, executor: Pool | None) -> Any:
    if executor is not None:
        result = await call_in(executor, step, given, context, current)
        return await result if asyncio.iscoroutine(result) else result
    arguments = (given,) if step.takes_input else ()
    options = {"context": context} if step.takes_context else {}
    if step.is_async:
        return await step.fn(*arguments, **options)
    call = Call(lambda: step.fn(*arguments, **options))
    current._cancelled = threading.Event()
    current.call = call
    try:
        result = await call.start()
        return await result if asyncio.iscoroutine(result) else result  # a plain wrapper around an async function
    except asyncio.CancelledError:
        current._cancelled.set()
        raise


async def ended(previous: CurrentStep) -> bool:
    """Wait until a plain function that was abandoned has come to its end, up to 5 s; return whether it has."""
    if previous.call is None or previous.call.ended.done():
        return True
    await asyncio.wait([previous.call.ended], timeout=GRACE_S)
    return previous.call.ended.done()
