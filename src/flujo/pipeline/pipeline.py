"""Step and Pipeline, the two things that `>>` joins; each speaks of the other, so they are one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, InitVar, dataclass, field, replace
from typing import Any, Generic, TypeAlias, TypeGuard, TypeVar, overload

from flujo.errors import PipelineDefinitionError, StepDefinitionError, StepTypeError
from flujo.pipeline.retry import Retry
from flujo.pipeline.typecheck import assignable, readable

# Users meet these two names in editors and messages: `Step[In, Out]` says it without a suffix.
In = TypeVar("In", contravariant=True)  # noqa: PLC0105
Out = TypeVar("Out", covariant=True)  # noqa: PLC0105
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")

MAX_NAME = 200
_RESERVED = ".[]#>"  # they separate the parts of a path: enrich[17].fetch, refine#3.critic


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
    bodies: tuple[tuple[str, Pipeline[Any, Any]], ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)

    def __repr__(self) -> str:
        return f"<Step {self.name}: {readable(self.input_type)} -> {readable(self.output_type)}>"

    def named(self, name: str) -> Step[In, Out]:
        """Return the same step under another name, to use it twice in one pipeline."""
        return replace(self, name=name)

    def __rshift__(self, following: Step[Out, B] | Pipeline[Out, B]) -> Pipeline[In, B]:
        return _joined(self, following)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False, repr=False)
class Pipeline(Generic[In, Out]):
    """Steps that run one after the other, each with the output of the one before; never changed.

    Raises PipelineDefinitionError for no steps or two of one name, StepTypeError for neighbours whose types
    do not fit.
    """

    steps: tuple[Step[Any, Any], ...]
    _: KW_ONLY
    name: str | None = None
    input_type: Any = field(init=False)
    output_type: Any = field(init=False)
    # The structure as text, kept here by graph.fingerprint.
    _fingerprint: str | None = field(init=False, default=None)
    # How many leading steps come from a pipeline that was checked already: so that `>>` in a chain of
    # thousands looks at the new joint only.
    _checked: InitVar[int] = 0

    def __post_init__(self, _checked: int) -> None:
        if not self.steps:
            raise PipelineDefinitionError("A pipeline needs at least one step.", hint="Pass the steps to it.")
        if self.name is not None and not is_printable(self.name):
            raise PipelineDefinitionError(
                f"{self.name!r} cannot name a pipeline.", hint=f"Use 1 to {MAX_NAME} printable characters."
            )
        _check_names(self.steps)
        for position in range(max(_checked, 1), len(self.steps)):
            _check_types(self.steps[position - 1], self.steps[position])
        object.__setattr__(self, "input_type", self.steps[0].input_type)
        object.__setattr__(self, "output_type", self.steps[-1].output_type)

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
        return Pipeline(self.steps, name=name, _checked=len(self.steps))

    def annotations(self) -> Iterator[Any]:
        """Yield every declared type of every step: input, output, context, but not Any."""
        for found in self.steps:
            for declared in (found.input_type, found.output_type, found.context_type):
                if declared is not Any:
                    yield declared
            for _, body in found.bodies:
                yield from body.annotations()

    def __rshift__(self, following: Step[Out, B] | Pipeline[Out, B]) -> Pipeline[In, B]:
        return _joined(self, following)

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        shown = [found.name for found in self.steps[:6]] + ["..."] * (len(self.steps) > 6)
        return f"<Pipeline {f'{self.name}: ' if self.name else ''}{' >> '.join(shown)}>"


Chain: TypeAlias = Step[A, B] | Pipeline[A, B]


def check_name(name: object) -> None:
    """Raise StepDefinitionError if a step cannot have this name."""
    if not is_printable(name) or any(mark in name for mark in _RESERVED):
        raise StepDefinitionError(
            f"A step cannot be called {name!r}.",
            hint=f"Give it a name with `@step(name=...)`: 1 to {MAX_NAME} printable characters, "
            f"none of {' '.join(_RESERVED)} among them.",
            step=name,
        )


def is_printable(name: object) -> TypeGuard[str]:
    """Tell whether `name` is text that can stand in a line of a message, and is not too long for it."""
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable()


def _joined(one: Chain[Any, Any], other: Chain[Any, Any]) -> Pipeline[Any, Any]:
    if not isinstance(other, Step | Pipeline) and not callable(other):
        return NotImplemented
    before = _steps_of(one)
    return Pipeline(before + _steps_of(other), _checked=len(before))


def _steps_of(given: Chain[Any, Any]) -> tuple[Step[Any, Any], ...]:
    if isinstance(given, Pipeline):
        return given.steps
    if isinstance(given, Step):
        return (given,)
    shown = getattr(given, "__name__", None) or repr(given)
    raise PipelineDefinitionError(
        f"{shown} is neither a step nor a pipeline.", hint="Decorate the function with `@step`.", found=given
    )


def _check_names(steps: tuple[Step[Any, Any], ...]) -> None:
    if len({found.name for found in steps}) == len(steps):
        return
    seen: dict[str, int] = {}
    for position, found in enumerate(steps):
        first = seen.setdefault(found.name, position)
        if first != position:
            raise PipelineDefinitionError(
                f"Steps {first + 1} and {position + 1} are both called {found.name!r}.",
                hint=f"Rename one of them: `{found.name}.named({found.name + '_again'!r})`.",
                step=found.name,
                positions=(first, position),
            )


def _check_types(before: Step[Any, Any], after: Step[Any, Any]) -> None:
    given, wanted = before.output_type, after.input_type
    if assignable(given, wanted):
        return
    qualified = readable(given) == readable(wanted)
    raise StepTypeError(
        f"Step {before.name!r} returns {readable(given, qualified=qualified)}, but the next step, "
        f"{after.name!r}, takes {readable(wanted, qualified=qualified)}.",
        hint="Change one of the two annotations, or put a step between them that converts.",
        step=before.name,
        next_step=after.name,
        output_type=given,
        input_type=wanted,
    )
