"""What would happen if a run were resumed with this code: asked of the core, and nothing is executed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from flujo._ids import path_text
from flujo.engine.ahead import FAILED, Ahead, Tally
from flujo.engine.core import decide, void_records
from flujo.engine.frames import Path
from flujo.engine.repair import inherited
from flujo.engine.resume import check_resumable, is_over
from flujo.engine.tree import Saved, sort_out
from flujo.engine.undo import undos
from flujo.errors import FlujoError
from flujo.pipeline import WAITS, Comparison, Pipeline, Registered, Step, compare, entries, fingerprint, structure
from flujo.pipeline.progress import place_of
from flujo.state.mail import waits_of
from flujo.state.models import StepRecord

State = dict[str, Any]
Does: TypeAlias = Literal["skipped", "runs", "waits", "new", "changed", "gone", "moved"]

CODES = {
    "pipeline-not-registered": "pipeline-missing", "version-not-registered": "version-missing",
    "pipeline-mismatch": "other-pipeline", "context-mismatch": "context-changed",
    "unknown-type": "type-missing", "state-corrupted": "damaged", "deadline-exceeded": "deadline",
}  # fmt: skip
"""What misfits are called, by the code of the error that a resume would raise; any other keeps that code."""


def misfit_code(error: FlujoError) -> str:
    """Return the short, stable name of the reason why a run and the code at hand do not fit."""
    return CODES.get(error.code, error.code)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One step of a plan.

    path     as it is printed, without items and iterations: `enrich.fetch`
    kind     "step", "map", "human" and so on; "undo"
    does     "skipped" (it is done, or not needed), "runs", or "waits" (for a person, a signal, a time); and of a
             pipeline other than the one that the run has come so far with: "new", "changed", "moved", "gone"
    executes whether resuming the run would perform it, or have it wait, unless something fails before
    perhaps  it depends on a decision that is not taken yet, or on how many items there are
    note     what there is to say besides
    """

    path: str
    kind: str
    does: Does
    executes: bool = False
    perhaps: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would happen if a run were resumed now; `str` makes it readable.

    status, pipeline_name, pipeline_version
               of the run as it is saved
    goes_on_with
               the version that it would go on with: its own, or the one that migrations carry it to
    resumable  whether it can be resumed at all
    code       if not: why, as a stable code ("pipeline-changed", "version-missing", "migration", ...), else ""
    reason, hint
               that as a sentence, and what to do
    steps      one entry a step, in order, those inside of others after them
    """

    run_id: str
    status: str
    pipeline_name: str
    pipeline_version: str
    goes_on_with: str
    resumable: bool = True
    code: str = ""
    reason: str = ""
    hint: str = ""
    steps: tuple[PlannedStep, ...] = ()

    @property
    def executes(self) -> tuple[str, ...]:
        """The paths of the steps that would be performed, in order."""
        return tuple(step.path for step in self.steps if step.executes)

    def __str__(self) -> str:
        carried = f", carried to {self.goes_on_with}" if self.goes_on_with != self.pipeline_version else ""
        lines = [f"Run {self.run_id!r} of {self.pipeline_name!r} {self.pipeline_version} ({self.status}){carried}"]
        if not self.resumable:
            lines.append(f"cannot be resumed: {self.reason} {self.hint}".rstrip())
        width = max((len(step.path) for step in self.steps), default=0)
        for step in self.steps:
            kind = "" if step.kind == "step" else f" ({step.kind})"
            perhaps = "if it comes to that" if step.perhaps else ""
            note = "; ".join(filter(None, (perhaps, step.note)))
            lines.append(f"  {step.does:<8}{f'{step.path}{kind}':<{width + 12}}{note}".rstrip())
        return "\n".join(lines)

    def refused(self, error: FlujoError) -> Plan:
        """Return the plan of a run that cannot be resumed for that reason: nothing is executed."""
        steps = tuple(replace(step, executes=False, perhaps=False) for step in self.steps)
        return replace(
            self, resumable=False, code=misfit_code(error), reason=error.message, hint=error.hint, steps=steps
        )


def plan(state: State, code: Registered, records: Sequence[StepRecord], *, before: State | None = None) -> Plan:
    """Return what would happen if the run of this state were resumed with this code.

    Arguments: `records` are those of the step that is under way; of a run that is being undone, all of them. `before`
    is the state as it is saved, where migrations have made `state` of it.
    """
    saved = state if before is None else before
    made = Plan(
        run_id=saved["run_id"], status=saved["status"], pipeline_name=saved["pipeline_name"],
        pipeline_version=saved["pipeline_version"], goes_on_with=state["pipeline_version"],
    )  # fmt: skip
    comparison = _compared(saved, code)
    try:
        check_resumable(state, code)
    except FlujoError as error:
        return replace(made, steps=_differences(saved, code, comparison)).refused(error)
    return replace(made, steps=tuple(_Planner(state, code.pipeline, records, comparison, before is not None).steps()))


def bare_plan(state: State, error: FlujoError, code: Registered | None = None) -> Plan:
    """Return the plan of a run that `error` keeps from being resumed; with `code`, compared to that."""
    steps = () if code is None else _differences(state, code, _compared(state, code))
    version: str = state["pipeline_version"]
    made = Plan(
        run_id=state["run_id"], status=state["status"], pipeline_name=state["pipeline_name"],
        pipeline_version=version, goes_on_with=version, steps=steps,
    )  # fmt: skip
    return made.refused(error)


def _compared(state: State, code: Registered) -> Comparison | None:
    """Return how the pipeline differs from what the run has come so far with; None where it does not."""
    stored = state.get("fingerprint")
    if stored is None or stored == fingerprint(code.pipeline):
        return None
    before = entries(stored)
    return None if before is None else compare(before, structure(code.pipeline))


def _walk(steps: Sequence[Step[Any, Any]], around: Path = ()) -> Iterator[tuple[Path, Step[Any, Any]]]:
    """Yield every step, those inside of others after them, under its place."""
    for step in steps:
        place = (*around, step.name)
        yield place, step
        for key, body in step.bodies:
            yield from _walk(body.steps, (*place, key) if key else place)


def _differences(state: State, code: Registered, found: Comparison | None) -> tuple[PlannedStep, ...]:
    """Return the steps of a pipeline that the run cannot go on with."""
    steps = []
    index = state["current_step_index"]
    tops = {step.name: number for number, step in enumerate(code.pipeline.steps)}
    for place, step in _walk(code.pipeline.steps):
        top = found.now[place[:1]].was if found is not None else tops[place[0]]
        change = found.now[place] if found is not None else None
        does: Does = "skipped" if top is not None and top < index else _would(step)
        if change is not None and change.what != "same":
            does = change.what
        note = change.note if change is not None else ""
        steps.append(PlannedStep(path=path_text(place), kind=step.kind, does=does, note=note))
    return (*steps, *_gone(found))


def _gone(found: Comparison | None) -> Iterator[PlannedStep]:
    for place, kind in (found.gone if found is not None else {}).items():
        yield PlannedStep(path=path_text(place), kind=kind, does="gone")


def _would(step: Step[Any, Any]) -> Literal["runs", "waits"]:
    return "waits" if step.kind in WAITS else "runs"


@dataclass(slots=True)
class _Planner:
    """Plans a run that can go on. `carried`: migrations have brought it to this pipeline."""

    state: State
    pipeline: Pipeline[Any, Any]
    records: Sequence[StepRecord]
    comparison: Comparison | None
    carried: bool
    saved: Saved = field(init=False)
    ahead: Ahead = field(init=False)

    def __post_init__(self) -> None:
        records = self.records if self.state["phase"] is None else ()
        self.saved = sort_out(records, void_records(self.state))
        self.ahead = Ahead(self.saved)

    def steps(self) -> Iterator[PlannedStep]:
        """Yield the entries."""
        if self.state["phase"] == "undoing":
            yield from self._undoing()
            return
        index = self.state["current_step_index"]
        over = is_over(self.state)
        stopped = over or not self._under_way(index)
        for number, step in enumerate(self.pipeline.steps):
            for place, inner in _walk([step]):
                if number < index:
                    yield self._entry(place, inner, Tally(), "" if not self._is_new(place) else "not executed")
                elif stopped and (over or number > index):
                    yield self._entry(place, inner, Tally(), f"not executed: the run {self._end(over)}")
                else:
                    if number > index and len(place) == 1:
                        self.ahead.all_of(inner)
                    yield self._entry(place, inner, self.ahead.tallies.get(place, Tally()), self._note(place))
        if self.carried:
            yield from _gone(self.comparison)

    def _end(self, over: bool) -> str:
        return f"is {self.state['status']}" if over else "fails of what is on record, and can be tried again then"

    def _under_way(self, index: int) -> bool:
        """Read the step that is next; return whether the run gets past it, unless something fails."""
        do = decide(self.pipeline, {**self.state, "status": "running"})
        if do is None:
            return True
        return self.ahead.read(do.step, do.input) is not FAILED

    def _is_new(self, place: Path) -> bool:
        return self.carried and self.comparison is not None and self.comparison.now[place].what == "new"

    def _entry(self, place: Path, step: Step[Any, Any], tally: Tally, note: str) -> PlannedStep:
        executes = bool(tally.ahead or tally.perhaps)
        does: Does = _would(step) if executes else "skipped"
        change = self.comparison.now[place] if self.carried and self.comparison is not None else None
        if change is not None and change.what != "same":
            if executes:
                does, note = change.what, "; ".join(filter(None, (change.note, note)))
            else:
                note = "; ".join(filter(None, (f"{change.what} {change.note}".rstrip(), note)))
        return PlannedStep(
            path=path_text(place), kind=step.kind, does=does, executes=executes,
            perhaps=executes and not tally.ahead, note=note,
        )  # fmt: skip

    def _note(self, place: Path) -> str:
        """Say what is known of a step that is under way, or still to come."""
        tally = self.ahead.tallies.get(place)
        waits = [wait for wait in waits_of(self.state["waiting"]) if place_of(tuple(wait["path"])) == place]
        if waits and waits[0]["kind"] == "retry":
            return "waits for another attempt"
        if waits and waits[0]["kind"] == "crash":
            return "waits for a verdict: its process died while it was running"
        if waits:
            return "has begun to wait"
        if tally is None:
            return "not needed"
        if not tally.ahead and not tally.perhaps and tally.failed:
            return "failed, and that was dealt with" if not tally.done else f"{tally.failed} failed for good"
        if tally.done + tally.failed and tally.ahead:
            return f"{tally.done} done, {tally.ahead} to go"
        chosen = self.ahead.choices.get(place)
        return f"took {', '.join(map(repr, sorted(chosen)))}" if chosen else ""

    def _undoing(self) -> Iterator[PlannedStep]:
        index = self.state["current_step_index"]
        for number, step in enumerate(self.pipeline.steps):
            for place, inner in _walk([step]):
                note = "" if number < index else "the run is being undone"
                yield PlannedStep(path=path_text(place), kind=inner.kind, does="skipped", note=note)
        for undo in undos(self.pipeline, self.records, inherited(self.state)):
            yield PlannedStep(path=path_text(undo.path), kind="undo", does="runs", executes=True)
