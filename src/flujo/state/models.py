"""What is saved of a run: `WorkflowState`, and one `StepRecord` a finished step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from flujo._ids import own_name, path_text
from flujo.errors import InvalidStateError

Status = Literal["running", "paused", "completed", "failed", "cancelled"]
STATUSES: tuple[str, ...] = get_args(Status)


def as_utc(moment: datetime) -> datetime:
    """Return `moment` as an aware UTC datetime; a naive one is read as UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def as_moment(value: object) -> datetime | None:
    """Return the time that a store kept as a datetime or as its text, or None; raises InvalidStateError."""
    try:
        if value is None or isinstance(value, datetime):
            return value
        return as_utc(datetime.fromisoformat(str(value)))
    except ValueError:
        raise InvalidStateError(f"{value!r} is no time.", hint="Write it as ISO 8601 says.") from None


Moment = Annotated[datetime, AfterValidator(as_utc)]


class WorkflowState(BaseModel):
    """The state of a run after its last saved step: the ten fields that every backend keeps.

    `current_step_index` is the number of top-level steps that are saved, that is, the index of the next one.
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)

    run_id: str
    pipeline_id: str
    pipeline_name: str
    pipeline_version: str
    current_step_index: int = Field(ge=0)
    pipeline_context: dict[str, Any]
    last_step_output: Any | None = None
    status: Status
    created_at: Moment
    updated_at: Moment


FIELDS: tuple[str, ...] = tuple(WorkflowState.model_fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step that came to an end.

    Fields: `path` from the top level down, `output` (None if it failed), `success`, `attempts` made,
    `latency_s` of the last attempt in seconds, `feedback`, the text of the failure, or None; `context_changes`, what
    a step within a parallel branch or a map's item changed in the context of its own: a field's new value in a list
    of one, or an empty list for a field that is gone; None where it changed nothing; `by`, who gave the answer that is
    the output, or None.
    """

    path: tuple[str, ...]
    output: Any = None
    success: bool = True
    attempts: int = 1
    latency_s: float = 0.0
    feedback: str | None = None
    context_changes: dict[str, list[Any]] | None = None
    by: str | None = None

    @property
    def name(self) -> str:
        """The step's own name, the last part of its path; an undo of step `pay` is called `pay>undo`."""
        return own_name(self.path)

    @property
    def where(self) -> str:
        """The path as it is printed: `enrich[17].fetch`."""
        return path_text(self.path)

    def __str__(self) -> str:
        return f"{self.where} {'ok' if self.success else 'failed'} in {self.latency_s:.3f} s"


StepResult = StepRecord
_RECORD_FIELDS = {f.name for f in fields(StepRecord)}


def record_from(data: object) -> StepRecord:
    """Return the record in `data`, a StepRecord or a mapping of its fields; raises InvalidStateError."""
    if isinstance(data, StepRecord):
        return data
    if not isinstance(data, Mapping) or not _is_path(data.get("path")) or not _are_changes(data.get("context_changes")):
        raise InvalidStateError("An entry of step_history is no step record.", hint="See StepRecord for its fields.")
    known = {k: v for k, v in data.items() if k in _RECORD_FIELDS}
    return StepRecord(**{**known, "path": tuple(known["path"])})


def _is_path(path: object) -> bool:
    return isinstance(path, list | tuple) and bool(path) and all(isinstance(part, str) and part for part in path)


def _are_changes(changes: object) -> bool:
    return changes is None or (isinstance(changes, dict) and all(isinstance(new, list) for new in changes.values()))


def checked_state(run_id: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `state` with its ten fields validated and its times in UTC.

    Raises InvalidStateError, naming each field that is missing or wrong.
    """
    try:
        model = WorkflowState.model_validate({k: state[k] for k in FIELDS if k in state})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidStateError(
            f"The state of run {run_id!r} is not a WorkflowState ({wrong}).",
            hint=f"A state has the fields {', '.join(FIELDS)}.",
            run_id=run_id,
        ) from None
    if model.run_id != run_id:
        raise InvalidStateError(
            f"The state that is kept for run {run_id!r} says that it is run {model.run_id!r}'s.",
            hint="Save each state under its own run_id.",
            run_id=run_id,
        )
    checked = dict(state)
    for name in ("current_step_index", "status", "created_at", "updated_at"):
        checked[name] = getattr(model, name)
    checked.setdefault("last_step_output", None)
    for name in ("due_at", "deadline"):
        checked[name] = as_moment(state.get(name))
    return checked
