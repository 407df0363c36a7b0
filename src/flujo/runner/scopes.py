"""The contexts of a run: its own, and a copy for each branch of a parallel and each item of a map.

A step's changes to a copy are kept with its record, field by field. When all branches have come to their end these
changes are brought together in the context that the branches started with.
"""

from __future__ import annotations

from typing import Any

from flujo import _ids
from flujo.engine import Act, Path, Scope
from flujo.errors import ContextConflictError
from flujo.pipeline import MISSING
from flujo.runner.commits import Commits
from flujo.runner.opening import Opened, Pristine, Setup
from flujo.state.backends.base import State

Fields = dict[str, bytes]
Changes = dict[str, list[Any]]


class RunContext:
    """The run's own context: `live` is what steps are given (None where no step takes one)."""

    def __init__(self, setup: Setup, commits: Commits, opened: Opened) -> None:
        self.live: Any = opened.context
        self._contexts, self._commits = setup.contexts, commits
        self._first = opened.pristine

    @property
    def values(self) -> dict[str, Any]:
        """The fields as they are now."""
        values: dict[str, Any] = self._commits.state["pipeline_context"]
        return values if self.live is None else self._contexts.values(self.live)

    def replace(self, values: dict[str, Any]) -> None:
        """Put other fields in the place of all."""
        self.live = self._contexts.restore(values)

    async def restore(self) -> State | None:
        """Put the context back as it was saved; return the saved state, if there is one."""
        keeper, state = self._commits.keeper, self._commits.state
        stored = await keeper.reload(state["run_id"], state["rev"]) if state["rev"] else None
        if stored is not None:
            values = stored["pipeline_context"]
        elif self._first is not None:
            values = self._initial(self._first)
            if self.live is not None:  # nothing was saved: the values at hand, which may have changed, are all there is
                state["pipeline_context"] = self._initial(self._first)
        else:
            return None
        if self.live is not None:
            self.replace(values)
        return stored

    def _initial(self, first: Pristine) -> dict[str, Any]:
        return {name: self._commits.keeper.codec.decode(value) for name, value in first.context.items()}

    async def restored_input(self, given: Any) -> Any:
        """Return the input of the next top-level step as it was saved, and put the context back."""
        stored = await self.restore()
        if stored is not None and stored["current_step_index"]:
            return stored["last_step_output"]
        if self._first is not None:
            return self._commits.keeper.codec.decode(self._first.input)
        return stored["input"] if stored is not None else given


