"""What a step does that is no function: one frozen class a kind.

Some have pipelines inside. These are the step's `bodies`, each under its key: a branch's or a case's name, "" where
there is one. What decides (`by`, `until`) is the step's `decision`, a step of its own, performed and saved like any
other. The kinds in WAITS have no bodies: they wait for a person, a signal or a time.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Final, Protocol, TypeAlias, TypeVar

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


class Unset(enum.Enum):
    """The type of UNSET."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET
"""Stands for an `on_timeout` that was not given: any value, None too, may be one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPerson:
    """An answer of a person, or of several. Kind "human".

    message     what the person is told, or a plain function of the step's input that returns it
    type        the type of one answer
    schema      the JSON schema of one answer
    timeout     seconds to wait; None: for as long as it takes
    on_timeout  the step's output where the time has run out; UNSET: the step fails with WaitTimeoutError
    quorum      how many answers it takes, each by somebody else
    listed      whether the output is the list of the answers, in the order of arrival; else it is the only answer
    voters      who may answer; None: anybody
    """

    message: str | Callable[[Any], str]
    type: Any
    schema: dict[str, Any]
    timeout: float | None = None
    on_timeout: Any = UNSET
    quorum: int = 1
    listed: bool = False
    voters: tuple[str, ...] | None = None
    kind: ClassVar[str] = "human"

    @property
    def output_type(self) -> Any:
        """The type of the step's output."""
        return types.GenericAlias(list, (self.type,)) if self.listed else self.type


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitSignal:
    """What is sent to the run under a signal's name. Kind "signal".

    signal      the signal's name
    type        the type of what is sent with it
    schema      the JSON schema of that
    timeout     seconds to wait; None: for as long as it takes
    on_timeout  the step's output where the time has run out; UNSET: the step fails with WaitTimeoutError
    """

    signal: str
    type: Any
    schema: dict[str, Any]
    timeout: float | None = None
    on_timeout: Any = UNSET
    kind: ClassVar[str] = "signal"

    @property
    def output_type(self) -> Any:
        """The type of the step's output."""
        return self.type


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """Some seconds, or until a moment; the output is the input. Kind "sleep".

    seconds  how long; None where there is `until`
    until    the moment, in UTC, or a plain function of the step's input that returns one; None where there is `seconds`
    """

    seconds: float | None = None
    until: datetime | Callable[[Any], datetime] | None = None
    kind: ClassVar[str] = "sleep"
    output_type: ClassVar[Any] = Any


Wait: TypeAlias = AskPerson | AwaitSignal | Sleep
Control: TypeAlias = Parallel | MapOver | BranchOn | LoopUntil | Nested | Fallback | Wait

WAITS: Final = frozenset({AskPerson.kind, AwaitSignal.kind, Sleep.kind})
"""The kinds of steps that wait for something from outside of the run."""


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
