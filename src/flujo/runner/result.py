"""What a run gives back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from flujo._ids import path_text
from flujo.engine import HIDDEN, UNDO
from flujo.errors import RunFailedError
from flujo.execution.failure import shown
from flujo.state.models import StepRecord

Out = TypeVar("Out", covariant=True)  # noqa: PLC0105


class PipelineResult(Generic[Out]):
    """How a run stands: finished, failed or waiting.

    `run_id`, `status` ("completed", "failed", "paused", "cancelled"), `error` (the exception as it was raised; of an
    earlier process a RecordedError; None where nothing failed), `final_pipeline_context` (the context model, or a
    dict), `pipeline_name`, `pipeline_version`, `phase` ("undoing" or "undone" where the run is being taken back, or
    was), and `output`, `step_history` and `undone`.
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
    def undone(self) -> list[str]:
        """The paths of the steps that were undone, in the order of the undos."""
        return [path_text(r.path[:-1]) for r in self.step_history if r.path[-1] == UNDO and r.success]

    def __repr__(self) -> str:
        tail = ""
        if self.status == "completed":
            tail = f" output={self._output!r}"
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
