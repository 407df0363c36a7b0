"""What would become of runs, and why they do not move: read from the store; nothing is executed, written or claimed."""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from flujo import _ids
from flujo.engine import Do, decide, first_record, is_over, records_so_far
from flujo.engine.foresight import Plan, bare_plan, misfit_code, plan
from flujo.engine.reasons import Why, ended, left, told
from flujo.errors import (
    ConfigurationError,
    DeadlineExceededError,
    FlujoError,
    ResumeError,
    StateCorruptedError,
    UnknownTypeError,
)  # fmt: skip
from flujo.execution.context import ContextKind
from flujo.pipeline import LATEST, PipelineRegistry, Registered, fingerprint
from flujo.runner.code import Code
from flujo.runner.executing import run_now
from flujo.runner.opening import Setup, not_found, standing
from flujo.runner.saving import Keeper
from flujo.state.backends.base import UNFINISHED, Owner, Reading, RunSummary, Shape, State, StateBackend
from flujo.state.codec import declare
from flujo.state.models import StepRecord

_PAGE = 1000  # runs of a listing that are read at a time
_COMPARED, _HISTORY = 10, 1000  # runs that say what is usual, and records that are read of each
_SLOW, _SLOW_S = 3.0, 1.0  # so many times its usual time, and at least so long, is worth saying


class Foresight:
    """What a runner says of a run without touching it; part of `Flujo`."""

    _setup: Setup
    backend: StateBackend

    def plan(self, run_id: str) -> Plan:
        """Return what would happen if the run were resumed with this runner: which steps are skipped, run, waited for.

        Nothing is executed, written or claimed, also where somebody executes the run meanwhile. Migrations that would
        carry the run are tried. Raises RunNotFoundError, StateError.
        """
        return run_now(self.plan_async(run_id))

    async def plan_async(self, run_id: str) -> Plan:
        """Do what `plan` does, as a coroutine."""
        found = await _read(self.backend, self._setup.code, _ids.check_run_id(run_id))
        if found is None:
            raise not_found(run_id)
        verdict = await _verdict(self._setup.code, self._setup.contexts, *found)
        if verdict.error is None and verdict.code is not None:
            verdict.error = _refusal(self._setup, verdict.code, verdict.now)
        return verdict.plan()

    def why(self, run_id: str) -> Why:
        """Return the one reason why the run does not move, and what to do; see `Why`.

        Nothing is executed, written or claimed. Raises RunNotFoundError, StateError.
        """
        return run_now(self.why_async(run_id))

    async def why_async(self, run_id: str) -> Why:
        """Do what `why` does, as a coroutine."""
        setup, backend = self._setup, self.backend
        owner = await backend.owner(_ids.check_run_id(run_id))
        found = await _read(backend, setup.code, run_id)
        if found is None:
            if owner is None or not owner.alive:
                raise not_found(run_id)
            return _owned(run_id, owner, f"Run {run_id!r} is executed by {_who(owner)}, and has saved no step yet.")
        keeper, state, unknown = found
        over = ended(state)
        if over is not None:
            return over
        if owner is not None and owner.alive:
            return await self._under_way(state, owner)
        verdict = await _verdict(setup.code, setup.contexts, keeper, state, unknown)
        error = verdict.error
        if error is not None:
            return Why(
                run_id=run_id, code=misfit_code(error), text=error.message, hint=error.hint, data=dict(error.data)
            )
        unread = len(await backend.mail(run_id, after=state["mail_seen"], limit=_PAGE))
        why = left(state, setup.clock.now(), unread)
        if owner is None or why.code != "free":
            return why
        text = f"{why.text.removesuffix('.')}: {_who(owner)} had it, and is gone."
        return Why(run_id=run_id, code="free", text=text, hint=why.hint, data={**why.data, "owner": owner.who})

    async def _under_way(self, state: State, owner: Owner) -> Why:
        """Say what a live owner does, and whether that takes longer than it usually does."""
        run_id, since = state["run_id"], state["updated_at"]
        if owner.since is not None and owner.since > since:  # it was taken up after its last save
            since = owner.since
        do = self._next(state)
        text = f"Run {run_id!r} is executed by {_who(owner)}"
        if do is None:
            return _owned(run_id, owner, f"{text}.")
        where, lasts = _ids.path_text(do.path), (self._setup.clock.now() - since).total_seconds()
        usual = await self._usual(state, do.path)
        data = {"step": where, "step_since": since, "seconds": lasts, "usual_seconds": usual}
        if usual is None or lasts < _SLOW_S or lasts < usual * _SLOW:
            return _owned(run_id, owner, f"{text}; step {where!r} is under way since {told(since)}.", data)
        times = f"{lasts / usual:.0f} times its usual time" if usual else "far longer than usual"
        text = f"{text}, and step {where!r} has run {times}: {lasts:.1f} s instead of {usual:.3g} s."
        hint = "See what that process does; cancel the run, or take it over by force if its owner hangs."
        return Why(run_id=run_id, code="slow", text=text, hint=hint, data={**_facts(owner), **data})

    def _next(self, state: State) -> Do | None:
        try:
            return decide(self._setup.code.for_state(state).pipeline, state) if state["phase"] is None else None
        except ResumeError:  # the owner has other code
            return None

    async def _usual(self, state: State, path: tuple[str, ...]) -> float | None:
        """Return how many seconds that step took in runs that completed lately, the median."""
        backend = self.backend
        if not isinstance(backend, Reading):
            return None
        where = {"status": "completed", "pipeline_id": state["pipeline_id"]}
        took = []
        for run in await backend.list_runs(where, limit=_COMPARED):
            history = await backend.history(run.run_id, limit=_HISTORY)
            took += [record.latency_s for record in history if record.path == path and record.success][-1:]
        return statistics.median(took) if took else None


