"""Messages to a run, what a run waits for, and which messages it can take.

Everything that comes to a run from outside is a message in its mailbox. What the run waits for is saved with its state,
under `waiting`, as plain JSON data; None where there is nothing to say:

waits   what it waits for, a list; see `Wait`
kept    the numbers of messages that were read and are not used yet: early signals, votes of a quorum
held    who paused it from outside: {"by", "reason", "at"}
cancel  who cancelled it, likewise
limits  time limits that ran when the run was paused: the path of the step, and when it runs out
last    how the newest wait for an answer ended: {"wait": its token, "how": "answered" or "expired", "by"}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict

from flujo._ids import path_text
from flujo.errors import (
    AlreadyAnsweredError,
    AnswerTooLateError,
    MailboxFullError,
    MessageRefusedError,
    NoVoteError,
    RunEndedError,
    RunNotFailedError,
    RunNotWaitingError,
)

MAX_UNUSED = 1000  # messages that are stored and not used yet
RECORDS = frozenset({"fork", "edit", "retry", "takeover"})  # kinds that say what was done: the run uses none of them
Waiting = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message to a run.

    id       unique within the run: the same one again is the same message
    kind     "answer", "signal", "cancel", "pause" or "resume"; or a record of what somebody did: "fork", "edit",
             "retry" or "takeover"
    name     of a signal: its name; of an answer: the token of the wait that it is for
    payload  the answer, the signal's content or the edit, as the codec encodes it: JSON
    by       who sent it
    reason   why
    at       when
    seq      its place in the store's order; 0 before it is stored
    """

    id: str
    kind: str
    name: str = ""
    payload: bytes | None = None
    by: str | None = None
    reason: str | None = None
    at: datetime
    seq: int = 0

    @property
    def author(self) -> dict[str, Any]:
        """Who, why and when, as it is saved."""
        return {"by": self.by, "reason": self.reason, "at": self.at.isoformat()}


class Wait(TypedDict, total=False):
    """What a step waits for, as it is saved. Times are whole microseconds since 1970.

    kind     "human", "signal", "sleep", "retry" (the time for another attempt), "crash" (a verdict on a step in doubt)
    path     the step's
    n        the number of the save after which it began, so that a step that waits again waits for something new
    since, until
             when it began, and when it is over (None: never)
    message, schema
             what the person is told, and the JSON schema of the answer
    quorum, voters
             how many answers it takes, and who may answer (None: anybody)
    signal   the signal's name
    expired  its time is over: no answer counts any more
    tries    of a retry: attempts made by this call of the step
    """

    kind: str
    path: list[str]
    n: int
    since: int
    until: int | None
    message: str
    schema: Any
    quorum: int
    voters: list[str] | None
    signal: str
    expired: bool
    tries: int


def token(wait: Wait) -> str:
    """Return what answers to that wait carry as their name: its path and number."""
    return f"{path_text(tuple(wait['path']))}@{wait['n']}"


def waits_of(waiting: Waiting | None) -> list[Wait]:
    """Return what is waited for."""
    return list((waiting or {}).get("waits") or ())


def answer_id(wait: Wait, by: str | None) -> str:
    """Return the id of an answer: one a wait, or with a quorum one a voter. It begins with `token(wait)` and "/"."""
    return f"{token(wait)}/{by if wait.get('quorum', 1) > 1 else ''}"


def refusal(
    run_id: str,
    status: str,
    phase: str | None,
    waiting: Waiting | None,
    message: Message,
    earlier: Callable[[str], Sequence[Message]],
) -> MessageRefusedError | RunEndedError | None:
    """Return why the run cannot take the message, or None where it can.

    Arguments are of its newest state; `earlier` gives the messages that it has whose id begins with a text.
    """
    over = status in ("completed", "cancelled") or phase in ("undoing", "undone")
    if message.kind == "answer":
        return _answer_refusal(run_id, status, over, waiting, message, earlier)
    goes_on = phase == "undoing" and status not in ("completed", "cancelled")
    if over and not (goes_on and message.kind in ("cancel", "retry", "takeover")):
        what = "is being undone" if phase == "undoing" else f"has ended ({status})"
        return RunEndedError(
            f"Run {run_id!r} {what}, and takes no {message.kind} any more.",
            hint="What it did can only be taken back by another run.", run_id=run_id, status=status,
        )  # fmt: skip
    if message.kind == "retry" and status != "failed":
        return RunNotFailedError(
            f"Run {run_id!r} is {status}; it has not failed.", hint="Go on with it by `run`.",
            run_id=run_id, status=status,
        )  # fmt: skip
    return _order_refusal(run_id, status, message.kind, earlier)


