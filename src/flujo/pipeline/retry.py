"""When a failed step is tried again, and how long to wait before that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from flujo.errors import NonRetryableError, NotPicklableError, StepDefinitionError

# The second because the next attempt would do all of the work again, to fail in the same place.
_FINAL = (NonRetryableError, NotPicklableError)


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether `value` is a finite number; True and False are not numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object) -> TypeGuard[int]:
    """Tell whether `value` is a whole number, 0 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Say how often a failed step is tried again, and how long to wait before each retry.

    The wait grows by `factor` from `delay` up to `max_delay`, all in seconds. `delays` replaces that
    growth: its last entry serves for every retry beyond its end. `jitter` is the share of each wait, 0
    to 1, that is drawn at random. `when` is asked whether this error is worth a retry.

    Raises StepDefinitionError for a number that makes no sense.
    """

    max_retries: int
    delay: float = 0.1
    factor: float = 2.0
    max_delay: float = 60.0
    jitter: float = 0.0
    delays: tuple[float, ...] | None = None
    when: Callable[[BaseException], bool] | None = None
    # The longest wait that there may be, in seconds. It is asked for at each step, so it is worked out once.
    longest: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not is_count(self.max_retries):
            raise _refused("max_retries", self.max_retries, "a whole number, 0 or more")
        for option, least in (("delay", 0), ("factor", 1), ("max_delay", 0)):
            value = getattr(self, option)
            if not is_number(value) or value < least:
                raise _refused(option, value, f"a finite number, {least} or more")
        if not is_number(self.jitter) or not 0 <= self.jitter <= 1:
            raise _refused("jitter", self.jitter, "a number from 0 to 1")
        if self.delays is not None:
            object.__setattr__(self, "delays", _checked_delays(self.delays, "delays"))
            if not self.delays and self.max_retries:
                raise _refused("delays", self.delays, "None, or hold a delay, where there are retries")
        if self.when is not None and not callable(self.when):
            raise _refused("when", self.when, "a function of the error that answers True or False")
        object.__setattr__(self, "longest", self._longest())

    @classmethod
    def of(cls, retries: int | Sequence[float] | Retry) -> Retry:
        """Make a Retry of what the option `retries` accepts: a number, delays in seconds, or a Retry."""
        if isinstance(retries, Retry):
            return retries
        if isinstance(retries, Sequence) and not isinstance(retries, str | bytes | bytearray):
            delays = _checked_delays(retries, "retries")
            return cls(max_retries=len(delays), delays=delays)
        if not is_count(retries):
            raise _refused("retries", retries, "a whole number, 0 or more, a list of seconds, or a Retry")
        return cls(max_retries=retries) if retries else NO_RETRY

    def delay_before(self, retry_number: int, error: Exception, random: Callable[[], float]) -> float | None:
        """Return the seconds to wait before retry 1, 2, ..., or None where there is to be none.

        `random` returns a number from 0 to 1; it is called only where there is jitter.
        """
        if retry_number > self.max_retries or isinstance(error, _FINAL) or not self._wanted(error):
            return None
        delay = self._planned(retry_number)
        return delay - delay * self.jitter * random() if self.jitter else delay

    def _longest(self) -> float:
        if not self.max_retries:
            return 0.0
        # Without a list of them the waits grow.
        return self._planned(self.max_retries) if self.delays is None else max(self.delays[: self.max_retries])

    def _planned(self, retry_number: int) -> float:
        if self.delays is not None:
            return self.delays[min(retry_number, len(self.delays)) - 1]
        try:
            return min(self.max_delay, self.delay * self.factor ** (retry_number - 1))
        except OverflowError:  # a float has no room for factor ** 2000
            return self.max_delay if self.delay else 0.0

    def _wanted(self, error: Exception) -> bool:
        if self.when is None:
            return True
        try:
            return bool(self.when(error))
        except Exception as broken:
            # The step's own failure is what the user has to see, so it must not be replaced by this one.
            error.add_note(f"Not retried: the predicate `when` raised {type(broken).__name__}: {broken}")
            return False


def _checked_delays(delays: Sequence[float], option: str) -> tuple[float, ...]:
    # A number or a string here is a slip that iterating would hide or report unreadably.
    if isinstance(delays, str | bytes | bytearray) or not isinstance(delays, Sequence):
        raise _refused(option, delays, "a list of delays in seconds")
    for delay in delays:
        if not is_number(delay) or delay < 0:
            raise _refused(option, delay, "finite delays in seconds, each 0 or more")
    return tuple(float(delay) for delay in delays)


def _refused(option: str, value: object, wanted: str) -> StepDefinitionError:
    return StepDefinitionError(
        f"`{option}` cannot be {value!r}.", hint=f"It has to be {wanted}.", option=option, value=value
    )


NO_RETRY = Retry(max_retries=0)
