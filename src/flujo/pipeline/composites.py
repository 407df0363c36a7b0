"""What is checked of steps with pipelines inside, and which types they have.

Step and Pipeline, which use this, are seen here by their declared parts only.
"""

from __future__ import annotations

import collections.abc
import enum
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, NoReturn, Protocol

from flujo.errors import PipelineDefinitionError, StepDefinitionError, StepTypeError
from flujo.pipeline.control import Control, ItemError, MapOver
from flujo.pipeline.retry import is_count, is_number
from flujo.pipeline.typecheck import assignable, readable

MAX_DEPTH = 32  # composite steps inside one another
PRIMARY, FALLBACK = "primary", "fallback"
DEFAULT_CASE = "default"
DECISIONS = {"branch": "by", "loop": "until"}


class AnyStep(Protocol):
    """What is looked at of a step."""

    @property
    def name(self) -> str:
        """See Step, here and below."""

    @property
    def kind(self) -> str:
        """A function, or what is done with the bodies."""

    @property
    def input_type(self) -> Any:
        """As declared."""

    @property
    def output_type(self) -> Any:
        """As declared."""

    @property
    def context_type(self) -> Any:
        """As declared."""

    @property
    def control(self) -> Control | None:
        """What is done with the bodies."""

    @property
    def decision(self) -> AnyStep | None:
        """What is asked."""

    @property
    def undo(self) -> AnyStep | None:
        """What takes it back."""

    @property
    def on_crash(self) -> str | AnyStep:
        """What follows a crash, or finds it out."""

    @property
    def bodies(self) -> tuple[tuple[str, AnyPipeline], ...]:
        """The pipelines inside."""


class AnyPipeline(Protocol):
    """What is looked at of a pipeline."""

    @property
    def steps(self) -> Sequence[AnyStep]:
        """In order."""

    @property
    def output_type(self) -> Any:
        """That of the last step."""

    @property
    def depth(self) -> int:
        """How many levels of pipelines are inside."""


Bodies = tuple[tuple[str, AnyPipeline], ...]


class Entry(typing.NamedTuple):
    """Where a step's input goes: who takes it, as messages say it, and the type that it takes."""

    taker: str
    type: Any


def never_called(*_: Any, **__: Any) -> NoReturn:
    """Stand where a step would have its function that has pipelines inside instead, or waits."""
    raise AssertionError("A step with pipelines inside, or one that waits, has no function.")


