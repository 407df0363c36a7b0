from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flujo.errors import NonRetryableError, StepDefinitionError
from flujo.pipeline import NO_RETRY, Retry

FAILURE = RuntimeError("down")


def never() -> float:
    raise AssertionError("no randomness is wanted without jitter")


def delays(retry: Retry, upto: int = 6) -> list[float | None]:
    return [retry.delay_before(number, FAILURE, never) for number in range(1, upto + 1)]


def test_delays_grow_up_to_their_limit() -> None:
    """Each is `factor` times the one before, none is over `max_delay`, and then there is no further try."""
    retry = Retry(max_retries=5, delay=1, factor=3, max_delay=20)
    assert delays(retry) == [1, 3, 9, 20, 20, None]


def test_explicit_delays_win_and_the_last_one_serves_on() -> None:
    """A list of delays replaces the growth."""
    assert delays(Retry(max_retries=4, delay=9, delays=(1, 5))) == [1, 5, 5, 5, None, None]


def test_jitter_takes_a_random_share_off() -> None:
    """With jitter 0.5 a delay of 10 s is between 5 and 10 s."""
    retry = Retry(max_retries=1, delay=10, jitter=0.5)
    assert retry.delay_before(1, FAILURE, lambda: 0.0) == 10
    assert retry.delay_before(1, FAILURE, lambda: 0.5) == 7.5
    assert retry.delay_before(1, FAILURE, lambda: 1.0) == 5


def test_no_retry_never_tries_again() -> None:
    """It is what `retries=0` means."""
    assert NO_RETRY.delay_before(1, FAILURE, never) is None
    assert Retry.of(0) is NO_RETRY
    assert Retry.of([]) == Retry(max_retries=0, delays=())


def test_non_retryable_always_ends() -> None:
    """Whatever the number of retries and the predicate say."""
    retry = Retry(max_retries=3, when=lambda error: True)
    assert retry.delay_before(1, NonRetryableError("no"), never) is None


def test_the_predicate_decides() -> None:
    """It sees the error itself."""
    retry = Retry(max_retries=3, when=lambda error: isinstance(error, OSError))
    assert retry.delay_before(1, OSError("x"), never) == 0.1
    assert retry.delay_before(1, ValueError("x"), never) is None


def test_a_predicate_that_raises_leaves_a_note_on_the_original_error() -> None:
    """The step fails with its own error; the predicate's is written under it."""

    def broken(error: BaseException) -> bool:
        raise KeyError("status")

    failure = RuntimeError("down")
    assert Retry(max_retries=3, when=broken).delay_before(1, failure, never) is None
    assert failure.__notes__ == ["Not retried: the predicate `when` raised KeyError: 'status'"]


def test_what_the_option_accepts() -> None:
    """A number, a list or tuple of delays, or a Retry, which stays itself."""
    retry = Retry(max_retries=2)
    assert Retry.of(retry) is retry
    assert Retry.of(2) == retry
    assert Retry.of([1, 10]) == Retry.of((1.0, 10.0)) == Retry(max_retries=2, delays=(1.0, 10.0))


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": -1},
        {"max_retries": True},
        {"max_retries": 1.0},
        {"delay": -0.1},
        {"delay": float("inf")},
        {"delay": "1"},
        {"factor": 0.5},
        {"max_delay": -1},
        {"jitter": 1.1},
        {"jitter": -0.1},
        {"jitter": float("nan")},
        {"delays": (1, -1)},
        {"delays": ()},
        {"delays": "12"},
        {"delays": 3},
        {"when": 3},
    ],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    """The error names the option and the value."""
    with pytest.raises(StepDefinitionError) as caught:
        Retry(**{"max_retries": 3, **options})
    assert caught.value.data["option"] in options
    assert caught.value.hint.startswith("It has to be ")


def test_a_list_given_as_delays_is_frozen() -> None:
    """So that nobody changes a declared step from outside."""
    given_delays: Any = [1, 2]
    retry = Retry(max_retries=2, delays=given_delays)
    given_delays.append(3)
    assert retry.delays == (1.0, 2.0)


@given(
    number=st.integers(1, 10_000),
    delay=st.floats(0, 1e6),
    factor=st.floats(1, 1e6),
    max_delay=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
    share=st.floats(0, 1),
)
def test_a_delay_is_never_negative_and_never_over_its_limit(
    number: int, delay: float, factor: float, max_delay: float, jitter: float, share: float
) -> None:
    """Also for retry 10,000, where the growth has left what a float can hold."""
    retry = Retry(max_retries=10_000, delay=delay, factor=factor, max_delay=max_delay, jitter=jitter)
    found = retry.delay_before(number, FAILURE, lambda: share)
    assert found is not None and 0 <= found <= max_delay
