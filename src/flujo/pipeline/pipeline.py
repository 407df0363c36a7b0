"""Step and Pipeline, the two things that `>>` joins; each speaks of the other, so they are one module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, InitVar, dataclass, field, replace
from datetime import timedelta
from typing import Any, Generic, Literal, TypeAlias, TypeVar, overload

from flujo.errors import PipelineDefinitionError
from flujo.pipeline import composites
from flujo.pipeline.control import BranchOn, Control, Decides, Fallback, ItemError, LoopUntil, Nested, Parallel
from flujo.pipeline.function import read_function
from flujo.pipeline.mermaid import draw
from flujo.pipeline.names import MAX_NAME, check_key, check_name, is_printable
from flujo.pipeline.progress import RunState
from flujo.pipeline.retry import NO_RETRY, Retry
from flujo.pipeline.typecheck import readable

# Users meet these two names in editors and messages: `Step[In, Out]` says it without a suffix.
In = TypeVar("In", contravariant=True)  # noqa: PLC0105
Out = TypeVar("Out", covariant=True)  # noqa: PLC0105
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False, repr=False)
class Step(Generic[In, Out]):
    """One unit of work whose result is saved; made with `@step`, joined with `>>`, never changed.

    kind            "step": a function. Steps that contain pipelines have kinds of their own.
    fn              what is called: `fn(input, context=context)`, each where it is taken
    is_async        whether `fn` gives a coroutine
    takes_input     whether `fn` has a first positional parameter
    takes_context   whether `fn` has a parameter called `context`
    input_type, output_type, context_type
                    as annotated; Any where there is no annotation, or one that cannot be resolved
    retry           when a failed attempt is followed by another
    timeout         seconds that one attempt may take; None: no limit
    doc             the function's docstring
    undo            what takes the step's effect back, given its output; itself a step
    executor        the name of the executor that runs `fn`; None: this process
    control         what a step of a kind of its own does with its bodies; a function has none
    decision        what a branch or a loop asks: a step of kind "decision"
    bodies          the pipelines inside this step, each under its key, in order; a function has none
    """

    name: str
    kind: str = "step"
    fn: Callable[..., Any]
    is_async: bool
    takes_input: bool
    takes_context: bool
    input_type: Any
    output_type: Any
    context_type: Any
    retry: Retry
    timeout: float | None
    doc: str = ""
    undo: Step[Any, Any] | None = None
    executor: str | None = None
    control: Control | None = None
    decision: Step[Any, Any] | None = None
    bodies: tuple[tuple[str, Pipeline[Any, Any]], ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)
        composites.check_depth(self.name, self.bodies)

    def __repr__(self) -> str:
        return f"<Step {self.name}: {readable(self.input_type)} -> {readable(self.output_type)}>"

    def named(self, name: str) -> Step[In, Out]:
        """Return the same step under another name, to use it twice in one pipeline."""
        return replace(self, name=name)

    def with_timeout(self, timeout: float | timedelta) -> Step[In, Out]:
        """Return the same step with a time limit, in seconds or as a timedelta.

        A function's limit is for one attempt. That of a step with pipelines inside is for all of it, from when this
        process began it. Raises StepDefinitionError for what is no time.
        """
        return replace(self, timeout=composites.seconds(timeout, self.name))

    def fallback(self: Step[A, B], other: Chain[A, B]) -> Step[A, B]:
        """Return a step that does this one, and where it failed for good `other`, with the same input.

        It has this step's name. Inside it are the pipelines "primary" and "fallback".
        """
        bodies = _bodies(self.name, {composites.PRIMARY: self, composites.FALLBACK: other})
        return _composite(self.name, "fallback", Fallback(), bodies, composites.outputs_of(bodies))

    @staticmethod
    def parallel(name: str, /, **branches: Chain[A, B]) -> Step[A, dict[str, B]]:
        """Make a step that does all branches at once, each with the step's input.

        The output is a dict of the branches' outputs, in the order in which they are written here.
        Raises PipelineDefinitionError for no branches, StepDefinitionError for a name that no branch can have.
        """
        composites.check_any("branches", name, branches)
        bodies = _bodies(name, branches, "branch")
        output = composites.dict_of(composites.outputs_of(bodies))
        return _composite(name, "parallel", Parallel(), bodies, output)

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
    ) -> Step[Iterable[A], list[B | ItemError]]: ...
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
        decision = _decision("by", "choice", by, name)
        control = BranchOn(default=chosen)
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
        control, decision = LoopUntil(max_iterations=max_iterations), _decision("until", "exit", until, name)
        made: Step[A, A] = _composite(name, "loop", control, bodies, bodies[0][1].output_type, decision)
        composites.check_answer(made)
        composites.check_loop(made)
        return made

    @property
    def depth(self) -> int:
        """How many levels of pipelines are inside the step: 0 for a function."""
        return 1 + max(body.depth for _, body in self.bodies) if self.bodies else 0

    def __rshift__(self, following: Step[Out, B] | Pipeline[Out, B]) -> Pipeline[In, B]:
        return _joined(self, following)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False, repr=False)
class Pipeline(Generic[In, Out]):
    """Steps that run one after the other, each with the output of the one before; never changed.

    `depth` is how many levels of pipelines are inside its steps. Raises PipelineDefinitionError for no steps or two
    of one name, StepTypeError for neighbours whose types do not fit.
    """

    steps: tuple[Step[Any, Any], ...]
    _: KW_ONLY
    name: str | None = None
    input_type: Any = field(init=False)
    output_type: Any = field(init=False)
    depth: int = field(init=False)
    # Whether anything inside takes the context: what shares_context answers.
    _shares_context: bool = field(init=False)
    # The structure as text, kept here by graph.fingerprint.
    _fingerprint: str | None = field(init=False, default=None)
    # The pipeline that the leading steps come from, and that was looked at already: so that `>>` in a chain of
    # thousands looks at the new ones only.
    _before: InitVar[Pipeline[Any, Any] | None] = None

    def __post_init__(self, _before: Pipeline[Any, Any] | None) -> None:
        if not self.steps:
            raise PipelineDefinitionError("A pipeline needs at least one step.", hint="Pass the steps to it.")
        if self.name is not None and not is_printable(self.name):
            raise PipelineDefinitionError(
                f"{self.name!r} cannot name a pipeline.", hint=f"Use 1 to {MAX_NAME} printable characters."
            )
        composites.check_names(self.steps)
        known = len(_before.steps) if _before is not None else 0
        for position in range(max(known, 1), len(self.steps)):
            composites.check_types(self.steps[position - 1], self.steps[position])
        object.__setattr__(self, "input_type", self.steps[0].input_type)
        object.__setattr__(self, "output_type", self.steps[-1].output_type)
        depth, shares = (_before.depth, _before._shares_context) if _before is not None else (0, False)
        object.__setattr__(self, "depth", max([depth, *(found.depth for found in self.steps[known:])]))
        object.__setattr__(self, "_shares_context", shares or any(map(shares_context, self.steps[known:])))

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
        return _composite(name, "pipeline", Nested(), (("", self),), self.output_type)

    def annotations(self) -> Iterator[Any]:
        """Yield every declared type of every step, decision and undo: input, output, context, but not Any."""
        for found in self.steps:
            yield from composites.declared_types(found)

    def to_mermaid(self, state: RunState | None = None) -> str:
        """Return the pipeline as the text of a Mermaid flowchart.

        state  a saved state (what `load_state` returns), a run's result or step records: colours what of the pipeline
               is done, running, failed and waiting, and counts the items of maps
        """
        return draw(self, state)

    def __rshift__(self, following: Step[Out, B] | Pipeline[Out, B]) -> Pipeline[In, B]:
        return _joined(self, following)

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        shown = [found.name for found in self.steps[:6]] + ["..."] * (len(self.steps) > 6)
        return f"<Pipeline {f'{self.name}: ' if self.name else ''}{' >> '.join(shown)}>"


Chain: TypeAlias = Step[A, B] | Pipeline[A, B]
Decision: TypeAlias = Decides[A, B] | Step[A, B]


def shares_context(found: Chain[Any, Any]) -> bool:
    """Tell whether the step or pipeline, or anything that is done inside it, takes the run's context."""
    if isinstance(found, Pipeline):
        return found._shares_context
    decides = found.decision is not None and found.decision.takes_context
    return found.takes_context or decides or any(body._shares_context for _, body in found.bodies)


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
    control: Control,
    bodies: tuple[tuple[str, Pipeline[Any, Any]], ...],
    output_type: Any,
    decision: Step[Any, Any] | None = None,
) -> Step[Any, Any]:
    made: Step[Any, Any] = Step(
        name=name,
        kind=kind,
        fn=composites.never_called,
        is_async=False,
        takes_input=True,
        takes_context=False,
        input_type=Any,
        output_type=output_type,
        context_type=Any,
        retry=NO_RETRY,
        timeout=None,
        control=control,
        decision=decision,
        bodies=bodies,
    )
    return replace(made, input_type=composites.common_input(made))


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


def _decision(option: str, called: str, given: Decision[Any, Any], name: str) -> Step[Any, Any]:
    """Make the step of kind "decision" of what `by` or `until` was given; `called` is its own name, `>` put before."""
    if isinstance(given, Step):
        if given.kind not in ("step", "decision") or given.undo is not None:
            raise composites.refused(name, option, given, "a function, or a step of one without an undo")
        return replace(given, kind="decision", name=called)
    if not callable(given):
        raise composites.refused(name, option, given, "a function of the value")
    function = read_function(composites.with_signature(given), f"{name}>{called}")
    return Step(
        name=called,
        kind="decision",
        fn=function.fn,
        is_async=function.is_async,
        takes_input=function.takes_input,
        takes_context=function.takes_context,
        input_type=function.input_type,
        output_type=function.output_type,
        context_type=function.context_type,
        retry=NO_RETRY,
        timeout=None,
        doc=function.doc,
    )