def _order_refusal(
    run_id: str, status: str, kind: str, earlier: Callable[[str], Sequence[Message]]
) -> MessageRefusedError | None:
    if kind == "pause" and status == "failed":
        return RunNotWaitingError(
            f"Run {run_id!r} has failed, so it cannot be paused.",
            hint="It goes on only if somebody runs it again with the same run_id.", run_id=run_id, status=status,
        )  # fmt: skip
    if kind == "resume" and _last(earlier("pause/")) <= _last(earlier("resume/")):
        return RunNotWaitingError(
            f"Run {run_id!r} ({status}) was not paused by anybody.",
            hint="Answer what it waits for, if it does; else run it again with the same run_id.",
            run_id=run_id, status=status,
        )  # fmt: skip
    return None


def _last(messages: Sequence[Message]) -> int:
    return max((message.seq for message in messages), default=0)


def too_many(run_id: str, unused: int) -> MailboxFullError | None:
    """Return why a run with that many unused messages takes no signal, or None where it does."""
    if unused < MAX_UNUSED:
        return None
    return MailboxFullError(
        f"Run {run_id!r} holds {unused} messages that nothing has waited for yet.",
        hint="Send no more signals than the pipeline waits for.", run_id=run_id, limit=MAX_UNUSED,
    )  # fmt: skip


def _answer_refusal(
    run_id: str,
    status: str,
    over: bool,
    waiting: Waiting | None,
    message: Message,
    earlier: Callable[[str], Sequence[Message]],
) -> MessageRefusedError | None:
    wait = next((wait for wait in waits_of(waiting) if token(wait) == message.name), None)
    last = (waiting or {}).get("last") or {}
    if wait is not None and wait.get("expired"):
        return too_late(run_id)
    if wait is None or over or status == "failed":
        if last.get("wait") == message.name:
            return too_late(run_id) if last["how"] == "expired" else already_answered(run_id, last.get("by"))
        return not_waiting(run_id, status)
    by, voters = message.by, wait.get("voters")
    given = earlier(message.name + "/")
    if wait.get("quorum", 1) > 1 and by is None:
        return no_vote(run_id, by, "has a quorum, so an answer has to say who gives it")
    if voters is not None and by not in voters:
        return no_vote(run_id, by, f"may be answered by {', '.join(voters)}, and not by {by!r}")
    if len(given) >= wait.get("quorum", 1):
        return already_answered(run_id, given[-1].by)
    if any(other.id == message.id for other in given):
        return no_vote(run_id, by, f"has an answer by {by!r} already")
    return None


def not_waiting(run_id: str, status: str, why: str = "") -> RunNotWaitingError:
    """Return the error of an answer to a run that waits for none."""
    return RunNotWaitingError(
        f"Run {run_id!r} ({status}) does not wait for this answer{why}.",
        hint="`result.waiting` says what a run waits for.", run_id=run_id, status=status,
    )  # fmt: skip


def already_answered(run_id: str, by: str | None) -> AlreadyAnsweredError:
    """Return the error of an answer that comes second."""
    return AlreadyAnsweredError(
        f"Run {run_id!r} has been answered{f' by {by}' if by else ''}.",
        hint="An answer cannot be changed; the run goes on with it.", run_id=run_id, by=by,
    )  # fmt: skip


def too_late(run_id: str) -> AnswerTooLateError:
    """Return the error of an answer after its time."""
    return AnswerTooLateError(
        f"The time for answering run {run_id!r} had run out.",
        hint="The run goes on as its `on_timeout` says.", run_id=run_id,
    )  # fmt: skip


def no_vote(run_id: str, by: str | None, why: str) -> NoVoteError:
    """Return the error of somebody who cannot answer."""
    return NoVoteError(
        f"What run {run_id!r} waits for {why}.", hint="Say who answers with `by=`.", run_id=run_id, by=by
    )
