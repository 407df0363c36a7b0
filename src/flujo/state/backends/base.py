"""The port that every store implements: three methods, and capabilities that are whole or absent.

To write a backend, subclass `StateBackend` and implement `save_state`, `load_state` and `delete_state`. Such a
backend is correct: it is handed complete, JSON-ready states. What it lacks is what the capabilities give: its runs
are protected against a second owner within this process only, and each save writes the whole state.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flujo.errors import ConfigurationError, InvalidStateError, RunInProgressError
from flujo.state.backends import _statemail, overview
from flujo.state.backends.overview import Failure as Failure  # noqa: PLC0414  (part of the port)
from flujo.state.backends.overview import Owner as Owner  # noqa: PLC0414  (part of the port)
from flujo.state.backends.overview import Shape as Shape  # noqa: PLC0414  (part of the port)
from flujo.state.codec import Codec
from flujo.state.mail import Message
from flujo.state.models import StepRecord, as_moment, as_utc

State = dict[str, Any]
_fences = itertools.count(1)
_MOST = 1 << 60  # SQL counts in 64 bits, and adds a limit to an offset
UNFINISHED = ("running", "paused", "failed")
_POSTING_S = 10.0  # that somebody waits for a message that is being posted by this process


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """What a claim needs to know of a run that does not exist yet."""

    pipeline_id: str
    pipeline_name: str
    pipeline_version: str
    total_steps: int
    fingerprint: str
    input: Any
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The answer to a claim.

    Fields: `fence`, the token that every save must carry, or None where the run is settled (completed, cancelled,
    undone, or waiting) and was not claimed; `state`, the run's newest state, or None where none was saved yet. A
    backend with the Reading capability leaves `step_history` empty there and says in `history_offset` how many records
    it has. `crashes` counts the owners that died since the last save; `unread` says that there are messages which the
    run has not read.
    """

    fence: int | None
    state: State | None
    crashes: int = 0
    unread: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run in a listing, without its payloads. `due_at` is when a paused run is to go on, if by itself."""

    run_id: str
    pipeline_id: str
    pipeline_name: str
    pipeline_version: str
    status: str
    current_step_index: int
    total_steps: int | None
    error_message: str | None
    created_at: datetime
    updated_at: datetime
    execution_time_ms: float = 0.0
    due_at: datetime | None = None


def settled(
    status: str, due_at: datetime | None, now: datetime, phase: str | None = None, *, unread: bool = False
) -> bool:
    """Return whether a run has nothing to do now: it is over (a failed one: if it was undone), or waits for somebody.

    Arguments are of its newest state: `status`, `due_at` and `phase`; `unread`: it has mail that it has not read.
    """
    if status == "paused":
        return not unread and (due_at is None or as_utc(due_at) > now)
    return status in ("completed", "cancelled") or (status == "failed" and phase == "undone")


class StateBackend(ABC):
    """A store of workflow states. A subclass implements the three abstract methods.

    `codec` is the codec that the backend stores values with: it is handed them as they are, and what the codec cannot
    restore it refuses. A backend without one (None) is handed states whose payloads are plain JSON data, with tags
    where a value needs one, so it may keep them in any form that keeps JSON; times are datetimes in either case, and
    may come back as ISO text. `step_history` is the whole history, unless the backend has the Reading capability.
    `flujo.testing.BackendSuite` tests all of this.
    """

    codec: Codec | None = None

    @abstractmethod
    async def save_state(self, run_id: str, state: State) -> None:
        """Save `state` as the newest state of the run; return when it is as durable as the backend promises.

        `state` is a fresh dict. With `state["fence"]` the save succeeds only for the owner that drew that fence
        (else FencedError, and nothing is written). Whatever this raises stops the run.
        """

    @abstractmethod
    async def load_state(self, run_id: str) -> State | None:
        """Return the newest state of the run, as a copy that is the caller's, or None where there is none.

        What cannot be read is an error, never None.
        """

    @abstractmethod
    async def delete_state(self, run_id: str) -> None:
        """Forget the run; nothing happens where there is none."""

    # Owning: here within this process and this object only. A backend with claims of its own overrides these five
    # methods together. Its save_state then accepts save number `rev` of the owner with `fence` only after save
    # rev - 1, or if it is the newest save once more; frees the run with a status other than `running`; and refuses a
    # save without a fence, as delete_state refuses, with RunInProgressError while a live owner has the run.

    async def claim(
        self, run_id: str, new: NewRun, *, now: datetime, force: bool = False, inline: bool = False
    ) -> Claim:
        """Become the run's only owner, unless it is settled or a live owner has it.

        Arguments: `new` describes the run in case it does not exist; `now` is the time to compare timers with;
        `force` takes the run even from a live owner, whose saves are refused from then on; `inline` permits this
        claim's saves to block the calling thread (its event loop has nothing else to do).
        Raises RunInProgressError.
        """
        fence = next(_fences)
        await self._enter(run_id, fence, "Wait for it with run(..., wait=True), or use another run_id.", force=force)
        try:
            state = await (self.load_at(run_id) if isinstance(self, Reading) else self.load_state(run_id))
            given: object = state
            if given is not None and not isinstance(given, Mapping):
                raise InvalidStateError(
                    f"What the backend has of run {run_id!r} is no state, but a {type(given).__name__}.",
                    hint="load_state returns the dict that save_state was given, or None.",
                    run_id=run_id,
                )
            unread = state is not None and _statemail.unread(run_id, state)
            if state is None or not settled(
                state.get("status", "running"), as_moment(state.get("due_at")), now, state.get("phase"), unread=unread
            ):
                return Claim(fence=fence, state=state, unread=unread)
        except BaseException:
            self.abandon(run_id, fence)
            raise
        self.abandon(run_id, fence)
        return Claim(fence=None, state=state, unread=unread)

    async def release(self, run_id: str, fence: int) -> None:
        """Give the run back as it was last saved; nothing happens where the fence is an old one."""
        self.abandon(run_id, fence)

    def abandon(self, run_id: str, fence: int, *, refused: bool = False) -> None:
        """Release without waiting for it: what a finalizer can do.

        `refused` says that the run was not taken up: it gets the status back that it was found in.
        """
        owned = self._owned()
        if owned.get(run_id) == fence:
            del owned[run_id]

    async def owner(self, run_id: str) -> Owner | None:
        """Return who has the run, also one that is dead and was not replaced yet; None where nobody has it."""
        token = self._owned().get(run_id, 0)
        return Owner("this process", None, True) if token > 0 else None

    def holds(self, run_id: str, fence: int) -> bool:
        """Return False where this process knows already that the fence is an old one."""
        return self._owned().get(run_id) == fence

    def _owned(self) -> dict[str, int]:
        owned: dict[str, int] = self.__dict__.setdefault("_flujo_owned", {})
        return owned

    async def _enter(self, run_id: str, token: int, hint: str, *, force: bool = False) -> None:
        """Take the run for this process's `token`, which for a post is below 0: one is over in a moment."""
        owned = self._owned()
        until = time.monotonic() + _POSTING_S
        while (holder := owned.setdefault(run_id, token)) != token:
            if holder > 0 and force:
                owned[run_id] = token
                return
            if holder > 0 or time.monotonic() > until:
                raise RunInProgressError(f"Run {run_id!r} is being executed in this process.", hint=hint, run_id=run_id)
            await asyncio.sleep(0.001)

    # Mail: here it lies in the state, under `mail`, and can be posted only while nobody executes the run. A backend
    # with claims of its own has a mailbox of its own: it overrides these three methods; `claim` says `unread` and does
    # not take a paused run with unread mail for settled; and save_state refuses with UnreadMailError, writing nothing
    # and leaving the claim as it was, an owner's save that has `guard` or the status `paused`, where the run has mail
    # with a number above the `mail_seen` that is to be saved.

    async def post(self, run_id: str, message: Message) -> int:
        """Store a message to the run durably, and return its number: they count up, in the order of their storing.

        An id is stored once: the same message again gives the earlier one's number, and an answer is refused. A paused
        run is due from then on. Raises RunNotFoundError, MessageRefusedError, RunEndedError; here also
        RunInProgressError, while somebody executes the run.
        """
        if type(self).claim is not StateBackend.claim:
            raise ConfigurationError(
                f"{type(self).__name__} has claims of its own, but no mailbox.",
                hint="Override post and mail along with claim: only the backend knows who executes a run.",
            )
        token = -next(_fences)
        hint = "This backend has no mailbox of its own: post again when nobody executes the run."
        await self._enter(run_id, token, hint)
        try:
            state = await self.load_state(run_id)
            if state is None:
                raise _statemail.not_found(run_id)
            seq, changed = _statemail.posted(run_id, state, message)
            if changed is not None:
                await self.save_state(run_id, changed)
            return seq
        finally:
            self.abandon(run_id, token)

    async def mail(self, run_id: str, *, after: int = 0, limit: int | None = None) -> list[Message]:
        """Return the run's messages with a number above `after`, in their order; none where there is no such run.

        Raises StateCorruptedError.
        """
        check_page(after=after, limit=limit)
        state = await self.load_state(run_id)
        return [] if state is None else _statemail.page(_statemail.messages(run_id, state), after, limit)

    def watch(self, run_id: str, fence: int, wake: Callable[[], None]) -> None:  # noqa: B027  (none comes meanwhile)
        """Ask to be woken when a message comes to a run that this process has claimed.

        `wake` is called from any thread, within about 0.3 s of the posting, by whichever process; maybe also more
        often than that, and for nothing.
        """

    async def close(self) -> None:  # noqa: B027  (a backend that holds nothing open has nothing to do)
        """Close what the backend holds open; using it afterwards is an error."""


