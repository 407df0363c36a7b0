"""Where a step runs that names an executor: any `concurrent.futures.Executor` that the runner was given."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import inspect
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextvars import copy_context
from functools import partial
from typing import Any, TypeAlias

from flujo import _ids
from flujo.errors import ConfigurationError, NotPicklableError, WorkerDiedError
from flujo.execution import shipping
from flujo.execution.current import CurrentStep
from flujo.execution.shipping import Outcome, Unsendable
from flujo.execution.threads import Call
from flujo.pipeline import Pipeline, Step

_log = logging.getLogger("flujo")

# Dask's own word for a worker that died; its classes are not imported for it.
_DEATHS = frozenset({"KilledWorker"})
# Which of the standard library's an executor is, is read from where its class stands: importing them costs too much.
_THREADS, _PROCESSES, _INTERPRETERS = (f"concurrent.futures.{kind}" for kind in ("thread", "process", "interpreter"))
_VALUE, _ERROR = "value", "error"  # outcomes of a call in this process
_ADVICE = {
    shipping.FUNCTION: "Define it with `def` at the top level of a module that the worker can import.",
    shipping.INPUT: "Let the step before return plain data, and open files, locks and connections in the step itself.",
    shipping.CONTEXT: "Keep what cannot be pickled (files, locks, connections) out of the context.",
    shipping.OUTPUT: "Return plain data; what the worker has opened cannot leave it.",
}

Given: TypeAlias = Executor | Callable[[], Executor]


class Executors:
    """The executors of one runner, by name. Each is an Executor, or a function without arguments that makes one.

    An Executor is its owner's to shut down. What a function has made is made anew after it broke, and is shut down,
    without waiting, when the runner is no longer there.

    Raises ConfigurationError.
    """

    def __init__(self, given: Mapping[str, Given] | None = None) -> None:
        if given is not None and not isinstance(given, Mapping):
            raise ConfigurationError(
                f"executors is a dict of executors by name, not {type(given).__name__}.",
                hint="Write executors={'cpu': ProcessPoolExecutor}.",
            )
        self._pools = {_checked_name(name): Pool(name, found) for name, found in (given or {}).items()}
        self._checked: set[Pipeline[Any, Any]] = set()

    def get(self, name: str | None) -> Pool | None:
        """Return the executor of that name; None for a step that names none. Raises ConfigurationError."""
        if name is None:
            return None
        found = self._pools.get(name)
        if found is None:
            raise self._missing(name, "A step")
        return found

    def check(self, pipeline: Pipeline[Any, Any]) -> None:
        """Raise ConfigurationError where a step, however deep inside, names an executor that is not there."""
        if pipeline in self._checked:
            return
        for found in _all_steps(pipeline):
            if found.executor is not None and found.executor not in self._pools:
                raise self._missing(found.executor, f"Step {found.name!r}")
        self._checked.add(pipeline)

    def _missing(self, name: str, who: str) -> ConfigurationError:
        there = sorted(self._pools)
        close = difflib.get_close_matches(name, there, n=1)
        return ConfigurationError(
            f"{who} runs in executor {name!r}, but this runner has "
            + (f"only {', '.join(map(repr, there))}." if there else "no executors.")
            + (f" Did you mean {close[0]!r}?" if close else ""),
            hint=f"Create the runner with executors={{{name!r}: ...}}.",
            executor=name,
            executors=there,
        )


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{name!r} cannot name an executor.", hint="Name it with a text: {'cpu': ...}.")
    return name


def _all_steps(pipeline: Pipeline[Any, Any]) -> Iterator[Step[Any, Any]]:
    for found in pipeline.steps:
        yield found
        for other in (found.undo, found.decision):
            if other is not None:
                yield other
        for _, body in found.bodies:
            yield from _all_steps(body)


class Pool:
    """One of a runner's executors: as it was given, or as a function makes it, and makes it anew after it broke."""

    def __init__(self, name: str, given: Given) -> None:
        found: object = given
        if not isinstance(found, Executor) and (not callable(found) or inspect.iscoroutinefunction(found)):
            raise ConfigurationError(
                f"Executor {name!r} is {found!r}, which is neither a concurrent.futures.Executor nor makes one.",
                hint="Give a ProcessPoolExecutor, a plain function that makes one, or Dask's `client.get_executor()`.",
                executor=name,
            )
        self.name = name
        self._given = given if isinstance(given, Executor) else None
        self._factory = None if isinstance(given, Executor) else given
        # Those that were made, each with the process that it belongs to: a forked child needs its own, and must not
        # touch its parent's.
        self._made: list[tuple[int, Executor]] = []
        self._lock = threading.Lock()  # over `_made`; never held for long
        self._making = threading.Lock()  # held while the factory runs, which may take its time
        weakref.finalize(self, _let_go, self._made)

    @property
    def renews(self) -> bool:
        """Whether a broken executor is followed by a new one."""
        return self._factory is not None

    async def ready(self) -> Executor:
        """Return the executor; it is made where there is none, once for all who ask, and off the event loop."""
        return self._at_hand() or await Call(self._make).start()

    def replace(self, broken: Executor) -> None:
        """Let the next attempt have a new one instead of `broken`; who comes second with that one changes nothing."""
        with self._lock:
            ours = [entry for entry in self._made if entry[1] is broken]
            for entry in ours:
                self._made.remove(entry)
        if ours:
            _shut_down(broken)

    def _at_hand(self) -> Executor | None:
        if self._given is not None:
            return self._given
        with self._lock:
            return next((executor for pid, executor in self._made if pid == os.getpid()), None)

    def _make(self) -> Executor:
        with self._making:
            there = self._at_hand()
            if there is not None:
                return there
            assert self._factory is not None
            try:
                made: object = self._factory()
            except Exception as error:
                error.add_note(f"Raised by what makes executor {self.name!r}.")
                raise
            if not isinstance(made, Executor):
                raise ConfigurationError(
                    f"What makes executor {self.name!r} returned {made!r}.",
                    hint="It has to return a concurrent.futures.Executor.",
                    executor=self.name,
                )
            with self._lock:
                self._made.append((os.getpid(), made))
            return made


