"""What a composite step has to do next, told from its records by plain recursion; and random composites to try."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from flujo import ItemError, Pipeline, Step, step
from flujo.engine import Act, Frame, Path, Tree, sort_out
from flujo.pipeline import shares_context
from flujo.pipeline.control import BranchOn, LoopUntil, MapOver
from flujo.state.models import StepRecord

# --- composites ---


async def _plain(given: Any) -> Any:
    raise AssertionError("an engine calls nothing")


async def _sharing(given: Any, *, context: dict[str, Any]) -> Any:
    raise AssertionError("an engine calls nothing")


def leaf(name: str, *, context: bool = False) -> Step[Any, Any]:
    """Return a step that is a function."""
    made: Step[Any, Any] = step(name=name)(_sharing if context else _plain)
    return made


Spec = dict[str, Any]
KEYS = {"parallel": ("left", "right", "third"), "branch": ("big", "small"), "fallback": ("primary", "fallback")}


@st.composite
def specs(draw: st.DrawFn, depth: int = 3, name: str = "top") -> Spec:
    """Draw the description of a composite step, nested at most so deep."""

    def inner(called: str) -> Spec:
        if depth == 1 or draw(st.integers(0, 2)) == 0:
            return {"name": called, "kind": "leaf", "context": draw(st.integers(0, 3)) == 0}
        return draw(specs(depth - 1, called))

    kind = draw(st.sampled_from(["parallel", "map", "branch", "loop", "pipeline", "fallback"]))
    spec: Spec = {"name": name, "kind": kind, "timed": draw(st.integers(0, 3)) == 0}
    if kind in ("map", "loop"):
        spec["most"] = draw(st.integers(1, 3))
    if kind == "map" and draw(st.booleans()):
        none_or_one = st.sampled_from([None, None, 1])
        spec["collect"] = {"tolerated_failures": draw(none_or_one), "min_successful": draw(none_or_one)}
    if kind == "branch":
        spec["default"] = draw(st.sampled_from([None, "big"]))
    keys = KEYS.get(kind, ("",))
    if kind == "parallel":
        keys = keys[: draw(st.integers(1, 3))]
    spec["bodies"] = {key: [inner(f"s{index}") for index in range(draw(st.integers(1, 2)))] for key in keys}
    return spec


def built(spec: Spec) -> Step[Any, Any]:
    """Make the step of its description."""
    kind, name = spec["kind"], spec["name"]
    if kind == "leaf":
        return leaf(name, context=spec["context"])
    bodies = {key: Pipeline.of(*map(built, inner)) for key, inner in spec["bodies"].items()}
    made: Step[Any, Any]
    if kind == "parallel":
        made = Step.parallel(name, **bodies)
    elif kind == "map" and "collect" in spec:
        made = Step.map_over(name, bodies[""], max_concurrency=spec["most"], on_error="collect", **spec["collect"])
    elif kind == "map":
        made = Step.map_over(name, bodies[""], max_concurrency=spec["most"])
    elif kind == "branch":
        made = Step.branch_on(name, by=_plain, default=spec["default"], **bodies)
    elif kind == "loop":
        made = Step.loop_until(name, bodies[""], until=_plain, max_iterations=spec["most"])
    elif kind == "pipeline":
        made = bodies[""].as_step(name)
    else:
        made = bodies["primary"].as_step(name).fallback(bodies["fallback"])
    made = replace(made, input_type=Any, output_type=Any)  # anything goes
    return made.with_timeout(60) if spec["timed"] else made


# --- what the records say ---


@dataclass
class Done:
    """It came to its end."""

    output: Any


@dataclass
class Failed:
    """It failed for good."""


@dataclass
class Waiting:
    """It is under way: what is to be performed, with what it is given."""

    due: dict[Path, Any] = field(default_factory=dict)


class Oracle:
    """Says how a step stands. `records` are by path; what is in `expired` waits for its time-out to be saved."""

    def __init__(self, records: Mapping[Path, StepRecord], expired: set[Path]) -> None:
        self._records, self._expired = records, expired

    def step(self, found: Step[Any, Any], path: Path, given: Any) -> Done | Failed | Waiting:
        """Return how that step stands."""
        if found.control is None:
            return self._act(path, given)
        if path in self._records and not self._records[path].success:
            return Failed()
        if path in self._expired:
            return Waiting()
        result: Done | Failed | Waiting = getattr(self, f"_{found.kind}")(found, path, given)
        return result

    def _act(self, path: Path, given: Any) -> Done | Failed | Waiting:
        record = self._records.get(path)
        if record is None:
            return Waiting({path: given})
        return Done(record.output) if record.success else Failed()

    def _body(self, found: Step[Any, Any], key: str, path: Path, given: Any) -> Done | Failed | Waiting:
        for inner in dict(found.bodies)[key].steps:
            result = self.step(inner, (*path, inner.name), given)
            if not isinstance(result, Done):
                return result
            given = result.output
        return Done(given)

    def _pipeline(self, found: Step[Any, Any], path: Path, given: Any) -> Done | Failed | Waiting:
        return self._body(found, "", path, given)

    def _fallback(self, found: Step[Any, Any], path: Path, given: Any) -> Done | Failed | Waiting:
        first = self._body(found, "primary", (*path, "primary"), given)
        return self._body(found, "fallback", (*path, "fallback"), given) if isinstance(first, Failed) else first

    def _branch(self, found: Step[Any, Any], path: Path, given: Any) -> Done | Failed | Waiting:
        assert isinstance(found.control, BranchOn)
        choice = self._act((*path, ">choice"), given)
        if not isinstance(choice, Done):
            return choice
        return self._body(found, choice.output, (*path, choice.output), given)

    def _loop(self, found: Step[Any, Any], path: Path, given: Any) -> Done | Failed | Waiting:
        assert isinstance(found.control, LoopUntil)
        for times in range(1, found.control.max_iterations + 1):
            here = (*path, f"#{times}")
            result = self._body(found, "", here, given)
            if not isinstance(result, Done):
                return result
            decided = self._act((*here, ">exit"), result.output)
            if not isinstance(decided, Done):
                return decided
            if decided.output:
                return result
            given = result.output
        return Failed()

    def _parallel(self, found: Step[Any, Any], path: Path, given: Any) -> Done | Failed | Waiting:
        results = {key: self._body(found, key, (*path, key), given) for key, _ in found.bodies}
        outputs = {key: result.output for key, result in results.items() if isinstance(result, Done)}
        return self._together(found, path, list(results.values()), outputs)

    def _map(self, found: Step[Any, Any], path: Path, given: Any) -> Done | Failed | Waiting:
        control = found.control
        assert isinstance(control, MapOver)
        listed = Done(given) if type(given) is list else self._act((*path, ">items"), given)
        if not isinstance(listed, Done):
            return listed
        results: list[Done | Failed | Waiting] = []
        failures = under_way = 0
        for index, item in enumerate(listed.output):
            result = self._body(found, "", (*path, f"[{index}]"), item)
            if isinstance(result, Failed) and control.collect:
                failures, result = failures + 1, Done(ItemError(index=index, error="?"))
            results.append(result)
            under_way += isinstance(result, Waiting)
            if under_way == control.max_concurrency:
                break
        most, least = control.tolerated_failures, control.min_successful
        if (most is not None and failures > most) or (least is not None and len(listed.output) - failures < least):
            return Failed()
        outputs = [result.output for result in results if isinstance(result, Done)]
        return self._together(found, path, results, outputs, joins=bool(listed.output))

    def _together(
        self, found: Step[Any, Any], path: Path, results: list[Any], outputs: Any, joins: bool = True
    ) -> Done | Failed | Waiting:
        if any(isinstance(result, Failed) for result in results):
            return Failed()
        due = {path: given for result in results if isinstance(result, Waiting) for path, given in result.due.items()}
        if any(isinstance(result, Waiting) for result in results):
            return Waiting(due)
        if joins and shares_context(found):
            joined = self._act((*path, ">join"), None)
            if not isinstance(joined, Done):
                return joined
        return Done(outputs)


def value(rng: random.Random) -> Any:
    """Return what a step may have given: a number, or items."""
    return rng.choice([1, 2, [], [1], [1, 2], [1, [2], 3]])


# --- a run by dice ---

INPUT = [1, [2], 3]


class Play:
    """One composite step that is performed by dice: what is under way, and what has been saved.

    `records` are all that were saved, `void` the places of those failures that are tried again.
    """

    def __init__(self, step: Step[Any, Any], records: list[StepRecord], void: set[int], seed: int) -> None:
        self.step, self.records, self.void = step, records, void
        self.rng = random.Random(seed)
        saved = sort_out(records, void)
        self.places = saved.places
        self.tree = Tree(step, (step.name,), INPUT, saved, copy.deepcopy)
        self.due: dict[Path, Act] = {}
        self.timed: list[Frame] = []
        self.expired: list[Frame] = []
        self.failed_at: list[int] = []
        self.look()

    def look(self) -> None:
        """Take what the tree asks for, as its runner does."""
        tree = self.tree
        for act in tree.ready():
            assert act.path not in self.due, f"{act.path} is asked for twice"
            self.due[act.path] = act
        for path in tree.dropped:
            act = self.due.pop(path)
            if act.step is not None and act.settle is None and self.rng.random() < 0.3:  # its save was under way
                self.records.append(StepRecord(path=path, output=value(self.rng)))
        self.timed += tree.timed
        tree.dropped.clear()
        tree.timed.clear()

    def check(self) -> None:
        """Compare what is under way with what the records say, and with a tree that is made of them."""
        self.look()
        known = sort_out(self.records, self.void)
        expected = Oracle(known.done, {frame.path for frame in self.expired}).step(self.step, (self.step.name,), INPUT)
        if self.tree.failure is not None or isinstance(expected, Failed):
            assert self.tree.failure is not None and isinstance(expected, Failed)
        elif self.tree.over or isinstance(expected, Done):
            assert self.tree.over and isinstance(expected, Done)
            assert plain(self.tree.output) == plain(expected.output)
        else:
            due = {path: plain(act.given) for path, act in self.due.items()}
            assert due == {path: plain(found) for path, found in expected.due.items()}
        if not self.expired:
            self.check_again()

    def check_again(self) -> None:
        """A tree that begins with the records so far is as far as this one."""
        saved = sort_out(self.records, self.void)
        again = Tree(self.step, (self.step.name,), INPUT, saved, copy.deepcopy)
        asked = {act.path: act.given for act in again.ready()}
        assert (again.over, again.failure is None) == (self.tree.over, self.tree.failure is None)
        assert again.output == self.tree.output
        if not self.tree.over:
            assert asked == {path: act.given for path, act in self.due.items()}
        restored = {record.path for _, record in again.restored}
        assert restored <= {record.path for record in self.records if record.context_changes is not None}

    def move(self) -> None:
        """Let something come about."""
        running = [frame for frame in self.timed if not frame.over]
        if self.expired and (not self.due or self.rng.random() < 0.5):
            self.time_out(self.expired.pop())
        elif running and self.rng.random() < 0.1:
            frame = self.rng.choice(running)
            if self.tree.expire(frame):
                self.expired.append(frame)
        else:
            self.act(self.due.pop(self.rng.choice(sorted(self.due))))

    def time_out(self, frame: Frame) -> None:
        if self.tree.wants(frame):
            text = self.save_failure(frame.path, self.tree.absorbs(frame))
            self.tree.broken(frame, TimeoutError(), text)

    def act(self, act: Act) -> None:
        try:
            output = self.outcome(act)
        except Exception as error:
            text = self.save_failure(act.path, self.tree.absorbs(act.path))
            self.tree.failed(act.path, error, text)
            return
        changes = {"n": [1]} if self.rng.random() < 0.3 else None
        self.records.append(StepRecord(path=act.path, output=output, context_changes=changes))
        self.tree.succeeded(act.path, output)

    def outcome(self, act: Act) -> Any:
        if act.step is None:  # a join
            return None
        if self.rng.random() < 0.12:
            raise ValueError("dice")
        if act.settle is None:
            return value(self.rng)
        answers: dict[str, list[Any]] = {
            ">choice": ["big", "small", "none"],
            ">exit": [True, False],
            ">items": [(1, 2), ()],
        }
        return act.settle(self.rng.choice(answers[act.path[-1]]))

    def save_failure(self, path: Path, absorbed: bool) -> str:
        place, text = len(self.records), f"Error: number {len(self.records)}"
        self.records.append(StepRecord(path=path, success=False, feedback=text))
        if absorbed:
            self.places[path] = place
        else:
            self.failed_at.append(place)
        return text

    def to_the_end(self) -> None:
        """Go on until all is over."""
        self.check()
        while not self.tree.over:
            self.move()
            self.check()
        if self.tree.failure is None:
            self.check_again()

    def voided(self) -> set[int]:
        """Return what is void when what has failed is tried again."""
        assert self.tree.failure is not None
        causes = {self.places[path] for path in self.tree.failure.causes if path in self.places}
        return self.void | causes | set(self.failed_at)


def plain(output: Any) -> Any:
    """Return an output without the texts of the items that failed."""
    if isinstance(output, dict):
        return {key: plain(found) for key, found in output.items()}
    if isinstance(output, list):
        return [plain(found) for found in output]
    return ItemError(index=output.index, error="") if isinstance(output, ItemError) else output
