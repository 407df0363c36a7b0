"""Step and Pipeline, the two things that `>>` joins; each speaks of the other, so they are one module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, TypeAlias, TypeVar, overload

from flujo.errors import PipelineDefinitionError
from flujo.pipeline import composites, waits
from flujo.pipeline import control as kinds
from flujo.pipeline.declared import PipelineParts, StepParts
from flujo.pipeline.function import read_function
from flujo.pipeline.mermaid import draw
from flujo.pipeline.names import check_key
from flujo.pipeline.progress import RunState

# Users meet these two names in editors and messages: `Step[In, Out]` says it without a suffix.
In = TypeVar("In", contravariant=True)  # noqa: PLC0105
Out = TypeVar("Out", covariant=True)  # noqa: PLC0105
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
Limit: TypeAlias = float | timedelta | None
Message: TypeAlias = str | Callable[[Any], str]


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False, repr=False)
class Step(StepParts, Generic[In, Out]):
    """One unit of work whose result is saved; made with `@step`, joined with `>>`, never changed.

    StepParts says what the fields are.
    """

    undo: Step[Any, Any] | None = None
    on_crash: Literal["retry", "ask"] | Step[Any, Any] = "retry"
    decision: Step[Any, Any] | None = None
    bodies: tuple[tuple[str, Pipeline[Any, Any]], ...] = ()

    def named(self, name: str) -> Step[In, Out]:
        """Return the same step under another name, to use it twice in one pipeline; a signal keeps its name."""
        return replace(self, name=name)

    def with_timeout(self, timeout: float | timedelta) -> Step[In, Out]:
        """Return the same step with a time limit, in seconds or as a timedelta.

        A function's limit is for one attempt. That of a step with pipelines inside is for all of it; it goes on while
        the run is paused, and begins anew after a crash. That of a step that waits is its `timeout`. Raises
        StepDefinitionError for what is no time, and for a step that sleeps.
        """
        if isinstance(self.control, kinds.Wait):
            return replace(self, control=waits.limited(self.control, timeout, self.name))
        return replace(self, timeout=composites.seconds(timeout, self.name))

    def fallback(self: Step[A, B], other: Chain[A, B]) -> Step[A, B]:
        """Return a step that does this one, and where it failed for good `other`, with the same input.

        It has this step's name. Inside it are the pipelines "primary" and "fallback".
        """
        bodies = _bodies(self.name, {composites.PRIMARY: self, composites.FALLBACK: other})
        return _composite(self.name, "fallback", kinds.Fallback(), bodies, composites.outputs_of(bodies))

    @staticmethod
    def parallel(name: str, /, **branches: Chain[A, B]) -> Step[A, dict[str, B]]:
        """Make a step that does all branches at once, each with the step's input.

        The output is a dict of the branches' outputs, in the order in which they are written here.
        Raises PipelineDefinitionError for no branches, StepDefinitionError for a name that no branch can have.
        """
        composites.check_any("branches", name, branches)
        bodies = _bodies(name, branches, "branch")
        output = composites.dict_of(composites.outputs_of(bodies))
        return _composite(name, "parallel", kinds.Parallel(), bodies, output)

    @overload
    @staticmethod
    def map_over(
        name: str, body: Chain[A, B], *, max_concurrency: int = 10, on_error: Literal["fail"] = "fail"
    ) -> Step[Iterable[A], list[B]]: ...
    @overload
    @staticmethod
    def map_over(
        name: str,
        body: Chain[A, B],
        *,
        max_concurrency: int = 10,
        on_error: Literal["collect"],
        min_successful: int | None = None,
        tolerated_failures: int | None = None,
    ) -> Step[Iterable[A], list[B | kinds.ItemError]]: ...
    @staticmethod
    def map_over(
        name: str,
        body: Chain[Any, Any],
        *,
        max_concurrency: int = 10,
        on_error: str = "fail",
        min_successful: int | None = None,
        tolerated_failures: int | None = None,
    ) -> Step[Any, Any]:
        """Make a step that does the body once for each item of its input; the output is the list of the outputs.

        max_concurrency     how many items are in work at a time
        on_error            "fail": the first item that fails for good fails the step, and the others are stopped;
                            "collect": the output has an ItemError in its place
        min_successful      with "collect": fail when fewer items than these can succeed
        tolerated_failures  with "collect": fail when more items than these have failed

        Raises StepDefinitionError for an option that makes no sense.
        """
        control = composites.map_over(name, max_concurrency, on_error, min_successful, tolerated_failures)
        bodies = _bodies(name, {"": body})
        return _composite(name, "map", control, bodies, composites.map_output(bodies[0][1].output_type, control))

    @staticmethod
    def branch_on(
        name: str,
        /,
        *,
        by: Decision[A, str],
        default: str | Chain[A, B] | None = None,
        **cases: Chain[A, B],
    ) -> Step[A, B]:
        """Make a step that does one of the cases: the one whose name `by` answers for the step's input.

        by       a function of the input, and of `context` if it has such a parameter, async or plain, that answers the
                 name of a case (an Enum of texts will do). The answer is recorded, and never asked for again.
                 A step serves too, and has its retries
        default  what is done for an answer that is no case: the name of one, or a step or pipeline, which then is
                 the case "default"; without it such an answer fails the step

        Raises PipelineDefinitionError for no cases or a default that is none, StepTypeError for a `by` that is
        declared to return no text, StepDefinitionError for a name that no case can have.
        """
        fallback = None if isinstance(default, str | None) else default
        named = cases if fallback is None else {**cases, composites.DEFAULT_CASE: fallback}
        composites.check_any("cases", name, named)
        chosen = default if isinstance(default, str | None) else composites.DEFAULT_CASE
        composites.check_default(name, chosen, named)
        bodies = _bodies(name, named, "case")
        decision = decision_of("by", "choice", by, name)
        control = kinds.BranchOn(default=chosen)
        made: Step[A, B] = _composite(name, "branch", control, bodies, composites.outputs_of(bodies), decision)
        composites.check_answer(made)
        if chosen is None:
            composites.check_answers_are_cases(made)
        return made

    @staticmethod
    def loop_until(name: str, body: Chain[A, A], *, until: Decision[A, bool], max_iterations: int = 100) -> Step[A, A]:
        """Make a step that does the body again and again, each time with its last output, until `until` says True.

        until           a function of the body's output, and of `context` if it has such a parameter, async or plain;
                        its answers are recorded, and never asked for again. A step serves too, and has its retries
        max_iterations  how often the body is done at most; one that is not done then fails the step

        Raises StepTypeError where the body's output does not fit its input, StepDefinitionError for options.
        """
        composites.check_at_least_one("max_iterations", max_iterations, name)
        bodies = _bodies(name, {"": body})
        control, decision = kinds.LoopUntil(max_iterations=max_iterations), decision_of("until", "exit", until, name)
        made: Step[A, A] = _composite(name, "loop", control, bodies, bodies[0][1].output_type, decision)
        composites.check_answer(made)
        composites.check_loop(made)
        return made

    @overload
    @staticmethod
    def human_in_the_loop(
        name: str,
        message_for_user: Message,
        input_schema: type[B],
        *,
        timeout: Limit = None,
        on_timeout: B = ...,
        quorum: None = None,
        voters: Sequence[str] | None = None,
    ) -> Step[Any, B]: ...
    @overload
    @staticmethod
    def human_in_the_loop(
        name: str,
        message_for_user: Message,
        input_schema: type[B],
        *,
        timeout: Limit = None,
        on_timeout: list[B] = ...,
        quorum: int,
        voters: Sequence[str] | None = None,
    ) -> Step[Any, list[B]]: ...
    @overload
    @staticmethod
    def human_in_the_loop(
        name: str,
        message_for_user: Message,
        input_schema: Any = ...,
        *,
        timeout: Limit = None,
        on_timeout: Any = ...,
        quorum: int | None = None,
        voters: Sequence[str] | None = None,
    ) -> Step[Any, Any]: ...
    @staticmethod
    def human_in_the_loop(
        name: str,
        message_for_user: Message,
        input_schema: Any = Any,
        *,
        timeout: Limit = None,
        on_timeout: Any = kinds.UNSET,
        quorum: int | None = None,
        voters: Sequence[str] | None = None,
    ) -> Step[Any, Any]:
        """Make a step that waits for a person's answer, which is its output; it holds no process while it waits.

        message_for_user  what the person is told: a text, or a plain function of the step's input that returns it
        input_schema      the type of the answer: a model, `bool`, `Literal["yes", "no"]`
        timeout           how long to wait, in seconds or as a timedelta
        on_timeout        the output where nobody has answered by then; without it the step fails (WaitTimeoutError)
        quorum            how many have to answer, each once; the output then is the list of their answers
        voters            who may answer

        Raises StepDefinitionError for an option that makes no sense, or a type whose values cannot be stored.
        """
        options = {"timeout": timeout, "on_timeout": on_timeout, "quorum": quorum, "voters": voters}
        return _waiting(name, waits.ask_person(name, message_for_user, input_schema, **options))

    @overload
    @staticmethod
    def wait_for(
        name: str, signal_type: type[B], *, signal: str | None = None, timeout: Limit = None, on_timeout: B = ...
    ) -> Step[Any, B]: ...
    @overload
    @staticmethod
    def wait_for(
        name: str, signal_type: Any = ..., *, signal: str | None = None, timeout: Limit = None, on_timeout: Any = ...
    ) -> Step[Any, Any]: ...
    @staticmethod
    def wait_for(
        name: str,
        signal_type: Any = Any,
        *,
        signal: str | None = None,
        timeout: Limit = None,
        on_timeout: Any = kinds.UNSET,
    ) -> Step[Any, Any]:
        """Make a step that waits for a signal to its run; the output is what is sent with it.

        signal_type  the type of what is sent
        signal       the signal's name; by default the step's
        timeout      how long to wait, in seconds or as a timedelta
        on_timeout   the output where none has come by then; without it the step fails (WaitTimeoutError)

        Raises StepDefinitionError for an option that makes no sense, or a type whose values cannot be stored.
        """
        control = waits.await_signal(name, signal_type, signal=signal, timeout=timeout, on_timeout=on_timeout)
        return _waiting(name, control)

    @staticmethod
    def sleep(name: str, duration: float | timedelta) -> Step[Any, Any]:
        """Make a step that waits so long, in seconds or as a timedelta; the output is its input."""
        return _waiting(name, waits.sleep_for(name, duration))

    @staticmethod
    def sleep_until(name: str, when: datetime | Callable[[Any], datetime]) -> Step[Any, Any]:
        """Make a step that waits until a moment, or the one that a plain function of its input returns.

        The output is its input. Raises StepDefinitionError for a datetime without a time zone.
        """
        return _waiting(name, waits.sleep_until(name, when))

    def __rshift__(self, following: Step[Out, B] | Pipeline[Out, B]) -> Pipeline[In, B]:
        return _joined(self, following)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False, repr=False)
class Pipeline(PipelineParts, Generic[In, Out]):
    """Steps that run one after the other, each with the output of the one before; never changed.

    Raises PipelineDefinitionError for no steps or two of one name, StepTypeError for neighbours whose types do not fit.
    """

    steps: tuple[Step[Any, Any], ...]

    @overload
    @staticmethod
    def of(one: Chain[A, B], /, *, name: str | None = None) -> Pipeline[A, B]: ...
    @overload
    @staticmethod
    def of(one: Chain[A, B], two: Chain[B, C], /, *, name: str | None = None) -> Pipeline[A, C]: ...
    @overload
    @staticmethod
    def of(one: Chain[A, B], two: Chain[B, C], three: Chain[C, D], /, *, name: str | None = None) -> Pipeline[A, D]: ...
    @overload
    @staticmethod
    def of(
        one: Chain[A, Any],
        two: Chain[Any, Any],
        three: Chain[Any, Any],
        four: Chain[Any, Any],
        /,
        *more: Chain[Any, Any],
        name: str | None = None,
    ) -> Pipeline[A, Any]: ...
    @staticmethod
    def of(*steps: Chain[Any, Any], name: str | None = None) -> Pipeline[Any, Any]:
        """Join steps and pipelines; what `a >> b >> c` does, for any number of them."""
        return Pipeline(tuple(found for given in steps for found in _steps_of(given)), name=name)

    def named(self, name: str) -> Pipeline[In, Out]:
        """Return the same pipeline under a name; a longer one that is made of it has no name again."""
        return Pipeline(self.steps, name=name, _before=self)

    def as_step(self, name: str) -> Step[In, Out]:
        """Make one step of the pipeline, to nest it in another: `>>` alone joins the steps of both."""
        return _composite(name, "pipeline", kinds.Nested(), (("", self),), self.output_type)

    def to_mermaid(self, state: RunState | None = None) -> str:
        """Return the pipeline as the text of a Mermaid flowchart.

        state  a saved state (what `load_state` returns), a run's result or step records: colours what of the pipeline
               is done, running, failed and waiting, and counts the items of maps
        """
        return draw(self, state)

    def __rshift__(self, following: Step[Out, B] | Pipeline[Out, B]) -> Pipeline[In, B]:
        return _joined(self, following)


Chain: TypeAlias = Step[A, B] | Pipeline[A, B]
Decision: TypeAlias = kinds.Decides[A, B] | Step[A, B]


def _joined(one: Chain[Any, Any], other: Chain[Any, Any]) -> Pipeline[Any, Any]:
    if not isinstance(other, Step | Pipeline) and not callable(other):
        return NotImplemented
    return Pipeline(_steps_of(one) + _steps_of(other), _before=one if isinstance(one, Pipeline) else None)


def _steps_of(given: Chain[Any, Any], where: str = "") -> tuple[Step[Any, Any], ...]:
    if isinstance(given, Pipeline):
        return given.steps
    if isinstance(given, Step):
        return (given,)
    shown = getattr(given, "__name__", None) or repr(given)
    raise PipelineDefinitionError(
        f"{shown}{where} is neither a step nor a pipeline.", hint="Decorate the function with `@step`.", found=given
    )


def _composite(
    name: str,
    kind: str,
    control: kinds.Control,
    bodies: tuple[tuple[str, Pipeline[Any, Any]], ...],
    output_type: Any,
    decision: Step[Any, Any] | None = None,
) -> Step[Any, Any]:
    made: Step[Any, Any] = Step(
        name=name, kind=kind, output_type=output_type, control=control, decision=decision, bodies=bodies
    )
    return replace(made, input_type=composites.common_input(made))


def _waiting(name: str, control: kinds.Wait) -> Step[Any, Any]:
    given = waits.input_type(control, name)
    return Step(name=name, kind=control.kind, control=control, input_type=given, output_type=control.output_type)


def _bodies(
    name: str, given: Mapping[str, Chain[Any, Any]], what: str = ""
) -> tuple[tuple[str, Pipeline[Any, Any]], ...]:
    """Make a pipeline of each body; `what` is how messages call a key that the user chose."""
    bodies = []
    for key, found in given.items():
        if what:
            check_key(what, key, name)
        where = f", {what or key or 'the body'}{f' {key!r}' if what else ''} of step {name!r},"
        bodies.append((key, found if isinstance(found, Pipeline) else Pipeline(_steps_of(found, where))))
    return tuple(bodies)


def decision_of(option: str, called: str, given: object, name: str) -> Step[Any, Any]:
    """Make the step of kind "decision" of what an option of a step was given; `called` is its own name."""
    if isinstance(given, Step):
        if given.kind not in ("step", "decision") or given.undo is not None:
            raise composites.refused(name, option, given, "a function, or a step of one without an undo")
        return replace(given, kind="decision", name=called)
    if not callable(given):
        raise composites.refused(name, option, given, "a function of the value")
    function = read_function(composites.with_signature(given), f"{name}>{called}")
    return Step(name=called, kind="decision", **function.parts())
