"""What a run waits for, as data: what messages and the time make of it, and what the state is then."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flujo._clock import micros, moment
from flujo.engine import (
    Met,
    begun,
    closed,
    expired,
    fresh,
    in_doubt,
    is_cancelled,
    is_held,
    met,
    opened,
    over,
    paused,
    progressed,
    put_off,
    read,
    wait_at,
    wakes_at,
)
from flujo.pipeline import Pipeline, Registered, step
from flujo.state.mail import Message, Wait, answer_id, token
from tests.support.pipelines import T0

NOW = micros(T0)
MINUTE = 60_000_000


def new_state(**changes: Any) -> dict[str, Any]:
    """Return the state of a run that has just begun."""
    code = Registered(pipeline=Pipeline.of(step(name="a")(lambda n: n)), name="p", version="1.0.0", pipeline_id="p")
    return {**fresh("r", code, "[]", 1, T0), **changes}


def a_wait(kind: str = "human", path: str = "ask", **facts: Any) -> Wait:
    found: Any = {"kind": kind, "path": path.split("."), "n": 3, "since": NOW, "until": None}
    if kind == "signal":
        found["signal"] = "go"
    return found | facts


def answer(seq: int, by: str | None = None, wait: Wait | None = None) -> Message:
    asked = wait or a_wait()
    return Message(id=answer_id(asked, by), kind="answer", name=token(asked), payload=b"1", by=by, at=T0, seq=seq)


def order(kind: str, seq: int, by: str | None = None) -> Message:
    return Message(id=f"{kind}/{seq}", kind=kind, by=by, reason=f"reason {seq}", at=T0, seq=seq)


def signal(seq: int, name: str = "go") -> Message:
    return Message(id=f"signal/{seq}", kind="signal", name=name, payload=b"1", at=T0, seq=seq)


# --- how a wait ends ---


def test_an_answer_ends_a_question() -> None:
    """The first that is for it, and for nothing else of that path."""
    wait = a_wait()
    other = a_wait(n=4)
    assert met(wait, [], NOW) is None
    assert met(wait, [answer(1, wait=other), signal(2, token(wait)), order("pause", 3)], NOW) is None
    assert met(wait, [answer(1, wait=other), answer(2), answer(5)], NOW) == Met((answer(2),))


def test_a_quorum_ends_with_the_last_vote() -> None:
    """So many answers, the first ones, in their order."""
    wait = a_wait(quorum=2)
    votes = [answer(seq, by, wait) for seq, by in enumerate(["ann", "bob", "cid"], 1)]
    assert met(wait, votes[:1], NOW) is None
    assert met(wait, votes[:2], NOW) == met(wait, votes, NOW) == Met(tuple(votes[:2]))


def test_a_signal_ends_a_wait_for_its_name() -> None:
    """The first of that name, and one only."""
    wait = a_wait("signal")
    assert met(wait, [signal(1, "other"), answer(2)], NOW) is None
    assert met(wait, [signal(1, "other"), signal(2), signal(3)], NOW) == Met((signal(2),))


@pytest.mark.parametrize("kind", ["human", "signal", "crash"])
def test_the_time_ends_it(kind: str) -> None:
    """From its moment on; what is stored counts for more, until it is said that the time is over."""
    wait = a_wait(kind, until=NOW)
    found = signal(1) if kind == "signal" else answer(1)
    assert met(wait, [], NOW - 1) is None
    assert met(wait, [], NOW) == met(wait, [], NOW + MINUTE) == Met(late=True)
    assert met(wait, [found], NOW + MINUTE) == Met((found,))
    assert met({**wait, "expired": True}, [found], NOW - MINUTE) == Met(late=True)


@pytest.mark.parametrize("kind", ["sleep", "retry"])
def test_nothing_but_the_time_ends_a_timer(kind: str) -> None:
    """And that it has come is nothing to be late for."""
    wait = a_wait(kind, until=NOW)
    assert met(wait, [answer(1), signal(2)], NOW - 1) is None
    assert met(wait, [answer(1), signal(2)], NOW) == Met()


# --- what is read ---


def test_orders_take_effect() -> None:
    """The newest pause is the one that holds a run, a resume ends all of them, the first cancel stands."""
    state = new_state()
    held = read(state, [order("pause", 1, "ann"), order("pause", 2, "bob")])
    assert is_held(held) and not is_held(state)
    assert held["waiting"]["held"] == {"by": "bob", "reason": "reason 2", "at": T0.isoformat()}
    assert held["mail_seen"] == 2
    freed = read(held, [order("resume", 3)])
    assert not is_held(freed) and freed["waiting"] is None
    ended = read(freed, [order("cancel", 4, "ann"), order("cancel", 5, "bob"), order("resume", 6)])
    assert is_cancelled(ended) and ended["waiting"]["cancel"]["by"] == "ann"


def test_what_else_comes_is_kept() -> None:
    """Its number is, until it is used; what was read before is not read again."""
    state = read(new_state(), [signal(1), order("pause", 2), answer(3)])
    assert (state["waiting"]["kept"], state["mail_seen"]) == ([1, 3], 3)
    assert read(state, [signal(1), order("resume", 2), answer(3)]) is state
    assert read(state, []) is state
    assert read(state, [answer(3), signal(7)])["waiting"]["kept"] == [1, 3, 7]


KINDS = st.sampled_from(["cancel", "pause", "resume", "signal", "answer"])


@settings(max_examples=50)
@given(st.lists(KINDS, max_size=12), st.data())
def test_messages_are_read_in_any_pieces(kinds: list[str], data: st.DataObject) -> None:
    """However they are cut, and however often the same are read: the state is that of reading each once, in order."""
    messages = [
        {"signal": signal, "answer": answer}.get(kind, lambda seq, kind=kind: order(kind, seq))(seq)
        for seq, kind in enumerate(kinds, 1)
    ]
    whole = read(new_state(), messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(messages)), max_size=4)))
    state = new_state()
    for cut in [*cuts, len(messages)]:
        before = copy.deepcopy(state)
        after = read(state, messages[:cut])
        assert state == before
        state = after
    assert state == whole
    last = [kind for kind in kinds if kind in ("pause", "resume")][-1:]
    assert is_held(whole) == (last == ["pause"])
    assert is_cancelled(whole) == ("cancel" in kinds)


# --- waits in the state ---


def test_a_wait_is_opened_once() -> None:
    """At a path there is one; a new one takes the place of the old."""
    state = new_state()
    one = opened(opened(state, a_wait(path="x")), a_wait(path="fan.a.y"))
    again = opened(opened(one, a_wait(path="x", n=9)), a_wait(path="x", n=9))
    assert state["waiting"] is None
    assert [wait["path"] for wait in again["waiting"]["waits"]] == [["fan", "a", "y"], ["x"]]
    found = wait_at(again, ("x",))
    assert found is not None and found["n"] == 9
    assert wait_at(again, ("fan", "a")) is None


@pytest.mark.parametrize("kind", ["human", "crash"])
def test_how_a_question_ended(kind: str) -> None:
    """That is kept, so that who comes too late is told; the messages that it ended with are used."""
    state = read(opened(new_state(), a_wait(kind)), [answer(1, "ann"), signal(2)])
    after = closed(state, ("ask",), Met((answer(1, "ann"),)))
    assert after["waiting"] == {"kept": [2], "last": {"wait": "ask@3", "how": "answered", "by": "ann"}}
    late = closed(state, ("ask",), Met(late=True))
    assert late["waiting"]["last"] == {"wait": "ask@3", "how": "expired", "by": None}
    assert late["waiting"]["kept"] == [1, 2]
    assert closed(after, ("ask",), Met((answer(1, "ann"),))) == after  # twice is once


@pytest.mark.parametrize("kind", ["signal", "sleep", "retry"])
def test_how_other_waits_ended(kind: str) -> None:
    """Nobody comes too late for these."""
    state = read(opened(new_state(), a_wait(kind)), [signal(1)])
    assert closed(state, ("ask",), Met((signal(1),)))["waiting"] is None
    assert closed(state, ("ask",), Met(late=kind == "signal"))["waiting"] == {"kept": [1]}


def test_a_wait_that_is_dropped() -> None:
    """Nothing is known of how it ended."""
    state = opened(opened(new_state(), a_wait()), a_wait(path="other"))
    after = closed(state, ("ask",))
    assert after["waiting"] == {"waits": [a_wait(path="other")]}
    assert closed(after, ("nowhere",)) == after


def test_a_wait_that_has_expired() -> None:
    """It is still there, and takes nothing any more."""
    state = expired(opened(new_state(), a_wait()), ("ask",))
    assert state["waiting"]["waits"] == [a_wait(expired=True)]
    assert expired(state, ("ask",)) == state
    assert expired(new_state(), ("ask",))["waiting"] is None


def test_a_retry_that_is_put_off() -> None:
    """It says from when to when, why, and how many attempts there were."""
    wait = put_off(new_state(rev=7), ("fan", "a"), T0, 90.5, "OSError: down", 2)
    assert wait == {
        "kind": "retry", "path": ["fan", "a"], "n": 7, "since": NOW, "until": NOW + 90_500_000,
        "message": "OSError: down", "tries": 2,
    }  # fmt: skip


# --- paused ---


def test_when_a_paused_run_is_due() -> None:
    """At the first of its moments, the deadline's among them; never where it waits without a limit or is held."""
    later = T0 + timedelta(hours=1)
    state = new_state()
    none = paused(state, later)
    assert (none["status"], none["due_at"], none["updated_at"], none["rev"]) == ("paused", None, later, 1)
    state = opened(opened(state, a_wait(until=NOW + 2 * MINUTE)), a_wait("sleep", "nap", until=NOW + MINUTE))
    assert paused(state, T0)["due_at"] == moment(NOW + MINUTE)
    assert paused({**state, "deadline": T0}, T0)["due_at"] == T0
    assert paused({**state, "deadline": later}, T0)["due_at"] == moment(NOW + MINUTE)
    assert paused(read({**state, "deadline": T0}, [order("pause", 1)]), T0)["due_at"] is None
    assert paused({**new_state(), "deadline": later}, T0)["due_at"] == later
    assert progressed(paused(state, T0), [], {}, T0)["due_at"] is None  # it goes on


