"""What a plan says: which steps are done, which are to come, and how another pipeline differs; nothing is executed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flujo import Pipeline, Step
from flujo.engine import Frame, Path, Tree, sort_out
from flujo.engine.ahead import FAILED, OPEN, Ahead
from flujo.engine.foresight import Plan, plan
from flujo.pipeline import Registered, fingerprint
from flujo.pipeline.progress import place_of
from flujo.state.models import StepRecord
from tests.support.pipelines import T0
from tests.support.tree_model import INPUT, Play, Spec, built, leaf, specs


def code(pipeline: Pipeline[Any, Any], version: str = "1.0") -> Registered:
    return Registered(pipeline=pipeline, name="p", version=version, pipeline_id="p")


def state_of(pipeline: Pipeline[Any, Any], index: int = 0, **changes: Any) -> dict[str, Any]:
    """Return the state of a run that has saved the first `index` steps of the pipeline."""
    state: dict[str, Any] = {
        "run_id": "r", "pipeline_id": "p", "pipeline_name": "p", "pipeline_version": "1.0",
        "current_step_index": index, "pipeline_context": {}, "last_step_output": INPUT, "status": "running",
        "created_at": T0, "updated_at": T0, "rev": 1, "position": None, "step_history": [], "history_offset": index,
        "fingerprint": fingerprint(pipeline), "input": INPUT, "error": None, "phase": None, "waiting": None,
        "mail_seen": 0, "due_at": None, "deadline": None,
    }  # fmt: skip
    return state | changes


def of(*steps: str | Step[Any, Any]) -> Pipeline[Any, Any]:
    return Pipeline.of(*[leaf(found) if isinstance(found, str) else found for found in steps])  # type: ignore[call-overload, no-any-return]


def holder(kind: str, name: str, **bodies: Pipeline[Any, Any]) -> Step[Any, Any]:
    return dataclasses.replace(
        leaf(name), kind=kind, bodies=tuple((key.strip("_"), body) for key, body in bodies.items())
    )


def does(made: Plan) -> list[tuple[str, str]]:
    return [(step.path, step.does) for step in made.steps]


def done(*path: str, output: Any = 1, success: bool = True) -> StepRecord:
    return StepRecord(
        path=path, output=output if success else None, success=success, feedback=None if success else "E: x"
    )


# --- what is still to be done inside of a step ---


class Prediction:
    """What a reading of the records says at one point of a play, and whether that comes true."""

    def __init__(self, play: Play, failures: list[Any]) -> None:
        self.count, self.failures = len(play.records), len(failures)
        self.due = {place_of(path) for path, act in play.due.items() if _is_function(act.path, act.step)}
        reading = Ahead(sort_out(play.records, play.void))
        self.output = reading.read(play.step, INPUT)
        leaves = {place: tally for place, tally in reading.tallies.items() if not _at(play.step, place).bodies}
        self.sure = {place for place, tally in leaves.items() if tally.ahead}
        self.possible = {place for place, tally in leaves.items() if tally.ahead or tally.perhaps}

    def check(self, play: Play, failures: list[Any]) -> None:
        """Compare it to what has been done since."""
        later = play.records[self.count :]
        names = {
            place_of(record.path)
            for record in later
            if _is_function(record.path, _at(play.step, place_of(record.path)))
        }
        assert self.due <= self.possible
        assert names <= self.possible
        if len(failures) == self.failures:
            assert self.sure <= names
        if self.output is FAILED:
            assert play.tree.failure is not None
        elif self.output is not OPEN:
            assert not self.possible


def _is_function(path: Path, step: Step[Any, Any] | None) -> bool:
    return step is not None and path[-1][0] != ">" and not step.bodies


def _at(step: Step[Any, Any], place: Path) -> Step[Any, Any]:
    """Return the step at a place; what flujo itself records there is the step around it."""
    for part in place[1:]:
        found = next((body for key, body in step.bodies if key == part), None)
        if found is not None:
            step = dataclasses.replace(step, bodies=(("", found),))
            continue
        inner = [one for _, body in step.bodies for one in body.steps if one.name == part]
        step = inner[0] if inner else step
    return step


@contextlib.contextmanager
def counted_failures() -> Iterator[list[Any]]:
    """Note whatever fails inside of trees, also what leaves no record: a loop that is not done in time."""
    failures: list[Any] = []
    fail, expire = Frame.fail, Tree.expire

    def noted(frame: Frame, failure: Any) -> None:
        failures.append(frame)
        fail(frame, failure)

    def timed(tree: Tree, frame: Frame) -> bool:
        failures.append(frame)
        return expire(tree, frame)

    with mock.patch.object(Frame, "fail", noted), mock.patch.object(Tree, "expire", timed):
        yield failures


@pytest.mark.slow
@settings(max_examples=300)
@given(specs(), st.integers(0, 1 << 32))
def test_what_is_foretold_is_done(spec: Spec, seed: int) -> None:
    """At every point of any run: what is performed later was foretold, and what was sure is done unless it fails."""
    step = built(spec)
    records: list[StepRecord] = []
    void: set[int] = set()
    for round_ in range(3):
        with counted_failures() as failures:
            play = Play(step, records, void, seed + round_)
            told: list[Prediction] = []
            while not play.tree.over:
                play.look()
                if not play.expired:
                    told.append(Prediction(play, failures))
                play.move()
            play.look()
        for prediction in told:
            prediction.check(play, failures)
        if play.tree.failure is None or (again := play.voided()) == void:
            break
        void = again


# --- plans ---


def test_a_run_in_the_middle() -> None:
    """What is saved is skipped, the rest runs or waits, and nothing of it is asked of the records of earlier steps."""
    pipeline = of("a", "b", Step.human_in_the_loop("ask", "Ship it?", bool), "c")
    made = plan(state_of(pipeline, 1), code(pipeline), [])
    assert does(made) == [("a", "skipped"), ("b", "runs"), ("ask", "waits"), ("c", "runs")]
    assert (made.resumable, made.code, made.goes_on_with) == (True, "", "1.0")
    assert made.executes == ("b", "ask", "c")
    assert str(made).splitlines() == [
        "Run 'r' of 'p' 1.0 (running)",
        "  skipped a",
        "  runs    b",
        "  waits   ask (human)",
        "  runs    c",
    ]


@pytest.mark.parametrize("status", ["completed", "cancelled", "failed"])
def test_a_run_that_is_over(status: str) -> None:
    """Nothing is executed; a failed one is over where it was undone, and else tries its step again."""
    pipeline = of("a", "b")
    index = 2 if status == "completed" else 1
    over = plan(state_of(pipeline, index, status=status, phase="undone"), code(pipeline), [])
    assert does(over) == [("a", "skipped"), ("b", "skipped")]
    assert (over.resumable, over.executes) == (True, ())
    if status == "failed":
        assert plan(state_of(pipeline, 1, status=status), code(pipeline), []).executes == ("b",)


def test_a_map_that_is_half_done() -> None:
    """Its steps say how many items are done; one that failed and is tried again is to be done."""
    pipeline = of("list", Step.map_over("each", of("fetch", "score"), max_concurrency=2), "sum")
    records = [
        done("each", "[0]", "fetch"), done("each", "[0]", "score"), done("each", "[1]", "fetch"),
        done("each", "[1]", "score", success=False),
    ]  # fmt: skip
    state = state_of(pipeline, 1, status="failed", position={"from": 1, "void": [[3, 3]]})
    made = plan(state, code(pipeline), records)
    notes = {step.path: (step.does, step.note) for step in made.steps}
    assert notes["each.fetch"] == ("runs", "2 done, 1 to go")
    assert notes["each.score"] == ("runs", "1 done, 2 to go")
    assert made.executes == ("each", "each.fetch", "each.score", "sum")


def test_decisions_that_are_taken_and_those_to_come() -> None:
    """Only the case that was chosen runs; where none was yet, each of them perhaps does."""
    route: Step[Any, Any] = Step.branch_on("route", by=lambda n: "big", big=leaf("approve"), small=leaf("charge"))
    again: Step[Any, Any] = Step.loop_until("again", of("draft", "review"), until=lambda n: True)
    pipeline = of(route, again)
    made = plan(state_of(pipeline), code(pipeline), [done("route", ">choice", output="big")])
    found = {step.path: (step.does, step.executes, step.perhaps, step.note) for step in made.steps}
    assert found["route.big.approve"] == ("runs", True, False, "")
    assert found["route.small.charge"] == ("skipped", False, False, "not needed")
    assert found["again.draft"] == ("runs", True, False, "")
    undecided = {
        step.path: (step.executes, step.perhaps) for step in plan(state_of(pipeline), code(pipeline), []).steps
    }
    assert undecided["route.big.approve"] == undecided["route.small.charge"] == (True, True)
    looped = plan(state_of(pipeline, 1), code(pipeline), [done("again", "#1", "draft")])
    assert {step.path: step.perhaps for step in looped.steps if step.executes} == {
        "again": False, "again.draft": True, "again.review": False,
    }  # fmt: skip


def test_what_was_dealt_with_is_not_tried_again() -> None:
    """The primary failed: the fallback runs, and the primary does not."""
    step = of("try").as_step("x").fallback(of("instead"))
    made = plan(state_of(of(step)), code(of(step)), [done("x", "primary", "x", "try", success=False)])
    found = {one.path: (one.does, one.note) for one in made.steps}
    assert found["x.primary.x.try"] == ("skipped", "failed, and that was dealt with")
    assert found["x.fallback.instead"] == ("runs", "")


def test_a_failure_that_is_on_record() -> None:
    """A process died between the failure inside and the run's: it fails without a step, and nothing after it runs."""
    pipeline = of(of("a", "b").as_step("inner"), "after")
    made = plan(state_of(pipeline), code(pipeline), [done("inner", "a", success=False)])
    assert made.executes == ()
    assert made.steps[-1].note == "not executed: the run fails of what is on record, and can be tried again then"


