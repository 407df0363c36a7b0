"""Why a run does not move, as far as its own state says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from flujo._clock import moment
from flujo._ids import path_text
from flujo.engine.waits import is_held
from flujo.state.mail import Wait, waits_of
from flujo.state.models import as_moment

State = dict[str, Any]
_FIRST = {"human": 0, "crash": 0, "signal": 1}
_TIME = "%Y-%m-%d %H:%M:%S UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """The one reason why a run does not move.

    code  stable: "completed", "failed", "cancelled", "undone" (it is over, or was left); "held", "waits-for-person",
          "waits-for-signal", "sleeps", "retries", "in-doubt" (it waits); "owned", "slow" (somebody executes it);
          "free", "unread", "deadline" (nobody does: run it again); "version-missing", "pipeline-missing",
          "pipeline-changed", "other-pipeline", "migration" and the other codes of a `Plan` (it does not fit the code)
    text  that as a sentence, with the facts
    hint  what to do
    data  the facts: times are datetimes
    """

    run_id: str
    code: str
    text: str
    hint: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.text} {self.hint}".rstrip()


def ended(state: State) -> Why | None:
    """Return why a run that is over does not move, or None where it is not."""
    run_id, status, at = state["run_id"], state["status"], state["updated_at"]
    data = {"since": at, "error": shown_error(state)}
    if state["phase"] == "undone" and status == "failed":
        why = f"Run {run_id!r} failed and was undone, {told(at)}{_of(state)}."
        return Why(run_id=run_id, code="undone", text=why, hint="It is final: start a new run.", data=data)
    if status == "cancelled":
        who = (state["waiting"] or {}).get("cancel") or {}
        data |= {"by": who.get("by"), "reason": who.get("reason")}
        undone = " and was undone" if state["phase"] == "undone" else ""
        why = f"Run {run_id!r} was cancelled{by(who)}{undone}, {told(at)}."
        return Why(run_id=run_id, code="cancelled", text=why, hint="It is final: start a new run.", data=data)
    if status == "completed":
        why = f"Run {run_id!r} has completed, {told(at)}."
        return Why(run_id=run_id, code="completed", text=why, hint="Running it again gives its result.", data=data)
    return None


def left(state: State, now: datetime, unread: int) -> Why:
    """Return why a run that nobody executes, and that fits the code, does not move.

    Arguments: `unread`, how many messages it has not read.
    """
    run_id, status, at = state["run_id"], state["status"], state["updated_at"]
    since = f"since {told(at)}"
    again = f"Run it again: run(run_id={run_id!r}), or let a worker do so."
    deadline = state["deadline"]
    if deadline is not None and deadline <= now and state["phase"] is None:
        text = f"The deadline of run {run_id!r} has passed, {told(deadline)}."
        hint = "Run it again with another `deadline` to go on."
        return Why(run_id=run_id, code="deadline", text=text, hint=hint, data={"deadline": deadline})
    if unread and status != "running":
        count = "A message has" if unread == 1 else f"{unread} messages have"
        text = f"{count} come to run {run_id!r} ({status} {since}) that nobody has read."
        return Why(run_id=run_id, code="unread", text=text, hint=again, data={"unread": unread, "since": at})
    if status == "failed":
        while_undoing = " while it was being undone" if state["phase"] == "undoing" else ""
        text = f"Run {run_id!r} failed{while_undoing}, {told(at)}{_of(state)}."
        hint = "Mend what is wrong, then run it again: it tries the failed step again."
        return Why(run_id=run_id, code="failed", text=text, hint=hint, data={"error": shown_error(state), "since": at})
    waiting = _waiting(state, now) if status == "paused" else None
    if waiting is not None:
        return waiting
    due = as_moment(state["due_at"])
    what = f"has been due since {told(due)}" if due is not None and status == "paused" else f"has stood still {since}"
    text = f"Run {run_id!r} {what}, and nobody executes it."
    return Why(run_id=run_id, code="free", text=text, hint=again, data={"since": due or at, "unread": unread})


def _waiting(state: State, now: datetime) -> Why | None:
    """Return what a paused run waits for; None where the time that it waited for has come."""
    run_id, held = state["run_id"], (state["waiting"] or {}).get("held")
    if held and is_held(state):
        at = as_moment(held["at"])
        text = f"Run {run_id!r} was paused{by(held)}{f', {told(at)}' if at else ''}."
        data = {"by": held["by"], "reason": held["reason"], "since": at}
        return Why(run_id=run_id, code="held", text=text, hint=f"Go on with resume({run_id!r}).", data=data)
    waits, due = waits_of(state["waiting"]), state["due_at"]
    if not waits or (due is not None and due <= now):
        return None
    return _wait(run_id, min(waits, key=lambda wait: (_FIRST.get(wait["kind"], 2), wait.get("until") or 0)), len(waits))


def _wait(run_id: str, wait: Wait, count: int) -> Why:
    kind, where = wait["kind"], path_text(tuple(wait["path"]))
    since, end = moment(wait["since"]), wait.get("until")
    until = None if end is None else moment(end)
    data: dict[str, Any] = {"step": where, "since": since, "until": until, "waits": count}
    others = f" (and for {count - 1} other{'s' if count > 2 else ''})" if count > 1 else ""
    limit = f", until {told(until)} at the latest" if until else ""
    answer = f"Answer with resume({run_id!r}, ..., by=...)."
    if kind == "human":
        voters, quorum = wait.get("voters"), wait.get("quorum", 1)
        data |= {"message": wait.get("message"), "voters": voters, "quorum": quorum}
        who = f"{quorum} of {', '.join(voters)}" if voters and quorum > 1 else " or ".join(voters or ("a person",))
        text = f"waits at {where!r} for {who}: {wait.get('message')} Since {told(since)}{limit}{others}."
        return Why(run_id=run_id, code="waits-for-person", text=f"Run {run_id!r} {text}", hint=answer, data=data)
    if kind == "crash":
        data["message"] = wait.get("message")
        text = f"Run {run_id!r} waits at {where!r} for a verdict since {told(since)}: {wait.get('message')}"
        return Why(run_id=run_id, code="in-doubt", text=text, hint=answer, data=data)
    if kind == "signal":
        data["signal"] = wait["signal"]
        text = f"Run {run_id!r} waits at {where!r} for signal {wait['signal']!r} since {told(since)}{limit}{others}."
        hint = f"Send it: signal({run_id!r}, {wait['signal']!r}, ...)."
        return Why(run_id=run_id, code="waits-for-signal", text=text, hint=hint, data=data)
    if kind == "retry":
        data |= {"error": wait.get("message"), "tries": wait.get("tries")}
        tries = wait.get("tries", 1)
        after = f"{tries} attempt{'s' if tries > 1 else ''}"
        text = f"Run {run_id!r} tries {where!r} again {told(until)}, after {after}: "
        return Why(run_id=run_id, code="retries", text=f"{text}{wait.get('message')}.", hint=_NEXT, data=data)
    text = f"Run {run_id!r} sleeps at {where!r} until {told(until)}{others}."
    return Why(run_id=run_id, code="sleeps", text=text, hint=_NEXT, data=data)


_NEXT = "It goes on with the first `run` after that, or by a worker."


def shown_error(state: State) -> str | None:
    """Return what the run failed of."""
    error = state["error"]
    if isinstance(error, Mapping) and "type" in error:
        return f"{error['type']}: {error.get('text', '')}".removesuffix(": ")
    return str(error) if error else None


def by(author: Mapping[str, Any]) -> str:
    """Say who ordered it, and why."""
    who, reason = author.get("by"), author.get("reason")
    return (f" by {who}" if who else "") + (f" ({reason})" if reason else "")


def told(at: datetime | None) -> str:
    """Print a time."""
    return "some time" if at is None else at.strftime(_TIME)


def _of(state: State) -> str:
    error = shown_error(state)
    return f": {error}" if error else ""
