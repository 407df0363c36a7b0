"""How far a run is in its pipeline, read from its records: what is done, running, failed or waiting.

A record is left only by what came to an end. What is under way is inferred: the step after one that is done, and every
branch of a parallel that has begun. What waits is said by the state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from flujo.pipeline.composites import FALLBACK, PRIMARY, AnyPipeline, AnyStep
from flujo.pipeline.control import ItemError, LoopUntil, MapOver
from flujo.state.mail import waits_of
from flujo.state.models import StepRecord, record_from

Path = tuple[str, ...]
DONE, FAILED, RUNNING, WAITING, NOTHING = "done", "failed", "running", "waiting", ""
_LIVE = {"running": RUNNING, "paused": WAITING}
_UNKNOWN = object()
# What is known of a step before its records are looked at: it has begun, it was left with success, it was left one way
# or the other, it was stopped.
_BEGUN, _LEFT, _ENDED, _STOPPED = "begun", "left", "ended", "stopped"


class Run(Protocol):
    """What a run gives back: a PipelineResult, say."""

    @property
    def status(self) -> str:
        """As in a state."""

    @property
    def step_history(self) -> Iterable[StepRecord]:
        """What came to an end."""


RunState = Mapping[str, Any] | Run | Iterable[StepRecord]


@dataclass(frozen=True, slots=True)
class Count:
    """The items of a map: how many are done, how many have failed, and how many there are, if that is known."""

    done: int = 0
    failed: int = 0
    total: int | None = 0

    def __add__(self, other: Count) -> Count:
        total = None if self.total is None or other.total is None else self.total + other.total
        return Count(self.done + other.done, self.failed + other.failed, total)


@dataclass(slots=True)
class Progress:
    """What became of each step, under its path in the pipeline, in which items and iterations have no part."""

    marks: dict[Path, str] = field(default_factory=dict)
    counts: dict[Path, Count] = field(default_factory=dict)


def read_progress(pipeline: AnyPipeline, state: RunState) -> Progress:
    """Read how far the run is, of which this is the saved state, the result, or the step records.

    Raises InvalidStateError for records that are none.
    """
    facts: Mapping[str, Any] = {}
    if isinstance(state, Mapping):
        facts, history = state, state.get("step_history") or ()
    elif isinstance(state, Iterable):
        history = state
    else:
        facts, history = {"status": state.status}, state.step_history
    return _Reader([record_from(found) for found in history], facts).read(pipeline)


def place_of(path: Path) -> Path:
    """Return the path without the parts that say which item or iteration."""
    return tuple(part for part in path if part[:1] not in ("[", "#"))


class _Reader:
    """One reading. A step is read again where its neighbour turns out to have stopped it; the last reading counts."""

    def __init__(self, records: list[StepRecord], facts: Mapping[str, Any]) -> None:
        self._facts = facts
        self._live = _LIVE.get(str(facts.get("status")), NOTHING)
        waits = waits_of(facts.get("waiting")) if self._live else ()
        self._waits = {tuple(wait["path"]) for wait in waits}
        self._records = {found.path: found for found in records}  # of several about one path the last counts
        self._inside: dict[Path, dict[str, None]] = {}
        for path in (*self._records, *self._waits):
            for end in range(len(path)):
                self._inside.setdefault(path[:end], {})[path[end]] = None
        self._marks: dict[Path, str] = {}
        self._counts: dict[Path, Count] = {}
        self._unfinished: dict[Path, str] = {}
        self._read: dict[Path, tuple[str, tuple[str, Any]]] = {}

    def read(self, pipeline: AnyPipeline) -> Progress:
        index, status = self._index(pipeline), self._facts.get("status")
        given: Any = self._facts.get("input", _UNKNOWN)
        for position, step in enumerate(pipeline.steps[: index + 1]):
            path = (step.name,)
            if position == index and index:
                given = self._facts.get("last_step_output", given)
            _, given = self._step(step, path, given, _LEFT if position < index else _BEGUN)
            if position < index:
                self._marks[path] = DONE
            elif status == "failed" or self._live:
                self._marks[path] = FAILED if status == "failed" else self._alive(_BEGUN, path)
        return self._gathered()

    def _index(self, pipeline: AnyPipeline) -> int:
        """Return how many top-level steps are done."""
        if self._facts.get("status") == "completed":
            return len(pipeline.steps)
        known = self._facts.get("current_step_index")
        if isinstance(known, int):
            return known
        done = [self._succeeded((step.name,)) for step in pipeline.steps]
        return done.index(False) if False in done else len(done)

    def _gathered(self) -> Progress:
        """Bring together what became of a step in several items: it is done when it is for all of them."""
        found: dict[Path, set[str]] = {}
        for path, mark in self._marks.items():
            found.setdefault(place_of(path), set()).add(mark)
        unfinished = {place_of(path): mark for path, mark in self._unfinished.items()}
        progress = Progress()
        for place, marks in found.items():
            mark = next((one for one in (FAILED, RUNNING, WAITING, NOTHING) if one in marks), DONE)
            if DONE in marks and mark in (DONE, NOTHING):
                around = (unfinished.get(place[:end]) for end in range(1, len(place)))
                mark = next((one for one in around if one is not None), mark)
            progress.marks[place] = mark
        for path, count in self._counts.items():
            progress.counts[place_of(path)] = progress.counts.get(place_of(path), Count()) + count
        return progress

    def _succeeded(self, path: Path) -> bool:
        record = self._records.get(path)
        return record is not None and record.success

    def _numbers(self, path: Path, mark: str) -> list[int]:
        """Return which items or iterations inside of a step have left records."""
        parts = (part.strip("[#]") for part in self._inside.get(path, ()) if part[:1] == mark)
        return sorted(int(part) for part in parts if part.isdecimal())

    def _alive(self, how: str, path: Path) -> str:
        if path in self._waits:
            return WAITING
        return self._live if how == _BEGUN else NOTHING

    def _ended(self, path: Path, how: str) -> str:
        """Return the mark of what is done in one go: a function, a decision."""
        record = self._records.get(path)
        mark = self._alive(how, path) if record is None else DONE if record.success else FAILED
        self._marks[path] = mark
        return mark

    def _body(self, body: AnyPipeline, path: Path, given: Any, how: str) -> tuple[str, Any]:
        """Mark the steps of a pipeline as far as it got; return its own mark, and its output if that is known."""
        inside = self._inside.get(path, ())
        last = max((position for position, step in enumerate(body.steps) if step.name in inside), default=0)
        for position, step in enumerate(body.steps):
            mark, given = self._step(step, (*path, step.name), given, _LEFT if position < last else how)
            if position >= last and mark != DONE:
                return mark, _UNKNOWN
        return DONE, given

    def _step(self, step: AnyStep, path: Path, given: Any, how: str) -> tuple[str, Any]:
        record = self._records.get(path)
        output = record.output if record is not None and record.success else _UNKNOWN
        if not step.bodies:
            return self._ended(path, how), output
        if record is not None:
            how = _LEFT if record.success else _STOPPED
        known = self._read.get(path)
        if known is not None and known[0] == how:
            return known[1]
        mark, found = _KINDS[step.kind](self, step, path, given, how)
        if record is not None and not record.success:
            mark, found = FAILED, _UNKNOWN
        elif how == _LEFT or (how == _ENDED and mark != FAILED):
            mark, found = DONE if path in self._inside else NOTHING, output if record is not None else found
            self._unfinished.pop(path, None)
            if isinstance(step.control, MapOver) and isinstance(output, list):
                errors = sum(isinstance(item, ItemError) for item in output)
                self._counts[path] = Count(len(output) - errors, errors, len(output))
        self._marks[path] = mark
        self._read[path] = how, (mark, found)
        return mark, found

    def _parallel(self, step: AnyStep, path: Path, given: Any, how: str) -> tuple[str, Any]:
        found = {key: self._body(body, (*path, key), given, how) for key, body in step.bodies}
        marks = {mark for mark, _ in found.values()}
        if FAILED in marks and how in (_BEGUN, _ENDED):  # the other branches were stopped
            return self._parallel(step, path, given, _STOPPED)
        output = {key: one for key, (_, one) in found.items()}
        if marks == {DONE}:
            return DONE, _UNKNOWN if _UNKNOWN in output.values() else output
        return FAILED if FAILED in marks else self._alive(how, path), _UNKNOWN

    def _map(self, step: AnyStep, path: Path, given: Any, how: str) -> tuple[str, Any]:
        control, body = step.control, step.bodies[0][1]
        assert isinstance(control, MapOver)
        listed = self._records.get((*path, ">items"))
        items = listed.output if listed is not None else given
        total = len(items) if isinstance(items, list | tuple | range) else None
        begun = self._numbers(path, "[")

        def do(index: int) -> tuple[str, Any]:
            item = items[index] if total is not None and index < total else _UNKNOWN
            return self._body(body, (*path, f"[{index}]"), item, _ENDED if how == _LEFT else how)

        outputs = [do(index) for index in begun]
        marks = [mark for mark, _ in outputs]
        failed, done = marks.count(FAILED), marks.count(DONE)
        self._counts[path] = Count(done, failed, total)
        if not _tolerates(control, failed, total):
            if how in (_BEGUN, _ENDED):  # the other items were stopped
                return self._map(step, path, given, _STOPPED)
            self._unfinished[path] = NOTHING
            return FAILED, _UNKNOWN
        if total is not None and done + failed == total:
            known = not failed and all(output is not _UNKNOWN for _, output in outputs)
            return DONE, [output for _, output in outputs] if known else _UNKNOWN
        self._unfinished[path] = self._alive(how, path)
        if how == _LEFT:  # all of them are done, however many there were
            return NOTHING, _UNKNOWN
        if not begun:
            do(0)  # under way, and has left no record
        return self._alive(how, path), _UNKNOWN

    def _branch(self, step: AnyStep, path: Path, given: Any, how: str) -> tuple[str, Any]:
        decision, cases = (*path, ">choice"), dict(step.bodies)
        decided = self._records.get(decision)
        # A result does not tell its decisions; what was done does.
        done = next((part for part in self._inside.get(path, ()) if part in cases), None)
        chosen = decided.output if decided is not None else done
        if not isinstance(chosen, str) or chosen not in cases:
            return self._ended(decision, how), _UNKNOWN
        self._marks[decision] = DONE
        return self._body(cases[chosen], (*path, chosen), given, how)

    def _loop(self, step: AnyStep, path: Path, given: Any, how: str) -> tuple[str, Any]:
        control, body = step.control, step.bodies[0][1]
        assert isinstance(control, LoopUntil)
        times = max(self._numbers(path, "#"), default=1)
        decided = self._records.get((*path, f"#{times}", ">exit"))
        again = decided is not None and decided.success and not decided.output
        if again and times < control.max_iterations and how == _BEGUN:
            times, decided, again = times + 1, None, False
        where, given = (*path, f"#{times}"), given if times == 1 else _UNKNOWN
        mark, output = self._body(body, where, given, how if decided is None else _LEFT)
        if mark != DONE:
            return mark, _UNKNOWN
        if decided is None and how in (_LEFT, _ENDED):  # a result does not tell its decisions
            self._marks[(*where, ">exit")] = DONE
            return DONE, output
        mark = self._ended((*where, ">exit"), how)
        return (FAILED, _UNKNOWN) if again else (mark, output)

    def _nested(self, step: AnyStep, path: Path, given: Any, how: str) -> tuple[str, Any]:
        return self._body(step.bodies[0][1], path, given, how)

    def _fallback(self, step: AnyStep, path: Path, given: Any, how: str) -> tuple[str, Any]:
        bodies = dict(step.bodies)
        fell = FALLBACK in self._inside.get(path, ())
        mark, output = self._body(bodies[PRIMARY], (*path, PRIMARY), given, _STOPPED if fell else how)
        if mark != FAILED and not fell:
            return mark, output
        return self._body(bodies[FALLBACK], (*path, FALLBACK), given, how)


def _tolerates(control: MapOver, failed: int, total: int | None) -> bool:
    most, least = control.tolerated_failures, control.min_successful
    enough = least is None or total is None or total - failed >= least
    return enough and (most is None or failed <= most) if control.collect else not failed


_KINDS = {
    "parallel": _Reader._parallel,
    "map": _Reader._map,
    "branch": _Reader._branch,
    "loop": _Reader._loop,
    "pipeline": _Reader._nested,
    "fallback": _Reader._fallback,
}
