"""What steps and pipelines consist of: the fields of `Step` and `Pipeline`, and what is checked when one is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any, Literal

from flujo.errors import PipelineDefinitionError
from flujo.pipeline import composites
from flujo.pipeline.control import Control
from flujo.pipeline.names import MAX_NAME, check_name, is_printable
from flujo.pipeline.retry import NO_RETRY, Retry
from flujo.pipeline.typecheck import readable


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False, repr=False)
class StepParts:
    """The fields of a Step.

    kind            "step": a function. Steps that contain pipelines, and those that wait, have kinds of their own.
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
    on_crash        what follows where the process died while the step ran: "retry" it, "ask" a person, or a step of
                    kind "decision" that finds out, given the idempotency key
    executor        the name of the executor that runs `fn`; None: this process
    control         what a step of a kind of its own does, with its bodies or by waiting; a function has none
    decision        what a branch or a loop asks: a step of kind "decision"
    bodies          the pipelines inside this step, each under its key, in order; a function has none
    """

    name: str
    kind: str = "step"
    fn: Callable[..., Any] = composites.never_called
    is_async: bool = False
    takes_input: bool = True
    takes_context: bool = False
    input_type: Any = Any
    output_type: Any = Any
    context_type: Any = Any
    retry: Retry = NO_RETRY
    timeout: float | None = None
    doc: str = ""
    undo: StepParts | None = None
    on_crash: Literal["retry", "ask"] | StepParts = "retry"
    executor: str | None = None
    control: Control | None = None
    decision: StepParts | None = None
    bodies: tuple[tuple[str, PipelineParts], ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)
        composites.check_depth(self.name, self.bodies)

    def __repr__(self) -> str:
        return f"<Step {self.name}: {readable(self.input_type)} -> {readable(self.output_type)}>"

    @property
    def depth(self) -> int:
        """How many levels of pipelines are inside the step: 0 for a function."""
        return 1 + max(body.depth for _, body in self.bodies) if self.bodies else 0


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False, repr=False)
class PipelineParts:
    """The fields of a Pipeline; `depth` is how many levels of pipelines are inside its steps."""

    steps: tuple[StepParts, ...]
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
    _before: InitVar[PipelineParts | None] = None

    def __post_init__(self, _before: PipelineParts | None) -> None:
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

    def annotations(self) -> Iterator[Any]:
        """Yield every declared type of every step, and of what they decide, undo and find out; but not Any."""
        for found in self.steps:
            yield from composites.declared_types(found)

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        shown = [found.name for found in self.steps[:6]] + ["..."] * (len(self.steps) > 6)
        return f"<Pipeline {f'{self.name}: ' if self.name else ''}{' >> '.join(shown)}>"


def shares_context(found: StepParts | PipelineParts) -> bool:
    """Tell whether the step or pipeline, or anything that is done inside it, takes the run's context."""
    if isinstance(found, PipelineParts):
        return found._shares_context
    others = (found, found.decision, found.on_crash)
    takes = any(isinstance(other, StepParts) and other.takes_context for other in others)
    return takes or any(body._shares_context for _, body in found.bodies)
