"""What a run gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from flujo._clock import moment
from flujo._ids import path_text
from flujo.engine import HIDDEN, UNDO
from flujo.errors import RunFailedError
from flujo.execution.failure import shown
from flujo.state.mail import Wait, token, waits_of
from flujo.state.models import StepRecord, as_moment

Out = TypeVar("Out", covariant=True)  # noqa: PLC0105


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingFor:
    """Something that a paused run waits for.

    kind      "human" (an answer), "signal", "sleep", "retry" (another attempt), "crash" (a verdict on a step that was
              running when its process died), or "pause" (somebody has paused the run)
    step      the path of the step that waits, as it is printed; "" for a pause
    message   what the person is told, why there is to be another attempt, or why the run was paused
    schema    the JSON schema of the answer or the signal's payload
    signal    the signal's name
    since, until  when it began, and when it is over at the latest
    quorum, voters  how many answers it takes, and who may give one
    by        who has paused the run
    token     which question it is
    """

    kind: str
    step: str = ""
    message: str | None = None
    schema: Any = None
    signal: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    quorum: int = 1
    voters: list[str] | None = None
    by: str | None = None
    token: str = ""

    def __str__(self) -> str:
        what = {
            "human": f"waits at {self.step!r} for an answer: {self.message}",
            "crash": f"waits at {self.step!r} for a verdict: {self.message}",
            "signal": f"waits at {self.step!r} for signal {self.signal!r}",
            "pause": "was paused"
            + (f" by {self.by}" if self.by else "")
            + (f": {self.message}" if self.message else ""),
        }.get(self.kind, f"waits at {self.step!r} until {self.until:%Y-%m-%d %H:%M:%S} UTC" if self.until else "waits")
        return what


def waiting_of(waiting: Mapping[str, Any] | None) -> list[WaitingFor]:
    """Return what a saved state waits for."""
    held = (waiting or {}).get("held")
    found = []
    if held:
        found.append(WaitingFor(kind="pause", message=held["reason"], by=held["by"], since=as_moment(held["at"])))
    return found + [_waiting_for(wait) for wait in waits_of(waiting)]


def _waiting_for(wait: Wait) -> WaitingFor:
    until = wait.get("until")
    return WaitingFor(
        kind=wait["kind"], step=path_text(tuple(wait["path"])), message=wait.get("message"),
        schema=wait.get("schema"), signal=wait.get("signal"), since=moment(wait["since"]),
        until=None if until is None else moment(until), quorum=wait.get("quorum", 1), voters=wait.get("voters"),
        token=token(wait),
    )  # fmt: skip


class PipelineResult(Generic[Out]):
    """How a run stands: finished, failed or waiting.

    `run_id`, `status` ("completed", "failed", "paused", "cancelled"), `error` (the exception as it was raised; of an
    earlier process a RecordedError; None where nothing failed), `final_pipeline_context` (the context model, or a
    dict), `pipeline_name`, `pipeline_version`, `phase` ("undoing" or "undone" where the run is being taken back, or
    was), `waiting` (what a paused run waits for, a list), `wakes_at` (when it goes on, where that is nothing but the
    time), `cancelled` (by whom, why and when: a dict), and `output`, `step_history`, `waiting_for` and `undone`.
    """

    def __init__(
        self,
        *,
        run_id: str,
        status: str,
        output: Any,
        error: BaseException | None,
        final_pipeline_context: Any,
        pipeline_name: str,
        pipeline_version: str,
        phase: str | None,
        waiting: Sequence[WaitingFor] = (),
        wakes_at: datetime | None = None,
        cancelled: Mapping[str, Any] | None = None,
        earlier: Callable[[], list[StepRecord]],
        now: list[StepRecord],
    ) -> None:
        self.run_id = run_id
        self.status = status
        self.error = error
        self.final_pipeline_context = final_pipeline_context
        self.pipeline_name = pipeline_name
        self.pipeline_version = pipeline_version
        self.phase = phase
        self.waiting = list(waiting)
        self.wakes_at = wakes_at
        self.cancelled = dict(cancelled) if cancelled else None
        self._output = output
        self._earlier: Callable[[], list[StepRecord]] | None = earlier
        self._history = now

    @property
    def output(self) -> Out:
        """The last step's output; raises RunFailedError, from the failure itself, where the run did not complete."""
        if self.status == "completed":
            output: Out = self._output
            return output
        what, hint = {
            "failed": ("failed", "Run it again with the same run_id to try the failed step again."),
            "paused": ("is waiting", "Its output is there when it has completed."),
            "cancelled": ("was cancelled", "A cancelled run has no output; start a new one."),
        }.get(self.status, (f"is {self.status}", ""))
        if self.phase == "undone":
            hint = "What it had done was undone, and it is final; start a new run."
        elif self.phase == "undoing":
            hint = "Run it again with the same run_id to go on undoing what it had done."
        reason = f": {shown(self.error)}" if self.error is not None else ""
        raise RunFailedError(
            f"Run {self.run_id!r} {what}, so it has no output{reason}.",
            hint=hint,
            run_id=self.run_id,
            status=self.status,
        ) from self.error

    @property
    def step_history(self) -> list[StepRecord]:
        """One `StepResult` a step, in order. What earlier processes did is read from the store at the first look."""
        if self._earlier is not None:
            self._history = _without_mended(self._earlier() + self._history)
            self._earlier = None
        return self._history

    @property
    def waiting_for(self) -> WaitingFor | None:
        """What the run waits for: who has paused it, else a person or a signal, else the time; None if for nothing."""
        first = {"pause": 0, "human": 1, "crash": 1, "signal": 2}
        return min(self.waiting, key=lambda found: first.get(found.kind, 3), default=None)

    @property
    def undone(self) -> list[str]:
        """The paths of the steps that were undone, in the order of the undos."""
        return [path_text(r.path[:-1]) for r in self.step_history if r.path[-1] == UNDO and r.success]

    def __repr__(self) -> str:
        tail = ""
        if self.status == "completed":
            tail = f" output={self._output!r}"
        elif self.waiting_for is not None:
            tail = f" {self.waiting_for}"
        elif self.error is not None:
            tail = f" error={shown(self.error)}"
        return f"<PipelineResult {self.run_id} {self.status}{tail if len(tail) < 200 else tail[:200] + '...'}>"


def _without_mended(records: list[StepRecord]) -> list[StepRecord]:
    """Drop failures of steps that were tried again later, and what only says which way the run went."""
    last = {record.path: place for place, record in enumerate(records)}
    return [
        record
        for place, record in enumerate(records)
        if (record.path[-1] not in HIDDEN if record.success else last[record.path] == place)
    ]
