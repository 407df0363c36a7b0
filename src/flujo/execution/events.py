"""What happens in a run, as frozen events, and who hears of it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flujo import _ids
from flujo.errors import ConfigurationError
from flujo.execution.failure import shown
from flujo.state.models import StepRecord

_log = logging.getLogger("flujo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in the run `run_id`."""

    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A runner took the run up; `index` is the step that it begins with (0: a new run)."""

    pipeline_name: str
    pipeline_version: str
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted(Event):
    """An attempt of a step begins."""

    path: tuple[str, ...]
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgress(Event):
    """A step said how far it is: `done` of `total`."""

    path: tuple[str, ...]
    done: float
    total: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRetrying(Event):
    """An attempt failed with `error`; the next begins in `delay_s` seconds."""

    path: tuple[str, ...]
    attempt: int
    error: BaseException
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSaved(Event):
    """A step has succeeded and its result is saved."""

    result: StepRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed(Event):
    """A step has failed for good; `error` is what it raised."""

    result: StepRecord
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """The run came to `status` ("completed", "failed", ...), and that is saved."""

    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPaused(Event):
    """Nothing of the run can go on: it waits for what `waiting` says, a line each, and that is saved."""

    waiting: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInterrupted(Event):
    """The runner was stopped (cancelled, Ctrl-C, SIGTERM, a failed save); the run can go on at any time."""

    error: BaseException


Hook = Callable[[Event], None]


def log_event(event: Event) -> None:
    """Write the event to the logger `flujo`: failures and retries as warnings, all else below INFO."""
    match event:
        case StepRetrying():
            _log.warning(
                "run %s: step %s failed (attempt %d), next attempt in %.3g s: %s",
                event.run_id, _ids.path_text(event.path), event.attempt, event.delay_s, shown(event.error),
            )  # fmt: skip
        case StepFailed():
            _log.warning(
                "run %s: step %s failed: %s", event.run_id, _ids.path_text(event.result.path), shown(event.error)
            )
        case RunInterrupted():
            _log.info("run %s: interrupted by %s", event.run_id, shown(event.error))
        case _:
            _log.debug("run %s: %s", event.run_id, event)


class Announcer:
    """Tells every hook of every event. A hook that raises is logged and does not touch the run."""

    __slots__ = ("_hooks", "busy")

    def __init__(self, hooks: Sequence[Hook]) -> None:
        given: Sequence[object] = hooks
        for hook in given:
            if not callable(hook) or inspect.iscoroutinefunction(hook):
                raise ConfigurationError(
                    f"A hook is a plain function of an event, not {hook!r}.",
                    hint="Let it hand the event on (`loop.create_task`, a queue) where more is to be done.",
                )
        self._hooks = (log_event, *hooks)
        self.busy = bool(hooks)

    def wants_all(self) -> bool:
        """Return whether anybody listens to events other than failures: if not, they need not be made."""
        return self.busy or _log.isEnabledFor(logging.DEBUG)

    def __call__(self, event: Event) -> None:
        """Tell every hook, this process's log first."""
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:
                _log.exception("A hook raised; the run %s goes on.", event.run_id)
