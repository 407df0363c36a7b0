"""What is checked of steps that wait: for a person, for a signal, for a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from flujo.errors import NotSerializableError, StepDefinitionError, StepTypeError
from flujo.pipeline.answers import check_answer_value, schema_of
from flujo.pipeline.composites import refused, seconds, with_signature
from flujo.pipeline.control import UNSET, AskPerson, AwaitSignal, Sleep, Wait
from flujo.pipeline.function import Function, read_function
from flujo.pipeline.names import check_name, is_printable
from flujo.pipeline.retry import is_count, is_number
from flujo.pipeline.typecheck import assignable, readable
from flujo.state.codec import Codec

MAX_WAIT = timedelta(days=365_000)  # so that a moment that far ahead is still in the calendar
_PRINTABLE = "1 to 200 printable characters"


def ask_person(
    name: str,
    message: object,
    tp: Any,
    *,
    timeout: object,
    on_timeout: Any,
    quorum: object,
    voters: object,
) -> AskPerson:
    """Make the control of a step that asks a person; raises StepDefinitionError for options that make no sense."""
    check_name(name)
    if not callable(message) and (not isinstance(message, str) or not message.strip()):
        raise refused(name, "message_for_user", message, "a text, or a function of the step's input that returns one")
    if quorum is not None and (not is_count(quorum) or quorum < 1):
        raise refused(name, "quorum", quorum, "a whole number, 1 or more")
    allowed, count = _voters(voters, name), 1 if quorum is None else quorum
    if allowed is not None and count > len(allowed):
        raise refused(name, "quorum", quorum, f"at most {len(allowed)}, as there are no more `voters`")
    control = AskPerson(
        message=message,
        type=tp,
        schema=schema_of(tp, name),
        timeout=limit(timeout, name),
        quorum=count,
        listed=quorum is not None,
        voters=allowed,
    )
    return replace(control, on_timeout=_default(on_timeout, control, name))


def await_signal(name: str, tp: Any, *, signal: object, timeout: object, on_timeout: Any) -> AwaitSignal:
    """Make the control of a step that waits for a signal; raises StepDefinitionError for options that make no sense."""
    check_name(name)
    called = name if signal is None else signal
    if not is_printable(called):
        raise refused(name, "signal", signal, f"the signal's name: {_PRINTABLE}")
    control = AwaitSignal(signal=called, type=tp, schema=schema_of(tp, name), timeout=limit(timeout, name))
    return replace(control, on_timeout=_default(on_timeout, control, name))


def sleep_for(name: str, duration: object) -> Sleep:
    """Make the control of a step that sleeps; raises StepDefinitionError for what is no duration."""
    given = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if not is_number(given) or not 0 <= given <= MAX_WAIT.total_seconds():
        raise refused(name, "duration", duration, "a number of seconds or a timedelta, from 0 to 1000 years")
    return Sleep(seconds=float(given))


def sleep_until(name: str, when: object) -> Sleep:
    """Make the control of a step that sleeps until a moment; raises StepDefinitionError for what is none."""
    if not isinstance(when, datetime):
        if not callable(when):
            raise refused(
                name, "when", when, "a datetime with a time zone, or a function of the input that returns one"
            )
        return Sleep(until=when)
    if when.utcoffset() is None:
        raise StepDefinitionError(
            f"Step {name!r}: `when` is {when.isoformat(' ')}, and does not say in which time zone.",
            hint='Give it one: `datetime(..., tzinfo=UTC)`, or `tzinfo=ZoneInfo("Europe/Rome")`.',
            step=name,
            option="when",
            value=when,
        )
    try:
        return Sleep(until=when.astimezone(UTC))
    except OverflowError:
        raise refused(name, "when", when, "a moment that in UTC is in the calendar too") from None


def limit(timeout: object, name: str) -> float | None:
    """Return how many seconds a step waits, None for no limit; raises StepDefinitionError for what is no time."""
    if timeout is None:
        return None
    found = seconds(timeout, name)
    if found > MAX_WAIT.total_seconds():
        raise refused(name, "timeout", timeout, "at most 1000 years, or None for no limit")
    return found


def limited(control: Wait, timeout: object, name: str) -> Wait:
    """Return the control with another time limit; raises StepDefinitionError for that of a sleep."""
    if isinstance(control, Sleep):
        raise StepDefinitionError(
            f"Step {name!r} sleeps, and has no time limit.",
            hint="Let it sleep for less, or give the limit to a step around it.",
            step=name,
            option="timeout",
            value=timeout,
        )
    return replace(control, timeout=limit(timeout, name))


def input_type(control: Wait, name: str) -> Any:
    """Return which input the step takes: what its function of the input is declared to take.

    Raises StepDefinitionError for a function that is none of the input alone, StepTypeError for one that is declared
    to return something else.
    """
    if isinstance(control, AskPerson) and callable(control.message):
        return _read(control.message, "message_for_user", str, name).input_type
    if isinstance(control, Sleep) and callable(control.until):
        return _read(control.until, "when", datetime, name).input_type
    return Any


def _read(given: Callable[..., Any], option: str, wanted: type[Any], name: str) -> Function:
    function = read_function(with_signature(given), f"{name}>{option}")
    if function.is_async or function.takes_context or not function.takes_input:
        raise refused(
            name, option, given, f"a plain function of the step's input alone that returns a {wanted.__name__}"
        )
    if not assignable(function.output_type, wanted):
        raise StepTypeError(
            f"`{option}` of step {name!r} returns {readable(function.output_type)}, and has to return "
            f"{wanted.__name__}.",
            hint="Change its annotation, or let it return what it has to.",
            step=name,
            output_type=function.output_type,
            input_type=wanted,
        )
    return function


def _voters(voters: object, name: str) -> tuple[str, ...] | None:
    if voters is None:
        return None
    found = tuple(voters) if isinstance(voters, Sequence) and not isinstance(voters, str) else ()
    if not found or not all(map(is_printable, found)) or len(set(found)) < len(found):
        raise refused(name, "voters", voters, f"a list of different names, each of {_PRINTABLE}")
    return found


def _default(value: Any, control: AskPerson | AwaitSignal, name: str) -> Any:
    """Return the output of a step whose time has run out, checked now, and not after a week of waiting."""
    if value is UNSET:
        return UNSET
    if control.timeout is None:
        raise StepDefinitionError(
            f"Step {name!r} has an `on_timeout`, but waits for as long as it takes.",
            hint="Say `timeout=`, or leave `on_timeout` out.",
            step=name,
            option="on_timeout",
            value=value,
        )
    try:
        found = check_answer_value(control.output_type, value)
    except ValueError as error:
        shown = f"a {readable(control.output_type)}, and it is not ({error})"
        raise refused(name, "on_timeout", value, shown) from None
    try:
        Codec().encode(found, "on_timeout")
    except NotSerializableError as error:
        raise StepDefinitionError(
            f"Step {name!r}: {error.message}", hint=error.hint, step=name, option="on_timeout", value=value
        ) from error
    return found
