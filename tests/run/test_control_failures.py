"""What happens when something inside of a composite step fails for good, and when the run is run again after that."""

from __future__ import annotations

from typing import Any

import pytest

from flujo import Flujo, ItemError, Step, current_step, step
from flujo.errors import (
    ItemsFailedError,
    LoopLimitError,
    NoCaseError,
    RecordedError,
    RunFailedError,
    StepTimeoutError,
)
from tests.support.backends import Place
from tests.support.nested_runs import Notes, paths

FOREVER = 1000  # max_concurrency that limits nothing
LIMIT = 0.05  # s of real time: a time-out is the event loop's


def tenfold(notes: Notes, name: str = "work", **options: Any) -> Step[Any, Any]:
    return notes.step(name, lambda given: given * 10, **options)


def mapping(notes: Notes, **options: Any) -> Step[Any, Any]:
    return Step.map_over("enrich", tenfold(notes), **options)


# --- maps ---


def test_the_first_failure_fails_a_map(place: Place) -> None:
    """`on_error="fail"`: the run fails with the item's own error, no further item is begun, and what is saved stays."""
    notes = Notes()
    notes.failing = {"enrich[3].work"}
    runner = Flujo(mapping(notes, max_concurrency=1), state_backend=place.open())
    result = runner.run([0, 1, 2, 3, 4, 5], run_id="r")
    assert result.status == "failed"
    assert isinstance(result.error, ValueError)
    assert str(result.error) == "enrich[3].work is out of order"
    assert notes.taken() == [f"enrich[{i}].work" for i in range(4)]
    assert paths(result) == [f"enrich[{i}].work" for i in range(3)]
    assert paths(result, success=False) == ["enrich[3].work"]
    stored = place.load()
    assert (stored["status"], stored["current_step_index"], stored["last_step_output"]) == ("failed", 0, None)
    assert stored["error"]["text"] == "enrich[3].work is out of order"


def test_a_failed_map_that_is_run_again_does_what_failed_and_what_is_left(place: Place) -> None:
    """The items before the failure are not done again, however often it fails."""
    notes = Notes()
    notes.failing = {"enrich[3].work"}
    for _ in range(2):
        Flujo(mapping(notes, max_concurrency=1), state_backend=place.open()).run([0, 1, 2, 3, 4, 5], run_id="r")
    assert notes.taken() == [f"enrich[{i}].work" for i in (0, 1, 2, 3, 3)]
    notes.failing = set()
    result = Flujo(mapping(notes, max_concurrency=1), state_backend=place.open()).run(run_id="r")
    assert result.output == [0, 10, 20, 30, 40, 50]
    assert notes.taken() == [f"enrich[{i}].work" for i in (3, 4, 5)]
    assert paths(result) == [*(f"enrich[{i}].work" for i in range(6)), "enrich"]
    assert paths(result, success=False) == []


def test_a_failure_stops_the_items_in_flight(place: Place) -> None:
    """They are cancelled, wait for nothing, and are done again when the run is; those that were done are not."""
    notes = Notes()
    notes.failing, notes.waiting = {"enrich[2].work"}, {"enrich[0].work", "enrich[3].work"}
    runner = Flujo(mapping(notes, max_concurrency=FOREVER), state_backend=place.open())
    result = runner.run([0, 1, 2, 3], run_id="r")
    assert result.status == "failed"
    assert sorted(notes.cancelled) == ["enrich[0].work", "enrich[3].work"]
    finished = paths(result)
    assert finished in ([], ["enrich[1].work"])
    notes.taken()
    notes.failing, notes.waiting = set(), set()
    result = Flujo(mapping(notes), state_backend=place.open()).run(run_id="r")
    assert result.output == [0, 10, 20, 30]
    assert sorted(notes.taken()) == sorted({f"enrich[{i}].work" for i in range(4)} - set(finished))


def test_failed_items_are_collected(place: Place) -> None:
    """`on_error="collect"`: an ItemError with the item's index and its failure's type and text is in its place."""
    notes = Notes()
    notes.failing = {"enrich[1].work", "enrich[3].work"}
    runner = Flujo(mapping(notes, on_error="collect"), state_backend=place.open())
    result = runner.run([0, 1, 2, 3, 4], run_id="r")
    first = ItemError(index=1, error="ValueError: enrich[1].work is out of order")
    other = ItemError(index=3, error="ValueError: enrich[3].work is out of order")
    assert result.output == [0, first, 20, other, 40]
    assert sorted(paths(result, success=False)) == ["enrich[1].work", "enrich[3].work"]
    assert len(notes.taken()) == 5
    notes.failing = set()
    again = Flujo(mapping(notes, on_error="collect"), state_backend=place.open()).run(run_id="r")
    assert again.output == result.output
    assert notes.taken() == []


