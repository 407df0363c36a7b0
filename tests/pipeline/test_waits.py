"""What `Step.human_in_the_loop`, `wait_for`, `sleep` and `sleep_until` declare, and what they refuse."""

from __future__ import annotations

import collections
import copy
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, PastDate

from flujo.errors import StepDefinitionError, StepTypeError
from flujo.pipeline import NO_RETRY, UNSET, AskPerson, AwaitSignal, Sleep, Step, step

ask, wait_for = Step.human_in_the_loop, Step.wait_for


class Approval(BaseModel):
    approved: bool
    at: datetime | None = None


class Strange(BaseModel):
    """A model whose JSON schema is no JSON."""

    model_config = {"json_schema_extra": {"example": object()}}
    value: int


@dataclass
class Order:
    total: int
    due: datetime


class Money(int):
    """Neither pydantic nor the codec knows it."""


def ship(approval: Approval) -> str:
    return str(approval)


def question(order: Order) -> str:
    return f"Ship {order.total}?"


def due(order: Order) -> datetime:
    return order.due


async def question_later(order: Order) -> str:
    return "Ship it?"


def question_seen(order: Order, *, context: object) -> str:
    return "Ship it?"


def number(order: Order) -> int:
    return order.total


def nothing() -> str:
    return "Ship it?"


def answered(control: Any) -> AskPerson:
    assert isinstance(control, AskPerson)
    return control


# --- a person ---


def test_a_step_that_asks_a_person() -> None:
    """It is a step without function, retries, bodies and time limit of its own; its output is the answer."""
    made = ask("approve", "Ship it?", Approval, timeout=timedelta(days=7))
    assert (made.name, made.kind, repr(made)) == ("approve", "human", "<Step approve: Any -> Approval>")
    assert (made.is_async, made.takes_input, made.takes_context) == (False, True, False)
    assert (made.retry, made.timeout, made.bodies, made.decision, made.undo) == (NO_RETRY, None, (), None, None)
    assert (made.executor, made.on_crash, made.depth) == (None, "retry", 0)
    control = answered(made.control)
    assert (control.message, control.type, control.timeout) == ("Ship it?", Approval, 604_800.0)
    assert (control.quorum, control.listed, control.voters, control.on_timeout) == (1, False, None, UNSET)
    with pytest.raises(AssertionError, match=r"has no function"):
        made.fn(3)


def test_a_schema_says_what_an_answer_looks_like() -> None:
    """It is that of one answer, and plain JSON data."""
    assert answered(ask("approve", "Ship it?", Approval).control).schema == {
        "properties": {
            "approved": {"title": "Approved", "type": "boolean"},
            "at": {
                "anyOf": [{"format": "date-time", "type": "string"}, {"type": "null"}],
                "default": None,
                "title": "At",
            },
        },
        "required": ["approved"],
        "title": "Approval",
        "type": "object",
    }
    assert answered(ask("a", "?", bool, quorum=2).control).schema == {"type": "boolean"}
    assert answered(ask("a", "?", Literal["yes", "no"]).control).schema == {"enum": ["yes", "no"], "type": "string"}
    assert answered(ask("a", "?").control).schema == {}


@pytest.mark.parametrize(
    "tp", [Any, object, None, int | None, list[Approval], dict[str, Any], Order, PastDate, tuple[int, ...]]
)
def test_types_that_can_be_waited_for(tp: Any) -> None:
    """What pydantic and the codec know, and what makes a schema of its own."""
    assert ask("a", "?", tp).output_type == tp
    assert wait_for("a", tp).output_type == tp


@pytest.mark.parametrize(
    ("tp", "why"),
    [
        (Callable[[int], int], r"Callable\[\[int\], int\] \(its values could not be restored exactly\)\."),
        (collections.deque[int], r"deque\[int\] \(its values could not be restored exactly\)\."),
        (
            list[collections.deque[int] | None],
            r"list\[.*\] \(deque\[int\]: its values could not be restored exactly\)\.",
        ),
        (Iterable[int], r"Iterable\[int\] \(its values could not be restored exactly\)\."),
        (Money, r"Money \(its values could not be restored exactly\)\."),
        (type[int], r"type\[int\] \(its values could not be restored exactly\)\."),
        (Strange, r"Strange \(Unable to serialize unknown type: <class 'object'>\)\."),
        ("Approval", r"Approval \(it is a str and no type\)\."),
        (5, r"5 \(Unable to generate pydantic-core schema for 5.*\)\."),
        ({"type": "object"}, r".*object.* \(it is a dict and no type\)\."),
    ],
)
def test_types_that_cannot_be_waited_for(tp: Any, why: str) -> None:
    """They are refused when the step is made, and not when the answer comes."""
    for make in (lambda: ask("a", "?", tp), lambda: wait_for("a", tp)):
        with pytest.raises(StepDefinitionError, match=rf"^Step 'a' cannot wait for {why} Wait for a model") as caught:
            make()
        assert (caught.value.step, caught.value.type) == ("a", tp)


