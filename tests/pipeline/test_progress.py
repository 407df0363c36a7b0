from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from flujo import Flujo, InMemoryBackend
from flujo.errors import InvalidStateError
from flujo.pipeline import ItemError, Pipeline, Step
from flujo.pipeline.progress import Count, Progress, read_progress
from flujo.state.models import StepRecord
from tests.support.pipeline_strategy import leaf, pipelines


def of(*entries: str | Step[Any, Any]) -> Pipeline[Any, Any]:
    return Pipeline.of(*(leaf(found) if isinstance(found, str) else found for found in entries))  # type: ignore[call-overload,no-any-return]


def record(path: str, output: Any = None, **facts: Any) -> StepRecord:
    return StepRecord(path=tuple(path.split("/")), output=output, **facts)


def told(pipeline: Pipeline[Any, Any], state: Any) -> dict[str, str]:
    """Return what there is to be told of each step, by its path."""
    return {"/".join(path): mark for path, mark in read_progress(pipeline, state).marks.items() if mark}


def at(index: int, *records: StepRecord, status: str = "running", **facts: Any) -> dict[str, Any]:
    return {"status": status, "current_step_index": index, "step_history": list(records), **facts}


@pytest.mark.parametrize(
    ("status", "mark"), [("running", "running"), ("paused", "waiting"), ("failed", "failed"), ("cancelled", None)]
)
def test_steps_before_the_current_one_are_done(status: str, mark: str | None) -> None:
    """The current one is what the run is; those behind it are nothing yet."""
    expected = {"a": "done", "b": mark} if mark else {"a": "done"}
    assert told(of("a", "b", "c"), at(1, record("a"), status=status)) == expected
    assert told(of("a", "b", "c"), at(1, status=status)) == expected, "by hand, without records"


def test_a_failure_that_was_tried_again_is_none() -> None:
    """Of several records of one step the last counts."""
    records = [record("a"), record("b", success=False), record("b")]
    assert told(of("a", "b"), at(2, *records, status="completed")) == {"a": "done", "b": "done"}


def test_a_step_inside_that_comes_after_a_done_one_is_under_way() -> None:
    """A step leaves a record only when it is done."""
    made = of(Step.parallel("fan", left=of("a", "b", "c"), right=of("x", "y")), "z")
    assert told(made, at(0)) == {"fan": "running", "fan/left/a": "running", "fan/right/x": "running"}
    assert told(made, at(0, record("fan/left/a"), record("fan/right/x"), record("fan/right/y"), status="paused")) == {
        "fan": "waiting",
        "fan/left/a": "done",
        "fan/left/b": "waiting",
        "fan/right/x": "done",
        "fan/right/y": "done",
    }


def test_what_a_failure_stopped_is_not_under_way() -> None:
    """Neither where the run failed, nor where it goes on with a fallback."""
    fan = Step.parallel("fan", left=of("a", "b"), right=of("x", "y"))
    records = [record("fan/left/a"), record("fan/right/x", success=False)]
    marks = {"fan": "failed", "fan/left/a": "done", "fan/right/x": "failed"}
    assert told(of(fan), at(0, *records, status="failed")) == marks
    inside = [record(f"fan/primary/{'/'.join(found.path)}", success=found.success) for found in records]
    assert told(of(fan.fallback(leaf("plan b"))), at(0, *inside)) == {
        "fan": "running",
        **{f"fan/primary/{path}": mark for path, mark in marks.items()},
        "fan/fallback/plan b": "running",
    }


def test_what_was_stopped_or_failed_inside_is_not_taken_for_done() -> None:
    """However much came after it: a fallback, or the other items of a map that collects failures."""
    fan = Step.parallel("fan", left=of("a", "b").as_step("sub"), right=of("x"))
    records = [record("fan/left/sub/a"), record("fan/right/x", success=False)]
    marks = {"fan": "failed", "fan/left/sub/a": "done", "fan/right/x": "failed"}
    inside = [record(f"fan/primary/{'/'.join(found.path)}", success=found.success) for found in records]
    assert told(of(fan.fallback(leaf("y"))), at(0, *inside, record("fan/fallback/y"))) == {
        "fan": "running",
        **{f"fan/primary/{path}": mark for path, mark in marks.items()},
        "fan/fallback/y": "done",
    }
    each = of(Step.map_over("each", fan, on_error="collect"), "z")
    inside = [record(f"each/[0]/{'/'.join(found.path)}", success=found.success) for found in records]
    assert told(each, at(1, *inside, record("each", [ItemError(index=0, error="x")]))) == {
        "each": "done",
        **{f"each/{path}": mark for path, mark in marks.items()},
        "z": "running",
    }