def _owned(run_id: str, owner: Owner, text: str, data: Mapping[str, Any] | None = None) -> Why:
    return Why(
        run_id=run_id, code="owned", text=text, hint="Wait for it: run(run_id=..., wait=True).",
        data={**_facts(owner), **(data or {})},
    )  # fmt: skip


def _facts(owner: Owner) -> dict[str, Any]:
    return {"owner": owner.who, "since": owner.since}


def _who(owner: Owner) -> str:
    return owner.who + (f" since {told(owner.since)}" if owner.since is not None else "")


@dataclass(slots=True)
class _Verdict:
    """Whether a run can go on: `error` is None, or why not. `now` is the state that it goes on with."""

    state: State
    now: State
    code: Registered | None = None
    records: Sequence[StepRecord] = ()
    error: FlujoError | None = None

    def plan(self) -> Plan:
        """Return the plan."""
        if self.code is None or (self.error is not None and self.now is self.state):
            assert self.error is not None
            return bare_plan(self.state, self.error, self.code)
        made = plan(self.now, self.code, self.records, before=None if self.now is self.state else self.state)
        return made if self.error is None else made.refused(self.error)


async def _read(backend: StateBackend, code: Code, run_id: str) -> tuple[Keeper, State, FlujoError | None] | None:
    """Return a run's newest state, and the error of a type in it that is not known; None where nothing is saved."""
    code.declare_types()
    stored = await (backend.load_at(run_id) if isinstance(backend, Reading) else backend.load_state(run_id))
    if stored is None:
        return None
    keeper = Keeper(backend)
    try:
        state = keeper.lifted(run_id, stored)
    except UnknownTypeError as error:
        return (
            keeper,
            keeper.lifted(run_id, {**stored, "pipeline_context": {}, "last_step_output": None, "input": None}),
            error,
        )
    unknown = state.get("unresolved")
    return keeper, state, None if not unknown else UnknownTypeError(
        f"The state of run {run_id!r} holds values of types that are not known here: {', '.join(unknown)}.",
        hint="Call register_type with them.", run_id=run_id, type_name=unknown[0],
    )  # fmt: skip


async def _verdict(
    code: Code, contexts: ContextKind | None, keeper: Keeper, state: State, unknown: FlujoError | None
) -> _Verdict:
    """Find out whether a run can go on, by doing what taking it up does before anything is executed."""
    verdict = _Verdict(state, state)
    try:
        verdict.code = code.for_state(state)
        if unknown is not None:
            raise unknown
        verdict.code, verdict.now, _ = standing(code, contexts, state, keeper.codec)
        verdict.records = await _records(keeper, state)
    except (ResumeError, ConfigurationError, UnknownTypeError) as error:
        verdict.error = error
    return verdict


async def _records(keeper: Keeper, state: State) -> list[StepRecord]:
    """Return the records of the step that is under way, or all of them where they are being undone.

    Not more than the state knows of: its owner may have gone on since that was read.
    """
    first = 0 if state["phase"] == "undoing" else first_record(state)
    count = records_so_far(state) - first
    return (await keeper.records_after(state["run_id"], first))[:count] if count else []


def _refusal(setup: Setup, code: Registered, state: State) -> FlujoError | None:
    """Return why a run that fits the code would not go on all the same."""
    try:
        setup.executors.check(code.pipeline)
    except ConfigurationError as error:
        return error
    deadline = state["deadline"]
    if deadline is None or deadline > setup.clock.now() or is_over(state) or state["phase"] is not None:
        return None
    return DeadlineExceededError(
        f"The deadline of run {state['run_id']!r} has passed, {told(deadline)}.",
        hint="Run it again with another `deadline` to go on.", run_id=state["run_id"], deadline=deadline,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """An unfinished run that the registered code could not resume.

    `code` says why, as a `Plan` does: "pipeline-missing", "version-missing", "pipeline-changed", "migration" and so on;
    `text` says it with the difference, and `hint` what to do.
    """

    run_id: str
    pipeline_name: str
    pipeline_version: str
    status: str
    updated_at: datetime
    code: str
    text: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.run_id} ({self.pipeline_name} {self.pipeline_version}, {self.status}): {self.text}"


