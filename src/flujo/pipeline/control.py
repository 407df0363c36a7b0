"""What a step with pipelines inside does with them: one frozen class a kind.

The pipelines themselves are the step's `bodies`, each under its key: a branch's or a case's name, "" where there is
one. What decides (`by`, `until`) is the step's `decision`, a step of its own, performed and saved like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

A = TypeVar("A")
B = TypeVar("B")
X_contra = TypeVar("X_contra", contravariant=True)
Y_co = TypeVar("Y_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """All bodies at once, each with the step's input; the output is a dict of their outputs. Kind "parallel"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOver:
    """The body once an item of the input, `max_concurrency` at a time; the output is a list. Kind "map".

    collect             failed items are `ItemError`s in the output; else the first failure fails the step
    min_successful      with `collect`: the step fails when fewer items than these can succeed
    tolerated_failures  with `collect`: the step fails when more items than these have failed
    """

    max_concurrency: int
    collect: bool = False
    min_successful: int | None = None
    tolerated_failures: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchOn:
    """The body whose key the decision answers, or that of `default`. Kind "branch"."""

    default: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopUntil:
    """The body again and again with its own output, until the decision says True of that. Kind "loop"."""

    max_iterations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Nested:
    """A pipeline as a step. Kind "pipeline"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """The body "primary", and where that failed for good "fallback" with the same input. Kind "fallback"."""


Control: TypeAlias = Parallel | MapOver | BranchOn | LoopUntil | Nested | Fallback


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemError:
    """An item of a map that failed: its `index` in the input, and `error`, type and text of the failure."""

    index: int
    error: str


class _WithContext(Protocol[X_contra, Y_co]):
    """A decision that looks into the run's context too."""

    def __call__(self, given: X_contra, /, *, context: Any) -> Y_co: ...


Decides: TypeAlias = Callable[[A], B | Coroutine[Any, Any, B]] | _WithContext[A, B | Coroutine[Any, Any, B]]
"""A function of a value, async or plain, that answers what is to be done."""