def test_what_was_left_is_done_whatever_its_records_tell() -> None:
    """The next step has begun, or the loop's exit was decided, so a map of unknown length has come to its end."""
    each = Step.map_over("each", leaf("a"))
    assert told(of(of(each, "b", "c").as_step("sub")), at(0, record("sub/each/[0]/a"), record("sub/b"))) == {
        "sub": "running",
        "sub/each": "done",
        "sub/each/a": "done",
        "sub/b": "done",
        "sub/c": "running",
    }
    made = of(Step.parallel("fan", left=Step.loop_until("refine", each, until=bool), right=leaf("x")))
    records = [record("fan/left/refine/#1/each/[0]/a"), record("fan/left/refine/#1/>exit", True)]
    assert told(made, at(0, *records)) == {
        "fan": "running",
        "fan/left/refine": "done",
        "fan/left/refine/each": "done",
        "fan/left/refine/each/a": "done",
        "fan/left/refine/>exit": "done",
        "fan/right/x": "running",
    }


def test_what_a_fallback_has_replaced_is_not_under_way() -> None:
    """A result, which tells no decisions, does not tell why it failed."""
    made = of(Step.loop_until("refine", leaf("a"), until=bool, max_iterations=1).fallback(of("x", "y").as_step("sub")))
    assert told(
        made, at(0, record("refine/primary/refine/#1/a"), record("refine/fallback/sub/x"), status="paused")
    ) == {
        "refine": "waiting",
        "refine/primary/refine/a": "done",
        "refine/fallback/sub": "waiting",
        "refine/fallback/sub/x": "done",
        "refine/fallback/sub/y": "waiting",
    }


def test_a_map_is_as_far_as_its_items_together() -> None:
    """A step is done when it is for all items; how many there are is known from what the map was given."""
    made = of("a", Step.map_over("each", of("fetch", "score"), max_concurrency=2))
    assert told(made, at(1, record("a", [1]))) == {"a": "done", "each": "running", "each/fetch": "running"}
    records = [record("a", [1, 2, 3]), record("each/[0]/fetch"), record("each/[0]/score"), record("each/[2]/fetch")]
    progress = read_progress(made, at(1, *records, last_step_output=[1, 2, 3]))
    assert progress.counts == {("each",): Count(1, 0, 3)}
    assert told(made, at(1, *records)) == {
        "a": "done",
        "each": "running",
        "each/fetch": "running",
        "each/score": "running",
    }
    done = [record(f"each/[{index}]/{name}") for index in range(3) for name in ("fetch", "score")]
    assert told(made, at(2, records[0], *done, record("each", [1, 2, 3]), status="completed")) == {
        "a": "done",
        "each": "done",
        "each/fetch": "done",
        "each/score": "done",
    }
    stopped = told(made, at(1, *records, record("each/[2]/score", success=False), status="failed"))
    assert stopped == {"a": "done", "each": "failed", "each/score": "failed"}


@pytest.mark.parametrize(
    ("state", "count"),
    [
        (at(0, input=[1, 2, 3]), Count(0, 0, 3)),
        (at(0, input={1, 2, 3}), Count(0, 0, None)),
        (at(0, record("each/>items", [1, 2])), Count(0, 0, 2)),
        (at(0, record("each/[0]/x"), record("each/[7]/x", success=False), input=range(9)), Count(1, 1, 9)),
        (at(1, record("each", [1, ItemError(index=1, error="x")]), status="completed"), Count(1, 1, 2)),
        (at(0, record("each/[x]/x"), record("each/[]/x"), record("each/[²]/x"), input=[1]), Count(0, 0, 1)),
    ],
)
def test_the_items_of_a_map_are_counted(state: Any, count: Count) -> None:
    """Those that failed apart; how many there are is not always known."""
    made = of(Step.map_over("each", of("x"), on_error="collect"))
    assert read_progress(made, state).counts == {("each",): count}


def test_the_items_of_maps_inside_each_other_are_counted_together() -> None:
    """As far as the inner ones have begun."""
    made = of(Step.map_over("all", of(Step.map_over("each", of("x"))), max_concurrency=1))
    records = [record(f"all/[0]/each/[{index}]/x") for index in range(3)] + [record("all/[1]/each/[0]/x")]
    progress = read_progress(made, at(0, *records, input=[[1, 2, 3], [4, 5], [6]]))
    assert progress.counts == {("all",): Count(1, 0, 3), ("all", "each"): Count(4, 0, 5)}
    assert progress.marks["all", "each"] == "running"


@pytest.mark.parametrize(
    ("options", "failed", "mark"),
    [
        ({}, 3, "running"),
        ({"tolerated_failures": 2}, 2, "running"),
        ({"tolerated_failures": 2}, 3, "failed"),
        ({"min_successful": 7}, 3, "running"),
        ({"min_successful": 8}, 3, "failed"),
    ],
)
def test_a_map_has_failed_when_more_items_have_than_it_tolerates(options: Any, failed: int, mark: str) -> None:
    """The next items are then not begun."""
    made = of(Step.map_over("each", of("x"), on_error="collect", **options).fallback(leaf("y")))
    records = [record(f"each/primary/each/[{index}]/x", success=False) for index in range(failed)]
    marks = told(made, at(0, *records, input=range(10)))
    assert marks["each/primary/each"] == mark
    assert ("each/fallback/y" in marks) == (mark == "failed")