def test_collected_failures_stay_on_resume(place: Place) -> None:
    """An item that has failed is not tried again by a process that goes on with the map."""
    notes = Notes()
    notes.failing = {"enrich[1].work"}
    body = Step.map_over("enrich", tenfold(notes) >> tenfold(notes, "more"), on_error="collect", max_concurrency=1)
    notes.interrupt(Flujo(body, state_backend=place.open()), [0, 1, 2, 3], at={"enrich[2].more"})
    notes.taken()
    notes.failing = set()
    result = Flujo(body, state_backend=place.open()).run(run_id="r")
    assert result.output == [0, ItemError(index=1, error="ValueError: enrich[1].work is out of order"), 200, 300]
    assert notes.taken() == ["enrich[2].more", "enrich[3].work", "enrich[3].more"]


@pytest.mark.parametrize(("failed", "status"), [(0, "completed"), (1, "completed"), (2, "failed")])
def test_tolerated_failures(place: Place, failed: int, status: str) -> None:
    """As many items may fail; with one more the step fails with an ItemsFailedError that counts them."""
    notes = Notes()
    notes.failing = {f"enrich[{i}].work" for i in range(failed)}
    step = mapping(notes, on_error="collect", tolerated_failures=1, max_concurrency=1)
    result = Flujo(step, state_backend=place.open()).run([0, 1, 2, 3], run_id="r")
    assert result.status == status
    if status == "completed":
        assert [type(item) for item in result.output] == [ItemError] * failed + [int] * (4 - failed)
        return
    assert isinstance(result.error, ItemsFailedError)
    assert (result.error.failed, result.error.items, result.error.step) == (2, 4, "enrich")
    assert notes.taken() == ["enrich[0].work", "enrich[1].work"]  # then it is certain, and nothing more is begun
    notes.failing = {"enrich[0].work"}
    result = Flujo(step, state_backend=place.open()).run(run_id="r")
    assert [type(item) for item in result.output] == [ItemError, int, int, int]
    assert notes.taken() == [f"enrich[{i}].work" for i in range(4)]  # the failures are what is tried again


@pytest.mark.parametrize(("failed", "status"), [(0, "completed"), (1, "completed"), (2, "failed")])
def test_min_successful(place: Place, failed: int, status: str) -> None:
    """The step fails as soon as fewer items than these can still succeed."""
    notes = Notes()
    notes.failing = {f"enrich[{i}].work" for i in range(failed)}
    step = mapping(notes, on_error="collect", min_successful=3, max_concurrency=1)
    result = Flujo(step, state_backend=place.open()).run([0, 1, 2, 3], run_id="r")
    assert result.status == status
    if status == "failed":
        assert isinstance(result.error, ItemsFailedError)
        assert notes.taken() == ["enrich[0].work", "enrich[1].work"]
        notes.failing = set()
        result = Flujo(step, state_backend=place.open()).run(run_id="r")
        assert result.output == [0, 10, 20, 30]
        assert notes.taken() == [f"enrich[{i}].work" for i in range(4)]


def test_too_few_items_to_succeed(place: Place) -> None:
    """A map that needs more successes than it has items fails before it begins any."""
    notes = Notes()
    step = mapping(notes, on_error="collect", min_successful=3)
    result = Flujo(step, state_backend=place.open()).run([0, 1], run_id="r")
    assert isinstance(result.error, ItemsFailedError)
    assert notes.taken() == []


def test_a_failing_map_inside_of_a_collecting_one(place: Place) -> None:
    """What fails inside of an item is that item's failure; the other items go on, and nothing is done twice."""
    notes = Notes()
    notes.failing = {"outer[1].inner[0].work"}
    inner = Step.map_over("inner", tenfold(notes), max_concurrency=1)
    step = Step.map_over("outer", inner, on_error="collect", max_concurrency=1)
    result = Flujo(step, state_backend=place.open()).run([[1, 2], [3, 4], [5]], run_id="r")
    error = "ValueError: outer[1].inner[0].work is out of order"
    assert result.output == [[10, 20], ItemError(index=1, error=error), [50]]
    assert notes.taken() == [f"outer[{o}].inner[{i}].work" for o, i in ((0, 0), (0, 1), (1, 0), (2, 0))]


# --- retries ---


