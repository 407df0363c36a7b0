"""What is going on inside one composite step: what may be performed now, and what follows from how it ended.

No I/O, no clock, no tasks. A `Tree` is built from a composite step, its input, and the records that are saved under its
path. Every decision is a record too, so these lead it to where the run was: the records are the position. `ready` gives
what may be performed; `succeeded` and `failed` are told how that came out, after it was saved.

Paths: `enrich[17].fetch` (a map's item), `refine#3.critic` (a loop's iteration), `fan.left.fetch` (a branch of a
parallel), `route.big.charge` (a case). A part that begins with ">" is a record of flujo's own: `route>choice`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Any

from flujo.engine.frames import ROOT, Act, Failure, Frame, Leaf, Path, Scope, recorded_failure
from flujo.engine.kinds import frame_of
from flujo.pipeline import Step
from flujo.state.models import StepRecord


@dataclass(slots=True)
class Saved:
    """The records of one top-level step, by path.

    done      how each came out
    attempts  the failed attempts at what is to be tried again
    places    where the failures are among the records
    """

    done: dict[Path, StepRecord] = field(default_factory=dict)
    attempts: dict[Path, int] = field(default_factory=dict)
    places: dict[Path, int] = field(default_factory=dict)


class Tree:
    """See the module.

    `copy` gives a value's own copy, for what several branches start with. Attributes: `over`, and then `output` or
    `failure`; and for whoever performs the acts, to be taken from time to time: `restored`, records that changed a
    scope's context; `ended`, scopes in which nothing more goes on; `timed`, frames with a time limit that have begun;
    `dropped`, acts that were given out and are not wanted any more.
    """

    def __init__(self, step: Step[Any, Any], path: Path, given: Any, saved: Saved, copy: Callable[[Any], Any]) -> None:
        self.over = False
        self.output: Any = None
        self.failure: Failure | None = None
        self.restored: list[tuple[Scope, StepRecord]] = []
        self.ended: list[Scope] = []
        self.timed: list[Frame] = []
        self.dropped: list[Path] = []
        self.copy = copy
        self._saved = saved
        self._queue: deque[Act] = deque()
        self._leaves: dict[Path, Leaf] = {}
        self._agenda: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.enter(step, _Root(self, None, None, (), None, ROOT), None, path, given, ROOT)
        self._settle()

    def ready(self) -> list[Act]:
        """Return what may be performed now and was not returned before."""
        acts = list(self._queue)
        self._queue.clear()
        return acts

    def succeeded(self, path: Path, output: Any) -> None:
        """The act of that path has come to its end, and is saved."""
        leaf = self._leaves.pop(path, None)
        if leaf is not None:
            leaf.finish(output)
            self._settle()

    def failed(self, path: Path, error: BaseException, text: str) -> None:
        """The act of that path has failed for good."""
        leaf = self._leaves.pop(path, None)
        if leaf is not None:
            leaf.fail(Failure(error, text, path, [path]))
            self._settle()

    def absorbs(self, frame: Frame | Path) -> bool:
        """Return whether a failure of that act or frame would be dealt with inside the tree."""
        found = frame if isinstance(frame, Frame) else self._leaves.get(frame)
        while found is not None and found.parent is not None:
            if found.parent.absorbs(found):
                return True
            found = found.parent
        return False

    def wants(self, frame: Frame | Path) -> bool:
        """Return whether how that act or frame came out still matters."""
        if isinstance(frame, Frame):
            return not self.over and not self._is_gone(frame)
        return not self.over and frame in self._leaves

    def expire(self, frame: Frame) -> bool:
        """The frame's time is up: stop what goes on in it. Return False where it had come to its end."""
        if frame.over or self._is_gone(frame):
            return False
        frame.over = True
        self.drop(frame)
        return True

    def broken(self, frame: Frame, error: BaseException, text: str) -> None:
        """The expired frame has failed."""
        if frame.parent is not None and not self._is_gone(frame):
            self.later(frame.parent.broke, frame, Failure(error, text, frame.path, [frame.path]))
            self._settle()

    def _is_gone(self, frame: Frame) -> bool:
        above = frame.parent
        while above is not None and not above.over:
            above = above.parent
        return above is not None

    # What frames use.

    def later(self, call: Callable[..., None], *arguments: Any) -> None:
        """Do it when what is being done is done: no depth of nesting or iteration becomes a depth of calls."""
        self._agenda.append((call, arguments))

    def enter(self, step: Step[Any, Any], parent: Frame, slot: Any, path: Path, given: Any, scope: Scope) -> None:
        """Begin a step, unless its failure is on record, or something around it has failed meanwhile."""
        if parent.over or self._is_gone(parent):
            return
        frame = frame_of(self, step, parent, slot, path, given, scope)
        record = self._saved.done.pop(path, None) if step.bodies else None
        if record is not None and not record.success:
            self.later(frame.fail, recorded_failure(record))
            return
        self.later(frame.begin)
        if step.bodies and step.timeout is not None:
            frame.limit = step.timeout
            self.timed.append(frame)

    def ask(self, leaf: Leaf, act: Act) -> None:
        """Have the act performed, unless how it came out is on record, or something around it has failed meanwhile."""
        if self._is_gone(leaf):
            return
        record = self._saved.done.pop(act.path, None)
        if record is None:
            self._leaves[act.path] = leaf
            self._queue.append(act)
        elif record.success:
            if record.context_changes is not None:
                self.restored.append((act.scope, record))
            leaf.finish(record.output)
        else:
            leaf.fail(recorded_failure(record))

    def drop(self, frame: Frame) -> None:
        """Nothing that goes on in that frame is wanted any more."""
        unwanted = [path for path, leaf in self._leaves.items() if leaf.within(frame)]
        for path in unwanted:
            del self._leaves[path]
        if unwanted:
            gone = set(unwanted)
            queued = {act.path for act in self._queue}
            self._queue = deque(act for act in self._queue if act.path not in gone)
            self.dropped += gone - queued

    def closed(self, scope: Scope) -> None:
        """Nothing more goes on in that scope."""
        self.ended.append(scope)

    def end(self, output: Any, failure: Failure | None) -> None:
        """All is over."""
        self.over, self.output, self.failure = True, output, failure

    def _settle(self) -> None:
        while self._agenda and not self.over:
            call, arguments = self._agenda.popleft()
            call(*arguments)


class _Root(Frame):
    __slots__ = ()
    tree: Tree

    def ended(self, child: Frame, output: Any) -> None:
        self.tree.end(output, None)

    def broke(self, child: Frame, failure: Failure) -> None:
        self.tree.end(None, failure)


def sort_out(records: Iterable[StepRecord], void: Container[int]) -> Saved:
    """Return the records of a top-level step by path; the failures at the places in `void` are to be tried again."""
    saved = Saved()
    for place, record in enumerate(records):
        if place in void:
            saved.attempts[record.path] = record.attempts
            continue
        saved.done[record.path] = record
        if not record.success:
            saved.places[record.path] = place
    return saved
