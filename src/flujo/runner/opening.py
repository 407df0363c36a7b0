"""How a run is taken up: which code it belongs to, whether it may go on, and who may have it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from flujo._clock import Clock
from flujo.engine import check_resumable, following, fresh, migrated, refused
from flujo.errors import (
    ConfigurationError,
    ContextMismatchError,
    FlujoError,
    RunInProgressError,
    RunNotFoundError,
)  # fmt: skip
from flujo.execution.context import ContextKind
from flujo.execution.current import CURRENT
from flujo.execution.events import Announcer
from flujo.execution.executors import Executors
from flujo.pipeline import Registered, fingerprint
from flujo.runner.code import Code
from flujo.runner.saving import Keeper
from flujo.state.backends.base import Claim, NewRun, State
from flujo.state.codec import Codec

_FIRST_LOOK_S, _LONGEST_S = 0.01, 0.25


class _Missing:
    def __repr__(self) -> str:
        return "no input"


MISSING: Any = _Missing()


class InputIgnoredWarning(UserWarning):
    """A run that exists was called with another input; it goes on with the one that it started with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all runs of one runner share."""

    code: Code
    contexts: ContextKind
    initial_context: BaseModel | Mapping[str, Any] | None
    announcer: Announcer
    clock: Clock
    max_crashes: int
    executors: Executors


@dataclass(frozen=True, slots=True, kw_only=True)
class Pristine:
    """A new run's input and context as they were before anything ran, encoded."""

    input: bytes
    context: dict[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A run that is ours (`fence`), or one that is settled (`fence` None).

    `carried` says that migrations have made the state, and that it is not saved as it is.
    """

    state: State
    code: Registered
    fence: Any
    crashes: int
    context: Any
    pristine: Pristine | None
    unread: bool
    carried: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a caller asks for: see `Flujo.run`.

    `inline`: saves may block the calling thread; `deadline`: when the run has to have ended; `known`: the run is not to
    be begun, since a message was sent to it; `attach`: whoever executes it is waited for.
    """

    run_id: str
    input: Any
    initial_context: BaseModel | Mapping[str, Any] | None
    wait: bool
    inline: bool
    deadline: datetime | None = None
    known: bool = False
    attach: bool = False


class Opening:
    """Takes one run up."""

    def __init__(self, setup: Setup, keeper: Keeper, request: Request) -> None:
        self._setup, self._keeper, self._request = setup, keeper, request

    async def open(self) -> Opened:
        """Claim the run, or find it settled.

        Raises RunInProgressError, ResumeError, ConfigurationError, StateError.
        """
        run_id, given = self._request.run_id, self._request.input
        self._setup.code.declare_types()
        try:
            code = self._setup.code.for_new()
        except FlujoError as error:
            code = await self._code_of_saved(error)
        new = NewRun(
            pipeline_id=code.pipeline_id, pipeline_name=code.name, pipeline_version=code.version,
            total_steps=len(code.pipeline.steps), fingerprint=fingerprint(code.pipeline),
            input=None if given is MISSING else given, created_at=self._setup.clock.now(),
        )  # fmt: skip
        claim = await self._claim(new)
        try:
            opened = self._new(code, new, claim) if claim.state is None else self._saved(claim, claim.state)
        except BaseException:
            if claim.fence is not None:
                self._keeper.backend.abandon(run_id, claim.fence, refused=True)
            raise
        return await self._save_migrated(opened) if opened.carried and opened.fence is not None else opened

    async def _save_migrated(self, opened: Opened) -> Opened:
        """Save what migrations have made of the run: what a failed step has changed is read back from the store."""
        state = {**following(opened.state, [], self._setup.clock.now()), "error": None}
        try:
            await self._keeper.save(state)
        except BaseException:  # it may be saved all the same
            self._keeper.backend.abandon(state["run_id"], opened.fence)
            raise
        return replace(opened, state=state, carried=False)

    async def _claim(self, new: NewRun) -> Claim:
        run_id, clock = self._request.run_id, self._setup.clock
        pause = _FIRST_LOOK_S
        current = CURRENT.get()
        while True:
            try:
                return await self._keeper.claim(run_id, new, now=clock.now(), inline=self._request.inline)
            except RunInProgressError as error:
                if current is not None and current.run_id == run_id:
                    raise RunInProgressError(
                        f"Step {current.name!r} of run {run_id!r} called run() for its own run.",
                        hint="A step cannot wait for the run that it is part of; give the inner one its own run_id.",
                        run_id=run_id,
                    ) from error
                if not self._request.attach:
                    raise
            await clock.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_S)

    async def _code_of_saved(self, error: FlujoError) -> Registered:
        """The version asked for is not there: that matters to a new run only."""
        stored = await self._keeper.backend.load_state(self._request.run_id)
        if stored is None:
            raise error
        return self._setup.code.for_state(stored)

    def _new(self, code: Registered, new: NewRun, claim: Claim) -> Opened:
        if self._request.known:  # it was deleted in this moment, or its process died before anything was saved
            raise not_found(self._request.run_id)
        setup, codec, steps = self._setup, self._keeper.codec, code.pipeline.steps
        setup.contexts.check(code.pipeline)
        setup.executors.check(code.pipeline)
        given = self._first_input(code, "does not exist")
        state = fresh(self._request.run_id, code, new.fingerprint, given, new.created_at)
        state["fence"], state["deadline"] = claim.fence, self._request.deadline
        context, encoded = None, {}
        initial = self._request.initial_context
        data = setup.initial_context if initial is None else initial
        if data or self._wants_context(code):
            encoded = codec.encode_fields(setup.contexts.values(setup.contexts.make(data)), "context")
            # Copies: what the caller gave stays the caller's, and what the first step changes is not saved before it
            # has come to its end, whatever else is.
            context = setup.contexts.restore({name: codec.decode(value) for name, value in encoded.items()})
            state["pipeline_context"] = {name: codec.decode(value) for name, value in encoded.items()}
        pristine = None
        if context is not None or steps[0].retry.max_retries:
            pristine = Pristine(input=codec.encode(given, "input"), context=encoded)
        return Opened(
            state=state, code=code, fence=claim.fence, crashes=claim.crashes, context=context, pristine=pristine,
            unread=claim.unread,
        )  # fmt: skip

    def _first_input(self, code: Registered, why: str) -> Any:
        """Return what the first step starts with, for a run that holds no input; raises ConfigurationError."""
        if self._request.input is not MISSING:
            return self._request.input
        first = code.pipeline.steps[0]
        if not first.takes_input:
            return None
        raise ConfigurationError(
            f"Run {self._request.run_id!r} {why}, and step {first.name!r} needs an input to start with.",
            hint="Call run(input, run_id=...).",
            run_id=self._request.run_id,
        )

    def _saved(self, claim: Claim, state: State) -> Opened:
        setup, given, stored = self._setup, self._request.input, state
        code, state, context = standing(setup.code, setup.contexts, stored, self._keeper.codec)
        setup.executors.check(code.pipeline)
        by_hand = stored["input"] is None and stored["fingerprint"] is None
        # What a migration has made of the input is not what anybody gives.
        if given is not MISSING and not by_hand and "input" not in (stored.get("migrated") or ()):
            self._compare_input(stored["input"], given)
        pristine = None
        fence = claim.fence
        if fence is not None and state["phase"] == "undone":  # it is final
            self._keeper.backend.abandon(state["run_id"], fence, refused=True)
            fence = None
        if fence is not None:
            state = {**state, "fence": fence, "status": "running", "total_steps": len(code.pipeline.steps)}
            passed = state["deadline"] is not None and state["deadline"] <= setup.clock.now()
            if passed and self._request.deadline is not None:
                state["deadline"] = self._request.deadline
            if by_hand and state["current_step_index"] == 0 and not self._request.known:
                state["input"] = self._first_input(code, "has no input")
                pristine = Pristine(input=self._keeper.codec.encode(state["input"], "input"), context={})
        return Opened(
            state=state, code=code, fence=fence, crashes=claim.crashes,
            context=context if context or self._wants_context(code) else None, pristine=pristine, unread=claim.unread,
            carried=state["pipeline_version"] != stored["pipeline_version"],
        )  # fmt: skip

    def _wants_context(self, code: Registered) -> bool:
        return self._setup.contexts.wanted_by(code.pipeline)

    def _compare_input(self, stored: Any, given: Any) -> None:
        codec = self._keeper.codec
        try:
            same = codec.encode(stored, "input") == codec.encode(given, "input") or bool(stored == given)
        except Exception:  # it cannot be saved, or compared
            same = False
        if not same:
            warnings.warn(
                f"Run {self._request.run_id!r} exists with another input, which it goes on with; "
                "the input given now is ignored. Use another run_id for another input.",
                InputIgnoredWarning,
                stacklevel=2,
            )


def standing(code: Code, contexts: ContextKind | None, stored: State, codec: Codec) -> tuple[Registered, State, Any]:
    """Return the code that a saved run goes on with, its state as that code finds it, and its context.

    The state is another one where migrations carry the run to a newer version. Nothing is read, written or claimed.
    Without `contexts` it is not looked at whether the context fits. Raises ResumeError, ConfigurationError.
    """
    route = code.route(stored)
    state = migrated(stored, route, codec) if route.migrations else stored
    check_resumable(state, route.code)
    if contexts is None:
        return route.code, state, None
    contexts.check(route.code.pipeline)
    try:
        return route.code, state, contexts.restore(state["pipeline_context"])
    except ContextMismatchError as error:
        if route.migrations:
            raise refused(stored, route, f"what it gives is not the context: {error.message}") from error
        error.data["run_id"] = state["run_id"]
        raise


def not_found(run_id: str) -> RunNotFoundError:
    """Return the error of a message to a run of which nothing is saved."""
    return RunNotFoundError(
        f"There is no run {run_id!r}: nothing of it is saved.",
        hint="Look for it with list_runs; one that has just begun is there from its first save on.",
        run_id=run_id,
    )