def test_nested_retries(place: Place) -> None:
    """A step with retries in a map in a loop: each of its attempts is counted, and only what fails is repeated."""
    attempts: list[tuple[str, int]] = []

    @step(retries=[0.0, 0.0])
    async def flaky(n: int) -> int:
        current = current_step()
        attempts.append(("".join(current.path[1:3]), current.attempt))
        if n % 2 and current.attempt < 3:
            raise ConnectionError("not yet")
        return n + 2

    body = Step.map_over("items", flaky, max_concurrency=1)
    loop = Step.loop_until("again", body, until=lambda numbers: sum(numbers) > 8)
    result = Flujo(loop, state_backend=place.open()).run([0, 1], run_id="r")
    assert result.output == [4, 5]
    once = [("#1items", 1), ("#1items", 1), ("#1items", 2), ("#1items", 3)]
    assert attempts == once + [(path.replace("1", "2"), attempt) for path, attempt in once]
    counted = {record.path: record.attempts for record in result.step_history}
    assert counted["again", "#1", "items", "[0]", "flaky"] == 1
    assert counted["again", "#2", "items", "[1]", "flaky"] == 3


def test_attempts_of_failed_runs_are_counted(place: Place) -> None:
    """A nested step that failed for good begins its next run with the attempt after those that are on record."""
    attempts: list[int] = []

    @step(retries=[0.0])
    async def flaky(n: int) -> int:
        attempts.append(current_step().attempt)
        if len(attempts) < 5:
            raise ConnectionError("not yet")
        return n

    pipeline = Step.parallel("fan", one=flaky)
    statuses = [Flujo(pipeline, state_backend=place.open()).run(1, run_id="r").status for _ in range(3)]
    assert statuses == ["failed", "failed", "completed"]
    assert attempts == [1, 2, 3, 4, 5]


# --- fallbacks ---


def test_a_fallback_takes_over(place: Place) -> None:
    """When the primary has used up its retries the other one gets the same input, as it was, and the run goes on."""
    seen: list[Any] = []

    @step(retries=[0.0])
    async def charge(items: list[int]) -> int:
        items.append(99)
        raise ConnectionError("the bank is closed")

    @step
    async def wire(items: list[int]) -> int:
        seen.append(items)
        return sum(items)

    result = Flujo(charge.fallback(wire), state_backend=place.open()).run([1, 2], run_id="r")
    assert result.output == 3
    assert seen == [[1, 2]]
    assert paths(result) == ["charge.fallback.wire", "charge"]
    assert paths(result, success=False) == ["charge.primary.charge"]
    assert [record.attempts for record in result.step_history if not record.success] == [2]


def test_a_fallback_that_is_not_needed(place: Place) -> None:
    """Nothing of it runs."""
    notes = Notes()
    result = Flujo(tenfold(notes, "a").fallback(tenfold(notes, "b")), state_backend=place.open()).run(1, run_id="r")
    assert result.output == 10
    assert notes.calls == ["a.primary.a"]


def test_a_fallback_that_fails_too(place: Place) -> None:
    """The run fails with the fallback's error; run again it tries the fallback again, and not the primary."""
    notes = Notes()
    notes.failing = {"a.primary.a", "a.fallback.b"}
    step = tenfold(notes, "a").fallback(tenfold(notes, "b"))
    result = Flujo(step, state_backend=place.open()).run(1, run_id="r")
    assert str(result.error) == "a.fallback.b is out of order"
    assert notes.taken() == ["a.primary.a", "a.fallback.b"]
    notes.failing = set()
    assert Flujo(step, state_backend=place.open()).run(run_id="r").output == 10
    assert notes.taken() == ["a.fallback.b"]


def test_a_fallback_for_a_whole_parallel(place: Place) -> None:
    """One branch fails, the others are stopped, and the fallback gets the input; resumed, it is still the fallback."""
    notes = Notes()
    notes.failing = {"fan.primary.fan.bad.work"}
    fan = Step.parallel("fan", good=tenfold(notes), bad=tenfold(notes))
    pipeline = fan.fallback(tenfold(notes, "x") >> tenfold(notes, "y"))
    notes.interrupt(Flujo(pipeline, state_backend=place.open()), 1, at={"fan.fallback.y"})
    notes.taken()
    notes.failing = set()
    assert Flujo(pipeline, state_backend=place.open()).run(run_id="r").output == 100
    assert notes.taken() == ["fan.fallback.y"]


# --- decisions ---


def test_a_branch_without_such_a_case(place: Place) -> None:
    """NoCaseError names the step, the answer and the cases; run again, the question is asked again."""
    asked: list[Any] = []

    def by(n: int) -> str:
        asked.append(n)
        return "huge" if len(asked) == 1 else "big"

    notes = Notes()
    step = Step.branch_on("route", by=by, big=tenfold(notes), small=tenfold(notes))
    result = Flujo(step, state_backend=place.open()).run(7, run_id="r")
    assert isinstance(result.error, NoCaseError)
    assert (result.error.step, result.error.answer, list(result.error.cases)) == ("route", "huge", ["big", "small"])
    assert notes.calls == []
    assert Flujo(step, state_backend=place.open()).run(run_id="r").output == 70
    assert asked == [7, 7]
    assert notes.calls == ["route.big.work"]


