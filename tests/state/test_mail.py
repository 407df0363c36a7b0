"""The mailbox of a run: what is posted is there once, in order, and is read before a run pauses for good."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flujo import StateBackend
from flujo.errors import (
    AlreadyAnsweredError,
    AnswerTooLateError,
    ConfigurationError,
    FencedError,
    FlujoError,
    MailboxFullError,
    NoVoteError,
    RunEndedError,
    RunInProgressError,
    RunNotFoundError,
    RunNotWaitingError,
    UnreadMailError,
)
from flujo.state import mail as mails
from flujo.state.mail import Message, Wait, answer_id, token
from flujo.state.models import StepRecord
from tests.support.backends import KINDS, OURS, SERVED, THEIRS, Place
from tests.support.pipelines import T0, by_hand, new_run
from tests.support.saves import saved, take, wait

LATER = T0 + timedelta(hours=1)


@pytest.fixture(params=KINDS)
def any_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    found = Place(request.param, tmp_path)
    yield found
    found.close()


@pytest.fixture(params=SERVED)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    found = Place(request.param, tmp_path)
    yield found
    found.close()


def signal(id: str, **changes: Any) -> Message:
    facts: dict[str, Any] = {"kind": "signal", "name": "go", "payload": b'{"n":1}', "by": "ann", "at": LATER}
    return Message(id=id, **facts | changes)


def a_wait(**changes: Any) -> Wait:
    found: Any = {"kind": "human", "path": ["ask"], "n": 1, "since": 0, "until": None, "message": "ok?"}
    return found | changes


def answer(to: Wait, by: str | None = None) -> Message:
    return Message(id=answer_id(to, by), kind="answer", name=token(to), payload=b"true", by=by, at=LATER)


def posts(backend: StateBackend, *messages: Message, run_id: str = "r") -> list[int]:
    return [wait(backend.post(run_id, message)) for message in messages]


def ids(backend: StateBackend, **options: Any) -> list[str]:
    return [message.id for message in wait(backend.mail("r", **options))]


def refuses(backend: StateBackend, message: Message, kind: type[FlujoError]) -> FlujoError:
    """Post what is refused; nothing is stored, and no field of the run changes."""
    before = (ids(backend), wait(backend.load_state("r")))
    with pytest.raises(kind) as caught:
        posts(backend, message)
    assert type(caught.value) is kind
    assert (ids(backend), wait(backend.load_state("r"))) == before
    return caught.value


# Every backend.


def test_messages_come_back_as_they_were(any_place: Place) -> None:
    """All fields, in the order of posting, page by page, at a second backend too."""
    any_place.put(by_hand())
    given = [
        signal("a"),
        signal("ä/\U0001f600", name="", payload=None, by=None, at=T0),
        signal("c", payload='["é"]'.encode(), reason="because", kind="cancel"),
    ]
    numbers = posts(any_place.open(), *given)
    assert numbers == sorted(set(numbers)) and numbers[0] > 0
    backend = any_place.open()
    found = wait(backend.mail("r"))
    expected = [
        Message(**{n: getattr(m, n) for n in Message.__slots__} | {"seq": s})
        for m, s in zip(given, numbers, strict=True)
    ]
    assert found == expected
    assert wait(backend.mail("r", after=numbers[0])) == expected[1:]
    assert wait(backend.mail("r", after=numbers[0], limit=1)) == expected[1:2]
    assert wait(backend.mail("r", after=numbers[2])) == wait(backend.mail("r", limit=0)) == []
    with pytest.raises(ConfigurationError):
        wait(backend.mail("r", after=-1))


def test_nobody_to_write_to(any_place: Place) -> None:
    """A run that is not there has no mail, and gets none."""
    backend = any_place.open()
    assert wait(backend.mail("r")) == []
    with pytest.raises(RunNotFoundError, match="list_runs"):
        posts(backend, signal("a"))
    assert wait(backend.load_state("r")) is None
    any_place.put(by_hand())
    posts(backend, signal("a"))
    wait(backend.delete_state("r"))
    assert wait(backend.mail("r")) == []
    any_place.put(by_hand())
    assert wait(backend.mail("r")) == []


def test_the_same_message_again(any_place: Place) -> None:
    """It has the number of the first, whatever else it says, and even where the run takes none any more."""
    any_place.put(by_hand())
    backend = any_place.open()
    first, second = posts(backend, signal("a"), signal("b"))
    before = wait(backend.mail("r"))
    assert posts(backend, signal("b", payload=b"2"), signal("a", by="bob")) == [second, first]
    assert wait(backend.mail("r")) == before
    any_place.put(wait(backend.load_state("r")) | {"status": "completed"})  # type: ignore[operator]
    assert posts(backend, signal("a")) == [first]
    refuses(backend, signal("new"), RunEndedError)


@pytest.mark.parametrize(
    ("state", "message", "error"),
    [
        ({"status": "completed"}, signal("a"), RunEndedError),
        ({"status": "cancelled"}, signal("a", kind="cancel"), RunEndedError),
        ({"status": "failed", "phase": "undone"}, signal("a", kind="resume"), RunEndedError),
        ({"status": "running", "phase": "undoing"}, signal("a"), RunEndedError),
        ({"status": "failed"}, signal("a", kind="pause"), RunNotWaitingError),
        ({}, signal("a", kind="resume"), RunNotWaitingError),
        ({}, answer(a_wait()), RunNotWaitingError),
        ({"status": "paused", "waiting": {"waits": [a_wait(n=2)]}}, answer(a_wait()), RunNotWaitingError),
        ({"status": "completed", "waiting": {"waits": [a_wait()]}}, answer(a_wait()), RunNotWaitingError),
        ({"status": "paused", "waiting": {"waits": [a_wait(expired=True)]}}, answer(a_wait()), AnswerTooLateError),
        ({"waiting": {"last": {"wait": token(a_wait()), "how": "expired"}}}, answer(a_wait()), AnswerTooLateError),
        ({"waiting": {"last": {"wait": token(a_wait()), "how": "answered"}}}, answer(a_wait()), AlreadyAnsweredError),
        ({"waiting": {"waits": [a_wait(voters=["bob"])]}}, answer(a_wait(), by="ann"), NoVoteError),
        ({"waiting": {"waits": [a_wait(quorum=2)]}}, answer(a_wait(quorum=2)), NoVoteError),
    ],
)
def test_what_a_run_refuses(any_place: Place, state: dict[str, Any], message: Message, error: Any) -> None:
    """As `refusal` says of the newest state; nothing is stored then."""
    any_place.put(by_hand(**state))
    refuses(any_place.open(), message, error)


def test_an_answer_is_given_once(any_place: Place) -> None:
    """The second one is refused; of a quorum each voter has one, until it is full."""
    one, some = a_wait(schema={"$ref": "#/x", "$type": "odd"}), a_wait(path=["vote"], quorum=2, voters=["a", "b", "c"])
    any_place.put(by_hand(status="paused", waiting={"waits": [one, some]}))
    backend = any_place.open()
    posts(backend, answer(one, by="ann"))
    error = refuses(backend, answer(one, by="bob"), AlreadyAnsweredError)
    assert error.by == "ann"  # type: ignore[attr-defined]
    refuses(backend, answer(one, by="ann"), AlreadyAnsweredError)
    posts(backend, answer(some, by="a"))
    refuses(backend, answer(some, by="a"), NoVoteError)
    posts(backend, answer(some, by="b"))
    refuses(backend, answer(some, by="c"), AlreadyAnsweredError)
    assert len(ids(backend)) == 3


def test_too_many_signals(any_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are not read, and those that are kept; nothing else than a signal is refused for that."""
    monkeypatch.setattr(mails, "MAX_UNUSED", 3)
    any_place.put(by_hand(waiting={"kept": [1]}, mail_seen=1))
    backend = any_place.open()
    first, _ = posts(backend, signal("a"), signal("b"))
    assert first > 1  # a state that comes from elsewhere has read up to there
    refuses(backend, signal("c"), MailboxFullError)
    posts(backend, signal("d", kind="cancel"))


