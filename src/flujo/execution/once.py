"""`once`: a durable call within a step."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, ParamSpec, TypeVar, overload

from flujo._clock import Clock
from flujo.engine.frames import HIDDEN, UNDO
from flujo.errors import ConfigurationError
from flujo.execution.current import CURRENT, CurrentStep, Ending
from flujo.execution.threads import Call
from flujo.pipeline.names import check_key
from flujo.state.codec import Codec
from flujo.state.models import StepRecord

P = ParamSpec("P")
T = TypeVar("T")
_OURS = HIDDEN | {UNDO}


@overload
async def once(name: str, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
@overload
async def once(name: str, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
async def once(name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call `fn(*args, **kwargs)` within the step that is running, and save what it returns before going on.

    After a crash or a failed attempt the step begins anew, and a call whose result is saved gives that result back
    without being made again. `fn` is async, or plain and then called in a thread. Each call of a step has a name of its
    own, under which it is found again (`page-3`): its path is the step's and the name. In `fn`, `current_step()` has
    that path, and so an `idempotency_key` of its own.

    ```python
    from flujo import Flujo, once, step

    async def fetch(page: int) -> list[str]:
        return [f"row {page}.{n}" for n in range(2)]

    @step
    async def crawl(pages: int) -> int:
        rows = 0
        for page in range(pages):
            rows += len(await once(f"page-{page}", fetch, page))
        return rows

    assert Flujo(crawl).run(3).output == 6
    ```

    Raises ConfigurationError: outside of a step, for a name that is none or that this attempt has used already;
    NotSerializableError for a result that cannot be saved; what `fn` raises, and then nothing is saved.
    """
    current = CURRENT.get()
    if current is None:
        raise ConfigurationError(
            f"once({name!r}) was called outside of a step.", hint="Await it in a step's function while it runs."
        )
    if current.once is None:
        raise ConfigurationError(
            f"once({name!r}) was called in step {current.name!r}, where nothing can be saved.",
            hint="It works in a step that runs in the runner's own process.",
            step=current.name,
        )
    check_key("call of `once`", name, current.name)
    if f">{name}" in _OURS:
        raise ConfigurationError(
            f"once({name!r}) in step {current.name!r} has a name that flujo keeps records of its own under.",
            hint="Give the call another name.",
            step=current.name,
        )
    if current.over:
        raise ConfigurationError(
            f"once({name!r}) was called for step {current.name!r} after it had come to its end.",
            hint="Await everything that a step begins before it returns.",
            step=current.name,
        )
    used = current.used = current.used or set()
    if name in used:
        raise ConfigurationError(
            f"once({name!r}) was called twice in step {current.name!r}.",
            hint="Give each call a name of its own, such as f'page-{number}'.",
            step=current.name,
        )
    used.add(name)
    return await current.once(current, name, fn, args, kwargs)


class Once:
    """How the calls of a step are made: those that are `done`, by path, are not made again; the others are saved.

    With a `codec` the step may be attempted again: its calls are then remembered as they were saved, whatever an
    attempt does to what it was given.
    """

    __slots__ = ("_clock", "_codec", "_done", "_loop", "_memo", "_save")

    def __init__(
        self,
        done: Mapping[tuple[str, ...], StepRecord],
        save: Callable[[StepRecord], Awaitable[Any]],
        clock: Clock,
        codec: Codec | None,
    ) -> None:
        self._done, self._save, self._clock, self._codec = done, save, clock, codec
        self._memo: dict[tuple[str, ...], bytes] = {}
        self._loop = asyncio.get_running_loop()  # the run's own: saves are made there, and nowhere else

    async def __call__(
        self, current: CurrentStep, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Make the call, have its record saved, and return what it gave."""
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(
                f"once({name!r}) was awaited in step {current.name!r} in another event loop than the run's.",
                hint="Make the step `async def`, and await it there.",
                step=current.name,
            )
        path = (*current.path, f">{name}")
        if path in self._memo and self._codec is not None:
            return self._codec.decode(self._memo[path])
        known = self._done.get(path)
        if known is not None:
            self._remember(path, known.output)
            return known.output
        inner = CurrentStep(current.run_id, path, current.attempt, None)
        inner.generation = current.generation
        token = CURRENT.set(inner)
        start = self._clock.perf()
        try:
            output = await _called(inner, fn, args, kwargs)
        finally:
            CURRENT.reset(token)
            if inner.call is not None and not inner.call.ended.done():
                current.call = _Several(inner.call, current.call)
        try:
            await _kept(self._save(StepRecord(path=path, output=output, latency_s=self._clock.perf() - start)))
        except asyncio.CancelledError:  # it is saved all the same
            self._remember(path, output)
            raise
        self._remember(path, output)
        return output

    def _remember(self, path: tuple[str, ...], output: Any) -> None:
        if self._codec is not None:
            self._memo[path] = self._codec.encode(output, "output")

    def records(self) -> dict[tuple[str, ...], StepRecord]:
        """Return the records of the calls that the step has made so far."""
        assert self._codec is not None
        return {path: StepRecord(path=path, output=self._codec.decode(text)) for path, text in self._memo.items()}


class _Several:
    """Calls in threads that nobody waits for any more: the step's next attempt lets them come to their end."""

    def __init__(self, *calls: Ending | None) -> None:
        self.ended: asyncio.Future[Any] = asyncio.gather(*(call.ended for call in calls if call is not None))


async def _called(inner: CurrentStep, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(fn):
        return await fn(*args, **kwargs)
    inner.call = call = Call(lambda: fn(*args, **kwargs))
    inner._cancelled = threading.Event()
    try:
        result = await call.start()
        return await result if asyncio.iscoroutine(result) else result  # a plain wrapper around an async function
    except asyncio.CancelledError:
        inner._cancelled.set()
        raise


async def _kept(save: Awaitable[Any]) -> None:
    """Have it saved, and raise a cancellation when it is: what is done already is not to be done again."""
    task = asyncio.ensure_future(save)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
        except GeneratorExit:  # nobody will wait for it any more
            task.cancel()
            raise
    if cancelled is not None and (task.cancelled() or task.exception() is None):
        raise cancelled
    task.result()
