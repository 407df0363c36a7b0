"""Which names steps, branches, cases and pipelines can have."""

from __future__ import annotations

from typing import TypeGuard

from flujo.errors import StepDefinitionError

MAX_NAME = 200
_RESERVED = ".[]#>"  # they separate the parts of a path: enrich[17].fetch, refine#3.critic, route>choice


def check_name(name: object) -> None:
    """Raise StepDefinitionError if a step cannot have this name."""
    if not _can_name(name):
        raise StepDefinitionError(
            f"A step cannot be called {name!r}.",
            hint=f"Give it another name, with `@step(name=...)` for instance: {_rule()}.",
            step=name,
        )


def check_key(what: str, key: object, step: str) -> None:
    """Raise StepDefinitionError if a part of a step, a branch or a case (`what` says which), cannot have this name."""
    if not _can_name(key):
        raise StepDefinitionError(
            f"A {what} of step {step!r} cannot be called {key!r}.",
            hint=f"Its name becomes a part of paths: {_rule()}.",
            step=step,
            key=key,
        )


def is_printable(name: object) -> TypeGuard[str]:
    """Tell whether `name` is text that can stand in a line of a message, and is not too long for it."""
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable()


def _can_name(name: object) -> bool:
    return is_printable(name) and not any(mark in name for mark in _RESERVED)


def _rule() -> str:
    return f"1 to {MAX_NAME} printable characters, none of {' '.join(_RESERVED)} among them"