def test_a_run_that_is_being_undone() -> None:
    """The undos that are left run, the last first, and no other step."""
    undo = leaf("undo")
    pipeline = of(dataclasses.replace(leaf("a"), undo=undo), dataclasses.replace(leaf("b"), undo=undo), "c")
    state = state_of(pipeline, 2, phase="undoing", position={"then": "failed", "reason": None})
    made = plan(state, code(pipeline), [done("a"), done("b"), done("c", success=False), done("b", ">undo")])
    assert made.executes == ("a>undo",)
    assert does(made) == [("a", "skipped"), ("b", "skipped"), ("c", "skipped"), ("a>undo", "runs")]


OLD = of("a", "b", holder("branch", "route", big=of("approve", "charge"), small=of("charge")), "d")


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (of("a", "x", "b", *OLD.steps[2:]), {"x": "new"}),
        (of("a", *OLD.steps[2:]), {"b": "gone"}),
        (of("a", "bb", *OLD.steps[2:]), {"bb": "new", "b": "gone"}),
        (of("b", "a", *OLD.steps[2:]), {"b": "moved"}),
        (of("a", holder("map", "b", _=of("in")), *OLD.steps[2:]), {"b": "changed", "b.in": "new"}),
        (
            of("a", "b", holder("branch", "route", big=of("charge", "approve"), small=of("charge")), "d"),
            {"route": "changed", "route.big.charge": "moved"},
        ),
        (
            of("a", "b", holder("branch", "route", big=of("approve", "charge")), "d"),
            {"route": "changed", "route.small.charge": "gone"},
        ),
        (of("a", "b", "route", "d"), {
            "route": "changed", "route.big.approve": "gone", "route.big.charge": "gone", "route.small.charge": "gone",
        }),
    ],
)  # fmt: skip
def test_another_pipeline(new: Pipeline[Any, Any], expected: dict[str, str]) -> None:
    """It cannot go on with it; the plan says why, and what became of each step, and that nothing is executed."""
    made = plan(state_of(OLD, 1), code(new), [])
    assert (made.resumable, made.code, made.executes) == (False, "pipeline-changed", ())
    assert "has changed since run 'r' started" in made.reason and "new version" in made.hint
    assert {step.path: step.does for step in made.steps if step.does not in ("skipped", "runs")} == expected
    assert f"cannot be resumed: {made.reason}" in str(made)