def test_a_function_makes_the_message() -> None:
    """It is declared to take the step's input, so that is what the step takes."""
    made = ask("approve", question, bool)
    assert (answered(made.control).message, made.input_type) == (question, Order)
    assert answered(ask("approve", str, bool).control).message is str
    assert ask("approve", lambda order: "Ship it?").input_type is Any
    with pytest.raises(StepTypeError, match=r"'ship' returns str, but the next step, 'approve', takes Order"):
        step(ship) >> made


@pytest.mark.parametrize("message", ["", " \n", 3, None, b"Ship it?", step(question)])
def test_no_message(message: Any) -> None:
    """A person has to be told something."""
    with pytest.raises(StepDefinitionError, match=r"Step 'a': `message_for_user` cannot be .* It has to be a text, or"):
        ask("a", message)


@pytest.mark.parametrize("message", [question_later, question_seen, nothing, lambda one, two: "Ship it?"])
def test_a_message_of_something_else(message: Any) -> None:
    """Its function is plain and of the input alone."""
    with pytest.raises(
        StepDefinitionError, match=r"Step 'a': `message_for_user` cannot be|'two' of step 'a>message_for"
    ):
        ask("a", message)


def test_a_message_that_is_no_text() -> None:
    """It is refused as far as it is declared."""
    with pytest.raises(StepTypeError, match=r"`message_for_user` of step 'a' returns int, and has to return str"):
        ask("a", number)


def test_a_quorum_makes_a_list() -> None:
    """Of one answer too, where it is asked for."""
    one, two = ask("a", "?", bool, quorum=1), ask("a", "?", bool, quorum=2, voters=["ann", "bob"])
    assert (one.output_type, two.output_type) == (list[bool], list[bool])
    assert (answered(one.control).quorum, answered(one.control).listed) == (1, True)
    control = answered(two.control)
    assert (control.quorum, control.listed, control.voters, control.type) == (2, True, ("ann", "bob"), bool)
    assert answered(ask("a", "?", voters=("ann",)).control).voters == ("ann",)


@pytest.mark.parametrize("quorum", [0, -1, 1.5, True, "2"])
def test_no_quorum(quorum: Any) -> None:
    """It is a number of people."""
    with pytest.raises(StepDefinitionError, match=r"Step 'a': `quorum` cannot be .* whole number, 1 or more"):
        ask("a", "?", quorum=quorum)


def test_a_quorum_that_cannot_be_reached() -> None:
    """Each voter answers once."""
    with pytest.raises(StepDefinitionError, match=r"`quorum` cannot be 3. It has to be at most 2,"):
        ask("a", "?", quorum=3, voters=["ann", "bob"])


@pytest.mark.parametrize("voters", [[], "ann", ["ann", "ann"], ["ann", ""], ["a\nb"], [3], 3, {"ann"}])
def test_no_voters(voters: Any) -> None:
    """They are different names in a list; a set's order would be another in each process."""
    with pytest.raises(StepDefinitionError, match=r"Step 'a': `voters` cannot be .* a list of different names"):
        ask("a", "?", voters=voters)


# --- a signal ---


def test_a_step_that_waits_for_a_signal() -> None:
    """The signal is called as the step, unless it is said otherwise."""
    made = wait_for("paid", int, timeout=60)
    assert (made.kind, made.output_type, made.timeout, repr(made)) == ("signal", int, None, "<Step paid: Any -> int>")
    assert made.control == AwaitSignal(signal="paid", type=int, schema={"type": "integer"}, timeout=60.0)
    assert wait_for("paid").control == AwaitSignal(signal="paid", type=Any, schema={})
    other = wait_for("paid", signal="order.paid").control
    assert isinstance(other, AwaitSignal)
    assert other.signal == "order.paid"


def test_another_name_is_no_other_signal() -> None:
    """A step that is used twice waits twice for the same signal."""
    assert wait_for("paid").named("paid_again").control == wait_for("paid").control


@pytest.mark.parametrize("signal", ["", "a\nb", 3, b"paid", "x" * 201])
def test_no_signal(signal: Any) -> None:
    """Its name stands in messages."""
    with pytest.raises(StepDefinitionError, match=r"Step 'a': `signal` cannot be .* the signal's name"):
        wait_for("a", signal=signal)


# --- time ---


def test_a_step_that_sleeps() -> None:
    """For so long, or until a moment, which is kept in UTC; it gives what it was given."""
    made = Step.sleep("pause", timedelta(hours=1))
    assert (made.kind, made.input_type, made.output_type) == ("sleep", Any, Any)
    assert made.control == Sleep(seconds=3600.0)
    assert Step.sleep("pause", 0).control == Sleep(seconds=0.0)
    rome = datetime(2030, 7, 1, 12, tzinfo=ZoneInfo("Europe/Rome"))
    until = Step.sleep_until("noon", rome).control
    assert isinstance(until, Sleep)
    assert until.until == rome
    assert isinstance(until.until, datetime)
    assert until.until.tzinfo is UTC
    assert Step.sleep_until("due", due).control == Sleep(until=due)
    assert Step.sleep_until("due", due).input_type is Order


