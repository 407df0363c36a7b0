"""A mailbox that lies in the state, under the key `mail`: that of a backend which implements three methods only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from flujo.errors import InvalidStateError, RunNotFoundError, StateCorruptedError
from flujo.state.mail import Message, refusal, too_many
from flujo.state.models import as_moment, as_utc, checked_state

KEY = "mail"


def messages(run_id: str, state: Mapping[str, Any]) -> list[Message]:
    """Return the messages that a loaded state holds, in their order; raises StateCorruptedError."""
    try:
        return [_message(entry) for entry in state.get(KEY) or ()]
    except (TypeError, ValueError, KeyError, AttributeError, InvalidStateError) as error:
        raise StateCorruptedError(
            f"A message to run {run_id!r} cannot be read ({error!r}).",
            hint="Restore the state from a backup, or delete this run and start it again.",
            run_id=run_id,
        ) from error


def unread(run_id: str, state: Mapping[str, Any]) -> bool:
    """Return whether the state holds a message that its run has not read."""
    return any(message.seq > seen_of(state) for message in messages(run_id, state)[-1:])


def posted(run_id: str, state: Mapping[str, Any], message: Message) -> tuple[int, dict[str, Any] | None]:
    """Return the number that the message has in the state, and the state with it (None: it was there already).

    Raises what the run refuses it with.
    """
    checked, there = checked_state(run_id, state), messages(run_id, state)
    status, waiting, seen = checked["status"], state.get("waiting"), seen_of(state)
    earlier = next((m for m in there if m.id == message.id), None) if message.kind != "answer" else None
    if earlier is not None and message.kind != "cancel":  # that a run has ended counts for more
        return earlier.seq, None
    error: Exception | None = refusal(
        run_id,
        status,
        state.get("phase"),
        waiting,
        message,
        lambda prefix: [m for m in there if m.id.startswith(prefix)],
    )
    if error is None and message.kind == "signal":
        error = too_many(run_id, sum(m.seq > seen for m in there) + kept_of(waiting))
    if error is not None:
        raise error
    if earlier is not None:
        return earlier.seq, None
    seq = max(seen, *(m.seq for m in there[-1:]), 0) + 1
    checked[KEY] = [*(state.get(KEY) or ()), _entry(message, seq)]
    if status == "paused":
        checked["due_at"] = sooner(checked["due_at"], message.at)
    return seq, checked


def seen_of(state: Mapping[str, Any]) -> int:
    """Return the number of the newest message that the run has read."""
    return int(state.get("mail_seen") or 0)


def kept_of(waiting: Mapping[str, Any] | None) -> int:
    """Return how many messages were read and are not used yet."""
    return len((waiting or {}).get("kept") or ())


def sooner(due: datetime | None, at: datetime) -> datetime:
    """Return when a paused run is due to which somebody has written at `at`."""
    return as_utc(at) if due is None else min(as_utc(due), as_utc(at))


def not_found(run_id: str) -> RunNotFoundError:
    """Return the error of a message to nobody."""
    return RunNotFoundError(
        f"There is no run {run_id!r} to send a message to.", hint="Look for it with list_runs.", run_id=run_id
    )


def page(found: Sequence[Message], after: int, limit: int | None) -> list[Message]:
    """Return the messages after number `after`."""
    return [message for message in found if message.seq > after][:limit]


def _entry(message: Message, seq: int) -> dict[str, Any]:
    return {
        "seq": seq, "id": message.id, "kind": message.kind, "name": message.name,
        "payload": None if message.payload is None else message.payload.decode(),
        "by": message.by, "reason": message.reason, "at": as_utc(message.at).isoformat(),
    }  # fmt: skip


def _message(entry: Mapping[str, Any]) -> Message:
    payload, at = entry["payload"], as_moment(entry["at"])
    if at is None:
        raise ValueError("it has no time")
    return Message(
        seq=entry["seq"], id=entry["id"], kind=entry["kind"], name=entry["name"],
        payload=None if payload is None else payload.encode(), by=entry["by"], reason=entry["reason"], at=at,
    )  # fmt: skip
