"""Threads for plain functions: daemons, as many as run at once.

A thread cannot be stopped. Nobody waits for one at exit, and an abandoned one ends when its function does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

_IDLE_S = 10.0


class _Idle:
    """The threads that wait for work; a forked child has none."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []

    def take(self) -> _Worker | None:
        with self._lock:
            return self._workers.pop() if self._workers else None

    def put(self, worker: _Worker) -> None:
        with self._lock:
            self._workers.append(worker)

    def leave(self, worker: _Worker) -> bool:
        """Take that worker out; return False where it was given work meanwhile."""
        with self._lock:
            if worker not in self._workers:
                return False
            self._workers.remove(worker)
            return True


_idle = _Idle()
os.register_at_fork(after_in_child=_idle.forget)


class Call:
    """A function that runs in a thread. `ended` is done when the function has come to its end."""

    __slots__ = ("_context", "_fn", "_future", "_loop", "ended")

    def __init__(self, fn: Callable[[], Any]) -> None:
        self._fn = fn
        self._context = copy_context()
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Any] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def start(self) -> asyncio.Future[Any]:
        """Start it in an idle thread, or in a new one, and return what will be its result."""
        worker = _idle.take() or _Worker()
        worker.inbox.put(self)
        return self._future

    def run(self) -> None:
        """Call the function, with the caller's context variables."""
        result, error = None, None
        if not self._future.cancelled():  # else nobody waits for it any more, and it need not begin
            try:
                result = self._context.run(self._fn)
            except BaseException as raised:
                error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._deliver, result, error)

    def _deliver(self, result: Any, error: BaseException | None) -> None:
        self.ended.set_result(None)
        if self._future.done():
            return
        if error is None:
            self._future.set_result(result)
        elif isinstance(error, StopIteration):  # a future refuses it
            self._future.set_exception(RuntimeError("the step raised StopIteration"))
        else:
            self._future.set_exception(error)


class _Worker:
    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Call] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="flujo-step", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                call = self.inbox.get(timeout=_IDLE_S)
            except queue.Empty:
                if _idle.leave(self):
                    return
                continue
            call.run()
            del call
            _idle.put(self)
