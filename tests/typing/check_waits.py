"""What the type checkers infer of steps that wait, and of what finds out about a crash; see check_typing.

A comment that ignores an error is needed, or the checker reports it: so it proves that the error is found.
"""

# mypy: warn-unused-ignores
# pyright: strict

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, assert_type

from pydantic import BaseModel

from flujo.pipeline import Pipeline, Reconciled, Step, step


class Approval(BaseModel):
    approved: bool


@dataclass
class Order:
    total: int
    due: datetime


def tried(value: object) -> None:
    """Take a value, so that no checker has anything to say of it but what is wrong inside."""


@step
def ship(approval: Approval) -> str:
    return str(approval)


@step
async def place(text: str) -> Order:
    return Order(len(text), datetime.now(UTC))


def question(order: Order) -> str:
    return f"Ship {order.total}?"


def due(order: Order) -> datetime:
    return order.due


def ask_a_person() -> None:
    """The answer has the schema's type; with a quorum there is a list of them."""
    approve = Step.human_in_the_loop("approve", "Ship it?", Approval, timeout=timedelta(days=7))
    assert_type(approve, Step[Any, Approval])
    assert_type(approve >> ship, Pipeline[Any, str])
    assert_type(place >> approve >> ship, Pipeline[str, str])
    assert_type(approve.with_timeout(60).named("again"), Step[Any, Approval])
    assert_type(Step.human_in_the_loop("ask", question, bool, timeout=1.5, on_timeout=False), Step[Any, bool])
    assert_type(Step.human_in_the_loop("ask", lambda order: f"{order}?", int), Step[Any, int])
    assert_type(Step.human_in_the_loop("ask", "Why?", list[str]), Step[Any, list[str]])
    assert_type(Step.human_in_the_loop("ask", "Why?"), Step[Any, Any])
    some = Step.human_in_the_loop("some", "Ship it?", Approval, quorum=2, voters=["ann", "bob", "cid"])
    assert_type(some, Step[Any, list[Approval]])
    assert_type(Step.human_in_the_loop("one", "Ship it?", bool, quorum=1), Step[Any, list[bool]])
    assert_type(Step.human_in_the_loop("some", "?", bool, quorum=2, timeout=1, on_timeout=[]), Step[Any, list[bool]])


def what_is_no_class() -> None:
    """A union and a Literal are no classes, and mypy makes Any of them: say the type of the step."""
    choice: Step[object, Literal["yes", "no"]] = Step.human_in_the_loop("ask", "Ship it?", Literal["yes", "no"])
    maybe: Step[object, int | None] = Step.human_in_the_loop("ask", "How many?", int | None)
    signal: Step[object, int | None] = Step.wait_for("paid", int | None, timeout=1, on_timeout=None)
    tried((choice, maybe, signal))


def wrong_neighbours() -> None:
    """The next step has to take the answer."""
    tried(Step.human_in_the_loop("ask", "Ship it?", bool) >> ship)  # type: ignore[operator]
    tried(Step.human_in_the_loop("ask", "Ship it?", Approval, quorum=2) >> ship)  # type: ignore[operator]
    tried(Step.wait_for("paid", int) >> ship)  # type: ignore[operator]


def wrong_options() -> None:
    """What no overload takes is refused."""
    tried(Step.human_in_the_loop("ask", 3, bool))  # type: ignore[call-overload]
    tried(Step.human_in_the_loop("ask", "Ship it?", bool, timeout="1 h"))  # type: ignore[call-overload]
    tried(Step.wait_for("paid", int, signal=3))  # type: ignore[call-overload]
    tried(Step.sleep("pause", "1 h"))  # type: ignore[arg-type]
    tried(Step.sleep_until("pause", lambda order: "tomorrow"))  # type: ignore[arg-type, return-value]


def wait_for_a_signal_or_a_time() -> None:
    """A signal has its type; a sleep gives what it is given, which is not told."""
    assert_type(Step.wait_for("paid", Order), Step[Any, Order])
    assert_type(Step.wait_for("paid", int, signal="order-paid", timeout=60, on_timeout=0), Step[Any, int])
    assert_type(Step.wait_for("paid"), Step[Any, Any])
    assert_type(Step.sleep("pause", timedelta(hours=1)), Step[Any, Any])
    assert_type(Step.sleep_until("pause", due), Step[Any, Any])
    assert_type(place >> Step.sleep("pause", 1) >> ship, Pipeline[str, str])


def inside_of_others() -> None:
    """They go where other steps go."""
    ask = Step.human_in_the_loop("ask", "Ship it?", Approval)
    assert_type(Step.parallel("fan", one=ask, two=Step.wait_for("two", Approval)), Step[Any, dict[str, Approval]])
    assert_type((ask >> ship).as_step("all"), Step[Any, str])
    assert_type(ask.fallback(Step.wait_for("other", Approval)), Step[Any, Approval])


async def find(key: str) -> Reconciled:
    return Reconciled(happened=True, output=key)


def look(key: str, *, context: BaseModel) -> Reconciled:
    return Reconciled(happened=None)


def guess(key: str) -> bool:
    return bool(key)


def charge(order: Order) -> int:
    return order.total


def crashes() -> None:
    """What finds out returns a Reconciled."""
    assert_type(step(on_crash="ask")(charge), Step[Order, int])
    assert_type(step(on_crash=find)(charge), Step[Order, int])
    assert_type(step(on_crash=look)(charge), Step[Order, int])
    assert_type(step(on_crash=step(retries=3)(find))(charge), Step[Order, int])
    tried(step(on_crash="maybe"))  # type: ignore[call-overload]
    tried(step(on_crash=guess))  # type: ignore[arg-type]
