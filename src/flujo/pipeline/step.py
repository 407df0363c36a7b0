"""The decorator that makes a step of a function."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, overload

from flujo.errors import StepDefinitionError, StepTypeError
from flujo.pipeline import composites
from flujo.pipeline.function import name_of, read_function
from flujo.pipeline.names import check_name, is_printable
from flujo.pipeline.pipeline import Step, decision_of
from flujo.pipeline.reconciled import Reconciled
from flujo.pipeline.retry import Retry
from flujo.pipeline.typecheck import assignable, readable

__all__ = ["Step", "StepDecorator", "step"]

A = TypeVar("A")
B = TypeVar("B")
ContextT = TypeVar("ContextT")
X_contra = TypeVar("X_contra", contravariant=True)
Y_co = TypeVar("Y_co", covariant=True)
C_contra = TypeVar("C_contra", contravariant=True)
Reconciles: TypeAlias = Callable[..., Reconciled | Coroutine[Any, Any, Reconciled]]
OnCrash: TypeAlias = Literal["retry", "ask"] | Reconciles | Step[Any, Reconciled]


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
    undo: Callable[..., Any] | Step[Any, Any] | None = None,
    executor: str | None = None,
    on_crash: OnCrash = "retry",
) -> StepDecorator: ...


def step(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    retries: int | Sequence[float] | Retry = 0,
    timeout: float | timedelta | None = None,
    undo: Callable[..., Any] | Step[Any, Any] | None = None,
    executor: str | None = None,
    on_crash: OnCrash = "retry",
) -> Any:
    """Make a step of a function: `@step`, or `@step(retries=3, timeout=30)`.

    The function is async or plain. Its first parameter is the input, a parameter called `context` gets the
    run's context, and whatever else it has needs a default.

    name     what the step is called in results, paths and errors; by default the function's name
    retries  how many further attempts a failure gets: a number, a list of delays in seconds, or a Retry
    timeout  how long one attempt may take: seconds or a timedelta
    undo     takes the step's effect back when its run fails for good or is cancelled: a function of the step's output
             (and `*, context`), which gets this step's retries and no limit of time, or a step with its own
    executor the name of the executor that a plain function runs in; see `Flujo(executors=...)`
    on_crash what follows where the process died while the step ran: "retry" does it again, "ask" lets a person say
             whether it happened, and a function of the idempotency key (and `*, context`) finds that out: it returns a
             `Reconciled`. A step of such a function serves too, and has its retries

    Raises StepDefinitionError for a function or an option that cannot work, StepTypeError for an undo that does not
    take what the step returns, or an `on_crash` that does not return a Reconciled.
    """

    def decorate(fn: Any) -> Step[Any, Any]:
        made = _make(fn, name, retries, timeout)
        found = _on_crash(on_crash, made.name)
        return replace(made, executor=_executor(executor, made), undo=_undo(undo, made), on_crash=found)

    return decorate if fn is None else decorate(fn)


def _make(
    fn: Any,
    name: str | None,
    retries: int | Sequence[float] | Retry,
    timeout: float | timedelta | None,
) -> Step[Any, Any]:
    called = name_of(fn) if name is None else name
    check_name(called)
    limit = None if timeout is None else composites.seconds(timeout, called)
    return Step(name=called, retry=_retry(retries, called), timeout=limit, **read_function(fn, called).parts())


def _executor(name: object, made: Step[Any, Any]) -> str | None:
    if name is None:
        return None
    if not is_printable(name):
        raise composites.refused(made.name, "executor", name, "the name of one of the runner's `executors`")
    if made.is_async:
        raise StepDefinitionError(
            f"Step {made.name!r} is async, and executor {name!r} runs plain functions.",
            hint="Write `def` instead of `async def`, or leave `executor` out.",
            step=made.name,
            option="executor",
            value=name,
        )
    return name


def _undo(given: object, made: Step[Any, Any]) -> Step[Any, Any] | None:
    if given is None:
        return None
    if not callable(given) and not isinstance(given, Step):
        raise composites.refused(made.name, "undo", given, "a function of the step's output, or a step")
    if not isinstance(given, Step):
        called = name_of(given)
        given = replace(_make(given, "undo" if called == "<lambda>" else called, 0, None), retry=made.retry)
    if given.kind != "step" or given.undo is not None:
        what = "has an undo of its own" if given.undo is not None else f"is of kind {given.kind!r}"
        raise StepDefinitionError(
            f"Step {made.name!r}: its undo {given.name!r} {what}.",
            hint="An undo is a function of the step's output, or a step made of one.",
            step=made.name,
            option="undo",
            value=given,
        )
    if given.takes_input and not assignable(made.output_type, given.input_type):
        qualified = readable(made.output_type) == readable(given.input_type)
        raise StepTypeError(
            f"Step {made.name!r} returns {readable(made.output_type, qualified=qualified)}, but its undo, "
            f"{given.name!r}, takes {readable(given.input_type, qualified=qualified)}.",
            hint="An undo is given what the step returned; change one of the two annotations.",
            step=made.name,
            next_step=given.name,
            output_type=made.output_type,
            input_type=given.input_type,
        )
    return given


def _on_crash(given: object, name: str) -> Literal["retry", "ask"] | Step[Any, Any]:
    if isinstance(given, str) and given in ("retry", "ask"):
        return "ask" if given == "ask" else "retry"
    # One that needs to be found out about itself would never come to an end.
    if not callable(given) and not (isinstance(given, Step) and given.on_crash == "retry"):
        raise composites.refused(name, "on_crash", given, '"retry", "ask", or a function that finds out what happened')
    found = decision_of("on_crash", "reconcile", given, name)
    if not assignable(found.output_type, Reconciled):
        raise StepTypeError(
            f"The `on_crash` of step {name!r} returns {readable(found.output_type)}, and has to return Reconciled.",
            hint="Let it return `Reconciled(happened=...)`: True with the step's output, False, or None for unknown.",
            step=name,
            output_type=found.output_type,
            input_type=Reconciled,
        )
    if found.takes_input and not assignable(str, found.input_type):
        raise StepTypeError(
            f"The `on_crash` of step {name!r} takes {readable(found.input_type)}, and is given a str.",
            hint="It is given the step's idempotency key, which the step sees as `current_step().idempotency_key`.",
            step=name,
            output_type=str,
            input_type=found.input_type,
        )
    return found


def _retry(retries: int | Sequence[float] | Retry, name: str) -> Retry:
    try:
        return Retry.of(retries)
    except StepDefinitionError as error:
        # Retry does not know for which step it is made.
        raise StepDefinitionError(f"Step {name!r}: {error.message}", hint=error.hint, **error.data, step=name) from None
