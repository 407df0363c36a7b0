"""The child that runs an order which cannot be fulfilled: it writes down what it does, and dies where it is told to."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from pydantic import BaseModel

from flujo import Flujo, Pipeline, Step, current_step, once, step
from tests.support.crash_forks import Journal
from tests.support.nested_child import BACKENDS, Death, Telling, Trace

RUN = "run"
MAX_CRASHES = 3


class Shop(BaseModel):
    """The context."""

    log: list[str] = []


class Plan:
    """The steps of an order. `deadly` names what kills its process whenever it begins."""

    def __init__(self, trace: Trace, deadly: str | None) -> None:
        self._trace, self._deadly = trace, deadly

    def does(self, name: str, **options: Any) -> Step[Any, Any]:
        """Return a step with the context."""

        @step(name=name, **options)
        async def work(given: Any, *, context: Shop) -> Any:
            self._begin(given, list(context.log))
            context.log.append(name)
            if name == "bad":
                raise ValueError("no")
            self._end()
            return [name, given]

        return work

    def fetch(self) -> Step[Any, Any]:
        """Return a step of a map's item, without the context, and with an undo that is a plain function."""

        def forget(output: Any) -> None:
            self._begin(output, None)
            self._end()

        @step(undo=forget)
        async def fetch(item: int) -> int:
            self._begin(item, None)
            self._end()
            return item * 10

        return fetch

    def crawl(self) -> Step[Any, Any]:
        """Return an undo that does two things `once`."""

        @step(name="crawl")
        async def crawl(output: Any, *, context: Shop) -> None:
            self._begin(output, list(context.log))
            context.log.append("crawl")
            for part in ("one", "two"):
                await once(part, self._part)
            self._end()

        return crawl

    def _part(self) -> None:
        self._begin(None, None)
        self._end()

    def _begin(self, given: Any, seen: Any) -> None:
        current = current_step()
        self._trace.begin(current.path, given, seen)
        if current.name == self._deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    def _end(self) -> None:
        self._trace.end(current_step().path)

    def pipeline(self) -> Pipeline[Any, Any]:
        """Return the pipeline: two steps with undos, a map between them, one without, and one that fails."""
        items: Step[Any, Any] = step(name="items")(lambda _: [1, 2])
        return (
            self.does("pay", undo=self.crawl())
            >> items
            >> Step.map_over("many", self.fetch(), max_concurrency=1)
            >> self.does("ship", undo=self.does("return"))
            >> self.does("bad")
        )


def attempt(
    store: str,
    journal: str,
    kind: str = "sqlite",
    death: Death | None = None,
    deadly: str | None = None,
    cancel: bool = False,
    inline: bool = False,
) -> int:
    """Run, resume or cancel the order; the child's whole life."""
    trace = Trace(Journal(journal), tuple(death) if death else None)  # type: ignore[arg-type]
    backend = BACKENDS[kind](store)
    assert isinstance(backend, Telling)
    backend.trace = trace
    pipeline = Plan(trace, deadly).pipeline()
    runner: Flujo[Any, Any] = Flujo(pipeline, context_model=Shop, state_backend=backend, max_crashes=MAX_CRASHES)
    trace.write("process")
    if inline:
        result = runner.cancel(RUN) if cancel else runner.run(0, run_id=RUN)
    else:
        result = asyncio.run(_execution(runner, cancel))
    state = asyncio.run(backend.load_state(RUN))
    assert state is not None
    error = result.error
    trace.journal.write(
        "result",
        status=result.status,
        error=[type(error).__name__, str(error), type(error.__cause__).__name__] if error else None,
        context=result.final_pipeline_context.log,
        history=[[str(record).split()[0], record.success, record.attempts] for record in result.step_history],
        state={
            name: state[name]
            for name in ("status", "phase", "current_step_index", "last_step_output", "pipeline_context", "position")
        },
        stored_error=state["error"] and [state["error"]["type"], state["error"]["text"]],
    )
    return 0


async def _execution(runner: Flujo[Any, Any], cancel: bool) -> Any:
    return await (runner.cancel_async(RUN) if cancel else runner.run_async(0, run_id=RUN))
