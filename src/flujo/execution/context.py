"""The run's context: a pydantic model, or a dict where none is declared."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from flujo.errors import ConfigurationError
from flujo.pipeline import Pipeline, Step
from flujo.pipeline.composites import DECISIONS
from flujo.pipeline.merge import Merge, MergeFunction
from flujo.pipeline.typecheck import assignable, readable
from flujo.state.codec import fields_of, restore_model
from flujo.state.codec.models import PRIVATE


class ContextKind:
    """How contexts of one runner are made, taken apart for a save, and put together again.

    `merges` says, by field, what becomes of one that several branches changed: as declared in the model, or as given
    here, which counts for more. Raises ConfigurationError for what is no model, no field or no merge.
    """

    __slots__ = ("_takers", "merges", "model")

    def __init__(
        self, model: type[BaseModel] | None, merges: Mapping[str, Merge | MergeFunction] | None = None
    ) -> None:
        given: object = model
        if given is not None and not (isinstance(given, type) and issubclass(given, BaseModel)):
            raise ConfigurationError(
                f"context_model is a pydantic model, not {model!r}.",
                hint="Derive it from pydantic.BaseModel.",
            )
        self.model = model
        self.merges: Mapping[str, Merge] = {**_declared_merges(model), **_given_merges(model, merges)}
        self._takers: dict[Pipeline[Any, Any], bool] = {}

    def wanted_by(self, pipeline: Pipeline[Any, Any]) -> bool:
        """Return whether runs of this pipeline have a context; the steps are looked at once."""
        wanted = self._takers.get(pipeline)
        if wanted is None:
            self._check(pipeline)
            # Not shares_context alone: an undo takes the run's own context, and shares nothing with branches.
            wanted = self.model is not None or any(step.takes_context for _, step in _everything(pipeline))
            self._takers[pipeline] = wanted
        return wanted

    def check(self, pipeline: Pipeline[Any, Any]) -> None:
        """Raise ConfigurationError where a step wants a context that this kind is not."""
        self.wanted_by(pipeline)

    def _check(self, pipeline: Pipeline[Any, Any]) -> None:
        for called, step in _everything(pipeline):
            wanted = step.context_type
            if step.takes_context and not assignable(self.model or dict[str, Any], wanted):
                has = f"context_model is {self.model.__name__}" if self.model else "no context_model is given"
                model = isinstance(wanted, type) and issubclass(wanted, BaseModel)
                raise ConfigurationError(
                    f"{called} takes a context of type {readable(wanted)}, but {has}.",
                    hint=f"Create the runner with context_model={readable(wanted)}"
                    + (", or let this step take what the others take." if self.model else ".")
                    if model
                    else "A context is a pydantic model, or a dict where the runner has no context_model.",
                    step=step.name,
                )

    def make(self, initial: BaseModel | Mapping[str, Any] | None) -> Any:
        """Return the first context of a run, from initial data; raises ConfigurationError where they do not fit."""
        if self.model is None:
            if isinstance(initial, BaseModel):
                raise ConfigurationError(
                    "initial_context_data is a model, but no context_model is given.",
                    hint=f"Create the runner with context_model={type(initial).__name__}.",
                )
            return _fields(initial)
        if type(initial) is self.model:
            return initial
        if isinstance(initial, BaseModel):
            raise ConfigurationError(
                f"initial_context_data is a {type(initial).__name__}, but the context_model is {self.model.__name__}.",
                hint=f"Give a {self.model.__name__}, or a dict of its fields.",
            )
        try:
            return self.model.model_validate(_fields(initial))
        except ValidationError as error:
            raise ConfigurationError(
                f"initial_context_data does not make a {self.model.__name__}: {error}",
                hint="Give every field without a default.",
            ) from error

    def values(self, context: Any) -> dict[str, Any]:
        """Return the context's fields in a dict of their own."""
        return dict(context) if self.model is None else fields_of(context)

    def restore(self, values: dict[str, Any]) -> Any:
        """Return the context of these fields, exactly as it was; raises ContextMismatchError."""
        return dict(values) if self.model is None else restore_model(self.model, values)


def _fields(initial: object) -> dict[str, Any]:
    if initial is not None and not isinstance(initial, Mapping):
        raise ConfigurationError(
            f"initial_context_data is {initial!r}, which has no fields.", hint="Give a dict of them, or a model."
        )
    return dict(initial or {})


def _everything(pipeline: Pipeline[Any, Any]) -> Iterator[tuple[str, Step[Any, Any]]]:
    """Yield every step of a pipeline, and what they have inside, decide and undo, with what messages call it."""
    for step in pipeline.steps:
        yield from _inside(f"Step {step.name!r}", step)


def _inside(called: str, step: Step[Any, Any]) -> Iterator[tuple[str, Step[Any, Any]]]:
    yield called, step
    if step.decision is not None:
        yield f"`{DECISIONS[step.kind]}` of step {step.name!r}", step.decision
    if step.undo is not None:
        yield from _inside(f"The undo of step {step.name!r}", step.undo)
    for _, body in step.bodies:
        yield from _everything(body)


def _declared_merges(model: type[BaseModel] | None) -> dict[str, Merge]:
    if model is None:
        return {}
    merges = {PRIVATE: Merge.UNION}  # the private attributes, in a dict that lies beside the fields
    for name, field in model.model_fields.items():
        for declared in field.metadata:
            if isinstance(declared, Merge):
                merges[name] = declared
    return merges


def _given_merges(model: type[BaseModel] | None, given: object) -> dict[str, Merge]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"context_merges is {given!r}, which names no fields.", hint='Give a dict: {"field": Merge.APPEND}.'
        )
    open_ended = model is None or model.model_config.get("extra") == "allow"
    for name in given:
        if not isinstance(name, str) or not (open_ended or (model is not None and name in model.model_fields)):
            fields = [] if model is None else list(model.model_fields)
            near = difflib.get_close_matches(str(name), fields, n=1)
            meant = f"Did you mean {near[0]!r}?" if near else f"Its fields are {', '.join(fields)}."
            raise ConfigurationError(
                f"context_merges names {name!r}, which is no field of the context.",
                hint=meant if fields else "The keys are names of fields.",
                field=name,
            )
    return {name: Merge.of(merge) for name, merge in given.items()}
