"""What is to be undone, told from the records; and the states of a run that is being undone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flujo import Pipeline, Step, step
from flujo.engine import can_undo, failed, fresh, progressed, undid, undo_failed, undoing, undone, undos
from flujo.engine.undo import step_at
from flujo.pipeline import Registered
from flujo.state.models import StepRecord
from tests.support.pipelines import T0

REASON = {"type": "ValueError", "text": "no"}
OTHER = {"type": "UndoFailedError", "text": "no way back"}


async def function(given: Any) -> Any:
    raise AssertionError("an engine calls nothing")


def plain(name: str) -> Step[Any, Any]:
    made: Step[Any, Any] = step(name=name)(function)
    return made


def undoable(name: str) -> Step[Any, Any]:
    made: Step[Any, Any] = step(name=name, undo=step(name=f"un{name}")(function))(function)
    return made


def nested() -> Pipeline[Any, Any]:
    """Return a pipeline with a step `pay` that has an undo at every kind of place."""
    pay = undoable("pay")
    return Pipeline.of(
        pay,
        Step.parallel("fan", left=plain("x") >> pay, right=pay),
        Step.map_over("many", plain("x") >> pay),
        Step.loop_until("again", pay, until=lambda _: True),
        Step.branch_on("route", by=lambda _: "big", big=pay, small=plain("x")),
        (plain("x") >> pay).as_step("inner"),
        undoable("charge").fallback(undoable("wire")),
        Step.map_over("deep", Step.loop_until("again", Step.parallel("fan", one=pay), until=lambda _: True)),
    )


def record(path: str, **facts: Any) -> StepRecord:
    return StepRecord(path=tuple(path.split(".")), **{"output": path, **facts})


def due(pipeline: Pipeline[Any, Any], *records: StepRecord) -> list[str]:
    return [".".join(undo.path) for undo in undos(pipeline, records)]


# --- which steps there are to undo ---

PAID = [
    "pay", "fan.left.pay", "fan.right.pay", "many.[0].pay", "many.[17].pay", "again.#1.pay", "again.#23.pay",
    "route.big.pay", "inner.pay", "charge.primary.charge", "charge.fallback.wire", "deep.[3].again.#2.fan.one.pay",
]  # fmt: skip
NOTHING = [
    "fan", "fan.left.x", "many", "many.[0].x", "route.small.x", "inner", "deep.[3].again", "deep.[3].again.#2.fan",
    "route.>choice", "again.#1.>exit", "many.>items", "fan.>join", "deep.[3].again.#2.fan.>join", "pay.>call",
    "fan.left.pay.>call", "pay.>undo.>call", "charge", "gone", "fan.gone.pay", "many.[0]", "pay.pay", "inner.gone",
]  # fmt: skip


@pytest.mark.parametrize("path", PAID)
def test_steps_are_found_at_any_depth(path: str) -> None:
    """The record of a step with an undo is undone by that step's undo, with its output."""
    (undo,) = undos(nested(), [record(path)])
    assert (".".join(undo.path), undo.given, undo.attempts) == (f"{path}.>undo", path, 0)
    assert undo.step.name == "un" + path.rsplit(".", 1)[-1]
    found = step_at(nested(), tuple(path.split(".")))
    assert found is not None and found.undo is not None and found.undo.name == undo.step.name


@pytest.mark.parametrize("path", NOTHING)
def test_other_records_are_not_undone(path: str) -> None:
    """Those of composites, decisions, joins and calls, of steps without an undo, and of what is not there any more."""
    assert due(nested(), record(path)) == []


def test_only_what_succeeded_is_undone() -> None:
    """A failure that was absorbed or is tried again is none; one that succeeded after that is."""
    assert due(nested(), record("pay", success=False)) == []
    assert due(nested(), record("pay", success=False), record("pay")) == ["pay.>undo"]


def test_whether_there_can_be_anything_to_undo() -> None:
    """It is known from the pipeline alone, however deep the undo is."""
    assert can_undo(nested())
    for part in nested().steps:
        assert can_undo(Pipeline.of(part))
    assert not can_undo(plain("a") >> Step.map_over("many", plain("b").fallback(plain("c"))))


