"""Whether a saved state can go on with the pipeline at hand, and what migrations make of one that goes further."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flujo.engine.waits import in_doubt
from flujo.errors import (
    InvalidStateError,
    MigrationError,
    NotSerializableError,
    PipelineChangedError,
    PipelineMismatchError,
)
from flujo.pipeline import (
    MigratingState,
    Migration,
    Pipeline,
    Registered,
    difference,
    entries,
    fingerprint,
    kind_and_name,
    structure,
)  # fmt: skip
from flujo.state.codec import Codec
from flujo.state.mail import waits_of
from flujo.state.models import STATUSES

State = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The code that a saved run goes on with, and the migrations that carry it there.

    `source` is the version that it is carried from, where that is registered.
    """

    code: Registered
    migrations: tuple[Migration, ...] = ()
    source: Registered | None = None


def is_over(state: State) -> bool:
    """Return whether the run has ended for good."""
    return state["status"] in ("completed", "cancelled") or state.get("phase") == "undone"


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


def migrated(state: State, route: Route, codec: Codec) -> State:
    """Return the state of a run that its migrations have carried to `route.code`; nothing of the old one is touched.

    Under `migrated` it says which version the run started with, and what is other than at its start.
    Raises MigrationError, also where a migration raises anything.
    """
    index, old = state["current_step_index"], _old_structure(state, route)
    here = old[index] if old is not None and index < len(old) else None
    name = kind_and_name(here)[1] if here is not None else _name_at(route.code.pipeline, index) if old is None else None
    try:
        context, output, given = _own(state["pipeline_context"], state["last_step_output"], state["input"], codec)
        for step in route.migrations:
            moving = MigratingState(
                state["run_id"], (step.source, step.target),
                context=context, last_output=output, input=given, next_step=name,
            )  # fmt: skip
            moving = _applied(step, moving, state, route)
            context, output, given, name = moving.context, moving.last_output, moving.input, moving.next_step
        context, output, given = _own(context, output, given, codec)
    except NotSerializableError as error:
        raise refused(state, route, f"what it gives cannot be saved: {error.message}") from error
    place, there = _place_of(name, state, route)
    if under_way(state):
        if here is None or here != there:
            raise refused(state, route, _elsewhere(here, index, name, route))
        position = state["position"]
    else:
        position = state["position"] if here is not None and here == there else None
    _check_undos(state, route)
    code = route.code
    born = state.get("migrated") or {"from": state["pipeline_version"]}
    now = {
        "pipeline_version": code.version,
        "fingerprint": fingerprint(code.pipeline),
        "total_steps": len(code.pipeline),
    }
    kept = codec.encode(given, "input")
    if "input" in born or kept != codec.encode(state["input"], "input"):
        born = {**born, "input": kept.decode()}
    return {
        **state, **now, "current_step_index": place, "pipeline_context": context, "last_step_output": output,
        "input": given, "position": position, "migrated": {**born, **now},
    }  # fmt: skip


def under_way(state: State) -> bool:
    """Return whether something of the next step is saved: what was done inside of it, a wait, a doubt."""
    position = state["position"]
    inside = isinstance(position, dict) and "from" in position
    return inside or bool(in_doubt(state)) or bool(waits_of(state["waiting"]))


def refused(state: State, route: Route, why: str) -> MigrationError:
    """Return the error of a run that cannot be carried."""
    version, target, own = state["pipeline_version"], route.code.version, ""
    if route.source is not None:
        own = f", or go on with its own version: pipeline_version={version!r}"
    return MigrationError(
        f"Run {state['run_id']!r} cannot be carried from {route.code.name!r} {version} to {target}: {why.rstrip('.')}.",
        hint=f"It is as it was. Correct the migration{own}.",
        run_id=state["run_id"], name=route.code.name, source=version, target=target,
    )  # fmt: skip


def _own(context: dict[str, Any], output: Any, given: Any, codec: Codec) -> tuple[dict[str, Any], Any, Any]:
    """Return copies: a migration may change what it is given, and the next may not see what it holds on to.

    It is also found out here whether they can be saved.
    """
    fields = codec.encode_fields(context, "context")
    copies = codec.decode(codec.encode(output, "output")), codec.decode(codec.encode(given, "input"))
    return {name: codec.decode(value) for name, value in fields.items()}, *copies


def _applied(step: Migration, moving: MigratingState, state: State, route: Route) -> MigratingState:
    called = f"the migration {step.source} -> {step.target}"
    try:
        answer: object = step.function(moving)
    except Exception as error:
        raise refused(state, route, f"{called} raised {type(error).__name__}: {error}") from error
    found = moving if answer is None else answer
    if not isinstance(found, MigratingState) or found.run_id != moving.run_id:
        raise refused(state, route, f"{called} returned {answer!r}, and not the run's MigratingState, or None")
    context: object = found.context
    if not isinstance(context, dict):
        raise refused(state, route, f"{called} made the context a {type(context).__name__}; it is a dict of its fields")
    return found


def _old_structure(state: State, route: Route) -> list[Any] | None:
    if state["fingerprint"] is not None:
        return entries(state["fingerprint"])
    return structure(route.source.pipeline) if route.source is not None else None


def _name_at(pipeline: Pipeline[Any, Any], index: int) -> str | None:
    return pipeline.steps[index].name if index < len(pipeline.steps) else None


def _place_of(name: str | None, state: State, route: Route) -> tuple[int, Any]:
    """Return the index of the next step in the new version, and its structure."""
    pipeline = route.code.pipeline
    if name is None:
        return len(pipeline), None
    names = [step.name for step in pipeline.steps]
    if name not in names:
        why = f"it would go on with step {name!r}, which {route.code.version} has not got; its steps are "
        raise refused(state, route, f"{why}{', '.join(map(repr, names))}: say which one in `next_step`")
    return names.index(name), structure(pipeline)[names.index(name)]


def _elsewhere(here: Any, index: int, name: str | None, route: Route) -> str:
    """Say why a run that stands inside of a step cannot go on elsewhere."""
    if here is None:
        return f"it stands inside of step {index + 1}, and it is not known what that was"
    kind, was = kind_and_name(here)
    if was != name:
        return f"it stands inside of step {was!r}, and would go on with {name!r}" if name else f"it stands in {was!r}"
    found = next(step for step in route.code.pipeline.steps if step.name == name)
    return f"it stands inside of step {was!r} ({kind}), which has changed ({found.kind} in {route.code.version})"


def _check_undos(state: State, route: Route) -> None:
    """Refuse to carry a run that could not be undone any more; only a version that is registered tells its undos."""
    if route.source is None:
        return
    begun = route.source.pipeline.steps[: state["current_step_index"] + under_way(state)]
    there = set(_undoable(route.code.pipeline.steps, ()))
    lost = [place for place in _undoable(begun, ()) if place not in there]
    if lost:
        raise refused(state, route, f"step {'.'.join(lost[0])!r} was done, and its undo is not in {route.code.version}")


def _undoable(steps: Any, around: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for step in steps:
        place = (*around, step.name)
        if step.undo is not None:
            yield place
        for key, body in step.bodies:
            yield from _undoable(body.steps, (*place, key) if key else place)