def test_mail_wakes_a_paused_run(any_place: Place) -> None:
    """It is due when a message comes, and is claimed whatever its time says; when that is read, it is settled again."""
    backend = any_place.open()
    for due in (None, LATER + timedelta(days=1)):
        any_place.put(by_hand(status="paused", due_at=due))
        claim = take(backend)
        assert (claim.fence, claim.unread) == (None, False)
        (number,) = posts(backend, signal(f"a{due}"))
        claim = take(backend)
        assert claim.fence is not None and claim.unread and claim.state is not None
        assert claim.state["status"] in ("running", "paused")
        backend.abandon("r", claim.fence, refused=True)
        assert wait(backend.mail("r", after=claim.state.get("mail_seen", 0)))[0].id == f"a{due}"
        state = wait(backend.load_state("r")) or {}
        assert state["status"] == "paused"
        any_place.put(state | {"mail_seen": number, "due_at": due})
        claim = take(backend)
        assert (claim.fence, claim.unread) == (None, False)
        wait(backend.delete_state("r"))


def test_mail_to_a_run_that_is_over(any_place: Place) -> None:
    """What it has not read does not make it go on."""
    for status in ("completed", "cancelled"):
        any_place.put(by_hand())
        posts(any_place.open(), signal("a"))
        any_place.put(wait(any_place.open().load_state("r")) | {"status": status})  # type: ignore[operator]
        assert take(any_place.open()).fence is None
        wait(any_place.open().delete_state("r"))


