"""Pipelines that note what is executed, and ways to disturb a run."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from flujo.pipeline import Pipeline, Step, step
from flujo.state.backends.base import State, StateBackend
from flujo.testing.suite.values import Samples, samples

Save = Callable[[str, State], Awaitable[None]]
NAMES = ("a", "b", "c")


def adding(name: str, executed: list[str], before: Callable[[], Awaitable[None]] | None = None) -> Step[Any, Any]:
    """Return a step that appends its name to the list that it is given; `before` is awaited first."""

    @step(name=name)
    async def add(items: list[Any]) -> list[Any]:
        executed.append(name)
        await asyncio.sleep(0)
        if before is not None:
            await before()
        return [*items, name]

    return add


def abc(executed: list[str], *, at_b: Callable[[], Awaitable[None]] | None = None) -> Pipeline[Any, Any]:
    """Return the pipeline a >> b >> c; `at_b` is awaited in its second step."""
    return adding("a", executed) >> adding("b", executed, at_b) >> adding("c", executed)


def sampling(executed: list[str], received: list[Any], gate: Callable[[], None]) -> Pipeline[Any, Any]:
    """Return a pipeline whose first step makes samples of every type, and whose second notes what it receives.

    Both go through `gate`, which may raise; the context takes part too.
    """

    @step(name="make")
    async def make(given: Samples, *, context: dict[str, Any]) -> Samples:
        executed.append("make")
        received.append(given)
        gate()
        context["made"] = samples()
        return samples()

    @step(name="take")
    async def take(made: Samples, *, context: dict[str, Any]) -> Samples:
        executed.append("take")
        received.extend([made, context["made"]])
        gate()
        return made

    return make >> take


def overriding(backend: StateBackend, save_state: Callable[[Save, str, State], Awaitable[None]]) -> None:
    """Let the backend be of a subclass that overrides `save_state`; the new one is handed the old one first."""
    cls = type(backend)

    async def overridden(self: StateBackend, run_id: str, state: State) -> None:
        await save_state(lambda *args: cls.save_state(self, *args), run_id, state)

    names: dict[str, Any] = {"save_state": overridden, "__slots__": ()}
    name = f"{cls.__name__}Overridden"
    backend.__class__ = types.new_class(name, (cls,), exec_body=lambda space: space.update(names))


class CancelledAt:
    """Awaits a coroutine, and cancels the task that does so when the coroutine waits for the `number`-th time."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], number: int) -> None:
        self._coroutine, self._left = coroutine, number
        self.done = False  # it was cancelled

    def __await__(self) -> Generator[Any, Any, Any]:
        """Go on to the end."""
        inner = self._coroutine.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = inner.throw(error) if error is not None else inner.send(value)
            except StopIteration as end:
                return end.value
            self._left -= 1
            if self._left == 0:
                self.done = True
                task = asyncio.current_task()
                if task is not None:
                    task.cancel()
            error = None
            try:
                value = yield waits_for
            except BaseException as raised:
                error = raised