def check(
    registry: PipelineRegistry,
    backend: StateBackend,
    *,
    context_models: Mapping[str, type[BaseModel]] | None = None,
    versions: Mapping[str, str] | None = None,
) -> list[Misfit]:
    """Return every unfinished run in the store that the registered code could not resume: a gate for a deploy.

    Unfinished is what runs, waits or has failed and was not undone. Migrations are tried; nothing is written.
    Arguments, both by the pipeline's name: `context_models`, to see whether the contexts fit; `versions`, which one a
    runner is asked for, `latest` by default: it is what migrations lead to.
    Raises ConfigurationError for a backend that cannot list its runs, StateError.
    """
    return run_now(check_async(registry, backend, context_models=context_models, versions=versions))


async def check_async(
    registry: PipelineRegistry,
    backend: StateBackend,
    *,
    context_models: Mapping[str, type[BaseModel]] | None = None,
    versions: Mapping[str, str] | None = None,
) -> list[Misfit]:
    """Do what `check` does, as a coroutine."""
    if not isinstance(backend, Reading):
        raise ConfigurationError(
            f"{type(backend).__name__} cannot list its runs, so they cannot be checked.",
            hint="Use a backend with the Reading capability.",
        )
    return await _Gate(registry, backend, context_models or {}, versions or {}).misfits()


class _Gate:
    """One check. Whole groups of runs are let pass by what code they need; the others are looked at one by one."""

    def __init__(
        self,
        registry: PipelineRegistry,
        backend: StateBackend,
        models: Mapping[str, type[BaseModel]],
        versions: Mapping[str, str],
    ) -> None:
        self._registry, self._backend = registry, backend
        self._versions = versions
        self._contexts = {name: ContextKind(model) for name, model in models.items()}
        for model in models.values():
            declare(model)
        self._codes: dict[str, Code] = {}

    async def misfits(self) -> list[Misfit]:
        """Return them, by pipeline."""
        backend = self._backend
        assert isinstance(backend, Reading)
        suspects: dict[tuple[str, str], list[Shape]] = {}
        for shape in await backend.shapes():
            if not self._fits(shape):
                suspects.setdefault((shape.pipeline_id, shape.pipeline_name), []).append(shape)
        return [misfit for key in sorted(suspects) for misfit in await self._among(*key, suspects[key])]

    async def _among(self, pipeline_id: str, name: str, shapes: list[Shape]) -> list[Misfit]:
        """Return the misfits of one pipeline, given the shapes of its runs that need a look.

        A listing says with which version a run was begun. Where migrations have carried some, those of the versions
        looked for may be listed under any.
        """
        wanted, missing = {shape.pipeline_version for shape in shapes}, sum(shape.runs for shape in shapes)
        others, found = list[RunSummary](), list[Misfit]()
        async for run in self._unfinished(pipeline_id, name):
            if run.pipeline_version in wanted:
                missing -= await self._judge(run, found) in wanted
            else:
                others.append(run)
        for run in others if missing > 0 else ():
            await self._judge(run, found)
        return found

    async def _unfinished(self, pipeline_id: str, name: str) -> AsyncIterator[RunSummary]:
        backend = self._backend
        assert isinstance(backend, Reading)
        for status in UNFINISHED:
            last: str | None = None
            where = {"status": status, "pipeline_id": pipeline_id}
            while page := await backend.list_runs(where, limit=_PAGE, after=last):
                last = page[-1].run_id
                for run in page:
                    if run.pipeline_name == name:
                        yield run

    def _code(self, name: str) -> Code:
        if name not in self._codes:
            self._codes[name] = Code(None, self._registry, name, self._versions.get(name, LATEST), None)
        return self._codes[name]

    def _fits(self, shape: Shape) -> bool:
        """Return whether all runs of that shape can go on, whatever else is in their states."""
        if shape.fingerprint is None or shape.pipeline_name in self._contexts:
            return False
        try:
            route = self._code(shape.pipeline_name).route(
                {"run_id": shape.example, "status": "running", "pipeline_name": shape.pipeline_name,
                 "pipeline_version": shape.pipeline_version}
            )  # fmt: skip
        except FlujoError:
            return False
        same = shape.pipeline_id == route.code.pipeline_id and shape.fingerprint == fingerprint(route.code.pipeline)
        return same and not route.migrations

    async def _judge(self, run: RunSummary, misfits: list[Misfit]) -> str:
        """Return the version that the run is at; add it to the misfits, if it is one."""
        name, status, at = run.pipeline_name, run.status, run.updated_at
        version: str = run.pipeline_version
        try:
            found = await _read(self._backend, self._code(name), run.run_id)
            if found is None:  # it was deleted meanwhile
                return version
            state: State = found[1]
            version, status, at = state["pipeline_version"], state["status"], state["updated_at"]
            if is_over(state):
                return version
            error = (await _verdict(self._code(name), self._contexts.get(name), *found)).error
        except StateCorruptedError as damage:
            error = damage
        if error is not None:
            misfits.append(Misfit(
                run_id=run.run_id, pipeline_name=name, pipeline_version=version, status=status, updated_at=at,
                code=misfit_code(error), text=error.message, hint=error.hint,
            ))  # fmt: skip
        return version