def test_what_is_kept_of_a_wait(any_place: Place) -> None:
    """`waiting`, `deadline` and who gave an answer come back; nothing to say is None."""
    waiting = {"waits": [a_wait(schema={"$defs": {}, "type": "object"}, voters=None)], "kept": [3]}
    record = {"path": ["a"], "output": 5, "by": "ann"}
    any_place.put(by_hand(waiting=waiting, deadline=LATER, mail_seen=4, step_history=[record]))
    state = any_place.load()
    assert state["waiting"] == waiting and state["mail_seen"] == 4
    assert state["deadline"] in (LATER, str(LATER))
    (back,) = state["step_history"]
    assert (back.by if isinstance(back, StepRecord) else back["by"]) == "ann"
    if any_place.kind in OURS:
        any_place.put(by_hand(waiting={}))
        assert any_place.load()["waiting"] is None
        assert any_place.load()["deadline"] is None


@pytest.mark.parametrize("kind", THEIRS)
def test_three_methods_have_no_mail_for_a_run_that_goes_on(kind: str, tmp_path: Path) -> None:
    """A live owner's next save would lose it, so it is refused; posts at the same time wait for one another."""
    backend = Place(kind, tmp_path).open()
    claim = take(backend)
    with pytest.raises(RunInProgressError, match="in this process") as caught:
        posts(backend, signal("a"))
    assert "nobody executes" in str(caught.value.hint)
    assert claim.fence is not None
    wait(backend.release("r", claim.fence))
    wait(backend.save_state("r", by_hand()))

    async def many() -> tuple[list[int], Any]:
        numbers = await asyncio.gather(*(backend.post("r", signal(str(n))) for n in range(5)))
        last = asyncio.ensure_future(backend.post("r", signal("5")))
        await asyncio.sleep(0)  # it is on its way
        claim = await backend.claim("r", new_run(), now=T0)
        return [*numbers, await last], claim

    numbers, found = wait(many())
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6] and found.fence is not None and found.unread
    backend.abandon("r", found.fence)
    assert sorted(ids(backend)) == ["0", "1", "2", "3", "4", "5"]


# Flujo's own.


