"""Whether a saved state can go on with the pipeline at hand."""

from __future__ import annotations

from typing import Any

from flujo.errors import InvalidStateError, PipelineChangedError, PipelineMismatchError
from flujo.pipeline import Registered, difference, fingerprint
from flujo.state.models import STATUSES

State = dict[str, Any]


def check_resumable(state: State, code: Registered) -> None:
    """Raise the error that says why this state cannot go on with this pipeline; return where it can.

    A state without a fingerprint (put there by hand, or by another program) is taken at its index.
    Raises PipelineMismatchError, PipelineChangedError, InvalidStateError.
    """
    run_id = state["run_id"]
    if state["pipeline_name"] != code.name or state["pipeline_id"] != code.pipeline_id:
        raise PipelineMismatchError(
            f"Run {run_id!r} belongs to pipeline {state['pipeline_name']!r} (id {state['pipeline_id']!r}), "
            f"not to {code.name!r} (id {code.pipeline_id!r}).",
            hint="Use another run_id, or resume it with its own pipeline.",
            run_id=run_id,
            found=state["pipeline_name"],
            expected=code.name,
        )
    stored = state.get("fingerprint")
    now = fingerprint(code.pipeline)
    if stored is not None and stored != now:
        raise PipelineChangedError(
            f"Pipeline {code.name!r} {state['pipeline_version']} has changed since run {run_id!r} started: "
            f"{difference(stored, now)}.",
            hint="Register the changed pipeline under a new version and keep the old one for the runs in flight.",
            run_id=run_id,
            pipeline_name=code.name,
            pipeline_version=state["pipeline_version"],
        )
    _check_place(state, code)


def _check_place(state: State, code: Registered) -> None:
    index, total, status = state["current_step_index"], len(code.pipeline.steps), state["status"]
    problem = ""
    if not isinstance(index, int) or not 0 <= index <= total:
        problem = f"current_step_index is {index!r}, but the pipeline has {total} steps"
    elif status not in STATUSES:
        problem = f"its status is {status!r}"
    elif status == "completed" and index != total:
        problem = f"it is completed at step {index} of {total}"
    if problem:
        raise InvalidStateError(
            f"Run {state['run_id']!r} is in a state that pipeline {code.name!r} cannot be in: {problem}.",
            hint="Correct the saved state, or delete the run and start it again.",
            run_id=state["run_id"],
            current_step_index=index,
        )
