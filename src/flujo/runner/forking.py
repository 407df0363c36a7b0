"""Making a new run of what an old one was at one of its steps."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from flujo.errors import (
    ConfigurationError,
    InvalidChangeError,
    RunExistsError,
    StepNotReachedError,
    UnknownStepError,
)  # fmt: skip
from flujo.pipeline import Registered, Step
from flujo.runner.opening import Setup, not_found, standing
from flujo.runner.posting import changed_context, checked_output
from flujo.runner.saving import Keeper
from flujo.state.backends.base import NewRun, Reading, State, StateBackend
from flujo.state.mail import Message


class Fork:
    """A fork on its way: `find` says where the old run is cut, `changes` what is to be other, `make` makes it."""

    def __init__(self, setup: Setup, backend: StateBackend, run_id: str) -> None:
        self._setup, self._backend, self._run_id = setup, backend, run_id
        self._keeper = Keeper(backend)
        self._state: State = {}
        self._steps: tuple[Step[Any, Any], ...] = ()
        self._index = self._rev = 0

    async def find(self, step: int | str) -> None:
        """Find the save after which that step was about to start."""
        self._setup.code.declare_types()
        backend, run_id = self._backend, self._run_id
        newest = await stored(backend, self._keeper, run_id)
        self._steps = self._own(newest).pipeline.steps
        self._index = self._place(step)
        rev = await backend.rev_at_index(run_id, self._index) if isinstance(backend, Reading) else None
        reached = newest["current_step_index"]
        if self._index > reached or (rev is None and isinstance(backend, Reading)):
            raise StepNotReachedError(
                f"Run {run_id!r} has done {reached} steps, and has not come to step {self._index}.",
                hint="Fork it from a step that it has come to.", run_id=run_id, step=self._index, reached=reached,
            )  # fmt: skip
        if rev is None and self._index != reached:
            raise ConfigurationError(
                f"{type(backend).__name__} keeps only the newest state of a run, and cannot fork an older one.",
                hint=f"Fork it from where it stands, step={reached}, or use SQLiteBackend.",
            )
        self._rev = newest["rev"] if rev is None else rev
        self._state = newest
        if isinstance(backend, Reading) and self._rev:
            self._state = self._keeper.lifted(run_id, await backend.load_at(run_id, self._rev) or newest)
            self._check_version(step, newest)
        elif not self._index:
            await self._begin(newest)
        code, _, _ = standing(self._setup.code, None, {**self._state, "status": "running"}, self._keeper.codec)
        self._setup.contexts.check(code.pipeline)

    def _own(self, state: State) -> Registered:
        route = self._setup.code.route(state)
        return route.source or route.code

    def _place(self, step: int | str) -> int:
        names = [found.name for found in self._steps]
        given: object = step
        if isinstance(given, str) and given in names:
            return names.index(given)
        if type(given) is int and 0 <= given <= len(names):
            return given
        near = difflib.get_close_matches(str(step), names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Its steps are {', '.join(map(repr, names[:20]))}."
        raise UnknownStepError(
            f"The pipeline of run {self._run_id!r} has no step {step!r}.", hint=hint, run_id=self._run_id, step=step,
            known=names,
        )  # fmt: skip

    def _check_version(self, step: int | str, newest: State) -> None:
        """A migration may have moved the steps: a name is to mean the step that it names in the version of then."""
        if self._state["pipeline_version"] != newest["pipeline_version"]:
            self._steps = self._own(self._state).pipeline.steps
            if self._place(step) != self._index:
                raise UnknownStepError(
                    f"Step {step!r} was elsewhere in version {self._state['pipeline_version']}, which it had then.",
                    hint="Say how many steps are done.", run_id=self._run_id, step=step,
                )  # fmt: skip

    async def _begin(self, newest: State) -> None:
        """Take the run as it was before anything was saved: what its context began with may be known from a wait."""
        first = await self._backend.load_at(self._run_id, 1) if isinstance(self._backend, Reading) else newest
        context: dict[str, Any] = {}
        if first is not None and first["current_step_index"] == 0 and first["status"] in ("paused", "failed"):
            context = self._keeper.lifted(self._run_id, first)["pipeline_context"]
        elif self._setup.contexts.wanted_by(self._own(newest).pipeline):
            context = self._setup.contexts.values(self._setup.contexts.make(self._setup.initial_context))
        self._state = {**newest, "pipeline_context": context, "last_step_output": None, "history_offset": 0}

    def changes(self, outputs: Mapping[str, Any] | None, context: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what is to be other than it was, checked."""
        changes: dict[str, Any] = {}
        if context or not self._rev:
            changes["pipeline_context"] = changed_context(self._setup.contexts, self._state, context or {})
        before = self._steps[self._index - 1] if self._index else None
        for name, value in (outputs or {}).items():
            if before is None or name != before.name:
                where = f"the step before is {before.name!r}" if before is not None else "there is no step before"
                raise InvalidChangeError(
                    f"The output of step {name!r} cannot be changed here: {where}.",
                    hint="Fork the run from the step right after the one whose output is to be another.",
                    run_id=self._run_id, step=name,
                )  # fmt: skip
            changes["last_step_output"] = checked_output(self._run_id, before, value)
        return changes

    async def make(self, new: str, changes: Mapping[str, Any], message: Message) -> None:
        """Make the new run."""
        backend = self._backend
        if isinstance(backend, Reading) and type(backend).fork is not Reading.fork:
            await backend.fork(self._run_id, self._rev, new, changes=changes, message=message)
        else:
            await self._copy(new, changes, message)

    async def _copy(self, new: str, changes: Mapping[str, Any], message: Message) -> None:
        """Make the new run of copies, on a backend that knows no forks."""
        old, backend, keeper = self._state, self._backend, Keeper(self._backend)
        count = old["history_offset"]
        records = (await self._keeper.records_after(self._run_id, 0))[:count]
        claim = await keeper.claim(new, described(old, message.at), now=message.at)
        if claim.state is not None or claim.fence is None:
            if claim.fence is not None:
                backend.abandon(new, claim.fence, refused=True)
            raise RunExistsError(f"There is a run {new!r} already.", hint="Give another run_id.", run_id=new)
        try:
            await keeper.save({
                **old, "run_id": new, "fence": claim.fence, "rev": 1, "status": "running", "created_at": message.at,
                "updated_at": message.at, "position": None, "phase": None, "waiting": None, "error": None,
                "due_at": None, "deadline": None, "mail_seen": 0, "edits": [], "mail": [],
                "step_history": records, "history_offset": 0, "inherited": count,
                "forked_from": {"run_id": self._run_id, "rev": self._rev}, **changes,
            })  # fmt: skip
        finally:
            await backend.release(new, claim.fence)
        with contextlib.suppress(ConfigurationError):  # it has no mailbox: `forked_from` has to do
            await backend.post(new, message)


async def stored(backend: StateBackend, keeper: Keeper, run_id: str) -> State:
    """Return the run's newest state with live values; raises RunNotFoundError."""
    stored = await (backend.load_at(run_id) if isinstance(backend, Reading) else backend.load_state(run_id))
    if stored is None:
        raise not_found(run_id)
    return keeper.lifted(run_id, stored)


def described(state: State, now: datetime) -> NewRun:
    """Return what a claim is to know of a run like that one."""
    return NewRun(
        pipeline_id=state["pipeline_id"], pipeline_name=state["pipeline_name"],
        pipeline_version=state["pipeline_version"], total_steps=state["total_steps"] or 0,
        fingerprint=state["fingerprint"], input=state["input"], created_at=now,
    )  # fmt: skip