def _let_go(made: list[tuple[int, Executor]]) -> None:
    for pid, executor in made:
        if pid == os.getpid():
            _shut_down(executor)


def _shut_down(executor: Executor) -> None:
    _without_waiting(executor, partial(executor.shutdown, wait=False))


def _without_waiting(executor: Executor, fn: Callable[[], object]) -> None:
    """Call what the standard library's executors do at once, and Dask's asks its cluster for."""

    def quietly() -> None:
        try:
            fn()
        except Exception:
            _log.debug("An executor raised while it was being left.", exc_info=True)

    if _modules(executor) & {_THREADS, _PROCESSES, _INTERPRETERS}:
        # Not in a thread: the program's end could stop that in the middle of taking a pool apart.
        quietly()
        return
    with contextlib.suppress(RuntimeError):  # the interpreter is at its end and starts no thread
        threading.Thread(target=quietly, name="flujo-executor", daemon=True).start()


def _modules(executor: Executor) -> set[str]:
    return {cls.__module__ for cls in type(executor).__mro__}


# --- one attempt ---


async def call_in(pool: Pool, step: Step[Any, Any], given: Any, context: Any, current: CurrentStep) -> Any:
    """Call the step's function in an executor, once, and return its output, or raise what it raises.

    Raises NotPicklableError, WorkerDiedError. Whoever stops waiting abandons the call: it is taken back where it has
    not begun; a process that is at it goes on, and nobody hears of its result.
    """
    visit = _Visit(pool, step, current)
    current._cancelled = threading.Event()
    executor, future = await visit.submit(given, context, current)
    current.call = visit
    future.add_done_callback(visit.tell)
    try:
        await asyncio.wait([visit.ended])
    except BaseException:
        current._cancelled.set()
        _without_waiting(executor, future.cancel)
        raise
    came = [visit.outcome(future)]
    # An error's traceback would keep it, and what Dask keeps it computes again when a worker dies.
    del future
    return visit.result(came, context)


