"""The mailbox of a log-structured store: what posting and reading consist of, within one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from flujo._clock import micros, moment
from flujo.errors import ConfigurationError, UnreadMailError
from flujo.state.backends._loading import check_status, corrupted, rest_of, seen_of, verify
from flujo.state.backends._rows import LogRow, MailRow, RunRow, Tx, mail_sum
from flujo.state.backends._statemail import kept_of, sooner
from flujo.state.codec import Codec, Lenient
from flujo.state.mail import Message, refusal, too_many

_OURS = Codec()
_PAGE = 1000


def check(message: Message) -> None:
    """Raise ConfigurationError for a message that no store can hold."""
    texts = (message.id, message.kind, message.name, message.by, message.reason)
    try:
        to_json(texts)
        (message.payload or b"").decode()
    except ValueError as error:
        raise ConfigurationError(
            f"The message {message.id!a} cannot be stored ({error}).",
            hint="Text is Unicode without lone surrogates, and the payload is JSON.",
        ) from error


def post(tx: Tx, run: RunRow, message: Message) -> int:
    """Store the message and return its number, or that of the same one from before; raises what refuses it.

    Nothing is written before everything that can be refused is known.
    """
    tip = tx.newest(run.key)
    if tip is not None:  # what lets a message in or keeps it out is to be what was saved
        verify(tx, run, tip)
        check_status(tx, run, tip)
    there = tx.mail_of_id(run.key, message.id) if message.kind != "answer" else None
    if there is None or message.kind == "cancel":  # that a run has ended counts for more than that it was told to
        _refuse(tx, run, tip, message)
    if there is not None:
        return _checked(tx, run, there).seq
    newest = tx.newest_mail(run.key)
    seq = tx.next_mail(run.key, max(seen_of(tip), newest.seq if newest else 0))
    put(tx, run, seq, newest.sum if newest else b"", message)
    if run.status == "paused":
        tx.set_due(run.key, micros(sooner(moment(run.due_at) if run.due_at is not None else None, message.at)))
    return seq


def put(tx: Tx, run: RunRow, seq: int, before: bytes, message: Message) -> None:
    """Write the message under that number, after the one with checksum `before`."""
    facts = (
        seq, message.id, message.kind, message.name, message.payload, message.by, message.reason, micros(message.at)
    )  # fmt: skip
    tx.put_mail(run.key, MailRow._make((*facts, mail_sum(run.run_id, before, facts))))


def _refuse(tx: Tx, run: RunRow, tip: LogRow | None, message: Message) -> None:
    rest = rest_of(tip) if tip is not None else {}
    waiting: Mapping[str, Any] | None = _OURS.lift(rest.get("waiting"), strict=Lenient())
    error: Exception | None = refusal(
        run.run_id, run.status, rest.get("phase"), waiting, message,
        lambda prefix: [_message(_checked(tx, run, row)) for row in tx.mail_beginning(run.key, prefix)],
    )  # fmt: skip
    if error is None and message.kind == "signal":
        error = too_many(run.run_id, tx.count_mail(run.key, seen_of(tip)) + kept_of(waiting))
    if error is not None:
        raise error


def read(tx: Tx, run: RunRow, after: int, limit: int | None) -> list[Message]:
    """Return the messages after number `after`, each verified; raises StateCorruptedError."""
    found = tx.mail(run.key, after, limit)
    before = tx.mail_before(run.key, found[0].seq) if found else None
    for row in found:
        _check(run, before, row)
        before = row
    return [_message(row) for row in found]


def check_all(tx: Tx, run: RunRow) -> None:
    """Verify every message of the run; raises StateCorruptedError."""
    after = 0
    while found := read(tx, run, after, _PAGE):
        after = found[-1].seq


def is_unread(tx: Tx, run: RunRow, seen: int) -> bool:
    """Return whether there is mail with a number above `seen`."""
    return newest_of(tx, run.key) > seen


def newest_of(tx: Tx, key: int) -> int:
    """Return the number of the newest message, or 0."""
    newest = tx.newest_mail(key)
    return newest.seq if newest is not None else 0


def hasten(tx: Tx, run: RunRow, due: int | None, seen: int) -> None:
    """Let a run that was saved as paused by hand be due where it has mail that it has not read."""
    newest = tx.newest_mail(run.key)
    if newest is not None and newest.seq > seen:
        tx.set_due(run.key, newest.at if due is None else min(due, newest.at))


def unread(run_id: str, seen: int) -> UnreadMailError:
    """Return the error of a save that was to be made only if nobody has written to the run."""
    return UnreadMailError(
        f"The save of run {run_id!r} was not made: a message has come after number {seen}.",
        hint="Nothing was written. Read the mail, and save what follows from it.",
        run_id=run_id,
    )


def _checked(tx: Tx, run: RunRow, row: MailRow) -> MailRow:
    _check(run, tx.mail_before(run.key, row.seq), row)
    return row


def _check(run: RunRow, before: MailRow | None, row: MailRow) -> None:
    if mail_sum(run.run_id, before.sum if before is not None else b"", row[:-1]) != row.sum:
        raise corrupted(run, f"message {row.seq} does not match its checksum, or the one before it is gone")


def _message(row: MailRow) -> Message:
    return Message(
        seq=row.seq, id=row.id, kind=row.kind, name=row.name, payload=row.body, by=row.author, reason=row.reason,
        at=moment(row.at),
    )  # fmt: skip
