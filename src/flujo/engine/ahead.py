"""What of a step is still to be done: its records read as its frames read them, with nothing executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flujo.engine.frames import CHOICE, EXIT, ITEMS, JOIN, Path
from flujo.engine.tree import Saved
from flujo.pipeline import Pipeline, Step
from flujo.pipeline.control import BranchOn, ItemError, LoopUntil, MapOver

OPEN, FAILED = object(), object()  # instead of an output: something is still to be done; it failed for good


@dataclass(slots=True)
class Tally:
    """What became of a step in all items and iterations: `done`, `failed` for good, and still to be done.

    `ahead` counts what is done unless something fails before, `perhaps` what depends on a decision to come.
    """

    done: int = 0
    failed: int = 0
    ahead: int = 0
    perhaps: int = 0


@dataclass(slots=True)
class Ahead:
    """One reading of a top-level step. `tallies` are by place, `choices` the cases that were chosen, likewise."""

    saved: Saved
    tallies: dict[Path, Tally] = field(default_factory=dict)
    choices: dict[Path, set[str]] = field(default_factory=dict)
    _begun: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._begun = {path[:end] for path in self.saved.done for end in range(1, len(path))}

    def read(self, step: Step[Any, Any], given: Any) -> Any:
        """Read the step, which is given that; return its output, OPEN or FAILED."""
        return self._step(step, (step.name,), (step.name,), given)

    def all_of(self, step: Step[Any, Any]) -> None:
        """Nothing of the step is on record."""
        self._mark(step, (step.name,), sure=True)

    def _tally(self, place: Path) -> Tally:
        return self.tallies.setdefault(place, Tally())

    def _step(self, step: Step[Any, Any], path: Path, place: Path, given: Any) -> Any:
        tally, record = self._tally(place), self.saved.done.get(path)
        if not step.bodies:
            if record is None:
                tally.ahead += 1
                return OPEN
            tally.done, tally.failed = tally.done + record.success, tally.failed + (not record.success)
            return record.output if record.success else FAILED
        if record is not None and not record.success:
            tally.failed += 1
            return FAILED
        output = _KINDS[step.kind](self, step, path, place, given)
        if output is OPEN:
            tally.ahead += 1
        elif output is FAILED:
            tally.failed += 1
        else:
            tally.done += 1
        return output

    def _body(self, body: Pipeline[Any, Any], path: Path, place: Path, given: Any) -> Any:
        for position, step in enumerate(body.steps):
            given = self._step(step, (*path, step.name), (*place, step.name), given)
            if given is OPEN:
                for later in body.steps[position + 1 :]:
                    self._mark(later, (*place, later.name), sure=True)
            if given is OPEN or given is FAILED:
                return given
        return given

    def _mark(self, step: Step[Any, Any], place: Path, *, sure: bool, times: int = 1) -> None:
        """All of the step is still to be done."""
        tally = self._tally(place)
        if sure:
            tally.ahead += times
        else:
            tally.perhaps += times
        for number, (key, body) in enumerate(step.bodies):
            certain = sure and (
                step.kind in ("parallel", "loop", "pipeline") or (step.kind == "fallback" and not number)
            )
            self._mark_body(body, (*place, key) if key else place, sure=certain, times=times)

    def _mark_body(self, body: Pipeline[Any, Any], place: Path, *, sure: bool, times: int = 1) -> None:
        for step in body.steps:
            self._mark(step, (*place, step.name), sure=sure, times=times)

    def _inside(self, readings: Callable[[], Iterator[Any]]) -> list[Any]:
        """Read things that go on at once; where one has failed for good, nothing more is done of the others.

        `readings` gives how each came out, and FAILED last where all of it has failed.
        """
        mine, self.tallies = self.tallies, {}
        outputs = list(readings())
        found, self.tallies = self.tallies, mine
        stopped = bool(outputs) and outputs[-1] is FAILED
        for place, tally in found.items():
            total = self._tally(place)
            total.done, total.failed = total.done + tally.done, total.failed + tally.failed
            if not stopped:
                total.ahead, total.perhaps = total.ahead + tally.ahead, total.perhaps + tally.perhaps
        return outputs

    def _parallel(self, step: Step[Any, Any], path: Path, place: Path, given: Any) -> Any:
        def branches() -> Iterator[Any]:
            found = [self._body(body, (*path, key), (*place, key), given) for key, body in step.bodies]
            yield from found
            if any(output is FAILED for output in found):
                yield FAILED

        outputs = self._inside(branches)
        if outputs[-1] is FAILED or self._not_joined(path):
            return FAILED
        keys = [key for key, _ in step.bodies]
        return OPEN if any(one is OPEN for one in outputs) else dict(zip(keys, outputs, strict=True))

    def _map(self, step: Step[Any, Any], path: Path, place: Path, given: Any) -> Any:
        control, body = step.control, step.bodies[0][1]
        assert isinstance(control, MapOver)
        items = given
        if type(given) not in (list, tuple, range):
            listed = self.saved.done.get((*path, ITEMS))
            if listed is None:
                self._mark_body(body, place, sure=False)
                return OPEN
            if not listed.success:
                return FAILED
            items = listed.output

        def each() -> Iterator[Any]:
            failed, fresh = 0, 0
            for index, item in enumerate(items):
                where = (*path, f"[{index}]")
                if where not in self._begun:
                    fresh += 1
                    yield OPEN
                    continue
                output = self._body(body, where, place, item)
                failed += output is FAILED
                yield ItemError(index=index, error="") if output is FAILED and control.collect else output
            if fresh:
                self._mark_body(body, place, sure=True, times=fresh)
            if (failed and not control.collect) or not _tolerates(control, failed, len(items)):
                yield FAILED

        outputs = self._inside(each)
        if (outputs and outputs[-1] is FAILED) or self._not_joined(path):
            return FAILED
        return OPEN if any(one is OPEN for one in outputs) else outputs

    def _not_joined(self, path: Path) -> bool:
        """Return whether the contexts of the branches could not be brought together."""
        joined = self.saved.done.get((*path, JOIN))
        return joined is not None and not joined.success

    def _branch(self, step: Step[Any, Any], path: Path, place: Path, given: Any) -> Any:
        decided = self.saved.done.get((*path, CHOICE))
        if decided is None:
            for key, body in step.bodies:
                self._mark_body(body, (*place, key), sure=False)
            return OPEN
        if not decided.success:
            return FAILED
        case = decided.output
        self.choices.setdefault(place, set()).add(case)
        assert isinstance(step.control, BranchOn)
        return self._body(dict(step.bodies)[case], (*path, case), (*place, case), given)

    def _loop(self, step: Step[Any, Any], path: Path, place: Path, given: Any) -> Any:
        control, body = step.control, step.bodies[0][1]
        assert isinstance(control, LoopUntil)
        for times in range(1, control.max_iterations + 1):
            where = (*path, f"#{times}")
            given = self._body(body, where, place, given)
            decided = self.saved.done.get((*where, EXIT)) if given is not OPEN and given is not FAILED else None
            if given is FAILED or (decided is not None and not decided.success):
                return FAILED
            if decided is None:
                if times < control.max_iterations:
                    self._mark_body(body, place, sure=False)
                return OPEN
            if decided.output:
                return given
        return FAILED

    def _nested(self, step: Step[Any, Any], path: Path, place: Path, given: Any) -> Any:
        return self._body(step.bodies[0][1], path, place, given)

    def _fallback(self, step: Step[Any, Any], path: Path, place: Path, given: Any) -> Any:
        (first, primary), (second, other) = step.bodies
        output = self._body(primary, (*path, first), (*place, first), given)
        if output is OPEN:
            self._mark_body(other, (*place, second), sure=False)
        return self._body(other, (*path, second), (*place, second), given) if output is FAILED else output


def _tolerates(control: MapOver, failed: int, total: int) -> bool:
    most, least = control.tolerated_failures, control.min_successful
    return (most is None or failed <= most) and (least is None or total - failed >= least)


_KINDS: dict[str, Callable[[Ahead, Step[Any, Any], Path, Path, Any], Any]] = {
    "parallel": Ahead._parallel, "map": Ahead._map, "branch": Ahead._branch,
    "loop": Ahead._loop, "pipeline": Ahead._nested, "fallback": Ahead._fallback,
}  # fmt: skip
