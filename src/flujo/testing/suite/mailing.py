"""The mailbox: messages are stored once, in order, and no run pauses for good on one that it has not read.

Every backend has a mailbox, at least the inherited one, which lies in the state. The rules of the guard are for
backends with claims of their own, to which somebody may write while a run goes on.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from flujo.errors import (
    AlreadyAnsweredError,
    FencedError,
    RunEndedError,
    RunNotFoundError,
    RunNotWaitingError,
    UnreadMailError,
)
from flujo.state.mail import Message, Wait, answer_id, token
from flujo.testing.suite.base import (
    T0,
    SuiteBase,
    claim,
    expect_index,
    finish,
    load,
    owned,
    save_as_owner,
    state_of,
)
from flujo.testing.suite.expect import expect, refused, same

_RUN = "run"
_LATER = T0 + timedelta(hours=1)
_WAIT: Wait = {"kind": "human", "path": ["ask"], "n": 1, "since": 0, "until": None, "message": "ok?"}
_WAITING: dict[str, Any] = {"status": "paused", "waiting": {"waits": [_WAIT]}}


class MailTests(SuiteBase):
    """`post` and `mail`, and what they mean for `claim`."""

    def test_messages_come_back_in_their_order(self, tmp_path: Path) -> None:
        """Each with all of its fields, under numbers that count up, page by page; a run that was deleted has none."""
        backend = self.open(tmp_path)
        given = [
            _signal("first", payload='{"n":["ключ"]}'.encode(), reason="because"),
            _signal("a/b \U0001f600", name="", payload=None, by=None, at=T0),
            _signal("third", kind="cancel"),
        ]

        async def main() -> None:
            with refused(RunNotFoundError, "a message to a run that is not there"):
                await backend.post(_RUN, given[0])
            same(await backend.mail(_RUN), [], "the mail of a run that is not there")
            for run_id in (_RUN, "other"):
                await backend.save_state(run_id, state_of(run_id))
            await backend.post("other", _signal("of another run"))
            numbers = [await backend.post(_RUN, message) for message in given]
            expect(numbers == sorted(set(numbers)), f"the numbers of three messages do not count up: {numbers}.")
            expected = [replace(message, seq=seq) for message, seq in zip(given, numbers, strict=True)]
            same(_facts(await backend.mail(_RUN)), _facts(expected), "the mail of a run with three messages")
            found = await backend.mail(_RUN, after=numbers[0])
            same(_ids(found), _ids(expected[1:]), "the messages after the first number")
            found = await backend.mail(_RUN, after=numbers[0], limit=1)
            same(_ids(found), _ids(expected[1:2]), "one message after the first number")
            await backend.delete_state(_RUN)
            await backend.save_state(_RUN, state_of(_RUN))
            same(await backend.mail(_RUN), [], "the mail of a run that was deleted and begun again")

        finish(main())

    def test_a_message_is_stored_once(self, tmp_path: Path) -> None:
        """The same id again gives the earlier one's number and changes nothing, even when the run has ended."""
        backend = self.open(tmp_path)

        async def main() -> None:
            await backend.save_state(_RUN, state_of(_RUN))
            first = await backend.post(_RUN, _signal("a"))
            second = await backend.post(_RUN, _signal("b"))
            same(await backend.post(_RUN, _signal("a", payload=b"2")), first, "the number of a message posted again")
            await backend.save_state(_RUN, await load(backend, _RUN) | {"status": "completed"})
            same(await backend.post(_RUN, _signal("b")), second, "the number of a message posted again after the end")
            found = await backend.mail(_RUN)
            same(_ids(found), ["a", "b"], "the mail after two messages were posted twice")
            same(found[0].payload, b"1", "the payload of a message that was posted again with another")

        finish(main())

    def test_a_message_that_a_run_cannot_take_is_refused(self, tmp_path: Path) -> None:
        """A signal to a run that has ended, an answer that nobody waits for; nothing is stored."""
        backend = self.open(tmp_path)

        async def main() -> None:
            await backend.save_state(_RUN, state_of(_RUN, status="completed"))
            with refused(RunEndedError, "a signal to a completed run"):
                await backend.post(_RUN, _signal("late"))
            await backend.save_state(_RUN, state_of(_RUN))
            with refused(RunNotWaitingError, "an answer to a run that waits for none"):
                await backend.post(_RUN, _answer("ann"))
            same(_ids(await backend.mail(_RUN)), [], "the mail of a run after two refusals")

        finish(main())

    def test_an_answer_is_given_once(self, tmp_path: Path) -> None:
        """The second answer to what a run waits for is refused, and the first one stays."""
        backend = self.open(tmp_path)

        async def main() -> None:
            await backend.save_state(_RUN, state_of(_RUN, **_WAITING))
            await backend.post(_RUN, _answer("ann"))
            for by in ("ann", "bob"):
                with refused(AlreadyAnsweredError, "a second answer"):
                    await backend.post(_RUN, _answer(by))
            (found,) = await backend.mail(_RUN)
            same(found.by, "ann", "who gave the answer that is stored")

        finish(main())

    def test_a_paused_run_with_mail_is_claimed(self, tmp_path: Path) -> None:
        """The claim of a run that waits succeeds when a message has come, and says so; once it is read, no more."""
        backend = self.open(tmp_path)

        async def main() -> None:
            for due in (None, _LATER):
                await backend.save_state(_RUN, state_of(_RUN, status="paused", due_at=due, mail_seen=0))
                found = await claim(backend, _RUN)
                same((found.fence, found.unread), (None, False), "fence and `unread` of a paused run without mail")
                number = await backend.post(_RUN, _signal("a", at=T0))
                found = await claim(backend, _RUN)
                expect(found.fence is not None, "a paused run that has unread mail was not claimed.")
                expect(found.unread, "the claim of a run that has unread mail does not say `unread`.")
                await backend.release(_RUN, found.fence or 0)
                await backend.save_state(_RUN, await load(backend, _RUN) | {
                    "status": "paused", "due_at": due, "mail_seen": number,
                })  # fmt: skip
                found = await claim(backend, _RUN)
                same((found.fence, found.unread), (None, False), "fence and `unread` of a run that has read its mail")
                await backend.delete_state(_RUN)

        finish(main())

    def test_mail_outlives_the_backend(self, tmp_path: Path) -> None:
        """Messages that were acknowledged are there for a second backend, which goes on counting."""
        backend = self.open_durable(tmp_path)

        async def main() -> None:
            await backend.save_state(_RUN, state_of(_RUN))
            numbers = [await backend.post(_RUN, _signal(id)) for id in "ab"]
            await backend.close()
            other = self.open(tmp_path)
            found = await other.mail(_RUN)
            same(_ids(found), ["a", "b"], "the mail as a second backend finds it")
            same(await other.post(_RUN, _signal("b")), numbers[1], "the number of a message posted again elsewhere")
            last = await other.post(_RUN, _signal("c"))
            expect(last > numbers[1], f"a message got number {last}, after number {numbers[1]}.")

        finish(main())