@pytest.mark.parametrize("default", ["small", None])
def test_the_default_of_a_branch(place: Place, default: str | None) -> None:
    """An answer that is no case takes the default: one of the cases, or a step of its own, the case "default"."""
    notes = Notes()
    other: Any = default or tenfold(notes, "other")
    step = Step.branch_on("route", by=lambda n: "huge", default=other, big=tenfold(notes), small=tenfold(notes))
    assert Flujo(step, state_backend=place.open()).run(7, run_id="r").output == 70
    assert notes.calls == ["route.small.work" if default else "route.default.other"]


def test_a_decision_that_raises_is_a_failed_step(place: Place) -> None:
    """The run fails with its error, and asks again the next time; what came before is not done again."""
    notes = Notes()

    def until(n: int) -> bool:
        if not answers:
            raise KeyError("no idea")
        return answers.pop()

    answers: list[bool] = []
    loop = Step.loop_until("again", tenfold(notes), until=until)
    result = Flujo(loop, state_backend=place.open()).run(1, run_id="r")
    assert isinstance(result.error, KeyError)
    answers = [True, False]
    assert Flujo(loop, state_backend=place.open()).run(run_id="r").output == 100
    assert notes.calls == ["again#1.work", "again#2.work"]


def test_a_loop_that_is_never_done(place: Place) -> None:
    """LoopLimitError after `max_iterations`; run again with a higher limit it goes on where it was."""
    notes = Notes()

    def loop(limit: int) -> Any:
        return Step.loop_until("again", tenfold(notes), until=lambda n: n > 10_000, max_iterations=limit)

    for _ in range(2):
        result = Flujo(loop(3), state_backend=place.open()).run(1, run_id="r")
        assert isinstance(result.error, LoopLimitError | RecordedError)
        assert "again" in str(result.error) and "3" in str(result.error)
    assert notes.taken() == ["again#1.work", "again#2.work", "again#3.work"]
    assert Flujo(loop(9), state_backend=place.open()).run(run_id="r").output == 100_000
    assert notes.taken() == ["again#4.work", "again#5.work"]


# --- time limits ---


def test_a_time_limit_for_a_whole_step(place: Place) -> None:
    """It fails with a StepTimeoutError for its own path, what goes on inside is cancelled, what is done stays done."""
    notes = Notes()
    notes.waiting = {"fan.slow.work"}
    fan = Step.parallel("fan", quick=tenfold(notes), slow=tenfold(notes)).with_timeout(LIMIT)
    result = Flujo(fan, state_backend=place.open()).run(1, run_id="r")
    assert isinstance(result.error, StepTimeoutError)
    assert (result.error.step, result.error.timeout, result.error.run_id) == ("fan", LIMIT, "r")
    assert paths(result) == ["fan.quick.work"]
    assert paths(result, success=False) == ["fan"]
    assert notes.cancelled == ["fan.slow.work"]
    with pytest.raises(RunFailedError):
        result.output
    notes.taken()
    notes.waiting = set()
    assert Flujo(fan, state_backend=place.open()).run(run_id="r").output == {"quick": 10, "slow": 10}
    assert notes.taken() == ["fan.slow.work"]


def test_a_time_limit_with_a_fallback(place: Place) -> None:
    """The fallback takes over, and a resumed run stays with it."""
    notes = Notes()
    notes.waiting = {"slow.primary.slow.work"}
    slow = (tenfold(notes, "first") >> tenfold(notes)).as_step("slow").with_timeout(LIMIT)
    pipeline = slow.fallback(tenfold(notes, "x")) >> tenfold(notes, "last")
    runner = Flujo(pipeline, state_backend=place.open())
    notes.failing = {"last"}
    assert runner.run(1, run_id="r").status == "failed"
    assert notes.taken() == ["slow.primary.slow.first", "slow.primary.slow.work", "slow.fallback.x", "last"]
    notes.failing = set()
    assert Flujo(pipeline, state_backend=place.open()).run(run_id="r").output == 100
    assert notes.taken() == ["last"]


def test_a_time_limit_inside_of_a_collecting_map(place: Place) -> None:
    """An item's step that takes too long is a failed item; the others have a limit each of their own."""
    notes = Notes()
    notes.waiting = {"enrich[1].slow.work"}
    slow = (tenfold(notes, "first") >> tenfold(notes)).as_step("slow").with_timeout(LIMIT)
    step = Step.map_over("enrich", slow, on_error="collect")
    result = Flujo(step, state_backend=place.open()).run([1, 2, 3], run_id="r")
    assert [item if isinstance(item, int) else item.index for item in result.output] == [100, 1, 300]
    assert result.output[1].error.startswith("StepTimeoutError: ")
    assert "enrich[1].slow" in result.output[1].error