def test_mail_to_a_run_in_its_first_step(place: Place) -> None:
    """It is accepted before anything is saved, and survives the owner, whose run is begun anew."""
    backend = place.open()
    claim = take(backend)
    assert not claim.unread
    numbers = posts(place.open(), signal("a"), signal("b"))
    before = wait(backend.mail("r"))
    assert claim.fence is not None
    wait(backend.release("r", claim.fence))
    again = take(backend)
    assert again.unread and again.state is None
    assert wait(backend.mail("r")) == before
    posts(backend, signal("c"))
    wait(backend.save_state("r", saved(again, 1)))
    assert ids(backend, after=numbers[0]) == ["b", "c"]
    wait(backend.save_state("r", saved(again, 2, status="completed", mail_seen=numbers[1])))
    assert take(backend).unread


def test_a_guarded_save(place: Place) -> None:
    """It is made only if everything was read; refused, it leaves the claim as it was, for another save in its place."""
    backend = place.open()
    claim = take(backend)
    wait(backend.save_state("r", saved(claim, 1, guard=True)))
    before = wait(backend.load_state("r"))
    assert before is not None and "guard" not in before
    (number,) = posts(place.open(), signal("a"))
    for changes in ({"guard": True}, {"status": "paused"}, {"status": "paused", "guard": True}):
        with pytest.raises(UnreadMailError):
            wait(backend.save_state("r", saved(claim, 2, **changes)))
    assert wait(backend.load_state("r")) == before
    assert claim.fence is not None and backend.holds("r", claim.fence)
    wait(backend.save_state("r", saved(claim, 2, last_step_output="another", guard=True, mail_seen=number)))
    posts(backend, signal("b"))
    wait(backend.save_state("r", saved(claim, 2, last_step_output="another", guard=True, mail_seen=number)))  # is there
    wait(backend.save_state("r", saved(claim, 3, mail_seen=number)))  # without a guard
    with pytest.raises(UnreadMailError):
        wait(backend.save_state("r", saved(claim, 4, status="paused", mail_seen=number)))
    (last,) = wait(backend.mail("r", after=number))
    wait(backend.save_state("r", saved(claim, 4, status="paused", mail_seen=last.seq)))
    assert take(backend).fence is None
    assert posts(backend, signal("c")) and take(backend).unread
    with pytest.raises(FencedError):
        wait(backend.save_state("r", saved(claim, 5, guard=True)))


def test_an_old_owner_is_told_that_it_is_one(place: Place) -> None:
    """Not that it has mail."""
    backend = place.open()
    old = take(backend)
    wait(backend.save_state("r", saved(old, 1)))
    posts(backend, signal("a"))
    if place.kind == "memory":
        take(backend, force=True)
        with pytest.raises(FencedError):
            wait(backend.save_state("r", saved(old, 2, guard=True)))
        return
    wait(place.open().claim("r", new_run(), now=T0, force=True))
    with pytest.raises(FencedError):
        wait(backend.save_state("r", saved(old, 2, status="paused")))


def test_a_guarded_save_in_a_crowd(place: Place) -> None:
    """Refused saves leave those alone that are committed with them."""
    backend = place.open()

    async def main() -> list[Any]:
        claims = {str(n): await backend.claim(str(n), new_run(), now=T0) for n in range(8)}
        for run_id in ("1", "4"):
            await backend.post(run_id, signal("a"))
        saves = [
            backend.save_state(run_id, saved(claim, 1, run_id, guard=int(run_id) < 6))
            for run_id, claim in claims.items()
        ]
        return await asyncio.gather(*saves, return_exceptions=True)

    assert [type(found).__name__ for found in wait(main())] == [
        "UnreadMailError" if n in (1, 4) else "NoneType" for n in range(8)
    ]