class _Visit:
    """One attempt of a step in an executor: how it is handed over, what comes of it, and what the errors say."""

    def __init__(self, pool: Pool, step: Step[Any, Any], current: CurrentStep) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._pool, self._step = pool, step
        self._told = {"run_id": current.run_id, "step": step.name, "executor": pool.name}
        self._who = f"step {_ids.path_text(current.path)!r}"

    def tell(self, _: Future[Outcome]) -> None:
        """Say that the call has come to its end; called in a thread of the executor's."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.ended.set_result, None)

    async def submit(self, given: Any, context: Any, current: CurrentStep) -> tuple[Executor, Future[Outcome]]:
        """Hand the call over, and return to whom, and what will come of it."""
        again = self._pool.renews  # the one at hand may have broken while nobody used it
        while True:
            executor = await self._pool.ready()
            call = self._packed(executor, given, context, current)
            try:
                return executor, executor.submit(*call)
            except Exception as error:
                self._pool.replace(executor)
                if not again:
                    raise self._died(f"did not take {self._who}", error) from error
            again = False

    def _packed(self, executor: Executor, given: Any, context: Any, current: CurrentStep) -> tuple[Any, ...]:
        modules = _modules(executor)
        if _THREADS in modules and _INTERPRETERS not in modules:
            return copy_context().run, _call, self._step, given, context
        # Those of the standard library go by the standard library's pickle, whatever else is loaded.
        by_value = modules.isdisjoint((_PROCESSES, _INTERPRETERS)) and "cloudpickle" in sys.modules
        try:
            return shipping.perform, *shipping.pack(self._step, given, context, current, by_value=by_value)
        except Unsendable as error:
            raise self._not_picklable(error) from error.__cause__

    def outcome(self, future: Future[Outcome]) -> Outcome:
        """Return what came of it. What the step itself raised is in the outcome: any other error is the executor's."""
        try:
            return future.result(timeout=0)
        except CancelledError as error:
            raise self._died(f"gave {self._who} back; it was shut down, or its workers are gone", error) from error
        except Exception as error:
            if not isinstance(error, BrokenExecutor) and type(error).__name__ not in _DEATHS:
                error.add_note(f"Raised by executor {self._pool.name!r}, not by {self._who}.")
                raise
            raise self._died(f"lost {self._who}, whose worker died", error) from error

    def result(self, came: list[Outcome], context: Any) -> Any:
        """Return the step's output, or raise what it raised; `came` holds the outcome, and is emptied.

        An error must not be held by the frames that its traceback holds: these in turn hold the run.
        """
        kind = came[0][0]
        if kind == _VALUE:
            return came.pop()[1]
        if kind == _ERROR:
            raise came.pop()[1]
        if kind == shipping.ENDED:
            raise self._died(f"lost {self._who}, which ended its worker", came.pop()[1])
        try:
            return shipping.unpack(came.pop(), context)
        except Unsendable as error:
            raise self._not_picklable(error) from error.__cause__

    def _died(self, what: str, why: Exception | str) -> WorkerDiedError:
        hint = "It is tried again where it has `retries`; the system's log may say what killed the worker (memory?)."
        if not self._pool.renews and isinstance(why, RuntimeError):  # broken, or shut down
            hint = (
                "A broken executor stays broken. Give what makes it, and a new one takes its place: "
                f"executors={{{self._pool.name!r}: lambda: ProcessPoolExecutor(...)}}."
            )
        text = why if isinstance(why, str) else shipping.reason(why)
        return WorkerDiedError(f"Executor {self._pool.name!r} {what} ({text.rstrip('.')}).", hint=hint, **self._told)

    def _not_picklable(self, error: Unsendable) -> NotPicklableError:
        part, why = error.args
        way = "back from" if part == shipping.OUTPUT else "to"
        return NotPicklableError(
            f"The {part} of {self._who} cannot be sent {way} executor {self._pool.name!r} ({why}).",
            hint=_ADVICE[part],
            part=part,
            **self._told,
        )


def _call(step: Step[Any, Any], given: Any, context: Any) -> Outcome:
    """Call the step's function in a thread, with the objects themselves."""
    arguments = (given,) if step.takes_input else ()
    options = {"context": context} if step.takes_context else {}
    try:
        return _VALUE, step.fn(*arguments, **options)
    except BaseException as error:
        return _ERROR, error
