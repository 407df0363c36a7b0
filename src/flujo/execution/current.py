"""What a running step can know of itself."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, MutableMapping
from contextvars import ContextVar
from typing import Any, Protocol

from flujo import _ids
from flujo.errors import ConfigurationError

_log = logging.getLogger("flujo.step")


class Ending(Protocol):
    """A call elsewhere, in a thread or an executor, that nobody may be waiting for any more."""

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done when the function has come to its end."""


class CurrentStep:
    """The step that is running: `run_id`, `path`, `attempt` (from 1, counted over crashes and resumes), and more."""

    __slots__ = (
        "_cancelled", "attempt", "call", "generation", "once", "over", "path", "report", "run_id", "used",
    )  # fmt: skip

    def __init__(
        self,
        run_id: str,
        path: tuple[str, ...],
        attempt: int,
        progress: Callable[[float, float | None], None] | None,
    ) -> None:
        self.run_id = run_id
        self.path = path
        self.attempt = attempt
        self.generation = 0
        self.report = progress
        self._cancelled: threading.Event | None = None
        self.call: Ending | None = None
        # What `once` needs: how to save, the names used so far, and whether the attempt has come to its end.
        self.once: Callable[..., Coroutine[Any, Any, Any]] | None = None
        self.used: set[str] | None = None
        self.over = False

    @property
    def name(self) -> str:
        """The step's own name."""
        return _ids.own_name(self.path)

    @property
    def idempotency_key(self) -> str:
        """A UUID that is the same for every attempt of this step of this run, after every crash and failure.

        Give it to whatever has to happen once (a payment provider's `Idempotency-Key`, a unique column).
        """
        return _ids.idempotency_key(self.run_id, self.path, self.generation)

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry `run_id`, `step` and `attempt`, and begin with run and path."""
        extra = {"run_id": self.run_id, "step": _ids.path_text(self.path), "attempt": self.attempt}
        return _StepLogger(_log, extra)

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this attempt any more (time-out, cancel): a plain function should then return."""
        return self._cancelled is not None and self._cancelled.is_set()

    def progress(self, done: float, total: float | None = None) -> None:
        """Report how far the step is: `done` of `total`, in whatever it counts."""
        if self.report is not None:
            self.report(done, total)

    def __repr__(self) -> str:
        return f"<CurrentStep {_ids.path_text(self.path)} of run {self.run_id}, attempt {self.attempt}>"


class _StepLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        extra = dict(self.extra or {})
        kwargs["extra"] = {**extra, **(kwargs.get("extra") or {})}
        return f"{extra.get('run_id')} {extra.get('step')}: {msg}", kwargs


CURRENT: ContextVar[CurrentStep | None] = ContextVar("flujo_current_step", default=None)


def current_step() -> CurrentStep:
    """Return the running step's view of itself; raises ConfigurationError outside of a step."""
    current = CURRENT.get()
    if current is None:
        raise ConfigurationError(
            "current_step() was called outside of a step.", hint="Call it in a step's function while it runs."
        )
    return current