def test_when_it_goes_on_by_itself() -> None:
    """Where it waits for nothing but the time."""
    nap = opened(new_state(), a_wait("sleep", "nap", until=NOW + MINUTE))
    retry = opened(nap, a_wait("retry", "work", until=NOW + 2 * MINUTE))
    assert wakes_at(paused(retry, T0)) == moment(NOW + MINUTE)
    for kind in ("human", "signal", "crash"):
        assert wakes_at(paused(opened(retry, a_wait(kind, "x", until=NOW)), T0)) is None
    assert wakes_at(paused(read(retry, [order("pause", 1)]), T0)) is None
    assert wakes_at(paused(new_state(deadline=T0), T0)) is None


# --- steps in doubt ---


def test_steps_in_doubt() -> None:
    """From when they are begun until it is known how they came out; what else the position says stays."""
    state = new_state(position={"from": 4, "attempts": 2})
    one = begun(state, ("pay",), 0)
    two = begun(begun(one, ("fan", "a", "pay"), 0), ("pay",), 0)
    assert in_doubt(state) == frozenset() and in_doubt(one) == {("pay",)}
    assert in_doubt(two) == {("pay",), ("fan", "a", "pay")}
    assert len(two["position"]["begun"]) == 2
    left = over(two, ("pay",))
    assert in_doubt(left) == {("fan", "a", "pay")} and left["position"]["from"] == 4
    assert over(left, ("fan", "a", "pay"))["position"] == {"from": 4, "attempts": 2}
    assert over(begun(new_state(), ("pay",), 0), ("pay",))["position"] is None
    assert over(state, ("pay",)) == state
    assert state["position"] == {"from": 4, "attempts": 2}


def test_how_often_its_process_has_died() -> None:
    """That a step is begun again does not make it forgotten."""
    again = begun(begun(new_state(), ("pay",), 0), ("pay",), 3)
    assert again["position"] == {"crashes": 3, "begun": [["pay"]]}


def test_nothing_is_changed_in_place() -> None:
    """Every function leaves the state that it is given as it was."""
    state = read(opened(begun(new_state(), ("a",), 0), a_wait(until=NOW)), [signal(1), order("pause", 2)])
    before = copy.deepcopy(state)
    for change in (
        lambda s: read(s, [order("resume", 3), order("cancel", 4), answer(5)]),
        lambda s: opened(s, a_wait(path="b")),
        lambda s: closed(s, ("ask",), Met((signal(1),))),
        lambda s: expired(s, ("ask",)),
        lambda s: paused(s, T0),
        lambda s: begun(s, ("b",), 0),
        lambda s: over(s, ("a",)),
    ):
        assert change(state) != before
        assert state == before
