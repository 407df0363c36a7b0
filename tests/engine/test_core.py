"""The core: what is next and what comes of it, as data, without I/O."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flujo import Pipeline
from flujo.engine import attempts_before, check_resumable, completed, decide, failed, finished, fresh
from flujo.errors import InvalidStateError, PipelineChangedError, PipelineMismatchError
from flujo.pipeline import Registered, fingerprint
from flujo.state.models import FIELDS, StepRecord, WorkflowState
from tests.support.pipelines import T0, adding

NAMES = "abcde"


def registered(length: int = 3, **changes: Any) -> Registered:
    pipeline = Pipeline.of(*(adding(name, []) for name in NAMES[:length]))
    facts: dict[str, Any] = {"pipeline": pipeline, "name": "p", "version": "1", "pipeline_id": "id"}
    return Registered(**facts | changes)


def begun(length: int = 3) -> tuple[Registered, dict[str, Any]]:
    code = registered(length)
    return code, fresh("r", code, fingerprint(code.pipeline), ["in"], T0)


def record(name: str, **changes: Any) -> StepRecord:
    facts: dict[str, Any] = {"path": (name,), "output": [name], "attempts": 1}
    return StepRecord(**facts | changes)


ERROR = {"type": "E", "text": "t"}


def test_a_fresh_state() -> None:
    """It has the ten fields, and is where the first step gets the run's input."""
    code, state = begun()
    assert WorkflowState(**{name: state[name] for name in FIELDS}).current_step_index == 0
    assert (state["rev"], state["total_steps"], state["status"]) == (0, 3, "running")
    do = decide(code.pipeline, state)
    assert do is not None
    assert (do.step.name, do.path, do.input) == ("a", ("a",), ["in"])


def test_from_step_to_step() -> None:
    """Each step gets the output of the one before; after the last one the run is completed and nothing is next."""
    code, state = begun()
    for number, name in enumerate("abc", start=1):
        do = decide(code.pipeline, state)
        assert do is not None and do.step.name == name
        assert do.input == (["in"] if number == 1 else [NAMES[number - 2]])
        state = completed(state, record(name), {"n": number}, 3, T0 + timedelta(seconds=number))
        assert (state["current_step_index"], state["rev"], state["history_offset"]) == (number, number, number - 1)
        assert state["status"] == ("completed" if number == 3 else "running")
        assert (state["pipeline_context"], state["last_step_output"]) == ({"n": number}, [name])
        assert (state["created_at"], state["updated_at"]) == (T0, T0 + timedelta(seconds=number))
        assert state["step_history"] == [record(name)]
    assert decide(code.pipeline, state) is None


def test_a_failure() -> None:
    """The run stays where it is, with the error and the number of attempts; a success forgets both."""
    _, state = begun()
    state = completed(state, record("a"), {}, 3, T0)
    assert attempts_before(state) == 0
    for attempts in (2, 5):
        bad = record("b", success=False, output=None, attempts=attempts)
        after = failed(state, bad, ERROR, T0 + timedelta(seconds=attempts))
        assert (after["status"], after["current_step_index"], after["last_step_output"]) == ("failed", 1, ["a"])
        assert (after["error"], after["step_history"], attempts_before(after)) == (ERROR, [bad], attempts)
        state = {**after, "status": "running"}
    state = completed(state, record("b"), {}, 3, T0)
    assert (attempts_before(state), state["error"], state["current_step_index"]) == (0, None, 2)
    assert state["rev"] == 4


def test_a_failure_without_a_step() -> None:
    """It keeps the attempts that are on record."""
    _, state = begun()
    state = failed(state, record("a", success=False, attempts=3), ERROR, T0)
    state = failed({**state, "status": "running"}, None, ERROR, T0)
    assert (attempts_before(state), state["step_history"], state["history_offset"]) == (3, [], 1)


def test_an_end_that_was_not_saved() -> None:
    """A run all of whose steps are saved is completed without another step."""
    code, state = begun()
    for name in "abc":
        state = completed(state, record(name), {}, 3, T0)
    after = finished({**state, "status": "running"}, T0)
    assert (after["status"], after["current_step_index"], after["rev"]) == ("completed", 3, 4)
    assert (after["step_history"], after["history_offset"]) == ([], 3)
    assert decide(code.pipeline, after) is None


@pytest.mark.parametrize("status", ["completed", "failed", "paused", "cancelled"])
def test_nothing_is_next_of_what_does_not_run(status: str) -> None:
    """Whoever wants it to go on sets it running."""
    code, state = begun()
    assert decide(code.pipeline, {**state, "status": status}) is None


@pytest.mark.slow
@given(st.lists(st.sampled_from(["ok", "fail"]), max_size=25), st.integers(1, 5))
def test_the_index_is_the_number_of_saved_steps(outcomes: list[str], length: int) -> None:
    """Whatever fails and is resumed; no old state is changed; saves and records are counted without a gap."""
    code, state = begun(length)
    done, records = 0, 0
    for outcome in outcomes:
        state = {**state, "status": "running"} if state["status"] == "failed" else state
        do = decide(code.pipeline, state)
        if do is None:
            assert done == length
            break
        assert do.step.name == NAMES[done]
        before = copy.deepcopy(state)
        if outcome == "ok":
            after = completed(state, record(do.step.name), {}, length, T0)
            done += 1
        else:
            after = failed(state, record(do.step.name, success=False), ERROR, T0)
        assert state == before
        assert after["rev"] == state["rev"] + 1
        assert after["history_offset"] == records
        records += len(after["step_history"])
        state = after
        assert state["current_step_index"] == done
        assert (state["status"] == "completed") == (done == length)


def test_what_can_go_on() -> None:
    """A state of this pipeline, at each of its places; one without a fingerprint is taken at its index."""
    code, state = begun()
    for index in range(4):
        check_resumable({**state, "current_step_index": index}, code)
        check_resumable({**state, "current_step_index": index, "fingerprint": None}, code)
    check_resumable({**state, "current_step_index": 3, "status": "completed"}, code)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"pipeline_name": "q"}, PipelineMismatchError, "'q'.*'p'"),
        ({"pipeline_id": "other"}, PipelineMismatchError, "'other'.*'id'"),
        ({"fingerprint": '["step:a","step:x","step:c"]'}, PipelineChangedError, "step 2 was 'x', is now 'b'"),
        ({"fingerprint": "nonsense"}, PipelineChangedError, "cannot be read"),
        ({"current_step_index": 4}, InvalidStateError, "4.*3 steps"),
        ({"current_step_index": -1}, InvalidStateError, "-1"),
        ({"current_step_index": "1"}, InvalidStateError, "'1'"),
        ({"current_step_index": None}, InvalidStateError, "None"),
        ({"status": "done"}, InvalidStateError, "'done'"),
        ({"status": "completed", "current_step_index": 2}, InvalidStateError, "step 2 of 3"),
    ],
)
def test_what_cannot(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    """Each reason is an error of its own that names run and reason."""
    code, state = begun()
    with pytest.raises(error, match=match) as caught:
        check_resumable({**state, **changes}, code)
    assert caught.value.run_id == "r"  # type: ignore[attr-defined]
