"""What `@step(on_crash=...)` declares, and the Reconciled that it is about."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from flujo.errors import StepDefinitionError, StepTypeError
from flujo.pipeline import NO_RETRY, Pipeline, Reconciled, Retry, Step, fingerprint, shares_context, step


class Shop:
    pass


class Sure(Reconciled):
    pass


def charge(total: int) -> str:
    return f"charged {total}"


def find(key: str) -> Reconciled:
    """Ask the bank."""
    return Reconciled(happened=True, output=key)


async def find_later(key: str, *, context: Shop) -> Sure:
    return Sure(happened=None)


def untyped(key):  # type: ignore[no-untyped-def]
    return Reconciled(happened=False)


def of_number(key: int) -> Reconciled:
    return Reconciled(happened=False)


def yes(key: str) -> bool:
    return True


def refund(receipt: Reconciled) -> None: ...


def needs_more(key: str, bank: object) -> Reconciled:
    return Reconciled(happened=None)


@pytest.mark.parametrize("said", ["retry", "ask"])
def test_a_word_says_what_follows(said: Any) -> None:
    """By default the step is done again."""
    assert step(on_crash=said)(charge).on_crash == said
    assert (step(charge).on_crash, step(retries=3)(charge).on_crash) == ("retry", "retry")


def test_a_function_finds_out() -> None:
    """It becomes a step of its own, of kind "decision"."""
    made = step(on_crash=find)(charge)
    found = made.on_crash
    assert isinstance(found, Step)
    assert (found.name, found.kind, found.fn, found.doc) == ("reconcile", "decision", find, "Ask the bank.")
    assert (found.is_async, found.takes_input, found.takes_context) == (False, True, False)
    assert (found.input_type, found.output_type, found.retry, found.timeout) == (str, Reconciled, NO_RETRY, None)
    assert (made.named("again").on_crash, made.with_timeout(3).on_crash) == (found, found)


def test_it_may_be_async_and_take_the_context() -> None:
    """Branches then have a context of their own, as where the step itself takes it."""
    made = step(on_crash=find_later)(charge)
    assert isinstance(made.on_crash, Step)
    assert (made.on_crash.is_async, made.on_crash.takes_context, made.on_crash.context_type) == (True, True, Shop)
    assert shares_context(made)
    assert shares_context(Step.parallel("fan", one=made))
    assert not shares_context(step(on_crash=find)(charge))
    assert isinstance(step(on_crash=untyped)(charge).on_crash, Step)


def test_a_step_finds_out_with_its_retries() -> None:
    """As a step decides where a branch goes."""
    found = step(on_crash=step(name="bank", retries=2, timeout=3)(find))(charge).on_crash
    assert isinstance(found, Step)
    assert (found.name, found.kind, found.retry.max_retries, found.timeout) == ("reconcile", "decision", 2, 3.0)


@pytest.mark.parametrize("given", ["no", "", 3, None, True, ["retry"], step(on_crash="ask")(find)])
def test_what_says_nothing_is_refused(given: Any) -> None:
    """A step that would have to be found out about itself too."""
    with pytest.raises(StepDefinitionError, match=r'`on_crash` cannot be .* "retry", "ask", or') as caught:
        step(on_crash=given)(charge)
    assert (caught.value.step, caught.value.option, caught.value.value) == ("charge", "on_crash", given)


@pytest.mark.parametrize("given", [Step.wait_for("bank", Reconciled), step(undo=refund)(find)])
def test_other_kinds_of_steps_are_refused(given: Any) -> None:
    """It is asked once, and takes nothing back."""
    with pytest.raises(StepDefinitionError, match=r"`on_crash` cannot be <Step .* a step of one without an undo"):
        step(on_crash=given)(charge)


def test_a_function_that_cannot_be_called() -> None:
    """All that it is given is the key."""
    with pytest.raises(
        StepDefinitionError, match=r"Parameter 'bank' of step 'charge>reconcile' has nothing that supplies"
    ):
        step(on_crash=needs_more)(charge)


def test_it_returns_a_reconciled() -> None:
    """As far as it is declared."""
    with pytest.raises(StepTypeError, match=r"`on_crash` of step 'charge' returns bool, and has to return Reconciled"):
        step(on_crash=yes)(charge)  # type: ignore[arg-type]


def test_it_takes_the_key() -> None:
    """Which is a text."""
    with pytest.raises(StepTypeError, match=r"`on_crash` of step 'charge' takes int, and is given a str"):
        step(on_crash=of_number)(charge)


def test_it_is_no_part_of_the_structure() -> None:
    """It may be mended while runs are in flight."""
    assert fingerprint(Pipeline.of(step(on_crash=find)(charge))) == fingerprint(Pipeline.of(step(charge)))


def test_the_codec_is_told_of_what_it_returns() -> None:
    """And of its context."""
    found = list(Pipeline.of(step(on_crash=find_later)(charge)).annotations())
    assert found == [int, str, str, Sure, Shop]


@pytest.mark.parametrize(("happened", "output"), [(True, "receipt"), (True, None), (False, None), (None, None)])
def test_a_reconciled(happened: Any, output: Any) -> None:
    """It did happen, with this output; or not; or nobody knows."""
    found = Reconciled(happened=happened, output=output)
    assert (found.happened, found.output) == (happened, output)
    with pytest.raises(ValidationError, match=r"frozen"):
        found.happened = True


@pytest.mark.parametrize(
    "fields",
    [
        {"happened": False, "output": 1},
        {"happened": None, "output": 1},
        {"happened": "yes"},
        {"happened": 1},
        {"happened": True, "result": 1},
        {},
    ],
)
def test_no_reconciled(fields: dict[str, Any]) -> None:
    """There is an output only of what happened, and nothing is guessed."""
    with pytest.raises(ValidationError):
        Reconciled(**fields)


@pytest.mark.parametrize(
    ("retry", "longest"),
    [
        (NO_RETRY, 0.0),
        (Retry.of([]), 0.0),
        (Retry.of([1, 5, 2]), 5.0),
        (Retry(max_retries=2, delays=(1, 2, 9)), 2.0),
        (Retry(max_retries=9, delays=(3, 2)), 3.0),
        (Retry.of(3), 0.4),
        (Retry(max_retries=3, delay=2, factor=3, jitter=1), 18.0),
        (Retry(max_retries=5000), 60.0),
        (Retry(max_retries=5000, delay=0), 0.0),
    ],
)
def test_the_longest_wait_before_a_retry(retry: Retry, longest: float) -> None:
    """It is known beforehand, and is not a part of what a Retry is equal by."""
    assert retry.longest == pytest.approx(longest)
    drawn = [retry.delay_before(number, ValueError(), lambda: 0.0) for number in range(1, retry.max_retries + 1)]
    assert max((wait for wait in drawn if wait is not None), default=0.0) == retry.longest
    assert "longest" not in repr(retry)
    assert pickle.loads(pickle.dumps(retry)).longest == copy.copy(retry).longest == retry.longest
