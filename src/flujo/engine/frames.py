"""Frames: what is going on inside a composite step, as a tree of objects. `kinds` has those of each kind of step.

A frame is told when it begins and how its children end; it starts children, and finishes or fails itself. It calls
nothing that may take long, and never waits: see `tree` for who does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from flujo.errors import RecordedError
from flujo.pipeline import Pipeline, Step
from flujo.state.models import StepRecord

Path = tuple[str, ...]
CHOICE, EXIT, ITEMS, JOIN, UNDO = ">choice", ">exit", ">items", ">join", ">undo"
HIDDEN = frozenset({CHOICE, EXIT, ITEMS, JOIN})


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose context a step works on: the run's own (no `parent`), or that of the branch or item at `path`."""

    path: Path = ()
    parent: Scope | None = None


ROOT = Scope()


@dataclass(frozen=True, slots=True, eq=False)
class Act:
    """Perform `step` with `given` in the context of `scope`; without a step: join the contexts of `branches`.

    `settle` makes of a decision's answer what is recorded, and raises for an answer that decides nothing.
    """

    path: Path
    scope: Scope
    step: Step[Any, Any] | None = None
    given: Any = None
    settle: Callable[[Any], Any] | None = None
    branches: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Something failed for good, at `path`. `causes` are the paths of the records that a retry makes void."""

    error: BaseException
    text: str
    path: Path
    causes: list[Path]


def recorded_failure(record: StepRecord) -> Failure:
    """Return the failure that is on record."""
    text = record.feedback or ""
    name, _, message = text.partition(": ")
    error = RecordedError(text, type_name=name, text=message, traceback="")
    return Failure(error, text, record.path, [record.path])


class Host(Protocol):
    """What frames ask of their tree."""

    copy: Callable[[Any], Any]

    def later(self, call: Callable[..., None], *arguments: Any) -> None:
        """Do it when what is being done is done."""

    def enter(self, step: Step[Any, Any], parent: Frame, slot: Any, path: Path, given: Any, scope: Scope) -> None:
        """Begin a step."""

    def ask(self, leaf: Leaf, act: Act) -> None:
        """Have the act performed."""

    def drop(self, frame: Frame) -> None:
        """Nothing that goes on in that frame is wanted any more."""

    def closed(self, scope: Scope) -> None:
        """Nothing more goes on in that scope."""


class Frame:
    """Something that is going on.

    `slot` is what the parent knows it by; `limit`, how many seconds it may take (0: no limit); `timer`, what measures
    them and is cancelled at its end.
    """

    __slots__ = ("given", "limit", "over", "parent", "path", "scope", "slot", "timer", "tree")

    def __init__(self, tree: Host, parent: Frame | None, slot: Any, path: Path, given: Any, scope: Scope) -> None:
        self.tree, self.parent, self.slot = tree, parent, slot
        self.path, self.given, self.scope = path, given, scope
        self.over = False
        self.limit = 0.0
        self.timer: Any = None

    def begin(self) -> None:
        """Start what can be started."""

    def ended(self, child: Frame, output: Any) -> None:
        """A child came to its end."""
        self.finish(output)

    def broke(self, child: Frame, failure: Failure) -> None:
        """A child failed for good."""
        self.fail(failure)

    def absorbs(self, child: Frame) -> bool:
        """Return whether `broke` would deal with that child's failure."""
        return False

    def finish(self, output: Any) -> None:
        """Come to an end with that output."""
        if self._close() and self.parent is not None:
            self.tree.later(self.parent.ended, self, output)

    def fail(self, failure: Failure) -> None:
        """Come to an end without one."""
        if self._close():
            self.tree.drop(self)
            if self.parent is not None:
                self.tree.later(self.parent.broke, self, failure)

    def _close(self) -> bool:
        if self.over:
            return False
        self.over = True
        if self.timer is not None:
            self.timer.cancel()
        return True

    def run(self, body: Pipeline[Any, Any], slot: Any, path: Path, given: Any, scope: Scope | None = None) -> None:
        """Begin a pipeline inside this step."""
        where = self.scope if scope is None else scope
        self.tree.later(InOrder(body, self.tree, self, slot, path, given, where).begin)

    def ask(self, step: Step[Any, Any], mark: str, path: Path, given: Any, settle: Callable[[Any], Any]) -> None:
        """Have something decided."""
        path = (*path, mark)
        leaf = Leaf(self.tree, self, mark, path, given, self.scope)
        self.tree.ask(leaf, Act(path, self.scope, step, given, settle))

    def join(self, branches: tuple[Path, ...]) -> None:
        """Have the contexts of branches brought together."""
        path = (*self.path, JOIN)
        leaf = Leaf(self.tree, self, JOIN, path, None, self.scope)
        self.tree.ask(leaf, Act(path, self.scope, branches=branches))


class Leaf(Frame):
    """One act."""

    __slots__ = ()

    def within(self, frame: Frame) -> bool:
        """Return whether it goes on inside of that frame."""
        found: Frame | None = self
        while found is not None and found is not frame:
            found = found.parent
        return found is not None


class Function(Leaf):
    """A step that is a function."""

    __slots__ = ("_step",)

    def __init__(self, step: Step[Any, Any], *place: Any) -> None:
        super().__init__(*place)
        self._step = step

    def begin(self) -> None:
        """Have it performed."""
        self.tree.ask(self, Act(self.path, self.scope, self._step, self.given))


class InOrder(Frame):
    """A pipeline: its steps one after the other."""

    __slots__ = ("_index", "_steps")

    def __init__(self, body: Pipeline[Any, Any], *place: Any) -> None:
        super().__init__(*place)
        self._steps = body.steps
        self._index = 0

    def begin(self) -> None:
        """Start the next step, with what the one before gave."""
        step = self._steps[self._index]
        given, self.given = self.given, None
        self.tree.enter(step, self, None, (*self.path, step.name), given, self.scope)

    def ended(self, child: Frame, output: Any) -> None:
        """Go on with the next step."""
        self._index += 1
        if self._index == len(self._steps):
            self.finish(output)
        else:
            self.given = output
            self.begin()


class Composite(Frame):
    """A step with pipelines inside."""

    __slots__ = ("_step",)

    def __init__(self, step: Step[Any, Any], *place: Any) -> None:
        super().__init__(*place)
        self._step = step
