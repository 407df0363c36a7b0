"""What the step under way waits for: waits begin, are saved, and come to their end by a message or by the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import Any

from flujo import _ids
from flujo._clock import micros
from flujo.engine import Act, Met, Path, closed, expired, opened, put_off, wait_at
from flujo.errors import NonRetryableError, UnreadMailError, WaitTimeoutError
from flujo.pipeline import UNSET, AskPerson, AwaitSignal, Reconciled, Sleep
from flujo.runner.commits import Commits
from flujo.runner.mailbox import Mailbox
from flujo.runner.opening import Setup
from flujo.runner.performing import CLOCK_S, Outcome
from flujo.state.mail import Wait
from flujo.state.models import StepRecord, as_utc

_VERDICT = Reconciled.model_json_schema()


@dataclass(frozen=True, slots=True)
class Parked:
    """An act that waits."""

    act: Act
    wait: Wait


class Waits:
    """The waits of one top-level step, by path. All are in the state that is saved next, and most in the last one."""

    def __init__(self, setup: Setup, commits: Commits, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self.parked: dict[Path, Parked] = {}
        self._clock, self._commits = setup.clock, commits
        self._unknown = False  # some of them are not saved, so that nobody can answer

    def begin(self, act: Act) -> None:
        """Have a step that waits wait; one that did so before goes on."""
        if self.stands(act):
            return
        assert act.step is not None
        control, now = act.step.control, micros(self._clock.now())
        wait = Wait(kind=act.step.kind, path=list(act.path), n=self._commits.state["rev"], since=now, until=None)
        if isinstance(control, Sleep):
            wait["until"] = now + round(control.seconds * 1e6) if control.seconds is not None else _moment(control, act)
        elif isinstance(control, AwaitSignal | AskPerson):
            if control.timeout is not None:
                wait["until"] = now + round(control.timeout * 1e6)
            wait["schema"] = control.schema
            if isinstance(control, AwaitSignal):
                wait["signal"] = control.signal
            else:
                wait["message"] = _message(control, act)
                wait["quorum"] = control.quorum
                wait["voters"] = None if control.voters is None else list(control.voters)
        self._park(act, wait)

    def retry(self, act: Act, outcome: Outcome) -> None:
        """Have a step wait for its next attempt."""
        assert outcome.retry_in is not None
        state, why = self._commits.state, outcome.record.feedback or ""
        self._park(act, put_off(state, act.path, self._clock.now(), outcome.retry_in, why, outcome.tries))

    def ask_verdict(self, act: Act) -> None:
        """Have a person say whether a step had happened when its process died."""
        self._park(act, Wait(
            kind="crash", path=list(act.path), n=self._commits.state["rev"], since=micros(self._clock.now()),
            until=None, schema=_VERDICT,
            message=f"Step {_ids.path_text(act.path)!r} was begun, and its process died or was stopped. Did it happen?",
        ))  # fmt: skip

    def asks_verdict(self, act: Act) -> bool:
        """Return whether a person is asked already whether it had happened."""
        wait = wait_at(self._commits.state, act.path)
        return wait is not None and wait["kind"] == "crash"

    def stands(self, act: Act) -> bool:
        """Have it wait on, if the state says that it waits already; return whether it does."""
        wait = wait_at(self._commits.state, act.path)
        if wait is not None and act.path not in self.parked:
            self.parked[act.path] = Parked(act, wait)
        return wait is not None

    def _park(self, act: Act, wait: Wait) -> None:
        self.parked[act.path] = Parked(act, wait)
        self._commits.change(partial(opened, wait=wait))
        self._unknown = True

    def ended(self, busy: Container[Path]) -> list[tuple[Parked, Met]]:
        """Return, and forget, what has come to its end; not yet of paths at which something is still going on."""
        found = []
        for path, parked in list(self.parked.items()):
            how = self.mailbox.met(parked.wait) if path not in busy else None
            if how is not None:
                del self.parked[path]
                found.append((parked, how))
        return found

    def drop(self, path: Path) -> None:
        """That is not wanted any more."""
        self.parked.pop(path, None)
        if wait_at(self._commits.state, path) is not None:
            self._commits.change(partial(closed, path=path))

    def timer(self, wake: Callable[[], None]) -> asyncio.TimerHandle | None:
        """Have `wake` called when the first of them is due, or sooner: clocks are set."""
        times = [parked.wait["until"] for parked in self.parked.values() if parked.wait.get("until") is not None]
        left = [time for time in times if time is not None]
        if not left:
            return None
        delay = max(0.0, (min(left) - micros(self._clock.now())) / 1e6)
        return asyncio.get_running_loop().call_later(min(delay, CLOCK_S), wake)

    async def make_known(self) -> None:
        """Save waits that are not saved, while other things go on."""
        if self._unknown:
            self._unknown = False
            await self._commits.add(None)

    async def expire(self, parked: Parked) -> Met | None:
        """Save that no answer counts any more; where one has come in this very moment, return that instead."""
        while True:
            try:
                await self._commits.guarded(partial(expired, path=parked.act.path))
                return None
            except UnreadMailError:
                await self.mailbox.refresh()
                how = self.mailbox.met(parked.wait)
                if how is not None and not how.late:
                    return how

    def record(self, parked: Parked, how: Met) -> StepRecord:
        """Return the record of a wait that has ended; raises WaitTimeoutError."""
        act, wait = parked.act, parked.wait
        assert act.step is not None
        control = act.step.control
        latency = max(0.0, (micros(self._clock.now()) - wait["since"]) / 1e6)
        if isinstance(control, Sleep):
            return StepRecord(path=act.path, output=act.given, latency_s=latency)
        assert isinstance(control, AskPerson | AwaitSignal)
        if how.late:
            if control.on_timeout is UNSET:
                raise _timed_out(self._commits.state["run_id"], act, control)
            codec = self._commits.keeper.codec  # a copy: the declared value is not the run's to change
            output = codec.decode(codec.encode(control.on_timeout, "on_timeout"))
            return StepRecord(path=act.path, output=output, latency_s=latency)
        answers = [self.mailbox.content(message) for message in how.messages]
        listed = isinstance(control, AskPerson) and control.listed
        by = ", ".join(message.by for message in how.messages if message.by) or None
        return StepRecord(path=act.path, output=answers if listed else answers[0], latency_s=latency, by=by)


def _message(control: AskPerson, act: Act) -> str:
    text: Any = control.message(act.given) if callable(control.message) else control.message
    if not isinstance(text, str) or not text:
        raise NonRetryableError(f"The message of step {_ids.path_text(act.path)!r} is {text!r}, which is no text.")
    return text


def _moment(control: Sleep, act: Act) -> int:
    when: Any = control.until(act.given) if callable(control.until) else control.until
    if getattr(when, "tzinfo", None) is None:
        raise NonRetryableError(
            f"Step {_ids.path_text(act.path)!r} is to sleep until {when!r}, which is no time with a time zone."
        )
    return micros(as_utc(when))


def _timed_out(run_id: str, act: Act, control: AskPerson | AwaitSignal) -> WaitTimeoutError:
    what = "Nobody has answered" if isinstance(control, AskPerson) else f"No signal {control.signal!r} has come"
    return WaitTimeoutError(
        f"{what} for step {_ids.path_text(act.path)!r} within {control.timeout:g} s.",
        hint="Run it again with the same run_id to wait anew, or give the step an `on_timeout`.",
        run_id=run_id, step=_ids.path_text(act.path), timeout=control.timeout,
    )  # fmt: skip