@pytest.mark.slow
@settings(max_examples=50)
@given(st.permutations(PAID), st.data())
def test_the_last_is_undone_first(order: list[str], data: st.DataObject) -> None:
    """In the reverse order of the records, at every point of the undoing, whatever attempts fail on the way."""
    pipeline = nested()
    records = [record(path) for path in order]
    left = [f"{path}.>undo" for path in reversed(order)]
    failures = 0
    while True:
        found = undos(pipeline, records)
        assert [".".join(undo.path) for undo in found] == left
        assert all(undo.given == ".".join(undo.path[:-1]) for undo in found)
        if not found:
            break
        assert [undo.attempts for undo in found] == [failures] + [0] * (len(found) - 1)
        fails = failures < 6 and data.draw(st.booleans())
        failures = failures + 2 if fails else 0
        records.append(record(left[0], success=not fails, attempts=failures or 1))
        left = left if fails else left[1:]


# --- states ---


def begun(**changes: Any) -> dict[str, Any]:
    """Return the state of a run with two steps saved."""
    pipeline = Pipeline.of(undoable("a"), undoable("b"), plain("c"))
    code = Registered(pipeline=pipeline, name="p", version="1", pipeline_id="id")
    state = fresh("r", code, "[]", 1, T0)
    return state | {"rev": 2, "current_step_index": 2, "step_history": [record("b")], "history_offset": 1} | changes


def test_the_way_of_a_run_that_is_undone() -> None:
    """`running` and `undoing` until the last undo is saved; then it is what it was to become, and where it was."""
    state = begun()
    before = copy.deepcopy(state)
    first = undoing(state, record("c", success=False), REASON, "failed", T0)
    assert state == before
    assert (first["status"], first["phase"], first["error"]) == ("running", "undoing", REASON)
    assert [found.path for found in first["step_history"]] == [("c",)]
    assert (first["rev"], first["history_offset"], first["current_step_index"]) == (3, 2, 2)
    second = undid(first, record("b.>undo"), {"n": 1}, T0)
    assert (second["status"], second["phase"], second["error"]) == ("running", "undoing", REASON)
    assert second["pipeline_context"] == {"n": 1}
    last = undone(undid(second, record("a.>undo"), {"n": 1}, T0), T0)
    assert (last["status"], last["phase"], last["error"], last["position"]) == ("failed", "undone", REASON, None)
    assert (last["rev"], last["history_offset"], last["step_history"]) == (6, 5, [])
    assert (last["current_step_index"], last["last_step_output"]) == (2, None)


@pytest.mark.parametrize("then", ["failed", "cancelled"])
@pytest.mark.parametrize("position", [None, {"from": 2}, {"from": 2, "attempts": 3, "void": [[0, 1]]}])
def test_the_reason_outlives_failures_and_calls(then: str, position: Any) -> None:
    """An undo that fails puts its own error in its place, and a call within one none; in the end it is back."""
    reason = REASON if then == "failed" else None
    state = undoing(begun(position=position), None, reason, then, T0)
    state = progressed(state, [record("b.>undo.>call")], {}, T0)
    assert (state["status"], state["phase"]) == ("running", "undoing")
    state = undo_failed(state, record("b.>undo", success=False, attempts=2), OTHER, T0)
    assert (state["status"], state["phase"], state["error"]) == ("failed", "undoing", OTHER)
    state = undo_failed({**state, "status": "running"}, record("b.>undo", success=False), OTHER, T0)
    state = undid({**state, "status": "running"}, record("b.>undo"), {}, T0)
    assert (state["status"], state["error"]) == ("running", reason)
    state = undone(state, T0)
    assert (state["status"], state["phase"], state["error"]) == (then, "undone", reason)


def test_cancelling_a_failed_run_keeps_nothing_of_its_failure() -> None:
    """It ends as cancelled, without an error; that it had failed is in its records."""
    state = failed(begun(), record("c", success=False), REASON, T0)
    state = undone(undoing(state, None, None, "cancelled", T0), T0)
    assert (state["status"], state["phase"], state["error"]) == ("cancelled", "undone", None)