def test_a_branch_is_as_far_as_its_case() -> None:
    """The other cases are nothing; before the choice only that is under way."""
    made = of(Step.branch_on("route", by=str, a=of("x", "y"), b=of("z")), "last")
    assert told(made, at(0)) == {"route": "running", "route/>choice": "running"}
    chosen = record("route/>choice", "a")
    assert told(made, at(0, chosen)) == {"route": "running", "route/>choice": "done", "route/a/x": "running"}
    assert told(made, at(0, chosen, record("route/a/x")))["route/a/y"] == "running"
    assert told(made, at(0, record("route/>choice", success=False), status="failed")) == {
        "route": "failed",
        "route/>choice": "failed",
    }
    assert told(made, at(0, record("route/>choice", ["a"]))), "a choice that is none, put there by hand"


def test_a_loop_is_as_far_as_its_current_iteration() -> None:
    """Each begins anew; the test comes after the body."""
    made = of(Step.loop_until("refine", of("a", "b"), until=bool, max_iterations=2), "last")
    first = [record("refine/#1/a"), record("refine/#1/b")]
    assert told(made, at(0, *first)) == {
        "refine": "running",
        "refine/a": "done",
        "refine/b": "done",
        "refine/>exit": "running",
    }
    again = [*first, record("refine/#1/>exit", False)]
    assert told(made, at(0, *again)) == {"refine": "running", "refine/a": "running"}
    assert told(made, at(0, *again, record("refine/#2/a")))["refine/b"] == "running"
    ended = [*again, record("refine/#2/a"), record("refine/#2/b"), record("refine/#2/>exit", False)]
    assert told(made, at(0, *ended, status="failed"))["refine"] == "failed"
    inner = of(Step.loop_until("refine", of("a", "b"), until=bool, max_iterations=2).fallback(leaf("x")))
    nested = [record(f"refine/primary/{'/'.join(found.path)}", found.output) for found in ended]
    assert told(inner, at(0, *nested))["refine/fallback/x"] == "running"


def test_of_records_alone_the_status_is_not_known() -> None:
    """What is done and failed is told, nothing is under way."""
    made = of("a", Step.parallel("fan", left=of("x", "y"), right=of("z")), "b")
    assert told(made, [record("a"), record("fan/left/x"), record("fan/right/z", success=False)]) == {
        "a": "done",
        "fan": "failed",
        "fan/left/x": "done",
        "fan/right/z": "failed",
    }
    assert told(made, iter([])) == {}
    assert told(made, [{"path": ["a"], "success": True}]) == {"a": "done"}
    with pytest.raises(InvalidStateError, match="no step record"):
        told(made, [3])


class Noting(InMemoryBackend):
    """Keeps every state, as it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[dict[str, Any]] = []

    async def save_state(self, run_id: str, state: dict[str, Any]) -> None:
        await super().save_state(run_id, state)
        loaded = await super().load_state(run_id)
        assert loaded is not None
        self.states.append(loaded)


def places(pipeline: Pipeline[Any, Any], path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for step in pipeline.steps:
        here = (*path, step.name)
        found |= {here} | ({(*here, f">{step.decision.name}")} if step.decision else set())
        for key, body in step.bodies:
            found |= places(body, (*here, key) if key else here)
    return found


def look(pipeline: Pipeline[Any, Any], state: dict[str, Any], progress: Progress) -> None:
    """What holds of every state of every run."""
    index, status = state["current_step_index"], state["status"]
    assert progress.marks.keys() <= places(pipeline)
    for position, step in enumerate(pipeline.steps):
        mark = progress.marks.get((step.name,), "")
        now = {"running": "running", "failed": "failed"}.get(status, "")
        assert mark == ("done" if position < index else now if position == index else "")
    assert ("running" in progress.marks.values()) == (status == "running")
    ended = {tuple(part for part in found.path if part[0] not in "[#") for found in state["step_history"]}
    assert all(place in ended for place, mark in progress.marks.items() if mark == "done" and place[-1][0] == ">")
    for count in progress.counts.values():
        assert count.total is None or 0 <= count.done + count.failed <= count.total


@pytest.mark.slow
@settings(max_examples=30)
@given(pipelines(fails=True))
def test_every_state_of_a_run_can_be_read(pipeline: Pipeline[Any, Any]) -> None:
    """As it was saved; and as the result tells it, which leaves out decisions, where nothing was stopped."""
    backend = Noting()
    result = Flujo(pipeline, state_backend=backend).run(None)
    for state in backend.states:
        look(pipeline, state, read_progress(pipeline, state))
        pipeline.to_mermaid(state)
    last, told = read_progress(pipeline, backend.states[-1]), read_progress(pipeline, result)
    assert result.status in ("completed", "failed")
    history = backend.states[-1]["step_history"]
    if all(found.success and (found.output or found.path[-1] != ">exit") for found in history):
        assert {place: mark for place, mark in told.marks.items() if mark} == {
            place: mark for place, mark in last.marks.items() if mark
        }
        assert told.counts == last.counts
