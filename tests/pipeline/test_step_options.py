"""What `@step(executor=..., undo=...)` declares."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from flujo.errors import StepDefinitionError, StepTypeError
from flujo.pipeline import Step, step


class Order:
    pass


class Shop:
    pass


def needs_more(order: int, db: object) -> None: ...


def refund(receipt: int, *, context: Shop) -> None:
    """Give the money back."""


async def cancel(receipt: int) -> None: ...


def forget() -> None: ...


def charge(order: Order) -> int:
    return 1


def test_an_executor_is_kept_by_its_name() -> None:
    """Also by the same step under another name, or with another time limit."""
    made = step(executor="cpu")(charge)
    assert (made.executor, step(charge).executor) == ("cpu", None)
    assert (made.named("again").executor, made.with_timeout(3).executor) == ("cpu", "cpu")


@pytest.mark.parametrize("name", ["", 3, True, "a\nb", b"cpu", "x" * 201])
def test_an_executor_without_a_name_is_refused(name: Any) -> None:
    """It is text that can stand in a message."""
    with pytest.raises(StepDefinitionError, match="Step 'charge': `executor` cannot be ") as caught:
        step(executor=name)(charge)
    assert (caught.value.step, caught.value.option, caught.value.value) == ("charge", "executor", name)


def test_an_async_function_has_no_executor() -> None:
    """It needs an event loop, which the other side does not have."""
    with pytest.raises(StepDefinitionError, match="Step 'cancel' is async, and executor 'cpu' runs plain functions"):
        step(executor="cpu")(cancel)


@pytest.mark.parametrize("fn", [refund, cancel, forget, functools.partial(refund), lambda receipt: None])
def test_an_undo_is_a_step_of_the_output(fn: Any) -> None:
    """Made of a function, it has the function's name, the step's own retries, and as much time as it needs."""
    made = step(retries=[1, 2], timeout=3, undo=fn)(charge)
    assert made.undo is not None
    assert made.undo.name in ("refund", "cancel", "forget", "undo")
    assert (made.undo.retry, made.undo.timeout, made.undo.executor) == (made.retry, None, None)
    assert made.undo.is_async is (fn is cancel)
    assert made.undo.takes_input is (fn is not forget)
    assert made.named("again").undo is made.undo


def test_an_undo_of_its_own_kind() -> None:
    """A step as an undo keeps its own name, retries, time limit and executor."""
    own = step(name="give back", retries=5, timeout=7, executor="cpu")(charge_back)
    assert step(retries=1, undo=own)(charge).undo is own


def charge_back(receipt: int) -> None: ...


def test_the_local_names_of_an_undo_are_resolved() -> None:
    """As those of a step are."""

    class Receipt:
        pass

    def give_back(receipt: Receipt) -> None: ...

    @step(undo=give_back)
    def pay(order: Order) -> Receipt:
        return Receipt()

    assert pay.undo is not None and pay.undo.input_type is Receipt


def test_an_undo_that_does_not_take_the_output_is_refused() -> None:
    """The error names both steps and both types."""
    with pytest.raises(StepTypeError) as caught:
        step(name="pay", undo=charge_back)(load_order)
    assert str(caught.value).startswith("Step 'pay' returns Order, but its undo, 'charge_back', takes int.")
    assert (caught.value.step, caught.value.next_step) == ("pay", "charge_back")
    assert (caught.value.output_type, caught.value.input_type) == (Order, int)


def load_order(number: int) -> Order:
    return Order()


@pytest.mark.parametrize(
    ("undo", "says"),
    [
        (step(undo=charge_back)(charge), "its undo 'charge' has an undo of its own"),
        (Step.map_over("all", step(charge_back)), "its undo 'all' is of kind 'map'"),
        ((step(charge_back) >> step(forget)).as_step("both"), "its undo 'both' is of kind 'pipeline'"),
        (step(charge_back) >> step(forget), "`undo` cannot be <Pipeline charge_back >> forget>"),
        (3, "`undo` cannot be 3"),
        ("refund", "`undo` cannot be 'refund'"),
    ],
)
def test_what_cannot_be_an_undo_is_refused(undo: Any, says: str) -> None:
    """One that had to be undone itself, one with pipelines inside, and what is no function."""
    with pytest.raises(StepDefinitionError) as caught:
        step(undo=undo)(charge)
    assert str(caught.value).startswith(f"Step 'charge': {says}")
    assert caught.value.option == "undo"


def test_an_undo_that_nobody_could_call_is_refused() -> None:
    """By the same rules as a step's function; the error is about the undo."""
    with pytest.raises(StepDefinitionError, match="Parameter 'db' of step 'needs_more' has nothing that supplies it"):
        step(undo=needs_more)(charge)
