"""Migrations: functions that carry a run from one version of its pipeline to a newer one."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from packaging.version import InvalidVersion, Version

from flujo.errors import RegistryError


class MigratingState:
    """A run between two versions: what a migration is given, and may change.

    run_id, from_version, to_version
                 which run it is, and what it is carried from and to; these cannot be changed
    context      the context's fields by name, as the old version left them; a field that the new model lacks is
                 refused, and one that it has and the context lacks is too
    last_output  the output of the last step that is saved, which the next step is given; None before the first
    input        the run's input, which the first step is given
    next_step    the name of the top-level step that the run goes on with: those before it count as done, and it and
                 those after it are executed. None: nothing is left to do
    """

    __slots__ = ("_from", "_run_id", "_to", "context", "input", "last_output", "next_step")
    context: dict[str, Any]
    last_output: Any
    input: Any
    next_step: str | None

    def __init__(
        self,
        run_id: str,
        versions: tuple[str, str],
        *,
        context: dict[str, Any],
        last_output: Any,
        input: Any,
        next_step: str | None,
    ) -> None:
        self._run_id = run_id
        self._from, self._to = versions
        self.context, self.last_output, self.input, self.next_step = context, last_output, input, next_step

    @property
    def run_id(self) -> str:
        """Which run it is."""
        return self._run_id

    @property
    def from_version(self) -> str:
        """The version that the run is carried from."""
        return self._from

    @property
    def to_version(self) -> str:
        """The version that the run is carried to."""
        return self._to

    def __repr__(self) -> str:
        return f"<MigratingState {self._run_id} {self._from} -> {self._to}, next step {self.next_step!r}>"


Migrate: TypeAlias = Callable[[MigratingState], MigratingState | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One registered migration: what `function` makes of a run's state carries it from `source` to `target`."""

    name: str
    source: str
    target: str
    function: Migrate


Migrations: TypeAlias = Mapping[Version, Mapping[Version, Migration]]
"""The migrations of one pipeline, by the version that they start from, and by the one that they lead to."""


def checked_migration(name: str, source: str, target: str, function: object) -> tuple[Version, Version, Migration]:
    """Return the migration with its parsed versions; raises RegistryError for one that cannot work."""
    try:
        before, after = Version(source), Version(target)
    except (InvalidVersion, TypeError):
        raise RegistryError(
            f"A migration of pipeline {name!r} cannot lead from {source!r} to {target!r}.",
            hint='Versions are written as PEP 440 says: "1.0.0", "2.1rc1".',
            name=name,
        ) from None
    if before >= after:
        raise RegistryError(
            f"A migration of pipeline {name!r} leads from {source!r} to {target!r}, which is not newer.",
            hint="Runs are carried forward only: give the older version first.",
            name=name,
        )
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise RegistryError(
            f"The migration of pipeline {name!r} from {source!r} to {target!r} is {function!r}.",
            hint="Decorate a plain function of a MigratingState: it is not async, and does no I/O.",
            name=name,
        )
    return before, after, Migration(name=name, source=source, target=target, function=function)


def find_path(migrations: Migrations, source: str, target: str) -> tuple[Migration, ...]:
    """Return the fewest migrations that lead from one version to the other; none where there is no way, or no need.

    Of several ways that are as short, the one over the newer versions.
    """
    try:
        start, goal = Version(source), Version(target)
    except (InvalidVersion, TypeError):
        return ()
    ways: dict[Version, tuple[Migration, ...]] = {start: ()}
    queue = deque([start])
    while queue and goal not in ways:
        here = queue.popleft()
        for there in sorted(migrations.get(here, {}), reverse=True):
            if there not in ways and there <= goal:
                ways[there] = (*ways[here], migrations[here][there])
                queue.append(there)
    return ways.get(goal, ())
