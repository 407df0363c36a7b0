"""Which pipeline a runner runs: one that it was given, or a named one of a registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.version import InvalidVersion, Version

from flujo.engine import Route
from flujo.errors import ConfigurationError, PipelineMismatchError, ResumeError, VersionNotRegisteredError
from flujo.pipeline import LATEST, Migration, Pipeline, PipelineRegistry, Reconciled, Registered, Step
from flujo.state.codec import declare

_UNNAMED, _UNVERSIONED = "pipeline", "1.0.0"


class Code:
    """The code for a new run, and for one that was saved."""

    def __init__(
        self,
        pipeline: Step[Any, Any] | Pipeline[Any, Any] | None,
        registry: PipelineRegistry | None,
        name: str | None,
        version: str,
        pipeline_id: str | None,
    ) -> None:
        self._registry = registry
        self._version = version
        self._given: Registered | None = None
        self._declared: dict[int, Pipeline[Any, Any]] = {}
        if (pipeline is None) == (registry is None):
            raise ConfigurationError(
                "Flujo needs a pipeline or a registry" + (", not both." if registry is not None else "."),
                hint="Use Flujo(pipeline, ...) or Flujo(registry=..., pipeline_name=...).",
            )
        given: object = registry
        if given is not None and not isinstance(given, PipelineRegistry):
            raise ConfigurationError(
                f"registry is a PipelineRegistry, not {type(given).__name__}.",
                hint="Make one, and register the pipelines with it.",
            )
        if pipeline is not None:
            self._given = _as_registered(pipeline, name, version, pipeline_id)
            self._name = self._given.name
            return
        if not name:
            raise ConfigurationError(
                "Flujo with a registry needs the name of a pipeline in it.", hint="Give pipeline_name=..."
            )
        if pipeline_id is not None:
            raise ConfigurationError(
                "With a registry the pipeline_id comes from there.", hint="Give it to registry.register(...)."
            )
        self._name = name

    def known(self) -> list[Registered]:
        """Return every version of the code that a run may need."""
        if self._given is not None:
            return [self._given]
        assert self._registry is not None
        if self._name not in self._registry.names():
            return []
        return [self._registry.get(self._name, version) for version in self._registry.versions(self._name)]

    def declare_types(self) -> None:
        """Make the types of all versions known to the codec, so that what was stored with them can be restored."""
        declare(Reconciled)
        for found in self.known():
            if id(found.pipeline) not in self._declared:
                self._declared[id(found.pipeline)] = found.pipeline
                for annotation in found.pipeline.annotations():
                    declare(annotation)

    def for_new(self) -> Registered:
        """Return what a new run executes; raises PipelineNotRegisteredError, VersionNotRegisteredError."""
        if self._given is not None:
            return self._given
        assert self._registry is not None
        return self._registry.get(self._name, self._version)

    def for_state(self, state: Mapping[str, Any]) -> Registered:
        """Return what a saved run goes on with; raises what `route` raises."""
        return self.route(state).code

    def route(self, state: Mapping[str, Any]) -> Route:
        """Return what a saved run goes on with: its own version, or the one asked for, where migrations lead there.

        Raises PipelineMismatchError, PipelineNotRegisteredError, VersionNotRegisteredError.
        """
        if state["pipeline_name"] != self._name:
            raise PipelineMismatchError(
                f"Run {state['run_id']!r} belongs to pipeline {state['pipeline_name']!r}, not to {self._name!r}.",
                hint="Use another run_id, or resume it with its own pipeline.",
                run_id=state["run_id"],
                found=state["pipeline_name"],
                expected=self._name,
            )
        stored = state["pipeline_version"]
        if self._given is None:
            assert self._registry is not None
            ended = state["status"] in ("completed", "cancelled") or state.get("phase") in ("undoing", "undone")
            migrations = () if ended else self._migrations(self._registry, stored)
            try:
                own = self._registry.get(self._name, stored)
            except VersionNotRegisteredError:
                if not migrations:
                    raise
                own = None
            if not migrations and own is not None:
                return Route(code=own)
            return Route(code=self._registry.get(self._name, self._version), migrations=migrations, source=own)
        if self._version != LATEST and not _equal(self._version, stored):
            raise VersionNotRegisteredError(
                f"Run {state['run_id']!r} started with version {stored!r} of pipeline {self._name!r}, "
                f"and this runner has {self._version!r}.",
                hint="Resume it with its own version, or register both with a PipelineRegistry.",
                name=self._name,
                version=stored,
                registered=[self._version],
            )
        return Route(code=self._given)

    def _migrations(self, registry: PipelineRegistry, stored: str) -> tuple[Migration, ...]:
        """Return what carries a run of that version to the one that this runner is asked for."""
        try:
            target = registry.get(self._name, self._version)
        except ResumeError:  # then the run goes on with its own
            return ()
        return registry.migrations(self._name, stored, target.version)


def _equal(version: str, other: str) -> bool:
    try:
        return Version(version) == Version(other)
    except InvalidVersion:
        return version == other


def _as_registered(
    pipeline: Step[Any, Any] | Pipeline[Any, Any], name: str | None, version: str, pipeline_id: str | None
) -> Registered:
    if not isinstance(pipeline, (Step, Pipeline)):
        raise ConfigurationError(
            f"Flujo runs a pipeline or a step, not {type(pipeline).__name__}.",
            hint="Decorate the function with @step, or give registry=...",
        )
    try:
        Version(_UNVERSIONED if version == LATEST else version)
    except (InvalidVersion, TypeError):
        raise ConfigurationError(
            f"{version!r} is no version.", hint='Write it as PEP 440 says: "1.0.0", "2.1rc1".', version=version
        ) from None
    whole = pipeline if isinstance(pipeline, Pipeline) else Pipeline.of(pipeline)
    called = name or whole.name or (pipeline.name if isinstance(pipeline, Step) else _UNNAMED)
    return Registered(
        pipeline=whole,
        name=called,
        version=_UNVERSIONED if version == LATEST else version,
        pipeline_id=pipeline_id or called,
    )
