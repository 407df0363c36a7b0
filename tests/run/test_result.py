"""What a run gives back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flujo import Flujo, PipelineResult, RunFailedError, StepResult, step
from flujo.errors import RecordedError, StateCorruptedError
from tests.support.backends import Place, query
from tests.support.pipelines import abc, adding


class Boom(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(f"boom {number}")
        self.number = number


@step
async def explode(items: list[Any]) -> list[Any]:
    try:
        raise KeyError("inner")
    except KeyError as error:
        failure = Boom(7)
        failure.add_note("a note")
        raise failure from error


def test_a_completed_run(place: Place) -> None:
    """All of it is there, the same in this process and from the store."""
    first = Flujo(abc([]), state_backend=place.open()).run(["x"], run_id="r")
    again = Flujo(abc([]), state_backend=place.open()).run(run_id="r")
    for result in (first, again):
        assert isinstance(result, PipelineResult)
        assert (result.run_id, result.status, result.error) == ("r", "completed", None)
        assert (result.pipeline_name, result.pipeline_version) == ("abc", "1.0.0")
        assert result.output == ["x", "a", "b", "c"]
        assert [type(s) for s in result.step_history] == [StepResult] * 3
        assert [(s.name, s.path, s.output, s.success, s.attempts, s.feedback) for s in result.step_history] == [
            ("a", ("a",), ["x", "a"], True, 1, None),
            ("b", ("b",), ["x", "a", "b"], True, 1, None),
            ("c", ("c",), ["x", "a", "b", "c"], True, 1, None),
        ]
        assert all(0 <= s.latency_s < 60 for s in result.step_history)
        assert "completed" in repr(result)


def test_a_failed_run_in_this_process(place: Place) -> None:
    """The error is the very exception that was raised, and reading the output raises from it."""
    result = Flujo(adding("a", []) >> explode, state_backend=place.open()).run([], run_id="r")
    assert result.status == "failed"
    assert type(result.error) is Boom and result.error.number == 7
    assert isinstance(result.error.__cause__, KeyError)
    with pytest.raises(RunFailedError, match="boom 7") as caught:
        _ = result.output
    assert caught.value.__cause__ is result.error
    assert (caught.value.run_id, caught.value.status) == ("r", "failed")
    last = result.step_history[-1]
    assert (last.name, last.success, last.output, last.attempts) == ("explode", False, None, 1)
    assert last.feedback == "Boom: boom 7"


def test_a_failed_run_of_another_process(place: Place) -> None:
    """A state of `failed` tells type, text, notes, causes and traceback, also where the run cannot be tried again."""
    Flujo(adding("a", []) >> explode, state_backend=place.open()).run([], run_id="r")
    error = place.load()["error"]
    assert error["type"] == f"{__name__}.Boom"
    assert error["text"] == "boom 7"
    assert error["notes"] == ["a note"]
    assert error["causes"] == [{"type": "KeyError", "text": "'inner'"}]
    assert "raise failure from error" in error["traceback"]


def test_a_recorded_error(place: Place) -> None:
    """Of a run that is settled with an error, the error is a RecordedError with the text of what was raised."""
    Flujo(adding("a", []) >> explode, state_backend=place.open()).run([], run_id="r")
    place.put(place.load() | {"status": "cancelled"})
    result = Flujo(adding("a", []) >> explode, state_backend=place.open()).run([], run_id="r")
    assert result.status == "cancelled"
    error = result.error
    assert isinstance(error, RecordedError)
    assert (error.type_name, error.text) == (f"{__name__}.Boom", "boom 7")
    assert str(error).endswith("Boom: boom 7") and error.__notes__ == ["a note"]
    assert "raise failure from error" in error.traceback
    with pytest.raises(RunFailedError) as caught:
        _ = result.output
    assert caught.value.__cause__ is error


def test_the_history_of_a_resumed_run(place: Place) -> None:
    """It begins with the steps of earlier processes; a failure that was mended later is not in it."""
    fail = 2

    @step
    async def flaky(items: list[Any]) -> list[Any]:
        nonlocal fail
        if fail:
            fail -= 1
            raise OSError("down")
        return items

    pipeline = adding("a", []) >> flaky >> adding("c", [])

    def run() -> Any:
        return Flujo(pipeline, state_backend=place.open()).run([], run_id="r")

    expected = [("a", True, 1), ("flaky", False, 1)]
    assert [(s.name, s.success, s.attempts) for s in run().step_history] == expected
    expected = [("a", True, 1), ("flaky", False, 2)]
    assert [(s.name, s.success, s.attempts) for s in run().step_history] == expected
    for _ in range(3):
        result = run()
        expected = [("a", True, 1), ("flaky", True, 3), ("c", True, 1)]
        assert [(s.name, s.success, s.attempts) for s in result.step_history] == expected
        assert result.step_history is result.step_history


def test_the_history_is_read_when_it_is_asked_for(tmp_path: Any) -> None:
    """A damaged record of an earlier step does not keep a run from its output, but is not passed over either."""
    place = Place("sqlite", tmp_path)
    Flujo(abc([]), state_backend=place.open()).run([], run_id="r")
    place.close()
    query(
        place.file,
        "UPDATE flujo_log SET records = CAST(replace(CAST(records AS TEXT), 'a', 'b') AS BLOB) WHERE idx = 1",
    )
    result = Flujo(abc([]), state_backend=place.open()).run([], run_id="r")
    assert result.output == ["a", "b", "c"]
    with pytest.raises(StateCorruptedError):
        _ = result.step_history
    place.close()


def test_the_history_is_there_within_a_loop(place: Place) -> None:
    """It can be read where an event loop is running, and after the backend was closed if it was read before."""
    Flujo(abc([]), state_backend=place.open()).run([], run_id="r")

    async def main() -> Any:
        backend = place.open()
        result = await Flujo(abc([]), state_backend=backend).run_async([], run_id="r")
        assert len(result.step_history) == 3
        await backend.close()
        return result

    assert [s.name for s in asyncio.run(main()).step_history] == ["a", "b", "c"]


def test_a_stored_history_does_not_follow_what_later_steps_do_to_an_output(place: Place) -> None:
    """An output that the next step changed in place is read as it was saved."""

    @step
    async def make(n: int) -> list[int]:
        return [n]

    @step
    async def change(items: list[int]) -> list[int]:
        items.append(2)
        return items

    Flujo(make >> change, state_backend=place.open()).run(1, run_id="r")
    again = Flujo(make >> change, state_backend=place.open()).run(1, run_id="r")
    assert [s.output for s in again.step_history] == [[1], [1, 2]]


def test_a_result_with_an_error_that_cannot_be_shown(place: Place) -> None:
    """A failure whose own text cannot be had is still a failure with a result that can be looked at."""

    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

    @step
    async def rude(n: int) -> int:
        raise Rude

    result = Flujo(rude, state_backend=place.open()).run(1, run_id="r")
    assert result.status == "failed" and type(result.error) is Rude
    assert "failed" in repr(result)
    with pytest.raises(RunFailedError) as caught:
        _ = result.output
    assert type(caught.value.__cause__) is Rude
    assert place.load()["error"]["type"].endswith("Rude")


def test_a_run_id_of_its_own() -> None:
    """Without one, each run gets a new one, which is there before the run has begun."""
    runner = Flujo(adding("a", []))
    one, two = runner.run([]), runner.run([])
    assert one.run_id != two.run_id
    execution = runner.run_async([])
    assert asyncio.run(execution).run_id == execution.run_id