@pytest.mark.parametrize("inline", [False, True])
def test_a_guarded_save_of_somebody_who_is_cancelled(place: Place, inline: bool) -> None:
    """The refusal comes, and then the cancellation, where the task waits next: neither is lost."""
    backend = place.open()
    seen: list[str] = []

    async def owner() -> None:
        claim = await backend.claim("r", new_run(), now=T0, inline=inline)
        await backend.post("r", signal("a"))
        current = asyncio.current_task()
        assert current is not None
        asyncio.get_running_loop().call_soon(current.cancel)
        try:
            await backend.save_state("r", saved(claim, 1, guard=True))
        except UnreadMailError:
            seen.append("unread")
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            seen.append(f"cancelled {current.cancelling()}")

    wait(owner())
    assert seen == ["unread", "cancelled 1"]


def test_due_times_are_listed(place: Place) -> None:
    """Of paused runs alone, and the earlier one where mail has come."""
    backend: Any = place.open()
    due = LATER + timedelta(days=1)
    place.put(by_hand(status="paused", due_at=due))
    (found,) = wait(backend.list_runs())
    assert found.due_at == due
    posts(backend, signal("a", at=LATER))
    (found,) = wait(backend.list_runs())
    assert found.due_at == LATER
    assert place.load()["due_at"] == due  # as it was saved
    posts(backend, signal("b", at=due))
    (found,) = wait(backend.list_runs())
    assert found.due_at == LATER
    take(backend)
    (found,) = wait(backend.list_runs())
    assert found.due_at is None


def test_a_state_by_hand_goes_on_with_its_mail(place: Place) -> None:
    """One that was loaded, even into another version; one that begins anew has none."""
    backend = place.open()
    place.put(by_hand(status="paused"))
    posts(backend, signal("a"))
    state = place.load()
    place.put(state | {"pipeline_version": "2.0.0"})
    assert ids(backend) == ["a"] and take(backend).unread
    wait(backend.release("r", take(backend, force=True).fence or 0))
    place.put(by_hand(pipeline_version="3.0.0"))
    assert ids(backend) == []


def test_what_cannot_be_stored(place: Place) -> None:
    """Text that is none, and a payload that is no text, are refused in words."""
    place.put(by_hand())
    for message in (signal("\ud800"), signal("a", by="\udfff"), signal("a", payload=b"\xff")):
        with pytest.raises(ConfigurationError, match="cannot be stored"):
            posts(place.open(), message)


def test_posts_at_the_same_time(place: Place) -> None:
    """From several threads, with the same ids: one of each is stored, and every poster has its number."""
    place.put(by_hand())
    numbers: list[dict[str, int]] = []

    async def post_all() -> None:
        backend = place.open()
        found = {}
        for n in range(10):
            found[str(n)] = await backend.post("r", signal(str(n)))
        numbers.append(found)

    threads = [threading.Thread(target=lambda: asyncio.run(post_all())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers[0] == numbers[1] == numbers[2]
    assert {m.id: m.seq for m in wait(place.open().mail("r"))} == numbers[0]


def test_a_post_wakes_the_holder_at_once(place: Place) -> None:
    """In the same process nobody waits for a look; a run that was given back is not woken."""
    backend = place.open()
    woken: list[str] = []
    claim = take(backend)
    fence = claim.fence or 0
    backend.watch("r", fence - 1, lambda: woken.append("old"))
    backend.watch("other", fence, lambda: woken.append("other"))
    backend.watch("r", fence, lambda: woken.append("r"))
    woken.clear()
    posts(place.open(), signal("a"))
    assert "r" in woken
    wait(backend.release("r", fence))
    wait(backend.save_state("r", by_hand()))
    woken.clear()
    posts(place.open(), signal("b"))
    assert woken == []


def test_a_waker_that_fails(place: Place) -> None:
    """It does not fail the poster, whose message is stored."""
    backend = place.open()
    claim = take(backend)

    def wake() -> None:
        raise RuntimeError("Event loop is closed")

    backend.watch("r", claim.fence or 0, wake)
    posts(backend, signal("a"))
    assert ids(backend) == ["a"]
