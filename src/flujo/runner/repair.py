"""Setting runs right: `fork`, `edit`, `retry` and `takeover`, each recorded in the run's mailbox with who and why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Generic, TypeVar

from flujo import _ids
from flujo.engine import in_doubt, is_over, read
from flujo.engine.repair import KEEP, edited, is_inside
from flujo.errors import (
    ConfigurationError,
    FlujoError,
    InvalidChangeError,
    RunEndedError,
    RunInProgressError,
    RunNotFailedError,
    UnreadMailError,
)  # fmt: skip
from flujo.pipeline import Registered
from flujo.runner.forking import Fork, described, stored
from flujo.runner.opening import MISSING, Setup, not_found, standing
from flujo.runner.posting import Post, changed_context, checked_output
from flujo.runner.result import PipelineResult
from flujo.runner.saving import Keeper
from flujo.state.backends import _statemail
from flujo.state.backends.base import Claim, NewRun, Reading, State, StateBackend
from flujo.state.backends.overview import alike
from flujo.state.mail import RECORDS, Message

Out = TypeVar("Out")
T = TypeVar("T")
_AT_ONCE = 10  # runs that `retry_all` executes at the same time
_PAGE = 1000


class Repairs(Generic[Out]):
    """What a runner does to a run from outside; part of `Flujo`."""

    backend: StateBackend
    _setup: Setup
    _post: Post
    _now: Callable[[Coroutine[Any, Any, Any]], Any]
    _execution: Callable[..., Coroutine[Any, Any, PipelineResult[Any]]]

    def fork(
        self,
        run_id: str,
        step: int | str,
        *,
        new_run_id: str | None = None,
        outputs: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        by: str | None = None,
        reason: str | None = None,
    ) -> str:
        """Make a new run of what an old one was when a step was about to start, and return its run_id.

        Nothing is executed: `run(run_id=...)` goes on with it. The old run is as it was, also if somebody executes it.
        What is shared is stored once; FileBackend copies it, and a backend of three methods can only copy the newest
        state. Undos of the new run take back what the new run did.

        Arguments: `step`, how many top-level steps are done, or the name of the one to begin with; `new_run_id`, by
        default a new one; `outputs`, another output of the step right before: {name: value}; `context`, other values of
        its fields; `by` and `reason`, who does it and why.
        Raises RunNotFoundError, UnknownStepError, StepNotReachedError, RunExistsError, InvalidChangeError (a field, a
        name or a type that does not fit), ResumeError, StateError, ConfigurationError (the backend cannot do it).
        """
        return str(self._now(self.fork_async(
            run_id, step, new_run_id=new_run_id, outputs=outputs, context=context, by=by, reason=reason
        )))  # fmt: skip

    async def fork_async(
        self,
        run_id: str,
        step: int | str,
        *,
        new_run_id: str | None = None,
        outputs: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        by: str | None = None,
        reason: str | None = None,
    ) -> str:
        """Do what `fork` does, as a coroutine."""
        new = _ids.new_run_id() if new_run_id is None else _ids.check_run_id(new_run_id)
        fork = Fork(self._setup, self.backend, _ids.check_run_id(run_id))
        message = self._post.record("fork", by, reason)
        await fork.find(step)
        await fork.make(new, fork.changes(outputs, context), message)
        return new

    def edit(
        self,
        run_id: str,
        *,
        context: Mapping[str, Any] | None = None,
        output: Any = MISSING,
        by: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Change the context, or the last output, of a run that nobody executes; it stands and waits as before.

        It is one more save: nothing that was saved is changed. The step that comes next has another idempotency key
        from then on, since it takes something else. A message of kind "edit" says who did it, why, and what was
        changed; it was made if the run's state has the message's number in `edits`.

        Arguments: `context`, new values of its fields; `output`, of the last step that was done; `by` and `reason`.
        Raises RunNotFoundError, RunInProgressError, RunEndedError, InvalidChangeError (a field or a type that does not
        fit, or a step that has begun with the old output: fork it instead), ResumeError, StateError.
        """
        self._now(self.edit_async(run_id, context=context, output=output, by=by, reason=reason))

    async def edit_async(
        self,
        run_id: str,
        *,
        context: Mapping[str, Any] | None = None,
        output: Any = MISSING,
        by: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Do what `edit` does, as a coroutine."""
        edit = _Edit(self._setup, self.backend, _ids.check_run_id(run_id), context, output)
        what: dict[str, Any] = {} if context is None else {"context": dict(context)}
        if output is not MISSING:
            what["output"] = output
        await edit.check()
        codec = edit.keeper.codec
        await edit.make(self._post.record("edit", by, reason, codec.encode(what, "edit")))

    def retry(
        self, run_id: str, *, by: str | None = None, reason: str | None = None, wait: bool = False
    ) -> PipelineResult[Out]:
        """Try a failed run again, as `run` does, and record who did it and why. `wait` as for `run`.

        Raises RunNotFailedError, RunNotFoundError, RunEndedError (also of one that was undone), and what `run` raises.
        """
        result: PipelineResult[Out] = self._now(self._retried(run_id, by, reason, wait=wait, inline=True))
        return result

    def retry_async(
        self, run_id: str, *, by: str | None = None, reason: str | None = None, wait: bool = False
    ) -> Coroutine[Any, Any, PipelineResult[Out]]:
        """Do what `retry` does, as a coroutine."""
        return self._retried(run_id, by, reason, wait=wait, inline=False)

    def retry_all(
        self, like: str | None = None, *, by: str | None = None, reason: str | None = None
    ) -> dict[str, PipelineResult[Out] | FlujoError]:
        """Try every failed run of this pipeline again, or those alone that failed as run `like` did.

        Returns what came of each, by run_id: its result, or the error that kept it from being tried; one does not stop
        the others. Runs that were undone, or that others have gone on with, are left out. 10 go on at a time.
        Raises RunNotFoundError, RunNotFailedError (of `like`), ConfigurationError (the backend has no listing).
        """
        found: dict[str, PipelineResult[Out] | FlujoError] = self._now(self.retry_all_async(like, by=by, reason=reason))
        return found

    async def retry_all_async(
        self, like: str | None = None, *, by: str | None = None, reason: str | None = None
    ) -> dict[str, PipelineResult[Out] | FlujoError]:
        """Do what `retry_all` does, as a coroutine."""
        found: dict[str, PipelineResult[Out] | FlujoError] = {}
        few = asyncio.Semaphore(_AT_ONCE)

        async def one(run_id: str) -> None:
            async with few:
                try:
                    found[run_id] = await self.retry_async(run_id, by=by, reason=reason)
                except (RunEndedError, RunNotFailedError):
                    pass
                except FlujoError as error:
                    found[run_id] = error

        failed = await self._failed(like)
        async with asyncio.TaskGroup() as tasks:
            for run_id in failed:
                tasks.create_task(one(run_id))
        return found

    async def _failed(self, like: str | None) -> list[str]:
        """Return the failed runs of this pipeline, the newest first: all, or those that failed as that one did."""
        backend = self.backend
        if not isinstance(backend, Reading):
            raise ConfigurationError(
                f"{type(backend).__name__} has no listing of its runs.", hint="Retry them one by one."
            )
        where = {"status": "failed", "pipeline_name": self._setup.code.known()[0].name}
        found: list[tuple[str, str | None]] = []
        last: str | None = None
        while page := await backend.list_runs(where, limit=_PAGE, after=last):
            last = page[-1].run_id
            found += [(run.run_id, run.error_message) for run in page]
        if like is None:
            return [run_id for run_id, _ in found]
        wanted = dict(found)
        if like not in wanted:
            state = await self._post.state(_ids.check_run_id(like))
            if state is None:
                raise not_found(like)
            raise RunNotFailedError(
                f"Run {like!r} is {state['status']}; it has not failed.", hint="Name one of `failures`.",
                run_id=like, status=state["status"],
            )  # fmt: skip
        kind = alike(wanted[like] or "")
        return [run_id for run_id, message in found if alike(message or "") == kind]

    def takeover(self, run_id: str, *, by: str | None = None, reason: str | None = None) -> PipelineResult[Out]:
        """Go on with a run here, taking it even from an owner that lives: for one that hangs.

        Whatever the old owner saves from then on is refused, so the step that it is at may be done twice.
        Raises RunNotFoundError (also of one that has saved nothing yet, which is left alone), RunEndedError, and what
        `run` raises.
        """
        result: PipelineResult[Out] = self._now(self._taken(run_id, by, reason, inline=True))
        return result

    def takeover_async(
        self, run_id: str, *, by: str | None = None, reason: str | None = None
    ) -> Coroutine[Any, Any, PipelineResult[Out]]:
        """Do what `takeover` does, as a coroutine."""
        return self._taken(run_id, by, reason, inline=False)

    def _retried(
        self, run_id: str, by: str | None, reason: str | None, *, wait: bool, inline: bool
    ) -> Coroutine[Any, Any, PipelineResult[Out]]:
        async def send() -> None:
            await self._post.order(run_id, "retry", by, reason)

        return self._execution(MISSING, run_id, None, wait=wait, inline=inline, known=True, before=send)

    def _taken(
        self, run_id: str, by: str | None, reason: str | None, *, inline: bool
    ) -> Coroutine[Any, Any, PipelineResult[Out]]:
        async def look() -> None:
            if await self._post.state(run_id) is None:  # its input is with its owner alone
                raise not_found(run_id)

        keeper = _TakingKeeper(self.backend, self._post.record("takeover", by, reason))
        return self._execution(MISSING, run_id, None, wait=False, inline=inline, known=True, keeper=keeper, before=look)


class _Edit:
    """An edit on its way: `check` finds out whether it can be made, `make` makes it."""

    def __init__(
        self, setup: Setup, backend: StateBackend, run_id: str, context: Mapping[str, Any] | None, output: Any
    ) -> None:
        self.keeper = Keeper(backend)
        self._setup, self._backend, self._run_id = setup, backend, run_id
        self._context, self._output = context, output
        self._before: State = {}

    async def check(self) -> None:
        """Raise what the edit is refused with."""
        self._setup.code.declare_types()
        self._before = await stored(self._backend, self.keeper, self._run_id)
        self._edited(self._before, 0)
        owner = await self._backend.owner(self._run_id)
        if owner is not None and owner.alive:
            raise RunInProgressError(
                f"Run {self._run_id!r} is being executed by {owner.who}.",
                hint="Pause it first, or wait for it.", run_id=self._run_id, owner=owner.who, since=owner.since,
            )  # fmt: skip

    async def make(self, message: Message) -> None:
        """Record the edit, claim the run, and save it changed, in the status that it was found in."""
        backend, run_id = self._backend, self._run_id
        seq = await backend.post(run_id, message)
        claim = await self.keeper.claim(run_id, described(self._before, message.at), now=message.at)
        if claim.fence is None:
            raise _ended(run_id, claim.state or self._before)
        try:
            if claim.state is None:
                raise not_found(run_id)
            status = await self._save(claim.state, seq, claim.fence)
        except BaseException:
            backend.abandon(run_id, claim.fence, refused=True)
            raise
        if status == "running" or self.keeper.lends:
            await backend.release(run_id, claim.fence)

    async def _save(self, state: State, seq: int, fence: int) -> str:
        backend, run_id, same = self._backend, self._run_id, state["rev"] == self._before["rev"]
        if not same and state["current_step_index"] != self._before["current_step_index"]:
            raise InvalidChangeError(f"Run {run_id!r} has gone on meanwhile.", hint="Look at it again.", run_id=run_id)
        saved = await backend.load_at(run_id, state["rev"]) if isinstance(backend, Reading) else None
        status: str = (saved or state)["status"]
        while True:
            mail = await backend.mail(run_id, after=state["mail_seen"])
            after = {**self._edited(read(state, mail), seq), "status": status, "fence": fence}
            if status == "paused":
                others = any(found.kind not in RECORDS for found in mail)
                due = self._before["due_at"] if same else state["due_at"]
                after["due_at"] = self._setup.clock.now() if others else due  # somebody has to act on what they say
            try:
                await self.keeper.save(after)
                return status
            except UnreadMailError:
                continue

    def _edited(self, state: State, seq: int) -> State:
        if is_over(state) or state["phase"] is not None:
            raise _ended(self._run_id, state)
        code, carried, _ = standing(self._setup.code, self._setup.contexts, state, self.keeper.codec)
        if carried is not state:
            code = self._setup.code.route(state).source or code
        if in_doubt(state):
            raise InvalidChangeError(
                f"It is not known whether the step that run {self._run_id!r} was at has happened.",
                hint="Find that out first, by going on with the run.", run_id=self._run_id,
            )  # fmt: skip
        if not self._context and self._output is MISSING:
            raise InvalidChangeError("There is nothing to change.", hint="Give `context` or `output`.")
        context = changed_context(self._setup.contexts, state, self._context) if self._context else KEEP
        output = KEEP if self._output is MISSING else self._new_output(state, code)
        return edited(state, seq, self._setup.clock.now(), context=context, output=output)

    def _new_output(self, state: State, code: Registered) -> Any:
        index, steps = state["current_step_index"], code.pipeline.steps
        why = ""
        if not index:
            why = "no step is done: what it started with is not to be changed. Start a new run"
        elif is_inside(state):
            why = f"step {steps[index].name!r} has begun with the old one. Fork it from there"
        if why:
            raise InvalidChangeError(
                f"The last output of run {self._run_id!r} cannot be changed: {why}.", run_id=self._run_id
            )
        return checked_output(self._run_id, steps[index - 1], self._output)


def _ended(run_id: str, state: State) -> RunEndedError:
    what = "is being undone" if state["phase"] == "undoing" else f"has ended ({state['status']})"
    return RunEndedError(
        f"Run {run_id!r} {what}, and cannot be changed.", hint="Fork it.", run_id=run_id, status=state["status"]
    )


class _TakingKeeper(Keeper):
    """Takes a run by force, once: whoever has it later is not robbed."""

    def __init__(self, backend: StateBackend, message: Message) -> None:
        super().__init__(backend)
        self._message: Message | None = message

    async def claim(self, run_id: str, new: NewRun, **options: Any) -> Claim:
        """Record the takeover, and claim the run even from a live owner."""
        message, self._message = self._message, None
        if message is None:
            return await super().claim(run_id, new, **options)
        if not self.lends:
            await self.backend.post(run_id, message)
            return await super().claim(run_id, new, force=True, **options)
        claim = await super().claim(run_id, new, force=True, **options)
        if claim.state is not None:  # its mailbox is a part of the state, which the next save saves
            _, changed = _statemail.posted(run_id, claim.state, message)
            claim.state[_statemail.KEY] = (changed or claim.state)[_statemail.KEY]
        return claim
