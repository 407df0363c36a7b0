"""What a run gives back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from flujo.errors import RunFailedError
from flujo.execution.failure import shown
from flujo.state.models import StepRecord

Out = TypeVar("Out", covariant=True)  # noqa: PLC0105


class PipelineResult(Generic[Out]):
    """How a run stands: finished, failed or waiting.

    `run_id`, `status` ("completed", "failed", "paused", "cancelled"), `error` (the exception as it was raised; of an
    earlier process a RecordedError; None where nothing failed), `final_pipeline_context` (the context model, or a
    dict), `pipeline_name`, `pipeline_version`, and `output` and `step_history`.
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
        earlier: Callable[[], list[StepRecord]],
        now: list[StepRecord],
    ) -> None:
        self.run_id = run_id
        self.status = status
        self.error = error
        self.final_pipeline_context = final_pipeline_context
        self.pipeline_name = pipeline_name
        self.pipeline_version = pipeline_version
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

    def __repr__(self) -> str:
        tail = ""
        if self.status == "completed":
            tail = f" output={self._output!r}"
        elif self.error is not None:
            tail = f" error={shown(self.error)}"
        return f"<PipelineResult {self.run_id} {self.status}{tail if len(tail) < 200 else tail[:200] + '...'}>"


def _without_mended(records: list[StepRecord]) -> list[StepRecord]:
    """Drop failures of steps that were tried again later."""
    last = {record.path: place for place, record in enumerate(records)}
    return [r for place, r in enumerate(records) if r.success or last[r.path] == place]
