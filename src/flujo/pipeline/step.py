"""The decorator that makes a step of a function."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar, overload

from flujo.errors import StepDefinitionError
from flujo.pipeline.function import name_of, read_function
from flujo.pipeline.pipeline import Step, check_name
from flujo.pipeline.retry import Retry, is_number

__all__ = ["Step", "StepDecorator", "step"]

A = TypeVar("A")
B = TypeVar("B")
ContextT = TypeVar("ContextT")
X_contra = TypeVar("X_contra", contravariant=True)
Y_co = TypeVar("Y_co", covariant=True)
C_contra = TypeVar("C_contra", contravariant=True)


class _WithContext(Protocol[X_contra, C_contra, Y_co]):
    """A function of an input and the run's context."""

    def __call__(self, given: X_contra, /, *, context: C_contra) -> Y_co: ...


class _ContextOnly(Protocol[C_contra, Y_co]):
    """A function of the run's context alone."""

    def __call__(self, *, context: C_contra) -> Y_co: ...


class StepDecorator(Protocol):
    """What `step(...)` with options returns: it turns a function into a Step."""

    @overload
    def __call__(self, fn: Callable[[], Coroutine[Any, Any, B]], /) -> Step[object, B]: ...
    @overload
    def __call__(self, fn: _ContextOnly[ContextT, Coroutine[Any, Any, B]], /) -> Step[object, B]: ...
    @overload
    def __call__(self, fn: Callable[[A], Coroutine[Any, Any, B]], /) -> Step[A, B]: ...
    @overload
    def __call__(self, fn: _WithContext[A, ContextT, Coroutine[Any, Any, B]], /) -> Step[A, B]: ...
    @overload
    def __call__(self, fn: Callable[[], B], /) -> Step[object, B]: ...
    @overload
    def __call__(self, fn: _ContextOnly[ContextT, B], /) -> Step[object, B]: ...
    @overload
    def __call__(self, fn: Callable[[A], B], /) -> Step[A, B]: ...
    @overload
    def __call__(self, fn: _WithContext[A, ContextT, B], /) -> Step[A, B]: ...


@overload
def step(fn: Callable[[], Coroutine[Any, Any, B]], /) -> Step[object, B]: ...
@overload
def step(fn: _ContextOnly[ContextT, Coroutine[Any, Any, B]], /) -> Step[object, B]: ...
@overload
def step(fn: Callable[[A], Coroutine[Any, Any, B]], /) -> Step[A, B]: ...
@overload
def step(fn: _WithContext[A, ContextT, Coroutine[Any, Any, B]], /) -> Step[A, B]: ...
@overload
def step(fn: Callable[[], B], /) -> Step[object, B]: ...
@overload
def step(fn: _ContextOnly[ContextT, B], /) -> Step[object, B]: ...
@overload
def step(fn: Callable[[A], B], /) -> Step[A, B]: ...
@overload
def step(fn: _WithContext[A, ContextT, B], /) -> Step[A, B]: ...
@overload
def step(
    *,
    name: str | None = None,
    retries: int | Sequence[float] | Retry = 0,
    timeout: float | timedelta | None = None,
) -> StepDecorator: ...


def step(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    retries: int | Sequence[float] | Retry = 0,
    timeout: float | timedelta | None = None,
) -> Any:
    """Make a step of a function: `@step`, or `@step(retries=3, timeout=30)`.

    The function is async or plain. Its first parameter is the input, a parameter called `context` gets the
    run's context, and whatever else it has needs a default.

    name     what the step is called in results, paths and errors; by default the function's name
    retries  how many further attempts a failure gets: a number, a list of delays in seconds, or a Retry
    timeout  how long one attempt may take: seconds or a timedelta

    Raises StepDefinitionError for a function or an option that cannot work.
    """

    def decorate(fn: Any) -> Step[Any, Any]:
        return _make(fn, name, retries, timeout)

    return decorate if fn is None else decorate(fn)


def _make(
    fn: Any,
    name: str | None,
    retries: int | Sequence[float] | Retry,
    timeout: float | timedelta | None,
) -> Step[Any, Any]:
    called = name_of(fn) if name is None else name
    check_name(called)
    function = read_function(fn, called)
    return Step(
        name=called,
        fn=function.fn,
        is_async=function.is_async,
        takes_input=function.takes_input,
        takes_context=function.takes_context,
        input_type=function.input_type,
        output_type=function.output_type,
        context_type=function.context_type,
        retry=_retry(retries, called),
        timeout=_seconds(timeout, called),
        doc=function.doc,
    )


def _retry(retries: int | Sequence[float] | Retry, name: str) -> Retry:
    try:
        return Retry.of(retries)
    except StepDefinitionError as error:
        # Retry does not know for which step it is made.
        raise StepDefinitionError(f"Step {name!r}: {error.message}", hint=error.hint, **error.data, step=name) from None


def _seconds(timeout: float | timedelta | None, name: str) -> float | None:
    if timeout is None:
        return None
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if not is_number(seconds) or seconds <= 0:
        raise StepDefinitionError(
            f"Step {name!r}: `timeout` cannot be {timeout!r}.",
            hint="It has to be a number of seconds or a timedelta, more than 0; leave it out for no limit.",
            step=name,
            option="timeout",
            value=timeout,
        )
    return float(seconds)
