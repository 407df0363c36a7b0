"""The run's context: a pydantic model, or a dict where none is declared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from flujo.errors import ConfigurationError
from flujo.pipeline import Pipeline
from flujo.pipeline.typecheck import assignable, readable
from flujo.state.codec import fields_of, restore_model


class ContextKind:
    """How contexts of one runner are made, taken apart for a save, and put together again."""

    __slots__ = ("_takers", "model")

    def __init__(self, model: type[BaseModel] | None) -> None:
        given: object = model
        if given is not None and not (isinstance(given, type) and issubclass(given, BaseModel)):
            raise ConfigurationError(
                f"context_model is a pydantic model, not {model!r}.",
                hint="Derive it from pydantic.BaseModel.",
            )
        self.model = model
        self._takers: dict[Pipeline[Any, Any], bool] = {}

    def wanted_by(self, pipeline: Pipeline[Any, Any]) -> bool:
        """Return whether runs of this pipeline have a context; the steps are looked at once."""
        wanted = self._takers.get(pipeline)
        if wanted is None:
            self._check(pipeline)
            wanted = self.model is not None or any(step.takes_context for step in pipeline.steps)
            self._takers[pipeline] = wanted
        return wanted

    def check(self, pipeline: Pipeline[Any, Any]) -> None:
        """Raise ConfigurationError where a step wants a context that this kind is not."""
        self.wanted_by(pipeline)

    def _check(self, pipeline: Pipeline[Any, Any]) -> None:
        for step in pipeline.steps:
            wanted = step.context_type
            if step.takes_context and not assignable(self.model or dict[str, Any], wanted):
                has = f"context_model is {self.model.__name__}" if self.model else "no context_model is given"
                model = isinstance(wanted, type) and issubclass(wanted, BaseModel)
                raise ConfigurationError(
                    f"Step {step.name!r} takes a context of type {readable(wanted)}, but {has}.",
                    hint=f"Create the runner with context_model={readable(wanted)}."
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