class GuardTests(SuiteBase):
    """What a backend with claims of its own promises: a message is not lost between reading and saving."""

    def test_mail_comes_to_a_run_that_is_executed(self, tmp_path: Path) -> None:
        """Also before its first save; if its owner gives up then, the next one finds it."""
        backend = self.open_fenced(tmp_path)
        other = self.reopen(tmp_path, backend)

        async def main() -> None:
            fence = await owned(backend, _RUN)
            first = await other.post(_RUN, _signal("a"))
            await backend.release(_RUN, fence)
            found = await claim(backend, _RUN)
            expect(found.unread, "the claim of a run that was written to before its first save does not say `unread`.")
            await save_as_owner(backend, _RUN, found.fence, 1)
            second = await other.post(_RUN, _signal("b"))
            expect(second > first, f"a message got number {second}, after number {first}.")
            same(_ids(await backend.mail(_RUN)), ["a", "b"], "the mail of a run that is executed")
            await save_as_owner(backend, _RUN, found.fence, 2)

        finish(main())

    def test_a_guarded_save_waits_for_the_mail_to_be_read(self, tmp_path: Path) -> None:
        """With a guard, or as paused, it is refused while there is unread mail, and can then be made otherwise."""
        backend = self.open_fenced(tmp_path)
        other = self.reopen(tmp_path, backend)
        guards: list[dict[str, Any]] = [{"guard": True}, {"status": "paused"}]

        async def main() -> None:
            fence = await owned(backend, _RUN)
            await save_as_owner(backend, _RUN, fence, 1, guard=True)
            number = await other.post(_RUN, _signal("a"))
            for guard in guards:
                with refused(UnreadMailError, f"a save with {guard}, while there is unread mail,"):
                    await save_as_owner(backend, _RUN, fence, 2, mail_seen=0, **guard)
                await expect_index(other, _RUN, 1, "after a guarded save was refused")
            expect(backend.holds(_RUN, fence), "a guarded save that was refused has cost the owner the run.")
            await save_as_owner(backend, _RUN, fence, 2, mail_seen=number, guard=True)
            await save_as_owner(backend, _RUN, fence, 3, mail_seen=0)
            await expect_index(other, _RUN, 3, "after a save without a guard")
            expect("guard" not in await load(other, _RUN), "`guard` was stored with the state.")
            await save_as_owner(backend, _RUN, fence, 4, mail_seen=number, status="paused")
            same((await claim(other, _RUN)).fence, None, "the fence of a claim of a run that has paused")
            with refused(FencedError, "a guarded save of somebody who no longer owns the run"):
                await save_as_owner(backend, _RUN, fence, 5, mail_seen=0, guard=True)

        finish(main())


def _signal(id: str, **changes: Any) -> Message:
    facts: dict[str, Any] = {"kind": "signal", "name": "go", "payload": b"1", "by": "ann", "at": _LATER}
    return Message(id=id, **facts | changes)


def _answer(by: str) -> Message:
    return Message(id=answer_id(_WAIT, by), kind="answer", name=token(_WAIT), payload=b"true", by=by, at=_LATER)


def _ids(messages: list[Message]) -> list[str]:
    return [message.id for message in messages]


def _facts(messages: list[Message]) -> list[dict[str, Any]]:
    return [{name: getattr(message, name) for name in Message.__slots__} for message in messages]