def with_signature(given: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decision that tells its parameters: `operator.attrgetter("kind")` and `bool` do not, and take one."""

    def asked(value: Any) -> Any:
        return given(value)

    try:
        inspect.signature(given)
    except ValueError:
        return asked
    return given


# --- types ---


def entries(found: AnyStep) -> Iterator[Entry]:
    """Yield every place that the input of a step goes to: one for a function, any number for a composite."""
    yield from _entries(found, "")


def _entries(found: AnyStep, inside: str) -> Iterator[Entry]:
    where = f"{inside}.{found.name}" if inside else found.name
    if not found.bodies:
        yield Entry(repr(found.name) + (f" in {inside!r}" if inside else ""), found.input_type)
        return
    if found.kind == "branch" and found.decision is not None:
        yield Entry(f"`by` of {where!r}", found.decision.input_type)
    for key, body in found.bodies:
        for entry in _entries(body.steps[0], f"{where}.{key}" if key else where):
            if isinstance(found.control, MapOver):
                yield Entry(f"{where!r}, whose items go to {entry.taker}", iterable_of(entry.type))
            else:
                yield entry


def common_input(found: AnyStep) -> Any:
    """Return the type that all places take to which the input of a step goes; Any if there is none to be found."""
    wanted: list[Any] = []
    for entry in entries(found):
        if entry.type is not Any and entry.type is not object and entry.type not in wanted:
            wanted.append(entry.type)
    narrow = (tp for tp in wanted if all(assignable(tp, other) for other in wanted))
    return next(narrow, Any)


def union_of(declared: Sequence[Any]) -> Any:
    """Return the union of types; Any where one of them is."""
    if any(tp is Any for tp in declared):
        return Any
    try:
        return typing.Union[tuple(declared)]  # noqa: UP007  # of a tuple whose length is known only now
    except TypeError:  # a text, or an Annotated of something unhashable
        return Any


def outputs_of(bodies: Bodies) -> Any:
    """Return the union of the outputs of several pipelines."""
    return union_of([body.output_type for _, body in bodies])


def dict_of(value: Any) -> Any:
    """Return the type of a dict with names for keys."""
    return types.GenericAlias(dict, (str, value))


def iterable_of(item: Any) -> Any:
    """Return the type of anything that has items."""
    return types.GenericAlias(collections.abc.Iterable, (item,))


def list_of(item: Any) -> Any:
    """Return the type of a list."""
    return types.GenericAlias(list, (item,))


def declared_types(found: AnyStep) -> Iterator[Any]:
    """Yield every type declared of a step, and of what it decides, undoes, finds out and has inside; but not Any."""
    for declared in (found.input_type, found.output_type, found.context_type):
        if declared is not Any:
            yield declared
    if isinstance(found.control, MapOver) and found.control.collect:
        yield ItemError
    for other in (found.decision, found.undo, found.on_crash):
        if other is not None and not isinstance(other, str):
            yield from declared_types(other)
    for _, body in found.bodies:
        for inner in body.steps:
            yield from declared_types(inner)


def check_types(before: AnyStep, after: AnyStep) -> None:
    """Raise StepTypeError if the output of one step does not fit wherever it goes in the next."""
    for entry in entries(after):
        if not assignable(before.output_type, entry.type):
            given, wanted = _told_apart(before.output_type, entry.type)
            raise StepTypeError(
                f"Step {before.name!r} returns {given}, but the next step, {entry.taker}, takes {wanted}.",
                hint="Change one of the two annotations, or put a step between them that converts.",
                step=before.name,
                next_step=after.name,
                output_type=before.output_type,
                input_type=entry.type,
            )


def _told_apart(given: Any, wanted: Any) -> tuple[str, str]:
    qualified = readable(given) == readable(wanted)
    return readable(given, qualified=qualified), readable(wanted, qualified=qualified)


def check_loop(found: AnyStep) -> None:
    """Raise StepTypeError if the output of a loop's body does not fit its input, or `until`."""
    (_, body), decision = found.bodies[0], found.decision
    last = body.steps[-1]
    takers = [*entries(found)]
    if decision is not None:
        takers.append(Entry(f"`until` of {found.name!r}", decision.input_type))
    for entry in takers:
        if not assignable(body.output_type, entry.type):
            given, wanted = _told_apart(body.output_type, entry.type)
            raise StepTypeError(
                f"The body of loop {found.name!r} is given its own output again: its last step, {last.name!r}, "
                f"returns {given}, but {entry.taker} takes {wanted}.",
                hint="Let the body return what it takes; put a step at its end that converts.",
                step=last.name,
                next_step=found.name,
                output_type=body.output_type,
                input_type=entry.type,
            )


def check_answer(found: AnyStep) -> None:
    """Raise an error if what the decision of a step is declared to answer decides nothing."""
    assert found.decision is not None
    asked, answer = DECISIONS[found.kind], found.decision.output_type
    wanted = str if found.kind == "branch" else bool
    if not assignable(answer, wanted):
        raise StepTypeError(
            f"`{asked}` of step {found.name!r} returns {readable(answer)}, and has to return {wanted.__name__}.",
            hint="It answers the name of a case." if wanted is str else "It answers whether the loop is done.",
            step=found.name,
            output_type=answer,
            input_type=wanted,
        )


def check_answers_are_cases(found: AnyStep) -> None:
    """Raise PipelineDefinitionError if `by` is declared to answer a case that is not there."""
    assert found.decision is not None
    cases = [key for key, _ in found.bodies]
    for answer in _all_values(found.decision.output_type):
        if isinstance(answer, str) and answer not in cases:
            raise PipelineDefinitionError(
                f"`by` of step {found.name!r} may answer {str(answer)!r}, which is no case of it.",
                hint=f"The cases are {', '.join(cases)}; add it, or say `default=`.",
                step=found.name,
                case=str(answer),
                cases=cases,
            )


def _all_values(declared: Any) -> tuple[Any, ...]:
    if typing.get_origin(declared) is Literal:
        return typing.get_args(declared)
    of_texts = isinstance(declared, enum.EnumMeta) and issubclass(declared, str)
    return tuple(str.__str__(member) for member in declared) if of_texts else ()


# --- names and options ---


def check_names(steps: Sequence[AnyStep]) -> None:
    """Raise PipelineDefinitionError if two steps of one pipeline have one name."""
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


def check_depth(name: str, bodies: Bodies) -> None:
    """Raise PipelineDefinitionError if a step with these bodies is nested too deep."""
    if bodies and 1 + max(body.depth for _, body in bodies) > MAX_DEPTH:
        raise PipelineDefinitionError(
            f"Step {name!r} is nested deeper than {MAX_DEPTH} levels.",
            hint="Join steps with `>>`, which does not nest, instead of putting one into the other.",
            step=name,
            limit=MAX_DEPTH,
        )


def check_any(what: str, name: str, bodies: Mapping[str, object]) -> None:
    """Raise PipelineDefinitionError if there are no branches or cases (`what` says which)."""
    if not bodies:
        raise PipelineDefinitionError(
            f"Step {name!r} has no {what}.",
            hint="Give each by its name: `left=..., right=...`.",
            step=name,
        )


def check_at_least_one(option: str, value: object, name: str) -> None:
    """Raise StepDefinitionError if an option is no whole number, 1 or more."""
    if not is_count(value) or value < 1:
        raise refused(name, option, value, "a whole number, 1 or more")


def map_over(name: str, limit: object, on_error: object, least: object, tolerated: object) -> MapOver:
    """Make the control of a map from its options; raises StepDefinitionError for those that make no sense."""
    check_at_least_one("max_concurrency", limit, name)
    if on_error not in ("fail", "collect"):
        raise refused(name, "on_error", on_error, '"fail" or "collect"')
    for option, value in (("min_successful", least), ("tolerated_failures", tolerated)):
        if value is None:
            continue
        if not is_count(value):
            raise refused(name, option, value, "a whole number, 0 or more")
        if on_error != "collect":
            raise StepDefinitionError(
                f'Step {name!r}: `{option}` says nothing with on_error="fail", where the first failure ends the step.',
                hint='Add on_error="collect", or leave it out.',
                step=name,
                option=option,
                value=value,
            )
    return MapOver(
        max_concurrency=typing.cast(int, limit),
        collect=on_error == "collect",
        min_successful=typing.cast("int | None", least),
        tolerated_failures=typing.cast("int | None", tolerated),
    )


def map_output(item: Any, control: MapOver) -> Any:
    """Return the output type of a map whose body has the output type `item`."""
    return list_of(union_of([item, ItemError]) if control.collect else item)


def check_default(name: str, default: str | None, cases: Mapping[str, object]) -> None:
    """Raise PipelineDefinitionError if the default is no case."""
    if default is not None and default not in cases:
        raise PipelineDefinitionError(
            f"The default of step {name!r} is {default!r}, which is no case of it.",
            hint=f"The cases are {', '.join(cases)}; name one of them, or give a step or a pipeline.",
            step=name,
            case=default,
            cases=list(cases),
        )


def seconds(timeout: object, name: str) -> float:
    """Return a time limit in seconds; raises StepDefinitionError if it is none."""
    given = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if not is_number(given) or given <= 0:
        raise refused(name, "timeout", timeout, "a number of seconds or a timedelta, more than 0")
    return float(given)


def refused(name: str, option: str, value: object, wanted: str) -> StepDefinitionError:
    """Return the error for an option of a step that has to be something else."""
    return StepDefinitionError(
        f"Step {name!r}: `{option}` cannot be {value!r}.",
        hint=f"It has to be {wanted}.",
        step=name,
        option=option,
        value=value,
    )