class Reading(ABC):
    """The capability to read parts of a run: saves then carry only what is new, and resuming reads only the head."""

    @abstractmethod
    async def history(
        self, run_id: str, *, after: int = 0, limit: int | None = None, strict: bool = False
    ) -> list[StepRecord]:
        """Return the run's step records in the order they were saved, without the first `after`.

        A stored type that this process does not know is plain data, or with `strict`, as a runner wants it that is
        to go on with these records, an UnknownTypeError. What it costs depends on what comes after, not on the run.
        Raises ConfigurationError for a number below 0.
        """

    @abstractmethod
    async def load_at(self, run_id: str, rev: int | None = None, *, head: bool = True) -> State | None:
        """Return the state as it was after save number `rev` (None: the newest), or None where there is none.

        With `head` its `step_history` is left empty; `history_offset` says how many records there are.
        """

    @abstractmethod
    async def list_runs(
        self,
        where: Mapping[str, str] | None = None,
        *,
        limit: int = 100,
        offset: int = 0,
        after: str | None = None,
        since: datetime | None = None,
    ) -> list[RunSummary]:
        """Return runs, the most recently updated first, without payloads.

        Arguments: `where` maps `status`, `pipeline_id`, `pipeline_name` or `error` (the whole of what a run has failed
        of, as its summary says) to the value wanted; `after` is the run_id that the page
        before ended with (quicker than `offset` on the hundredth page); `since`, the oldest update that counts.
        An update is a claim or a change of status. Raises ConfigurationError for a `where` of another name, and for
        a number below 0.
        """

    @abstractmethod
    async def count_runs(self, where: Mapping[str, str] | None = None, *, by: str = "status") -> dict[str, int]:
        """Return how many runs there are, by `status`, `pipeline_id` or `pipeline_name`."""

    async def failures(self, limit: int = 20) -> list[Failure]:
        """Return what runs failed of, the newest first, of the newest 10,000 that have failed.

        Failures of one type are alike if their texts are but for numbers, ids and paths: see `overview.alike`.
        """
        check_page(limit=limit)
        failed = await self.list_runs({"status": "failed"}, limit=overview.MOST_FAILURES)
        return overview.grouped([(run.run_id, run.error_message, run.updated_at) for run in failed], limit)

    async def shapes(self) -> list[Shape]:
        """Return which code the unfinished runs need: those that are running, paused or failed, the most runs first."""
        found: list[tuple[tuple[str, str, str, str | None], str]] = []
        for status in UNFINISHED:
            last: str | None = None
            while page := await self.list_runs({"status": status}, after=last):
                last = page[-1].run_id
                for run in page:
                    state = await self.load_at(run.run_id) or {}
                    facts = (run.pipeline_id, run.pipeline_name, run.pipeline_version, state.get("fingerprint"))
                    found.append((facts, run.run_id))
        return overview.counted(found)

    async def rev_at_index(self, run_id: str, index: int) -> int | None:
        """Return the number of the save after which the run stood before its step `index` (from 0), before anything
        of that step was saved; 0 for the first step, and None where the run has not come that far.
        """
        newest = await self.load_at(run_id)
        if newest is None or not 0 <= index <= newest["current_step_index"]:
            return None
        low, high = 0, newest["rev"]
        while index and high - low > 1:
            middle = (low + high) // 2
            state = await self.load_at(run_id, middle)
            if state is not None and state["current_step_index"] >= index:
                high = middle
            else:
                low = middle
        return high if index else 0

    async def fork(
        self,
        run_id: str,
        rev: int,
        new: str,
        *,
        changes: Mapping[str, Any] | None = None,
        message: Message | None = None,
    ) -> None:
        """Make a run `new` that has come as far as `run_id` had after save `rev` (0: nowhere), and that nobody has.

        Its history up to there is a reference to the other's, and stays when that is deleted. It is all or nothing.
        Arguments: `changes`, fields of its first own state that differ (`pipeline_context`, `last_step_output`);
        `message`, put into its mailbox as one that it has read. Its state says `forked_from` (a run_id and a rev) and
        `inherited`, how many of its records are the other's: these are not its to undo.
        Raises RunNotFoundError, RunExistsError; ConfigurationError where the backend cannot do it.
        """
        raise ConfigurationError(
            f"{type(self).__name__} cannot fork a run from an older save.",
            hint="Use SQLiteBackend, or override `fork`: see flujo.state.backends.base.Reading.",
        )


def check_page(**numbers: int | None) -> None:
    """Raise ConfigurationError where `limit`, `offset` or `after` is no count of anything; None is no limit."""
    for name, number in numbers.items():
        if number is not None and (type(number) is not int or not 0 <= number <= _MOST):
            raise ConfigurationError(f"{name} is {number!r}.", hint="Give a whole number, 0 or more.")


def utc_now() -> datetime:
    """Return the machine's time, for what is not part of a run."""
    return datetime.now(UTC)