class Scopes:
    """The contexts of all branches and items that are under way in one top-level step.

    A scope's fields are those that its fan started with (`_bases`, by the fan's path), and what has changed since.
    """

    def __init__(self, setup: Setup, commits: Commits, root: RunContext) -> None:
        self._contexts, self._codec = setup.contexts, commits.keeper.codec
        self._root = root
        self._live: dict[Path, Any] = {}
        self._bases: dict[Path, Fields] = {}
        self._changes: dict[Path, dict[str, bytes | None]] = {}

    def context(self, scope: Scope) -> Any:
        """Return the context that steps of that scope work on."""
        if scope.parent is None:
            return self._root.live
        live = self._live.get(scope.path)
        if live is None:
            live = self._contexts.restore(self._decoded(self._fields(scope)))
            self._live[scope.path] = live
        return live

    async def restore(self, scope: Scope) -> None:
        """Drop what a failed attempt has changed."""
        if scope.parent is None:
            await self._root.restore()
        else:
            self._live.pop(scope.path, None)

    def changes(self, scope: Scope) -> Changes | None:
        """Return what was changed in the scope's context since its last save, or None."""
        if scope.parent is None:
            return None
        new = self._codec.encode_fields(self._contexts.values(self._live[scope.path]), "context")
        old = self._fields(scope)
        changed: Changes = {k: [self._codec.decode(v)] for k, v in new.items() if old.get(k) != v}
        changed |= {name: [] for name in old if name not in new}
        return changed or None

    def apply(self, scope: Scope, changes: Changes | None) -> None:
        """Note changes that are saved."""
        if changes is not None and scope.parent is not None:
            known = self._changes.setdefault(scope.path, {})
            for name, value in changes.items():
                known[name] = self._codec.encode(value[0], f"context.{name}") if value else None

    def ended(self, scope: Scope) -> None:
        """Nothing more goes on in that scope: its changes are all that is needed of it."""
        self._live.pop(scope.path, None)

    def joined(self, act: Act) -> Changes | None:
        """Return what the branches have changed, brought together, or None where they changed nothing.

        Raises ContextConflictError.
        """
        changed: dict[str, list[tuple[Path, bytes | None]]] = {}
        if not any(branch in self._changes for branch in act.branches):
            return None
        base = self._base(act.path[:-1], act.scope)
        for branch in act.branches:
            for name, value in self._changes.get(branch, {}).items():
                if value != base.get(name):
                    changed.setdefault(name, []).append((branch, value))
        return {name: self._merged(act, name, base.get(name), values) for name, values in changed.items()} or None

    def settle(self, act: Act, changes: Changes | None) -> dict[str, Any] | None:
        """Let the enclosing context have the joined changes; return the run's own context if that was it."""
        fan = act.path[:-1]
        for branch in act.branches:
            self._changes.pop(branch, None)
        self._bases.pop(fan, None)
        if changes is None:
            return None
        if act.scope.parent is not None:
            self.apply(act.scope, changes)
            self._live.pop(act.scope.path, None)
            return None
        values = {k: v for k, v in self._root.values.items() if changes.get(k, True)}
        self._root.replace({**values, **{name: value[0] for name, value in changes.items() if value}})
        return self._root.values

    def _merged(self, act: Act, name: str, base: bytes | None, values: list[tuple[Path, bytes | None]]) -> list[Any]:
        """Return the field's new value in a list, or [] where it is gone."""
        if len(values) == 1:
            value = values[0][1]
            return [] if value is None else [self._codec.decode(value)]
        merge = self._contexts.merges.get(name)
        if merge is None:
            raise _conflict(act, name, values)
        present = [MISSING if value is None else self._codec.decode(value) for _, value in values]
        try:
            merged = merge(MISSING if base is None else self._codec.decode(base), present)
            return [] if merged is MISSING else [merged]
        except Exception as error:
            raise ContextConflictError(
                f"Field {name!r} of the context, which branches of step {act.path[-2]!r} changed, cannot be merged: "
                f"{error}.",
                hint="See that every branch changes the field in the way that its merge expects.",
                step=act.path[-2], field=name,
            ) from error  # fmt: skip

    def _fields(self, scope: Scope) -> Fields:
        if scope.parent is None:
            return self._codec.encode_fields(self._root.values, "context")
        fields = dict(self._base(scope.path[:-1], scope.parent))
        for name, value in self._changes.get(scope.path, {}).items():
            if value is None:
                fields.pop(name, None)
            else:
                fields[name] = value
        return fields

    def _base(self, fan: Path, scope: Scope) -> Fields:
        base = self._bases.get(fan)
        if base is None:
            base = self._bases[fan] = self._fields(scope)
        return base

    def _decoded(self, fields: Fields) -> dict[str, Any]:
        return {name: self._codec.decode(value) for name, value in fields.items()}


def _conflict(act: Act, name: str, values: list[tuple[Path, bytes | None]]) -> ContextConflictError:
    branches = [branch[-1] for branch, _ in values]
    first, second = (_ids.path_text(branch) for branch, _ in values[:2])
    more = f" (and {len(branches) - 2} more)" if len(branches) > 2 else ""
    return ContextConflictError(
        f"{first!r} and {second!r}{more} changed the same field {name!r} of the context.",
        hint="Say how it is merged, by `Annotated[..., Merge.APPEND]` in the context model or "
        f"`Flujo(..., context_merges={{{name!r}: Merge.APPEND}})`, or let one of them change it. "
        "Running it again with the same run_id then repeats nothing but the merging.",
        step=act.path[-2], field=name, branches=branches,
    )  # fmt: skip
