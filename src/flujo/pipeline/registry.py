"""Named, versioned pipelines: what a saved run finds its code by."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from packaging.version import InvalidVersion, Version

from flujo.errors import PipelineNotRegisteredError, RegistryError, VersionNotRegisteredError
from flujo.pipeline.migrations import Migrate, Migration, checked_migration, find_path
from flujo.pipeline.names import MAX_NAME, is_printable
from flujo.pipeline.pipeline import Chain, Pipeline

LATEST = "latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """One entry: a pipeline, and the name, version and id under which its runs are stored."""

    pipeline: Pipeline[Any, Any]
    name: str
    version: str
    pipeline_id: str


class PipelineRegistry:
    """The pipelines of a process by name and version; safe to use from several threads.

    Versions are compared as PEP 440 says: "1.10" is newer than "1.9", and "1.0" is the same as "1.0.0".
    """

    def __init__(self) -> None:
        self._entries: dict[str, dict[Version, Registered]] = {}
        self._migrations: dict[str, dict[Version, dict[Version, Migration]]] = {}
        self._lock = threading.Lock()

    def register(
        self,
        pipeline: Chain[Any, Any],
        name: str,
        version: str,
        *,
        pipeline_id: str | None = None,
    ) -> Pipeline[Any, Any]:
        """Register a pipeline, or a single step as one; registering the same one again changes nothing.

        `pipeline_id` is what the store calls it; by default its name.
        Raises RegistryError for an invalid name or version, and where another pipeline has them.
        """
        try:
            parsed = Version(version)
        except (InvalidVersion, TypeError):
            raise RegistryError(
                f"{version!r} is no version (of pipeline {name!r}).",
                hint='Write it as PEP 440 says: "1.0.0", "2.1rc1".',
                name=name,
                version=version,
            ) from None
        for text in (name, name if pipeline_id is None else pipeline_id):
            if not is_printable(text):
                raise RegistryError(
                    f"{text!r} cannot name a pipeline.",
                    hint=f"Use 1 to {MAX_NAME} printable characters.",
                    name=name,
                )
        whole = pipeline if isinstance(pipeline, Pipeline) else Pipeline.of(pipeline)
        entry = Registered(pipeline=whole, name=name, version=version, pipeline_id=pipeline_id or name)
        with self._lock:
            versions = self._entries.setdefault(name, {})
            known = versions.setdefault(parsed, entry)
        if known is not entry and not _same(known, entry):
            raise RegistryError(
                f"Version {known.version!r} of pipeline {name!r} is registered already, as something else.",
                hint="Register the changed pipeline under a new version; runs in flight keep the old one.",
                name=name,
                version=version,
            )
        return known.pipeline

    def migration(self, name: str, source: str, target: str) -> Callable[[Migrate], Migrate]:
        """Register the decorated function as what carries runs of pipeline `name` from one version to a newer one.

        It is given a `MigratingState`, which it changes, or returns another one. A run is carried when it is next
        taken up, and where a way of one migration or several leads from its version to the one that the runner was
        asked for, `latest` by default; whether its own version is still registered makes no difference. Where none
        leads there it goes on with its own version. It is saved as it then is, before anything is executed.

        Not carried: a run that is over, or being undone. A run that stands inside of a step can be carried only if
        that step is the same in the new version. Where a migration fails, or gives what the new version cannot go on
        with, the run is left as it was, with MigrationError. A migration does no I/O: `plan` and `check` try it.
        Keep it as long as there may be runs that it has to carry.

        Raises RegistryError for versions that are none, or where the second is not newer; for a coroutine function;
        and for another function between the same two versions.
        """

        def register(function: Migrate) -> Migrate:
            before, after, made = checked_migration(name, source, target, function)
            with self._lock:
                known = self._migrations.setdefault(name, {}).setdefault(before, {}).setdefault(after, made)
            if known.function is not function:
                raise RegistryError(
                    f"A migration of pipeline {name!r} from {source!r} to {target!r} is registered already.",
                    hint="There can be one between two versions.",
                    name=name,
                )
            return function

        return register

    def migrations(self, name: str, source: str, target: str) -> tuple[Migration, ...]:
        """Return what carries a run from one version to another, in order; nothing where no way leads there."""
        with self._lock:
            known = {start: dict(found) for start, found in self._migrations.get(name, {}).items()}
        return find_path(known, source, target)

    def get(self, name: str, version: str = LATEST) -> Registered:
        """Return what is registered under this name and version.

        Raises PipelineNotRegisteredError or VersionNotRegisteredError, naming what is registered.
        """
        versions = self._versions_of(name)
        if version == LATEST:
            return versions[_newest(versions)]
        try:
            return versions[Version(version)]
        except (KeyError, InvalidVersion, TypeError):
            raise self._no_version(name, version) from None

    def latest(self, name: str) -> str:
        """Return the newest version; a pre-release only if there is nothing else."""
        return self.get(name).version

    def versions(self, name: str) -> list[str]:
        """Return the registered versions of a pipeline, the oldest first."""
        versions = self._versions_of(name)
        return [versions[parsed].version for parsed in sorted(versions)]

    def names(self) -> list[str]:
        """Return the names under which pipelines are registered, sorted."""
        with self._lock:
            return sorted(self._entries)

    def _versions_of(self, name: str) -> dict[Version, Registered]:
        with self._lock:
            # A copy: `register` may add to it while the caller sorts.
            versions = dict(self._entries.get(name, {}))
        if versions:
            return versions
        names = self.names()
        listed = f"Registered: {', '.join(map(repr, names))}." if names else "Nothing is registered."
        raise PipelineNotRegisteredError(
            f"No pipeline is registered as {name!r}.{_close(name, names)}",
            hint=f"{listed} Call `registry.register(pipeline, {name!r}, version)` before the run.",
            name=name,
            registered=names,
        )

    def _no_version(self, name: str, version: str) -> VersionNotRegisteredError:
        versions = self.versions(name)
        close = _close(version, [*versions, LATEST])
        return VersionNotRegisteredError(
            f"Pipeline {name!r} is not registered in version {version!r}.{close}",
            hint=f"Registered: {', '.join(map(repr, versions))}. Register the missing version too: "
            "a run goes on with the version that it started with.",
            name=name,
            version=version,
            registered=versions,
        )


def _newest(versions: dict[Version, Registered]) -> Version:
    return max((found for found in versions if not found.is_prerelease), default=None) or max(versions)


def _same(known: Registered, entry: Registered) -> bool:
    # A single step gets a pipeline anew at each registration, so what counts is the steps themselves.
    same_steps = known.pipeline is entry.pipeline or known.pipeline.steps == entry.pipeline.steps
    return same_steps and known.pipeline_id == entry.pipeline_id


def _close(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(str(name), names, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