@pytest.mark.parametrize("duration", [-1, float("nan"), float("inf"), 1e12, "1 h", None, True, timedelta(-1)])
def test_no_duration(duration: Any) -> None:
    """It ends, and within the calendar."""
    with pytest.raises(StepDefinitionError, match=r"Step 'a': `duration` cannot be .* from 0 to 1000 years"):
        Step.sleep("a", duration)


def test_a_moment_without_a_time_zone() -> None:
    """It would be another moment on another machine."""
    with pytest.raises(
        StepDefinitionError, match=r"`when` is 2030-01-01 00:00:00.*Give it one: .*tzinfo=UTC"
    ) as caught:
        Step.sleep_until("a", datetime(2030, 1, 1))
    assert (caught.value.step, caught.value.option) == ("a", "when")


@pytest.mark.parametrize("when", [date(2030, 1, 1), "2030-01-01", 3, None])
def test_no_moment(when: Any) -> None:
    """A day is none."""
    with pytest.raises(StepDefinitionError, match=r"Step 'a': `when` cannot be .* a datetime with a time zone, or"):
        Step.sleep_until("a", when)


def test_a_moment_before_the_first() -> None:
    """The first of January of the year 1 in Rome is no day in UTC."""
    with pytest.raises(StepDefinitionError, match=r"`when` cannot be .* in UTC is in the calendar"):
        Step.sleep_until("a", datetime(1, 1, 1, tzinfo=ZoneInfo("Europe/Rome")))


def test_a_function_that_gives_no_moment() -> None:
    """It is refused as far as it is declared."""
    with pytest.raises(StepTypeError, match=r"`when` of step 'a' returns int, and has to return datetime"):
        Step.sleep_until("a", number)  # type: ignore[arg-type]
    with pytest.raises(
        StepDefinitionError, match=r"Step 'a': `when` cannot be .* a plain function of the step's input"
    ):
        Step.sleep_until("a", question_later)  # type: ignore[arg-type]


# --- time limits ---


def test_a_time_limit_is_that_of_the_wait() -> None:
    """`with_timeout` is another way to say it."""
    made = ask("a", "?", bool, timeout=3, on_timeout=False).with_timeout(timedelta(days=400))
    assert (answered(made.control).timeout, answered(made.control).on_timeout) == (34_560_000.0, False)
    assert (made.timeout, made.kind, made.output_type) == (None, "human", bool)
    signal = wait_for("a").with_timeout(5)
    assert (signal.control, signal.timeout) == (AwaitSignal(signal="a", type=Any, schema={}, timeout=5.0), None)


@pytest.mark.parametrize("timeout", [0, -1, "3", True, float("inf"), timedelta(0), 1e12])
def test_no_time_limit(timeout: Any) -> None:
    """It is refused wherever it is said."""
    for make in (
        lambda: ask("a", "?", timeout=timeout),
        lambda: wait_for("a", timeout=timeout),
        lambda: ask("a", "?").with_timeout(timeout),
    ):
        with pytest.raises(StepDefinitionError, match=r"Step 'a': `timeout` cannot be"):
            make()


def test_a_sleep_has_no_time_limit() -> None:
    """It says itself how long it takes."""
    with pytest.raises(StepDefinitionError, match=r"Step 'a' sleeps, and has no time limit"):
        Step.sleep("a", 3).with_timeout(2)


def test_what_follows_when_the_time_is_over() -> None:
    """It is of the answer's type, or said as JSON data; None is a value too."""
    made = ask("a", "?", Approval, timeout=1, on_timeout={"approved": False})  # type: ignore[call-overload]
    assert answered(made.control).on_timeout == Approval(approved=False)
    assert answered(ask("a", "?", int | None, timeout=1, on_timeout=None).control).on_timeout is None
    listed = ask("a", "?", bool, quorum=2, timeout=1, on_timeout=[False])
    assert answered(listed.control).on_timeout == [False]
    signal = wait_for("a", int, timeout=1, on_timeout=0).control
    assert isinstance(signal, AwaitSignal)
    assert signal.on_timeout == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_timeout": "no"}, r"`on_timeout` cannot be 'no'\. It has to be a bool, .*valid boolean"),
        ({"on_timeout": None}, r"`on_timeout` cannot be None\. It has to be a bool"),
        ({"on_timeout": True, "quorum": 2}, r"`on_timeout` cannot be True\. It has to be a list\[bool\]"),
        ({"on_timeout": True, "timeout": None}, "has an `on_timeout`, but waits for as long as it takes"),
    ],
)
def test_what_cannot_follow(options: dict[str, Any], message: str) -> None:
    """It is refused now, and not after a week of waiting."""
    with pytest.raises(StepDefinitionError, match=message):
        ask("a", "?", bool, **{"timeout": 3, **options})


def test_what_follows_can_be_stored() -> None:
    """Where the type does not say so the value is looked at."""
    with pytest.raises(StepDefinitionError, match=r"Step 'a': on_timeout is of type object, which cannot be restored"):
        wait_for("a", timeout=1, on_timeout=object())


def test_unset_is_one_and_the_same() -> None:
    """Copies of a step still have no `on_timeout`."""
    assert repr(UNSET) == "UNSET"
    assert copy.deepcopy(UNSET) is UNSET
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET
